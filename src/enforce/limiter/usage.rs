//! What the limiter tells its controller.

use std::collections::BTreeMap;

use crate::bounds::NACK_BYTES_MAX;
use crate::bounds::REPORT_BYTES_MAX;
use crate::bounds::REPORT_ROWS_MAX;
use crate::unit::{Instant, ModelId, PoolId, TierId};
use crate::wire::table::SCHEMA;
use crate::wire::{PoolUsage, UsageReport, UsageRow, Work};

use super::Limiter;

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
        let names: BTreeMap<usize, &PoolId> = self.rows.pool_places().collect();
        let gone = PoolId::new("none");
        let asked = self.rows.iter().filter(|row| row.counted.offered.requests > 0);
        let counts = asked.take(REPORT_ROWS_MAX).map(|row| RowCounts {
            pool: row.rules.and_then(|rules| names.get(&rules.pool).copied()).unwrap_or(&gone).clone(),
            model: row.model.clone(),
            tier: row.tier.clone(),
            offered: row.counted.offered,
            refused_limit: row.counted.refused_limit,
            refused_capacity: row.counted.refused_capacity,
            settled_work: row.settled_work,
        });
        counts.collect()
    }

    pub fn pool_counts(&self) -> Vec<(PoolId, PoolUsage)> {
        let pools = self.rows.pools().take(REPORT_ROWS_MAX);
        pools.map(|(name, pool)| (name.clone(), pool.usage())).collect()
    }

    /// Cumulative counters since `started`. Rows nobody asked for are left out, and what would
    /// not fit a report is.
    pub fn report(&self, now: Instant, started: Instant, instance: u64) -> UsageReport {
        let mut bytes = ROW_BYTES + 2 * NACK_BYTES_MAX;
        let pools = self.rows.pools().take(REPORT_ROWS_MAX).map(|(name, pool)| {
            bytes += ROW_BYTES + 2 * name.as_str().len();
            (name.clone(), pool.usage())
        });
        let pools = pools.collect();
        let asked = self.rows.iter().filter(|row| row.counted.offered.requests > 0);
        let fitting = asked.take(REPORT_ROWS_MAX).take_while(|row| {
            bytes += ROW_BYTES + 2 * (row.model.as_str().len() + row.tier.as_str().len());
            bytes <= REPORT_BYTES_MAX
        });
        let rows = fitting.map(|row| UsageRow {
            model: row.model.clone(),
            tier: row.tier.clone(),
            offered: row.counted.offered,
            admitted: row.counted.admitted,
            refused_limit: row.counted.refused_limit,
            refused_capacity: row.counted.refused_capacity,
        });
        UsageReport {
            schema: SCHEMA,
            node: self.node.clone(),
            instance,
            uptime_ms: u64::try_from(now.since(started).as_millis()).unwrap_or(u64::MAX),
            applied: self.held.as_ref().map(crate::wire::Held::stamp),
            nack: None,
            rows: rows.collect(),
            pools,
            providers: Default::default(),
        }
    }
}
