//! The shell around the jobs: one lock, a clock, and the file that outlives the process.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::spawn_blocking;

use crate::bounds::JOBS_SWEEP_PAUSE;
use crate::bounds::JOBS_WRITTEN_WAIT;
use crate::enforce::cell::Cell;
use crate::enforce::jobs::draft::Draft;
use crate::enforce::jobs::hook::Hook;
use crate::enforce::jobs::kept;
use crate::enforce::jobs::sight::{Sight, Told};
use crate::enforce::jobs::table::{Nonce, Owner, Saved, Seen, Table};
use crate::enforce::ticket::{JobSlot, KeyId, Request};
use crate::unit::{Instant, ProductId, unix_now};
use crate::wire::Jobs;

pub struct Desk {
    cell: Arc<Cell>,
    books: Mutex<Books>,
    pub hook: Option<Hook>,
    dir: Option<PathBuf>,
    /// How often jobs have come or gone.
    changes: AtomicU64,
    /// Of those changes, how many are in the file.
    kept: watch::Sender<u64>,
    /// Somebody waits for the file.
    wanted: Notify,
    pub ended: AtomicU64,
    pub expired: AtomicU64,
}

#[derive(Default)]
struct Books {
    table: Table<JobSlot>,
    /// Of a former life; counted once there is a table that says in what.
    waiting: Vec<Saved>,
}

// === impl Desk ===

impl Desk {
    /// # Errors
    /// The file of running jobs cannot be used; the desk then begins without them.
    pub fn open(
        cell: Arc<Cell>,
        hook: Option<Hook>,
        dir: Option<PathBuf>,
    ) -> (Arc<Desk>, Option<std::io::Error>) {
        let (waiting, error) = match dir.as_deref().map(kept::load) {
            Some(Ok(waiting)) => (waiting, None),
            Some(Err(error)) => (Vec::new(), Some(error)),
            None => (Vec::new(), None),
        };
        let books = Mutex::new(Books { waiting, ..Books::default() });
        let (changes, kept, wanted, ended, expired) = Default::default();
        let desk = Desk { cell, books, hook, dir, changes, kept, wanted, ended, expired };
        desk.adopt();
        (Arc::new(desk), error)
    }

    /// No job more can be known here: none may be created.
    pub fn is_full(&self) -> bool {
        self.adopt();
        self.with(|books, _| books.table.is_full())
    }

    /// A job that is about to be created; it has its slot.
    pub fn draft(
        self: &Arc<Desk>,
        product: &ProductId,
        jobs: &Jobs,
        wanted: &Request<'_>,
        nonce: Nonce,
        slot: JobSlot,
    ) -> Draft {
        let owner = Owner {
            product: product.clone(),
            model: wanted.model.into(),
            tier: wanted.tier.into(),
            key: wanted.key,
            account: wanted.account,
            provider: None,
        };
        Draft::new(Arc::clone(self), slot, owner, Duration::from_millis(jobs.lease_ms), nonce)
    }

    pub(super) fn enter(&self, nonce: Nonce, owner: Owner, lease: Duration, slot: JobSlot) {
        let entered = self.with(|books, now| books.table.enter(now, nonce, owner, lease, slot));
        if let Err(slot) = entered {
            self.give_back(slot);
        }
        self.changed();
    }

    pub(super) fn give_back(&self, slot: JobSlot) {
        self.cell.with(|limiter, _| limiter.release_job(slot));
    }

    /// Whose job that is, if it is known here.
    pub fn find(&self, product: &ProductId, id: &str) -> Option<(Nonce, Owner)> {
        self.with(|books, _| books.table.find(product, id).map(|(nonce, owner)| (nonce, owner.clone())))
    }

    pub fn product(&self, nonce: Nonce) -> Option<ProductId> {
        self.with(|books, _| books.table.owner(nonce).map(|owner| owner.product.clone()))
    }

    /// # Errors
    /// How long the poll is too early.
    pub fn poll(&self, nonce: Nonce, key: KeyId, jobs: &Jobs) -> Result<(), Duration> {
        let Some(polls) = jobs.polls.finite() else { return Ok(()) };
        // No polls at all are allowed: one a lease is then the least harm.
        let pause = match polls {
            0 => Duration::from_millis(jobs.lease_ms),
            polls => Duration::from_secs(60) / u32::try_from(polls).unwrap_or(u32::MAX),
        };
        self.with(|books, now| books.table.poll(now, nonce, key, pause))
    }

