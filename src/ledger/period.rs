//! Days and months of a time zone: where they begin and end on the wall clock.
//!
//! The periods of a zone partition time: a period lasts from the first instant of its first day
//! to the first instant of the next one's, so a day has 23 hours when clocks are put forward and 25
//! when they are put back, and a month ends where the next begins, however long it is. Months are
//! those of the calendar: none is anchored at a day that a shorter month lacks.
//!
//! Time zones are those compiled into the program (IANA, by `jiff`), so that nodes agree whatever
//! their machines have.

use std::ops::Range;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::tz::TimeZoneDatabase;

/// Milliseconds since 1970-01-01T00:00:00Z.
pub type UnixMs = u64;

/// A time zone by its IANA name.
#[derive(Clone, Debug)]
pub struct Zone(TimeZone);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Day,
    Month,
}

/// Days since 1970-01-01, or months since January of the year 0, of the local calendar. Rises with
/// time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeriodId(pub i32);

/// The day and the month of one instant, and how long they last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Periods {
    pub day: PeriodId,
    pub month: PeriodId,
    /// While it holds, so does the rest.
    pub within: Range<UnixMs>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no time zone of the IANA database; write one like `UTC` or `America/New_York`")]
pub struct ZoneError(String);

// === impl Zone ===

impl Zone {
    /// # Errors
    /// No zone has this name.
    pub fn named(name: &str) -> Result<Zone, ZoneError> {
        let found = TimeZoneDatabase::bundled().get(name);
        found.map(Zone).map_err(|_| ZoneError(name.chars().take(64).collect()))
    }

    pub fn utc() -> Zone {
        Zone(TimeZone::UTC)
    }

    /// The day and month that `at` lies in.
    pub fn periods(&self, at: UnixMs) -> Periods {
        let date = self.0.to_datetime(timestamp(at)).date();
        let mut day = day_of(date);
        // Where clocks are put back over midnight, the local date falls again; the day does not.
        if self.start(Kind::Day, PeriodId(day.0.saturating_add(1))) <= at {
            day.0 = day.0.saturating_add(1);
        }
        let month = date_of(day).map_or(PeriodId::default(), month_of);
        Periods { day, month, within: self.span(Kind::Day, day) }
    }

    /// From its first millisecond to the next one's.
    pub fn span(&self, kind: Kind, id: PeriodId) -> Range<UnixMs> {
        self.start(kind, id)..self.start(kind, PeriodId(id.0.saturating_add(1)))
    }

    fn start(&self, kind: Kind, id: PeriodId) -> UnixMs {
        let date = match kind {
            Kind::Day => date_of(id),
            Kind::Month => first_of(id),
        };
        // Where midnight is left out, the day begins at the first time that is not. Beyond the
        // years that a calendar has, nothing begins.
        let start = date.and_then(|date| date.to_zoned(self.0.clone()).ok()?.start_of_day().ok());
        let millis = start.map_or(i64::MAX, |start| start.timestamp().as_millisecond());
        UnixMs::try_from(millis).unwrap_or(0)
    }
}

/// Up to the year 9999; what is later is its end.
fn timestamp(at: UnixMs) -> Timestamp {
    let millis = i64::try_from(at).ok();
    millis.and_then(|millis| Timestamp::from_millisecond(millis).ok()).unwrap_or(Timestamp::MAX)
}

fn epoch() -> Date {
    Date::constant(1970, 1, 1)
}

fn day_of(date: Date) -> PeriodId {
    PeriodId(date.duration_since(epoch()).as_hours().checked_div(24).map_or(0, saturated))
}

fn date_of(day: PeriodId) -> Option<Date> {
    epoch().checked_add(jiff::SignedDuration::from_hours(i64::from(day.0).checked_mul(24)?)).ok()
}

fn month_of(date: Date) -> PeriodId {
    PeriodId(i32::from(date.year()) * 12 + i32::from(date.month()) - 1)
}

fn first_of(month: PeriodId) -> Option<Date> {
    let year = i16::try_from(month.0.div_euclid(12)).ok()?;
    let month = i8::try_from(month.0.rem_euclid(12) + 1).ok()?;
    Date::new(year, month, 1).ok()
}

