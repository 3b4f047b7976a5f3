//! The locks of the limiter: each is held for one pure call, taken in the order shard, counts,
//! tier, model, pool, and never across an await or a system call. Under the feature `model` they are shuttle's,
//! which tries orders of events that a machine rarely shows.

#[cfg(feature = "model")]
pub use shuttle::sync::{Mutex, MutexGuard};
#[cfg(not(feature = "model"))]
pub use std::sync::{Mutex, MutexGuard};

/// A panic inside a pure call cannot leave a lock that must stop all traffic for good.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
