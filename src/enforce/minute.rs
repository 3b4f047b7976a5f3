//! Minutes of the wall clock, as the limiter is told it: numbered, and the number never falls.

use std::time::Duration;

use crate::unit::Instant;

const MINUTE: u64 = 60_000_000_000;

/// What the wall clock said, and when.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wall {
    at: Instant,
    unix_nanos: u64,
    /// Added to the minutes since 1970 once the clock was put back.
    offset: u64,
    /// The number in force when the clock was set last.
    floor: u64,
}

/// A minute under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Minute {
    pub number: u64,
    /// Until the next one.
    pub left: Duration,
}

// === impl Wall ===

impl Wall {
    pub fn minute(&self, now: Instant) -> Minute {
        let nanos = self.unix_nanos.saturating_add(now.0.saturating_sub(self.at.0));
        let raw = (nanos / MINUTE).saturating_add(self.offset);
        let number = raw.max(self.floor);
        let left = MINUTE - nanos % MINUTE;
        let left = left.saturating_add((number - raw).saturating_mul(MINUTE));
        Minute { number, left: Duration::from_nanos(left) }
    }

    /// A clock put back by less than a minute goes on in the minute it was in, so that no minute
    /// is counted twice; one put back further begins the next at its own full minute.
    pub fn set(&self, now: Instant, unix_ms: u64) -> Wall {
        let floor = self.minute(now).number;
        let unix_nanos = unix_ms.saturating_mul(1_000_000);
        let raw = (unix_nanos / MINUTE).saturating_add(self.offset);
        let back = floor.saturating_sub(raw);
        let offset = if back > 1 { self.offset.saturating_add(back) } else { self.offset };
        Wall { at: now, unix_nanos, offset, floor }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Instant {
        Instant(seconds * 1_000_000_000)
    }

    #[test]
    fn a_minute_ends_when_the_wall_clock_says_so() {
        // 2024-01-15T09:59:15Z.
        let wall = Wall::default().set(at(100), 1_705_312_755_000);
        assert_eq!(wall.minute(at(100)), Minute { number: 28_421_879, left: Duration::from_secs(45) });
        assert_eq!(wall.minute(at(144)).left, Duration::from_secs(1));
        assert_eq!(wall.minute(at(145)), Minute { number: 28_421_880, left: Duration::from_secs(60) });
    }

    #[test]
    fn b02_a_clock_put_back_gives_no_minute_twice_and_stops_none_for_long() {
        let noon = 1_705_320_000_000;
        let wall = Wall::default().set(at(0), noon);
        let before = wall.minute(at(1)).number;
        // A correction by a few milliseconds across the full minute: the same minute goes on.
        let slewed = wall.set(at(0) + Duration::from_millis(2), noon - 5);
        assert_eq!(slewed.minute(at(1)).number, before);
        assert_eq!(slewed.minute(at(59)).number, before);
        assert_eq!(slewed.minute(at(0) + Duration::from_millis(3)).left, Duration::from_millis(60_004));
        assert_eq!(slewed.minute(at(61)).number, before + 1);
        // A month back: the minute ends with the clock's own, and the numbers go on.
        let back = wall.set(at(10), noon - 30 * 86_400_000 + 10_000);
        assert_eq!(back.minute(at(10)), Minute { number: before, left: Duration::from_secs(50) });
        assert_eq!(back.minute(at(60)).number, before + 1);
        // And forward again.
        let forward = back.set(at(70), noon + 70_000);
        assert!(forward.minute(at(70)).number > before + 1);
        let (mut wall, mut last) = (forward, 0);
        for (step, jump) in
            [3_600_000_u64, 0, 59_000, 1 << 40, 7, u64::MAX].into_iter().cycle().take(60).enumerate()
        {
            let now = at(70 + 13 * step as u64);
            wall = wall.set(now, jump);
            let number = wall.minute(now).number;
            assert!(number >= last, "{number} after {last}");
            last = number;
        }
    }
}
