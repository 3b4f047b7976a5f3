//! The process's clocks: wall time that jumps, and time in which it did not run.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::support::program::{Program, faked, faketime, wait_for};
use crate::support::{get, replica, until};
use tidegate::wire::LimitTable;

const PAGE: &str = "vllm:num_requests_running 3\nvllm:num_requests_waiting 0\n\
                    vllm:prompt_tokens_total 500\nvllm:generation_tokens_total 10\n";
const INTERVAL: Duration = Duration::from_millis(500);

async fn place() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("policies")).unwrap();
    let target = replica(PAGE).await;
    let text = format!(
        "product: chat\ninterval: 500ms\npools:\n  gpu:\n    preset: vllm\n    \
         targets: [http://{target}/metrics]\n    slo: 1s\nmodels:\n  m: {{pool: gpu}}\ntiers:\n  \
         free: {{priority: 1, weight: 1, guarantee: 6k tpm, ceiling: 40k tpm, key_limits: unlimited}}\n"
    );
    std::fs::write(dir.path().join("policies/chat.yaml"), text).unwrap();
    dir
}

async fn table(addr: SocketAddr) -> LimitTable {
    until("a table", async || LimitTable::decode(&get(addr, "/v1/table").await.body).ok()).await
}

/// The first table `ticks` ticks after `stamp`.
async fn later(addr: SocketAddr, tick: u64, ticks: u64) -> LimitTable {
    until("more ticks", async || Some(table(addr).await).filter(|table| table.stamp.tick >= tick + ticks))
        .await
}

/// Wall time as the process sees it: that of a fresh log line.
fn logged(program: &Program) -> String {
    program.signal("HUP");
    let line = wait_for(&program.log, "\"level\":\"INFO\"");
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    line["timestamp"].as_str().unwrap().to_owned()
}

fn days_since_epoch(timestamp: &str) -> i64 {
    let part = |range: std::ops::Range<usize>| timestamp[range].parse::<i64>().unwrap();
    // Rough is enough: jumps are of thirty days.
    part(0..4) * 365 + part(5..7) * 30 + part(8..10)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b01_a_jump_of_the_wall_clock_changes_no_limit() {
    let Some(library) = faketime() else { return };
    let dir = place().await;
    let wall = dir.path().join("wall");
    let jump = |to: &str| std::fs::write(&wall, format!("{to}\n")).unwrap();
    jump("+0");
    let program = Program::start_with(dir.path(), "127.0.0.1:0", &faked(&library, &wall));
    let first = table(program.addr).await;
    let mut before = later(program.addr, first.stamp.tick, 6).await;
    let today = days_since_epoch(&logged(&program));
    for (to, days) in [("+1h", 0), ("+30d", 30), ("-30d", -30), ("+0", 0)] {
        jump(to);
        let after = later(program.addr, before.stamp.tick, 4).await;
        assert!(after.same_entries(&before), "{to}: {before:?} became {after:?}");
        assert_eq!(after.stamp.version, before.stamp.version);
        let seen = days_since_epoch(&logged(&program)) - today;
        assert!((seen - days).abs() <= 7, "the clock did not jump {to}: {seen} days");
        before = after;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b03_a_paused_process_makes_up_for_no_tick_and_raises_nothing() {
    let dir = place().await;
    let program = Program::start(dir.path(), "127.0.0.1:0");
    let first = table(program.addr).await;
    let before = later(program.addr, first.stamp.tick, 6).await;
    program.signal("STOP");
    // Longer than a table is valid: ten intervals.
    tokio::time::sleep(12 * INTERVAL).await;
    program.signal("CONT");
    let resumed = Instant::now();
    let after = later(program.addr, before.stamp.tick, 1).await;
    let passed = resumed.elapsed().as_secs_f64() / INTERVAL.as_secs_f64();
    let ticks = after.stamp.tick - before.stamp.tick;
    // One that was under way when it stopped, one at once, and those that were due since.
    assert!((ticks as f64) <= 3.0 + passed, "{ticks} ticks within {passed:.1} intervals");
    for (old, new) in before.rows.iter().zip(&after.rows) {
        assert!(new.limits.iter().all(|(at, entry)| entry.tier_limit <= old.limits[at].tier_limit));
    }
    assert_eq!(after.stamp.epoch, before.stamp.epoch);
}
