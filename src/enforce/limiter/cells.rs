//! What requests of all keys share: counters of rows, models and pools, each under its own lock.
//!
//! They belong to names and outlive tables: a row that leaves a table and returns finds its
//! counters as they were.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::enforce::bucket::Bucket;
use crate::enforce::meters::Meters;
use crate::enforce::ticket::{Cap, Settlement};
use crate::planted::without;
use crate::unit::{Instant, Limit, ModelId, PPM, PoolId, TierId};
use crate::wire::{PoolUsage, Work, Yields};

use super::rules::PoolLimits;
use super::sync::{Mutex, MutexGuard, lock};
use super::wait::Wait;

/// Parts of what is counted; a power of two.
const STRIPES: usize = 4;
/// Requests in flight at one node vary by the root of their number; so many times that are let in
/// beyond the node's part.
const IN_FLIGHT_SPREAD: f64 = 2.0;
/// Weight of the newest request in the learned output.
const OUTPUT_GAIN: f64 = 0.05;

/// One model and tier.
#[derive(Debug)]
pub struct RowCell {
    pub model: ModelId,
    pub tier: TierId,
    /// Learned output tokens of a request, as bits; read without the lock.
    output: AtomicU64,
    /// What all keys of the tier have used together.
    pub meters: Mutex<Meters>,
    /// What was admitted of the tier's guarantee.
    pub guaranteed: Mutex<Bucket>,
    /// By shard, modulo their number: what is only counted is not worth waiting for each other.
    counted: [Padded<Mutex<Counted>>; STRIPES],
}

/// Cumulative, as reported.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counted {
    pub offered: Work,
    pub admitted: Work,
    pub refused_limit: Work,
    pub refused_capacity: Work,
    pub refused_share: Work,
    pub refused_tier: Work,
    /// Work of requests that have ended; unlike what is admitted it never falls.
    pub settled_work: u64,
}

/// Shares no cache line with its neighbours.
#[derive(Debug)]
#[repr(align(128))]
pub struct Padded<T>(pub T);

#[derive(Debug)]
pub struct PoolCell {
    pub name: PoolId,
    pub state: Mutex<PoolState>,
}

#[derive(Debug, Default)]
pub struct PoolState {
    pub in_flight: u64,
    pub waiting: u64,
    pub upstream_requests: u64,
    pub upstream_errors: u64,
    wait: Wait,
}

// === impl RowCell ===

impl RowCell {
    pub fn new(model: ModelId, tier: TierId) -> RowCell {
        let output = AtomicU64::new(f64::NAN.to_bits());
        let counted = std::array::from_fn(|_| Padded(Mutex::new(Counted::default())));
        let (meters, guaranteed) = (Mutex::new(Meters::default()), Mutex::new(Bucket::default()));
        RowCell { model, tier, output, meters, guaranteed, counted }
    }

    /// What a shard counts in.
    #[expect(clippy::indexing_slicing, reason = "a place taken modulo the length")]
    pub fn counted(&self, shard: u32) -> MutexGuard<'_, Counted> {
        lock(&self.counted[shard as usize % STRIPES].0)
    }

    /// What all shards have counted.
    pub fn total(&self) -> Counted {
        let parts = self.counted.iter().map(|part| *lock(&part.0));
        parts.fold(Counted::default(), Counted::plus)
    }

    /// None before the first request was settled.
    pub fn output(&self) -> Option<f64> {
        Some(f64::from_bits(self.output.load(Ordering::Relaxed))).filter(|output| !output.is_nan())
    }

    /// A lesson that another thread learns at the same instant may be lost.
    pub fn learn(&self, output_tokens: u64) {
        let seen = output_tokens as f64;
        let learned = self.output().map_or(seen, |learned| learned + OUTPUT_GAIN * (seen - learned));
        self.output.store(learned.to_bits(), Ordering::Relaxed);
    }
}

// === impl Counted ===

