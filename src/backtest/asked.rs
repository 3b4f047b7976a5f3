//! What was asked between two ticks, and what became of it: the difference of two reports of one
//! node's process.

use std::collections::BTreeMap;

use crate::control::entry::Recorded;
use crate::unit::{Instant, ModelId, NodeId, TierId};
use crate::wire::{UsageReport, UsageRow, Work};

/// A process whose earlier report is not known counts when it is at most this many intervals old:
/// what it says then is of this interval.
const NEW_INTERVALS: u32 = 2;

/// One row at one node in one interval.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    pub node: NodeId,
    /// The node's process.
    pub instance: u64,
    pub model: ModelId,
    pub tier: TierId,
    /// From one report to the next, on the node's own clock.
    pub from: Instant,
    pub to: Instant,
    pub counts: Counts,
}

/// What was offered and what became of it; meanings as in [`UsageRow`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub offered: Work,
    pub admitted: Work,
    pub refused_limit: Work,
    pub refused_capacity: Work,
    pub refused_share: Work,
    pub refused_tier: Work,
}

/// What the nodes that reported at `entry` were asked since their reports before.
pub fn asked(before: &Recorded, entry: &Recorded) -> Vec<Asked> {
    let interval = entry.now.since(before.now);
    let mut all = Vec::new();
    for report in &entry.round.usage {
        let old = before.last_report(&report.node).filter(|old| old.instance == report.instance);
        let young = u128::from(report.uptime_ms) <= (interval * NEW_INTERVALS).as_millis();
        if old.is_none() && !young || old.is_some_and(|old| old.uptime_ms >= report.uptime_ms) {
            continue;
        }
        all.extend(rows(old, report));
    }
    all
}

fn rows(old: Option<&UsageReport>, new: &UsageReport) -> Vec<Asked> {
    let instant = |report: &UsageReport| Instant(report.uptime_ms.saturating_mul(1_000_000));
    let earlier: BTreeMap<(&ModelId, &TierId), &UsageRow> = old
        .map(|old| old.rows.iter().map(|row| ((&row.model, &row.tier), row)).collect())
        .unwrap_or_default();
    let asked = |row: &UsageRow| Asked {
        node: new.node.clone(),
        instance: new.instance,
        model: row.model.clone(),
        tier: row.tier.clone(),
        from: old.map_or(Instant::ZERO, instant),
        to: instant(new),
        counts: Counts::between(earlier.get(&(&row.model, &row.tier)).copied(), row),
    };
    new.rows.iter().map(asked).collect()
}

// === impl Counts ===

impl Counts {
    fn between(old: Option<&UsageRow>, new: &UsageRow) -> Counts {
        let since = |field: fn(&UsageRow) -> Work| less(field(new), old.map(field).unwrap_or_default());
        Counts {
            offered: since(|row| row.offered),
            admitted: since(|row| row.admitted),
            refused_limit: since(|row| row.refused_limit),
            refused_capacity: since(|row| row.refused_capacity),
            refused_share: since(|row| row.refused_share),
            refused_tier: since(|row| row.refused_tier),
        }
    }

    #[must_use]
    pub fn plus(self, other: Counts) -> Counts {
        Counts {
            offered: self.offered.plus(other.offered),
            admitted: self.admitted.plus(other.admitted),
            refused_limit: self.refused_limit.plus(other.refused_limit),
            refused_capacity: self.refused_capacity.plus(other.refused_capacity),
            refused_share: self.refused_share.plus(other.refused_share),
            refused_tier: self.refused_tier.plus(other.refused_tier),
        }
    }
}

/// Never below zero: what was admitted is corrected downward when a request ends.
pub fn less(work: Work, by: Work) -> Work {
    Work { requests: work.requests.saturating_sub(by.requests), work: work.work.saturating_sub(by.work) }
}
