//! What rivals that limit work share: charging, offered work, the split among tiers, buckets.
//!
//! Rivals publish a budget of work; how it reaches requests is the same for all of them and the
//! same as ours ([`allocate()`]), so that what is compared is the budget.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::allocate::Claim;
use crate::allocate::allocate;
use crate::sim::law::Ask;
use crate::sim::law::End;
use crate::sim::law::Terms;
use crate::unit::Instant;

/// Part of a new observation in the expected output.
const OUTPUT_GAIN: f64 = 0.01;
/// Part of a new interval in the offered work of a tier.
const DEMAND_GAIN: f64 = 0.35;
/// A tier that has used its share may take what others leave while the pool's bucket is this full.
const BORROW_ABOVE: f64 = 0.4;

/// Work charged at the door with the expected output, settled once the true one is known.
#[derive(Clone, Debug)]
pub struct Charges {
    output_cost: f64,
    /// Expected output tokens, by tier.
    outputs: Vec<f64>,
    open: BTreeMap<u64, f64>,
}

/// A rate with a bucket that may go below zero by one request: sizes are not known beforehand.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    /// Work per second.
    pub rate: f64,
    /// Seconds of the rate.
    depth: f64,
    level: f64,
    at: Instant,
}

/// Work offered, by tier.
#[derive(Clone, Debug)]
pub struct Offered {
    since: Vec<f64>,
    /// Work per second.
    rates: Vec<f64>,
    at: Option<Instant>,
    begun: Instant,
}

/// A budget of work per second, shared among tiers.
#[derive(Clone, Debug)]
pub struct Door {
    pub terms: Terms,
    charges: Charges,
    offered: Offered,
    guarantees: bool,
    borrows: bool,
    budget: f64,
    pool: Bucket,
    tiers: Vec<Bucket>,
    /// Admitted since it was last asked.
    admitted: f64,
}

// === impl Charges ===

impl Charges {
    pub fn new(terms: &Terms) -> Charges {
        Charges {
            output_cost: terms.output_cost,
            outputs: vec![terms.mean_output; terms.tiers.len()],
            open: BTreeMap::new(),
        }
    }

    /// Expected work of `ask`.
    pub fn expected(&self, ask: &Ask) -> f64 {
        let output = self.outputs.get(ask.tier).copied().unwrap_or(0.0);
        f64::from(ask.prompt) + f64::from(ask.images) + self.output_cost * output
    }

    /// Expected work of `ask`, remembered until it ends.
    pub fn charge(&mut self, ask: &Ask) -> f64 {
        let work = self.expected(ask);
        self.open.insert(ask.id, work);
        work
    }

    /// What was charged too much; negative is too little. Work lost with a replica is not given
    /// back: what would have served it is gone too.
    pub fn settle(&mut self, ask: &Ask, end: &End) -> f64 {
        let charged = self.open.remove(&ask.id).unwrap_or(0.0);
        match end {
            End::Served { output, .. } => {
                if let Some(expected) = self.outputs.get_mut(ask.tier) {
                    *expected += OUTPUT_GAIN * (f64::from(*output) - *expected);
                }
                charged - work(ask, *output, self.output_cost)
            }
            End::Abandoned => charged,
            End::Lost => 0.0,
        }
    }
}

/// True work of a request.
pub fn work(ask: &Ask, output: u32, output_cost: f64) -> f64 {
    f64::from(ask.prompt) + f64::from(ask.images) + output_cost * f64::from(output)
}

// === impl Bucket ===

impl Bucket {
    /// Full, at `rate` work per second.
    pub fn new(rate: f64, depth: Duration) -> Bucket {
        let depth = depth.as_secs_f64();
        Bucket { rate, depth, level: rate * depth, at: Instant::ZERO }
    }

    pub fn refill(&mut self, now: Instant) {
        let grown = self.level + self.rate * now.seconds_since(self.at);
        (self.level, self.at) = (grown.min(self.rate * self.depth), self.at.max(now));
    }

    pub fn set(&mut self, now: Instant, rate: f64) {
        self.refill(now);
        self.rate = rate;
        self.level = self.level.min(rate * self.depth);
    }

    pub fn take(&mut self, work: f64) {
        self.level -= work;
    }

    pub fn credit(&mut self, work: f64) {
        self.level = (self.level + work).min(self.rate * self.depth);
    }

    pub fn open(&self) -> bool {
        self.level > 0.0
    }

    /// 1 is full.
    pub fn filled(&self) -> f64 {
        self.level / (self.rate * self.depth).max(f64::MIN_POSITIVE)
    }
}

