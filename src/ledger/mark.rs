//! How far the ledger on disk has to be: a second file beside it, which only ever rises.
//!
//! A store that was restored from a backup, or that fell back to an earlier state because its last
//! one is damaged, is whole by its own account. Only something outside it can tell that
//! acknowledged entries are missing. The mark is written after each commit and not synced: it may be
//! behind the ledger after a loss of power, never ahead of it.

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::io::Write;
use std::path::Path;

/// Ledger, sequence number, CRC-32 of both.
const BYTES: usize = 8 + 8 + 4;

#[derive(Debug)]
pub struct Mark {
    file: File,
}

/// What a mark says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Height {
    /// Which ledger: drawn when it was made.
    pub ledger: u64,
    /// The last entry that was acknowledged.
    pub seq: u64,
}

// === impl Mark ===

impl Mark {
    /// What the file says; none where there is no file.
    ///
    /// # Errors
    /// It cannot be read, or is not what was written.
    pub fn read(path: &Path) -> io::Result<Option<Height>> {
        let mut file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let mut bytes = [0; BYTES];
        let damaged = || io::Error::other("damaged");
        file.read_exact(&mut bytes).map_err(|_| damaged())?;
        let (body, sum) = bytes.split_last_chunk::<4>().ok_or_else(damaged)?;
        if crc32fast::hash(body) != u32::from_le_bytes(*sum) {
            return Err(damaged());
        }
        let (ledger, seq) = body.split_first_chunk::<8>().ok_or_else(damaged)?;
        let seq = seq.first_chunk::<8>().ok_or_else(damaged)?;
        Ok(Some(Height { ledger: u64::from_le_bytes(*ledger), seq: u64::from_le_bytes(*seq) }))
    }

    /// # Errors
    /// It cannot be written.
    pub fn open(path: &Path, height: Height) -> io::Result<Mark> {
        if fs::exists(path)? {
            let file = OpenOptions::new().write(true).open(path)?;
            let mut mark = Mark { file };
            mark.raise(height)?;
            return Ok(mark);
        }
        // Whole from the first moment on.
        let temporary = path.with_extension("mark.tmp");
        let mut mark = Mark { file: File::create(&temporary)? };
        mark.raise(height)?;
        mark.file.sync_all()?;
        fs::rename(&temporary, path)?;
        Ok(mark)
    }

    /// # Errors
    /// It cannot be written.
    pub fn raise(&mut self, height: Height) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(BYTES);
        bytes.extend(height.ledger.to_le_bytes());
        bytes.extend(height.seq.to_le_bytes());
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_whole_or_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.mark");
        assert_eq!(Mark::read(&path).unwrap(), None);
        let height = Height { ledger: 7, seq: 1 };
        let mut mark = Mark::open(&path, height).unwrap();
        assert_eq!(Mark::read(&path).unwrap(), Some(height));
        let higher = Height { ledger: 7, seq: u64::MAX };
        mark.raise(higher).unwrap();
        drop(mark);
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            fs::write(&path, &bad).unwrap();
            assert!(Mark::read(&path).is_err(), "byte {at}");
            fs::write(&path, &good[..at]).unwrap();
            assert!(Mark::read(&path).is_err(), "cut to {at}");
        }
        fs::write(&path, &good).unwrap();
        assert_eq!(Mark::read(&path).unwrap(), Some(higher));
    }
}
