//! What systemd is told: ready, alive, stopping. Without a service manager nothing is said.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;

/// How often a loop shows that it turns.
const BEAT: Duration = Duration::from_millis(250);

/// Fed by the loop that must not hang; when it is not, the service manager starts the process anew.
#[derive(Debug)]
pub struct Watchdog(Option<tokio::time::Interval>);

/// Shows that a loop turns.
#[derive(Clone, Debug, Default)]
pub struct Beat(Arc<AtomicU64>);

pub fn ready() {
    say(&NotifyState::Ready);
}

pub fn stopping() {
    say(&NotifyState::Stopping);
}

fn say(state: &NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(std::slice::from_ref(state)) {
        tracing::warn!(%error, %state, "the service manager could not be told");
    }
}

// === impl Watchdog ===

impl Watchdog {
    /// As often as the service manager's `WatchdogSec` needs; never, where it has none.
    pub fn from_env() -> Watchdog {
        Watchdog(sd_notify::watchdog_enabled().map(|every| {
            let mut beats = tokio::time::interval((every / 3).max(Duration::from_millis(1)));
            beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            beats
        }))
    }

    /// Whether anybody waits to be fed.
    pub fn is_wanted(&self) -> bool {
        self.0.is_some()
    }

    /// Resolves when it should be fed again.
    pub async fn hungry(&mut self) {
        match &mut self.0 {
            Some(beats) => drop(beats.tick().await),
            None => std::future::pending().await,
        }
    }

    pub fn feed(&self) {
        say(&NotifyState::Watchdog);
    }

    /// Feeds while every one of `loops` turns and `alive` returns; for a process of many loops.
    pub async fn feed_while(mut self, loops: Vec<Beat>, alive: impl Fn()) {
        let mut seen: Vec<u64> = vec![0; loops.len()];
        loop {
            self.hungry().await;
            alive();
            let now: Vec<u64> = loops.iter().map(|beat| beat.0.load(Ordering::Relaxed)).collect();
            if seen.iter().zip(&now).all(|(seen, now)| seen < now) {
                self.feed();
                seen = now;
            }
        }
    }
}

// === impl Beat ===

impl Beat {
    /// For the loop's `select!`, each time it waits.
    pub async fn due(&self) {
        tokio::time::sleep(BEAT).await;
    }

    /// The loop has come round.
    pub fn turned(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}
