//! The wall clock as the ledger reads it: periods are told by it and by nothing else.

use std::fmt;
use std::sync::Arc;

use crate::ledger::period::UnixMs;
use crate::unit::unix_now;

/// Milliseconds of the wall clock; periods are told by it and by nothing else.
#[derive(Clone)]
pub struct Wall(Arc<dyn Fn() -> UnixMs + Send + Sync>);

// === impl Wall ===

impl Wall {
    /// The operating system's.
    pub fn system() -> Wall {
        Wall::told(|| UnixMs::try_from(unix_now().as_millis()).unwrap_or(UnixMs::MAX))
    }

    /// Somebody else's: of a simulation, or of a test.
    pub fn told(now: impl Fn() -> UnixMs + Send + Sync + 'static) -> Wall {
        Wall(Arc::new(now))
    }

    pub fn now(&self) -> UnixMs {
        (self.0)()
    }
}

impl fmt::Debug for Wall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wall")
    }
}
