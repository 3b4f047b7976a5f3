//! The clairvoyant: what nobody can do better with central admission, and what ratios refer to.
//!
//! It is told the true capacity, the admitted work that has not begun, what will be offered in the
//! next second and every request's true work, all without delay. It keeps as much work waiting as
//! is still begun within the SLO, so that replicas never idle and no first token is late, and
//! shares capacity by weighted max-min with guarantees on the true demand (Bertsekas and Gallager,
//! Data Networks, 6.5.2). What it leaves of the fluid bound is physics: bursts above what may wait.

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
    /// Seconds of capacity that wait, as part of the SLO.
    pub aim: f64,
    /// At most; the rest is for the prompt's own time and for chance.
    pub most: f64,
}

pub const DEFAULT: Settings = Settings { aim: 0.4, most: 0.65 };

/// In which what waits is brought to the aim.
const HORIZON: f64 = 1.0;

#[derive(Clone, Debug)]
pub struct Oracle {
    settings: Settings,
    terms: Terms,
    capacity: f64,
    /// Work that waits: as told, plus what was admitted since, less what was begun.
    waits: f64,
    at: Instant,
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
            waits: 0.0,
            at: Instant::ZERO,
            budget: terms.nominal,
            tiers: vec![Bucket::new(terms.nominal, Duration::from_secs(1)); terms.tiers.len()],
        }
    }

    /// Work that may wait, at this part of the SLO.
    fn may_wait(&self, part: f64) -> f64 {
        part * self.terms.slo.as_secs_f64() * self.capacity
    }
}

impl Law for Oracle {
    fn tick(&mut self, _now: Instant, _seen: &Seen<'_>) {}

    fn know(&mut self, now: Instant, truth: &Truth<'_>) {
        (self.capacity, self.waits, self.at) = (truth.capacity, truth.queued_work, now);
        let missing = self.may_wait(self.settings.aim) - truth.queued_work;
        self.budget = (truth.capacity + missing / HORIZON).max(0.0);
        let claims = claims(&self.terms, truth.next_second, true);
        for (bucket, grant) in self.tiers.iter_mut().zip(allocate(self.budget, &claims).grants) {
            bucket.set(now, grant.limit);
        }
    }

    fn admit(&mut self, now: Instant, _node: usize, ask: &Ask) -> bool {
        self.waits = (self.waits - self.capacity * now.seconds_since(self.at)).max(0.0);
        self.at = now;
        let work = work(ask, ask.output, self.terms.output_cost);
        let (aim, most) = (self.may_wait(self.settings.aim), self.may_wait(self.settings.most));
        let Some(tier) = self.tiers.get_mut(ask.tier) else { return false };
        tier.refill(now);
        // Below half of the aim idling is nearer than unfairness.
        let entitled = tier.open() || self.waits < aim / 2.0;
        if !entitled || self.waits > most {
            return false;
        }
        tier.take(work);
        self.waits += work;
        true
    }

    fn first_token(&mut self, _now: Instant, _node: usize, _id: u64, _ttft: Duration) {}

    fn done(&mut self, _now: Instant, _node: usize, _ask: &Ask, _end: &End) {}

    fn budget(&self) -> Option<f64> {
        Some(self.budget)
    }
}
