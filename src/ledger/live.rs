//! The ledger of a running node: records in memory, the thread that writes them, and who may fill
//! which part of a budget.
//!
//! It opens, or it says why not and stays closed: what it cannot be asked about is not admitted.

mod grow;
mod places;
mod wall;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use arc_swap::ArcSwapOption;
use tokio::sync::watch;

use crate::bounds::LEDGER_ROOM_WAIT;
use crate::bounds::LEDGER_ZONES_MAX;
use crate::ledger::book::Asked;
use crate::ledger::book::Book;
use crate::ledger::book::Denied;
use crate::ledger::book::PeriodUsage;
use crate::ledger::book::Reserved;
use crate::ledger::period::Kind;
use crate::ledger::period::Periods;
use crate::ledger::period::UnixMs;
use crate::ledger::period::Zone;
use crate::ledger::queue::Queue;
use crate::ledger::record::Amount;
use crate::ledger::record::Holder;
use crate::ledger::record::Id;
use crate::ledger::record::Record;
use crate::ledger::share::Lists;
use crate::ledger::share::Part;
use crate::ledger::store::Store;
use crate::ledger::writer::Committed;
use crate::ledger::writer::Counts;
use crate::ledger::writer::State;
use crate::ledger::writer::Writer;
use crate::unit::NodeId;
use crate::unit::SystemClock;

pub use wall::Wall;

/// Locks that requests of different accounts take.
const SHARDS: usize = 16;
/// Lists of nodes are kept on disk at least this often while they do not change.
const KEPT_EVERY_MS: u64 = 20_000;

/// Between two looks whether there is room in memory.
const PAUSE: Duration = Duration::from_millis(2);

pub(super) type Shards = [Mutex<Book>; SHARDS];

pub struct Options {
    pub node: NodeId,
    /// Where the ledger is kept; without a place it is closed.
    pub dir: Option<PathBuf>,
    /// Most accounts and keys in memory.
    pub records_max: usize,
    /// Numbers a new ledger.
    pub seed: u64,
    pub wall: Wall,
}

pub struct Ledger {
    node: NodeId,
    shards: Arc<Shards>,
    queue: Arc<Queue>,
    store: Arc<ArcSwapOption<Store>>,
    state: Arc<ArcSwap<State>>,
    committed: watch::Receiver<Committed>,
    counts: Arc<Counts>,
    wall: Wall,
    zones: Mutex<BTreeMap<String, (Zone, Periods)>>,
    listed: Mutex<Listed>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// The nodes of the table in force, and all before it.
#[derive(Debug, Default)]
struct Listed {
    nodes: BTreeSet<NodeId>,
    unlisted_ppm: u32,
    lists: Lists,
    /// By this process: what it saw is in force until it sees another.
    seen: bool,
    kept: UnixMs,
}

/// Records that stay in memory for as long as this lives.
pub struct Pinned {
    shards: Arc<Shards>,
    holders: Vec<Holder>,
}

/// Of the three kinds of budget that an account has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    pub day: Part,
    pub month: Part,
    pub credit: Part,
}

/// Why nothing was reserved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    Denied(Denied),
    /// It cannot be asked: the reason.
    Closed(String),
}

/// An entry that is on its way to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent(u64);

/// It never got there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the ledger was closed before it was written")]
pub struct Lost;

/// The book of an account and of its keys.
pub(super) fn shard<'a>(shards: &'a Shards, account: &Id) -> MutexGuard<'a, Book> {
    let ([byte, ..], [first, ..]) = (account, shards);
    let book = shards.get(usize::from(*byte) % SHARDS).unwrap_or(first);
    // A panic inside a pure call cannot leave a lock that must stop all traffic for good.
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Ledger ===

