//! One turn of the daemon's loop: observe, tick, make durable, announce, count. In this order:
//! nothing is announced that a crash could take back. A policy whose turn panics, or whose table no
//! node would take, goes into quarantine, and the last good one is in force again.

use std::path::PathBuf;
use std::sync::{Arc, mpsc};

use bytes::Bytes;
use tokio::sync::{oneshot, watch};
use tokio::time::MissedTickBehavior;

use crate::control::fence::fenced;
use crate::control::history::{self, Since};
use crate::control::metrics::{Channel, Metrics, Seen, TABLE_ALARMS};
use crate::control::reload::{Loaded, store_last_good};
use crate::control::resume::{Entry, saved_state};
use crate::control::standing::Standing;
use crate::control::{Controller, State, Tick};
use crate::observe::Round;
use crate::observe::sources::Sources;
use crate::publish::board::{Announced, Board};
use crate::publish::file::{Access, TABLE_FILE, write_atomic};
use crate::publish::journal::Journal;
use crate::publish::lock::StateLock;
use crate::unit::{Clock, Instant};
use crate::wire::{Stamp, TableError};

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
    /// Goes to the thread that writes and comes back.
    pub disk: Option<Disk>,
    pub writer: Writer,
}

/// A thread of its own for the disk: lookups of names that nobody answers fill the pool of threads
/// that the runtime keeps for blocking calls, and a table may not wait behind them.
#[derive(Debug)]
pub struct Writer(mpsc::Sender<Job>);

/// One table to be written.
#[derive(Debug)]
struct Job {
    disk: Disk,
    entry: Bytes,
    table: Bytes,
    stamp: Stamp,
    policy: Arc<Loaded>,
    done: oneshot::Sender<(Disk, Written)>,
}

/// The state directory's writer.
#[derive(Debug)]
pub struct Disk {
    pub dir: PathBuf,
    pub journal: Journal,
    /// Digest of the policy that is stored as the last good one.
    pub stored: Option<String>,
    /// Whoever writes holds it, and nobody else may begin before the last write has ended.
    #[expect(dead_code, reason = "held, not read")]
    pub lock: StateLock,
}

/// What became of one table on disk.
#[derive(Debug, Default)]
struct Written {
    journal: Option<String>,
    file: Option<String>,
    policy: Option<String>,
    /// The policies that are kept, where that changed.
    kept: Option<Vec<Since>>,
}

// === impl Turns ===

