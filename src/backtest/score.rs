//! What a row had and would have had, summed over a record.

use std::collections::BTreeMap;

use crate::backtest::asked::Counts;
use crate::backtest::compare::When;
use crate::decide::Reason;
use crate::unit::{Limit, TierId};
use crate::unit::{ModelId, PoolId};
use crate::wire::{LimitTable, Work};

/// A guarantee is missed when less than this part of it, or of what was asked, is served.
const SERVED: f64 = 0.99;

pub type RowName = (ModelId, TierId);

/// One row over the whole record. `was` is the record, or the policy compared against; `is` the
/// policy tried.
#[derive(Clone, Debug, Default)]
pub struct RowScore {
    pub was: Side,
    pub is: Side,
    pub offered: Work,
    /// Admitted there, and would be refused here.
    pub newly_refused: Work,
    /// Refused there, and would be admitted here.
    pub newly_admitted: Work,
    /// The interval in which most work is treated otherwise.
    pub worst: Option<Worst>,
}

/// What one of the two does with a row.
#[derive(Clone, Debug, Default)]
pub struct Side {
    pub admitted: Work,
    /// How often each limit was in force, work per minute.
    limits: BTreeMap<Limit, u64>,
    /// Seconds in which less was served than the guarantee, although it was asked for.
    pub guarantee_missed_s: f64,
}

#[derive(Clone, Debug)]
pub struct Worst {
    pub at: When,
    pub refused: Work,
    pub admitted: Work,
    /// Why the pool's budget was what it was then, under the policy tried.
    pub reason: Option<Reason>,
}

/// Limits over the record, work per minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub least: Limit,
    pub median: Limit,
    pub most: Limit,
}

// === impl RowScore ===

impl RowScore {
    /// One interval, all nodes together; `changed` is what is refused and admitted otherwise.
    pub fn add(&mut self, at: When, was: &Counts, is: &Counts, changed: [Work; 2], reason: Option<Reason>) {
        let [refused, admitted] = changed;
        self.offered = self.offered.plus(was.offered);
        self.was.admitted = self.was.admitted.plus(was.admitted);
        self.is.admitted = self.is.admitted.plus(is.admitted);
        self.newly_refused = self.newly_refused.plus(refused);
        self.newly_admitted = self.newly_admitted.plus(admitted);
        let amount = refused.work.max(admitted.work);
        let most = self.worst.as_ref().map_or(0, |worst| worst.refused.work.max(worst.admitted.work));
        if amount > most {
            self.worst = Some(Worst { at, refused, admitted, reason });
        }
    }
}

// === impl Side ===

impl Side {
    /// A limit that was published.
    pub fn published(&mut self, table: &LimitTable, name: &RowName) {
        if let Some(limit) = limit(table, name) {
            *self.limits.entry(limit).or_default() += 1;
        }
    }

    /// `seconds` in which this became of what was asked, under this table.
    pub fn served(&mut self, table: &LimitTable, name: &RowName, counts: &Counts, seconds: f64) {
        let refused = counts.refused_tier.work + counts.refused_share.work + counts.refused_capacity.work;
        let asked = counts.admitted.work + refused;
        let guarantee = guarantee(table, name) * seconds;
        if refused > 0 && (counts.admitted.work as f64) < SERVED * guarantee.min(asked as f64) {
            self.guarantee_missed_s += seconds;
        }
    }

    /// None: the row was in no table.
    pub fn limits(&self) -> Option<Limits> {
        let all: u64 = self.limits.values().sum();
        let mut passed = 0;
        let median = self.limits.iter().find(|(_, count)| {
            passed += **count;
            passed * 2 >= all
        });
        let (least, most) = (self.limits.keys().next()?, self.limits.keys().next_back()?);
        Some(Limits { least: *least, median: *median?.0, most: *most })
    }
}

/// The limit that a row's pool controls.
fn entry<'a>(table: &'a LimitTable, (model, tier): &RowName) -> Option<&'a crate::wire::Entry> {
    let row = table.row(model.as_str(), tier.as_str())?;
    row.limits.get(&table.pools.get(&row.pool)?.unit.dimension())
}

fn limit(table: &LimitTable, name: &RowName) -> Option<Limit> {
    entry(table, name).map(|entry| entry.tier_limit)
}

/// Work per second.
fn guarantee(table: &LimitTable, name: &RowName) -> f64 {
    entry(table, name).and_then(|entry| entry.guarantee.finite()).unwrap_or(0) as f64 / 60.0
}

/// The pool that serves a row.
pub fn pool_of<'a>(table: &'a LimitTable, (model, tier): &RowName) -> Option<&'a PoolId> {
    table.row(model.as_str(), tier.as_str()).map(|row| &row.pool)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_a_limit_that_was_there() {
        let mut side = Side::default();
        assert_eq!(side.limits(), None);
        side.limits = [(Limit::Finite(5), 1), (Limit::Finite(7), 1), (Limit::Unlimited, 2)].into();
        let limits = side.limits().unwrap();
        assert_eq!(
            (limits.least, limits.median, limits.most),
            (Limit::Finite(5), Limit::Finite(7), Limit::Unlimited)
        );
    }
}
