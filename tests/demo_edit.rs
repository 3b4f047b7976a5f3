//! A good edit of a running demo's policy: in force at both nodes, on its ramp until then.
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
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use support::{get, until};
use tidegate::unit::Dimension;
use tidegate::wire::LimitTable;

/// Ceiling of `starter` in the demo's policy, and half of it, work a minute.
const OLD: &str = "ceiling: 1500k tpm";
const NEW: &str = "ceiling: 750k tpm";
const NEW_CEILING: f64 = 750_000.0;
/// By then a node holds the edited policy's table.
const SEEN_WITHIN: Duration = Duration::from_secs(3);
/// By then the ramp is over: from at most twice the ceiling it takes two intervals more.
const THERE_WITHIN: Duration = Duration::from_secs(9);
/// Steepest ramp, down to this part in one interval; rounding takes the rest.
const RAMP: f64 = 0.69;

struct Demo {
    child: Child,
    stdout: Option<BufReader<ChildStdout>>,
    opening: serde_json::Value,
}

impl Drop for Demo {
    fn drop(&mut self) {
        // Nobody reads on: it tidies up and ends. If it does not, it is ended.
        drop(self.stdout.take());
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(5) {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Demo {
    fn start() -> Demo {
        // Its first step is at 40 s, long after this test's end.
        let mut child = Command::new(env!("CARGO_BIN_EXE_tidegate"))
            .args(["demo", "--json", "--seconds", "120", "--seed", "5"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut first = String::new();
        stdout.read_line(&mut first).unwrap();
        let opening = serde_json::from_str(&first).unwrap_or_else(|error| panic!("{error}: {first}"));
        Demo { child, stdout: Some(stdout), opening }
    }

    fn nodes(&self) -> Vec<SocketAddr> {
        let nodes = self.opening["addresses"]["nodes"].as_array().unwrap().iter();
        nodes.map(|node| node.as_str().unwrap().strip_prefix("http://").unwrap().parse().unwrap()).collect()
    }
}

/// What a node holds for `starter`.
#[derive(Clone, Debug, PartialEq)]
struct Held {
    policy: String,
    tick: u64,
    limit: f64,
    ceiling: f64,
}

async fn held(node: SocketAddr) -> Held {
    // The table with the node's own numbers beside it.
    let table: LimitTable = serde_json::from_slice(&get(node, "/v1/table").await.body).unwrap();
    let row = table.rows.iter().find(|row| row.tier.as_str() == "starter").unwrap();
    let entry = row.limits[&Dimension::TokensPerMinute];
    Held {
        policy: table.policy.clone(),
        tick: table.stamp.tick,
        limit: entry.tier_limit.as_f64(),
        ceiling: entry.ceiling.as_f64(),
    }
}

fn edit(policies: &Path) {
    let path = policies.join("demo.yaml");
    let mut edited = false;
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<String> = text
        .lines()
        .map(|line| {
            let ours = line.trim_start().starts_with("starter:") && line.contains(OLD);
            edited |= ours;
            if ours { line.replace(OLD, NEW) } else { line.to_owned() }
        })
        .collect();
    assert!(edited, "starter's ceiling is not `{OLD}` any more:\n{text}");
    std::fs::write(&path, lines.join("\n") + "\n").unwrap();
}

/// Follows one node from the edit until the new ceiling binds there.
async fn follow(node: SocketAddr, before: Held, edited: Instant) {
    let mut last = before.clone();
    let mut seen = None;
    loop {
        let now = held(node).await;
        let after = edited.elapsed();
        if now.tick != last.tick {
            println!("{node} after {after:.2?}: {now:?}");
            if now.policy != before.policy {
                assert!(now.limit >= RAMP * last.limit, "{node}: {last:?} fell to {now:?} in one interval");
                assert!(now.ceiling >= RAMP * last.ceiling, "{node}: {last:?}, then {now:?}");
                if now.limit < last.limit || now.limit <= NEW_CEILING {
                    seen.get_or_insert(after);
                }
            }
            last = now;
        }
        assert!(seen.is_some() || after < SEEN_WITHIN, "{node}: after {after:.2?} still {last:?}");
        if seen.is_some() && last.limit <= NEW_CEILING && last.ceiling <= NEW_CEILING {
            return;
        }
        assert!(after < THERE_WITHIN, "{node}: after {after:.2?} on its way, at {last:?}");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_ceiling_is_in_force_at_both_nodes_by_its_ramp() {
    let demo = tokio::task::spawn_blocking(Demo::start);
    let demo = tokio::time::timeout(Duration::from_secs(30), demo).await.unwrap().unwrap();
    let nodes = demo.nodes();
    assert_eq!(nodes.len(), 2);
    let begun = Instant::now();
    // The demo's first seconds find the capacity; then `starter` has room to lose.
    let mut before = Vec::new();
    while before.is_empty() {
        assert!(
            begun.elapsed() < Duration::from_secs(25),
            "starter is never given more than half its ceiling"
        );
        let both = [held(nodes[0]).await, held(nodes[1]).await];
        if both.iter().all(|held| held.limit > 1.2 * NEW_CEILING && held.limit.is_finite()) {
            before = both.to_vec();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let policies = demo.opening["policies"].as_str().unwrap().to_owned();
    edit(Path::new(&policies));
    let edited = Instant::now();
    tokio::join!(follow(nodes[0], before[0].clone(), edited), follow(nodes[1], before[1].clone(), edited),);
    // It stays in force.
    let tick = held(nodes[0]).await.tick;
    let later = until("two ticks more", async || {
        let later = held(nodes[0]).await;
        (later.tick >= tick + 2).then_some(later)
    })
    .await;
    assert!(later.limit <= NEW_CEILING && later.ceiling == NEW_CEILING, "{later:?}");
}
