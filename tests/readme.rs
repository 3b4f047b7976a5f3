//! The README and the map, kept true: policies pass the check, node files start a node, flags,
//! variables, endpoints, metrics and reasons are those of the code, and the five minutes are walked.
#![cfg(feature = "daemon")]
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a broken promise ends the test"
)]

#[path = "readme/proxies.rs"]
mod proxies;
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use support::{LONG, Reply, call, get, until};
use tidegate::demo::plant::Plant;
use tidegate::enforce::config::NodeConfig;
use tidegate::enforce::node::Node;
use tidegate::policy::diagnostic::render;
use tidegate::policy::load::load_bytes;
use tidegate::sim::batch::Shape;

type Names = BTreeSet<String>;

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(root(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn readme() -> String {
    read("README.md")
}

/// Fenced blocks of a language, each with the line before it.
fn blocks(text: &str, language: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut before = "";
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(tag) = line.strip_prefix("```") {
            let body: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            if tag == language {
                found.push((before.to_owned(), format!("{}\n", body.join("\n"))));
            }
        }
        before = line;
    }
    found
}

/// YAML blocks that a comment calls a policy, or a node's file.
fn marked(kind: &str) -> Vec<String> {
    let all = blocks(&readme(), "yaml");
    for (before, yaml) in &all {
        let known = ["<!-- policy -->", "<!-- policy part -->", "<!-- node -->"].contains(&before.as_str());
        assert!(known, "say above this block what it is, or nothing checks it:\n{yaml}");
    }
    all.into_iter()
        .filter(|(before, _)| before == &format!("<!-- {kind} -->"))
        .map(|(_, yaml)| yaml)
        .collect()
}

/// Every maximal run of `characters` in `text` that begins with `prefix`.
fn words(text: &str, prefix: &str, character: fn(char) -> bool) -> Names {
    let runs = text.split(|c: char| !character(c));
    runs.filter(|run| run.starts_with(prefix)).map(str::to_owned).collect()
}

fn same(what: &str, readme: &Names, code: &Names) {
    let absent: Vec<&String> = readme.difference(code).collect();
    let untold: Vec<&String> = code.difference(readme).collect();
    assert!(
        absent.is_empty() && untold.is_empty(),
        "{what}: not in the code {absent:?}, not in the README {untold:?}"
    );
}

fn help(verb: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_tidegate")).args([verb, "--help"]).output().unwrap();
    assert!(output.status.success(), "{verb}");
    String::from_utf8(output.stdout).unwrap()
}

/// The part of the README under one heading.
fn section(heading: &str) -> String {
    let text = readme();
    let level = heading.chars().take_while(|c| *c == '#').count();
    let from = text.find(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading}")) + 1;
    let rest = &text[from..];
    let ends = |line: &str| {
        let hashes = line.chars().take_while(|c| *c == '#').count();
        (1..=level).contains(&hashes) && line.chars().nth(hashes) == Some(' ')
    };
    let body: Vec<&str> = rest.lines().skip(1).take_while(|line| !ends(line)).collect();
    body.join("\n")
}

#[test]
fn the_two_commands_come_first() {
    let text = readme();
    let commands: Vec<String> = blocks(&text, "sh").into_iter().map(|(_, block)| block).collect();
    assert_eq!(commands[..2], ["cargo run --release -- demo\n", "tests/run\n"]);
    help("demo");
    assert!(root("tests/run").is_file());
}

#[test]
fn both_summaries_are_there_and_the_limits_kept_their_promises() {
    let shown = |name: &str| -> String {
        let text = readme();
        let (_, rest) = text.split_once(&format!("<!-- demo:{name}:begin -->")).unwrap();
        rest.split_once(&format!("<!-- demo:{name}:end -->")).unwrap().0.to_owned()
    };
    let (limits, without) = (shown("limits"), shown("no-limits"));
    let seed = |text: &str, how: &str| {
        let (_, seed) = text.split_once(&format!(" s of demo {how} limits, seed ")).unwrap();
        seed.split(':').next().unwrap().to_owned()
    };
    assert_eq!(seed(&limits, "with"), seed(&without, "without"));
    assert!(limits.matches("kept     ").count() >= 6 && !limits.contains("BROKEN"), "{limits}");
    assert!(without.contains("BROKEN"), "it did not collapse:\n{without}");
}

#[test]
fn every_policy_passes_the_check() {
    let policies = marked("policy");
    assert!(!policies.is_empty());
    for text in policies {
        let loaded = load_bytes(vec![("README.yaml".to_owned(), text.clone().into_bytes())]);
        let loaded = loaded.unwrap_or_else(|found| panic!("{}", render(&found, false)));
        assert!(loaded.warnings.is_empty(), "{}", render(&loaded.warnings, false));
    }
    for part in marked("policy part") {
        let whole = format!("{}{part}", read("policies/images.yaml"));
        let loaded = load_bytes(vec![("README.yaml".to_owned(), whole.into_bytes())]);
        assert!(loaded.is_ok(), "{}", render(&loaded.err().unwrap_or_default(), false));
    }
    // "A first useful policy in under 20 lines."
    assert!(marked("policy")[0].lines().count() < 20);
}

#[tokio::test]
async fn every_node_file_starts_a_node() {
    let files = marked("node");
    assert!(files.len() >= 2);
    for text in files {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("state")).unwrap();
        for secret in ["state/token", "upstream-token", "hook.secret"] {
            fs::write(dir.path().join(secret), "0123456789abcdef").unwrap();
        }
        fs::write(dir.path().join("keys.jsonl"), "").unwrap();
        let path = dir.path().join("node.yaml");
        fs::write(&path, &text).unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = NodeConfig::load(&path, "http://127.0.0.1:9", any, any).unwrap();
        let running = Node::start(config, Some(path)).await.unwrap_or_else(|error| panic!("{error}\n{text}"));
        running.shutdown().await;
    }
}

