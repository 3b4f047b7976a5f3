//! What the limiter tells its controller.

use std::collections::BTreeMap;

use crate::bounds::NACK_BYTES_MAX;
use crate::bounds::REPORT_BYTES_MAX;
use crate::bounds::REPORT_ROWS_MAX;
use crate::unit::{Instant, ModelId, PoolId, TierId};
use crate::wire::table::SCHEMA;
use crate::wire::{PoolUsage, UsageReport, UsageRow, Work};

use super::Limiter;
use super::registry::Registry;
use super::rules::PoolRules;
use super::sync::lock;

/// One row's counters, for whoever shows them.
#[derive(Clone, Debug)]
pub struct RowCounts {
    /// Of the table in force; `none` when it has no such row any more.
    pub pool: PoolId,
    pub model: ModelId,
    pub tier: TierId,
    pub offered: Work,
    pub refused_limit: Work,
    pub refused_capacity: Work,
    /// Of requests that have ended.
    pub settled_work: u64,
}

/// Bytes of one row's JSON besides its names, which may double when escaped.
const ROW_BYTES: usize = 400;

// === impl Limiter ===

impl Limiter {
    /// Rows that somebody asked for, sorted by model and tier, at most [`REPORT_ROWS_MAX`].
    pub fn row_counts(&self) -> Vec<RowCounts> {
        let registry = lock(&self.registry);
        let gone = PoolId::new("none");
        let counts = registry.rows().filter_map(|row| {
            let pool = registry.rules.pool(row.pool).filter(|_| row.live);
            let counted = row.cell.total();
            (counted.offered.requests > 0).then(|| RowCounts {
                pool: pool.map_or(&gone, |pool| &pool.cell.name).clone(),
                model: row.cell.model.clone(),
                tier: row.cell.tier.clone(),
                offered: counted.offered,
                refused_limit: counted.refused_limit,
                refused_capacity: counted.refused_capacity,
                settled_work: counted.settled_work,
            })
        });
        counts.take(REPORT_ROWS_MAX).collect()
    }

    pub fn pool_counts(&self) -> Vec<(PoolId, PoolUsage)> {
        pools(&lock(&self.registry)).collect()
    }

    /// Cumulative counters since `started`. Rows nobody asked for are left out, and what would
    /// not fit a report is.
    pub fn report(&self, now: Instant, started: Instant, instance: u64) -> UsageReport {
        let registry = lock(&self.registry);
        let pools: BTreeMap<PoolId, PoolUsage> = pools(&registry).collect();
        let names: usize = pools.keys().map(|name| ROW_BYTES + 2 * name.as_str().len()).sum();
        let mut bytes = ROW_BYTES + 2 * NACK_BYTES_MAX + names;
        let asked = registry.rows().filter_map(|row| {
            let counted = row.cell.total();
            (counted.offered.requests > 0).then_some((&row.cell, counted))
        });
        let fitting = asked.take(REPORT_ROWS_MAX).take_while(|(cell, _)| {
            bytes += ROW_BYTES + 2 * (cell.model.as_str().len() + cell.tier.as_str().len());
            bytes <= REPORT_BYTES_MAX
        });
        let rows = fitting.map(|(cell, counted)| UsageRow {
            model: cell.model.clone(),
            tier: cell.tier.clone(),
            offered: counted.offered,
            admitted: counted.admitted,
            refused_limit: counted.refused_limit,
            refused_capacity: counted.refused_capacity,
            refused_share: counted.refused_share,
            refused_tier: counted.refused_tier,
        });
        UsageReport {
            schema: SCHEMA,
            node: self.node.clone(),
            instance,
            uptime_ms: u64::try_from(now.since(started).as_millis()).unwrap_or(u64::MAX),
            applied: registry.held.as_ref().map(crate::wire::Held::stamp),
            nack: None,
            rows: rows.collect(),
            pools,
            providers: Default::default(),
        }
    }
}

fn pools(registry: &Registry) -> impl Iterator<Item = (PoolId, PoolUsage)> {
    let usage = |pool: &PoolRules| (pool.cell.name.clone(), lock(&pool.cell.state).usage());
    registry.pools().take(REPORT_ROWS_MAX).map(usage)
}
