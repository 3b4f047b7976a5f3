//! Power loss: what the controller wrote, renamed and synced is recorded from the real program, and
//! every state that a crash may leave of it is built and recovered from.
//!
//! The model is stricter than most file systems: a sync makes the data of its file durable and
//! nothing else; names are durable once their directory is synced; whatever is not synced may be
//! there, be missing, be torn, or be there in length only, in any combination.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use sha2::{Digest, Sha256};
use tidegate::publish::file::{TABLE_FILE, load_table};
use tidegate::publish::journal::Journal;
use tidegate::wire::{LimitTable, Stamp};

use crate::daemon::{Place, long};
use crate::syscalls::paths;

/// What a disk loses at a time.
const SECTOR: usize = 512;
/// Enough to see what is wrong.
const BROKEN_MAX: usize = 10;

type Id = usize;
type Contents = BTreeMap<String, Vec<u8>>;

#[derive(Clone, Debug, PartialEq)]
enum Op {
    Create(String, Id),
    Append(Id, Vec<u8>),
    Cut(Id, usize),
    Sync(Id),
    Rename(String, String),
    Unlink(String),
    SyncDir,
}

// === the recording ===

#[derive(Default)]
struct Recording {
    ops: Vec<Op>,
    /// As the running program sees them.
    names: BTreeMap<String, Id>,
    files: usize,
}

impl Recording {
    fn add(&mut self, trace: &str, dir: &Path) {
        let mut descriptors: BTreeMap<String, Option<Id>> = BTreeMap::new();
        let mut begun: BTreeMap<&str, &str> = BTreeMap::new();
        for line in trace.lines() {
            let Some((pid, call)) = line.split_once(' ').map(|(pid, call)| (pid, call.trim_start())) else {
                continue;
            };
            if let Some(head) = call.strip_suffix(" <unfinished ...>") {
                begun.insert(pid, head);
                continue;
            }
            let whole = match call.split_once(" resumed>") {
                Some((_, tail)) => format!("{}{tail}", begun.remove(pid).unwrap_or_default()),
                None => call.to_owned(),
            };
            self.call(&whole, dir, &mut descriptors);
        }
    }

    fn call(&mut self, call: &str, dir: &Path, descriptors: &mut BTreeMap<String, Option<Id>>) {
        let Some((name, rest)) = call.split_once('(') else { return };
        let Some((arguments, result)) = rest.rsplit_once(") ") else { return };
        let result = result.trim_start().trim_start_matches("= ").split(' ').next().unwrap();
        if result.starts_with('-') || result == "?" {
            return;
        }
        let strings: Vec<Vec<u8>> = arguments.split('"').skip(1).step_by(2).map(bytes).collect();
        let descriptor = arguments.split([',', ')']).next().unwrap().to_owned();
        let within = |bytes: &Vec<u8>| {
            let path = Path::new(std::str::from_utf8(bytes).unwrap());
            path.strip_prefix(dir).ok().map(|name| name.to_str().unwrap().to_owned())
        };
        match name {
            "openat" => {
                let Some(file) = within(&strings[0]) else { return };
                if file.is_empty() {
                    descriptors.insert(result.to_owned(), None);
                    return;
                }
                let flags = arguments.rsplit('"').next().unwrap();
                let id = match self.names.get(&file) {
                    Some(id) => *id,
                    None => {
                        self.files += 1;
                        self.names.insert(file.clone(), self.files);
                        self.ops.push(Op::Create(file, self.files));
                        self.files
                    }
                };
                if flags.contains("O_TRUNC") {
                    self.ops.push(Op::Cut(id, 0));
                }
                descriptors.insert(result.to_owned(), Some(id));
            }
            "close" => drop(descriptors.remove(&descriptor)),
            "write" => {
                let Some(Some(id)) = descriptors.get(&descriptor) else { return };
                let count: usize = result.parse().unwrap();
                assert!(strings[0].len() >= count, "the trace is cut: {} of {count}", strings[0].len());
                self.ops.push(Op::Append(*id, strings[0][..count].to_vec()));
            }
            "ftruncate" => {
                let Some(Some(id)) = descriptors.get(&descriptor) else { return };
                let length = arguments.split(", ").nth(1).unwrap().parse().unwrap();
                self.ops.push(Op::Cut(*id, length));
            }
            "fsync" | "fdatasync" => match descriptors.get(&descriptor) {
                Some(Some(id)) => self.ops.push(Op::Sync(*id)),
                Some(None) => self.ops.push(Op::SyncDir),
                None => {}
            },
            "rename" => {
                let (Some(from), Some(to)) = (within(&strings[0]), within(&strings[1])) else { return };
                let id = self.names.remove(&from).unwrap();
                self.names.insert(to.clone(), id);
                self.ops.push(Op::Rename(from, to));
            }
            "unlink" => {
                let Some(file) = within(&strings[0]) else { return };
                self.names.remove(&file);
                self.ops.push(Op::Unlink(file));
            }
            _ => {}
        }
    }
}

