//! The ledger on disk: a journal of entries and the records they led to, in one `redb` file.
//!
//! A commit appends one batch of entries and is durable when it returns. Records are written now and
//! then, each as of its own last entry, and the entries before them removed; reading back, an entry
//! that a record has seen already changes nothing. So whatever of both is there, the state is the
//! same, and replaying it again is, too.

mod error;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::fs::File;
use std::io;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::PoisonError;

use redb::Database;
use redb::ReadableDatabase;
use redb::ReadableTable;
use redb::TableDefinition;

use crate::bounds::LEDGER_CACHE_BYTES_MAX;
use crate::ledger::book::Snapshot;
use crate::ledger::codec;
use crate::ledger::mark::Height;
use crate::ledger::mark::Mark;
use crate::ledger::record::Entry;
use crate::ledger::record::Holder;
use crate::ledger::record::Record;
use crate::ledger::share::Lists;

pub use error::StoreError;

use error::{at, damaged, engine};

/// The last entry's number, and the batch.
const JOURNAL: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("journal");
/// A holder's name, and its record.
const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("records");
const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");
const TEXTS: TableDefinition<'_, &str, &str> = TableDefinition::new("texts");
/// In `NUMBERS`: the ledger's own number, its format, how often it was opened, and the last entry
/// that was removed from the journal.
const LEDGER: &str = "ledger";
const FORMAT: &str = "format";
const LIVES: &str = "lives";
const TRIMMED: &str = "trimmed";
/// In `TEXTS`: lists of nodes, as JSON.
const LISTS: &str = "lists";
const FORMAT_KNOWN: u64 = 1;

const FILE: &str = "ledger.redb";
const MARK: &str = "ledger.mark";

#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    database: Database,
    mark: Mutex<Mark>,
    ledger: u64,
}

/// What a start finds.
#[derive(Debug)]
pub struct Found {
    pub store: Store,
    /// The last entry there is.
    pub seq: u64,
    /// Starts so far, this one included.
    pub lives: u64,
    pub lists: Lists,
    /// Requests that were in flight when the last life ended, settled now as they were reserved.
    pub settled: usize,
}

/// The whole journal, and of the records those that it changes and those with requests in flight.
struct Loaded {
    entries: Vec<Entry>,
    records: BTreeMap<Holder, Record>,
    /// The last entry that any record has seen.
    seq: u64,
}

/// What one commit writes.
#[derive(Debug, Default)]
pub struct Commit<'a> {
    pub entries: &'a [Entry],
    pub snapshots: &'a [Snapshot],
    /// Entries up to this one are in the records.
    pub trim: Option<u64>,
    pub lists: Option<&'a Lists>,
}

// === impl Store ===

impl Store {
    /// Opens the ledger of a directory, makes one where there is none, and settles what was in
    /// flight. `seed` numbers a new one.
    ///
    /// # Errors
    /// It cannot be used; what is on disk stays as it is.
    pub fn open(dir: &Path, seed: u64) -> Result<Found, StoreError> {
        let path = dir.join(FILE);
        if !fs::exists(&path).map_err(|error| at(&path, error))? {
            create(dir, seed)?;
        }
        let store = Store::attach(dir)?;
        contained(&path, || store.recover()).map(|(seq, lives, lists, settled)| Found {
            store,
            seq,
            lives,
            lists,
            settled,
        })
    }

