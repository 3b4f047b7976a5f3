//! A token bucket that stores what was used, not what is left: a changed limit then binds on the
//! next request, and what was used survives the change.
//!
//! All arithmetic is exact and saturating. A rate is micro-units per minute (a limit times a share
//! in ppm), an amount is kept in grains: what a rate of one drains in one nanosecond.

use std::time::Duration;

use crate::enforce::allowance::Allowance;
use crate::planted::without;
use crate::unit::{Instant, PPM};

/// Grains of one unit of cost: nanoseconds per minute times parts per million.
pub const GRAINS: u128 = 60_000_000_000 * PPM as u128;

/// Micro-units per minute.
pub type Rate = u64;

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
    /// a moment ago does not reach back. Nor does one that was lowered: what was admitted under the
    /// higher one fills the smaller bucket and is no debt beyond it, or nothing could pass until the
    /// lower rate had drained what the higher one allowed.
    pub fn touch(&mut self, now: Instant, rate: Rate, depth: u128) {
        self.used = self.used_at(now, rate);
        if rate < self.rate && !without("forgiven-debt") {
            self.used = self.used.min(depth);
        }
        self.at = self.at.max(now);
        self.rate = rate;
    }

    pub fn charge(&mut self, cost: u64) {
        self.used = self.used.saturating_add(grains(cost));
    }

    /// Replaces a reservation by what was really used. More leaves a debt; a refund never fills
    /// the bucket above full.
    pub fn correct(&mut self, reserved: u64, actual: u64) {
        self.used = corrected(self.used, reserved, actual);
    }

    pub fn used_at(&self, now: Instant, rate: Rate) -> u128 {
        let rate = if without("no-reach-back") { rate } else { rate.min(self.rate) };
        self.used.saturating_sub(drained(rate, now, self.at))
    }
}

// === impl Allowance ===

impl Allowance {
    /// How long until `cost` fits beside what is used; `None` when it does now. Of a limit that is
    /// not zero.
    ///
    /// A cost above the whole depth needs a full bucket, so that it can pass at all.
    pub fn shortfall(&self, used: u128, cost: u64) -> Option<Duration> {
        let need = grains(cost).min(self.depth);
        let missing = used.saturating_add(need).saturating_sub(self.depth);
        if missing == 0 {
            return None;
        }
        Some(nanos(missing.div_ceil(u128::from(self.rate.max(1)))))
    }

    /// Whole units left, and the time until all are free again.
    pub fn remaining(&self, used: u128) -> (u64, Duration) {
        let left = self.depth.saturating_sub(used) / GRAINS;
        let full_in = if self.rate == 0 { 0 } else { used.div_ceil(u128::from(self.rate)) };
        (u64::try_from(left).unwrap_or(u64::MAX), nanos(full_in))
    }
}

pub fn grains(cost: u64) -> u128 {
    u128::from(cost) * GRAINS
}

/// What a rate drains between two instants; cannot overflow.
pub fn drained(rate: Rate, now: Instant, since: Instant) -> u128 {
    u128::from(rate) * u128::from(now.0.saturating_sub(since.0))
}

pub fn corrected(used: u128, reserved: u64, actual: u64) -> u128 {
    used.saturating_add(grains(actual)).saturating_sub(grains(reserved))
}

pub fn nanos(count: u128) -> Duration {
    Duration::from_nanos(u64::try_from(count).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enforce::allowance::Portion;
    use crate::enforce::ticket::Scope;
    use crate::unit::{Dimension, Limit};

    const MINUTE: Duration = Duration::from_secs(60);

    fn per_minute(limit: u64) -> Allowance {
        let limit = Limit::Finite(limit);
        Allowance::of(Dimension::RequestsPerMinute, limit, Scope::Key, Portion::WHOLE).unwrap()
    }

    #[test]
    fn the_promised_wait_is_exact_to_the_nanosecond() {
        let mut bucket = Bucket::default();
        let seven = per_minute(7);
        let wait = |bucket: &Bucket, now| seven.shortfall(bucket.used_at(now, seven.rate), 1);
        for _ in 0..7 {
            assert_eq!(wait(&bucket, Instant(5)), None);
            bucket.touch(Instant(5), seven.rate, seven.depth);
            bucket.charge(1);
        }
        let promised = wait(&bucket, Instant(5)).unwrap();
        assert!(wait(&bucket, Instant(5) + (promised - Duration::from_nanos(1))).is_some());
        assert_eq!(wait(&bucket, Instant(5) + promised), None);
    }

    #[test]
    fn a_raise_does_not_reach_back() {
        let mut bucket = Bucket::default();
        bucket.touch(Instant::ZERO, per_minute(60).rate, per_minute(60).depth);
        bucket.charge(60);
        // One minute at 60 drains 60 units; had the raise reached back, far more debt would fit.
        bucket.charge(60);
        let raised = per_minute(6_000);
        bucket.touch(Instant::ZERO + MINUTE, raised.rate, raised.depth);
        assert_eq!(raised.remaining(bucket.used_at(Instant::ZERO + MINUTE, raised.rate)).0, 5_940);
    }

    #[test]
    fn a_cut_leaves_no_debt_beyond_the_smaller_bucket() {
        let mut bucket = Bucket::default();
        let (high, low) = (per_minute(6_000), per_minute(60));
        bucket.touch(Instant(5), high.rate, high.depth);
        bucket.charge(6_000);
        // At 60 a minute, 6,000 would keep everybody out for 99 minutes.
        bucket.touch(Instant(5), low.rate, low.depth);
        assert_eq!(low.remaining(bucket.used_at(Instant(5), low.rate)), (0, MINUTE));
        let wait = low.shortfall(bucket.used_at(Instant(5), low.rate), 1).unwrap();
        assert_eq!(wait, Duration::from_secs(1));
    }

    #[test]
    fn extreme_costs_and_rates_saturate() {
        let mut bucket = Bucket::default();
        for _ in 0..100 {
            bucket.charge(u64::MAX);
        }
        bucket.correct(1, u64::MAX);
        let one = per_minute(1);
        assert!(one.shortfall(bucket.used_at(Instant(u64::MAX), one.rate), u64::MAX).is_some());
        let most = per_minute(u64::MAX);
        assert_eq!(most.remaining(0).0, u64::MAX);
        assert!(most.shortfall(u128::MAX, 1) > Some(Duration::from_secs(1 << 34)));
    }
}
