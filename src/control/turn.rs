//! One turn of the daemon's loop: observe, tick, make durable, announce, count. In this order:
//! nothing is announced that a crash could take back.

use std::path::PathBuf;
use std::sync::{Arc, mpsc};

use bytes::Bytes;
use tokio::sync::{oneshot, watch};
use tokio::time::MissedTickBehavior;

use crate::control::metrics::{Channel, Metrics, Seen};
use crate::control::reload::{Loaded, store_last_good};
use crate::control::resume::Entry;
use crate::control::{Controller, Tick};
use crate::observe::Round;
use crate::observe::sources::Sources;
use crate::publish::board::{Announced, Board};
use crate::publish::file::{Access, TABLE_FILE, write_atomic};
use crate::publish::journal::Journal;
use crate::publish::lock::StateLock;
use crate::unit::Clock;

/// The loop's belongings.
pub struct Turns {
    pub controller: Controller,
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
    policy: Option<Arc<Loaded>>,
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
        self.take_policy();
        let begun = self.clock.now();
        let pools = self.sources.observe_round().await;
        let round = Round { pools, usage: self.board.inbox.drain() };
        let now = self.clock.now();
        let tick = self.controller.tick(now, &round);
        self.metrics.observe_round(&mut self.seen, now, &round);
        self.metrics.observe_tick(&tick);
        let published = self.publish(&tick, &round).await;
        self.metrics.turned(self.clock.now().since(begun));
        published
    }

    fn take_policy(&mut self) {
        if !self.accepted.has_changed().unwrap_or(false) {
            return;
        }
        let loaded = Arc::clone(&self.accepted.borrow_and_update());
        self.sources.set_policy(&loaded.policy);
        self.controller.set_policy(Arc::clone(&loaded.policy));
    }

    async fn publish(&mut self, tick: &Tick, round: &Round) -> Result<(), String> {
        let table = match tick.table.validate().and_then(|()| tick.table.encode()) {
            Ok(table) => Bytes::from(table),
            Err(error) => {
                self.metrics.publish_failed(Channel::Validate);
                tracing::error!(%error, "the table may not be published; the last good one stays in force");
                return Ok(());
            }
        };
        let policy = self.controller.policy();
        let state = self.controller.state();
        let policy_interval = policy.interval;
        let entry = Entry::new(&policy.digest, round, tick, state);
        let entry = match serde_json::to_vec(&entry) {
            Ok(entry) => Bytes::from(entry),
            Err(error) => return Err(format!("a tick cannot be written as JSON: {error}")),
        };
        let loaded = Arc::clone(&self.accepted.borrow());
        let mine = (loaded.policy.digest == policy.digest).then_some(loaded);
        let written = self.write(entry.clone(), table.clone(), mine).await?;
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
        let (stamp, bytes) = (tick.table.stamp, table.len());
        self.board.announce(Announced { stamp, table, status: entry });
        self.metrics.observe_published(&self.seen, tick.now, policy_interval, stamp, bytes);
        tracing::debug!(stamp.epoch, stamp.version, stamp.tick, tick.changed, "published");
        Ok(())
    }

    async fn write(
        &mut self,
        entry: Bytes,
        table: Bytes,
        policy: Option<Arc<Loaded>>,
    ) -> Result<Written, String> {
        let gone = || "the state directory's writer is gone".to_owned();
        let disk = self.disk.take().ok_or_else(gone)?;
        let (done, written) = oneshot::channel();
        self.writer.0.send(Job { disk, entry, table, policy, done }).map_err(|_| gone())?;
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
            while let Ok(Job { mut disk, entry, table, policy, done }) = queue.recv() {
                let written = disk.write(&entry, &table, policy.as_deref());
                let _ = done.send((disk, written));
            }
        })?;
        Ok(Writer(jobs))
    }
}

// === impl Disk ===

impl Disk {
    fn write(&mut self, entry: &[u8], table: &[u8], policy: Option<&Loaded>) -> Written {
        let mut written = Written {
            journal: self.journal.append(entry).err().map(|error| error.to_string()),
            file: write_atomic(&self.dir, TABLE_FILE, table, Access::Everyone).err().map(|e| e.to_string()),
            policy: None,
        };
        // Stored only after a tick under it: a policy that cannot be stepped is not a good one.
        let digest = policy.map(|policy| &policy.policy.digest);
        if let (Some(policy), false) = (policy, self.stored.as_ref() == digest) {
            match store_last_good(&self.dir, policy) {
                Ok(()) => self.stored = digest.cloned(),
                Err(error) => written.policy = Some(error),
            }
        }
        written
    }
}
