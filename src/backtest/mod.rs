//! Backtest: what a policy would have published on a record, and who would have been refused.
//!
//! A record is a controller's journal: what was read and reported before each tick, and what the
//! controller remembered after it. The same [`Controller`](crate::control::Controller) is stepped
//! through it. Under the policy of the record its tables are the record's to the byte; under another
//! one the difference is what that policy would have changed.

pub mod arm;
pub mod asked;
pub mod compare;
pub mod demand;
pub mod gaps;
pub mod journal;
pub mod outcome;
pub mod published;
pub mod score;
pub mod scraped;
pub mod show;
pub mod span;

use std::sync::Arc;

use self::compare::{Comparison, Report};
use self::span::{Span, SpanError};
use crate::control::entry::Recorded;
use crate::policy::Policy;

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError<E> {
    #[error(transparent)]
    Record(E),
    #[error(transparent)]
    Span(#[from] SpanError),
    #[error(
        "the record has {0} within the time asked for: a replay goes from one tick to the next; \
         let the controller run for some intervals, or ask for a longer time"
    )]
    TooShort(&'static str),
}

/// Steps a policy, and maybe another one, through the part of a record that lies in `span`.
///
/// # Errors
/// The record's own, or that it has less than two entries in that time.
pub fn replay<E>(
    entries: impl Iterator<Item = Result<Recorded, E>>,
    span: Span,
    policy: &Arc<Policy>,
    against: Option<&Arc<Policy>>,
) -> Result<Report, ReplayError<E>> {
    let mut comparison: Option<Comparison> = None;
    let mut seen = span.watch();
    for entry in entries {
        let entry = entry.map_err(ReplayError::Record)?;
        if !seen.holds(&entry)? {
            continue;
        }
        match &mut comparison {
            None => comparison = Some(Comparison::begin(policy, against, entry)),
            Some(comparison) => comparison.step(entry),
        }
    }
    let Some(comparison) = comparison else {
        return Err(seen.nothing().map_or(ReplayError::TooShort("no tick"), ReplayError::Span));
    };
    let report = comparison.report();
    if report.ticks == 0 { Err(ReplayError::TooShort("one tick")) } else { Ok(report) }
}
