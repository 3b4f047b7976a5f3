//! The daemon's loop: observe, tick, make durable, announce, count. In this order: nothing is
//! announced that a crash could take back. A policy whose turn panics, or whose table no node would
//! take, goes into quarantine (`control/unfit.rs`).
//!
//! The disk is not waited for: the loop turns on while a table is being written, and of the tables
//! sealed meanwhile the latest is written next. Where the state directory cannot be written at all,
//! or does not answer, tables go on being announced under the epoch that was kept for that
//! (`control/runs.rs`): a restart begins above it, so no version comes back with other contents.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{oneshot, watch};
use tokio::time::MissedTickBehavior;

use crate::control::disk::{Disk, Job, Writer, Written};
use crate::control::fence::fenced;
use crate::control::metrics::{Channel, Metrics, Seen, TABLE_ALARMS};
use crate::control::reload::Loaded;
use crate::control::resume::Entry;
use crate::control::runs::Runs;
use crate::control::standing::Standing;
use crate::control::{Controller, State, Tick};
use crate::observe::Round;
use crate::observe::sources::Sources;
use crate::publish::board::{Announced, Board};
use crate::supervise::{Watchdog, failpoint};
use crate::unit::{Clock, Instant};
use crate::wire::{Stamp, TableError};

/// A write that takes longer than so many intervals is told as a lag,
const LAGS_AFTER: u32 = 2;
/// and after so many the disk counts as gone: half of a table's validity is left then.
const GONE_AFTER: u32 = 5;
/// Longest that a new policy waits for the record of runs to name it.
const RECORD_WAIT: Duration = Duration::from_millis(500);
/// A policy in force for so long is one to come back to after a crash.
const PROVEN_AFTER: Duration = Duration::from_secs(60);

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

/// The state directory, at home or with the thread that writes.
#[derive(Debug)]
pub enum Store {
    Idle(Disk),
    Busy(Box<Busy>),
    /// The thread is gone, and the directory with it.
    Gone,
}

#[derive(Debug)]
pub struct Busy {
    written: oneshot::Receiver<(Disk, Written)>,
    sealed: Option<Sealed>,
    runs: Option<Runs>,
    since: Instant,
}

/// The record of runs as it should be, and as it is on disk.
#[derive(Debug)]
pub struct RunsKept {
    pub wanted: Runs,
    pub stored: Option<Runs>,
}

/// How far announcing has come.
#[derive(Debug, Default)]
pub struct Published {
    waiting: Option<Sealed>,
    last: Option<Stamp>,
    /// The last write stored a table nowhere.
    failing: bool,
    /// The last table announced is not on disk.
    unstored: bool,
    lagging: bool,
}

/// A table ready to be stored and announced.
#[derive(Clone, Debug)]
struct Sealed {
    stamp: Stamp,
    at: Instant,
    interval: Duration,
    table: Bytes,
    entry: Bytes,
    /// Whose table it is.
    policy: Arc<Loaded>,
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

    /// Has the record name the policy before it is stepped, as far as the disk is quick: should the
    /// step break, it is the policy's doing.
    async fn record(&mut self) -> Result<(), String> {
        let disk = match std::mem::replace(&mut self.store, Store::Gone) {
            Store::Idle(disk) => disk,
            busy => {
                self.store = busy;
                return Ok(());
            }
        };
        let runs = Some(self.runs.wanted.clone());
        let written = self.writer.write(disk, Job { runs: runs.clone(), ..Job::default() });
        self.store = Store::Busy(Box::new(Busy { written, sealed: None, runs, since: self.clock.now() }));
        if let Ok(written) = tokio::time::timeout(RECORD_WAIT, self.store.written()).await {
            self.written(written?);
        }
        Ok(())
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
        let (policy, state) = (self.controller.policy(), self.controller.state());
        let why = (&self.in_force.origin, self.runs.wanted.quarantined());
        let entry = Entry::new(&policy.digest, why, round, tick, state);
        let entry = match serde_json::to_vec(&entry) {
            Ok(entry) => Bytes::from(entry),
            Err(error) => return Err(format!("a tick cannot be written as JSON: {error}")),
        };
        let (stamp, at, interval) = (tick.table.stamp, tick.now, policy.interval);
        let policy = Arc::clone(&self.in_force);
        self.hand_on(Sealed { stamp, at, interval, table, entry, policy });
        Ok(())
    }

    /// To the disk when it is at home; otherwise the table waits, in place of an earlier one.
    fn hand_on(&mut self, sealed: Sealed) {
        match std::mem::replace(&mut self.store, Store::Gone) {
            Store::Idle(disk) => self.begin_write(disk, sealed),
            Store::Busy(busy) => {
                let late = sealed.at.since(busy.since);
                self.store = Store::Busy(busy);
                self.told_lag(late, sealed.interval);
                if late > sealed.interval * GONE_AFTER {
                    self.metrics.durable(false);
                    self.without_disk(&sealed);
                }
                self.published.waiting = Some(sealed);
            }
            Store::Gone => {}
        }
    }