fn saturated(value: i64) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    fn at(text: &str) -> UnixMs {
        u64::try_from(text.parse::<Timestamp>().unwrap().as_millisecond()).unwrap()
    }

    fn day(zone: &str, noon: &str) -> (PeriodId, Range<UnixMs>) {
        let zone = Zone::named(zone).unwrap();
        let periods = zone.periods(at(noon));
        (periods.day, zone.span(Kind::Day, periods.day))
    }

    #[test]
    fn b06_days_of_23_and_25_hours_begin_and_end_at_local_midnight() {
        for (zone, noon, hours, start) in [
            ("America/New_York", "2026-11-01T17:00:00Z", 25, "2026-11-01T04:00:00Z"),
            ("America/New_York", "2027-03-14T17:00:00Z", 23, "2027-03-14T05:00:00Z"),
            ("Europe/Berlin", "2027-03-28T12:00:00Z", 23, "2027-03-27T23:00:00Z"),
            ("Europe/London", "2027-03-28T12:00:00Z", 23, "2027-03-28T00:00:00Z"),
            ("America/New_York", "2026-11-22T17:00:00Z", 24, "2026-11-22T05:00:00Z"),
            // Clocks are put forward at midnight: the day begins at one.
            ("Africa/Cairo", "2027-04-30T12:00:00Z", 23, "2027-04-29T22:00:00Z"),
        ] {
            let (_, span) = day(zone, noon);
            assert_eq!((span.start, span.end - span.start), (at(start), hours * HOUR), "{zone} {noon}");
        }
    }

    #[test]
    fn b07_months_end_where_the_next_begin_and_leap_years_have_their_day() {
        let zone = Zone::named("Asia/Shanghai").unwrap();
        for (within, days) in [
            ("2027-01-31T12:00:00Z", 31),
            ("2027-02-28T12:00:00Z", 28),
            ("2028-02-29T12:00:00Z", 29),
            ("2028-04-30T12:00:00Z", 30),
        ] {
            let month = zone.span(Kind::Month, zone.periods(at(within)).month);
            assert_eq!(month.end - month.start, days * 24 * HOUR, "{within}");
            let next = zone.periods(month.end);
            assert_eq!(next.month.0, zone.periods(month.end - 1).month.0 + 1);
            assert_eq!(next.within.start, month.end, "a month begins with a day");
        }
    }

    /// Every zone of the database over twenty years, at every end of a day and around it.
    #[test]
    fn b06_the_periods_of_every_zone_partition_time() {
        let long = std::env::var("TIDEGATE_LONG").is_ok_and(|value| value == "1");
        let names: Vec<String> =
            TimeZoneDatabase::bundled().available().map(|name| name.as_str().to_owned()).collect();
        assert!(names.len() > 400, "{}", names.len());
        let mut odd = 0;
        for (turn, name) in names.iter().enumerate() {
            let zone = Zone::named(name).unwrap();
            // The short form sees two years of each zone, all years over all zones.
            let year = 2_020 + (turn % 19);
            let (from, to) = match long {
                true => (at("2020-01-01T12:00:00Z"), at("2041-01-01T00:00:00Z")),
                false => {
                    (at(&format!("{year}-01-01T12:00:00Z")), at(&format!("{}-02-02T12:00:00Z", year + 1)))
                }
            };
            let mut periods = zone.periods(from);
            while periods.within.end < to {
                let Range { start, end } = periods.within.clone();
                assert!(end - start >= 22 * HOUR && end - start <= 26 * HOUR, "{name} {start}");
                odd += u32::from(end - start != 24 * HOUR);
                for inside in [start, start + 1, start + HOUR, end - HOUR, end - 1] {
                    assert_eq!(zone.periods(inside), periods, "{name} {inside}");
                }
                let next = zone.periods(end);
                assert_eq!(next.within.start, end, "{name}: no gap, no overlap");
                assert_eq!(next.day.0, periods.day.0 + 1, "{name} {end}");
                let month = zone.span(Kind::Month, periods.month);
                assert!(month.start <= start && end <= month.end, "{name}: a day lies in one month");
                let turned = i32::from(month.end == end);
                assert_eq!(next.month.0, periods.month.0 + turned, "{name} {end}");
                periods = next;
            }
        }
        assert!(odd > 300, "only {odd} days that are not of 24 hours");
    }

    #[test]
    fn no_instant_is_too_early_or_too_late() {
        for name in ["UTC", "Pacific/Apia", "America/Los_Angeles"] {
            let zone = Zone::named(name).unwrap();
            for at in [0, 1, u64::MAX, u64::MAX / 2, 253_402_300_799_000] {
                let periods = zone.periods(at);
                assert!(periods.within.start <= periods.within.end, "{name} {at}: {periods:?}");
            }
            for id in [i32::MIN, -1, 0, i32::MAX] {
                for kind in [Kind::Day, Kind::Month] {
                    let span = zone.span(kind, PeriodId(id));
                    assert!(span.start <= span.end, "{name} {id}: {span:?}");
                }
            }
        }
        assert!(Zone::named("Mars/Olympus").unwrap_err().to_string().contains("IANA"));
    }
}
