//! The journal: one line a tick, so that a restart continues and a person can ask why.
//!
//! JSON Lines; the first line of a file is a header with the format's version. Two files of
//! bounded size are kept, the current and the previous. After any failed write the file in
//! question is never written again: an `fsync` that failed once may have dropped pages, and says
//! so only once.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::bounds::JOURNAL_LINE_BYTES_MAX;
use crate::publish::file::{at, read_bounded, sync_dir};

/// Version of the format; a reader refuses any other.
pub const JOURNAL_VERSION: u32 = 1;

pub const CURRENT: &str = "journal.jsonl";
pub const PREVIOUS: &str = "journal.1.jsonl";
const FRESH: &str = ".journal.jsonl.tmp";

/// An open journal: the one writer of its directory.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    /// None: the next entry begins a new file.
    file: Option<File>,
    bytes: u64,
    bytes_max: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error(
        "{}: journal version {found}, this tidegate reads {JOURNAL_VERSION}; \
         run the version that wrote it, or move the file away to start without it", path.display()
    )]
    Version { path: PathBuf, found: u64 },
    #[error("journal: {0}")]
    Io(#[from] io::Error),
    #[error("journal: an entry has {0} bytes, allowed are {JOURNAL_LINE_BYTES_MAX}")]
    TooLarge(usize),
}

/// The first line of a file.
#[derive(Serialize, Deserialize)]
pub struct Header {
    pub journal: u64,
    writer: String,
}

/// One file as found at start.
struct Found<T> {
    last: Option<T>,
    /// Bytes up to and including the last whole line; none where the file cannot be continued.
    whole: Option<u64>,
}

// === impl Journal ===

impl Journal {
    /// Opens the journal of a directory and reads its last good entry. A torn last line, and
    /// lines that are no entry, are passed over.
    ///
    /// # Errors
    /// A journal of another version, or a file that cannot be read.
    pub fn open<T: DeserializeOwned>(
        dir: &Path,
        bytes_max: u64,
    ) -> Result<(Journal, Option<T>), JournalError> {
        let path = dir.join(CURRENT);
        let found: Found<T> = inspect(&path, bytes_max)?;
        let last = match found.last {
            Some(last) => Some(last),
            None => inspect(&dir.join(PREVIOUS), bytes_max)?.last,
        };
        let mut journal = Journal { dir: dir.to_owned(), file: None, bytes: 0, bytes_max };
        if let Some(whole) = found.whole {
            let file = OpenOptions::new().append(true).open(&path).map_err(|error| at(&path, &error))?;
            // The torn line goes, or the next entry would be glued to it.
            file.set_len(whole).map_err(|error| at(&path, &error))?;
            journal.file = Some(file);
            journal.bytes = whole;
        }
        Ok((journal, last))
    }

    /// Appends one entry (a JSON value without line feeds) and waits until it is on disk.
    ///
    /// # Errors
    /// The entry is then not in the journal; later ones go to a new file.
    pub fn append(&mut self, entry: &[u8]) -> Result<(), JournalError> {
        let bytes = u64::try_from(entry.len()).unwrap_or(u64::MAX).saturating_add(1);
        if bytes > JOURNAL_LINE_BYTES_MAX {
            return Err(JournalError::TooLarge(entry.len()));
        }
        let mut line = Vec::with_capacity(entry.len() + 1);
        line.extend_from_slice(entry);
        line.push(b'\n');
        match self.file.take() {
            Some(mut file) if self.bytes.saturating_add(bytes) <= self.bytes_max => {
                let path = self.dir.join(CURRENT);
                // On failure the file stays closed: see the head of this file.
                file.write_all(&line).and_then(|()| file.sync_data()).map_err(|error| at(&path, &error))?;
                self.file = Some(file);
                self.bytes += bytes;
                Ok(())
            }
            _ => self.begin(&line),
        }
    }

    /// Begins a new file with one entry; what was current becomes the previous one.
    fn begin(&mut self, line: &[u8]) -> Result<(), JournalError> {
        let header = Header { journal: JOURNAL_VERSION.into(), writer: env!("CARGO_PKG_VERSION").to_owned() };
        let mut bytes = serde_json::to_vec(&header).map_err(io::Error::from)?;
        bytes.push(b'\n');
        bytes.extend_from_slice(line);
        let (fresh, current, previous) =
            (self.dir.join(FRESH), self.dir.join(CURRENT), self.dir.join(PREVIOUS));
        let mut file = File::create(&fresh).map_err(|error| at(&fresh, &error))?;
        file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(|error| at(&fresh, &error))?;
        match std::fs::rename(&current, &previous) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(&current, &error))?,
            _ => {}
        }
        std::fs::rename(&fresh, &current).map_err(|error| at(&current, &error))?;
        sync_dir(&self.dir)?;
        self.file = Some(file);
        self.bytes = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Ok(())
    }
}

