//! The limiter together with the clock it is asked by.

use std::sync::Arc;
use std::time::Duration;

use crate::enforce::limiter::Limiter;
use crate::unit::{Clock, Instant};
use crate::wire::{Held, LimitTable, Offer, TableError};

pub struct Cell {
    limiter: Limiter,
    clock: Box<dyn Clock>,
}

// === impl Cell ===

impl Cell {
    pub fn new(limiter: Limiter, clock: Box<dyn Clock>) -> Cell {
        Cell { limiter, clock }
    }

    pub fn now(&self) -> Instant {
        self.clock.now()
    }

    /// The table in force; takes no lock.
    pub fn held(&self) -> Option<Arc<Held>> {
        self.limiter.held()
    }

    /// One call of the limiter, at the clock's time.
    pub fn with<R>(&self, call: impl FnOnce(&Limiter, Instant) -> R) -> R {
        call(&self.limiter, self.clock.now())
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
        self.with(|limiter, now| limiter.offer(table, now - age))
    }

    /// # Errors
    /// As [`Limiter::restore_aged`].
    pub fn restore(&self, table: LimitTable, age: Duration) -> Result<(), TableError> {
        self.with(|limiter, now| limiter.restore_aged(table, age, now))
    }
}
