//! What the limiter tells its controller.

use crate::bounds::REPORT_BYTES_MAX;
use crate::bounds::REPORT_ROWS_MAX;
use crate::unit::Instant;
use crate::wire::table::SCHEMA;
use crate::wire::{UsageReport, UsageRow};

use super::Limiter;

/// Bytes of one row's JSON besides its names, which may double when escaped.
const ROW_BYTES: usize = 400;

// === impl Limiter ===

impl Limiter {
    /// Cumulative counters since `started`. Rows nobody asked for are left out, and what would
    /// not fit a report is.
    pub fn report(&self, now: Instant, started: Instant, instance: u64) -> UsageReport {
        let mut bytes = 0;
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
            rows: rows.collect(),
            pools,
        }
    }
}