    /// Opens it again within one life: what is in flight stays.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn attach(dir: &Path) -> Result<Store, StoreError> {
        let path = dir.join(FILE);
        let marked = Mark::read(&dir.join(MARK)).map_err(|error| match error.kind() {
            io::ErrorKind::Other => StoreError::Damaged { path: dir.join(MARK), reason: error.to_string() },
            _ => at(&dir.join(MARK), error),
        })?;
        let (database, ledger, seq) = contained(&path, || {
            let mut database = Database::builder()
                .set_cache_size(LEDGER_CACHE_BYTES_MAX)
                .open(&path)
                .map_err(|error| engine(&path, error))?;
            // After a crash this was done on opening already; after a clean end nothing was looked at.
            if !database.check_integrity().map_err(|error| engine(&path, error))? {
                return Err(damaged(&path, "its pages do not have their checksums"));
            }
            let (ledger, seq) = heights(&database, &path)?;
            Ok((database, ledger, seq))
        })?;
        match marked {
            Some(mark) if mark.ledger != ledger => return Err(StoreError::Other { path }),
            Some(mark) if mark.seq > seq => {
                return Err(StoreError::Behind { path, found: seq, expected: mark.seq });
            }
            _ => {}
        }
        let mark = Mark::open(&dir.join(MARK), Height { ledger, seq })
            .map_err(|error| at(&dir.join(MARK), error))?;
        Ok(Store { path, database, mark: Mutex::new(mark), ledger })
    }

    /// The last entry in the journal.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn committed(&self) -> Result<u64, StoreError> {
        let path = self.path.as_path();
        contained(path, || heights(&self.database, path).map(|(_, seq)| seq))
    }

    /// What there is of a holder; an empty record where there is nothing.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    pub fn read(&self, holder: &Holder) -> Result<Record, StoreError> {
        let path = self.path.as_path();
        contained(path, || {
            let transaction = self.database.begin_read().map_err(|error| engine(path, error))?;
            let records = transaction.open_table(RECORDS).map_err(|error| engine(path, error))?;
            let name = codec::name(holder);
            match records.get(name.as_slice()).map_err(|error| engine(path, error))? {
                None => Ok(Record::default()),
                Some(bytes) => {
                    codec::read_record(bytes.value()).map_err(|error| damaged(path, &error.to_string()))
                }
            }
        })
    }

    /// Durable when it returns.
    ///
    /// # Errors
    /// Whether it is on disk is not known; the store has to be attached anew.
    pub fn commit(&self, commit: &Commit<'_>) -> Result<(), StoreError> {
        let path = self.path.as_path();
        contained(path, || {
            write(&self.database, |transaction| {
                if let Some(last) = commit.entries.last() {
                    let mut journal = transaction.open_table(JOURNAL)?;
                    journal.insert(last.seq, codec::batch(commit.entries).as_slice())?;
                }
                if !commit.snapshots.is_empty() {
                    let mut records = transaction.open_table(RECORDS)?;
                    for Snapshot { holder, bytes, .. } in commit.snapshots {
                        let name = codec::name(holder);
                        match bytes {
                            Some(bytes) => drop(records.insert(name.as_slice(), bytes.as_slice())?),
                            None => drop(records.remove(name.as_slice())?),
                        }
                    }
                }
                if let Some(upto) = commit.trim {
                    transaction.open_table(JOURNAL)?.retain_in(..=upto, |_, _| false)?;
                    transaction.open_table(NUMBERS)?.insert(TRIMMED, upto)?;
                }
                if let Some(lists) = commit.lists {
                    keep_lists(transaction, lists)?;
                }
                Ok(())
            })
            .map_err(|error| engine(path, error))?;
            let Some(last) = commit.entries.last() else { return Ok(()) };
            let mut mark = self.mark.lock().unwrap_or_else(PoisonError::into_inner);
            mark.raise(Height { ledger: self.ledger, seq: last.seq }).map_err(|error| at(path, error))
        })
    }

    /// Replays the journal and settles what was in flight, in one transaction: all of it or none.
    fn recover(&self) -> Result<(u64, u64, Lists, usize), StoreError> {
        let path = self.path.as_path();
        let Loaded { entries, mut records, mut seq } = self.load()?;
        for entry in &entries {
            records.entry(entry.holder).or_default().apply(entry);
            seq = seq.max(entry.seq);
        }
        // An account's request and its key's are one.
        let in_flight: BTreeSet<u64> =
            records.values().flat_map(|record| record.open().map(|(id, _)| id)).collect();
        let bytes: Vec<(Vec<u8>, Vec<u8>)> = records
            .iter_mut()
            .map(|(holder, record)| {
                record.settle_all();
                (codec::name(holder), codec::record(record))
            })
            .collect();
        let (mut lives, mut lists) = (0, Lists::default());
        write(&self.database, |transaction| {
            let mut table = transaction.open_table(RECORDS)?;
            for (name, record) in &bytes {
                table.insert(name.as_slice(), record.as_slice())?;
            }
            transaction.open_table(JOURNAL)?.retain(|_, _| false)?;
            let mut numbers = transaction.open_table(NUMBERS)?;
            numbers.insert(TRIMMED, seq)?;
            lives = numbers.get(LIVES)?.map_or(0, |lives| lives.value()).saturating_add(1);
            numbers.insert(LIVES, lives)?;
            let texts = transaction.open_table(TEXTS)?;
            let kept = texts.get(LISTS)?;
            lists = kept.and_then(|text| serde_json::from_str(text.value()).ok()).unwrap_or_default();
            Ok(())
        })
        .map_err(|error| engine(path, error))?;
        Ok((seq, lives, lists, in_flight.len()))
    }

    fn load(&self) -> Result<Loaded, StoreError> {
        let path = self.path.as_path();
        let bad = |error: codec::Damaged| damaged(path, &error.to_string());
        let transaction = self.database.begin_read().map_err(|error| engine(path, error))?;
        let journal = transaction.open_table(JOURNAL).map_err(|error| engine(path, error))?;
        let mut entries = Vec::new();
        for batch in journal.iter().map_err(|error| engine(path, error))? {
            let (_, batch) = batch.map_err(|error| engine(path, error))?;
            entries.extend(codec::entries(batch.value()).map_err(bad)?);
        }
        entries.sort_by_key(|entry| entry.seq);
        let changed: BTreeSet<Holder> = entries.iter().map(|entry| entry.holder).collect();
        let numbers = transaction.open_table(NUMBERS).map_err(|error| engine(path, error))?;
        let trimmed = numbers.get(TRIMMED).map_err(|error| engine(path, error))?;
        let mut seq = trimmed.map_or(0, |seq| seq.value());
        let mut records = BTreeMap::new();
        let table = transaction.open_table(RECORDS).map_err(|error| engine(path, error))?;
        for record in table.iter().map_err(|error| engine(path, error))? {
            let (name, bytes) = record.map_err(|error| engine(path, error))?;
            let holder = codec::holder(name.value()).map_err(bad)?;
            let record = codec::read_record(bytes.value()).map_err(bad)?;
            seq = seq.max(record.seq());
            if changed.contains(&holder) || record.open().next().is_some() {
                records.insert(holder, record);
            }
        }
        Ok(Loaded { entries, records, seq })
    }
}