    fn begin_write(&mut self, disk: Disk, sealed: Sealed) {
        // The one in use without a disk stays the spare one until a table is stored under it.
        if !self.published.failing {
            self.runs.wanted.keep_spare(sealed.stamp.epoch);
        }
        let changed = self.runs.stored.as_ref() != Some(&self.runs.wanted);
        let runs = changed.then(|| self.runs.wanted.clone());
        let job = Job {
            runs: runs.clone(),
            table: Some((sealed.entry.clone(), sealed.table.clone())),
            policy: Some((Arc::clone(&sealed.policy), sealed.stamp)),
            proven: sealed.at.since(self.policy_since) >= PROVEN_AFTER,
        };
        let since = sealed.at;
        let written = self.writer.write(disk, job);
        self.store = Store::Busy(Box::new(Busy { written, sealed: Some(sealed), runs, since }));
    }

    /// The disk is back, with a table stored or not.
    fn written(&mut self, (disk, mut written, busy): (Disk, Written, Busy)) {
        if busy.sealed.is_some() {
            self.metrics.durable(written.journal.is_none() && written.file.is_none());
        }
        for (channel, failure) in [(Channel::Journal, &written.journal), (Channel::File, &written.file)] {
            if let Some(error) = failure {
                self.metrics.publish_failed(channel);
                tracing::error!(
                    error,
                    ?channel,
                    "the state directory cannot be written; make room or repair"
                );
            }
        }
        for error in [&written.policy, &written.runs].into_iter().flatten() {
            tracing::warn!(error, "the last good policy or the record of runs could not be stored");
        }
        if let Some(kept) = written.kept.take() {
            self.standing.kept(kept);
        }
        if written.runs.is_none() && busy.runs.is_some() {
            self.runs.stored = busy.runs;
        }
        self.store = Store::Idle(disk);
        if let Some(sealed) = busy.sealed {
            self.published.failing = written.nowhere();
            if written.nowhere() {
                self.without_disk(&sealed);
            } else {
                self.announce(&sealed, true);
            }
        }
        if let Some(next) = self.published.waiting.take() {
            self.hand_on(next);
        }
    }

    /// A table that is not stored: announced under the epoch kept for that. One sealed under
    /// another epoch is not, for a restart could seal its version again.
    fn without_disk(&mut self, sealed: &Sealed) {
        let Some(spare) = self.runs.stored.as_ref().map(Runs::spare_epoch) else { return };
        if sealed.stamp.epoch == spare {
            self.announce(sealed, false);
        } else if self.controller.raise_epoch(spare) {
            tracing::error!(
                epoch = spare,
                "tables are announced without being stored, under an epoch of their own, until the \
                 state directory can be written again"
            );
        }
    }

    fn announce(&mut self, sealed: &Sealed, stored: bool) {
        // A write that took too long comes back after later tables.
        if self.published.last.is_some_and(|last| last >= sealed.stamp) {
            self.published.unstored &= !(stored && self.published.last == Some(sealed.stamp));
            return;
        }
        let (stamp, bytes) = (sealed.stamp, sealed.table.len());
        let (table, status) = (sealed.table.clone(), sealed.entry.clone());
        self.board.announce(Announced { stamp, table, status });
        self.good = Some(Arc::clone(&sealed.policy));
        self.published.last = Some(stamp);
        self.published.unstored = !stored;
        self.metrics.observe_published(&self.seen, sealed.at, sealed.interval, stamp, bytes);
        if stored {
            self.told_lag(self.clock.now().since(sealed.at), sealed.interval);
        }
        tracing::debug!(stamp.epoch, stamp.version, stamp.tick, stored, "published");
    }

    fn told_lag(&mut self, lag: Duration, interval: Duration) {
        self.metrics.lag(lag);
        let lagging = lag > interval * LAGS_AFTER;
        if lagging && !self.published.lagging {
            tracing::warn!(seconds = lag.as_secs_f64(), "the state directory is slow: tables are late");
        }
        self.published.lagging = lagging;
    }

    /// Ends what is being written, and says that this end is a clean one.
    async fn end(mut self) -> Result<(), String> {
        while let Store::Busy(_) = self.store {
            let written = self.store.written().await?;
            self.published.waiting = None;
            self.written(written);
        }
        let Store::Idle(disk) = self.store else { return Ok(()) };
        // Whoever comes next begins above what was announced and not stored.
        if self.published.unstored {
            return Ok(());
        }
        self.runs.wanted.end();
        let job = Job { runs: Some(self.runs.wanted), ..Job::default() };
        match self.writer.write(disk, job).await {
            Ok((_, Written { runs: Some(error), .. })) => {
                tracing::warn!(error, "the end could not be recorded: it will count as a crash");
            }
            Ok(_) => {}
            Err(_) => return Err(GONE.to_owned()),
        }
        Ok(())
    }
}

async fn asked(stop: &mut watch::Receiver<bool>) {
    // An error means that nobody can ask any more.
    let _ = stop.wait_for(|stop| *stop).await;
}

const GONE: &str = "the state directory's writer is gone";

// === impl Store ===

impl Store {
    /// Waits for the disk to come back; for ever while it is at home.
    async fn written(&mut self) -> Result<(Disk, Written, Busy), String> {
        let Store::Busy(busy) = self else { return std::future::pending().await };
        let written = (&mut busy.written).await;
        let Store::Busy(busy) = std::mem::replace(self, Store::Gone) else { return Err(GONE.to_owned()) };
        let (disk, written) = written.map_err(|_| GONE.to_owned())?;
        Ok((disk, written, *busy))
    }
}
