//! What a decision says: the budget, how it moved, and why.

use serde::{Deserialize, Serialize};

/// What one pool may admit, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Work per second.
    pub budget: f64,
    pub motion: Motion,
    pub reason: Reason,
    /// Work that may wait for its first token, by Little's law.
    pub waiting_work: f64,
    /// Requests in flight; none before the pool was measured.
    pub in_flight: Option<f64>,
    /// The part of `in_flight` above a full batch.
    pub in_flight_above_batch: f64,
    /// Waiting requests above which the pool counts as overloaded.
    pub waiting_threshold: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Motion {
    /// The budget went to measured capacity.
    Follow,
    /// Nobody measured where it goes: bounded steps.
    Steer,
    Hold,
}

/// Why the budget is what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// First decision: the sum of what is safe.
    Started,
    /// Ready replicas were lost.
    CapacityLost,
    /// Replicas were ready in two scrapes running.
    CapacityGained,
    /// Measured capacity fell below the budget.
    CapacityMeasured,
    /// Significantly more requests wait than the SLO allows.
    Overload,
    /// Some wait, within what the SLO allows.
    Backlogged,
    /// An overload drained, or signals are back: back to what was measured.
    Recovered,
    /// The limit binds and the pool keeps up.
    Probing,
    /// The limit binds and no backlog was seen yet.
    SlowStart,
    /// Within one feedback delay of the last cut.
    Cooling,
    /// Nobody is refused: raising it would change nothing.
    NotBinding,
    /// Signals are older than two intervals, or the loop itself was paused.
    SignalsHeld,
    /// Signals are older than five intervals.
    SignalsStale,
    /// Nobody measures the pool: what the policy states is in force.
    Fixed,
}
