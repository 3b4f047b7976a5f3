//! Which replicas are ready, and how old what we know of them is.
//!
//! A scrape outage must not halve a healthy pool, a dead replica must not be served: a refusal is
//! one sign of a loss, silence is none. A fall of more than 30 % in one interval needs a second,
//! independent sign (upstream errors at the nodes), else it is taken 30 % an interval. A pool of
//! which less than half is seen is not smaller and not emptier: its source is what failed.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::bounds::REPLICAS_MAX;
use crate::estimate::trust::{self, Fallen, Witness};
use crate::observe::Outcome;
use crate::observe::PoolRound;
use crate::observe::Signals;
use crate::planted::{bug, without};
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
/// Waiting requests per replica that are a backlog. One or two are what came since the last step
/// of a batch began: taken for a backlog, they make a little load look like all that can be done.
const BACKLOG_PER_REPLICA: f64 = 5.0;
/// Most of the ready replicas that may go in one interval on one sign.
const FALL_ON_ONE_SIGN: f64 = 0.7;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Fleet {
    replicas: BTreeMap<ReplicaId, Replica>,
    ready: f64,
    /// Ticks since `ready` last changed.
    steady_ticks: u32,
    started: bool,
    #[serde(default)]
    fallen: Fallen,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Replica {
    /// Of the last reading that was believed.
    at: Instant,
    signals: Signals,
    /// Scrapes running in which it answered.
    up_scrapes: u32,
    waited_before: bool,
    /// Readings in a row that said exactly the same while nodes were served.
    #[serde(default)]
    unchanged: u32,
    /// Since when they say the same: work that shows up later was done since then.
    #[serde(default)]
    moved_at: Option<Instant>,
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
    /// Readings of this round that were turned away: impossible numbers, or from the future.
    pub rejected: usize,
    /// Replicas whose page does not move although it should.
    pub frozen: usize,
    pub ready: f64,
    pub ready_before: f64,
    pub running: f64,
    pub waiting: f64,
    pub backlogged: bool,
    /// Rates mix two fleets, because the number of ready replicas changed less than two ticks ago,
    /// or are those of few replicas.
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
    pub fn update(&mut self, now: Instant, interval: f64, round: &PoolRound, witness: Witness) -> Seen {
        let mut down = Vec::new();
        let mut rates = Vec::new();
        let mut rejected = 0;
        let moved = self.moved(round);
        for reading in &round.replicas {
            match &reading.outcome {
                Outcome::Up(signals) if reading.at <= now && trust::possible(signals) => {
                    // Traffic that must show on this page: its own word, or nobody's moves.
                    let due = witness.served && (trust::claims_work(signals) || !moved);
                    rates.extend(self.up(&reading.replica, reading.at, interval, *signals, due));
                }
                Outcome::Up(_) => rejected += 1,
                Outcome::Down(_) => down.push(&reading.replica),
                Outcome::Silent(_) => {}
            }
        }
        // Everybody refusing at once without a failed request is a network's doing, not a loss.
        let answered = round.replicas.iter().any(|reading| matches!(reading.outcome, Outcome::Up(_)));
        if answered || witness.errors {
            for replica in down {
                if self.replicas.remove(replica).is_some() {
                    self.fallen.fell(replica, now, REPLICAS_MAX);
                }
            }
        }
        if answered && round.failed.is_none() {
            // The source is well and names others: what it does not name any more is gone.
            let held = HELD_INTERVALS * interval;
            let is_held = |replica: &Replica| now.seconds_since(replica.at) <= held;
            if !self.replicas.values().all(is_held) {
                let named: BTreeSet<&ReplicaId> =
                    round.replicas.iter().map(|reading| &reading.replica).collect();
                self.replicas.retain(|id, replica| is_held(replica) || named.contains(id));
            }
        }
        self.forget(now, interval);
        let ready_before = self.ready;
        let loss_confirmed = self.settle_ready(now, interval, witness.errors);
        let seen = self.see(now, interval, rates);
        Seen { ready_before, loss_confirmed, rejected, ..seen }
    }

    /// Does any page say something else than before?
    fn moved(&self, round: &PoolRound) -> bool {
        round.replicas.iter().any(|reading| match &reading.outcome {
            Outcome::Up(signals) => {
                self.replicas.get(&reading.replica).is_none_or(|known| known.signals != *signals)
            }
            Outcome::Down(_) | Outcome::Silent(_) => false,
        })
    }

    /// The loop stood still: counters ran on meanwhile, so that the next difference is no rate.
    pub fn resume(&mut self) {
        for replica in self.replicas.values_mut() {
            replica.signals.work_done = None;
            replica.signals.work_done_output = None;
            replica.waited_before = false;
        }
    }

    /// Takes one reading in. `due`: there was traffic that must have changed it.
    fn up(
        &mut self,
        id: &ReplicaId,
        at: Instant,
        interval: f64,
        signals: Signals,
        due: bool,
    ) -> Option<ReplicaRate> {
        let waits = signals.waiting.unwrap_or(0.0) >= 1.0;
        let Some(replica) = self.replicas.get_mut(id) else {
            if self.replicas.len() < REPLICAS_MAX {
                let waited_before = waits;
                let (unchanged, moved_at) = (0, Some(at));
                let replica = Replica { at, signals, up_scrapes: 1, waited_before, unchanged, moved_at };
                self.replicas.insert(id.clone(), replica);
            }
            return None;
        };
        if at <= replica.at {
            // The same sample, seen again.
            return None;
        }
        replica.up_scrapes = replica.up_scrapes.saturating_add(1);
        let same = replica.signals == signals && trust::counts(&signals);
        replica.unchanged = if same { replica.unchanged.saturating_add(u32::from(due)) } else { 0 };
        if replica.frozen() {
            // Fresh timestamps on old numbers: it ages as if it were silent.
            return None;
        }
        let seconds = at.seconds_since(replica.moved_at.unwrap_or(replica.at));
        let rate = |now: Option<f64>, before: Option<f64>| match (now, before) {
            (Some(now), Some(before)) if bug("reset-is-a-rate") => {
                // What an unsigned difference makes of a counter that fell.
                Some(if now >= before { now - before } else { now - before + 2f64.powi(32) } / seconds)
            }
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
        let gap = at.seconds_since(replica.at) > HELD_INTERVALS * interval;
        replica.at = at;
        replica.moved_at = if same { replica.moved_at } else { Some(at) };
        replica.signals = signals;
        replica.waited_before = waits;
        // Over a gap nobody knows whether it was busy throughout; and a page on which nothing moves
        // although there is work does not say that the work takes forever.
        if (gap || same && busy) && !bug("frozen-believed") {
            return None;
        }
        Some(ReplicaRate { input: input?, output: output?, busy, running: signals.running })
    }

    fn forget(&mut self, now: Instant, interval: f64) {
        self.fallen.forget(now, FORGOTTEN_INTERVALS * interval);
        // While less than half is seen, nobody is forgotten: that would be a loss nobody signed.
        if self.is_seen(now, interval) {
            self.replicas
                .retain(|_, replica| now.seconds_since(replica.at) <= FORGOTTEN_INTERVALS * interval);
        }
    }

    /// Age in seconds of the pool: that of the reading by which enough replicas are seen.
    fn age(&self, now: Instant) -> Option<f64> {
        let mut ages: Vec<f64> =
            self.replicas.values().map(|replica| now.seconds_since(replica.at)).collect();
        let least = if bug("part-is-the-pool") { 0.0 } else { trust::SEEN_MIN };
        let enough = ((least * ages.len() as f64).ceil() as usize).max(1);
        if enough > ages.len() {
            return None;
        }
        Some(*ages.select_nth_unstable_by(enough - 1, f64::total_cmp).1)
    }

    fn is_seen(&self, now: Instant, interval: f64) -> bool {
        self.age(now).is_some_and(|age| age <= HELD_INTERVALS * interval)
    }

    /// How much each replica counts, with its age in seconds.
    fn weights(&self, now: Instant, interval: f64, first: bool) -> impl Iterator<Item = (&Replica, f64)> {
        let seen = self.is_seen(now, interval);
        self.replicas.iter().map(move |(id, replica)| {
            let age = now.seconds_since(replica.at);
            let weight = match () {
                // A replica that came back counts from its second scrape on, or later.
                () if replica.up_scrapes < self.fallen.returns_after(id) && !first => 0.0,
                () if without("silent-half") => 1.0,
                () if seen && age > HELD_INTERVALS * interval => SILENT_WEIGHT,
                () => 1.0,
            };
            (replica, weight)
        })
    }

    /// Moves `ready` toward what the round shows; says whether a steep fall was confirmed.
    fn settle_ready(&mut self, now: Instant, interval: f64, errors_confirm: bool) -> bool {
        let first = !self.started && !self.replicas.is_empty();
        let shown: f64 = self.weights(now, interval, first).map(|(_, weight)| weight).sum();
        self.started |= first;
        let steep = shown < self.ready * FALL_ON_ONE_SIGN;
        let errors_confirm = errors_confirm && !without("second-sign");
        let next = if steep && !errors_confirm && !bug("no-decrease-bound") {
            self.ready * FALL_ON_ONE_SIGN
        } else {
            shown
        };
        self.steady_ticks =
            if (next - self.ready).abs() > 1e-9 { 0 } else { self.steady_ticks.saturating_add(1) };
        self.ready = next;
        steep && errors_confirm
    }

    fn see(&self, now: Instant, interval: f64, rates: Vec<ReplicaRate>) -> Seen {
        let freshness = match self.age(now) {
            Some(age) if age <= USED_INTERVALS * interval => Freshness::Fresh,
            Some(age) if age <= HELD_INTERVALS * interval => Freshness::Held,
            // Known to be empty is knowledge too.
            None if self.started && self.ready == 0.0 => Freshness::Fresh,
            _ => Freshness::Stale,
        };
        let is_fresh = |replica: &Replica| now.seconds_since(replica.at) <= USED_INTERVALS * interval;
        let fresh = || self.replicas.values().filter(|replica| is_fresh(replica));
        let (mut all, mut counted) = (0.0, 0.0);
        for (replica, weight) in self.weights(now, interval, false) {
            all += weight;
            counted += if is_fresh(replica) { weight } else { 0.0 };
        }
        // Who is not seen is taken to be like those who are: load does not fall by looking away.
        let unseen = if counted > 0.0 && !without("unseen-alike") { all / counted } else { 1.0 };
        let sum = |signal: fn(&Signals) -> Option<f64>| {
            unseen * trust::bounded_sum(fresh().filter_map(|replica| signal(&replica.signals)).collect())
        };
        let waiting = sum(|signals| signals.waiting);
        let busy = rates.iter().filter(|rate| rate.busy).count();
        // One that says it is busy among many that are not may be lying; of two it is half the truth.
        let many_busy = busy > 0 && (self.replicas.len() < trust::QUORUM || 2 * busy > rates.len());
        // What few show is no sample of a pool.
        let many_rates = 2 * rates.len() >= self.replicas.len();
        Seen {
            freshness,
            replicas: self.replicas.len(),
            rejected: 0,
            frozen: self.replicas.values().filter(|replica| replica.frozen()).count(),
            ready: self.ready,
            ready_before: self.ready,
            running: sum(|signals| signals.running),
            waiting,
            backlogged: many_busy && waiting >= BACKLOG_PER_REPLICA * self.ready,
            unsettled: self.steady_ticks < 2 || !many_rates,
            loss_confirmed: false,
            latency: fresh().filter_map(|replica| replica.signals.latency).reduce(f64::max),
            rates,
        }
    }
}

// === impl Replica ===

impl Replica {
    fn frozen(&self) -> bool {
        self.unchanged >= trust::FROZEN_AFTER && !bug("frozen-believed")
    }
}

// === impl Seen ===

impl Seen {
    /// Work per second of every replica with a rate that can be one; none without any.
    pub fn delivered(&self, output_cost: f64, most: Option<f64>) -> Option<f64> {
        let work = self.rates.iter().map(|rate| rate.input + output_cost * rate.output);
        work.filter(|work| most.is_none_or(|most| *work <= most)).reduce(|a, b| a + b)
    }
}
