//! The promises, checked on every event by oracles that share no code with what they check.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::control::PoolTick;
use crate::control::Tick;
use crate::decide::Motion;
use crate::decide::Reason;
use crate::estimate::Freshness;
use crate::unit::{Instant, Limit, TierId};
use crate::wire::{LimitTable, Stamp};

/// What is promised. The name in a failure; ids are those of the catalogue of invariants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Promise {
    /// P7: what is published passes the consumer's validator.
    TableValid,
    /// P1: stamps rise with every publication, across crashes.
    StampRises,
    /// P2: a version never has two contents.
    VersionUnique,
    /// N1: what a node holds never goes back.
    NodeNeverGoesBack,
    /// N2: alone, a node's limits fall to safe, never below, and are never above its last table.
    NodeAloneDrifts,
    /// C1: guarantee <= limit <= ceiling while guarantees fit the budget.
    GuaranteeKept,
    /// C4: a steered budget falls at most 30 % in an interval, and is cut once a feedback delay.
    CutBounded,
    /// C5: a steered budget rises at most 5 % of capacity, 25 % before the first backlog.
    RaiseBounded,
    /// C5: a followed budget is never above ready replicas times the best measured rate.
    FollowBounded,
    /// C4: a fall of ready replicas by more than 30 % in one interval has two signs.
    LossNeedsTwoSigns,
    /// C4, C5: a policy edit steers.
    EditSteers,
    /// C8: absence of signals never raises a budget.
    NoRaiseBlind,
    /// C9, A05, A07: resets, and one liar of three, leave what is measured near the truth.
    MeasuredIsReal,
    /// C8, A08: a page that never changes under traffic is a silent one.
    FrozenIsStale,
    /// C8, A06: less than half of a pool seen is no smaller pool.
    PartIsNoLoss,
    /// C5, A12: after stale signals the budget comes back in steps.
    RecoversWithoutStep,
    /// B03: on the first tick after a pause no budget rises.
    PauseRaisesNothing,
    /// A1: a node admits at most burst plus the integral of its limit.
    AdmittedInsideLimit,
    /// A7: a refused request changes nothing.
    RefusalChangesNothing,
    /// A8: slots taken equal slots given back plus requests in flight.
    SlotsBalance,
    /// N6: a table swap keeps what was consumed.
    SwapKeepsCounters,
    /// C11: the first table after a restart lies within one step of the last.
    RestartContinues,
    /// C12: the same seed gives the same tables.
    Deterministic,
    /// Liveness: once healed, budget, queue, versions and guarantees are those of a healthy system.
    Recovers,
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    pub seed: u64,
    pub at: Instant,
    pub promise: Promise,
    pub detail: String,
}

/// Watches what the controller publishes.
#[derive(Clone, Debug, Default)]
pub struct Publications {
    contents: BTreeMap<(u64, u64), Arc<LimitTable>>,
    last: Option<Stamp>,
    previous: Option<Tick>,
    cut_at: Option<Instant>,
    edited: bool,
}

/// The exact account of one node's tier: what it used of its limit, drained at that limit's rate.
#[derive(Clone, Copy, Debug, Default)]
pub struct Account {
    used: f64,
    at: Instant,
    /// In force since `at`.
    rate: f64,
}

type Found = Vec<(Promise, String)>;

// === impl Publications ===

impl Publications {
    /// The policy in force was edited before the next tick.
    pub fn edited(&mut self) {
        self.edited = true;
    }

    /// A controller that lost its state owes no continuity.
    pub fn state_lost(&mut self) {
        self.previous = None;
        self.cut_at = None;
    }

    pub fn published(&mut self, now: Instant, tick: &Tick) -> Found {
        let mut found = Found::new();
        let table = &tick.table;
        if let Err(error) = table.validate() {
            found.push((Promise::TableValid, error.to_string()));
        }
        if self.last.is_some_and(|last| table.stamp <= last) {
            found.push((Promise::StampRises, format!("{:?} after {:?}", table.stamp, self.last)));
        }
        self.last = Some(table.stamp);
        let version = (table.stamp.epoch, table.stamp.version);
        match self.contents.get(&version) {
            Some(before) if !before.same_entries(table) => {
                found.push((Promise::VersionUnique, format!("version {version:?} has two contents")));
            }
            Some(_) => {}
            None => {
                self.contents.insert(version, Arc::clone(table));
            }
        }
        for pool in tick.pools.values() {
            self.pool(now, pool, &mut found);
        }
        self.rows(tick, &mut found);
        if tick.table.rows.iter().any(|row| row.limits.is_empty()) {
            found.push((Promise::TableValid, "a row without a limit".to_owned()));
        }
        self.previous = Some(tick.clone());
        found
    }

