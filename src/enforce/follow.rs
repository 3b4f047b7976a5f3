//! Follows a file, of tables or of anything else.
//!
//! A publisher renames a complete file into place; a file that is torn or worse is reported and
//! whatever is in force stays.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::bounds::FILE_SKEW_MAX;
use crate::bounds::TABLE_BYTES_MAX;
use crate::wire::{LimitTable, Stamp, TableError};

/// Follows one file. Looks at its size, time and identity, and reads it when one differs.
#[derive(Debug)]
pub struct Follower {
    path: PathBuf,
    bytes_max: usize,
    seen: Option<Signature>,
    /// There was a file to read, so that a change is one that happened just now.
    found: bool,
    /// What is there could not be read the last time.
    failed: bool,
}

/// What tells two versions of a file apart without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Signature {
    bytes: u64,
    modified: Option<SystemTime>,
    inode: u64,
}

/// Why no table came out of a file.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    #[error("cannot read {path}: {error}")]
    Read { path: PathBuf, error: io::Error },
    #[error("{path} holds {bytes} bytes, allowed are {bytes_max}")]
    TooLarge { path: PathBuf, bytes: u64, bytes_max: usize },
    #[error("{path}: {error}")]
    Table { path: PathBuf, error: TableError, stamp: Option<Stamp> },
}

/// A table from a file.
#[derive(Debug)]
pub struct Found {
    pub table: LimitTable,
    /// Since its last renewal, for [`crate::enforce::Cell::offer_aged`].
    pub age: Duration,
}

// === impl Follower ===

impl Follower {
    pub fn new(path: impl Into<PathBuf>) -> Follower {
        Follower::bounded(path, TABLE_BYTES_MAX)
    }

    /// Of any file, not only tables.
    pub fn bounded(path: impl Into<PathBuf>, bytes_max: usize) -> Follower {
        Follower { path: path.into(), bytes_max, seen: None, found: false, failed: false }
    }

    /// The contents when they changed since the last call; `None` when they did not.
    pub fn changed(&mut self) -> Option<Result<Vec<u8>, FollowError>> {
        let unreadable = |error| FollowError::Read { path: self.path.clone(), error };
        let signature = match fs::metadata(&self.path) {
            Ok(metadata) if metadata.is_file() => Signature::of(&metadata),
            // Reading a pipe would wait for its writer.
            Ok(_) if self.seen != Some(Signature::ABSENT) => {
                self.seen = Some(Signature::ABSENT);
                return Some(Err(unreadable(io::Error::other("not a regular file"))));
            }
            Ok(_) => return None,
            // Named once, until the file is back.
            Err(_) if self.seen == Some(Signature::ABSENT) => return None,
            Err(error) => {
                let error = unreadable(error);
                self.seen = Some(Signature::ABSENT);
                return Some(Err(error));
            }
        };
        if self.seen == Some(signature) {
            return None;
        }
        self.seen = Some(signature);
        if signature.bytes > self.bytes_max as u64 {
            let (path, bytes_max) = (self.path.clone(), self.bytes_max);
            return Some(Err(FollowError::TooLarge { path, bytes: signature.bytes, bytes_max }));
        }
        match read_bounded(&self.path, self.bytes_max) {
            Ok(bytes) => {
                self.failed = false;
                Some(Ok(bytes))
            }
            // Tried again at every call, said once: the next time it may be a matter of permissions,
            // or of descriptors, that no time of modification tells of.
            Err(error) => {
                let error = unreadable(error);
                self.seen = None;
                (!std::mem::replace(&mut self.failed, true)).then_some(Err(error))
            }
        }
    }

    /// A new table, when there is one. The first one is as old as its file: whoever starts must not
    /// take what was published last week for fresh. Later ones were published since the last look,
    /// whatever the wall clock has done meanwhile.
    pub fn poll(&mut self) -> Option<Result<Found, FollowError>> {
        let bytes = match self.changed()? {
            Ok(bytes) => bytes,
            Err(error) => return Some(Err(error)),
        };
        let first = !std::mem::replace(&mut self.found, true);
        let modified = self.seen.and_then(|signature| signature.modified);
        let age = if first { modified.map_or(Duration::MAX, age) } else { Duration::ZERO };
        Some(decode(&self.path, &bytes).map(|table| Found { table, age }))
    }