#[test]
fn flags_and_variables_are_those_of_the_help() {
    let flag = |c: char| c.is_ascii_lowercase() || c == '-';
    let variable = |c: char| c.is_ascii_uppercase() || c == '_';
    let text = readme();
    let ours: Vec<&str> = text.lines().filter(|line| !line.contains("cargo ")).collect();
    let mut flags = Names::new();
    let mut variables = Names::new();
    for verb in ["check", "control", "enforce", "demo", "simulate", "backtest", "dashboard"] {
        let help = help(verb);
        flags.extend(words(&help, "--", flag));
        variables.extend(words(&help, "TIDEGATE_", variable));
        // Commands and tables of one verb name its own flags.
        for line in ours.iter().filter(|line| line.contains(&format!("tidegate {verb} --"))) {
            let named = line.split(['`', '|']).filter(|part| part.contains(&format!("tidegate {verb} --")));
            for own in named.flat_map(|part| words(part, "--", flag)) {
                assert!(words(&help, "--", flag).contains(&own), "{verb} has no {own}");
            }
        }
    }
    flags.remove("--help");
    let shown: Names =
        words(&ours.join("\n"), "--", flag).into_iter().filter(|word| word.len() > 3).collect();
    same("flags", &shown, &flags);
    // Read by the code or its tests, beside the flags.
    assert!(read("tests/simulation.rs").contains("\"TIDEGATE_SEED\""));
    variables.insert("TIDEGATE_SEED".to_owned());
    assert!(read("tests/node_swaps.rs").contains("\"TIDEGATE_LONG\""));
    variables.insert("TIDEGATE_LONG".to_owned());
    same("variables", &words(&text, "TIDEGATE_", variable), &variables);
}

#[test]
fn endpoints_are_those_of_the_code() {
    let path = |c: char| c.is_ascii_alphanumeric() || "/-_".contains(c);
    let endpoints = section("### Endpoints");
    let listeners: Vec<&str> = endpoints.split("| Node").collect();
    let [controller, proxy, admin] = listeners[..] else { panic!("{listeners:?}") };
    for (what, shown, file) in [
        ("controller", controller, "src/publish/http.rs"),
        ("proxy", proxy, "src/enforce/gateway.rs"),
        ("admin", admin, "src/enforce/admin.rs"),
    ] {
        let code = read(file);
        let code: Names = code
            .split('"')
            .filter(|text| ["/v1/", "/-/", "/metrics"].iter().any(|start| text.starts_with(start)))
            // What ends in a slash is the beginning of many.
            .filter(|text| text.chars().all(path) && !text.ends_with('/'))
            .map(str::to_owned)
            .collect();
        assert!(code.len() >= 2, "{code:?}");
        let mut shown = words(shown, "/", path);
        shown.retain(|name| !name.ends_with('/'));
        same(what, &shown, &code);
    }
}

#[test]
fn metrics_are_those_of_the_code() {
    let name = |c: char| c.is_ascii_lowercase() || c == '_';
    let declared = [
        "src/control/metrics.rs",
        "src/control/families.rs",
        "src/control/granted.rs",
        "src/enforce/ledger_page.rs",
        "src/enforce/metrics.rs",
        "src/metrics/mod.rs",
    ];
    let mut code: Names = declared
        .map(read)
        .concat()
        .split('"')
        .filter(|text| text.starts_with("tidegate_") && text.chars().all(name))
        .map(str::to_owned)
        .collect();
    let node = read("src/enforce/metrics.rs");
    let counts = node.split("counts! {").nth(1).unwrap().split('}').next().unwrap();
    let counted = counts.lines().filter_map(|line| line.trim().split_once(": \""));
    code.extend(counted.map(|(count, _)| format!("tidegate_enforce_{count}_total")));
    assert!(code.len() > 25, "{code:?}");
    same("metrics", &words(&readme(), "tidegate_", name), &code);
}

