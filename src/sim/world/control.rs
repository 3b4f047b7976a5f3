//! The loop through the world: ticks, reports, tables on their way, restarts; every step checked.

use std::hash::Hash;
use std::sync::Arc;

use crate::control::{Controller, Tick};
use crate::observe::{PoolRound, Round};
use crate::sim::check::Promise;
use crate::sim::sources::Truth;
use crate::sim::world::{Event, PAST_TABLES, POOL, REPORT_EVERY, Seen, World};
use crate::unit::{Instant, PoolId};
use crate::wire::{LimitTable, Offer};

impl World {
    pub(super) fn tick(&mut self, generation: u64) {
        let Some(controller) = &mut self.controller else { return };
        if generation != self.health.generation {
            return;
        }
        let mut round = Round { usage: std::mem::take(&mut self.inbox), ..Round::default() };
        let scraped = self.plant.scrape(self.now);
        round.pools.insert(PoolId::new(POOL), scraped.clone());
        let tick = controller.tick(self.now, &round);
        self.journal = Some(controller.state().clone());
        let interval = self.policy.interval.as_secs_f64();
        self.after(interval, Event::Tick { generation });
        if let Ok(bytes) = tick.table.encode() {
            bytes.hash(&mut self.tables);
        }
        self.outcome.table = Some(Arc::clone(&tick.table));
        for (promise, detail) in self.publications.published(self.now, &tick) {
            self.break_promise(promise, detail);
        }
        self.judge_sources(&tick, &scraped);
        self.restart_continues(&tick);
        let alive = self.plant.alive() as f64 * self.scenario.replica_rate;
        for detail in self.health.ticked(self.now, &tick, alive) {
            self.break_promise(Promise::Recovers, detail);
        }
        if self.past.len() == PAST_TABLES {
            self.past.remove(0);
        }
        self.past.push((*tick.table).clone());
        for node in 0..self.nodes.len() {
            if self.nodes.get(node).is_some_and(|node| node.reachable) {
                let delay = self.scenario.delay * self.chance.between(0.5, 1.5);
                self.after(delay, Event::Deliver { node, table: Arc::clone(&tick.table) });
            }
        }
    }

    fn judge_sources(&mut self, tick: &Tick, scraped: &PoolRound) {
        let Some(pool) = tick.pools.values().next() else { return };
        let truth = Truth {
            rate: self.scenario.replica_rate,
            alive: self.plant.alive(),
            untrue: self.plant.untrue(),
            resumed: std::mem::take(&mut self.resumed),
        };
        for (promise, detail) in self.sources.ticked(self.now, pool, scraped, &truth) {
            self.break_promise(promise, detail);
        }
        let grants = self.policy.models.values().flat_map(|model| model.tiers.values());
        self.outcome.seen.push(Seen {
            at: self.now.seconds_since(Instant::ZERO),
            budget: pool.decision.budget,
            capacity: pool.estimate.capacity,
            ready: pool.estimate.ready,
            freshness: pool.estimate.freshness,
            safe: grants.map(|grant| grant.safe as f64 / 60.0).sum(),
        });
    }

    /// The process stands still: no tick, and nobody is heard.
    pub(super) fn pause(&mut self, seconds: f64) {
        if self.controller.is_some() && !self.paused {
            self.paused = true;
            self.health.generation += 1;
            let generation = self.health.generation;
            self.after(seconds, Event::Resume { generation });
        }
    }

    /// It goes on where it stood: the tick that was due happens at once, and once.
    pub(super) fn resume(&mut self, generation: u64) {
        if !self.paused || generation != self.health.generation {
            return;
        }
        self.paused = false;
        if self.controller.is_some() {
            self.resumed = true;
            self.tick(generation);
        }
    }

    /// The first budget after a restart with state lies within one step of the last.
    fn restart_continues(&mut self, tick: &Tick) {
        let Some(pool) = tick.pools.values().next() else { return };
        let budget = pool.decision.budget;
        if let Some(last) = self.restarted.take() {
            let scale = pool.estimate.ready / pool.estimate.ready_before.max(1e-9);
            // Capacity that was measured anew is followed; the step is counted from there.
            let followed = pool.estimate.capacity.unwrap_or(last).min(last).min(last * scale);
            let lowest = followed * 0.7;
            let highest = (last * 1.3).max(last * scale * 1.3);
            if !(lowest..=highest).contains(&budget) && pool.estimate.ready_before > 0.0 {
                let detail = format!("budget {last} before, {budget} after ({:?})", pool.decision.reason);
                self.break_promise(Promise::RestartContinues, detail);
            }
        }
        self.health.budget = budget;
    }

    pub(super) fn report(&mut self, at: usize) {
        self.after_instant(self.now + REPORT_EVERY, Event::Report { node: at });
        let now = self.now;
        let Some(node) = self.nodes.get_mut(at) else { return };
        node.drain(now);
        if !node.reachable {
            return;
        }
        let report = Box::new(node.usage(now));
        let delay = self.scenario.delay * self.chance.between(0.5, 1.5);
        self.after(delay, Event::Hear { report });
    }

    pub(super) fn deliver(&mut self, at: usize, table: &Arc<LimitTable>) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(at).filter(|node| node.reachable) else { return };
        let (stamp, before) = (node.limiter.held().map(|held| held.stamp()), node.counters(now));
        let offer = node.limiter.offer((**table).clone(), now);
        let renewed = match offer {
            Ok(Offer::Applied(_) | Offer::Renewed(_)) => true,
            Ok(Offer::Stale) => false,
            Err(error) => {
                self.break_promise(Promise::VersionUnique, error.to_string());
                return;
            }
        };
        let held = node.limiter.held().map(|held| held.stamp());
        let after = node.counters(now);
        if renewed {
            node.renewed = Some((Arc::clone(table), now));
            node.drain(now);
            node.disk = Some((**table).clone());
        }
        if held < stamp || renewed && stamp.is_some_and(|stamp| table.stamp <= stamp) {
            let detail = format!("{stamp:?} then {held:?} on {:?}", table.stamp);
            self.break_promise(Promise::NodeNeverGoesBack, detail);
        }
        if after != before {
            self.break_promise(Promise::SwapKeepsCounters, format!("{before:?} became {after:?}"));
        }
    }

    pub(super) fn begin(&mut self, keep_state: bool) {
        if self.controller.is_some() {
            return;
        }
        // Through JSON, as the journal does it.
        let stored = self.journal.as_ref().filter(|_| keep_state);
        let state = stored
            .and_then(|state| serde_json::to_vec(state).ok())
            .and_then(|bytes| serde_json::from_slice(&bytes).ok());
        self.restarted = state.is_some().then_some(self.health.budget);
        if state.is_none() {
            self.publications.state_lost();
            self.sources.state_lost();
        }
        self.controller = Some(Controller::new(Arc::clone(&self.policy), state.unwrap_or_default()));
        (self.paused, self.resumed) = (false, false);
        self.health.generation += 1;
        self.learned = self.now + 3 * self.policy.interval;
        let interval = self.policy.interval.as_secs_f64();
        let generation = self.health.generation;
        self.after(interval, Event::Tick { generation });
    }
}
