//! The clairvoyant: what nobody can do better with central admission, and what ratios refer to.
//!
//! It is told the true capacity, what will be offered in the next second and every request's true
//! work, all without delay, and sees every first token. It keeps as many requests without one as
//! is in time by Little's law, so that replicas never idle and no first token is late, and
//! shares capacity by weighted max-min with guarantees on the true demand (Bertsekas and Gallager,
//! Data Networks, 6.5.2). What it leaves of the fluid bound is physics: bursts above what may wait.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::allocate::allocate;
use crate::sim::law::Ask;
use crate::sim::law::End;
use crate::sim::law::Law;
use crate::sim::law::Seen;
use crate::sim::law::Terms;
use crate::sim::law::Truth;
use crate::unit::Instant;

use super::door::Bucket;
use super::door::claims;
use super::door::work;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Seconds of capacity that have no first token yet, as part of the SLO.
    pub aim: f64,
    /// At most; the rest is for chance.
    pub most: f64,
}

pub const DEFAULT: Settings = Settings { aim: 0.3, most: 0.5 };

/// Of jobs that each have a server: what they wait for is known to the second.
pub const JOBS: Settings = Settings { aim: 0.6, most: 0.85 };

/// In which what waits is brought to the aim.
const HORIZON: f64 = 1.0;

/// Part of a new request in the mean work.
const MEAN_GAIN: f64 = 0.01;
/// One request counts as at most this many of the mean.
const OUTLIER: f64 = 10.0;

#[derive(Clone, Debug)]
pub struct Oracle {
    settings: Settings,
    terms: Terms,
    capacity: f64,
    /// Admitted, without a first token.
    pending: BTreeSet<u64>,
    /// Of a request.
    mean_work: f64,
    asked: f64,
    budget: f64,
    tiers: Vec<Bucket>,
}

// === impl Oracle ===

impl Oracle {
    pub fn new(terms: &Terms, settings: Settings) -> Oracle {
        Oracle {
            settings,
            terms: terms.clone(),
            capacity: terms.nominal,
            pending: BTreeSet::new(),
            mean_work: (2.0 * terms.output_cost * terms.mean_output).max(1.0),
            asked: 0.0,
            budget: terms.nominal,
            tiers: vec![Bucket::new(terms.nominal, Duration::from_secs(1)); terms.tiers.len()],
        }
    }

    /// Work that may wait, at this part of the SLO.
    fn may_wait(&self, part: f64) -> f64 {
        part * self.terms.slo.as_secs_f64() * self.capacity
    }

    /// By number: who waits for a place waits for others to end, however long it is itself.
    fn waits(&self) -> f64 {
        self.pending.len() as f64 * self.mean_work
    }
}

impl Law for Oracle {
    fn tick(&mut self, _now: Instant, _seen: &Seen<'_>) {}

    fn know(&mut self, now: Instant, truth: &Truth<'_>) {
        self.capacity = truth.capacity;
        let missing = self.may_wait(self.settings.aim) - self.waits();
        self.budget = (truth.capacity + missing / HORIZON).max(0.0);
        let claims = claims(&self.terms, truth.next_second, true);
        for (bucket, grant) in self.tiers.iter_mut().zip(allocate(self.budget, &claims).grants) {
            bucket.set(now, grant.limit);
        }
    }

    fn admit(&mut self, now: Instant, _node: usize, ask: &Ask) -> bool {
        let work = work(ask, ask.output, self.terms.output_cost);
        self.asked += 1.0;
        let counted = work.min(OUTLIER * self.mean_work);
        self.mean_work += f64::max(MEAN_GAIN, 1.0 / self.asked) * (counted - self.mean_work);
        let waits = self.waits();
        // Below half of the aim idling is nearer than unfairness.
        let (half, most) = (self.may_wait(self.settings.aim) / 2.0, self.may_wait(self.settings.most));
        let Some(tier) = self.tiers.get_mut(ask.tier) else { return false };
        tier.refill(now);
        let entitled = tier.open() || waits < half;
        if !entitled || waits > most {
            return false;
        }
        tier.take(work);
        self.pending.insert(ask.id);
        true
    }

    fn first_token(&mut self, _now: Instant, _node: usize, id: u64, _ttft: Duration) {
        self.pending.remove(&id);
    }

    fn done(&mut self, _now: Instant, _node: usize, ask: &Ask, _end: &End) {
        self.pending.remove(&ask.id);
    }

    fn budget(&self) -> Option<f64> {
        Some(self.budget)
    }
}
