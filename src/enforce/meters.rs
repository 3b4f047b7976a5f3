//! The counters of one scope on their own: a bucket for each rate, and what is held at once.

use std::time::Duration;

use crate::enforce::allowance::Allowance;
use crate::enforce::bucket::Bucket;
use crate::unit::{Dimension, Instant};

/// Retry-After where no exact time is known: a count that is full, a pool without room.
pub const RETRY_SOON: Duration = Duration::from_secs(1);
/// Retry-After of a limit of zero, which no wait satisfies.
pub const RETRY_ZERO: Duration = Duration::from_secs(60);

/// A tier is contended once this part of its bucket is used.
const CONTENDED_PARTS: u128 = 5;

/// Dimensions that are rates; they are the first of [`Dimension::ALL`].
pub const RATES: usize = 5;

/// What a request costs in each rate, in the order of [`Dimension::ALL`].
pub type Amounts = [u64; RATES];

#[derive(Clone, Copy, Debug, Default)]
pub struct Meters {
    pub rates: [Bucket; RATES],
    /// Requests in flight.
    pub active: u64,
    pub jobs: u64,
}

/// A limit that a request does not fit in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Over {
    pub dimension: Dimension,
    pub limit: u64,
    pub wait: Duration,
    /// Of a count: how many are active.
    pub active: u64,
    /// No wait will do.
    pub never: bool,
}

/// Which rates took a reservation, a bit for each; an unlimited one takes none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Charged(u8);

// === impl Charged ===

impl Charged {
    pub fn add(&mut self, rate: usize) {
        self.0 |= 1 << (rate & 7);
    }

    pub fn has(self, rate: usize) -> bool {
        self.0 & (1 << (rate & 7)) != 0
    }
}

// === impl Over ===

impl Over {
    pub fn rate(limit: &Allowance, wait: Duration) -> Over {
        Over { dimension: limit.dimension, limit: limit.limit, wait, active: 0, never: false }
    }

    pub fn never(limit: &Allowance) -> Over {
        Over { never: true, ..Over::rate(limit, RETRY_ZERO) }
    }

    /// A count that is full.
    pub fn count(limit: &Allowance, active: u64) -> Option<Over> {
        if active < limit.count {
            return None;
        }
        let over = if limit.count == 0 { Over::never(limit) } else { Over::rate(limit, RETRY_SOON) };
        Some(Over { active, ..over })
    }

    /// The longer wait; the first of equal ones.
    pub fn worse(self, other: Option<Over>) -> Over {
        other.filter(|other| other.wait >= self.wait).unwrap_or(self)
    }
}

/// A rate's place in [`Amounts`]; none for counts.
pub fn place(dimension: Dimension) -> Option<usize> {
    Some(dimension as usize).filter(|at| *at < RATES)
}

// === impl Meters ===

impl Meters {
    /// Whether a request fits in; the limit with the longest wait where it does not.
    ///
    /// Draining is no charge; the rate is remembered so that the promised wait comes true.
    pub fn test(&mut self, now: Instant, limits: &[Allowance], amounts: &Amounts, job: bool) -> Option<Over> {
        let mut worst = None;
        for limit in limits {
            let over = match place(limit.dimension) {
                Some(at) => self.test_rate(now, limit, at, amounts),
                None if limit.dimension == Dimension::Jobs && !job => None,
                None => Over::count(limit, self.held(limit.dimension)),
            };
            worst = over.map(|over| over.worse(worst)).or(worst);
        }
        worst
    }

    fn test_rate(&mut self, now: Instant, limit: &Allowance, at: usize, amounts: &Amounts) -> Option<Over> {
        let bucket = self.rates.get_mut(at)?;
        bucket.touch(now, limit.rate, limit.depth);
        match *amounts.get(at)? {
            0 => None,
            _ if limit.rate == 0 => Some(Over::never(limit)),
            cost => {
                let used = bucket.used_at(now, limit.rate);
                limit.shortfall(used, cost).map(|wait| Over::rate(limit, wait))
            }
        }
    }

    /// Whether a tier's bucket is no longer nearly empty: requests come faster than it drains.
    pub fn is_contended(&self, now: Instant, limits: &[Allowance], dimension: Dimension) -> bool {
        let Some(limit) = limits.iter().find(|limit| limit.dimension == dimension) else { return false };
        let bucket = place(dimension).and_then(|at| self.rates.get(at));
        let used = bucket.map_or(0, |bucket| bucket.used_at(now, limit.rate));
        used > limit.depth / CONTENDED_PARTS
    }

    /// Charges the rates; the counts are [`Meters::hold`]'s.
    pub fn charge(&mut self, now: Instant, limits: &[Allowance], amounts: &Amounts) -> Charged {
        let mut charged = Charged::default();
        for limit in limits {
            let Some(at) = place(limit.dimension) else { continue };
            if let (Some(bucket), Some(cost)) = (self.rates.get_mut(at), amounts.get(at)) {
                bucket.touch(now, limit.rate, limit.depth);
                bucket.charge(*cost);
                charged.add(at);
            }
        }
        charged
    }

    /// Replaces what was reserved, in the rates that took it.
    pub fn correct(
        &mut self,
        now: Instant,
        limits: &[Allowance],
        charged: Charged,
        reserved: &Amounts,
        actual: &Amounts,
    ) {
        // Drained to now first, or the refund would be taken from what has drained already.
        for limit in limits {
            if let Some(bucket) = place(limit.dimension).and_then(|at| self.rates.get_mut(at)) {
                bucket.touch(now, limit.rate, limit.depth);
            }
        }
        let amounts = reserved.iter().zip(actual);
        for (at, (bucket, (reserved, actual))) in self.rates.iter_mut().zip(amounts).enumerate() {
            if charged.has(at) {
                bucket.correct(*reserved, *actual);
            }
        }
    }

    /// A request, a job or both begin.
    pub fn hold(&mut self, request: bool, job: bool) {
        self.active = self.active.saturating_add(u64::from(request));
        self.jobs = self.jobs.saturating_add(u64::from(job));
    }

    /// A request, a job or both end.
    pub fn end(&mut self, request: bool, job: bool) {
        self.active = self.active.saturating_sub(u64::from(request));
        self.jobs = self.jobs.saturating_sub(u64::from(job));
    }

    pub fn held(&self, dimension: Dimension) -> u64 {
        if dimension == Dimension::Jobs { self.jobs } else { self.active }
    }
}