impl Turns {
    /// Turns until `stop`; what is begun is finished.
    ///
    /// # Errors
    /// Only when the loop cannot go on at all.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) -> Result<(), String> {
        let mut period = self.controller.policy().interval;
        let mut turns = tokio::time::interval(period);
        turns.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return Ok(()),
                _ = turns.tick() => {}
            }
            self.turn().await?;
            let wanted = self.controller.policy().interval;
            if wanted != period {
                period = wanted;
                turns = tokio::time::interval(period);
                turns.reset();
                turns.set_missed_tick_behavior(MissedTickBehavior::Skip);
            }
        }
    }

    async fn turn(&mut self) -> Result<(), String> {
        if let Err(reason) = fenced(|| self.take_policy()) {
            self.unfit(&reason, true);
            return Ok(());
        }
        let begun = self.clock.now();
        let pools = self.sources.observe_round().await;
        let round = Round { pools, usage: self.board.inbox.drain() };
        let now = self.clock.now();
        let published = match fenced(|| self.step(now, &round)) {
            Ok(Ok((tick, table))) => self.publish(&tick, table, &round).await,
            Ok(Err(error)) => {
                self.metrics.publish_failed(Channel::Validate);
                self.unfit(&format!("its table may not be published: {error}"), false);
                Ok(())
            }
            Err(reason) => {
                self.unfit(&reason, true);
                Ok(())
            }
        };
        self.metrics.turned(self.clock.now().since(begun));
        published
    }

    fn take_policy(&mut self) {
        if !self.accepted.has_changed().unwrap_or(false) {
            return;
        }
        let loaded = Arc::clone(&self.accepted.borrow_and_update());
        self.put(loaded, None);
    }

    /// Puts a policy in force; with `state`, from there.
    fn put(&mut self, loaded: Arc<Loaded>, state: Option<State>) {
        self.in_force = Arc::clone(&loaded);
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

    /// The policy in force made no table. `broken`: not even the controller's state is to be trusted.
    fn unfit(&mut self, reason: &str, broken: bool) {
        self.metrics.turn_failed();
        let policy = self.in_force.policy.digest.clone();
        let good = self.good.clone().filter(|good| good.policy.digest != policy);
        let last = self.controller.state().stamp;
        let mut state = match (broken, &good) {
            (false, None) => self.controller.state().clone(),
            // As a restart would go on, but for versions that were used since.
            _ => self
                .board
                .latest()
                .and_then(|latest| saved_state(&latest.status))
                .unwrap_or_else(|| self.initial.clone()),
        };
        state.stamp = state.stamp.max(last);
        let Some(good) = good else {
            tracing::error!(policy, reason, "no table this turn; the last one stays in force");
            let same = Arc::clone(&self.in_force);
            if let Err(again) = fenced(|| self.put(same, Some(state))) {
                tracing::error!(policy, reason = again, "the policy in force cannot be put in force again");
            }
            return;
        };
        let last_good = good.policy.digest.clone();
        tracing::error!(
            policy,
            last_good,
            reason,
            "policy in quarantine; the last good one is in force again"
        );
        self.standing.quarantine(&policy, reason, &last_good);
        self.metrics.reloaded(false);
        if let Err(reason) = fenced(|| self.put(good, Some(state))) {
            tracing::error!(last_good, reason, "the last good policy cannot be put in force");
        }
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

    async fn publish(&mut self, tick: &Tick, table: Bytes, round: &Round) -> Result<(), String> {
        self.alarm(tick, table.len());
        let policy = self.controller.policy();
        let state = self.controller.state();
        let policy_interval = policy.interval;
        let entry = Entry::new(&policy.digest, &self.in_force.origin, round, tick, state);
        let entry = match serde_json::to_vec(&entry) {
            Ok(entry) => Bytes::from(entry),
            Err(error) => return Err(format!("a tick cannot be written as JSON: {error}")),
        };
        let written = self.write(entry.clone(), table.clone(), tick.table.stamp).await?;
        self.metrics.durable(written.journal.is_none() && written.file.is_none());
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
        if let Some(error) = &written.policy {
            tracing::warn!(error, "the last good policy could not be stored");
        }
        // One of the two is enough for a restart to know the version.
        if written.journal.is_some() && written.file.is_some() {
            return Ok(());
        }
        if let Some(kept) = written.kept {
            self.standing.kept(kept);
        }
        self.good = Some(Arc::clone(&self.in_force));
        let (stamp, bytes) = (tick.table.stamp, table.len());
        self.board.announce(Announced { stamp, table, status: entry });
        self.metrics.observe_published(&self.seen, tick.now, policy_interval, stamp, bytes);
        tracing::debug!(stamp.epoch, stamp.version, stamp.tick, tick.changed, "published");
        Ok(())
    }

    async fn write(&mut self, entry: Bytes, table: Bytes, stamp: Stamp) -> Result<Written, String> {
        let policy = Arc::clone(&self.in_force);
        let gone = || "the state directory's writer is gone".to_owned();
        let disk = self.disk.take().ok_or_else(gone)?;
        let (done, written) = oneshot::channel();
        self.writer.0.send(Job { disk, entry, table, stamp, policy, done }).map_err(|_| gone())?;
        let (disk, written) = written.await.map_err(|_| gone())?;
        self.disk = Some(disk);
        Ok(written)
    }
}

// === impl Writer ===

impl Writer {
    /// # Errors
    /// When there is no thread to be had.
    pub fn start() -> std::io::Result<Writer> {
        let (jobs, queue) = mpsc::channel::<Job>();
        // Ends with the loop that feeds it.
        std::thread::Builder::new().name("tidegate-disk".to_owned()).spawn(move || {
            while let Ok(Job { mut disk, entry, table, stamp, policy, done }) = queue.recv() {
                let written = disk.write(&entry, &table, stamp, &policy);
                let _ = done.send((disk, written));
            }
        })?;
        Ok(Writer(jobs))
    }
}

// === impl Disk ===

impl Disk {
    fn write(&mut self, entry: &[u8], table: &[u8], stamp: Stamp, policy: &Loaded) -> Written {
        let mut written = Written {
            journal: self.journal.append(entry).err().map(|error| error.to_string()),
            file: write_atomic(&self.dir, TABLE_FILE, table, Access::Everyone).err().map(|e| e.to_string()),
            ..Written::default()
        };
        // Stored only after a tick under it: a policy that cannot be stepped is not a good one.
        let digest = &policy.policy.digest;
        if self.stored.as_ref() != Some(digest) {
            let stored = store_last_good(&self.dir, policy);
            match stored.and_then(|()| history::keep(&self.dir, policy, stamp)) {
                Ok(kept) => {
                    self.stored = Some(digest.clone());
                    written.kept = Some(kept);
                }
                Err(error) => written.policy = Some(error),
            }
        }
        written
    }
}
