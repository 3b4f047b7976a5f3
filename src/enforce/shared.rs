//! What every part of a node sees: the cell, the counts, and the table kept on disk.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::task::spawn_blocking;

use crate::enforce::cell::Cell;
use crate::enforce::client::entropy;
use crate::enforce::config::NodeConfig;
use crate::enforce::follow::Store;
use crate::enforce::limiter::Limiter;
use crate::enforce::metrics::Counts;
use crate::unit::{Instant, NodeId, SystemClock};
use crate::wire::{LimitTable, Offer, TableError, UsageReport};

/// Where the node's clock starts: far above any table's validity, so that a table from disk can
/// be older than the process.
const CLOCK_START: Instant = Instant(1 << 60);

/// What every part of a node sees.
pub struct Shared {
    pub node: NodeId,
    pub cell: Arc<Cell>,
    pub count: Counts,
    started: Instant,
    instance: u64,
    store: Option<Store>,
}

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("state {path}: {error}")]
pub struct StateError {
    path: PathBuf,
    error: io::Error,
}

// === impl Shared ===

impl Shared {
    /// # Errors
    /// The state directory cannot be used.
    pub fn open(config: &NodeConfig) -> Result<Shared, StateError> {
        let clock = SystemClock::starting_at(CLOCK_START);
        let cell = Cell::new(Limiter::new(config.node.clone(), config.caps.keys), Box::new(clock));
        let store = match &config.state {
            Some(path) => Some(Store::open(path).map_err(|error| StateError { path: path.clone(), error })?),
            None => None,
        };
        let count = Counts::default();
        match store.as_ref().map(Store::load).transpose() {
            Ok(Some(Some(table))) => {
                let stamp = table.stamp;
                match cell.restore(table) {
                    Ok(()) => {
                        tracing::info!(?stamp, "serving the last table from disk until a controller answers")
                    }
                    Err(error) => tracing::error!(%error, "the table on disk is not used"),
                }
            }
            Ok(_) => {}
            Err(error) => {
                count.table_errors();
                tracing::error!(%error, "the table on disk is not used");
            }
        }
        let started = cell.now();
        Ok(Shared {
            node: config.node.clone(),
            cell: Arc::new(cell),
            count,
            started,
            // 53 bits: every JSON reader holds it exactly.
            instance: entropy() >> 11,
            store,
        })
    }

    pub fn report(&self) -> UsageReport {
        self.cell.with(|limiter, now| limiter.report(now, self.started, self.instance))
    }

    /// Puts a table in force and keeps it on disk.
    ///
    /// # Errors
    /// The table is not acceptable; the one in force stays.
    pub async fn offer(&self, table: LimitTable) -> Result<(), TableError> {
        match self.cell.offer(table)? {
            Offer::Applied(held) => {
                self.count.tables_applied();
                tracing::debug!(stamp = ?held.stamp(), "table in force");
                if let Some(store) = self.store.clone() {
                    let saved = spawn_blocking(move || store.save(&held.table)).await;
                    if let Err(error) = saved.map_err(io::Error::other).flatten() {
                        self.count.store_errors();
                        tracing::error!(%error, "the table in force could not be kept on disk");
                    }
                }
            }
            Offer::Renewed(_) => self.count.tables_renewed(),
            Offer::Stale => self.count.tables_stale(),
        }
        Ok(())
    }
}
