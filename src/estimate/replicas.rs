//! Which replicas are ready, and how old what we know of them is.
//!
//! A scrape outage must not halve a healthy pool, a dead replica must not be served: a refusal is
//! one sign of a loss, silence is none. A fall of more than 30 % in one interval needs a second,
//! independent sign (upstream errors at the nodes), else it is taken 30 % an interval.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::bounds::REPLICAS_MAX;
use crate::observe::Outcome;
use crate::observe::PoolRound;
use crate::observe::Signals;
use crate::unit::Instant;
use crate::unit::ReplicaId;

/// A reading is used up to this age, intervals.
const USED_INTERVALS: f64 = 2.0;
/// A reading is held up to this age: no increase on it.
const HELD_INTERVALS: f64 = 5.0;
/// A replica silent for longer counts this much: the scraper may be what died.
const SILENT_WEIGHT: f64 = 0.5;
/// A replica silent for this long is forgotten, intervals.
const FORGOTTEN_INTERVALS: f64 = 150.0;
/// Most of the ready replicas that may go in one interval on one sign.
const FALL_ON_ONE_SIGN: f64 = 0.7;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Fleet {
    replicas: BTreeMap<ReplicaId, Replica>,
    ready: f64,
    /// Ticks since `ready` last changed.
    steady_ticks: u32,
    started: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Replica {
    at: Instant,
    signals: Signals,
    /// Scrapes running in which it answered.
    up_scrapes: u32,
    waited_before: bool,
}

/// How far the pool's readings may be trusted; the staleness ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Freshness {
    Fresh,
    /// Older than two intervals: nothing rises.
    Held,
    /// Older than five intervals: the budget steers toward safe.
    Stale,
}

/// What one round showed.
#[derive(Clone, Debug)]
pub struct Seen {
    pub freshness: Freshness,
    pub replicas: usize,
    pub ready: f64,
    pub ready_before: f64,
    pub running: f64,
    pub waiting: f64,
    pub backlogged: bool,
    /// The number of ready replicas changed less than two ticks ago: rates mix two fleets.
    pub unsettled: bool,
    pub loss_confirmed: bool,
    pub latency: Option<f64>,
    /// Rates of replicas with two readings running.
    pub rates: Vec<ReplicaRate>,
}

/// Per second, between two readings of one replica.
#[derive(Clone, Copy, Debug)]
pub struct ReplicaRate {
    pub input: f64,
    pub output: f64,
    /// Requests waited at both readings: it was busy throughout.
    pub busy: bool,
    pub running: Option<f64>,
}

// === impl Fleet ===

impl Fleet {
    pub fn update(&mut self, now: Instant, interval: f64, round: &PoolRound, errors_confirm: bool) -> Seen {
        let mut down = Vec::new();
        let mut rates = Vec::new();
        for reading in &round.replicas {
            match &reading.outcome {
                Outcome::Up(signals) => {
                    rates.extend(self.up(&reading.replica, reading.at, *signals));
                }
                Outcome::Down(_) => down.push(reading.replica.clone()),
                Outcome::Silent(_) => {}
            }
        }
        // Everybody refusing at once without a failed request is a network's doing, not a loss.
        let answered = round.replicas.iter().any(|reading| matches!(reading.outcome, Outcome::Up(_)));
        if answered || errors_confirm {
            for replica in &down {
                self.replicas.remove(replica);
            }
        }
        if answered && round.failed.is_none() {
            // The source is well and names others: what it does not name any more is gone.
            let named: BTreeSet<&ReplicaId> = round.replicas.iter().map(|reading| &reading.replica).collect();
            let held = HELD_INTERVALS * interval;
            self.replicas.retain(|id, replica| named.contains(id) || now.seconds_since(replica.at) <= held);
        }
        self.forget(now, interval);
        let ready_before = self.ready;
        let loss_confirmed = self.settle_ready(now, interval, errors_confirm);
        self.see(now, interval, ready_before, loss_confirmed, rates)
    }

    /// The loop stood still: counters ran on meanwhile, so that the next difference is no rate.
    pub fn resume(&mut self) {
        for replica in self.replicas.values_mut() {
            replica.signals.work_done = None;
            replica.signals.work_done_output = None;
            replica.waited_before = false;
        }
    }

