//! When a source that refuses is asked again: later each time, unevenly, and not before it said.

use std::time::Duration;

use crate::bounds::SOURCE_BACKOFF_MAX;
use crate::unit::Instant;

/// First pause; doubled with every further refusal.
const FIRST: Duration = Duration::from_secs(1);

/// What is remembered of one source that may refuse. Silence is no refusal: a source that only
/// times out is asked every round, or its recovery would be seen late.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    refusals: u32,
    until: Instant,
}

// === impl Backoff ===

impl Backoff {
    /// How long it is still to be left alone; none when it may be asked.
    pub fn pause(&self, now: Instant) -> Option<Duration> {
        (now < self.until).then(|| self.until.since(now))
    }

    pub fn answered(&mut self) {
        *self = Self::default();
    }

    /// `asked_for` is its Retry-After; `jitter` lies between 0 and 1 and only adds.
    pub fn refused(&mut self, now: Instant, asked_for: Option<Duration>, jitter: f64) {
        let doubled = FIRST.saturating_mul(1 << self.refusals.min(10));
        self.refusals = self.refusals.saturating_add(1);
        let least = asked_for.unwrap_or(doubled).min(SOURCE_BACKOFF_MAX);
        let pause = least.mul_f64(1.0 + 0.5 * jitter.clamp(0.0, 1.0));
        let nanos = u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX);
        self.until = Instant(now.0.saturating_add(nanos));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Instant = Instant(1_000_000_000_000);

    fn paused(backoff: &Backoff) -> u64 {
        backoff.pause(NOW).map_or(0, |pause| u64::try_from(pause.as_millis()).unwrap())
    }

    #[test]
    fn a11_pauses_double_up_to_a_bound_and_jitter_only_adds() {
        let mut even = Backoff::default();
        let mut uneven = Backoff::default();
        assert_eq!(even.pause(NOW), None);
        let mut last = 0;
        for refusal in 0..40 {
            even.refused(NOW, None, 0.0);
            uneven.refused(NOW, None, 0.8);
            assert_eq!(paused(&even), 1000 * (1 << refusal.min(6)).min(60), "{refusal}");
            assert!(paused(&uneven) > paused(&even) && paused(&uneven) <= 90_000);
            assert!(paused(&even) >= last);
            last = paused(&even);
        }
        even.answered();
        assert_eq!(even.pause(NOW), None);
    }

    #[test]
    fn a11_retry_after_is_honoured_within_the_bound() {
        let mut backoff = Backoff::default();
        backoff.refused(NOW, Some(Duration::from_secs(7)), 0.0);
        assert_eq!(paused(&backoff), 7_000);
        backoff.refused(NOW, Some(Duration::from_secs(86_400)), 0.0);
        assert_eq!(paused(&backoff), 60_000);
        assert_eq!(backoff.pause(Instant(NOW.0 + 60_000_000_000)), None);
    }
}
