//! The way of a sealed table to the disk and onto the board.
//!
//! The disk is not waited for: the loop turns on while a table is being written, and of the tables
//! sealed meanwhile the latest is written next. Where the state directory cannot be written at all,
//! or does not answer, tables go on being announced under the epoch that was kept for that
//! (`control/runs.rs`): a restart begins above it, so no version comes back with other contents.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::control::disk::{Disk, Job, Written};
use crate::control::metrics::Channel;
use crate::control::reload::Loaded;
use crate::control::runs::Runs;
use crate::control::turn::Turns;
use crate::publish::board::Announced;
use crate::unit::Instant;
use crate::wire::Stamp;

/// A write that takes longer than so many intervals is told as a lag,
const LAGS_AFTER: u32 = 2;
/// and after so many the disk counts as gone: half of a table's validity is left then.
const GONE_AFTER: u32 = 5;
/// Longest that a new policy waits for the record of runs to name it.
const RECORD_WAIT: Duration = Duration::from_millis(500);
/// A policy in force for so long is one to come back to after a crash.
const PROVEN_AFTER: Duration = Duration::from_secs(60);
const GONE: &str = "the state directory's writer is gone";

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
pub struct Sealed {
    pub stamp: Stamp,
    pub at: Instant,
    pub interval: Duration,
    pub table: Bytes,
    pub entry: Bytes,
    /// Whose table it is.
    pub policy: Arc<Loaded>,
}

// === impl Turns ===

impl Turns {
    /// Has the record name the policy before it is stepped, as far as the disk is quick: should the
    /// step break, it is the policy's doing.
    pub(super) async fn record(&mut self) -> Result<(), String> {
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

    /// To the disk when it is at home; otherwise the table waits, in place of an earlier one.
    pub(super) fn hand_on(&mut self, sealed: Sealed) {
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
    pub(super) fn written(&mut self, (disk, mut written, busy): (Disk, Written, Busy)) {
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
    pub(super) async fn end(mut self) -> Result<(), String> {
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

// === impl Store ===

impl Store {
    /// Waits for the disk to come back; for ever while it is at home.
    pub(super) async fn written(&mut self) -> Result<(Disk, Written, Busy), String> {
        let Store::Busy(busy) = self else { return std::future::pending().await };
        let written = (&mut busy.written).await;
        let Store::Busy(busy) = std::mem::replace(self, Store::Gone) else { return Err(GONE.to_owned()) };
        let (disk, written) = written.map_err(|_| GONE.to_owned())?;
        Ok((disk, written, *busy))
    }
}
