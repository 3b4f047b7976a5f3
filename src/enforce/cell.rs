//! The limiter behind its one lock, and the table in force for whoever only reads it.
//!
//! The lock is held for one pure call and never across an await or a system call.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;

use crate::enforce::limiter::Limiter;
use crate::unit::{Clock, Instant};
use crate::wire::{Held, LimitTable, Offer, TableError};

pub struct Cell {
    limiter: Mutex<Limiter>,
    held: ArcSwapOption<Held>,
    clock: Box<dyn Clock>,
}

// === impl Cell ===

impl Cell {
    pub fn new(limiter: Limiter, clock: Box<dyn Clock>) -> Cell {
        let held = ArcSwapOption::new(limiter.held().cloned().map(Arc::new));
        Cell { limiter: Mutex::new(limiter), held, clock }
    }

    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// The table in force, without the lock.
    pub fn held(&self) -> Option<Arc<Held>> {
        self.held.load_full()
    }

    /// One pure call under the lock.
    pub fn with<R>(&self, call: impl FnOnce(&mut Limiter, Instant) -> R) -> R {
        // A panic inside a pure call cannot leave a lock that must stop all traffic for good.
        let mut limiter = self.limiter.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        call(&mut limiter, now)
    }

    /// # Errors
    /// As [`Limiter::offer`]; what is held stays in force.
    pub fn offer(&self, table: LimitTable) -> Result<Offer, TableError> {
        self.offer_aged(table, Duration::ZERO)
    }

    /// For a table that was last renewed `age` ago.
    ///
    /// # Errors
    /// As [`Limiter::offer`]; what is held stays in force.
    pub fn offer_aged(&self, table: LimitTable, age: Duration) -> Result<Offer, TableError> {
        self.with(|limiter, now| {
            let offer = limiter.offer(table, now - age)?;
            self.held.store(limiter.held().cloned().map(Arc::new));
            Ok(offer)
        })
    }

    /// # Errors
    /// As [`Limiter::restore_aged`].
    pub fn restore(&self, table: LimitTable, age: Duration) -> Result<(), TableError> {
        self.with(|limiter, now| {
            limiter.restore_aged(table, age, now)?;
            self.held.store(limiter.held().cloned().map(Arc::new));
            Ok(())
        })
    }
}
