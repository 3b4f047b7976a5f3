//! Entries on their way to the disk: numbered as they come, taken all at once.

use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use crate::bounds::LEDGER_QUEUE_MAX;
use crate::ledger::record::Entry;
use crate::ledger::share::Lists;

#[derive(Debug)]
pub struct Queue {
    pending: Mutex<Pending>,
    wake: Condvar,
}

/// The queue, for as long as its lock is held: what is pushed within is one batch.
#[derive(Debug)]
pub struct Pending {
    entries: Vec<Entry>,
    /// The last entry's number.
    seq: u64,
    /// The last request's.
    request: u64,
    lists: Option<Lists>,
    /// Nothing is written any more.
    closed: bool,
    /// Records in memory have to be written, so that others find room.
    pressed: bool,
    stop: bool,
}

/// What has to be written.
#[derive(Debug, Default)]
pub struct Work {
    pub entries: Vec<Entry>,
    pub lists: Option<Lists>,
    pub pressed: bool,
    pub stop: bool,
}

// === impl Queue ===

impl Queue {
    /// Goes on after entry `seq`; requests are numbered above `request`.
    pub fn new(seq: u64, request: u64) -> Queue {
        let pending = Pending {
            entries: Vec::new(),
            seq,
            request,
            lists: None,
            closed: false,
            pressed: false,
            stop: false,
        };
        Queue { pending: Mutex::new(pending), wake: Condvar::new() }
    }

    pub fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called after a push, once the lock is free.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    pub fn keep(&self, lists: Lists) {
        self.lock().lists = Some(lists);
        self.wake();
    }

    /// From here on entries are dropped: there is nowhere to write them.
    pub fn close(&self) {
        let mut pending = self.lock();
        pending.closed = true;
        pending.entries = Vec::new();
    }

    /// Has records written out at once.
    pub fn press(&self) {
        self.lock().pressed = true;
        self.wake();
    }

    /// Lets the writer end once everything is written.
    pub fn stop(&self) {
        self.lock().stop = true;
        self.wake();
    }

    pub fn is_stopping(&self) -> bool {
        self.lock().stop
    }

    /// Lets time pass, unless it is to stop.
    pub fn pause(&self, at_most: Duration) {
        let waited = self.wake.wait_timeout_while(self.lock(), at_most, |pending| !pending.stop);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits for work.
    pub fn take(&self) -> Work {
        let idle = |pending: &mut Pending| {
            pending.entries.is_empty() && pending.lists.is_none() && !pending.pressed && !pending.stop
        };
        let mut pending = self.wake.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
        Work {
            entries: std::mem::take(&mut pending.entries),
            lists: pending.lists.take(),
            pressed: std::mem::take(&mut pending.pressed),
            stop: pending.stop,
        }
    }

    /// Adds what has come since, without waiting.
    pub fn take_more(&self, work: &mut Work) {
        work.entries.append(&mut self.lock().entries);
    }
}

// === impl Pending ===

impl Pending {
    /// Numbers an entry and appends it; returns it for its record.
    pub fn push(&mut self, mut entry: Entry) -> Entry {
        self.seq = self.seq.saturating_add(1);
        entry.seq = self.seq;
        if !self.closed {
            self.entries.push(entry.clone());
        }
        entry
    }

    pub fn press(&mut self) {
        self.pressed = true;
    }

    pub fn next_request(&mut self) -> u64 {
        self.request = self.request.saturating_add(1);
        self.request
    }

    /// The last entry's number.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    pub fn waiting(&self) -> usize {
        self.entries.len()
    }

    /// The disk is so far behind that nothing more is reserved; what is in flight is still settled.
    pub fn is_full(&self) -> bool {
        self.entries.len() >= LEDGER_QUEUE_MAX
    }
}
