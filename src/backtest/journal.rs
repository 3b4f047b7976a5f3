//! Reads a controller's journal, a line at a time.
//!
//! A journal is written while it is read, and its last line may be torn: that is its end. Any other
//! line that is no entry is a mistake that is named with its place: a replay that passed over it
//! would not say what happened.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

use crate::bounds::JOURNAL_LINE_BYTES_MAX;
use crate::control::entry::Recorded;
use crate::publish::journal::{CURRENT, Header, JOURNAL_VERSION, PREVIOUS};

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("{}: {source}; name a state directory, or a journal in one", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{}:{line}:{column}: {reason}; replay a copy without this line: \
         it goes on after the gap, and says so",
        path.display()
    )]
    Line { path: PathBuf, line: u64, column: usize, reason: String },
    #[error("{}:1:1: this is no first line of a journal; name a `{CURRENT}` that a controller wrote", path.display())]
    NoHeader { path: PathBuf },
    #[error("{}:1:1: journal version {found}, this tidegate reads {JOURNAL_VERSION}; run the version that wrote it", path.display())]
    Version { path: PathBuf, found: u64 },
}

/// The entries of one or two files, oldest first.
pub struct Journal {
    files: VecDeque<Lines>,
    failed: bool,
}

struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    /// Lines read.
    line: u64,
}

// === impl Journal ===

impl Journal {
    /// Of a state directory, or of its current file, both files; else the one that is named.
    ///
    /// # Errors
    /// A file that cannot be opened.
    pub fn open(path: &Path) -> Result<Journal, JournalError> {
        let is_dir = path.is_dir();
        let current = if is_dir { path.join(CURRENT) } else { path.to_owned() };
        let mut files = VecDeque::new();
        if current.file_name().is_some_and(|name| name == CURRENT) {
            let previous = current.with_file_name(PREVIOUS);
            match File::open(&previous) {
                Ok(file) => files.push_back(Lines::new(previous, file)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(JournalError::Io { path: previous, source }),
            }
        }
        match File::open(&current) {
            Ok(file) => files.push_back(Lines::new(current, file)),
            // A crash between the two renames of a rotation leaves the previous one alone.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !files.is_empty() => {}
            Err(source) => return Err(JournalError::Io { path: current, source }),
        }
        Ok(Journal { files, failed: false })
    }
}

impl Iterator for Journal {
    type Item = Result<Recorded, JournalError>;

    fn next(&mut self) -> Option<Self::Item> {
        while let Some(file) = self.files.front_mut().filter(|_| !self.failed) {
            match file.entry() {
                Ok(Some(entry)) => return Some(Ok(entry)),
                Ok(None) => drop(self.files.pop_front()),
                Err(error) => {
                    self.failed = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

// === impl Lines ===

impl Lines {
    fn new(path: PathBuf, file: File) -> Lines {
        Lines { path, reader: BufReader::new(file), line: 0 }
    }

    fn entry(&mut self) -> Result<Option<Recorded>, JournalError> {
        if self.line == 0 {
            match self.next()? {
                None => return Ok(None),
                Some(line) => self.header(&line)?,
            }
        }
        let Some(line) = self.next()? else { return Ok(None) };
        Recorded::read(&line).map(Some).map_err(|(column, reason)| self.bad(column, reason))
    }

    fn header(&self, line: &[u8]) -> Result<(), JournalError> {
        let path = || self.path.clone();
        match serde_json::from_slice::<Header>(line) {
            Err(_) => Err(JournalError::NoHeader { path: path() }),
            Ok(header) if header.journal != u64::from(JOURNAL_VERSION) => {
                Err(JournalError::Version { path: path(), found: header.journal })
            }
            Ok(_) => Ok(()),
        }
    }

    /// The next whole line without its line feed; none at the end, or before a torn one.
    fn next(&mut self) -> Result<Option<Vec<u8>>, JournalError> {
        let mut line = Vec::new();
        let mut bounded = self.reader.by_ref().take(JOURNAL_LINE_BYTES_MAX.saturating_add(1));
        let read = bounded.read_until(b'\n', &mut line);
        read.map_err(|source| JournalError::Io { path: self.path.clone(), source })?;
        self.line += 1;
        if line.pop_if(|last| *last == b'\n').is_some() {
            return Ok(Some(line));
        }
        if u64::try_from(line.len()).unwrap_or(u64::MAX) > JOURNAL_LINE_BYTES_MAX {
            let reason = format!("a line of more than {JOURNAL_LINE_BYTES_MAX} bytes");
            return Err(self.bad(line.len(), reason));
        }
        Ok(None)
    }

    fn bad(&self, column: usize, reason: String) -> JournalError {
        JournalError::Line { path: self.path.clone(), line: self.line, column, reason }
    }
}
