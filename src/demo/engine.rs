//! One living replica between its sockets and its batch: sequences in, tokens out, on time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};

use super::dialect::Dialect;
use super::page::Page;
use super::prompt::Size;
use crate::sim::batch::{Batch, Delivered, QueueFull, SequenceId, Shape};
use crate::unit::{Clock, Instant, SystemClock};

/// What every replica of a plant shares.
#[derive(Debug)]
pub struct Shared {
    pub clock: SystemClock,
    /// Work delivered by all replicas, ever.
    pub delivered: AtomicU64,
    /// The worst lateness of a step, microseconds.
    pub late_us: AtomicU64,
}

#[derive(Debug)]
pub struct Engine {
    shared: Arc<Shared>,
    shape: Shape,
    /// Rings when an idle batch got something to do.
    work: Notify,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    batch: Batch,
    page: Page,
    sinks: BTreeMap<SequenceId, mpsc::Sender<Instant>>,
    next_id: SequenceId,
}

/// A sequence as its client holds it: dropping it before the last token aborts the sequence.
#[derive(Debug)]
pub struct Sequence {
    engine: Arc<Engine>,
    id: SequenceId,
    pub arrived: Instant,
    /// One message a token. Closed early when the replica dies.
    pub tokens: mpsc::Receiver<Instant>,
}

// === impl Shared ===

impl Shared {
    pub fn late(&self) -> Duration {
        Duration::from_micros(self.late_us.load(Ordering::Relaxed))
    }

    fn count(&self, delivered: &Delivered, output_cost: u32) {
        let work = delivered.prompt_tokens + delivered.output_tokens * u64::from(output_cost);
        self.delivered.fetch_add(work, Ordering::Relaxed);
        let late = u64::try_from(delivered.late.as_micros()).unwrap_or(u64::MAX);
        self.late_us.fetch_max(late, Ordering::Relaxed);
    }
}

// === impl Engine ===

impl Engine {
    /// # Errors
    /// See [`Page::new`].
    pub fn new(shape: Shape, dialect: Dialect, shared: Arc<Shared>) -> prometheus::Result<Engine> {
        let inner =
            Inner { batch: Batch::new(shape), page: Page::new(dialect)?, sinks: BTreeMap::new(), next_id: 0 };
        Ok(Engine { shared, shape, work: Notify::new(), inner: Mutex::new(inner) })
    }

    /// Takes a request.
    ///
    /// # Errors
    /// [`QueueFull`].
    pub fn submit(self: &Arc<Self>, size: Size) -> Result<Sequence, QueueFull> {
        let now = self.shared.clock.now();
        let mut inner = self.lock();
        let id = inner.next_id;
        inner.next_id += 1;
        let idle = inner.batch.next_wake().is_none();
        inner.batch.submit(now, id, size.prompt, size.output)?;
        inner.page.submitted(id, size.prompt);
        // Room for every token, so that a slow reader never holds up the batch.
        let (sink, tokens) = mpsc::channel(size.output.max(1) as usize);
        inner.sinks.insert(id, sink);
        if idle {
            self.work.notify_one();
        }
        Ok(Sequence { engine: Arc::clone(self), id, arrived: now, tokens })
    }

    /// Ends steps when they are due, until dropped. Deadlines are absolute: a late wake does not
    /// move the ones after it.
    pub async fn run(self: Arc<Self>) {
        loop {
            let wake = self.lock().batch.next_wake();
            match wake {
                Some(at) => tokio::time::sleep(at.since(self.shared.clock.now())).await,
                None => self.work.notified().await,
            }
            self.step();
        }
    }

    /// # Errors
    /// See [`Page::text`].
    pub fn metrics(&self) -> prometheus::Result<Vec<u8>> {
        let inner = self.lock();
        inner.page.text(&inner.batch)
    }

    fn step(&self) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let now = self.shared.clock.now();
        let delivered = inner.batch.step(now);
        inner.page.stepped(&delivered, &inner.batch);
        self.shared.count(&delivered, self.shape.output_cost);
        for token in &delivered.tokens {
            if token.first {
                inner.page.first_token(now.since(token.arrived));
            }
            if let Some(sink) = inner.sinks.get(&token.id) {
                // Full is impossible, closed is a client that is just going away.
                let _ = sink.try_send(now);
            }
            if token.last {
                inner.sinks.remove(&token.id);
                inner.page.finished(token.id, "stop");
            }
        }
    }

    fn abort(&self, id: SequenceId) {
        let mut inner = self.lock();
        if inner.sinks.remove(&id).is_some() {
            inner.batch.abort(id);
            inner.page.finished(id, "abort");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing in a critical section leaves the batch half done.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Sequence ===

impl Drop for Sequence {
    fn drop(&mut self) {
        self.engine.abort(self.id);
    }
}
