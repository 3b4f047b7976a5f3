//! Why the ledger's file cannot be used, and whether time may mend that.

use std::io;
use std::path::Path;
use std::path::PathBuf;

use super::MARK;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Time may mend it: it is tried again.
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: io::Error },
    #[error("{path}: {error}")]
    Engine { path: PathBuf, error: redb::Error },
    /// Somebody has to look at it.
    #[error(
        "{path} is damaged: {reason}; restore it from a backup and remove `{MARK}` beside it to accept what the backup \
         has, or remove both to begin anew with nothing used"
    )]
    Damaged { path: PathBuf, reason: String },
    #[error(
        "{path} ends at entry {found}, but entry {expected} was acknowledged: it is an older copy, or it fell back to an \
         older state; bring back the newest one, or remove `{MARK}` beside it to accept that what was used since is \
         forgotten"
    )]
    Behind { path: PathBuf, found: u64, expected: u64 },
    #[error(
        "{path} is not the ledger that `{MARK}` beside it belongs to, or is gone; bring it back, or remove `{MARK}` to \
         go on with what there is"
    )]
    Other { path: PathBuf },
}

pub(super) fn at(path: &Path, error: io::Error) -> StoreError {
    StoreError::Io { path: path.to_owned(), error }
}

pub(super) fn damaged(path: &Path, reason: &str) -> StoreError {
    StoreError::Damaged { path: path.to_owned(), reason: reason.to_owned() }
}

pub(super) fn engine(path: &Path, error: impl Into<redb::Error>) -> StoreError {
    use redb::Error as E;
    match error.into() {
        E::Io(error) => match error.kind() {
            // A file that is too short, or no ledger at all.
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => damaged(path, &error.to_string()),
            _ => at(path, error),
        },
        error @ (E::PreviousIo | E::DatabaseAlreadyOpen | E::DatabaseClosed) => {
            StoreError::Engine { path: path.to_owned(), error }
        }
        error => damaged(path, &error.to_string()),
    }
}

// === impl StoreError ===

impl StoreError {
    /// Whether trying again may help.
    pub fn passes(&self) -> bool {
        matches!(self, StoreError::Io { .. } | StoreError::Engine { .. })
    }
}