#[test]
fn reasons_and_state_files_are_those_of_the_code() {
    let law = read("src/decide/decision.rs");
    let (_, reasons) = law.split_once("pub enum Reason {").unwrap();
    let variants =
        reasons.split('}').next().unwrap().lines().filter_map(|line| line.trim().strip_suffix(','));
    let snake = |name: &str| {
        let spaced = name.chars().enumerate().map(|(at, c)| match c {
            c if c.is_uppercase() && at > 0 => format!("_{}", c.to_lowercase()),
            c => c.to_lowercase().to_string(),
        });
        spaced.collect::<String>()
    };
    let code: Names = variants.filter(|line| !line.starts_with("//")).map(snake).collect();
    let first = |table: &str| -> Names {
        let cells = table.lines().filter_map(|line| line.strip_prefix("| `")?.split('|').next());
        cells.flat_map(|cell| cell.split('`')).filter(|name| name.len() > 2).map(str::to_owned).collect()
    };
    same("reasons", &first(&section("## How a limit is decided")), &code);
    let mut sources = String::new();
    for file in [
        "publish/file.rs",
        "publish/journal.rs",
        "publish/lock.rs",
        "publish/token.rs",
        "control/reload.rs",
        "control/history.rs",
        "control/runs.rs",
    ] {
        sources.push_str(&read(&format!("src/{file}")));
    }
    let files = first(&section("### State directory of the controller"));
    assert!(files.len() >= 6, "{files:?}");
    for file in files {
        assert!(sources.contains(&format!("\"{file}\"")), "no state file is called {file}");
    }
}

#[test]
fn the_map_shows_the_arrows_that_the_test_allows() {
    let quoted = |text: &str, quote: char| -> Vec<String> {
        text.split(quote).skip(1).step_by(2).map(str::to_owned).collect()
    };
    let map: Vec<(String, Vec<String>)> = read("src/lib.rs")
        .lines()
        .filter_map(|line| line.strip_prefix("//! | [`"))
        .map(|row| {
            let (room, rest) = row.split_once('`').unwrap();
            (room.to_owned(), quoted(rest.split('|').nth(1).unwrap(), '`'))
        })
        .collect();
    let test = read("tests/architecture.rs");
    let arrows = test
        .split_once("const ARROWS")
        .unwrap()
        .1
        .split_once("\n];")
        .unwrap()
        .0
        .split_whitespace()
        .collect::<String>();
    let arrows: Vec<(String, Vec<String>)> = arrows
        .split("(\"")
        .skip(1)
        .map(|row| {
            let (room, rest) = row.split_once('"').unwrap();
            (room.to_owned(), quoted(rest, '"'))
        })
        .collect();
    assert!(arrows.len() >= 12);
    assert_eq!(map, arrows);
}

// === the five minutes ===

