//! Where a node keeps the tables it applied, for its next start: two slots, so that a damaged one
//! leaves the one before, and a lock, so that two processes never write into them.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::bounds::TABLE_BYTES_MAX;
use crate::enforce::follow::{FollowError, Found, age, decode, read_bounded};
use crate::wire::LimitTable;

const SLOTS: [&str; 2] = ["table.json", "table.1.json"];
const TEMPORARY: &str = ".table.json.tmp";
const LOCK: &str = "lock";

/// A state directory, held until [`Store::release`] or the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    /// The operating system's: it ends with its process, however that ends.
    lock: Option<File>,
    /// The slot that holds the newest table; the other one is written next.
    newest: usize,
}

/// What was found in the slots.
#[derive(Debug, Default)]
pub struct Kept {
    /// The newest table of all slots that hold one.
    pub found: Option<Found>,
    /// Slots that there are, but not to be used.
    pub damaged: Vec<FollowError>,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(
        "in use by another node (pid {holder}); stop that one, or give each node a `state` directory of its own"
    )]
    Held { holder: String },
    #[error("{what}: {error}")]
    Io { what: &'static str, error: io::Error },
}

// === impl Store ===

impl Store {
    /// Makes the directory where there is none, and takes it.
    ///
    /// # Errors
    /// Another process has it, or it cannot be written.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Store, StoreError> {
        let dir = dir.into();
        let at = |what| move |error| StoreError::Io { what, error };
        fs::create_dir_all(&dir).map_err(at("cannot be made"))?;
        let path = dir.join(LOCK);
        let mut options = OpenOptions::new();
        let opened = options.read(true).write(true).create(true).truncate(false).open(path);
        let mut file = opened.map_err(at("its file `lock` cannot be opened"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::Held { holder: holder(&mut file) }),
            Err(TryLockError::Error(error)) => Err(at("cannot be locked")(error))?,
        }
        // Only for the message to whoever comes second; the lock holds without it.
        let _ = file.set_len(0).and_then(|()| write!(file, "{}", std::process::id()));
        // Until the slots were read, the first table goes into the second one.
        let state = State { lock: Some(file), newest: 0 };
        Ok(Store { dir, state: Arc::new(Mutex::new(state)) })
    }

    /// Reads both slots.
    pub fn load(&self) -> Kept {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kept = Kept::default();
        for (at, slot) in SLOTS.iter().enumerate() {
            match read(&self.dir.join(slot)) {
                Ok(None) => {}
                Ok(Some(found)) => {
                    let former = kept.found.as_ref().map(|found| found.table.stamp);
                    if former.is_none_or(|former| former < found.table.stamp) {
                        state.newest = at;
                        kept.found = Some(found);
                    }
                }
                Err(error) => kept.damaged.push(error),
            }
        }
        kept
    }

    /// Replaces the older slot. Durable when it returns: the file, then its name, then the directory.
    ///
    /// # Errors
    /// Any step failed; the newest slot is untouched.
    pub fn save(&self, table: &LimitTable) -> io::Result<()> {
        let bytes = table.encode().map_err(io::Error::other)?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.lock.is_none() {
            return Err(io::Error::other("the state directory was given up"));
        }
        let next = (state.newest + 1) % SLOTS.len();
        let temporary = self.dir.join(TEMPORARY);
        // Never written through: a crash may have left it, as whatever it was.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = File::create_new(&temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, self.slot(next))?;
        File::open(&self.dir)?.sync_all()?;
        state.newest = next;
        Ok(())
    }

    /// Notes in the newest slot's time that its table was renewed now. Lost in a crash of the
    /// machine it costs a node only that it begins nearer to `safe`.
    ///
    /// # Errors
    /// The file is not there, or not to be changed.
    pub fn renew(&self) -> io::Result<()> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        #[expect(clippy::disallowed_methods, reason = "as a file's time, read by the next process")]
        let now = SystemTime::now();
        OpenOptions::new().write(true).open(self.slot(state.newest))?.set_modified(now)
    }

    /// Lets another process have the directory; nothing is written from here on.
    pub fn release(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).lock = None;
    }

    fn slot(&self, at: usize) -> PathBuf {
        self.dir.join(SLOTS.get(at).copied().unwrap_or_default())
    }
}

