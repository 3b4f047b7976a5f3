//! The one thread that writes: it takes all that waits, commits it, says so, and begins again.
//!
//! While a commit is under way the next batch gathers, so batches grow with the load and a commit
//! is paid once for all of it. Now and then records are written beside the entries, a slice with
//! each commit, until the journal before the round began can be removed.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use arc_swap::ArcSwap;
use arc_swap::ArcSwapOption;
use tokio::sync::watch;

use crate::bounds::LEDGER_JOURNAL_ENTRIES_MAX;
use crate::bounds::LEDGER_RETRY_WAIT;
use crate::bounds::LEDGER_SLICE_MAX;
use crate::ledger::book::Book;
use crate::ledger::book::Snapshot;
use crate::ledger::live::Shards;
use crate::ledger::live::Wall;
use crate::ledger::period::Zone;
use crate::ledger::queue::Queue;
use crate::ledger::queue::Work;
use crate::ledger::store::Commit;
use crate::ledger::store::Store;
use crate::ledger::store::StoreError;
use crate::unit::Clock;
use crate::unit::SystemClock;

/// Whether the ledger may be relied on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    Open,
    /// The disk fails, and is tried again.
    Failing(String),
    /// Somebody has to look at it; it is not tried again.
    Closed(String),
}

/// What the metrics show.
#[derive(Debug, Default)]
pub struct Counts {
    pub commits: AtomicU64,
    pub entries: AtomicU64,
    pub commit_micros: AtomicU64,
    pub errors: AtomicU64,
    /// Requests refused because the ledger could not be asked.
    pub closed: AtomicU64,
    /// Requests of former lives that were settled as reserved.
    pub recovered: AtomicU64,
}

/// The last entry on disk, and whether it stays the last.
#[derive(Clone, Copy, Debug)]
pub struct Committed {
    pub seq: u64,
    pub over: bool,
}

pub struct Writer {
    pub dir: PathBuf,
    pub store: Arc<ArcSwapOption<Store>>,
    pub queue: Arc<Queue>,
    pub shards: Arc<Shards>,
    pub state: Arc<ArcSwap<State>>,
    pub committed: watch::Sender<Committed>,
    pub counts: Arc<Counts>,
    pub wall: Wall,
    /// For how long a commit takes.
    pub clock: SystemClock,
}

/// Writing out the records that changed.
#[derive(Debug)]
struct Round {
    /// Entries up to this one will be in the records.
    upto: u64,
    shard: usize,
}

// === impl Writer ===

impl Writer {
    pub fn run(self) {
        let mut journal = 0_usize;
        let mut round: Option<Round> = None;
        loop {
            let mut work = self.queue.take();
            if round.is_none() && (work.pressed || journal >= LEDGER_JOURNAL_ENTRIES_MAX) {
                journal = 0;
                round = Some(self.begin());
            }
            let snapshots = round.as_mut().map(|round| self.slice(round)).unwrap_or_default();
            // Records show what was booked up to this moment. Their entries go in the same commit: a
            // kill after it would else leave an account with a request that its key knows nothing of.
            self.queue.take_more(&mut work);
            journal = journal.saturating_add(work.entries.len());
            let through = round.as_ref().is_some_and(|round| round.shard >= self.shards.len());
            let trim = round.take_if(|_| through).map(|round| round.upto);
            if !self.write(&work, &snapshots, trim) {
                break;
            }
            for Snapshot { holder, seq, .. } in &snapshots {
                self.shard(holder.account).written(holder, *seq);
            }
            if work.stop && work.entries.is_empty() {
                break;
            }
            // The next slice has not to wait for the next entry.
            if round.is_some() {
                self.queue.press();
            }
        }
        self.store.store(None);
        self.committed.send_modify(|committed| committed.over = true);
    }

    fn begin(&self) -> Round {
        for shard in self.shards.iter() {
            shard.lock().unwrap_or_else(PoisonError::into_inner).begin_round();
        }
        Round { upto: self.committed.borrow().seq, shard: 0 }
    }

    fn slice(&self, round: &mut Round) -> Vec<Snapshot> {
        let now = Zone::utc().periods(self.wall.now());
        let mut snapshots = Vec::new();
        while let Some(shard) = self.shards.get(round.shard)
            && snapshots.len() < LEDGER_SLICE_MAX
        {
            let mut book = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let some = book.snapshots(LEDGER_SLICE_MAX - snapshots.len(), now.day, now.month);
            if some.is_empty() {
                round.shard += 1;
            }
            snapshots.extend(some);
        }
        snapshots
    }

    fn shard(&self, account: [u8; 32]) -> MutexGuard<'_, Book> {
        super::live::shard(&self.shards, &account)
    }

    /// Until it is on disk, whatever that takes; false when it never will be.
    fn write(&self, work: &Work, snapshots: &[Snapshot], trim: Option<u64>) -> bool {
        let commit = Commit { entries: &work.entries, snapshots, trim, lists: work.lists.as_ref() };
        let last = work.entries.last().map(|entry| entry.seq);
        if last.is_none() && snapshots.is_empty() && trim.is_none() && work.lists.is_none() {
            return true;
        }
        loop {
            match self.attempt(&commit, last) {
                Ok(()) => break,
                Err(error) => {
                    self.counts.errors.fetch_add(1, Ordering::Relaxed);
                    self.store.store(None);
                    let state = self.state.load_full();
                    if !error.passes() {
                        tracing::error!(%error, "the ledger is not used any more: hard budgets are closed");
                        self.queue.close();
                        self.state.store(Arc::new(State::Closed(error.to_string())));
                        return false;
                    }
                    if *state == State::Open {
                        tracing::error!(%error, "the ledger cannot be written: hard budgets are closed until it can");
                    }
                    self.state.store(Arc::new(State::Failing(error.to_string())));
                    if self.queue.is_stopping() {
                        return false;
                    }
                    self.queue.pause(LEDGER_RETRY_WAIT);
                }
            }
        }
        if let Some(last) = last {
            self.committed.send_modify(|committed| committed.seq = last);
        }
        true
    }

    fn attempt(&self, commit: &Commit<'_>, last: Option<u64>) -> Result<(), StoreError> {
        let store = match self.store.load_full() {
            Some(store) => store,
            None => {
                let store = Arc::new(Store::attach(&self.dir)?);
                // What failed may have reached the disk all the same.
                if last.is_some() && Some(store.committed()?) >= last {
                    self.reopened(store);
                    return Ok(());
                }
                store.commit(commit)?;
                self.reopened(store);
                return Ok(());
            }
        };
        let begun = self.clock.now();
        store.commit(commit)?;
        let micros = u64::try_from(self.clock.now().since(begun).as_micros()).unwrap_or(u64::MAX);
        self.counts.commit_micros.fetch_add(micros, Ordering::Relaxed);
        self.counts.commits.fetch_add(1, Ordering::Relaxed);
        self.counts.entries.fetch_add(u64::try_from(commit.entries.len()).unwrap_or(0), Ordering::Relaxed);
        Ok(())
    }

    fn reopened(&self, store: Arc<Store>) {
        self.store.store(Some(store));
        self.state.store(Arc::new(State::Open));
        tracing::info!("the ledger is written again: hard budgets are open");
    }
}