/// Stopped when the test ends, however it ends.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a command of the README and reads the address that its log names `field`.
fn start(dir: &Path, arguments: &[&str], fields: &[&str]) -> (Program, Vec<SocketAddr>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(arguments).current_dir(dir).stdin(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.env("TIDEGATE_LOG_FORMAT", "text").spawn().unwrap();
    let stderr = child.stderr.take().unwrap();
    let program = Program(child);
    let (sender, log) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    loop {
        let line = log.recv_timeout(LONG).unwrap_or_else(|_| panic!("{arguments:?} does not serve"));
        let named = |field: &&str| -> Option<SocketAddr> {
            let (_, rest) = line.split_once(&format!("{field}="))?;
            rest.split_whitespace().next()?.parse().ok()
        };
        let found: Vec<SocketAddr> = fields.iter().filter_map(named).collect();
        if found.len() == fields.len() {
            return (program, found);
        }
    }
}

/// The header names of an answer in the README.
fn headers_of(answer: &str) -> Names {
    let text = readme();
    let (_, rest) = text.split_once(&format!("<!-- answer:{answer} -->\n")).unwrap();
    let (_, block) = blocks(rest, "text").remove(0);
    assert!(block.starts_with(&format!("HTTP/1.1 {answer} ")), "{block}");
    let lines = block.lines().skip(1).take_while(|line| !line.is_empty());
    lines.map(|line| line.split(':').next().unwrap().to_owned()).collect()
}

/// The README's controller and node, in front of one simulated replica.
struct Walked {
    _control: Program,
    _enforce: Program,
    proxy: SocketAddr,
    admin: SocketAddr,
    key: String,
}

fn steps() -> Vec<String> {
    blocks(&section("## Five minutes to enforced limits"), "sh").into_iter().map(|(_, block)| block).collect()
}

/// Policy and node file, as the README says for those without a Prometheus.
fn write_files(dir: &Path, replica: &str) {
    let policy = marked("policy").remove(0);
    let policy: String = policy
        .lines()
        .filter(|line| !line.contains("selector:"))
        .map(|line| match line.trim_start().starts_with("prometheus:") {
            true => format!("    targets: [{replica}/metrics]\n"),
            false => format!("{line}\n"),
        })
        .collect();
    fs::create_dir(dir.join("policies")).unwrap();
    fs::write(dir.join("policies/chat.yaml"), policy).unwrap();
    let node = marked("node").remove(0).replace("http://127.0.0.1:8000", replica);
    fs::write(dir.join("node.yaml"), node).unwrap();
}

/// Runs the steps up to the node; at ports that are free, all else as it stands.
fn walk(dir: &Path) -> Walked {
    let steps = steps();
    let command = |verb: &str| -> Vec<String> {
        let found = steps.iter().find_map(|step| step.trim().strip_prefix(&format!("tidegate {verb} ")));
        let rest = found.unwrap_or_else(|| panic!("no step runs tidegate {verb}"));
        [verb].into_iter().chain(rest.split_whitespace()).map(str::to_owned).collect()
    };
    let mut check = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    let check = check.args(command("check")).current_dir(dir).output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    let mut control = command("control");
    control.extend(["--listen", "127.0.0.1:0", "--log-format", "text"].map(str::to_owned));
    let control: Vec<&str> = control.iter().map(String::as_str).collect();
    let (control, at) = start(dir, &control, &["addr"]);
    // The step that makes a key, as a shell runs it.
    let keys = steps.iter().find(|step| step.contains("sha256sum")).unwrap();
    let keys = format!("{keys}\nprintf %s \"$key\"");
    let made = Command::new("sh").args(["-c", &keys]).current_dir(dir).output().unwrap();
    let key = String::from_utf8(made.stdout).unwrap();
    assert!(made.status.success() && key.starts_with("sk-"), "{key}");
    let enforce = command("enforce").join(" ").replace("127.0.0.1:7600", &at[0].to_string());
    let enforce = format!("{enforce} --listen 127.0.0.1:0 --admin 127.0.0.1:0");
    let enforce: Vec<&str> = enforce.split_whitespace().collect();
    let (enforce, at) = start(dir, &enforce, &["proxy", "admin"]);
    Walked { _control: control, _enforce: enforce, proxy: at[0], admin: at[1], key }
}

/// The limit headers of an answer are those that the README shows.
fn shown(reply: &Reply, answer: &str) {
    let own = |name: &&String| name.starts_with("x-ratelimit-") || name.starts_with("retry-after");
    let names: Names = reply.headers.keys().filter(own).cloned().collect();
    same(answer, &headers_of(answer).iter().filter(own).cloned().collect(), &names);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_five_minutes_lead_to_a_429() {
    let plant = Plant::start(1, Shape::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    write_files(dir.path(), &plant.replica_urls().remove(0));
    let walked = walk(dir.path());
    until("the node's share", async || {
        let reply = get(walked.admin, "/v1/table").await;
        let table = (reply.status == 200).then(|| reply.json())?;
        table["pools"]["llama"]["shares"]["edge-1"].as_u64().filter(|share| *share > 0)
    })
    .await;
    let asking = steps().into_iter().find(|step| step.contains("curl")).unwrap();
    let body = asking.split("-d '").nth(1).unwrap().split('\'').next().unwrap().to_owned();
    let bearer = format!("Bearer {}", walked.key);
    let ask = async || -> Reply {
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        call(walked.proxy, "POST /v1/chat/completions", &headers, body.as_bytes()).await
    };
    let first = ask().await;
    assert_eq!(first.status, 200, "{}", first.text());
    assert_eq!(first.headers["x-ratelimit-limit-requests"], "20");
    shown(&first, "200");
    let mut refused = None;
    for _ in 0..20 {
        let reply = ask().await;
        if reply.status != 200 {
            refused = Some(reply);
            break;
        }
    }
    let refused = refused.expect("the key's limit");
    assert_eq!(refused.status, 429, "{}", refused.text());
    shown(&refused, "429");
    let wait: u64 = refused.headers["retry-after"].parse().unwrap();
    assert!((1..=5).contains(&wait), "{wait}");
    tokio::time::sleep(Duration::from_secs(wait)).await;
    assert_eq!(ask().await.status, 200, "Retry-After was not true");
}
