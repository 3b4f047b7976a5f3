//! Tables in files: following one that a controller publishes, and keeping the last one applied.
//!
//! A publisher renames a complete file into place; a file that is torn or worse is reported and
//! whatever is in force stays.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::bounds::TABLE_BYTES_MAX;
use crate::wire::{LimitTable, TableError};

/// Follows one file. Looks at its size, time and identity, and reads it when one differs.
#[derive(Debug)]
pub struct Follower {
    path: PathBuf,
    bytes_max: usize,
    seen: Option<Signature>,
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
    Table { path: PathBuf, error: TableError },
}

/// Where a node keeps the last table it applied.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

// === impl Follower ===

impl Follower {
    pub fn new(path: impl Into<PathBuf>) -> Follower {
        Follower::bounded(path, TABLE_BYTES_MAX)
    }

    /// Of any file, not only tables.
    pub fn bounded(path: impl Into<PathBuf>, bytes_max: usize) -> Follower {
        Follower { path: path.into(), bytes_max, seen: None, failed: false }
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

    /// A new table, when there is one.
    pub fn poll(&mut self) -> Option<Result<LimitTable, FollowError>> {
        let bytes = match self.changed()? {
            Ok(bytes) => bytes,
            Err(error) => return Some(Err(error)),
        };
        let table = LimitTable::decode(&bytes);
        Some(table.map_err(|error| FollowError::Table { path: self.path.clone(), error }))
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

// === impl Store ===

impl Store {
    /// # Errors
    /// The directory cannot be made.
    pub fn open(dir: impl Into<PathBuf>) -> io::Result<Store> {
        let dir = dir.into();
        fs::create_dir_all(&dir)?;
        Ok(Store { dir })
    }

    pub fn path(&self) -> PathBuf {
        self.dir.join("table.json")
    }

    /// Durable when it returns: the file, then its name, then the directory.
    ///
    /// # Errors
    /// Any step failed; the former table is still there.
    pub fn save(&self, table: &LimitTable) -> io::Result<()> {
        let bytes = table.encode().map_err(io::Error::other)?;
        let temporary = self.dir.join(format!("table.json.{}.tmp", std::process::id()));
        let mut file = File::create(&temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, self.path())?;
        File::open(&self.dir)?.sync_all()
    }

    /// The table of a former life; `None` when there never was one.
    ///
    /// # Errors
    /// There is a file, but no table in it.
    pub fn load(&self) -> Result<Option<LimitTable>, FollowError> {
        let path = self.path();
        match read_bounded(&path, TABLE_BYTES_MAX) {
            Ok(bytes) => match LimitTable::decode(&bytes) {
                Ok(table) => Ok(Some(table)),
                Err(error) => Err(FollowError::Table { path, error }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(FollowError::Read { path, error }),
        }
    }
}

/// One byte more than allowed is read, so that a file growing meanwhile is refused by the decoder.
fn read_bounded(path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(bytes_max as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

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