    fn up(&mut self, id: &ReplicaId, at: Instant, signals: Signals) -> Option<ReplicaRate> {
        let waits = signals.waiting.unwrap_or(0.0) >= 1.0;
        let Some(replica) = self.replicas.get_mut(id) else {
            if self.replicas.len() < REPLICAS_MAX {
                let replica = Replica { at, signals, up_scrapes: 1, waited_before: waits };
                self.replicas.insert(id.clone(), replica);
            }
            return None;
        };
        let seconds = at.seconds_since(replica.at);
        if seconds <= 0.0 {
            // The same sample, seen again.
            return None;
        }
        replica.up_scrapes = replica.up_scrapes.saturating_add(1);
        let rate = |now: Option<f64>, before: Option<f64>| match (now, before) {
            // A counter that fell was reset: no rate for this interval.
            (Some(now), Some(before)) if now >= before => Some((now - before) / seconds),
            _ => None,
        };
        let input = rate(signals.work_done, replica.signals.work_done);
        let output = match signals.work_done_output {
            None => Some(0.0),
            some => rate(some, replica.signals.work_done_output),
        };
        let busy = waits && replica.waited_before;
        replica.at = at;
        replica.signals = signals;
        replica.waited_before = waits;
        Some(ReplicaRate { input: input?, output: output?, busy, running: signals.running })
    }

    fn forget(&mut self, now: Instant, interval: f64) {
        self.replicas.retain(|_, replica| now.seconds_since(replica.at) <= FORGOTTEN_INTERVALS * interval);
    }

    /// Moves `ready` toward what the round shows; says whether a steep fall was confirmed.
    fn settle_ready(&mut self, now: Instant, interval: f64, errors_confirm: bool) -> bool {
        let first = !self.started && !self.replicas.is_empty();
        let shown: f64 = self
            .replicas
            .values()
            .map(|replica| {
                let age = now.seconds_since(replica.at);
                match () {
                    // A replica that came back counts from its second scrape on.
                    () if replica.up_scrapes < 2 && !first => 0.0,
                    () if age > HELD_INTERVALS * interval => SILENT_WEIGHT,
                    () => 1.0,
                }
            })
            .sum();
        self.started |= first;
        let steep = shown < self.ready * FALL_ON_ONE_SIGN;
        let next = if steep && !errors_confirm && !cfg!(feature = "bug-no-decrease-bound") {
            self.ready * FALL_ON_ONE_SIGN
        } else {
            shown
        };
        self.steady_ticks =
            if (next - self.ready).abs() > 1e-9 { 0 } else { self.steady_ticks.saturating_add(1) };
        self.ready = next;
        steep && errors_confirm
    }

    fn see(
        &self,
        now: Instant,
        interval: f64,
        ready_before: f64,
        loss_confirmed: bool,
        rates: Vec<ReplicaRate>,
    ) -> Seen {
        let youngest = self.replicas.values().map(|replica| now.seconds_since(replica.at)).reduce(f64::min);
        let freshness = match youngest {
            Some(age) if age <= USED_INTERVALS * interval => Freshness::Fresh,
            Some(age) if age <= HELD_INTERVALS * interval => Freshness::Held,
            // Known to be empty is knowledge too.
            None if loss_confirmed || (self.started && self.ready == 0.0) => Freshness::Fresh,
            _ => Freshness::Stale,
        };
        let fresh = || {
            self.replicas
                .values()
                .filter(|replica| now.seconds_since(replica.at) <= USED_INTERVALS * interval)
        };
        let sum = |signal: fn(&Signals) -> Option<f64>| {
            fresh().filter_map(|replica| signal(&replica.signals)).fold(0.0, |sum, value| sum + value)
        };
        let waiting = sum(|signals| signals.waiting);
        let busy = rates.iter().filter(|rate| rate.busy).count();
        Seen {
            freshness,
            replicas: self.replicas.len(),
            ready: self.ready,
            ready_before,
            running: sum(|signals| signals.running),
            waiting,
            backlogged: busy > 0 && waiting >= self.ready,
            unsettled: self.steady_ticks < 2,
            loss_confirmed,
            latency: fresh().filter_map(|replica| replica.signals.latency).reduce(f64::max),
            rates,
        }
    }
}

// === impl Seen ===

impl Seen {
    /// Work per second of every replica with a rate; none without any.
    pub fn delivered(&self, output_cost: f64) -> Option<f64> {
        self.rates.iter().map(|rate| rate.input + output_cost * rate.output).reduce(|a, b| a + b)
    }
}