    fn pool(&mut self, now: Instant, pool: &PoolTick, found: &mut Found) {
        let before = self.previous.as_ref().and_then(|tick| tick.pools.values().next());
        let (estimate, decision) = (&pool.estimate, &pool.decision);
        let steep = estimate.ready < estimate.ready_before * 0.7 - 1e-9;
        if steep && !pool.demand.errors_significant {
            let fall = format!("{} to {} ready", estimate.ready_before, estimate.ready);
            found.push((Promise::LossNeedsTwoSigns, fall));
        }
        let Some(before) = before else { return };
        let (from, to) = (before.decision.budget, decision.budget);
        let capacity = estimate.capacity.unwrap_or(f64::INFINITY);
        if estimate.freshness != Freshness::Fresh && to > from * 1.0001 {
            found
                .push((Promise::NoRaiseBlind, format!("{from} to {to} on {:?} signals", estimate.freshness)));
        }
        if decision.motion == Motion::Steer && decision.reason == Reason::Overload {
            let reference = from.min(capacity);
            if to < reference * 0.7 - 1.0 {
                found.push((Promise::CutBounded, format!("{from} to {to}, capacity {capacity}")));
            }
            if self.cut_at.is_some_and(|cut| now.seconds_since(cut) < 2.999) {
                found.push((Promise::CutBounded, "two cuts within one feedback delay".to_owned()));
            }
            self.cut_at = Some(now);
        }
        let known = estimate.capacity.is_some();
        let most = if known { from + 0.05 * capacity } else { from * 1.25 };
        // What is safe is given at once to a pool that began without signals.
        let steered = decision.motion == Motion::Steer && decision.reason != Reason::Started;
        if steered && to > most * 1.0001 {
            found.push((Promise::RaiseBounded, format!("{from} to {to}, at most {most}")));
        }
        if decision.motion == Motion::Follow && to > from && to > capacity * 1.05 {
            found.push((Promise::FollowBounded, format!("{to} above capacity {capacity}")));
        }
    }

    fn rows(&mut self, tick: &Tick, found: &mut Found) {
        let edited = std::mem::take(&mut self.edited);
        for pool in tick.pools.values() {
            let guaranteed: f64 = pool.rows.iter().map(|row| row.guarantee).sum();
            let fits = guaranteed <= pool.decision.budget;
            for row in &pool.rows {
                let entry = tick
                    .table
                    .row(row.model.as_str(), row.tier.as_str())
                    .and_then(|row| row.limits.values().next().copied());
                let Some(entry) = entry else { continue };
                let limit = entry.tier_limit.as_f64() / 60.0;
                if fits && limit < row.guarantee - 1.0 {
                    let short = format!("{}: limit {limit} below guarantee {}", row.tier, row.guarantee);
                    found.push((Promise::GuaranteeKept, short));
                }
                if entry.tier_limit > entry.ceiling {
                    found.push((Promise::GuaranteeKept, format!("{}: limit above ceiling", row.tier)));
                }
                if edited {
                    self.steered(tick, pool, &row.tier, limit, found);
                }
            }
        }
    }

    /// In the first tick after an edit no limit moves further than a step allows, unless the
    /// budget itself moved.
    fn steered(&self, tick: &Tick, pool: &PoolTick, tier: &TierId, limit: f64, found: &mut Found) {
        let Some(previous) = &self.previous else { return };
        let row = previous.table.rows.iter().find(|row| row.tier == *tier);
        let old = row.and_then(|row| row.limits.values().next()).map(|entry| entry.tier_limit);
        let Some(Limit::Finite(old)) = old else { return };
        let old = old as f64 / 60.0;
        let before = previous.pools.values().next().map_or(0.0, |pool| pool.decision.budget);
        let fell = (pool.decision.budget / before).min(1.0);
        if limit < old * 0.7 * fell - 1.0 {
            let step = format!("{tier}: {old} to {limit} in one tick ({:?})", tick.table.stamp);
            found.push((Promise::EditSteers, step));
        }
    }
}

// === impl Account ===

impl Account {
    /// Before an admission of `cost` under `rate` (work per second), which `part` of the fleet's
    /// limit is: `Err` when the account says that the limiter should have refused.
    pub fn admit(&mut self, now: Instant, (rate, part): (f64, f64), cost: f64) -> Result<(), String> {
        self.drain(now, (rate, part));
        let window = window(rate, part);
        let excess = self.used + cost.min(window) - window;
        self.used += cost;
        // Integer limits and shares round by less than this.
        let tolerance = 0.01 * window + 2.0;
        if excess > tolerance {
            return Err(format!("cost {cost} admitted {excess} over a burst of {window}"));
        }
        Ok(())
    }

    /// What was reserved turned out to be `difference` more.
    pub fn correct(&mut self, now: Instant, of: (f64, f64), difference: f64) {
        self.drain(now, of);
        self.used = (self.used + difference).max(0.0);
    }

    /// Up to `now` at the rate that was in force; from here on at `rate`, a `part` of the fleet's.
    /// What is used fills a bucket that became smaller, and no more than that.
    pub fn drain(&mut self, now: Instant, (rate, part): (f64, f64)) {
        self.used = (self.used - self.rate * now.seconds_since(self.at)).max(0.0);
        if rate < self.rate {
            self.used = self.used.min(window(rate, part));
        }
        (self.at, self.rate) = (now, rate);
    }
}

/// What a tier's bucket of a node holds.
fn window(rate: f64, part: f64) -> f64 {
    4.0 / part.sqrt() * rate
}
