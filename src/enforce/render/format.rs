//! Times and money as headers and bodies write them.

use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;

use crate::wire::dialect::Round;

/// Micro-dollars as dollars with two to six decimals.
pub fn dollars(micros: u64) -> String {
    let text = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
    let least = text.len() - 4;
    let kept = text.trim_end_matches('0').len().max(least);
    text.get(..kept).unwrap_or(&text).to_owned()
}

/// As Go writes a duration, rounded up to a millisecond.
pub fn go_duration(time: Duration) -> String {
    let millis = time.as_nanos().div_ceil(1_000_000);
    let (seconds, rest) = (millis / 1_000, millis % 1_000);
    if seconds == 0 && rest > 0 {
        return format!("{rest}ms");
    }
    let (hours, minutes) = (seconds / 3_600, seconds / 60 % 60);
    let mut text = String::new();
    if hours > 0 {
        let _ = write!(text, "{hours}h");
    }
    if hours > 0 || minutes > 0 {
        let _ = write!(text, "{minutes}m");
    }
    let fraction = format!(".{rest:03}");
    let fraction = if rest == 0 { "" } else { fraction.trim_end_matches('0') };
    let _ = write!(text, "{}{fraction}s", seconds % 60);
    text
}

/// RFC 3339 in UTC, from whole seconds since 1970.
pub fn rfc3339(unix: u64) -> String {
    let instant = i64::try_from(unix).ok().and_then(|unix| Timestamp::from_second(unix).ok());
    instant.unwrap_or(Timestamp::MAX).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

pub fn whole_seconds(time: Duration, round: Round) -> u64 {
    let up = u64::from(time.subsec_nanos() > 0 && round == Round::Up);
    time.as_secs().saturating_add(up)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_rfc_3339_through_leap_days_and_centuries() {
        for (unix, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_705_312_800, "2024-01-15T10:00:00Z"),
            (1_709_164_800, "2024-02-29T00:00:00Z"),
            (1_770_305_561, "2026-02-05T15:32:41Z"),
            (1_798_761_599, "2026-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            // As absurd a wall clock as there is panics nowhere.
            (u64::MAX, "9999-12-30T22:00:00Z"),
        ] {
            assert_eq!(rfc3339(unix), text);
        }
    }

    #[test]
    fn durations_are_gos_and_never_short() {
        for (nanos, text) in [
            (0, "0s"),
            (1, "1ms"),
            (12_000_000, "12ms"),
            (250_000_000, "250ms"),
            (1_000_000_000, "1s"),
            (7_660_000_000, "7.66s"),
            (179_560_000_000, "2m59.56s"),
            (360_000_000_000, "6m0s"),
            (7_200_000_000_000, "2h0m0s"),
        ] {
            assert_eq!(go_duration(Duration::from_nanos(nanos)), text);
        }
    }

    #[test]
    fn money_has_two_decimals_and_more_where_they_count() {
        for (micros, text) in
            [(0, "0.00"), (1, "0.000001"), (1_000_000, "1.00"), (12_500_000, "12.50"), (999_999, "0.999999")]
        {
            assert_eq!(dollars(micros), text);
        }
    }
}