/// A whole empty ledger appears at once, or none.
fn create(dir: &Path, seed: u64) -> Result<(), StoreError> {
    let path = dir.join(FILE);
    if Mark::read(&dir.join(MARK)).map_err(|error| at(&dir.join(MARK), error))?.is_some() {
        return Err(StoreError::Other { path });
    }
    let temporary = dir.join(".ledger.redb.tmp");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&temporary, error)),
        _ => {}
    }
    contained(&temporary, || {
        let database = Database::create(&temporary).map_err(|error| engine(&temporary, error))?;
        write(&database, |transaction| {
            transaction.open_table(JOURNAL)?;
            transaction.open_table(RECORDS)?;
            transaction.open_table(TEXTS)?;
            let mut numbers = transaction.open_table(NUMBERS)?;
            numbers.insert(FORMAT, FORMAT_KNOWN)?;
            numbers.insert(LEDGER, seed)?;
            numbers.insert(TRIMMED, 0)?;
            numbers.insert(LIVES, 0)?;
            Ok(())
        })
        .map_err(|error| engine(&temporary, error))
    })?;
    File::open(&temporary).and_then(|file| file.sync_all()).map_err(|error| at(&temporary, error))?;
    fs::rename(&temporary, &path).map_err(|error| at(&path, error))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| at(dir, error))
}

/// The ledger's number and its last entry.
fn heights(database: &Database, path: &Path) -> Result<(u64, u64), StoreError> {
    let read = || -> Result<(Option<u64>, Option<u64>, u64, u64), redb::Error> {
        let transaction = database.begin_read()?;
        let numbers = transaction.open_table(NUMBERS)?;
        let number = |name| numbers.get(name).map(|value| value.map(|value| value.value()));
        let last = transaction.open_table(JOURNAL)?.last()?.map_or(0, |(seq, _)| seq.value());
        Ok((number(FORMAT)?, number(LEDGER)?, number(TRIMMED)?.unwrap_or(0), last))
    };
    match read().map_err(|error| engine(path, error))? {
        (Some(FORMAT_KNOWN), Some(ledger), trimmed, last) => Ok((ledger, trimmed.max(last))),
        (format, ..) => Err(damaged(path, &format!("its format is {format:?}, known is {FORMAT_KNOWN}"))),
    }
}

fn write(
    database: &Database,
    change: impl FnOnce(&redb::WriteTransaction) -> Result<(), redb::Error>,
) -> Result<(), redb::Error> {
    // Durable unless asked otherwise: `Durability::Immediate`.
    let transaction = database.begin_write()?;
    change(&transaction)?;
    Ok(transaction.commit()?)
}

fn keep_lists(transaction: &redb::WriteTransaction, lists: &Lists) -> Result<(), redb::Error> {
    let text = serde_json::to_string(lists).unwrap_or_default();
    transaction.open_table(TEXTS)?.insert(LISTS, text.as_str())?;
    Ok(())
}

/// The engine asserts what a damaged file breaks; that ends the use of the file, not the node.
fn contained<T>(path: &Path, call: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| Err(damaged(path, "the engine gave up on it")))
}