// === impl Offered ===

impl Offered {
    pub fn new(tiers: usize) -> Offered {
        Offered { since: vec![0.0; tiers], rates: vec![0.0; tiers], at: None, begun: Instant::ZERO }
    }

    pub fn offer(&mut self, tier: usize, work: f64) {
        if let Some(since) = self.since.get_mut(tier) {
            *since += work;
        }
    }

    /// Ends an interval; work per second, by tier.
    pub fn tick(&mut self, now: Instant) -> &[f64] {
        let seconds = now.seconds_since(self.at.unwrap_or(self.begun));
        if seconds > 0.0 {
            // The first interval is all that is known.
            let gain = if self.at.is_some() { DEMAND_GAIN } else { 1.0 };
            for (rate, since) in self.rates.iter_mut().zip(&mut self.since) {
                *rate += gain * (*since / seconds - *rate);
                *since = 0.0;
            }
            self.at = Some(now);
        }
        &self.rates
    }
}

// === impl Door ===

impl Door {
    /// Buckets hold a second; guarantees are kept.
    pub fn new(terms: &Terms, budget: f64) -> Door {
        Door::holding(terms, budget, Duration::from_secs(1), true)
    }

    pub fn holding(terms: &Terms, budget: f64, depth: Duration, guarantees: bool) -> Door {
        let count = terms.tiers.len();
        Door {
            terms: terms.clone(),
            charges: Charges::new(terms),
            offered: Offered::new(count),
            guarantees,
            borrows: true,
            budget,
            pool: Bucket::new(budget, depth),
            tiers: vec![Bucket::new(budget, depth); count],
            admitted: 0.0,
        }
    }

    /// Whether a tier may take what others leave.
    pub fn borrow(&mut self, borrows: bool) {
        self.borrows = borrows;
    }

    pub fn budget(&self) -> f64 {
        self.budget
    }

    /// Ends an interval: `budget` is shared by what was offered. Infinite lets everything in.
    pub fn set(&mut self, now: Instant, budget: f64) {
        self.budget = budget;
        let claims = claims(&self.terms, self.offered.tick(now), self.guarantees);
        let finite = budget.min(f64::MAX / 4.0);
        self.pool.set(now, finite);
        for (bucket, grant) in self.tiers.iter_mut().zip(allocate(finite, &claims).grants) {
            bucket.set(now, grant.limit);
        }
    }

    /// A rate for each tier and their sum for the pool, whatever is offered.
    pub fn fix(&mut self, now: Instant, rates: &[f64]) {
        self.budget = rates.iter().sum();
        self.pool.set(now, self.budget);
        for (bucket, rate) in self.tiers.iter_mut().zip(rates) {
            bucket.set(now, *rate);
        }
    }

    pub fn admit(&mut self, now: Instant, ask: &Ask) -> bool {
        let expected = self.charges.expected(ask);
        self.offered.offer(ask.tier, expected);
        self.pool.refill(now);
        let Some(tier) = self.tiers.get_mut(ask.tier) else { return false };
        tier.refill(now);
        let entitled = tier.open() || self.borrows && self.pool.filled() > BORROW_ABOVE;
        if !(entitled && self.pool.open()) {
            return false;
        }
        self.pool.take(expected);
        tier.take(expected);
        self.charges.charge(ask);
        self.admitted += expected;
        true
    }

    pub fn done(&mut self, ask: &Ask, end: &End) {
        let credit = self.charges.settle(ask, end);
        self.pool.credit(credit);
        if let Some(tier) = self.tiers.get_mut(ask.tier) {
            tier.credit(credit);
        }
    }

    /// Expected work of `ask`.
    pub fn expected(&self, ask: &Ask) -> f64 {
        self.charges.expected(ask)
    }

    /// Work admitted since the last call.
    pub fn admitted(&mut self) -> f64 {
        std::mem::take(&mut self.admitted)
    }
}

/// What each tier asks of a budget. Without `guarantees` only weights count.
pub fn claims(terms: &Terms, demands: &[f64], guarantees: bool) -> Vec<Claim> {
    let claim = |(tier, demand): (&crate::sim::law::Tier, &f64)| Claim {
        priority: tier.priority,
        weight: tier.weight,
        guarantee: if guarantees { tier.guarantee } else { 0.0 },
        ceiling: f64::INFINITY,
        demand: *demand,
    };
    terms.tiers.iter().zip(demands).map(claim).collect()
}
