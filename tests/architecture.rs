//! The map in `src/lib.rs`, kept true by a test: which room may name which, where a clock may be
//! read, which files may touch the world, how long a file may get.
//!
//! A plain text scan suffices because rooms name each other by `crate::room` paths only.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a broken promise ends the test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::path::PathBuf;

/// Room, and the rooms it may name. What is not here may not be named.
const ARROWS: &[(&str, &[&str])] = &[
    ("bounds", &[]),
    ("unit", &[]),
    ("planted", &[]),
    ("wire", &["bounds", "unit", "planted"]),
    ("policy", &["bounds", "unit", "wire"]),
    ("observe", &["bounds", "unit", "wire", "policy"]),
    ("estimate", &["bounds", "unit", "planted", "wire", "policy", "observe"]),
    ("decide", &["unit", "planted", "estimate"]),
    ("allocate", &["unit", "planted"]),
    ("dashboard", &[]),
    ("metrics", &["bounds", "unit"]),
    ("supervise", &["bounds"]),
    ("publish", &["bounds", "unit", "wire", "supervise"]),
    ("ledger", &["bounds", "unit", "wire"]),
    ("enforce", &["bounds", "unit", "planted", "wire", "ledger", "metrics", "supervise"]),
    (
        "control",
        &[
            "bounds",
            "unit",
            "planted",
            "wire",
            "policy",
            "observe",
            "estimate",
            "decide",
            "allocate",
            "metrics",
            "publish",
            "supervise",
        ],
    ),
    (
        "sim",
        &[
            "bounds", "unit", "wire", "policy", "observe", "estimate", "decide", "allocate", "enforce",
            "control",
        ],
    ),
    ("backtest", &["bounds", "unit", "wire", "policy", "observe", "decide", "publish", "enforce", "control"]),
    ("demo", &["bounds", "unit", "wire", "policy", "publish", "enforce", "control", "sim"]),
];

/// The only files that read a clock: the one all others are handed, the node's sockets, whose
/// deadlines are those of tokio's timers, and the one that notes a renewal as a file's time.
const CLOCKS: &[&str] =
    &["enforce/follow_http.rs", "enforce/patient.rs", "enforce/store.rs", "enforce/stream.rs", "unit.rs"];

/// Files that touch the world: sockets, files, tasks, logs, metrics. Every other one is pure.
const SHELLS: &[&str] = &[
    "backtest/journal.rs",
    "backtest/scraped.rs",
    "control/disk.rs",
    "control/credentials.rs",
    "control/history.rs",
    "control/metrics.rs",
    "control/outlet.rs",
    "control/reload.rs",
    "control/resume.rs",
    "control/run.rs",
    "control/runs.rs",
    "control/turn.rs",
    "control/unfit.rs",
    "demo/cluster.rs",
    "demo/engine.rs",
    "demo/mod.rs",
    "demo/page.rs",
    "demo/replica.rs",
    "demo/tenants.rs",
    "demo/watch.rs",
    "demo/wire.rs",
    "enforce/admin.rs",
    "enforce/affair.rs",
    "enforce/client.rs",
    "enforce/config.rs",
    "enforce/fallback.rs",
    "enforce/files.rs",
    "enforce/follow.rs",
    "enforce/follow_http.rs",
    "enforce/forward.rs",
    "enforce/gateway.rs",
    "enforce/intake.rs",
    "enforce/jobs/desk.rs",
    "enforce/jobs/kept.rs",
    "enforce/metrics.rs",
    "enforce/node.rs",
    "enforce/patient.rs",
    "enforce/relay.rs",
    "enforce/report.rs",
    "enforce/serve.rs",
    "enforce/shared.rs",
    "enforce/store.rs",
    "enforce/stream.rs",
    "ledger/live.rs",
    "ledger/live/wall.rs",
    "ledger/mark.rs",
    "ledger/store.rs",
    "ledger/writer.rs",
    "metrics/mod.rs",
    "metrics/process.rs",
    "observe/access.rs",
    "observe/discover.rs",
    "observe/fetch.rs",
    "observe/prometheus.rs",
    "observe/range.rs",
    "observe/scrape.rs",
    "observe/sources.rs",
    "policy/load.rs",
    "publish/board.rs",
    "publish/file.rs",
    "publish/http.rs",
    "publish/journal.rs",
    "publish/lock.rs",
    "publish/patience.rs",
    "publish/peer.rs",
    "publish/server.rs",
    "publish/token.rs",
    "supervise/failpoint.rs",
    "supervise/mod.rs",
    "supervise/notify.rs",
];

/// What reads a clock.
const READS: &[&str] = &["Instant::now(", "SystemTime::now(", "UNIX_EPOCH"];

/// What makes a file a shell.
const WORLD: &[&str] = &[
    "tokio::",
    "hyper::",
    "hyper_util::",
    "tracing::",
    "prometheus::",
    "std::fs",
    "std::net",
    "std::thread",
];

/// Longest file, lines without its tests.
const LINES_MAX: usize = 400;

/// A file without its tests.
fn code(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default()
}