impl Counted {
    fn plus(self, other: Counted) -> Counted {
        Counted {
            offered: self.offered.plus(other.offered),
            admitted: self.admitted.plus(other.admitted),
            refused_limit: self.refused_limit.plus(other.refused_limit),
            refused_capacity: self.refused_capacity.plus(other.refused_capacity),
            refused_share: self.refused_share.plus(other.refused_share),
            refused_tier: self.refused_tier.plus(other.refused_tier),
            settled_work: self.settled_work.saturating_add(other.settled_work),
        }
    }
}

// === impl PoolState ===

impl PoolState {
    /// Whether the pool's caps leave room for a tier that yields this part of them.
    ///
    /// The test is on what is there already, so that one large request is never starved. What is at
    /// one node of many varies more than its part of a cap is large, by the root of it in requests:
    /// as much may be there beyond it, since nodes do not all have it at once.
    ///
    /// What a tier is guaranteed, `due`, gives way to nobody.
    pub fn has_no_room(&self, now: Instant, limits: &PoolLimits, yields: Yields, due: bool) -> Option<Cap> {
        let due = due && !without("guarantee-first");
        let yields = if due { Yields::default() } else { yields };
        let left = |yields: u32| u128::from(limits.portion.ppm()) * u128::from(PPM.saturating_sub(yields));
        let whole = u128::from(PPM) * u128::from(PPM);
        if let Limit::Finite(cap) = limits.waiting_work
            && !without("waiting-cap")
        {
            let part = (u128::from(cap) * left(yields.waiting) / whole) as f64;
            let spread = if without("waiting-spread") {
                0.0
            } else {
                limits.portion.others() * (part * self.wait.request()).sqrt()
            };
            // A pool that was never full has to be, once, to be measured.
            let uncut = due || limits.in_flight == Limit::Unlimited;
            let room = (part + spread) * self.wait.stretch(now, limits.slo, uncut);
            if self.waiting as f64 >= room {
                return Some(Cap::WaitingWork);
            }
        }
        if let Limit::Finite(cap) = limits.in_flight
            && !without("in-flight-cap")
        {
            let part = (u128::from(cap) * left(yields.in_flight)).div_ceil(whole) as f64;
            let spread = if without("in-flight-spread") {
                0.0
            } else {
                limits.portion.others() * IN_FLIGHT_SPREAD * part.sqrt()
            };
            // A tier that yields everything but one slot of a living pool is not shut out.
            let least = if cap > 0 && limits.portion.ppm() > 0 && !without("one-slot") { 1.0 } else { 0.0 };
            if self.in_flight as f64 >= f64::max(part + spread, least) {
                return Some(Cap::InFlight);
            }
        }
        None
    }

    /// Whether half of what a tier may have waiting is waiting.
    pub fn is_crowded(&self, limits: &PoolLimits, yields: Yields) -> bool {
        let left = u128::from(limits.portion.ppm()) * u128::from(PPM.saturating_sub(yields.waiting));
        let whole = u128::from(PPM) * u128::from(PPM);
        limits
            .waiting_work
            .finite()
            .is_some_and(|cap| u128::from(self.waiting) * whole * 2 >= u128::from(cap) * left)
    }

    /// A request is admitted, and waits for its first token with so much work, if with any.
    pub fn begin(&mut self, now: Instant, work: u64) {
        self.in_flight = self.in_flight.saturating_add(1);
        if work > 0 {
            self.wait.begins(now, work, self.waiting == 0);
            self.waiting = self.waiting.saturating_add(work);
        }
    }

    /// Its first token is out.
    pub fn first_token(&mut self, now: Instant, work: u64, admitted_at: Instant) {
        self.waiting = self.waiting.saturating_sub(work);
        self.wait.ends(now, admitted_at);
    }

    pub fn count(&mut self, outcome: Settlement) {
        if outcome == Settlement::NotSent {
            return;
        }
        self.upstream_requests = self.upstream_requests.saturating_add(1);
        if matches!(outcome, Settlement::UpstreamError | Settlement::Died { .. }) {
            self.upstream_errors = self.upstream_errors.saturating_add(1);
        }
    }

    pub fn usage(&self) -> PoolUsage {
        PoolUsage {
            in_flight: self.in_flight,
            waiting_work: self.waiting,
            upstream_requests: self.upstream_requests,
            upstream_errors: self.upstream_errors,
        }
    }
}
