//! The wall clock as the ledger reads it: periods are told by it and by nothing else.

use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use crate::ledger::period::UnixMs;
use crate::ledger::steady::News;
use crate::ledger::steady::Steady;
use crate::unit::Clock;
use crate::unit::Instant;
use crate::unit::SystemClock;
use crate::unit::unix_now;

/// Milliseconds of the wall clock; periods are told by it and by nothing else.
#[derive(Clone)]
pub struct Wall(Arc<dyn Fn() -> UnixMs + Send + Sync>);

// === impl Wall ===

impl Wall {
    /// The operating system's, whose steps are doubted for a while.
    pub fn system() -> Wall {
        let clock = SystemClock::starting_at(Instant::ZERO);
        let steady = Mutex::new(Steady::default());
        Wall::told(move || {
            let wall = UnixMs::try_from(unix_now().as_millis()).unwrap_or(UnixMs::MAX);
            let mut steady = steady.lock().unwrap_or_else(PoisonError::into_inner);
            let (now, news) = steady.read(clock.now(), wall);
            match news {
                Some(News::Doubted(by_ms)) => {
                    tracing::warn!(
                        by_ms,
                        "the wall clock stepped: days and months of budgets go on without the step for ten minutes"
                    );
                }
                Some(News::Believed) => tracing::info!("the wall clock is believed again"),
                None => {}
            }
            now
        })
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