    /// What an answer or a webhook said of a job.
    pub fn hear(&self, nonce: Nonce, sight: Sight, told: &Told) {
        let over = self.with(|books, now| {
            if let (Sight::Created, Some(id)) = (sight, &told.id)
                && let Some(twice) = books.table.name(nonce, id)
            {
                return Some(twice);
            }
            let seen = match (sight, told.seen) {
                (_, Some(seen)) => seen,
                (Sight::Cancelled, None) => Seen::Ended,
                (_, None) => return None,
            };
            books.table.see(now, nonce, told.id.as_deref(), seen)
        });
        self.changed();
        self.end(over, &self.ended);
    }

    /// Ends a job by its id, whosever it is; how many there were.
    pub fn release(&self, id: &str) -> usize {
        let over = self.with(|books, _| books.table.leave_all(id));
        let count = over.len();
        self.end(over, &self.ended);
        count
    }

    pub fn running(&self) -> usize {
        self.with(|books, _| books.table.len())
    }

    /// Runs until dropped: ends leases and writes down what runs.
    pub async fn run(self: Arc<Desk>) {
        loop {
            let _ = tokio::time::timeout(JOBS_SWEEP_PAUSE, self.wanted.notified()).await;
            self.adopt();
            let over = self.with(|books, now| books.table.expire(now));
            self.end(over, &self.expired);
            self.keep().await;
        }
    }

    /// Resolves once all that has come or gone by now is on disk; where there is no place for that,
    /// or it takes too long, without it. Those who wait together are written together.
    pub async fn written(self: Arc<Desk>) {
        if self.dir.is_none() {
            return;
        }
        let (mut kept, changes) = (self.kept.subscribe(), self.changes.load(Ordering::SeqCst));
        self.wanted.notify_one();
        let written = kept.wait_for(|kept| *kept >= changes);
        if tokio::time::timeout(JOBS_WRITTEN_WAIT, written).await.is_err() {
            tracing::warn!("a job is told of that is not on disk yet");
        }
    }

    /// Writes down what runs, if that has changed.
    pub async fn keep(self: &Arc<Desk>) {
        let changes = self.changes.load(Ordering::SeqCst);
        let Some(dir) = self.dir.clone().filter(|_| *self.kept.borrow() < changes) else { return };
        let desk = Arc::clone(self);
        let kept = spawn_blocking(move || {
            let unix_ms = unix_ms();
            let jobs = desk.with(|books, now| {
                let mut jobs = books.table.save(now, unix_ms);
                jobs.extend(books.waiting.iter().cloned());
                jobs
            });
            kept::save(&dir, jobs)
        });
        match kept.await.map_err(std::io::Error::other).flatten() {
            Ok(()) => _ = self.kept.send_replace(changes),
            Err(error) => tracing::warn!(%error, "running jobs could not be kept on disk"),
        }
    }

    /// After the books.
    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
    }

    /// Counts the jobs of a former life as soon as a table says in what.
    fn adopt(&self) {
        if self.cell.held().is_none() {
            return;
        }
        self.with(|books, now| {
            let Books { table, waiting } = books;
            for saved in std::mem::take(waiting) {
                table.restore(now, unix_ms(), &saved, |owner| {
                    let (model, tier) = (owner.model.as_str(), owner.tier.as_str());
                    let wanted = Request { account: owner.account, ..Request::new(model, tier, owner.key) };
                    self.cell.with(|limiter, now| limiter.adopt_job(now, &Request { job: true, ..wanted }))
                });
            }
        });
    }

    fn end(&self, slots: impl IntoIterator<Item = JobSlot>, count: &AtomicU64) {
        for slot in slots {
            count.fetch_add(1, Ordering::Relaxed);
            self.changed();
            self.give_back(slot);
        }
    }

    fn with<R>(&self, call: impl FnOnce(&mut Books, Instant) -> R) -> R {
        let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        call(&mut books, self.cell.now())
    }
}

fn unix_ms() -> u64 {
    u64::try_from(unix_now().as_millis()).unwrap_or(u64::MAX)
}
