//! What a `kill -9` of the controller may not do, 50 times at random moments, while a node follows
//! it and serves.
#![cfg(feature = "daemon")]
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
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use serde_json::json;
use support::node::Upstream;
use support::program::{Program, wait_for};
use support::{call, get, replica, until};
use tidegate::publish::file::load_table;
use tidegate::unit;
use tidegate::wire::{Held, LimitTable, Offer, Stamp};

const KILLS: usize = 50;
const SEED: u64 = 7;
const PAGE: &str = "vllm:num_requests_running 3\nvllm:num_requests_waiting 0\n\
                    vllm:prompt_tokens_total 500\nvllm:generation_tokens_total 10\n";
/// Between two requests.
const TRICKLE: Duration = Duration::from_millis(20);

async fn place() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("policies")).unwrap();
    let target = replica(PAGE).await;
    let policy = format!(
        "product: chat\ninterval: 500ms\npools:\n  gpu:\n    preset: vllm\n    \
         targets: [http://{target}/metrics]\n    slo: 1s\nmodels:\n  m: {{pool: gpu}}\ntiers:\n  \
         t: {{priority: 1, weight: 1, guarantee: 6M tpm, ceiling: 40M tpm, key_limits: unlimited}}\n"
    );
    std::fs::write(dir.path().join("policies/chat.yaml"), policy).unwrap();
    dir
}

/// A real node that follows the controller at one address, whoever listens there.
struct Node {
    child: Child,
    proxy: SocketAddr,
    admin: SocketAddr,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// === impl Node ===

impl Node {
    fn start(dir: &Path, controller: SocketAddr, upstream: &Upstream) -> Node {
        std::fs::write(dir.join("keys.jsonl"), support::node::keys()).unwrap();
        let config = format!(
            "node: n\nkeys: keys.jsonl\ncontroller_token_file: state/token\n\
             upstreams:\n  main: {{urls: [\"{}\"]}}\n",
            upstream.url()
        );
        std::fs::write(dir.join("node.yaml"), config).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_tidegate"))
            .args(["enforce", "--config", "node.yaml", "--table", &format!("http://{controller}")])
            .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .current_dir(dir)
            .env("TIDEGATE_LOG_FORMAT", "text")
            .stdin(Stdio::null())
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
        let line = wait_for(&log, "proxy=");
        let field = |name: &str| -> SocketAddr {
            line.split(name).nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap()
        };
        Node { proxy: field("proxy="), admin: field("admin="), child }
    }

    async fn holds(&self) -> Option<Stamp> {
        let table: LimitTable = serde_json::from_slice(&get(self.admin, "/v1/table").await.body).ok()?;
        Some(table.stamp)
    }
}

/// A request after the other until told to stop; what was not answered well, and how many were.
async fn trickle(proxy: SocketAddr, stop: Arc<AtomicBool>, served: Arc<AtomicU64>) -> Vec<String> {
    let mut failed = Vec::new();
    for turn in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let stream = turn.is_multiple_of(2);
        let body = json!({
            "model": "m", "stream": stream, "max_tokens": 20,
            "messages": [{"role": "user", "content": "Hi, how are you today?"}],
        });
        let headers = [("authorization", "Bearer canary-key"), ("content-type", "application/json")];
        let body = body.to_string();
        let answer = call(proxy, "POST /v1/chat/completions", &headers, body.as_bytes()).await;
        let text = answer.text();
        let whole = if stream { text.contains("data: [DONE]") } else { text.contains("Hello there") };
        if answer.status == 200 && whole {
            served.fetch_add(1, Ordering::Relaxed);
        } else {
            failed.push(format!("request {turn}: {} {text}", answer.status));
        }
        tokio::time::sleep(TRICKLE).await;
    }
    failed
}

async fn table(addr: SocketAddr) -> Option<LimitTable> {
    LimitTable::decode(&get(addr, "/v1/table?wait=10s").await.body).ok()
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

/// The first table after a restart is within one step of the last.
fn within_a_step(last: Option<&Held>, first: &LimitTable, when: &str) {
    let Some(last) = last else { return };
    for (dimension, old) in &last.table.rows[0].limits {
        let (old, new) = (old.tier_limit.as_f64(), first.rows[0].limits[dimension].tier_limit.as_f64());
        let same = old.is_infinite() && new.is_infinite();
        assert!(same || (new >= old * 0.69 && new <= old * 1.3), "{when}: {old} to {new}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_at_random_moments_tear_nothing_reuse_no_version_and_no_request_notices() {
    let dir = place().await;
    let state = dir.path().join("state");
    let listen = support::nobody().await.to_string();
    let mut program = Program::start(dir.path(), &listen);
    let upstream = Upstream::start().await;
    let node = Node::start(dir.path(), program.addr, &upstream);
    until("the node's first table", async || node.holds().await).await;
    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let requests = tokio::spawn(trickle(node.proxy, Arc::clone(&stop), Arc::clone(&served)));

    let mut held: Option<Held> = None;
    let mut random = SEED;
    let mut followed = std::collections::BTreeSet::new();
    for kill in 0..KILLS {
        let when = format!("seed {SEED}, kill {kill}");
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let moment = Duration::from_micros((random >> 33) % 550_000);
        if kill % 3 == 2 {
            // Before or just after its first turn.
            tokio::time::sleep(moment / 20).await;
        } else {
            let first = until("a table", async || table(program.addr).await).await;
            within_a_step(held.as_ref(), &first, &when);
            accept(&mut held, first, &format!("{when}, served"));
            tokio::time::sleep(moment).await;
        }
        program.child.kill().unwrap();
        program.child.wait().unwrap();
        let on_disk = load_table(&state).unwrap().expect("a table on disk");
        let on_node = node.holds().await.unwrap();
        assert!(
            on_disk.stamp >= on_node,
            "{when}: the node holds {on_node:?}, on disk is {:?}",
            on_disk.stamp
        );
        followed.insert(on_node);
        let stamp = held.as_ref().unwrap().stamp();
        assert!(on_disk.stamp >= stamp, "{when}: {stamp:?} was announced");
        if on_disk.stamp > stamp {
            accept(&mut held, on_disk, &format!("{when}, on disk"));
        }
        program = Program::start(dir.path(), &listen);
    }
    let files = std::fs::read_dir(&state).unwrap().count();
    assert!(files <= 7, "{files} files are left");

    // The node is still there, and follows whoever came last.
    let last = until("a table", async || table(program.addr).await).await.stamp;
    until("the node to follow", async || (node.holds().await? >= last).then_some(())).await;
    stop.store(true, Ordering::Relaxed);
    let failed = requests.await.unwrap();
    let served = served.load(Ordering::Relaxed);
    println!("{served} requests served, {} tables followed through {KILLS} kills", followed.len());
    assert!(failed.is_empty(), "{} of {served} requests failed, first {:?}", failed.len(), failed.first());
    assert!(served > 100, "only {served} requests in all: nobody watched");
    assert!(followed.len() > KILLS / 4, "the node saw only {} tables: it did not follow", followed.len());
}
