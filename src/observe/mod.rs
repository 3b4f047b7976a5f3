//! What was reported in one interval: replicas by their metrics, nodes by their usage.
//!
//! A failed scrape is a reading too. `None` means not reported; a number here is finite and not
//! negative, everything else was turned away at the border.

#[cfg(feature = "daemon")]
mod access;
#[cfg(feature = "daemon")]
pub mod answer;
#[cfg(feature = "daemon")]
mod backoff;
#[cfg(feature = "daemon")]
mod body;
#[cfg(feature = "daemon")]
mod discover;
#[cfg(feature = "daemon")]
pub mod exposition;
#[cfg(feature = "daemon")]
mod fetch;
#[cfg(feature = "daemon")]
pub mod file_sd;
#[cfg(feature = "daemon")]
pub mod matrix;
#[cfg(feature = "daemon")]
mod pair;
#[cfg(feature = "daemon")]
pub mod prometheus;
#[cfg(feature = "daemon")]
pub mod promql;
#[cfg(feature = "daemon")]
pub mod range;
#[cfg(feature = "daemon")]
pub mod scrape;
#[cfg(feature = "daemon")]
pub mod select;
#[cfg(feature = "daemon")]
mod skim;
#[cfg(feature = "daemon")]
pub mod sources;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::unit::{Instant, PoolId, ReplicaId};
use crate::wire::UsageReport;

/// Everything that arrived since the last tick.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Round {
    pub pools: BTreeMap<PoolId, PoolRound>,
    /// In order of arrival.
    pub usage: Vec<UsageReport>,
}

/// One pool's sources in one interval.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PoolRound {
    pub replicas: Vec<Reading>,
    /// Why the source as a whole could not be read (a Prometheus that does not answer); the
    /// replicas it would have named are then absent, which says nothing about them.
    pub failed: Option<String>,
    /// What a source said about its answer, or what about it is doubtful. Nothing is decided by it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reading {
    pub replica: ReplicaId,
    /// When the numbers were true, on the controller's clock.
    pub at: Instant,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Up(Signals),
    /// It said no: connection refused, `up` is 0, `ready` is 0. One sign of a loss.
    Down(String),
    /// It said nothing usable: timeout, oversize, unreadable. Not a sign of a loss.
    Silent(String),
}

/// Units as in [`crate::policy::SignalMap`]. Counters are raw: cumulative, may reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Signals {
    pub running: Option<f64>,
    pub waiting: Option<f64>,
    pub work_done: Option<f64>,
    pub work_done_output: Option<f64>,
    pub latency: Option<f64>,
    pub errors: Option<f64>,
}
