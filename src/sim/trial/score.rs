//! What a run is worth: work served in time, as a share of what nobody can exceed.
//!
//! The fluid bound of a second is `x = min(q + a, C)`, with what is left over kept as far as it
//! can still be in time: `q = min(q + a - x, SLO·C)`. Work is counted when it is done, a prompt
//! with its first token and an answer evenly from there to its end, so that neither the filling of
//! empty batches nor what is under way at the end flatters anyone.

mod ledger;
mod report;
#[cfg(test)]
mod tests;

pub use ledger::{Ledger, Outcome, Second};
pub use report::{Metric, Report, report};