/// `\x41\x42`
fn bytes(text: &str) -> Vec<u8> {
    text.split("\\x").skip(1).map(|hex| u8::from_str_radix(hex, 16).unwrap()).collect()
}

// === the disk ===

#[derive(Clone, Default)]
struct Disk {
    /// What survives.
    names: BTreeMap<String, Id>,
    files: BTreeMap<Id, Vec<u8>>,
    /// What may not, in order.
    naming: Vec<Op>,
    data: BTreeMap<Id, Vec<Op>>,
}

impl Disk {
    fn apply(&mut self, op: &Op) {
        match op {
            Op::Append(id, _) | Op::Cut(id, _) => self.data.entry(*id).or_default().push(op.clone()),
            Op::Sync(id) => {
                let file = self.files.entry(*id).or_default();
                self.data.remove(id).unwrap_or_default().iter().for_each(|op| write(file, op));
            }
            Op::SyncDir => self.naming.drain(..).for_each(|op| rename(&mut self.names, &op)),
            naming => self.naming.push(naming.clone()),
        }
    }

    /// Every state that a crash may leave.
    fn crashes(&self) -> Vec<Contents> {
        let mut contents: Vec<BTreeMap<Id, Vec<u8>>> = vec![self.files.clone()];
        for (id, ops) in &self.data {
            let old = self.files.get(id).cloned().unwrap_or_default();
            let variants = variants(&old, ops);
            contents = contents
                .iter()
                .flat_map(|files| {
                    variants.iter().map(move |variant| {
                        let mut files = files.clone();
                        files.insert(*id, variant.clone());
                        files
                    })
                })
                .collect();
        }
        let mut states = Vec::new();
        for subset in 0..1_u32 << self.naming.len() {
            let mut names = self.names.clone();
            for (at, op) in self.naming.iter().enumerate() {
                if subset >> at & 1 == 1 {
                    rename(&mut names, op);
                }
            }
            for files in &contents {
                let of = |id: &Id| files.get(id).cloned().unwrap_or_default();
                states.push(names.iter().map(|(name, id)| (name.clone(), of(id))).collect());
            }
        }
        states
    }
}

fn write(file: &mut Vec<u8>, op: &Op) {
    match op {
        Op::Append(_, bytes) => file.extend_from_slice(bytes),
        Op::Cut(_, length) => file.truncate(*length),
        _ => {}
    }
}

fn rename(names: &mut BTreeMap<String, Id>, op: &Op) {
    match op {
        Op::Create(name, id) => drop(names.insert(name.clone(), *id)),
        Op::Unlink(name) => drop(names.remove(name)),
        // Without its creation there is nothing to rename.
        Op::Rename(from, to) => {
            if let Some(id) = names.remove(from) {
                names.insert(to.clone(), id);
            }
        }
        _ => {}
    }
}

/// What is left of unsynced writes to a file: none, all, the length alone, each part of the last.
fn variants(old: &[u8], ops: &[Op]) -> Vec<Vec<u8>> {
    let mut whole = old.to_vec();
    let mut found = vec![whole.clone()];
    for op in ops {
        let before = whole.clone();
        write(&mut whole, op);
        found.push(whole.clone());
        if let Op::Append(_, bytes) = op {
            let zeros = vec![0; bytes.len()];
            found.push([&before[..], &zeros[..]].concat());
            let cuts: Vec<usize> = (SECTOR..bytes.len()).step_by(SECTOR).collect();
            let step = if long() { 1 } else { cuts.len().max(1) };
            for cut in
                cuts.iter().step_by(step).copied().chain([bytes.len() / 2, bytes.len().saturating_sub(1)])
            {
                found.push([&before[..], &bytes[..cut]].concat());
                found.push([&before[..], &bytes[..cut], &zeros[cut..]].concat());
            }
        }
    }
    found.sort();
    found.dedup();
    found
}

// === the promise ===

/// States looked at, and what broke the promise in them.
#[derive(Default)]
struct Verdict {
    states: usize,
    announced: usize,
    broken: Vec<String>,
}