impl Ledger {
    /// Reads what there is, settles what was in flight, and begins to write. Waits for the disk.
    pub fn open(options: Options) -> Ledger {
        let per_shard = options.records_max.div_ceil(SHARDS);
        let shards: Arc<Shards> = Arc::new(std::array::from_fn(|_| Mutex::new(Book::new(per_shard))));
        let counts = Arc::new(Counts::default());
        let found = match &options.dir {
            Some(dir) => Store::open(dir, options.seed).map_err(|error| error.to_string()),
            None => Err("there is no `state` directory to keep it in".to_owned()),
        };
        let (state, store, seq, request, lists) = match found {
            Ok(found) => {
                counts.recovered.store(u64::try_from(found.settled).unwrap_or(u64::MAX), Ordering::Relaxed);
                // No request of an earlier life has such a number: 2^40 requests between two starts.
                let request = found.lives.checked_shl(40).unwrap_or(u64::MAX);
                tracing::info!(entries = found.seq, settled = found.settled, "the ledger is open");
                (State::Open, Some(Arc::new(found.store)), found.seq, request, found.lists)
            }
            Err(reason) => {
                if options.dir.is_some() {
                    tracing::error!(%reason, "the ledger cannot be used: hard budgets are closed");
                }
                (State::Closed(reason), None, 0, 0, Lists::default())
            }
        };
        let (sender, committed) = watch::channel(Committed { seq, over: store.is_none() });
        let ledger = Ledger {
            node: options.node,
            shards,
            queue: Arc::new(Queue::new(seq, request)),
            store: Arc::new(ArcSwapOption::new(store)),
            state: Arc::new(ArcSwap::from_pointee(state)),
            committed,
            counts,
            wall: options.wall,
            zones: Mutex::default(),
            listed: Mutex::new(Listed { lists, ..Listed::default() }),
            writer: Mutex::default(),
        };
        match options.dir.filter(|_| ledger.store.load().is_some()) {
            Some(dir) => ledger.begin(dir, sender),
            None => ledger.queue.close(),
        }
        ledger
    }

    fn begin(&self, dir: PathBuf, committed: watch::Sender<Committed>) {
        let writer = Writer {
            dir,
            store: Arc::clone(&self.store),
            queue: Arc::clone(&self.queue),
            shards: Arc::clone(&self.shards),
            state: Arc::clone(&self.state),
            committed,
            counts: Arc::clone(&self.counts),
            wall: self.wall.clone(),
            clock: SystemClock::starting_at(crate::unit::Instant::ZERO),
        };
        let spawned = std::thread::Builder::new().name("ledger".to_owned()).spawn(move || writer.run());
        match spawned {
            Ok(thread) => {
                *self.writer.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
            }
            Err(error) => {
                tracing::error!(%error, "the ledger has no thread to write: hard budgets are closed");
                self.queue.close();
                self.state.store(Arc::new(State::Closed(error.to_string())));
            }
        }
    }

    pub fn state(&self) -> Arc<State> {
        self.state.load_full()
    }

    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Entries that wait for the disk.
    pub fn waiting(&self) -> usize {
        self.queue.lock().waiting()
    }

    /// Records in memory.
    pub fn records(&self) -> usize {
        let shards = self.shards.iter();
        shards.map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }

    pub fn wall(&self) -> UnixMs {
        self.wall.now()
    }

    /// Keeps records in memory, reading those that are not there from the disk.
    ///
    /// # Errors
    /// They cannot be read, or there is no room.
    pub async fn pin(self: &Arc<Self>, holders: Vec<Holder>) -> Result<Pinned, Refused> {
        if let Some(pinned) = self.pin_in_memory(&holders) {
            return Ok(pinned);
        }
        let ledger = Arc::clone(self);
        let pinned = tokio::task::spawn_blocking(move || ledger.pin_now(holders)).await;
        pinned.unwrap_or_else(|error| Err(self.closed(error.to_string())))
    }

    /// As [`Ledger::pin`], waiting for the disk.
    ///
    /// # Errors
    /// As there.
    pub fn pin_now(&self, holders: Vec<Holder>) -> Result<Pinned, Refused> {
        // What is read may be old by the time it is here; then it is read again. Room is made by
        // writing records out.
        let mut left = LEDGER_ROOM_WAIT;
        for _ in 0..1_000 {
            if let Some(pinned) = self.pin_in_memory(&holders) {
                return Ok(pinned);
            }
            let Some(store) = self.store.load_full() else {
                return Err(self.closed(self.reason()));
            };
            for holder in &holders {
                let (known, forgotten) = {
                    let book = shard(&self.shards, &holder.account);
                    (book.record(holder).is_some(), book.forgotten())
                };
                if known {
                    continue;
                }
                let record: Record = store.read(holder).map_err(|error| self.closed(error.to_string()))?;
                let mut book = shard(&self.shards, &holder.account);
                if book.forgotten() == forgotten
                    && let Err(full) = book.take_in(*holder, record)
                {
                    drop(book);
                    left = left.checked_sub(PAUSE).ok_or_else(|| self.closed(full.to_string()))?;
                    self.queue.press();
                    std::thread::sleep(PAUSE);
                }
            }
        }
        Err(self.closed("its accounts change too fast to be read".to_owned()))
    }

