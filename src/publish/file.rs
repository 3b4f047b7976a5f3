//! Files that are whole or absent: a reader, or a restart after any crash, sees the old contents
//! or the new, never a part.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::bounds::TABLE_BYTES_MAX;
use crate::wire::{LimitTable, TableError};

/// Name of the table file in a state directory; nodes may follow it.
pub const TABLE_FILE: &str = "table.json";

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Everyone,
    /// For secrets.
    Owner,
}

/// Replaces `dir/name`: a temporary file of a fixed name beside it, written and synced, renamed,
/// the directory synced. A crash leaves at most that one temporary file, which the next write
/// reuses.
///
/// # Errors
/// The first failing step, with the path; the old contents stay.
pub fn write_atomic(dir: &Path, name: &str, bytes: &[u8], access: Access) -> io::Result<()> {
    let temporary = dir.join(format!(".{name}.tmp"));
    let mode = if access == Access::Owner { 0o600 } else { 0o644 };
    // Never written through: an earlier crash may have left it, with whatever mode or link.
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(at(&temporary, &error)),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)
        .map_err(|error| at(&temporary, &error))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|error| at(&temporary, &error))?;
    let path = dir.join(name);
    std::fs::rename(&temporary, &path).map_err(|error| at(&path, &error))?;
    sync_dir(dir)
}

/// Makes renames in `dir` durable.
///
/// # Errors
/// With the path.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| at(dir, &error))
}

/// The contents of a file of at most `bytes_max`; none where there is no file.
///
/// # Errors
/// With the path, also when the file is larger.
pub fn read_bounded(path: &Path, bytes_max: usize) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|error| at(path, &error))?,
    };
    let mut bytes = Vec::new();
    let limit = u64::try_from(bytes_max).unwrap_or(u64::MAX).saturating_add(1);
    file.take(limit).read_to_end(&mut bytes).map_err(|error| at(path, &error))?;
    if bytes.len() > bytes_max {
        let error = io::Error::new(ErrorKind::FileTooLarge, format!("more than {bytes_max} bytes"));
        return Err(at(path, &error));
    }
    Ok(Some(bytes))
}

/// The table that was published last.
///
/// # Errors
/// An unreadable file, or one that is not a valid table; the reason names the path.
pub fn load_table(dir: &Path) -> io::Result<Option<LimitTable>> {
    let path = dir.join(TABLE_FILE);
    let Some(bytes) = read_bounded(&path, TABLE_BYTES_MAX)? else {
        return Ok(None);
    };
    let table = LimitTable::decode(&bytes)
        .map_err(|error: TableError| at(&path, &io::Error::new(ErrorKind::InvalidData, error)))?;
    Ok(Some(table))
}

/// An error that names its place.
pub(crate) fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn d07_a_crash_before_the_rename_changes_nothing_and_leaves_no_file_behind() {
        let dir = tempfile::tempdir().unwrap();
        write_atomic(dir.path(), "table.json", b"old", Access::Everyone).unwrap();
        // Died after writing half of the temporary file.
        std::fs::write(dir.path().join(".table.json.tmp"), b"ne").unwrap();
        assert_eq!(read_bounded(&dir.path().join("table.json"), 10).unwrap().unwrap(), b"old");
        write_atomic(dir.path(), "table.json", b"new", Access::Everyone).unwrap();
        assert_eq!(read_bounded(&dir.path().join("table.json"), 10).unwrap().unwrap(), b"new");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_keeps_the_old_contents_and_names_the_path() {
        let dir = tempfile::tempdir().unwrap();
        write_atomic(dir.path(), "table.json", b"old", Access::Everyone).unwrap();
        std::fs::create_dir(dir.path().join(".table.json.tmp")).unwrap();
        let error = write_atomic(dir.path(), "table.json", b"new", Access::Everyone).unwrap_err();
        assert!(error.to_string().contains(".table.json.tmp"), "{error}");
        assert_eq!(read_bounded(&dir.path().join("table.json"), 10).unwrap().unwrap(), b"old");
    }

    #[test]
    fn secrets_are_the_owners_and_reads_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        write_atomic(dir.path(), "token", b"secret", Access::Owner).unwrap();
        let path = dir.path().join("token");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(read_bounded(&path, 5).unwrap_err().to_string().contains("more than 5 bytes"));
        assert_eq!(read_bounded(&dir.path().join("absent"), 5).unwrap(), None);
    }

    #[test]
    fn a_damaged_table_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load_table(dir.path()).unwrap().is_none());
        std::fs::write(dir.path().join(TABLE_FILE), b"{\"schema\":1,").unwrap();
        assert!(load_table(dir.path()).unwrap_err().to_string().contains("table.json"));
    }
}
