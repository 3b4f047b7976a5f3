//! Tasks that may not die in silence: an end that nobody asked for is logged and counted, and the
//! task begins anew or the process ends, so that its service manager starts another.

mod failpoint;
mod notify;

use std::future::Future;
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};

use crate::bounds::TASK_RESTARTS_MAX;

pub use failpoint::failpoint;
pub use notify::{Beat, Watchdog, ready, stopping};

const BACKOFF: Duration = Duration::from_millis(100);
/// A task that lived so long is healthy: its next failure is the first of a row.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

/// Panics of this process, whatever they ended.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// The long-lived tasks of a daemon; dropping it aborts them.
#[derive(Debug, Default)]
pub struct Tasks(JoinSet<&'static str>);

// === panics ===

/// Has every panic counted, and logged instead of printed. Once, where a process begins.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        let thread = std::thread::current();
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, thread = thread.name(), reason = reason(panic), "a task panicked");
    }));
}

pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

fn reason<'a>(panic: &'a PanicHookInfo<'_>) -> &'a str {
    let payload = panic.payload();
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("(not a text)")
}

// === impl Tasks ===

impl Tasks {
    pub fn new() -> Tasks {
        Tasks::default()
    }

    /// A task whose end is the daemon's.
    pub fn vital<F>(&mut self, name: &'static str, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.0.spawn(async move {
            // In a task of its own, so that its panic is named.
            let mut inner = JoinSet::new();
            inner.spawn(async move {
                failpoint(name, "");
                task.await;
            });
            ended(name, inner.join_next().await);
            name
        });
    }

    /// A task that begins anew when it ends; its end is the daemon's only after [`TASK_RESTARTS_MAX`]
    /// failures in a row.
    pub fn restarted<F>(&mut self, name: &'static str, mut begin: impl FnMut() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.0.spawn(async move {
            let mut failures = 0;
            while failures < TASK_RESTARTS_MAX {
                let mut inner = JoinSet::new();
                let begun = begin();
                inner.spawn(async move {
                    failpoint(name, "");
                    begun.await;
                });
                let result = match tokio::time::timeout(HEALTHY_AFTER, inner.join_next()).await {
                    Ok(result) => result,
                    Err(_) => {
                        failures = 0;
                        inner.join_next().await
                    }
                };
                ended(name, result);
                tokio::time::sleep(BACKOFF * 2u32.pow(failures)).await;
                failures += 1;
            }
            name
        });
    }

    /// Resolves when a task has ended for good; never without tasks.
    pub async fn ended(&mut self) -> String {
        match self.0.join_next().await {
            Some(Ok(name)) => format!("its task `{name}` has ended"),
            Some(Err(error)) => format!("a supervisor broke: {error}"),
            None => std::future::pending().await,
        }
    }

    /// Waits until all have ended.
    pub async fn all_ended(&mut self) {
        while self.0.join_next().await.is_some() {}
    }

    pub fn abort_all(&mut self) {
        self.0.abort_all();
    }
}

fn ended(name: &str, result: Option<Result<(), JoinError>>) {
    match result {
        // Its panic is in the log already, with its place.
        Some(Err(error)) => tracing::error!(task = name, %error, "a task broke"),
        _ => tracing::debug!(task = name, "a task has ended"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn d09_a_task_that_panics_begins_anew_and_is_given_up_after_five_failures_in_a_row() {
        let begun = Arc::new(AtomicU64::new(0));
        let mut tasks = Tasks::new();
        let counter = Arc::clone(&begun);
        tasks.restarted("poll", move || {
            let turn = counter.fetch_add(1, Ordering::Relaxed);
            async move {
                // The fourth life is a long one.
                if turn == 3 {
                    tokio::time::sleep(HEALTHY_AFTER * 2).await;
                }
                panic!("on purpose");
            }
        });
        let ended = tokio::time::timeout(Duration::from_secs(600), tasks.ended()).await.unwrap();
        assert_eq!(ended, "its task `poll` has ended");
        assert_eq!(begun.load(Ordering::Relaxed), 4 + 4);
    }

    #[tokio::test]
    async fn d09_the_end_of_a_vital_task_is_told() {
        for panics in [false, true] {
            let mut tasks = Tasks::new();
            tasks.vital("accept", async move { assert!(!panics, "on purpose") });
            assert_eq!(tasks.ended().await, "its task `accept` has ended");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn dropping_the_tasks_ends_what_they_began() {
        let alive = Arc::new(());
        let (one, two) = (Arc::clone(&alive), Arc::clone(&alive));
        let mut tasks = Tasks::new();
        tasks.vital("one", async move {
            let _held = one;
            std::future::pending().await
        });
        tasks.restarted("two", move || {
            let held = Arc::clone(&two);
            async move {
                let _held = held;
                std::future::pending().await
            }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(Arc::strong_count(&alive) > 2);
        drop(tasks);
        while Arc::strong_count(&alive) > 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
