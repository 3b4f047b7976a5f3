//! From readings to what a pool can do and what is asked of it.
//!
//! Capacity is what ready replicas deliver while a backlog keeps them busy (the BBR view: samples
//! of an idle pool can only raise it). Demand is what nodes were offered. Nothing here decides.

pub mod capacity;
pub mod demand;
mod node;
pub mod replicas;
pub mod rows;
pub mod trust;

use serde::{Deserialize, Serialize};

pub use capacity::Capacity;
pub use demand::{Demand, NodeDemand, Nodes, PoolDemand};
pub use replicas::{Fleet, Freshness};
pub use rows::Key;
pub use rows::Lookup;
pub use trust::Witness;

use crate::observe::PoolRound;
use crate::policy::PoolPolicy;
use crate::unit::Instant;

/// What is remembered of one pool between ticks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pool {
    pub fleet: Fleet,
    pub capacity: Capacity,
}

/// One pool, as well as it is known. Rates are work units per second unless named otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    pub freshness: Freshness,
    /// Replicas named by the source.
    pub replicas: usize,
    /// Readings of this round that were turned away: impossible numbers, or from the future.
    #[serde(default)]
    pub rejected: usize,
    /// Replicas whose page says the same again and again although nodes are served.
    #[serde(default)]
    pub frozen: usize,
    /// Replicas believed ready; a fraction while a loss with one sign is taken in steps.
    pub ready: f64,
    /// The same, one tick ago.
    pub ready_before: f64,
    /// Requests, over all fresh replicas.
    pub running: f64,
    pub waiting: f64,
    /// Work delivered by replicas with two fresh readings; none without any.
    pub delivered: Option<f64>,
    /// Enough requests waited, at this and the previous scrape.
    pub backlogged: bool,
    /// What one busy replica delivers; none before the first backlog.
    pub per_replica: Option<f64>,
    /// `per_replica` times `ready`.
    pub capacity: Option<f64>,
    /// Most requests one busy replica was seen running.
    pub running_saturated: Option<f64>,
    /// Work of one output token, in input tokens.
    pub output_cost: f64,
    /// A loss was taken at once because nodes saw upstream errors too.
    pub loss_confirmed: bool,
    /// Seconds; shown, never steered by.
    pub latency: Option<f64>,
}

// === impl Pool ===

impl Pool {
    /// One interval of readings, and what nodes saw meanwhile: the second sign that a fall of more
    /// than 30 % needs, and that a page which never changes is held against.
    pub fn update(
        &mut self,
        now: Instant,
        interval: f64,
        policy: &PoolPolicy,
        round: &PoolRound,
        witness: Witness,
    ) -> Estimate {
        let seen = self.fleet.update(now, interval, round, witness);
        self.capacity.update(policy.output_cost, &seen);
        let output_cost = self.capacity.output_cost(policy.output_cost);
        let per_replica = self.capacity.per_replica(output_cost);
        Estimate {
            freshness: seen.freshness,
            replicas: seen.replicas,
            rejected: seen.rejected,
            frozen: seen.frozen,
            ready: seen.ready,
            ready_before: seen.ready_before,
            running: seen.running,
            waiting: seen.waiting,
            delivered: seen.delivered(output_cost, self.capacity.most(output_cost)),
            backlogged: seen.backlogged,
            per_replica,
            capacity: per_replica.map(|rate| rate * seen.ready),
            running_saturated: self.capacity.running_saturated(),
            output_cost,
            loss_confirmed: seen.loss_confirmed,
            latency: seen.latency,
        }
    }
}

#[cfg(test)]
mod tests;
