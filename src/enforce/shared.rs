//! What every part of a node sees: the cell, the counts, and the table kept on disk.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::task::spawn_blocking;

use crate::enforce::cell::Cell;
use crate::enforce::client::entropy;
use crate::enforce::config::NodeConfig;
use crate::enforce::jobs::Desk;
use crate::enforce::limiter::Limiter;
use crate::enforce::metrics::Counts;
use crate::enforce::provider::Providers;
use crate::enforce::store::{Store, StoreError};
use crate::ledger;
use crate::ledger::Ledger;
use crate::unit::{Instant, NodeId, SystemClock};
use crate::wire::{LimitTable, Nack, Offer, Stamp, TableError, UsageReport};

/// Where the node's clock starts: far above any table's validity, so that a table from disk can
/// be older than the process.
const CLOCK_START: Instant = Instant(1 << 60);

/// What every part of a node sees.
pub struct Shared {
    pub node: NodeId,
    pub cell: Arc<Cell>,
    pub count: Counts,
    /// Jobs that run, whatever became of the requests that made them.
    pub desk: Arc<Desk>,
    /// What was learned of the upstreams that policies list as providers.
    providers: Mutex<Providers>,
    started: Instant,
    instance: u64,
    store: Option<Store>,
    /// Budgets and credit.
    pub ledger: Arc<Ledger>,
    /// The last table offered, while it is not one that was taken.
    nack: ArcSwapOption<Nack>,
}

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("state {path}: {error}")]
pub struct StateError {
    path: PathBuf,
    error: StoreError,
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
        if let Some(store) = &store {
            restore(&cell, store, &count);
        }
        set_wall(&cell, config.wall.now());
        let started = cell.now();
        let cell = Arc::new(cell);
        let (desk, error) = Desk::open(Arc::clone(&cell), config.hook.clone(), config.state.clone());
        if let Some(error) = error {
            count.store_errors();
            tracing::error!(%error, "the jobs of the former process are not known");
        }
        let ledger = Ledger::open(ledger::Options {
            node: config.node.clone(),
            dir: config.state.clone(),
            records_max: config.caps.accounts,
            seed: entropy(),
            wall: config.wall.clone(),
        });
        if let Some(held) = cell.held() {
            see(&ledger, &held.table);
        }
        Ok(Shared {
            node: config.node.clone(),
            cell,
            desk,
            count,
            providers: Mutex::default(),
            started,
            // 53 bits: every JSON reader holds it exactly.
            instance: entropy() >> 11,
            store,
            ledger: Arc::new(ledger),
            nack: ArcSwapOption::empty(),
        })
    }

    pub fn report(&self) -> UsageReport {
        let report = self.cell.with(|limiter, now| limiter.report(now, self.started, self.instance));
        let providers = self.with_providers(|providers, now| providers.usage(now));
        UsageReport { nack: self.nack.load().as_deref().cloned(), providers, ..report }
    }

    /// One pure call under the providers' own lock.
    pub fn with_providers<R>(&self, call: impl FnOnce(&mut Providers, Instant) -> R) -> R {
        let mut providers = self.providers.lock().unwrap_or_else(PoisonError::into_inner);
        call(&mut providers, self.cell.now())
    }

    /// Puts a table in force that was last renewed `age` ago, and keeps it on disk.
    ///
    /// # Errors
    /// The table is not acceptable; the one in force stays, and the next report says why.
    pub async fn offer(&self, table: LimitTable, age: Duration) -> Result<(), TableError> {
        let stamp = table.stamp;
        // Before requests are judged by it: its nodes say which budgets are this one's.
        let newer = self.cell.held().is_none_or(|held| held.stamp() < stamp);
        if newer && table.validate().is_ok() {
            see(&self.ledger, &table);
        }
        let offer = self.cell.offer_aged(table, age);
        match offer.inspect_err(|error| self.refuse(Some(stamp), &error.to_string()))? {
            Offer::Applied(held) => {
                self.count.tables_applied();
                self.nack.store(None);
                tracing::debug!(?stamp, "table in force");
                self.keep(move |store| store.save(&held.table)).await;
            }
            Offer::Renewed(_) => {
                self.count.tables_renewed();
                self.nack.store(None);
                self.keep(|store| store.renew()).await;
            }
            Offer::Stale => self.count.tables_stale(),
        }
        Ok(())
    }

    /// Remembers for the next report that a table came and could not be taken.
    pub fn refuse(&self, stamp: Option<Stamp>, reason: &str) {
        self.count.tables_refused();
        self.nack.store(Some(Arc::new(Nack::new(stamp, reason))));
    }

    /// What the wall clock says by now, for limits whose minutes are its own.
    pub fn tell_time(&self) {
        set_wall(&self.cell, self.ledger.wall());
    }

    /// Lets another process have the state directory.
    pub fn release(&self) {
        self.ledger.stop();
        if let Some(store) = &self.store {
            store.release();
        }
    }

    async fn keep(&self, call: impl FnOnce(&Store) -> io::Result<()> + Send + 'static) {
        let Some(store) = self.store.clone() else { return };
        let kept = spawn_blocking(move || call(&store)).await;
        if let Err(error) = kept.map_err(io::Error::other).flatten() {
            self.count.store_errors();
            tracing::error!(%error, "the table in force could not be kept on disk");
        }
    }
}

/// The nodes among which accounts have their owners: all that any pool lists.
fn see(ledger: &Ledger, table: &LimitTable) {
    let nodes = table.pools.values().flat_map(|pool| pool.shares.keys().cloned()).collect();
    let unlisted = table.pools.values().map(|pool| pool.unlisted_share).min().unwrap_or(0);
    ledger.see(nodes, unlisted);
}

/// Milliseconds since 1970, by the clock that also tells days and months.
fn set_wall(cell: &Cell, unix_ms: u64) {
    cell.with(|limiter, now| limiter.set_wall(now, unix_ms));
}

fn restore(cell: &Cell, store: &Store, count: &Counts) {
    let kept = store.load();
    for error in kept.damaged {
        count.table_errors();
        tracing::error!(%error, "a table on disk is not used");
    }
    let Some(found) = kept.found else { return };
    let stamp = found.table.stamp;
    match cell.restore(found.table, found.age) {
        Ok(()) => tracing::info!(?stamp, "serving the last table from disk until a controller answers"),
        Err(error) => tracing::error!(%error, "the table on disk is not used"),
    }
}