    /// Reads the file again at the next call, changed or not.
    pub fn forget(&mut self) {
        self.seen = None;
    }
}

// === impl Signature ===

impl Signature {
    const ABSENT: Signature = Signature { bytes: u64::MAX, modified: None, inode: 0 };

    fn of(metadata: &fs::Metadata) -> Signature {
        #[cfg(unix)]
        let inode = std::os::unix::fs::MetadataExt::ino(metadata);
        #[cfg(not(unix))]
        let inode = 0;
        Signature { bytes: metadata.len(), modified: metadata.modified().ok(), inode }
    }
}

/// How long ago a file was written. One from the future has no age that can be told: it counts as
/// older than anything.
pub(crate) fn age(modified: SystemTime) -> Duration {
    match modified.elapsed() {
        Ok(age) => age,
        Err(ahead) if ahead.duration() <= FILE_SKEW_MAX => Duration::ZERO,
        Err(_) => Duration::MAX,
    }
}

pub(crate) fn decode(path: &Path, bytes: &[u8]) -> Result<LimitTable, FollowError> {
    let refused =
        |error| FollowError::Table { path: path.to_owned(), error, stamp: LimitTable::stamp_of(bytes) };
    LimitTable::decode(bytes).map_err(refused)
}

/// One byte more than allowed is read, so that a file growing meanwhile is refused by the decoder.
pub(crate) fn read_bounded(path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(bytes_max as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f02_the_first_look_tells_a_files_age_and_a_later_change_is_fresh() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("table.json");
        let good = r#"{"schema":1,"epoch":1,"version":1,"tick":1,"policy":"0","interval_ms":2000,
            "valid_for_ms":20000,"pools":{"p":{"unit":"requests","output_cost_milli":0,"budget":600,
            "waiting_work":9,"in_flight":9,"degraded":false,"shares":{},"unlisted_share":0}},
            "rows":[{"model":"m","tier":"t","pool":"p","yields":{"waiting":0,"in_flight":0},"limits":{
            "requests_per_minute":{"tier_limit":600,"key_limit":60,"safe":60,"ceiling":900}}}]}"#;
        let week = Duration::from_secs(7 * 86_400);
        let mut follower = Follower::new(&path);
        assert!(follower.poll().unwrap().is_err(), "absent");
        let write = |text: &str, back: Duration| {
            let mut file = File::create(&path).unwrap();
            io::Write::write_all(&mut file, text.as_bytes()).unwrap();
            let now = file.metadata().unwrap().modified().unwrap();
            file.set_modified(now - back).unwrap();
            now
        };
        // As old as it is, also where its disk was mounted after the start.
        write(good, week);
        assert!(follower.poll().unwrap().unwrap().age >= week);
        assert!(follower.poll().is_none());
        // Published while we looked; the wall clock may jump meanwhile.
        write(&good.replace("\"tick\":1", "\"tick\":2"), week * 2);
        assert_eq!(follower.poll().unwrap().unwrap().age, Duration::ZERO);
        let now = write(good, Duration::ZERO);
        assert!(age(now + Duration::from_secs(1)) <= FILE_SKEW_MAX);
        assert_eq!(age(now + week), Duration::MAX, "from the future");
    }

    #[test]
    fn a_file_whose_read_failed_is_read_again_and_the_failure_is_said_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        // A regular file to look at, and an error to read.
        std::os::unix::fs::symlink("/proc/self/mem", &path).unwrap();
        let mut follower = Follower::bounded(&path, 100);
        assert!(matches!(follower.changed(), Some(Err(FollowError::Read { .. }))));
        for _ in 0..3 {
            assert!(follower.changed().is_none());
            assert!(follower.seen.is_none(), "it would not be read again before it looks different");
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "good").unwrap();
        assert_eq!(follower.changed().unwrap().unwrap(), b"good");
        assert!(follower.changed().is_none());
    }
}
