//! One controller a state directory: two would publish two truths under the same versions.
//!
//! The operating system's lock, so that it ends with its process, however that ends. What the
//! file says is only for the message to whoever comes second.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::publish::file::at;

const NAME: &str = "lock";

/// Held as long as the value lives.
#[derive(Debug)]
pub struct StateLock {
    path: PathBuf,
    file: File,
}

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error(
        "state directory {} is held by another controller ({holder}); \
         stop that one, or give this one another --state", dir.display()
    )]
    Held { dir: PathBuf, holder: String },
    #[error("{0}")]
    Io(#[from] io::Error),
}

#[derive(Serialize, Deserialize)]
struct Holder {
    pid: u32,
    listen: String,
}

// === impl StateLock ===

impl StateLock {
    /// Takes the lock without waiting.
    ///
    /// # Errors
    /// [`LockError::Held`] names the holder.
    pub fn take(dir: &Path, listen: &str) -> Result<StateLock, LockError> {
        let path = dir.join(NAME);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|error| at(&path, &error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(LockError::Held { dir: dir.to_owned(), holder: holder(&mut file) });
            }
            Err(TryLockError::Error(error)) => Err(at(&path, &error))?,
        }
        let mut lock = StateLock { path, file };
        lock.announce(listen)?;
        Ok(lock)
    }

    /// Says where this controller listens, once that is known.
    ///
    /// # Errors
    /// When the file cannot be written; the lock is held all the same.
    pub fn announce(&mut self, listen: &str) -> io::Result<()> {
        let holder = Holder { pid: std::process::id(), listen: listen.to_owned() };
        let text = serde_json::to_vec(&holder)?;
        let written = self.file.set_len(0).and_then(|()| {
            self.file.seek(SeekFrom::Start(0))?;
            self.file.write_all(&text)
        });
        written.map_err(|error| at(&self.path, &error))
    }
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.take(4096).read_to_string(&mut text);
    let (Ok(_), Ok(Holder { pid, listen })) = (read, serde_json::from_str(&text)) else {
        return "it has not said its name yet".to_owned();
    };
    // Written when its holder began to listen, and never again.
    let since = file.metadata().and_then(|meta| meta.modified()).ok().and_then(|at| at.elapsed().ok());
    let since = since.map_or(String::new(), |since| format!(", since {} s", since.as_secs()));
    format!("pid {pid}, listening on {listen}{since}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_one_learns_who_the_first_is() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = StateLock::take(dir.path(), "127.0.0.1:0").unwrap();
        first.announce("127.0.0.1:7600").unwrap();
        let error = StateLock::take(dir.path(), "127.0.0.1:1").unwrap_err().to_string();
        let wanted = format!("(pid {}, listening on 127.0.0.1:7600, since ", std::process::id());
        assert!(error.contains(&wanted), "{error}");
        drop(first);
        StateLock::take(dir.path(), "127.0.0.1:1").unwrap();
    }
}
