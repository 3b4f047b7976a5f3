//! Editors, copies and volumes at a running `tidegate control`: the system calls they make, and
//! that nothing but the contents they end with is ever taken.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::program::{Program, wait_for};
use crate::support::{get, metric, replica, until};
use tidegate::policy::load::load_bytes;
use tidegate::wire::LimitTable;

const PAGE: &str = "vllm:num_requests_running 3\nvllm:num_requests_waiting 0\n\
                    vllm:prompt_tokens_total 500\nvllm:generation_tokens_total 10\n";
const FAILURES: &str = "tidegate_policy_reload_failures_total";
const SUCCESSFUL: &str = "tidegate_policy_last_reload_successful";

/// A controller in a process of its own, and what its policy file should say.
struct Desk {
    dir: tempfile::TempDir,
    program: Program,
    target: SocketAddr,
    edits: u32,
}

impl Desk {
    async fn open() -> Desk {
        let target = replica(PAGE).await;
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("policies")).unwrap();
        fs::write(dir.path().join("policies/chat.yaml"), text(target, 40)).unwrap();
        let program = Program::start(dir.path(), "127.0.0.1:0");
        let desk = Desk { dir, program, target, edits: 40 };
        desk.taken("at the start", &text(target, 40)).await;
        desk
    }

    fn addr(&self) -> SocketAddr {
        self.program.addr
    }

    fn policies(&self) -> PathBuf {
        self.dir.path().join("policies")
    }

    fn file(&self) -> PathBuf {
        self.policies().join("chat.yaml")
    }

    /// A good text that was never there before.
    fn next(&mut self) -> String {
        self.edits += 1;
        text(self.target, self.edits)
    }

    /// The policy in force becomes `text`; says how long that took.
    async fn taken(&self, how: &str, text: &str) -> Duration {
        let begun = Instant::now();
        let wanted = digest(text);
        until(how, async || (self.policy().await? == wanted).then_some(())).await;
        begun.elapsed()
    }

    /// Digest of the policy of the table in force.
    async fn policy(&self) -> Option<String> {
        Some(LimitTable::decode(&get(self.addr(), "/v1/table").await.body).ok()?.policy)
    }

    async fn refused(&self, how: &str) {
        until(how, async || (metric(self.addr(), SUCCESSFUL).await == 0.0).then_some(())).await;
        assert_eq!(get(self.addr(), "/-/ready").await.status, 200, "{how}");
    }

    fn descriptors(&self) -> Vec<String> {
        let dir = format!("/proc/{}/fd", self.program.child.id());
        let links = fs::read_dir(dir).unwrap().flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
        links.map(|link| link.to_string_lossy().into_owned()).collect()
    }
}

/// A few kilobytes, so that a write can stop half-way.
fn text(target: SocketAddr, ceiling: u32) -> String {
    let models: String = (0..60).map(|at| format!("  model-{at}: {{pool: gpu}}\n")).collect();
    format!(
        "product: chat\ninterval: 500ms\npools:\n  gpu: {{preset: vllm, targets: [http://{target}/metrics], slo: 1s}}\n\
         tiers:\n  free: {{priority: 1, weight: 1, guarantee: 10 tpm, ceiling: {ceiling}k tpm, key_limits: unlimited}}\n\
         models:\n{models}"
    )
}

fn digest(text: &str) -> String {
    let loaded = load_bytes(vec![("chat.yaml".to_owned(), text.as_bytes().to_vec())]);
    loaded.unwrap_or_else(|found| panic!("{found:?}")).policy.digest
}

fn long() -> bool {
    std::env::var_os("TIDEGATE_LONG").is_some()
}

/// Written by pieces, as a slow disk or network lets it.
fn dribble(path: &Path, text: &str, pieces: usize, pause: Duration) {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(path).unwrap();
    for piece in text.as_bytes().chunks(text.len().div_ceil(pieces)) {
        file.write_all(piece).unwrap();
        file.flush().unwrap();
        std::thread::sleep(pause);
    }
}