/// One finding: file, line, what is wrong and what to do.
fn scan(name: &str, text: &str) -> Vec<String> {
    let room = name.split(['/', '.']).next().unwrap_or_default();
    let code = code(text);
    let mut found = Vec::new();
    if !text.starts_with("//!") {
        found.push(format!("{name}:1: begin with `//!`: why does this file exist?"));
    }
    if code.lines().count() > LINES_MAX && !name.ends_with("tests.rs") {
        found.push(format!(
            "{name}: {} lines, at most {LINES_MAX}: is it still one idea?",
            code.lines().count()
        ));
    }
    let allowed = ARROWS.iter().find(|(from, _)| *from == room).map(|(_, to)| *to);
    for (at, line) in code.lines().enumerate() {
        let line = line.split("//").next().unwrap_or_default();
        let place = format!("{name}:{}", at + 1);
        for named in line.split("crate::").skip(1) {
            let named: String = named.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let known = ARROWS.iter().any(|(room, _)| *room == named);
            if known && named != room && allowed.is_some_and(|allowed| !allowed.contains(&named.as_str())) {
                found.push(format!("{place}: `{room}` may not name `{named}`; hand it in as an argument"));
            }
        }
        if line.contains("use crate::{") {
            found.push(format!("{place}: one `use crate::room` line per room, so that arrows can be read"));
        }
        let reads = READS.iter().any(|clock| line.contains(clock));
        if reads && !CLOCKS.contains(&name) && !name.starts_with("cli/") {
            found.push(format!(
                "{place}: reads a clock; take `now` as an argument, a shell asks a `unit::Clock`"
            ));
        }
        if ["sim", "demo", "bounds"].iter().all(|free| room != *free) && declares_a_bound(line) {
            found.push(format!("{place}: a bound of its own; declare it in bounds.rs, where all are"));
        }
        if room == "ledger" && ["f32", "f64"].iter().any(|float| line.contains(float)) {
            found.push(format!("{place}: money and tokens are integers here; a float loses some of them"));
        }
        if let Some(world) = WORLD.iter().find(|world| line.contains(**world))
            && !SHELLS.contains(&name)
            && !name.starts_with("cli/")
            // Tests, as those that stand in the file they test.
            && !name.ends_with("/tests.rs")
        {
            found.push(format!("{place}: pure file names `{world}`; move it to a shell"));
        }
    }
    found
}

/// `const SOMETHING_MAX` that is a count, a size or a time; the law's factors are no bounds.
fn declares_a_bound(line: &str) -> bool {
    line.split_once("const ").and_then(|(_, rest)| rest.split_once(": ")).is_some_and(|(name, rest)| {
        name.ends_with("_MAX")
            && ["usize", "u32", "u64", "Duration"].iter().any(|kind| rest.starts_with(kind))
    })
}

fn sources(dir: &Path, into: &mut BTreeMap<String, String>, root: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into, root);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            into.insert(name, fs::read_to_string(&path).unwrap());
        }
    }
}

fn tree() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = BTreeMap::new();
    sources(&root, &mut files, &root);
    assert!(files.len() > 30, "the scan found only {} files", files.len());
    files
}

#[test]
fn every_file_keeps_to_the_map() {
    let found: Vec<String> = tree().iter().flat_map(|(name, text)| scan(name, text)).collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn every_room_is_on_the_map_and_every_exception_is_one() {
    let files = tree();
    for name in files.keys() {
        let room = name.split(['/', '.']).next().unwrap();
        let known = ARROWS.iter().any(|(known, _)| *known == room) || ["lib", "main", "cli"].contains(&room);
        assert!(known, "{name}: room `{room}` is not in ARROWS");
    }
    for (list, exceptions, words) in [("SHELLS", SHELLS, WORLD), ("CLOCKS", CLOCKS, READS)] {
        for name in exceptions {
            let text = files.get(*name).unwrap_or_else(|| panic!("{list} names {name}, which is gone"));
            let earned = code(text).lines().any(|line| {
                let line = line.split("//").next().unwrap_or_default();
                words.iter().any(|word| line.contains(word))
            });
            assert!(earned, "{list} names {name}, which needs no exception any more");
        }
    }
}

/// The programs and libraries of the product and of the fuzz targets; not the targets, which
/// libFuzzer calls by an exported symbol.
#[test]
fn every_crate_of_ours_forbids_unsafe_code() {
    for root in ["src/lib.rs", "src/main.rs", "fuzz/lib.rs"] {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(root)).unwrap();
        assert!(text.lines().any(|line| line == "#![forbid(unsafe_code)]"), "{root} may hold unsafe code");
    }
    // Tests and benchmarks are crates too: the manifest forbids it for all of them.
    let manifest = include_str!("../Cargo.toml");
    let lints = manifest.split_once("[lints.rust]").unwrap().1;
    assert!(lints.lines().any(|line| line == "unsafe_code = \"forbid\""), "{lints}");
}

#[test]
fn a_backward_import_is_found() {
    let found = scan("estimate/mod.rs", "//! x\nuse crate::enforce::Limiter;\n");
    assert_eq!(found, ["estimate/mod.rs:2: `estimate` may not name `enforce`; hand it in as an argument"]);
}

#[test]
fn a_stray_bound_is_found() {
    let found = scan(
        "enforce/keys.rs",
        "//! x\npub(super) const LINES_MAX: usize = 3;\nconst STEP_MAX: f64 = 1.0;\n",
    );
    assert_eq!(found, ["enforce/keys.rs:2: a bound of its own; declare it in bounds.rs, where all are"]);
}

#[test]
fn d7_a_float_in_the_ledger_is_found() {
    let found = scan("ledger/book.rs", "//! x\nlet half = micros as f64 / 2.0;\n");
    assert_eq!(found, ["ledger/book.rs:2: money and tokens are integers here; a float loses some of them"]);
}

#[test]
fn a_stray_clock_read_is_found() {
    let found = scan("decide/mod.rs", "//! x\nlet now = std::time::Instant::now();\n");
    let expected = "decide/mod.rs:2: reads a clock; take `now` as an argument, a shell asks a `unit::Clock`";
    assert_eq!(found, [expected]);
}

#[test]
fn a_pure_file_that_logs_is_found() {
    let found = scan("allocate/mod.rs", "//! x\ntracing::info!();\n");
    assert_eq!(found, ["allocate/mod.rs:2: pure file names `tracing::`; move it to a shell"]);
}
