//! `tidegate backtest`: a real controller's journal gives its own tables again, to the byte; another
//! policy, the difference that can be worked out by hand; and a bad record, its place.
#![cfg(feature = "daemon")]
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a broken promise ends the test"
)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use serde_json::{Value, json};
use support::program::Program;
use support::{Manner, call, serve, until};

/// Work per second that the test's node says it admits.
const ASKED: u64 = 1_000;
const DEPTH_S: f64 = 4.0;

fn backtest(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tidegate")).arg("backtest").args(arguments).output().unwrap()
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// What it prints.
fn shown(arguments: &[&str]) -> String {
    let output = backtest(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Its JSON lines: rows, and the summary.
fn replayed(policies: &Path, journal: &Path, more: &[&str]) -> (Vec<Value>, Value) {
    let (policies, journal) = (text(policies), text(journal));
    let out = shown(&[&["--policies", &policies, "--journal", &journal, "--json"], more].concat());
    let mut lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let summary = lines.pop().unwrap()["summary"].clone();
    (lines, summary)
}

fn entries(journal: &Path) -> Vec<Value> {
    let text = fs::read_to_string(journal).unwrap();
    text.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn notes(summary: &Value) -> Vec<String> {
    let notes = summary["notes"].as_array().unwrap();
    notes.iter().map(|note| note["text"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_demo_with_a_halving_is_replayed_to_the_byte() {
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("demo");
    let demo = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(["demo", "--seconds", "15", "--seed", "3", "--json", "--keep"])
        .arg(&kept)
        .stdout(Stdio::null())
        .output()
        .unwrap();
    let (policies, state) = (kept.join("policies"), kept.join("state"));
    let ticks = entries(&state.join("journal.jsonl")).len() as u64 - 1;
    assert!(ticks >= 6, "{ticks} ticks, {}", String::from_utf8_lossy(&demo.stderr));
    let (rows, summary) = replayed(&policies, &state, &[]);
    assert_eq!((&summary["same"], &summary["compared"]), (&json!(ticks), &json!(ticks)), "{summary}");
    assert_eq!(notes(&summary), [""; 0]);
    assert_eq!(summary["cannot_know"].as_array().unwrap().len(), 4);
    for row in rows {
        assert_eq!(row["was"], row["is"], "{row}");
        assert_eq!(row["newly_refused"]["work"], 0, "{row}");
    }
    let said = shown(&["--policies", &text(&policies), "--journal", &text(&state)]);
    assert!(said.contains(&format!("{ticks} of {ticks} tables are the same to the byte\n")), "{said}");
    assert!(said.contains("\nA replay cannot know\n- what would have been asked for"), "{said}");
}

/// A controller with a policy of one row, and a node that asks for the same every second.
struct Place {
    dir: tempfile::TempDir,
    target: String,
    begun: Instant,
}

impl Place {
    async fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let target = serve(Manner::Works(Instant::now())).await.to_string();
        let place = Place { dir, target, begun: Instant::now() };
        place.write("policies", 90);
        place
    }

    /// A policy that guarantees its one tier, and allows it, so many thousand a minute.
    fn write(&self, name: &str, thousands: u64) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir_all(&path).unwrap();
        let text = format!(
            "product: chat\ninterval: 500ms\npools:\n  gpu:\n    preset: vllm\n    \
             targets: [http://{}/metrics]\n    slo: 1s\nmodels:\n  m: {{pool: gpu}}\ntiers:\n  \
             free: {{priority: 1, weight: 1, guarantee: {thousands}k tpm, ceiling: {thousands}k tpm, \
             key_limits: unlimited}}\n",
            self.target
        );
        fs::write(path.join("chat.yaml"), text).unwrap();
        path
    }

    fn journal(&self) -> PathBuf {
        self.dir.path().join("state/journal.jsonl")
    }

    fn ticks(&self) -> usize {
        fs::read_to_string(self.journal()).map_or(0, |text| text.lines().count().saturating_sub(1))
    }

    /// Reports until so many ticks more are in the journal.
    async fn report(&self, program: &Program, ticks: usize) {
        let enough = self.ticks() + ticks;
        let auth = format!("Bearer {}", fs::read_to_string(self.dir.path().join("state/token")).unwrap());
        until("ticks in the journal", async || {
            let uptime = self.begun.elapsed().as_millis() as u64;
            let done = json!({"requests": uptime / 100, "work": uptime * ASKED / 1_000});
            let none = json!({"requests": 0, "work": 0});
            let row = json!({"model": "m", "tier": "free", "offered": done, "admitted": done,
                "refused_limit": none, "refused_capacity": none});
            let report = json!({"schema": 1, "node": "n1", "instance": 7, "uptime_ms": uptime,
                "applied": null, "rows": [row], "pools": {}});
            let body = serde_json::to_vec(&report).unwrap();
            let reply = call(program.addr, "POST /v1/usage", &[("authorization", &auth)], &body).await;
            assert_eq!(reply.status, 204);
            (self.ticks() >= enough).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_policy_refuses_what_its_bucket_does_not_hold() {
    let place = Place::new().await;
    let program = Program::start(place.dir.path(), "127.0.0.1:0");
    place.report(&program, 17).await;
    drop(program);
    let (entries, cut) = (entries(&place.journal()), place.write("cut", 30));
    // From the third tick on the node has its share.
    let first = &entries[3];
    let from = format!("{:.3}", first["unix_ms"].as_f64().unwrap() / 1e3);
    let (rows, summary) = replayed(&cut, &place.journal(), &["--from", &from]);
    let row = &rows[0];
    assert_eq!(summary["compared"], 0);
    assert_eq!(row["was"]["limit"], json!({"min": 90_000, "median": 90_000, "max": 90_000}));
    assert_eq!(row["is"]["limit"], json!({"min": 30_000, "median": 30_000, "max": 30_000}));
    // By hand: the new limit holds from the first tick replayed on, its bucket is empty then, and
    // of what comes the node's share of 500 a second passes, after the bucket is full.
    let uptime =
        |entry: &Value| entry["state"]["nodes"]["nodes"]["n1"]["last"]["uptime_ms"].as_f64().unwrap();
    let seconds = (uptime(entries.last().unwrap()) - uptime(&entries[4])) / 1e3;
    let share = first["tick"]["table"]["pools"]["gpu"]["shares"]["n1"].as_f64().unwrap() / 1e6;
    let rate = 500.0 * share;
    let expected = seconds * ASKED as f64 - seconds * rate - rate * DEPTH_S / share.sqrt();
    let refused = row["newly_refused"]["work"].as_f64().unwrap();
    assert!(expected > 500.0, "too short to show anything: {seconds} s");
    assert!((refused - expected).abs() <= 2.0 * entries.len() as f64, "{refused}, by hand {expected}");
    let requests = row["newly_refused"]["requests"].as_f64().unwrap();
    assert!((requests - refused / 100.0).abs() <= entries.len() as f64, "{requests} of {refused}");
    assert_eq!(row["newly_admitted"]["work"], 0);
    assert_eq!(row["was"]["admitted"]["work"].as_f64().unwrap() - refused, row["is"]["admitted"]["work"]);
    assert!(row["worst"]["at"].as_str().unwrap().starts_with("20"), "{row}");
    // The reverse, and both policies against each other.
    let same = place.dir.path().join("policies");
    let (rows, _) = replayed(&same, &place.journal(), &["--from", &from, "--against", &text(&cut)]);
    assert_eq!(rows[0]["newly_admitted"]["work"], row["newly_refused"]["work"]);
    assert_eq!(rows[0]["newly_refused"]["work"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_are_replayed_and_gaps_edits_and_bad_lines_are_named() {
    let place = Place::new().await;
    let (policies, state) = (place.dir.path().join("policies"), place.dir.path().join("state"));
    let mut program = Program::start(place.dir.path(), "127.0.0.1:0");
    place.report(&program, 4).await;
    program.signal("TERM");
    assert_eq!(program.exit_code(), Some(0));
    let program = Program::start(place.dir.path(), "127.0.0.1:0");
    place.report(&program, 3).await;
    // A kill: the next run begins another epoch.
    drop(program);
    let program = Program::start(place.dir.path(), "127.0.0.1:0");
    place.report(&program, 3).await;
    let all = entries(&place.journal());
    let (_, summary) = replayed(&policies, &state, &["--to", &format!("{}", last_seconds(&all))]);
    let ticks = all.len() - 1;
    assert_eq!((&summary["same"], &summary["compared"]), (&json!(ticks), &json!(ticks)), "{summary}");
    assert_eq!(all.iter().filter(|entry| entry["turns"] == 1).count(), 3);

    // An edit: what follows is the other policy's in the record.
    let before = place.dir.path().join("before");
    fs::create_dir(&before).unwrap();
    fs::copy(policies.join("chat.yaml"), before.join("chat.yaml")).unwrap();
    place.write("policies", 60);
    let digest = all[0]["policy"].clone();
    until("the edit", async || {
        place.report(&program, 1).await;
        (entries(&place.journal()).last().unwrap()["policy"] != digest).then_some(())
    })
    .await;
    place.report(&program, 2).await;
    drop(program);
    let all = entries(&place.journal());
    let under = |digest: &Value| all.iter().filter(|entry| entry["policy"] == *digest).count() as u64;
    let (_, of_before) = replayed(&before, &state, &[]);
    assert_eq!(of_before["same"], json!(under(&digest) - 1), "{of_before}");
    assert_eq!(notes(&of_before).len(), 1);
    assert!(notes(&of_before)[0].contains("came into force in the record"), "{of_before}");
    let (_, of_after) = replayed(&policies, &state, &[]);
    assert_eq!(of_after["same"], json!(under(&all.last().unwrap()["policy"]) - 1), "{of_after}");
    assert_eq!(of_after["same"], of_after["compared"]);

    // A tick that is missing.
    let text = fs::read_to_string(place.journal()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let copy = place.dir.path().join("copy.jsonl");
    let write = |lines: &[&str]| fs::write(&copy, format!("{}\n", lines.join("\n"))).unwrap();
    write(&[&lines[..3], &lines[4..6]].concat());
    let (_, gap) = replayed(&before, &copy, &[]);
    assert_eq!((&gap["same"], &gap["compared"], &gap["ticks"]), (&json!(2), &json!(2), &json!(3)));
    let told = "it goes on from what was recorded, because 1 ticks before it are not in the record";
    assert_eq!(notes(&gap), [told]);

    bad_records(&before, &copy, &lines);
}

fn last_seconds(entries: &[Value]) -> f64 {
    entries.last().unwrap()["unix_ms"].as_f64().unwrap() / 1e3
}

/// `lines` of a good journal; `copy` is where bad ones are tried.
fn bad_records(policies: &Path, copy: &Path, lines: &[&str]) {
    let complaint = |contents: &str, more: &[&str]| {
        fs::write(copy, contents).unwrap();
        let (policies, journal) = (text(policies), text(copy));
        let output = backtest(&[&["--policies", &policies, "--journal", &journal], more].concat());
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
        String::from_utf8(output.stderr).unwrap().replace(&journal, "J").trim_end().to_owned()
    };
    let head = lines[0];
    let good = lines[1..4].join("\n");
    // A torn last line is how a journal that is being written ends.
    fs::write(copy, format!("{head}\n{good}\n{}", &lines[4][..lines[4].len() / 2])).unwrap();
    let (_, torn) = replayed(policies, copy, &[]);
    assert_eq!((&torn["same"], &torn["ticks"]), (&json!(2), &json!(2)));
    let cut = complaint(&format!("{head}\n{good}\n{{\"now\":true}}\n{}\n", lines[4]), &[]);
    let expected = "tidegate: J:5:11: invalid type: boolean `true`, expected u64; replay a copy without \
                    this line: it goes on after the gap, and says so";
    assert_eq!(cut, expected);
    // In a table, whose columns are the line's.
    let damaged = lines[2].replacen("\"interval_ms\":500", "\"interval_ms\":xyz", 1);
    let column = damaged.find("\"interval_ms\":xyz").unwrap() + "\"interval_ms\":x".len();
    let place = format!("tidegate: J:2:{column}: ");
    let said = complaint(&format!("{head}\n{damaged}\n"), &[]);
    assert!(said.starts_with(&place), "{said}, expected {place}");
    let version = complaint("{\"journal\":7,\"writer\":\"9.9\"}\n1\n", &[]);
    assert_eq!(
        version,
        "tidegate: J:1:1: journal version 7, this tidegate reads 1; run the version that wrote it"
    );
    let none = complaint(&format!("{}\n{}\n", lines[1], lines[2]), &[]);
    assert_eq!(
        none,
        "tidegate: J:1:1: this is no first line of a journal; name a `journal.jsonl` that a controller wrote"
    );
    for few in [String::new(), format!("{head}\n"), format!("{head}\n{}\n", lines[1])] {
        let said = complaint(&few, &[]);
        assert!(said.contains("a replay goes from one tick to the next; let the controller run"), "{said}");
    }
    let outside =
        complaint(&format!("{head}\n{good}\n"), &["--from", "2020-01-01T00:00:00Z", "--to", "1600000000"]);
    assert!(outside.starts_with("tidegate: the record is of 20"), "{outside}");
    let untimed = lines[1..3].join("\n").replace("\"unix_ms\":", "\"unix\":");
    let said = complaint(&format!("{head}\n{untimed}\n"), &["--from", "1"]);
    assert!(said.contains("the record's entries have no wall time"), "{said}");
    fs::remove_file(copy).unwrap();
    let output = backtest(&["--policies", &text(policies), "--journal", &text(copy)]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("No such file or directory") && said.contains("name a state directory"), "{said}");
}

#[test]
fn a_missing_record_and_a_bad_time_are_usage_errors() {
    assert_eq!(backtest(&["--policies", "policies"]).status.code(), Some(2));
    let output = backtest(&["--policies", "policies", "--journal", "x", "--from", "noon"]);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("neither RFC 3339 nor seconds since 1970; write it as 2026-05-01T12:00:00Z"),
        "{said}"
    );
}
