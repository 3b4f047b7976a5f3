//! How far the wall clock is believed: a step is not, until it has lasted.
//!
//! Days and months are told by the wall clock, and one that jumps by a month would give everybody a
//! new budget. Between two readings it goes on as the monotonic clock does; what differs from that by
//! more than [`STEP`] is doubted, and for [`DOUBTED`] time goes on as if it had not stepped. Then it is
//! believed: a machine that was suspended, or whose clock was wrong before.

use std::time::Duration;

use crate::ledger::period::UnixMs;
use crate::unit::Instant;

/// Less is how clocks are set right.
const STEP: Duration = Duration::from_secs(60);
/// Longer than a wrong time server is followed, and short beside a day.
const DOUBTED: Duration = Duration::from_secs(600);

/// What the wall clock said when it was believed last.
#[derive(Clone, Copy, Debug, Default)]
pub struct Steady {
    believed: Option<(Instant, UnixMs)>,
    /// Since when it has not been.
    doubted: Option<Instant>,
}

/// What changed with a reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// It stepped by this much, milliseconds forward or, below zero, back.
    Doubted(i64),
    /// It is believed again.
    Believed,
}

// === impl Steady ===

impl Steady {
    /// The time to go by, milliseconds since 1970, where `wall` is what the clock says.
    pub fn read(&mut self, now: Instant, wall: UnixMs) -> (UnixMs, Option<News>) {
        let Some((at, unix)) = self.believed else {
            self.believed = Some((now, wall));
            return (wall, None);
        };
        let passed = now.0.saturating_sub(at.0) / 1_000_000;
        let expected = unix.saturating_add(passed);
        let stepped = u128::from(wall.abs_diff(expected)) > STEP.as_millis();
        let since = *self.doubted.get_or_insert(now);
        if stepped && now < since + DOUBTED {
            let by = i64::try_from(i128::from(wall) - i128::from(expected)).unwrap_or(i64::MAX);
            return (expected, (since == now).then_some(News::Doubted(by)));
        }
        self.believed = Some((now, wall));
        self.doubted = None;
        (wall, (since != now).then_some(News::Believed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400_000;
    const NOON: UnixMs = 20_000 * DAY + DAY / 2;

    fn second(at: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(at)
    }

    #[test]
    fn b01_a_step_is_believed_after_ten_minutes_and_one_that_is_undone_never_counts() {
        for by in [30 * DAY as i64, -30 * DAY as i64, 3_600_000, 60_001, -60_001] {
            let mut steady = Steady::default();
            let stepped = |at: u64| (NOON + at * 1_000).saturating_add_signed(by);
            assert_eq!(steady.read(second(0), NOON), (NOON, None));
            assert_eq!(steady.read(second(9), stepped(9)), (NOON + 9_000, Some(News::Doubted(by))));
            assert_eq!(steady.read(second(600), stepped(600)), (NOON + 600_000, None));
            // Undone: as if it had not been.
            let mut undone = steady;
            assert_eq!(undone.read(second(601), NOON + 601_000), (NOON + 601_000, Some(News::Believed)));
            assert_eq!(undone.read(second(602), stepped(602)).0, NOON + 602_000, "doubted anew");
            assert_eq!(steady.read(second(609), stepped(609)), (stepped(609), Some(News::Believed)));
            assert_eq!(steady.read(second(610), stepped(610)), (stepped(610), None));
        }
    }

    /// Set right by less than a minute, or slowly: followed at once, however far it is in the end.
    #[test]
    fn b05_a_clock_that_is_set_right_bit_by_bit_is_followed() {
        let mut steady = Steady::default();
        let mut wall = NOON;
        for turn in 0..100 {
            assert_eq!(steady.read(second(turn), wall), (wall, None));
            wall = if turn % 3 == 2 { wall - 59_000 } else { wall + 61_000 };
        }
    }
}
