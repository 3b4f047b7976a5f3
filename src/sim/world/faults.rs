//! What goes wrong in the world, and its healing.

use std::sync::Arc;

use crate::enforce::Settlement;
use crate::policy::Policy;
use crate::sim::check::Promise;
use crate::sim::scenario::Fault;
use crate::sim::world::node::Node;
use crate::sim::world::{Event, World};
use crate::unit::{Instant, Limit};

impl World {
    pub(super) fn fault(&mut self, fault: Fault) {
        match fault {
            Fault::Die { replicas } => replicas.into_iter().for_each(|at| self.die(at)),
            Fault::Revive { replicas } => replicas.into_iter().for_each(|at| self.plant.revive(at)),
            Fault::Show { replicas, untrue } => {
                replicas.into_iter().for_each(|at| self.plant.show(at, untrue));
            }
            Fault::ResetCounters { replicas } => {
                replicas.into_iter().for_each(|at| self.plant.reset_counters(at));
            }
            Fault::Pause { seconds } => self.pause(seconds),
            Fault::Slow { replica, part } => self.plant.slow(replica, part, &self.scenario),
            // A controller that just lost its state has only the nodes to learn its past from.
            Fault::Partition { node } if self.controller.is_some() && self.now >= self.learned => {
                self.reach(node, false);
            }
            Fault::Partition { .. } => {}
            Fault::Rejoin { node } => self.reach(node, true),
            Fault::Kill { keep_state, back_after } => {
                self.controller = None;
                self.inbox.clear();
                // With neither state nor nodes to ask, no controller could know its past.
                let keep_state = keep_state || self.nodes.iter().any(|node| !node.reachable);
                self.after(back_after, Event::Begin { keep_state });
            }
            Fault::RestartNode { node } => self.restart_node(node),
            Fault::Replay { node } => {
                if let Some(table) = self.past.first().cloned() {
                    self.deliver(node, &Arc::new(table));
                }
            }
            Fault::Flood { tier, factor } => {
                if let Some(flood) = self.floods.get_mut(tier) {
                    *flood = factor;
                }
            }
            Fault::EditCeiling { tier, factor } => self.edit(tier, factor),
            Fault::Heal => self.heal(),
        }
    }

    pub(super) fn die(&mut self, at: usize) {
        self.plant.die(at, &self.scenario);
        let lost: Vec<u64> =
            self.flights.iter().filter(|(_, flight)| flight.replica == at).map(|(id, _)| *id).collect();
        for id in lost {
            if let Some(flight) = self.flights.remove(&id) {
                let output_seen = flight.seen;
                self.settle(flight, Settlement::Died { output_seen });
            }
        }
    }

    fn reach(&mut self, node: usize, reachable: bool) {
        if let Some(node) = self.nodes.get_mut(node) {
            node.reachable = reachable;
        }
    }

    fn restart_node(&mut self, at: usize) {
        let lost: Vec<u64> =
            self.flights.iter().filter(|(_, flight)| flight.node == at).map(|(id, _)| *id).collect();
        for id in lost {
            if let Some(flight) = self.flights.remove(&id) {
                self.plant.abort(flight.replica, id);
            }
        }
        let now = self.now;
        let Some(node) = self.nodes.get_mut(at) else { return };
        let mut fresh = Node::new(at, now, node.instance + 1);
        fresh.reachable = node.reachable;
        fresh.disk = node.disk.take();
        if let Some(table) = fresh.disk.clone() {
            let valid_for = table.valid_for_ms * 1_000_000;
            fresh.renewed = Some((Arc::new(table.clone()), Instant(now.0.saturating_sub(valid_for))));
            if let Err(error) = fresh.limiter.restore(table, now) {
                self.break_promise(Promise::NodeAloneDrifts, error.to_string());
                return;
            }
        }
        *node = fresh;
    }

    pub(super) fn edit(&mut self, tier: usize, factor: f64) {
        let mut policy = self.scenario.policy.clone();
        let capacity = self.scenario.capacity() * 60.0;
        let Some(tier) = self.scenario.tenants.get(tier).map(|tenant| tenant.tier.clone()) else { return };
        for grant in policy.models.values_mut().filter_map(|model| model.tiers.get_mut(&tier)) {
            let scaled = grant.ceiling.as_f64().min(capacity) * factor;
            if factor < 1.0 {
                grant.ceiling = Limit::from_f64(scaled.max(grant.guarantee as f64));
            }
        }
        policy.digest = format!("{tier} {factor}");
        self.put_in_force(policy);
    }

    fn put_in_force(&mut self, policy: Policy) {
        if policy.digest == self.policy.digest {
            return;
        }
        self.policy = Arc::new(policy);
        if let Some(controller) = &mut self.controller {
            controller.set_policy(Arc::clone(&self.policy));
            self.publications.edited();
        }
    }

    pub(super) fn heal(&mut self) {
        for at in 0..self.plant.count() {
            self.plant.revive(at);
            self.plant.show(at, None);
            self.plant.slow(at, 1.0, &self.scenario);
        }
        for at in 0..self.nodes.len() {
            self.reach(at, true);
        }
        self.floods.fill(1.0);
        self.scenario.hang_ups = 0.0;
        self.resume(self.health.generation);
        self.begin(true);
        self.put_in_force(self.scenario.policy.clone());
    }
}
