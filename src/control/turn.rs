//! The daemon's loop: observe, tick, make durable, announce, count. In this order: nothing is
//! announced that a crash could take back. A policy whose turn panics, or whose table no node would
//! take, goes into quarantine (`control/unfit.rs`).
//!
//! What becomes of a sealed table is told in `control/outlet.rs`.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::control::disk::Writer;
use crate::control::entry::Entry;
use crate::control::fence::fenced;
use crate::control::metrics::{Channel, Metrics, Seen, TABLE_ALARMS};
use crate::control::outlet::{Published, RunsKept, Sealed, Store};
use crate::control::reload::Loaded;
use crate::control::standing::Standing;
use crate::control::{Controller, State, Tick};
use crate::observe::Round;
use crate::observe::sources::Sources;
use crate::publish::board::Board;
use crate::supervise::{Watchdog, failpoint};
use crate::unit::{Clock, Instant, unix_now};
use crate::wire::TableError;

/// The loop's belongings.
pub struct Turns {
    pub controller: Controller,
    /// The policy that is stepped.
    pub in_force: Arc<Loaded>,
    /// The last policy under which a table was published.
    pub good: Option<Arc<Loaded>>,
    /// Where the loop began, until there is an entry to go back to.
    pub initial: State,
    pub standing: Arc<Standing>,
    /// The alarm that was said last.
    pub alarm: f64,
    pub clock: Arc<dyn Clock>,
    pub sources: Sources,
    pub board: Arc<Board>,
    pub metrics: Metrics,
    pub seen: Seen,
    pub accepted: watch::Receiver<Arc<Loaded>>,
    pub writer: Writer,
    pub store: Store,
    pub runs: RunsKept,
    /// Since when the policy is in force.
    pub policy_since: Instant,
    pub published: Published,
}

// === impl Turns ===

impl Turns {
    /// Turns until `stop`; what is begun is finished.
    ///
    /// # Errors
    /// Only when the loop cannot go on at all.
    pub async fn run(
        mut self,
        mut stop: watch::Receiver<bool>,
        mut watchdog: Watchdog,
    ) -> Result<(), String> {
        let mut period = self.controller.policy().interval;
        let mut turns = tokio::time::interval(period);
        turns.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                biased;
                () = asked(&mut stop) => break,
                written = self.store.written() => {
                    self.written(written?);
                    continue;
                }
                () = watchdog.hungry() => {
                    watchdog.feed();
                    continue;
                }
                _ = turns.tick() => self.turn().await?,
            }
            let wanted = self.controller.policy().interval;
            if wanted != period {
                period = wanted;
                turns = tokio::time::interval(period);
                turns.reset();
                turns.set_missed_tick_behavior(MissedTickBehavior::Skip);
            }
        }
        self.end().await
    }

    async fn turn(&mut self) -> Result<(), String> {
        match fenced(|| self.take_policy()) {
            Ok(true) => self.record().await?,
            Ok(false) => {}
            Err(reason) => {
                self.unfit(&reason, true);
                return Ok(());
            }
        }
        let begun = self.clock.now();
        let pools = self.sources.observe_round().await;
        let round = Round { pools, usage: self.board.inbox.drain() };
        let now = self.clock.now();
        failpoint("tick", &self.controller.policy().digest);
        match fenced(|| self.step(now, &round)) {
            Ok(Ok((tick, table))) => self.publish(&tick, table, &round)?,
            Ok(Err(error)) => {
                self.metrics.publish_failed(Channel::Validate);
                self.unfit(&format!("its table may not be published: {error}"), false);
            }
            Err(reason) => self.unfit(&reason, true),
        }
        self.metrics.turned(self.clock.now().since(begun));
        Ok(())
    }

    fn take_policy(&mut self) -> bool {
        if !self.accepted.has_changed().unwrap_or(false) {
            return false;
        }
        let loaded = Arc::clone(&self.accepted.borrow_and_update());
        self.put(loaded, None);
        true
    }

    /// Puts a policy in force; with `state`, from there.
    pub(super) fn put(&mut self, loaded: Arc<Loaded>, state: Option<State>) {
        self.in_force = Arc::clone(&loaded);
        self.policy_since = self.clock.now();
        self.runs.wanted.under(&loaded.policy.digest, self.policy_since);
        // A quarantined policy is not accepted again.
        self.metrics.quarantined(false);
        self.sources.set_policy(&loaded.policy);
        match state {
            Some(state) => self.controller = Controller::new(Arc::clone(&loaded.policy), state),
            None => self.controller.set_policy(Arc::clone(&loaded.policy)),
        }
    }

    fn step(&mut self, now: Instant, round: &Round) -> Result<(Tick, Bytes), TableError> {
        let tick = self.controller.tick(now, round);
        self.metrics.observe_round(&mut self.seen, now, round);
        self.metrics.observe_tick(&tick);
        tick.table.validate()?;
        let table = Bytes::from(tick.table.encode()?);
        Ok((tick, table))
    }

    /// Said once on the way up; the metric says it all the time.
    fn alarm(&mut self, tick: &Tick, bytes: usize) {
        let filled = tick.table.filled(bytes);
        self.metrics.table_filled(filled);
        let above = TABLE_ALARMS.iter().map(|(above, _)| *above).filter(|above| filled > *above);
        let level = above.fold(0.0, f64::max);
        if level > self.alarm {
            tracing::warn!(
                filled,
                bytes,
                "the table is more than {level} of the largest one that nodes take"
            );
        }
        self.alarm = level;
    }

    fn publish(&mut self, tick: &Tick, table: Bytes, round: &Round) -> Result<(), String> {
        self.alarm(tick, table.len());
        let why = (&self.in_force.origin, self.runs.wanted.quarantined());
        let entry = Entry::new(unix_now(), why, round, tick, &self.controller);
        let entry = match serde_json::to_vec(&entry) {
            Ok(entry) => Bytes::from(entry),
            Err(error) => return Err(format!("a tick cannot be written as JSON: {error}")),
        };
        let (stamp, at, interval) = (tick.table.stamp, tick.now, self.controller.policy().interval);
        let policy = Arc::clone(&self.in_force);
        self.hand_on(Sealed { stamp, at, interval, table, entry, policy });
        Ok(())
    }
}

async fn asked(stop: &mut watch::Receiver<bool>) {
    // An error means that nobody can ask any more.
    let _ = stop.wait_for(|stop| *stop).await;
}
