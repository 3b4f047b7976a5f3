//! The program itself: its signals, its exit codes, and what a `kill -9` may not do.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a broken promise ends the test"
)]

mod support;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use support::{LONG, call, get, metric, replica, until};
use tidegate::publish::file::load_table;
use tidegate::unit;
use tidegate::wire::{Held, LimitTable, Offer};

struct Program {
    child: Child,
    addr: SocketAddr,
    log: mpsc::Receiver<String>,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Program {
    fn start(dir: &Path) -> Program {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tidegate"))
            .args(["control", "--listen", "127.0.0.1:0", "--log-format", "json"])
            .arg("--policies")
            .arg(dir.join("policies"))
            .arg("--state")
            .arg(dir.join("state"))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = child.stderr.take().unwrap();
        let (sender, log) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let line = wait_for(&log, "\"message\":\"listening\"");
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        Program { child, addr: line["addr"].as_str().unwrap().parse().unwrap(), log }
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    fn exit_code(&mut self) -> Option<i32> {
        let begun = Instant::now();
        while begun.elapsed() < LONG {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("it went on running");
    }
}

fn wait_for(log: &mpsc::Receiver<String>, part: &str) -> String {
    let begun = Instant::now();
    let mut seen = String::new();
    while let Some(left) = LONG.checked_sub(begun.elapsed()) {
        let Ok(line) = log.recv_timeout(left) else { break };
        if line.contains(part) {
            return line;
        }
        seen.push_str(&line);
        seen.push('\n');
    }
    panic!("no {part} in\n{seen}");
}

const PAGE: &str = "vllm:num_requests_running 3\nvllm:num_requests_waiting 0\n\
                    vllm:prompt_tokens_total 500\nvllm:generation_tokens_total 10\n";

async fn place() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("policies")).unwrap();
    let target = replica(PAGE).await.to_string();
    edit(dir.path(), &target, "40k tpm");
    std::fs::write(dir.path().join("target"), target).unwrap();
    dir
}

fn edit(dir: &Path, target: &str, ceiling: &str) {
    let text = format!(
        "product: chat\ninterval: 500ms\npools:\n  gpu:\n    preset: vllm\n    \
         targets: [http://{target}/metrics]\n    slo: 1s\nmodels:\n  m: {{pool: gpu}}\ntiers:\n  \
         free: {{priority: 1, weight: 1, guarantee: 6k tpm, ceiling: {ceiling}, key_limits: unlimited}}\n"
    );
    std::fs::write(dir.join("policies/chat.yaml"), text).unwrap();
}

async fn table(addr: SocketAddr) -> Option<LimitTable> {
    let answer = get(addr, "/v1/table?wait=10s").await;
    LimitTable::decode(&answer.body).ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hangup_reloads_and_a_terminate_drains() {
    let dir = place().await;
    let target = std::fs::read_to_string(dir.path().join("target")).unwrap();
    let mut program = Program::start(dir.path());
    let addr = program.addr;
    let first = until("a table", async || table(addr).await).await;
    edit(dir.path(), &target, "1k tpm");
    program.signal("HUP");
    let refused = wait_for(&program.log, "policy refused");
    assert!(refused.contains("ceiling"), "{refused}");
    assert_eq!(metric(addr, "tidegate_policy_last_reload_successful").await, 0.0);
    assert_eq!(table(addr).await.unwrap().policy, first.policy);
    edit(dir.path(), &target, "20k tpm");
    program.signal("HUP");
    until("the new policy", async || (table(addr).await?.policy != first.policy).then_some(())).await;

    let token = std::fs::read_to_string(dir.path().join("state/token")).unwrap();
    let auth = format!("Bearer {token}");
    let report =
        br#"{"schema":1,"node":"n1","instance":7,"uptime_ms":5,"applied":null,"rows":[],"pools":{}}"#;
    assert_eq!(call(addr, "POST /v1/usage", &[("authorization", &auth)], report).await.status, 204);
    let held = get(addr, "/v1/table").await.etag();
    let head = "GET /v1/table?wait=60s";
    let later = held.replacen("\"", "\"9", 1);
    let waiting = tokio::spawn(async move { call(addr, head, &[("if-none-match", &later)], b"").await });
    until("a second connection", async || {
        (metric(addr, "tidegate_control_ticks_total").await > 0.0).then_some(())
    })
    .await;
    program.signal("TERM");
    assert_eq!(program.exit_code(), Some(0));
    assert_eq!(waiting.await.unwrap().status, 200);
    let log: Vec<String> = program.log.try_iter().collect();
    assert!(!log.concat().contains(&token));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_terminate_quits() {
    let dir = place().await;
    let mut program = Program::start(dir.path());
    until("a table", async || table(program.addr).await).await;
    // A request whose body never comes holds the drain up.
    let mut stuck = tokio::net::TcpStream::connect(program.addr).await.unwrap();
    let token = std::fs::read_to_string(dir.path().join("state/token")).unwrap();
    let head = format!(
        "POST /v1/usage HTTP/1.1\r\nhost: t\r\nauthorization: Bearer {token}\r\ncontent-length: 9\r\n\r\n"
    );
    tokio::io::AsyncWriteExt::write_all(&mut stuck, head.as_bytes()).await.unwrap();
    get(program.addr, "/-/healthy").await;
    program.signal("TERM");
    wait_for(&program.log, "\"message\":\"stopping\"");
    assert!(program.child.try_wait().unwrap().is_none());
    program.signal("TERM");
    let begun = Instant::now();
    assert_eq!(program.exit_code(), Some(1));
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_at_random_moments_tear_nothing_and_reuse_no_version() {
    const SEED: u64 = 7;
    let dir = place().await;
    let state = dir.path().join("state");
    let mut held: Option<Held> = None;
    let mut random = SEED;
    for kill in 0..50 {
        let mut program = Program::start(dir.path());
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let moment = Duration::from_micros((random >> 33) % 550_000);
        if kill % 3 == 2 {
            // Before or just after its first turn.
            tokio::time::sleep(moment / 20).await;
            program.child.kill().unwrap();
            program.child.wait().unwrap();
            continue;
        }
        let before = held.as_ref().map(|held| held.table.rows[0].limits.clone());
        let first = until("a table", async || table(program.addr).await).await;
        for (dimension, old) in before.unwrap_or_default() {
            let new = first.rows[0].limits[&dimension].tier_limit.as_f64();
            let old = old.tier_limit.as_f64();
            assert!(new >= old * 0.69 && new <= old * 1.3, "seed {SEED}, kill {kill}: {old} to {new}");
        }
        accept(&mut held, first, &format!("seed {SEED}, kill {kill}, served"));
        tokio::time::sleep(moment).await;
        program.child.kill().unwrap();
        program.child.wait().unwrap();
        let on_disk = load_table(&state).unwrap().expect("a table on disk");
        let held_stamp = held.as_ref().unwrap().stamp();
        assert!(on_disk.stamp >= held_stamp, "seed {SEED}, kill {kill}: {held_stamp:?} was announced");
        if on_disk.stamp > held_stamp {
            accept(&mut held, on_disk, &format!("seed {SEED}, kill {kill}, on disk"));
        }
    }
    let files = std::fs::read_dir(&state).unwrap().count();
    assert!(files <= 7, "{files} files are left");
}

/// As a node does: a version that comes back with other contents is an error.
fn accept(held: &mut Option<Held>, table: LimitTable, when: &str) {
    let stamp = table.stamp;
    match Held::offer(held.as_ref(), table, unit::Instant::ZERO) {
        Ok(Offer::Applied(next) | Offer::Renewed(next)) => *held = Some(next),
        Ok(Offer::Stale) => {
            panic!("{when}: {stamp:?} is not newer than {:?}", held.as_ref().unwrap().stamp())
        }
        Err(error) => panic!("{when}: {error}"),
    }
}
