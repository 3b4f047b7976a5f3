//! A token bucket that stores what was used, not what is left: a changed limit then binds on the
//! next request, and what was used survives the change.
//!
//! All arithmetic is exact and saturating. A rate is micro-units per minute (a limit times a share
//! in ppm), an amount is kept in grains: what a rate of one drains in one nanosecond.

use std::time::Duration;

use crate::unit::{Instant, PPM};

/// Grains of one unit of cost: nanoseconds per minute times parts per million.
const GRAINS: u128 = 60_000_000_000 * PPM as u128;

/// Micro-units per minute.
pub type Rate = u128;

#[derive(Clone, Copy, Debug, Default)]
pub struct Bucket {
    /// Grains consumed and not drained yet, as of `at`. Above the depth it is debt.
    used: u128,
    at: Instant,
    /// The rate in force at `at`.
    rate: Rate,
}

// === impl Bucket ===

impl Bucket {
    /// Drains up to `now`.
    ///
    /// The lower of the old and the new rate counts for the time between: a limit that was raised
    /// a moment ago does not reach back.
    pub fn touch(&mut self, now: Instant, rate: Rate) {
        self.used = self.used_at(now, rate);
        self.at = self.at.max(now);
        self.rate = rate;
    }

    /// How long until `cost` fits into `window` worth of `rate`; `None` when it does now, and
    /// `Some(None)` when no wait will do because the rate is zero.
    ///
    /// A cost above the whole depth needs a full bucket, so that it can pass at all.
    pub fn wait(&self, now: Instant, rate: Rate, cost: u64, window: Duration) -> Option<Option<Duration>> {
        if rate == 0 {
            return Some(None);
        }
        let depth = rate.saturating_mul(window.as_nanos());
        let need = grains(cost).min(depth);
        let missing = self.used_at(now, rate).saturating_add(need).saturating_sub(depth);
        if missing == 0 {
            return None;
        }
        Some(Some(nanos(missing.div_ceil(rate))))
    }

    pub fn charge(&mut self, cost: u64) {
        self.used = self.used.saturating_add(grains(cost));
    }

    /// Replaces a reservation by what was really used. More leaves a debt; a refund never fills
    /// the bucket above full.
    pub fn correct(&mut self, reserved: u64, actual: u64) {
        self.used = self.used.saturating_add(grains(actual)).saturating_sub(grains(reserved));
    }

    /// Whole units left in `window` worth of `rate`, and the time until it is full again.
    pub fn remaining(&self, now: Instant, rate: Rate, window: Duration) -> (u64, Duration) {
        let used = self.used_at(now, rate);
        let left = rate.saturating_mul(window.as_nanos()).saturating_sub(used) / GRAINS;
        let full_in = if rate == 0 { 0 } else { used.div_ceil(rate) };
        (u64::try_from(left).unwrap_or(u64::MAX), nanos(full_in))
    }

    pub fn is_full(&self, now: Instant, rate: Rate) -> bool {
        self.used_at(now, rate) == 0
    }

    fn used_at(&self, now: Instant, rate: Rate) -> u128 {
        let elapsed = now.since(self.at).as_nanos();
        self.used.saturating_sub(rate.min(self.rate).saturating_mul(elapsed))
    }
}

fn grains(cost: u64) -> u128 {
    u128::from(cost) * GRAINS
}

fn nanos(count: u128) -> Duration {
    Duration::from_nanos(u64::try_from(count).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const fn per_minute(limit: u128) -> Rate {
        limit * PPM as u128
    }

    #[test]
    fn the_promised_wait_is_exact_to_the_nanosecond() {
        let mut bucket = Bucket::default();
        let rate = per_minute(7);
        for _ in 0..7 {
            assert_eq!(bucket.wait(Instant(5), rate, 1, MINUTE), None);
            bucket.touch(Instant(5), rate);
            bucket.charge(1);
        }
        let wait = bucket.wait(Instant(5), rate, 1, MINUTE).unwrap().unwrap();
        let early = Instant(5) + (wait - Duration::from_nanos(1));
        assert!(bucket.wait(early, rate, 1, MINUTE).is_some());
        assert_eq!(bucket.wait(Instant(5) + wait, rate, 1, MINUTE), None);
    }

    #[test]
    fn a_raise_does_not_reach_back() {
        let mut bucket = Bucket::default();
        bucket.touch(Instant::ZERO, per_minute(60));
        bucket.charge(60);
        // One minute at 60 drains 60 units; had the raise reached back, far more debt would fit.
        bucket.charge(60);
        bucket.touch(Instant::ZERO + MINUTE, per_minute(6_000));
        assert_eq!(bucket.remaining(Instant::ZERO + MINUTE, per_minute(6_000), MINUTE).0, 5_940);
    }

    #[test]
    fn extreme_costs_and_rates_saturate() {
        let mut bucket = Bucket::default();
        for _ in 0..100 {
            bucket.charge(u64::MAX);
        }
        bucket.correct(1, u64::MAX);
        assert!(bucket.wait(Instant(u64::MAX), 1, u64::MAX, MINUTE).is_some());
        assert_eq!(bucket.remaining(Instant(1), u128::MAX, MINUTE).0, u64::MAX);
    }
}