/// `early`: as a program that announces a table before its name is durable.
fn judge(ops: &[Op], early: bool) -> Verdict {
    let mut verdict = Verdict::default();
    let mut disk = Disk::default();
    // As the program sees its directory: what it renamed to the table's name was a whole table.
    let (mut names, mut files) = (BTreeMap::new(), BTreeMap::<Id, Vec<u8>>::new());
    let mut tables: BTreeSet<Vec<u8>> = BTreeSet::new();
    let (mut renamed, mut announced) = (None, None::<Stamp>);
    let mut seen = BTreeSet::new();
    let scratch = tempfile::tempdir().unwrap();
    for (at, op) in ops.iter().enumerate() {
        if verdict.broken.len() > BROKEN_MAX {
            break;
        }
        disk.apply(op);
        match op {
            Op::Append(id, _) | Op::Cut(id, _) => write(files.entry(*id).or_default(), op),
            Op::Rename(_, to) => {
                rename(&mut names, op);
                if to == TABLE_FILE {
                    let bytes = files[&names[TABLE_FILE]].clone();
                    renamed = Some(LimitTable::decode(&bytes).unwrap().stamp);
                    tables.insert(bytes);
                    announced = if early { renamed } else { announced };
                }
            }
            // The last step before a table is announced.
            Op::SyncDir => {
                verdict.announced += usize::from(renamed.is_some());
                announced = renamed.take().or(announced);
            }
            naming => rename(&mut names, naming),
        }
        for state in disk.crashes() {
            let mut hash = Sha256::new();
            for (name, bytes) in &state {
                hash.update(name);
                hash.update((bytes.len() as u64).to_le_bytes());
                hash.update(bytes);
            }
            if !seen.insert((announced, hash.finalize().to_vec())) {
                continue;
            }
            verdict.states += 1;
            if let Err(reason) = recovers(scratch.path(), &state, announced, &tables) {
                verdict.broken.push(format!("after step {at} ({}): {reason}", step(op)));
            }
        }
    }
    verdict
}

fn step(op: &Op) -> String {
    format!("{op:?}").chars().take(60).collect()
}

fn recovers(
    dir: &Path,
    state: &Contents,
    announced: Option<Stamp>,
    tables: &BTreeSet<Vec<u8>>,
) -> Result<(), String> {
    for entry in std::fs::read_dir(dir).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    for (name, bytes) in state {
        std::fs::write(dir.join(name), bytes).unwrap();
    }
    let table = load_table(dir).map_err(|error| format!("the table is torn: {error}"))?;
    if let Some(bytes) = state.get(TABLE_FILE)
        && !tables.contains(bytes)
    {
        return Err("the table is one that nobody wrote".to_owned());
    }
    let (_, entry) = Journal::open::<serde_json::Value>(dir, 32 << 20).map_err(|error| error.to_string())?;
    let entry = entry.map(|entry| serde_json::from_value::<Stamp>(entry["state"]["stamp"].clone()));
    let entry = entry.transpose().map_err(|error| format!("the journal's entry: {error}"))?;
    let table = table.map(|table| table.stamp);
    if table < announced {
        return Err(format!("announced {announced:?}, in the table file is {table:?}"));
    }
    if entry < announced {
        return Err(format!("announced {announced:?}, in the journal is {entry:?}"));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d05_whatever_a_power_loss_leaves_the_old_or_the_new_table_is_recovered() {
    let place = Place::new().await;
    let paths = paths(&place);
    let state = place.state().canonicalize().unwrap();
    let calls = "trace=openat,write,fsync,fdatasync,rename,unlink,ftruncate,close";
    let mut recording = Recording::default();
    // A first start, and one that goes on.
    for tables in [3, if long() { 20 } else { 4 }] {
        let options = ["-xx", "-s", "4000000", "-e", calls];
        let Some((begin, out)) = place.begin().traced(&paths, &options) else { return };
        let daemon = begin.start().unwrap();
        let mut stamp = daemon.table().await.stamp;
        for _ in 0..tables {
            stamp = daemon.after(stamp).await.stamp;
        }
        daemon.stop();
        recording.add(&std::fs::read_to_string(out).unwrap(), &state);
    }
    let ops = recording.ops;
    let verdict = judge(&ops, false);
    println!("{} steps, {} tables, {} states after a crash", ops.len(), verdict.announced, verdict.states);
    assert!(verdict.announced >= 7 && verdict.states > 150, "the recording has gaps");
    assert_eq!(verdict.broken, Vec::<String>::new());

    // A program that left out a step would be found.
    let id = |name: &str| {
        let mut names = BTreeMap::new();
        ops.iter()
            .filter_map(|op| {
                rename(&mut names, op);
                matches!(op, Op::Rename(_, to) if to == name).then(|| names[name])
            })
            .collect::<BTreeSet<Id>>()
    };
    let (tables, journals) = (id(TABLE_FILE), id("journal.jsonl"));
    let without =
        |wanted: &dyn Fn(&Op) -> bool| -> Vec<Op> { ops.iter().filter(|op| !wanted(op)).cloned().collect() };
    let planted = [
        ("a table's sync", without(&|op| matches!(op, Op::Sync(id) if tables.contains(id))), false),
        ("the journal's sync", without(&|op| matches!(op, Op::Sync(id) if journals.contains(id))), false),
        ("the directory's sync", ops.clone(), true),
    ];
    for (what, ops, early) in planted {
        assert!(!judge(&ops, early).broken.is_empty(), "without {what} nothing broke");
    }
}