    fn pin_in_memory(&self, holders: &[Holder]) -> Option<Pinned> {
        let mut pinned = Pinned { shards: Arc::clone(&self.shards), holders: Vec::new() };
        for holder in holders {
            shard(&self.shards, &holder.account).pin(holder).ok()?;
            pinned.holders.push(*holder);
        }
        Some(pinned)
    }

    /// Tests every budget and reserves in all of them, or in none. Does not wait.
    ///
    /// # Errors
    /// What there is not enough of, or that the ledger cannot be asked.
    pub fn reserve(&self, asked: &Asked<'_>) -> Result<Reserved, Refused> {
        if **self.state.load() != State::Open {
            return Err(self.closed(self.reason()));
        }
        let mut book = shard(&self.shards, &asked.account);
        let booked = book.test(asked).map_err(Refused::Denied)?;
        let Some(booked) = booked else {
            return Err(self.closed("the account is not in memory".to_owned()));
        };
        let mut queue = self.queue.lock();
        if queue.is_full() {
            return Err(self.closed("the disk is too far behind".to_owned()));
        }
        let request = queue.next_request();
        let reserved = book.reserve(asked, booked, request, &mut |entry| queue.push(entry));
        if book.is_pressed() {
            queue.press();
        }
        drop(queue);
        self.queue.wake();
        Ok(reserved)
    }

    /// Replaces what was reserved by what was used. Does not wait; [`Ledger::settled`] does.
    pub fn settle(&self, reserved: Reserved, used: Amount) -> Sent {
        let mut book = shard(&self.shards, reserved.account());
        let mut queue = self.queue.lock();
        book.settle(reserved, used, &mut |entry| queue.push(entry));
        let sent = Sent(queue.seq());
        drop(queue);
        self.queue.wake();
        sent
    }

    /// Resolves once a settle is on disk: from then on it survives this process.
    ///
    /// # Errors
    /// The ledger was closed before.
    pub async fn settled(&self, sent: Sent) -> Result<(), Lost> {
        let mut committed = self.committed.clone();
        match committed.wait_for(|committed| committed.seq >= sent.0 || committed.over).await {
            Ok(committed) if committed.seq >= sent.0 => Ok(()),
            _ => Err(Lost),
        }
    }

    /// An account's standing, where it is in memory.
    pub fn usage(&self, asked: &Asked<'_>) -> Vec<PeriodUsage> {
        shard(&self.shards, &asked.account).usage(asked)
    }

    /// Micro-dollars of all time, where the record is in memory.
    pub fn spent(&self, holder: &Holder) -> Option<u64> {
        shard(&self.shards, &holder.account).record(holder).map(Record::spent)
    }

    /// Writes what waits and lets another process have the ledger.
    pub fn stop(&self) {
        self.queue.stop();
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Err(_)) = writer.map(JoinHandle::join) {
            tracing::error!("the ledger's thread panicked");
        }
    }

    fn closed(&self, reason: String) -> Refused {
        self.counts.closed.fetch_add(1, Ordering::Relaxed);
        Refused::Closed(reason)
    }

    fn reason(&self) -> String {
        match &**self.state.load() {
            State::Open => "it is being opened".to_owned(),
            State::Failing(reason) | State::Closed(reason) => reason.clone(),
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.stop();
    }
}

// === impl Pinned ===

impl Drop for Pinned {
    fn drop(&mut self) {
        for holder in &self.holders {
            shard(&self.shards, &holder.account).unpin(holder);
        }
    }
}