fn inspect<T: DeserializeOwned>(path: &Path, bytes_max: u64) -> Result<Found<T>, JournalError> {
    let limit =
        usize::try_from(bytes_max.max(JOURNAL_LINE_BYTES_MAX).saturating_add(4096)).unwrap_or(usize::MAX);
    let nothing = Found { last: None, whole: None };
    let Some(bytes) = read_bounded(path, limit)? else {
        return Ok(nothing);
    };
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
    let header: Option<Header> = lines.next().and_then(|line| serde_json::from_slice(line).ok());
    match header {
        // Not a journal's first line: damaged, or never one. It is set aside, not written on.
        None => return Ok(nothing),
        Some(header) if header.journal != u64::from(JOURNAL_VERSION) => {
            return Err(JournalError::Version { path: path.to_owned(), found: header.journal });
        }
        Some(_) => {}
    }
    let torn = bytes.iter().rev().take_while(|byte| **byte != b'\n').count();
    let whole = u64::try_from(bytes.len() - torn).ok();
    let last = lines.rev().find_map(|line| serde_json::from_slice(line).ok());
    Ok(Found { last, whole })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path, bytes_max: u64) -> (Journal, Option<u64>) {
        Journal::open(dir, bytes_max).unwrap()
    }

    #[test]
    fn the_last_entry_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, last) = open(dir.path(), 1000);
        assert_eq!(last, None);
        for entry in ["1", "2", "3"] {
            journal.append(entry.as_bytes()).unwrap();
        }
        drop(journal);
        let (mut journal, last) = open(dir.path(), 1000);
        assert_eq!(last, Some(3));
        journal.append(b"4").unwrap();
        assert_eq!(open(dir.path(), 1000).1, Some(4));
    }

    #[test]
    fn a_torn_tail_is_passed_over_and_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path(), 1000).0.append(b"41").unwrap();
        let path = dir.path().join(CURRENT);
        let good = std::fs::read(&path).unwrap();
        let mut whole = good.clone();
        whole.extend_from_slice(b"42\n");
        for end in good.len()..whole.len() {
            std::fs::write(&path, &whole[..end]).unwrap();
            let (mut journal, last) = open(dir.path(), 1000);
            assert_eq!(last, Some(41), "cut at {end}");
            journal.append(b"43").unwrap();
            assert_eq!(open(dir.path(), 1000).1, Some(43), "cut at {end}");
        }
        // Garbage instead of an entry.
        std::fs::write(&path, [&good[..], b"\0\0\0\n"].concat()).unwrap();
        assert_eq!(open(dir.path(), 1000).1, Some(41));
    }

    #[test]
    fn two_files_of_bounded_size_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = open(dir.path(), 200);
        for entry in 1000..1200 {
            journal.append(entry.to_string().as_bytes()).unwrap();
        }
        let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        for name in names {
            assert!(std::fs::metadata(dir.path().join(name)).unwrap().len() <= 200);
        }
        assert_eq!(open(dir.path(), 200).1, Some(1199));
        // Died between the two renames of a rotation.
        std::fs::rename(dir.path().join(CURRENT), dir.path().join(PREVIOUS)).unwrap();
        let (mut journal, last) = open(dir.path(), 200);
        assert_eq!(last, Some(1199));
        journal.append(b"1200").unwrap();
        assert_eq!(open(dir.path(), 200).1, Some(1200));
    }

    #[test]
    fn another_version_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(CURRENT), "{\"journal\":7,\"writer\":\"9.9\"}\n1\n").unwrap();
        let error = Journal::open::<u64>(dir.path(), 1000).unwrap_err().to_string();
        assert!(error.contains("journal version 7, this tidegate reads 1"), "{error}");
    }

    #[test]
    fn a_damaged_file_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(CURRENT), "no header\n1\n").unwrap();
        let (mut journal, last) = open(dir.path(), 1000);
        assert_eq!(last, None);
        journal.append(b"5").unwrap();
        assert_eq!(open(dir.path(), 1000).1, Some(5));
        assert!(std::fs::read(dir.path().join(PREVIOUS)).unwrap().starts_with(b"no header"));
    }

    #[test]
    fn d04_after_a_failed_write_a_new_file_begins() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = open(dir.path(), 1000);
        journal.append(b"1").unwrap();
        // A descriptor that cannot be written to stands for a disk that fails.
        journal.file = Some(File::open(dir.path().join(CURRENT)).unwrap());
        assert!(journal.append(b"2").is_err());
        assert_eq!(open(dir.path(), 1000).1, Some(1));
        journal.append(b"3").unwrap();
        assert_eq!(open(dir.path(), 1000).1, Some(3));
        assert!(dir.path().join(PREVIOUS).exists());
    }
}