/// What a program does, and how it leaves a text at a path.
type Editor = (&'static str, fn(&Path, &str));

/// What programs do when they save.
fn editors() -> Vec<Editor> {
    fn rename(path: &Path, temporary: &str, text: &str) {
        let temporary = path.with_file_name(temporary);
        let mut file = File::create(&temporary).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.sync_all().unwrap();
        fs::rename(temporary, path).unwrap();
    }
    vec![
        ("nano, cp: truncate, then write", |path, text| {
            let mut file = OpenOptions::new().write(true).truncate(true).open(path).unwrap();
            std::thread::sleep(Duration::from_millis(200));
            file.write_all(text.as_bytes()).unwrap();
        }),
        ("vim: the old one renamed away, the new one created", |path, text| {
            let (swap, backup) = (path.with_file_name(".chat.yaml.swp"), path.with_file_name("chat.yaml~"));
            fs::write(&swap, "b0VIM 9.0").unwrap();
            fs::write(path.with_file_name("4913"), "").unwrap();
            fs::remove_file(path.with_file_name("4913")).unwrap();
            fs::rename(path, &backup).unwrap();
            // Between these two there is no policy at all.
            std::thread::sleep(Duration::from_millis(200));
            let mut file = File::create(path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
            file.sync_all().unwrap();
            fs::remove_file(backup).unwrap();
            fs::remove_file(swap).unwrap();
        }),
        ("emacs: a lock that points nowhere, a backup, a file that grows", |path, text| {
            let lock = path.with_file_name(".#chat.yaml");
            symlink("operator@host.4242:1", &lock).unwrap();
            fs::copy(path, path.with_file_name("chat.yaml~")).unwrap();
            dribble(path, text, 3, Duration::from_millis(150));
            fs::remove_file(lock).unwrap();
        }),
        ("sed -i, rsync, most others: write beside it and rename", |path, text| {
            rename(path, ".chat.yaml.Xa81bQ", text);
        }),
        ("a temporary file that looks like a policy", |path, text| rename(path, ".tmp-chat.yaml", text)),
        ("git checkout: unlink, then create", |path, text| {
            fs::remove_file(path).unwrap();
            std::thread::sleep(Duration::from_millis(200));
            fs::write(path, text).unwrap();
        }),
        ("rsync --inplace -t: the same inode, size and time", |path, text| {
            let modified = fs::metadata(path).unwrap().modified().unwrap();
            let mut file = OpenOptions::new().write(true).open(path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
            file.set_modified(modified).unwrap();
        }),
        ("a hard link put in its place", |path, text| {
            let other = path.with_file_name("new.txt");
            fs::write(&other, text).unwrap();
            let link = path.with_file_name("link.txt");
            fs::hard_link(&other, &link).unwrap();
            fs::rename(&link, path).unwrap();
            fs::remove_file(other).unwrap();
        }),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c10_whatever_an_editor_does_only_the_final_state_is_taken() {
    let mut desk = Desk::open().await;
    for (how, save) in editors() {
        let text = desk.next();
        save(&desk.file(), &text);
        let took = desk.taken(how, &text).await;
        eprintln!("{:>5} ms  {how}", took.as_millis());
    }
    // No half of any of them was ever judged.
    assert_eq!(metric(desk.addr(), FAILURES).await, 0.0);

    // A ConfigMap: files are links through `..data`, which is swapped in one step.
    let dir = desk.policies();
    let revision = |name: &str, text: &str| {
        fs::create_dir(dir.join(name)).unwrap();
        fs::write(dir.join(name).join("chat.yaml"), text).unwrap();
    };
    let swap = |to: &str| {
        symlink(to, dir.join("..data_tmp")).unwrap();
        fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    };
    let first = desk.next();
    revision("..2026_01", &first);
    swap("..2026_01");
    symlink("..data/chat.yaml", dir.join("chat.new")).unwrap();
    fs::rename(dir.join("chat.new"), desk.file()).unwrap();
    desk.taken("a volume instead of a file", &first).await;
    for name in ["..2026_02", "..2026_03"] {
        let text = desk.next();
        revision(name, &text);
        swap(name);
        let took = desk.taken("a swap of ..data", &text).await;
        eprintln!("{:>5} ms  a ConfigMap's ..data swapped", took.as_millis());
    }
    // The directory itself swapped under its name.
    let text = desk.next();
    fs::create_dir(desk.dir.path().join("policies-2")).unwrap();
    fs::write(desk.dir.path().join("policies-2/chat.yaml"), &text).unwrap();
    fs::rename(desk.policies(), desk.dir.path().join("policies-1")).unwrap();
    symlink("policies-2", desk.policies()).unwrap();
    desk.taken("another directory under the name", &text).await;
    assert_eq!(metric(desk.addr(), FAILURES).await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c10_what_is_deleted_or_cannot_be_read_leaves_the_last_good_policy_in_force() {
    let mut desk = Desk::open().await;
    let good = desk.next();
    fs::write(desk.file(), &good).unwrap();
    desk.taken("an edit", &good).await;
    let path = desk.file();
    let mut failures = 0.0;
    type Harm = (&'static str, fn(&Path), &'static str);
    let harms: [Harm; 5] = [
        ("deleted", |path| fs::remove_file(path).unwrap(), "there is no policy file"),
        (
            "a directory in its place",
            |path| {
                let _ = fs::remove_file(path);
                fs::create_dir(path).unwrap();
            },
            "it is not a file",
        ),
        (
            "a link that points nowhere",
            |path| {
                let _ = fs::remove_dir(path);
                symlink("gone", path).unwrap();
            },
            "cannot be read",
        ),
        (
            "a link that points at itself",
            |path| {
                let _ = fs::remove_file(path);
                symlink(path, path).unwrap();
            },
            "cannot be read",
        ),
        (
            "the directory is gone",
            |path| fs::rename(path.parent().unwrap(), path.parent().unwrap().with_file_name("away")).unwrap(),
            "cannot be read",
        ),
    ];
    for (how, harm, said) in harms {
        harm(&path);
        until(how, async || (metric(desk.addr(), FAILURES).await > failures).then_some(())).await;
        failures += 1.0;
        desk.refused(how).await;
        let line = wait_for(&desk.program.log, "policy refused");
        assert!(line.contains(said), "{how}: {line}");
        assert_eq!(desk.policy().await.unwrap(), digest(&good), "{how}");
        // Once, and not again with every look.
        assert_eq!(metric(desk.addr(), FAILURES).await, failures, "{how}");
    }
    fs::create_dir(desk.policies()).unwrap();
    fs::write(&path, &good).unwrap();
    until("the gauge", async || (metric(desk.addr(), SUCCESSFUL).await == 1.0).then_some(())).await;
    // Root may read everything; anyone else is kept out by the mode.
    let text = desk.next();
    fs::write(&path, &text).unwrap();
    desk.taken("after all that", &text).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c06_a_file_written_slowly_is_taken_whole() {
    let mut desk = Desk::open().await;
    let before = desk.policy().await.unwrap();
    let text = desk.next();
    let path = desk.file();
    // A piece every 300 ms: no two reads half a second apart see the same.
    let (pieces, pause) = if long() { (100, 300) } else { (15, 300) };
    let writing = {
        let text = text.clone();
        tokio::task::spawn_blocking(move || dribble(&path, &text, pieces, Duration::from_millis(pause)))
    };
    let mut seen = BTreeSet::new();
    while !writing.is_finished() {
        seen.extend(desk.policy().await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    writing.await.unwrap();
    desk.taken("the whole", &text).await;
    seen.remove(&digest(&text));
    assert_eq!(seen, BTreeSet::from([before]));
    assert_eq!(metric(desk.addr(), FAILURES).await, 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c11_a_hundred_edits_a_second_are_one_edit_and_leak_nothing() {
    let mut desk = Desk::open().await;
    let edits = if long() { 6_000 } else { 300 };
    until("a quiet start", async || {
        (metric(desk.addr(), "tidegate_control_ticks_total").await > 2.0).then_some(())
    })
    .await;
    let descriptors = desk.descriptors().len();
    let (ticks, version) = (
        metric(desk.addr(), "tidegate_control_ticks_total").await,
        metric(desk.addr(), "tidegate_publish_version").await,
    );
    let mut written = BTreeSet::new();
    let begun = Instant::now();
    let mut last = String::new();
    for edit in 0..edits {
        last = desk.next();
        written.insert(digest(&last));
        if edit % 2 == 0 {
            fs::write(desk.file(), &last).unwrap();
        } else {
            let temporary = desk.policies().join(".new");
            fs::write(&temporary, &last).unwrap();
            fs::rename(temporary, desk.file()).unwrap();
        }
        let due = begun + Duration::from_millis(10 * (edit + 1));
        tokio::time::sleep_until(due.into()).await;
    }
    desk.taken("the last of them", &last).await;
    assert!(written.contains(&desk.policy().await.unwrap()));
    let (ticks, version) = (
        metric(desk.addr(), "tidegate_control_ticks_total").await - ticks,
        metric(desk.addr(), "tidegate_publish_version").await - version,
    );
    assert!(version <= ticks, "{version} versions in {ticks} ticks");
    assert_eq!(metric(desk.addr(), FAILURES).await, 0.0);
    until("as few descriptors as before", async || {
        (desk.descriptors().len() <= descriptors + 2).then_some(())
    })
    .await;
    eprintln!("{edits} edits: {version} versions in {ticks} ticks");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c14_there_is_no_watch_to_lose() {
    let mut desk = Desk::open().await;
    let watches = desk.descriptors().into_iter().filter(|link| link.contains("notify"));
    assert_eq!(watches.count(), 0, "it watches after all: then drop the watch here");
    // What kills a watch: its inode goes, and another one comes under the name.
    for _ in 0..2 {
        fs::rename(desk.policies(), desk.dir.path().join("dead")).unwrap();
        fs::create_dir(desk.policies()).unwrap();
        let text = desk.next();
        fs::write(desk.file(), &text).unwrap();
        desk.taken("a directory of another inode", &text).await;
        // Edits to the dead one are none.
        fs::write(desk.dir.path().join("dead/chat.yaml"), "nonsense").unwrap();
        fs::remove_dir_all(desk.dir.path().join("dead")).unwrap();
    }
}

/// Highest resident size of a process, bytes.
fn peak(id: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c05_hostile_files_cost_a_running_controller_little_memory() {
    let desk = Desk::open().await;
    let id = desk.program.child.id();
    let good = desk.policy().await.unwrap();
    let bomb: String = (b'b'..=b'z').fold("a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned(), |bomb, at| {
        let (name, before) = (at as char, (at - 1) as char);
        format!("{bomb}{name}: &{name} [*{before}, *{before}, *{before}, *{before}, *{before}, *{before}]\n")
    });
    let deep = "[".repeat(10_000);
    let maps: String = (0..1_000_000).map(|at| format!("{at:x}:\n")).collect();
    let mut before = peak(id);
    for (what, contents, bound) in [
        ("100 MB", None, 8 << 20),
        ("an alias bomb", Some(bomb), 8 << 20),
        ("10,000 levels", Some(deep), 8 << 20),
        ("a million keys", Some(maps), 8 << 20),
    ] {
        let failures = metric(desk.addr(), FAILURES).await;
        match contents {
            // A hole: no disk is filled, and every byte of it would be read.
            None => File::create(desk.file()).unwrap().set_len(100 << 20).unwrap(),
            Some(contents) => fs::write(desk.file(), contents).unwrap(),
        }
        until(what, async || (metric(desk.addr(), FAILURES).await > failures).then_some(())).await;
        let after = peak(id);
        let grown = after.saturating_sub(before);
        eprintln!("{what}: {} kB more at most", grown >> 10);
        assert!(grown <= bound, "{what}: {grown} bytes more");
        before = after;
        assert_eq!(desk.policy().await.unwrap(), good, "{what}");
    }
}