fn read(path: &Path) -> Result<Option<Found>, FollowError> {
    let unreadable = |error| FollowError::Read { path: path.to_owned(), error };
    let age = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Ok(metadata) if metadata.is_file() => metadata.modified().map_or(Duration::MAX, age),
        // Reading a pipe would wait for its writer.
        Ok(_) => return Err(unreadable(io::Error::other("not a regular file"))),
        Err(error) => return Err(unreadable(error)),
    };
    let bytes = read_bounded(path, TABLE_BYTES_MAX).map_err(unreadable)?;
    Ok(Some(Found { table: decode(path, &bytes)?, age }))
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.take(20).read_to_string(&mut text);
    let known = read.is_ok() && !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if known { text } else { "unknown".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(version: u64) -> LimitTable {
        let text = format!(
            r#"{{"schema":1,"epoch":1,"version":{version},"tick":9,"policy":"0","interval_ms":2000,
            "valid_for_ms":20000,"pools":{{"p":{{"unit":"requests","output_cost_milli":0,"budget":600,
            "waiting_work":9,"in_flight":9,"degraded":false,"shares":{{"n":1000000}},"unlisted_share":0}}}},
            "rows":[{{"model":"m","tier":"t","pool":"p","yields":{{"waiting":0,"in_flight":0}},"limits":{{
            "requests_per_minute":{{"tier_limit":600,"key_limit":60,"safe":60,"ceiling":900}}}}}}]}}"#
        );
        LimitTable::decode(text.as_bytes()).unwrap()
    }

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        (dir, store)
    }

    fn version(store: &Store) -> Option<u64> {
        store.load().found.map(|found| found.table.stamp.version)
    }

    #[test]
    fn f03_a_damaged_slot_leaves_the_one_before_and_two_leave_none() {
        let (dir, store) = store();
        assert_eq!(version(&store), None);
        for number in 1..=3 {
            store.save(&table(number)).unwrap();
            assert_eq!(version(&store), Some(number));
        }
        let newest = dir.path().join(SLOTS[1]);
        let good = fs::read(&newest).unwrap();
        for cut in 0..good.len() {
            fs::write(&newest, &good[..cut]).unwrap();
            let kept = store.load();
            assert_eq!(kept.found.unwrap().table.stamp.version, 2, "cut to {cut}");
            assert!(kept.damaged[0].to_string().contains(SLOTS[1]));
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x01;
            fs::write(&newest, &bad).unwrap();
            match store.load().found.unwrap().table {
                table if table.stamp.version == 3 => assert_eq!(table.encode().unwrap(), good, "byte {at}"),
                table => assert_eq!(table.stamp.version, 2, "byte {at}"),
            }
        }
        // Whatever is written next replaces the damaged slot, never the good one.
        fs::write(&newest, b"").unwrap();
        assert_eq!(version(&store), Some(2));
        store.save(&table(4)).unwrap();
        assert_eq!(fs::read(&newest).unwrap(), table(4).encode().unwrap());
        fs::remove_file(&newest).unwrap();
        assert_eq!(version(&store), Some(2));
        fs::remove_file(dir.path().join(SLOTS[0])).unwrap();
        fs::create_dir(dir.path().join(SLOTS[0])).unwrap();
        let kept = store.load();
        assert!(kept.found.is_none() && kept.damaged.len() == 1);
    }

    #[test]
    fn f02_a_kept_table_is_as_old_as_its_last_renewal() {
        const WEEK: Duration = Duration::from_secs(7 * 86_400);
        let (dir, store) = store();
        store.save(&table(1)).unwrap();
        let age = |store: &Store| store.load().found.unwrap().age;
        assert!(age(&store) < WEEK);
        let slot = OpenOptions::new().write(true).open(dir.path().join(SLOTS[1])).unwrap();
        let written = slot.metadata().unwrap().modified().unwrap();
        slot.set_modified(written - WEEK).unwrap();
        assert!(age(&store) >= WEEK);
        store.renew().unwrap();
        assert!(age(&store) < WEEK);
        // A clock that was set back: nobody can tell how old the table is.
        slot.set_modified(written + WEEK).unwrap();
        assert_eq!(age(&store), Duration::MAX);
    }

    #[test]
    fn a_second_process_is_refused_until_the_first_lets_go() {
        let (dir, store) = store();
        let error = Store::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
        store.release();
        let next = Store::open(dir.path()).unwrap();
        assert!(store.save(&table(1)).is_err(), "it is the next one's directory now");
        next.save(&table(1)).unwrap();
    }
}
