//! The state directory's writer: a thread of its own, one table at a time, everything durable
//! before it is said to be.

use std::path::PathBuf;
use std::sync::{Arc, mpsc};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::control::history::{self, Since};
use crate::control::reload::{LAST_GOOD, Loaded, PROVEN, store_policy};
use crate::control::runs::Runs;
use crate::publish::file::{Access, TABLE_FILE, write_atomic};
use crate::publish::journal::Journal;
use crate::publish::lock::StateLock;
use crate::supervise::failpoint;
use crate::wire::Stamp;

/// A thread of its own for the disk: lookups of names that nobody answers fill the pool of threads
/// that the runtime keeps for blocking calls, and a table may not wait behind them.
#[derive(Debug)]
pub struct Writer(mpsc::Sender<Order>);

/// A job, the disk to do it on, and whoever waits for both.
type Order = (Disk, Job, oneshot::Sender<(Disk, Written)>);

/// What is to be written.
#[derive(Debug, Default)]
pub struct Job {
    /// First: who is blamed for a bad end, and which epoch is kept.
    pub runs: Option<Runs>,
    /// The journal's entry and the encoded table.
    pub table: Option<(Bytes, Bytes)>,
    /// With the stamp of the table that was made under it.
    pub policy: Option<(Arc<Loaded>, Stamp)>,
    /// The policy has been in force long enough to be trusted after a crash.
    pub proven: bool,
}

/// The state directory's writer.
#[derive(Debug)]
pub struct Disk {
    pub dir: PathBuf,
    pub journal: Journal,
    /// Digests of the policies that are stored as the last good and as the proven one.
    pub stored: Option<String>,
    pub proven: Option<String>,
    /// Whoever writes holds it, and nobody else may begin before the last write has ended.
    #[expect(dead_code, reason = "held, not read")]
    pub lock: StateLock,
}

/// What became of a job: the failures.
#[derive(Debug, Default)]
pub struct Written {
    pub runs: Option<String>,
    pub journal: Option<String>,
    pub file: Option<String>,
    pub policy: Option<String>,
    /// The policies that are kept, where that changed.
    pub kept: Option<Vec<Since>>,
}

// === impl Writer ===

impl Writer {
    /// # Errors
    /// When there is no thread to be had.
    pub fn start() -> std::io::Result<Writer> {
        let (jobs, queue) = mpsc::channel::<Order>();
        // Ends with the loop that feeds it.
        std::thread::Builder::new().name("tidegate-disk".to_owned()).spawn(move || {
            while let Ok((mut disk, job, done)) = queue.recv() {
                failpoint("disk", "");
                let written = disk.write(&job);
                let _ = done.send((disk, written));
            }
        })?;
        Ok(Writer(jobs))
    }

    /// The disk comes back with what became of the job; never, when the thread is gone.
    pub fn write(&self, disk: Disk, job: Job) -> oneshot::Receiver<(Disk, Written)> {
        let (done, written) = oneshot::channel();
        // A job that cannot be sent is dropped with its `done`: the receiver sees it.
        let _ = self.0.send((disk, job, done));
        written
    }
}

// === impl Disk ===

impl Disk {
    pub fn new(dir: PathBuf, journal: Journal, lock: StateLock) -> Disk {
        Disk { dir, journal, stored: None, proven: None, lock }
    }

    fn write(&mut self, job: &Job) -> Written {
        let mut written = Written::default();
        if let Some(runs) = &job.runs {
            written.runs = runs.save(&self.dir).err().map(|error| error.to_string());
        }
        if let Some((entry, table)) = &job.table {
            written.journal = self.journal.append(entry).err().map(|error| error.to_string());
            let file = write_atomic(&self.dir, TABLE_FILE, table, Access::Everyone);
            written.file = file.err().map(|error| error.to_string());
        }
        // Stored only after a tick under it: a policy that cannot be stepped is not a good one.
        let Some((policy, stamp)) = &job.policy else { return written };
        if self.stored.as_ref() != Some(&policy.policy.digest) {
            match history::keep(&self.dir, policy, *stamp) {
                Ok(kept) => written.kept = Some(kept),
                Err(error) => written.policy = Some(error),
            }
        }
        let digest = Some(&policy.policy.digest);
        let wanted = [(LAST_GOOD, &mut self.stored, true), (PROVEN, &mut self.proven, job.proven)];
        for (name, stored, wanted) in wanted {
            if wanted && stored.as_ref() != digest {
                match store_policy(&self.dir, name, policy) {
                    Ok(()) => *stored = digest.cloned(),
                    Err(error) => written.policy = Some(error),
                }
            }
        }
        written
    }
}

// === impl Written ===

impl Written {
    /// One of the two is enough for a restart to know the version.
    pub fn nowhere(&self) -> bool {
        self.journal.is_some() && self.file.is_some()
    }
}
