//! The rows of the dashboard, in the order of the loop.

use super::Row;
use super::limits::{ALLOCATION, ENFORCEMENT, PROCESSES, PUBLICATION};
use super::load::{DECISION, ESTIMATE, SIGNALS};

/// Work a second: what is counted depends on the pool.
pub(super) const WORK: &str = "suffix: work/s";

pub const ROWS: &[Row] = &[
    Row { title: "1 Signals: what the replicas report", panels: SIGNALS },
    Row { title: "2 Estimate: what the pool can do, and what is asked of it", panels: ESTIMATE },
    Row { title: "3 Decision: how much the pool may admit, and why", panels: DECISION },
    Row { title: "4 Allocation: who gets how much of it", panels: ALLOCATION },
    Row { title: "5 Publication: what the nodes are told", panels: PUBLICATION },
    Row { title: "6 Enforcement: what clients get", panels: ENFORCEMENT },
    Row { title: "Processes", panels: PROCESSES },
];
