//! The daemon's loop: what survives bad edits, failing disks, restarts and lost state.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::{call, get, loader, metric, replica, until};
use tidegate::control::run::{Options, Running, StartError, start};
use tidegate::policy::SourcePolicy;
use tidegate::publish::file::load_table;
use tidegate::wire::{LimitTable, Stamp};

const INTERVAL: Duration = Duration::from_millis(100);
const PAGE: &str = "vllm:num_requests_running 3\nvllm:num_requests_waiting 1\n\
                    vllm:prompt_tokens_total 500\nvllm:generation_tokens_total 10\n";

struct Place {
    dir: tempfile::TempDir,
    target: String,
}

impl Place {
    async fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("policies")).unwrap();
        let place = Place { dir, target: replica(PAGE).await.to_string() };
        place.edit("50000");
        place
    }

    fn edit(&self, text: &str) {
        std::fs::write(self.dir.path().join("policies/p.yaml"), text).unwrap();
    }

    fn state(&self) -> std::path::PathBuf {
        self.dir.path().join("state")
    }

    fn options(&self) -> Options {
        let source = SourcePolicy::targets(vec![self.target.clone()]);
        Options::new(self.dir.path().join("policies"), self.state(), loader(source, INTERVAL))
    }

    async fn start(&self) -> Running {
        start(self.options()).await.unwrap()
    }
}

async fn table(addr: SocketAddr) -> LimitTable {
    LimitTable::decode(&get(addr, "/v1/table?wait=10s").await.body).unwrap()
}

async fn with_policy(addr: SocketAddr, digest: &str) -> LimitTable {
    until(&format!("policy {digest}"), async || {
        let table = table(addr).await;
        (table.policy == digest).then_some(table)
    })
    .await
}

#[tokio::test]
async fn a_table_is_on_disk_before_it_is_announced_and_renewed_every_tick() {
    let place = Place::new().await;
    let running = place.start().await;
    let first = table(running.addr).await;
    assert_eq!(first.policy, "50000");
    let on_disk = load_table(&place.state()).unwrap().unwrap();
    assert!(on_disk.stamp >= first.stamp);
    let status = get(running.addr, "/v1/status").await.json();
    assert_eq!(status["policy"], "50000");
    assert_eq!(status["round"]["pools"]["gpu"]["replicas"][0]["replica"], place.target);
    // The table is most of an entry: once is enough.
    assert!(status["tick"]["table"]["rows"].is_array() && status["state"].get("table").is_none());
    let later = until("a renewal", async || {
        let later = table(running.addr).await;
        (later.stamp.tick > first.stamp.tick + 2).then_some(later)
    })
    .await;
    assert!(later.stamp > first.stamp);
    assert_eq!(metric(running.addr, "tidegate_observe_replicas{pool=\"gpu\",state=\"up\"}").await, 1.0);
    assert_eq!(metric(running.addr, "tidegate_policy_last_reload_successful").await, 1.0);
    assert!(metric(running.addr, "tidegate_publish_table_bytes").await > 100.0);
    running.shutdown().await;
}

#[tokio::test]
async fn a_bad_edit_changes_a_gauge_and_nothing_else_also_across_a_restart() {
    let place = Place::new().await;
    let running = place.start().await;
    let addr = running.addr;
    with_policy(addr, "50000").await;
    place.edit("nonsense");
    until("the gauge", async || {
        (metric(addr, "tidegate_policy_last_reload_successful").await == 0.0).then_some(())
    })
    .await;
    let before = table(addr).await;
    let token = format!("Bearer {}", running.token.reveal());
    let refused = call(addr, "POST /-/reload", &[("authorization", &token)], b"").await;
    assert_eq!(refused.status, 400);
    assert!(refused.text().contains("p.yaml:1:1: `nonsense` is not a number"), "{}", refused.text());
    assert!(metric(addr, "tidegate_policy_reload_failures_total").await >= 2.0);
    let after = until("another tick", async || {
        let after = table(addr).await;
        (after.stamp > before.stamp).then_some(after)
    })
    .await;
    assert_eq!(after.policy, "50000");
    running.shutdown().await;

    let running = place.start().await;
    let addr = running.addr;
    assert_eq!(table(addr).await.policy, "50000");
    assert_eq!(metric(addr, "tidegate_policy_last_reload_successful").await, 0.0);
    // A good edit is picked up by itself.
    place.edit("60000");
    with_policy(addr, "60000").await;
    assert_eq!(metric(addr, "tidegate_policy_last_reload_successful").await, 1.0);
    place.edit("70000");
    running.reload().await.unwrap();
    with_policy(addr, "70000").await;
    running.shutdown().await;
}

#[tokio::test]
async fn without_any_good_policy_it_does_not_start() {
    let place = Place::new().await;
    place.edit("nonsense");
    let error = start(place.options()).await.unwrap_err();
    assert_eq!(error, StartError::Failed("p.yaml:1:1: `nonsense` is not a number".to_owned()));
}

#[tokio::test]
async fn d10_a_restart_continues_and_reuses_no_version() {
    let place = Place::new().await;
    let running = place.start().await;
    let before = until("some ticks", async || {
        let table = table(running.addr).await;
        (table.stamp.tick > 3).then_some(table)
    })
    .await;
    running.shutdown().await;
    let last = load_table(&place.state()).unwrap().unwrap();
    assert!(last.stamp >= before.stamp);

    // The journal is torn in its last line; the table file knows how far versions had come.
    let journal = place.state().join("journal.jsonl");
    let bytes = std::fs::read(&journal).unwrap();
    std::fs::write(&journal, &bytes[..bytes.len() - 20]).unwrap();
    let running = place.start().await;
    let after = table(running.addr).await;
    assert_eq!(after.stamp.epoch, last.stamp.epoch);
    assert!(after.stamp > last.stamp, "{:?} {:?}", after.stamp, last.stamp);
    assert!(after.stamp.version > last.stamp.version || after.same_entries(&last));
    running.shutdown().await;

    // The journal alone is enough too.
    let last = load_table(&place.state()).unwrap().unwrap();
    std::fs::remove_file(place.state().join("table.json")).unwrap();
    let running = place.start().await;
    let after = table(running.addr).await;
    assert_eq!(after.stamp.epoch, last.stamp.epoch);
    assert!(after.stamp > last.stamp, "{:?} {:?}", after.stamp, last.stamp);
    assert!(after.stamp.version > last.stamp.version || after.same_entries(&last));
    running.shutdown().await;
}

#[test]
fn lookups_that_block_every_thread_do_not_hold_the_loop() {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).max_blocking_threads(1).enable_all().build().unwrap();
    let (release, held) = std::sync::mpsc::channel::<()>();
    runtime.block_on(async {
        let place = Place::new().await;
        let running = place.start().await;
        let first = table(running.addr).await;
        // Stands for a resolver that does not answer.
        let blocked = tokio::task::spawn_blocking(move || held.recv());
        until("renewals", async || {
            (table(running.addr).await.stamp.tick > first.stamp.tick + 5).then_some(())
        })
        .await;
        drop(release);
        let _ = blocked.await;
        running.shutdown().await;
    });
}

#[tokio::test]
async fn the_clock_goes_on_across_a_restart() {
    let place = Place::new().await;
    let running = place.start().await;
    table(running.addr).await;
    let before = get(running.addr, "/v1/status").await.json()["now"].as_u64().unwrap();
    running.shutdown().await;
    let running = place.start().await;
    table(running.addr).await;
    let after = get(running.addr, "/v1/status").await.json()["now"].as_u64().unwrap();
    assert!(after > before);
    running.shutdown().await;
}

#[tokio::test]
async fn d12_without_state_it_begins_above_what_nodes_report() {
    let place = Place::new().await;
    let mut options = place.options();
    options.collect = Some(Duration::from_secs(2));
    let running = start(options).await.unwrap();
    let report = br#"{"schema":1,"node":"n1","instance":7,"uptime_ms":5,
        "applied":{"epoch":5,"version":70,"tick":700},"rows":[],"pools":{}}"#;
    let token = format!("Bearer {}", running.token.reveal());
    let taken = call(running.addr, "POST /v1/usage", &[("authorization", &token)], report).await;
    assert_eq!(taken.status, 204);
    assert_eq!(get(running.addr, "/v1/table").await.status, 503);
    let first = table(running.addr).await;
    assert!(first.stamp > Stamp { epoch: 5, version: 70, tick: 700 }, "{:?}", first.stamp);
    assert!(first.stamp.epoch > 5);
    running.shutdown().await;
}

#[tokio::test]
async fn d02_a_failing_disk_is_told_and_tables_go_on_under_an_epoch_of_their_own() {
    let place = Place::new().await;
    let mut options = place.options();
    // Every entry begins a new file.
    options.journal_bytes_max = 1;
    let running = start(options).await.unwrap();
    let addr = running.addr;
    table(addr).await;
    // Directories where the writer's temporary files should be.
    for name in [".table.json.tmp", ".journal.jsonl.tmp"] {
        until(name, async || std::fs::create_dir(place.state().join(name)).ok()).await;
    }
    let name = "tidegate_publish_last_write_successful";
    until("the alarm", async || (metric(addr, name).await == 0.0).then_some(())).await;
    let failures = "tidegate_publish_failures_total{channel=\"journal\"}";
    let stored = load_table(&place.state()).unwrap().unwrap().stamp;
    let count = metric(addr, failures).await;
    until("failing turns", async || (metric(addr, failures).await > count + 3.0).then_some(())).await;
    let unstored = table(addr).await.stamp;
    assert_eq!(unstored.epoch, stored.epoch + 1);
    until("a renewal", async || (table(addr).await.stamp > unstored).then_some(())).await;
    assert_eq!(load_table(&place.state()).unwrap().unwrap().stamp, stored);
    assert_eq!(get(addr, "/-/ready").await.status, 200);
    for name in [".table.json.tmp", ".journal.jsonl.tmp"] {
        std::fs::remove_dir(place.state().join(name)).unwrap();
    }
    until("no alarm", async || (metric(addr, name).await == 1.0).then_some(())).await;
    running.shutdown().await;
    assert!(load_table(&place.state()).unwrap().unwrap().stamp > unstored);
    // A clean end: the next run goes on where this one stopped.
    let epoch = load_table(&place.state()).unwrap().unwrap().stamp.epoch;
    let running = place.start().await;
    assert_eq!(table(running.addr).await.stamp.epoch, epoch);
    running.shutdown().await;
}

#[tokio::test]
async fn off_loopback_it_does_not_start_without_tls_and_token() {
    let place = Place::new().await;
    let mut options = place.options();
    options.listen = "0.0.0.0:0".parse().unwrap();
    let Err(StartError::Usage(reason)) = start(options).await else { panic!("started") };
    assert!(reason.contains("give --tls-cert, --tls-key and --token-file"), "{reason}");
    assert!(!place.state().exists());
}

#[tokio::test]
async fn the_second_controller_exits_1_and_names_the_first() {
    let place = Place::new().await;
    let running = place.start().await;
    let (code, stderr) = tidegate(&place.dir.path().join("policies"), &place.state(), "127.0.0.1:0").await;
    assert_eq!(code, Some(1), "{stderr}");
    let holder = format!("pid {}, listening on {}", std::process::id(), running.addr);
    assert!(stderr.contains(&holder), "{stderr}");
    running.shutdown().await;
    let (code, stderr) = tidegate(&place.dir.path().join("policies"), &place.state(), "0.0.0.0:0").await;
    assert_eq!(code, Some(2), "{stderr}");
}

/// Runs the program to its end, which must be near.
async fn tidegate(policies: &Path, state: &Path, listen: &str) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.arg("control").arg("--policies").arg(policies).arg("--state").arg(state);
    command.args(["--listen", listen]).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let id = child.id();
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
    match tokio::time::timeout(crate::support::LONG, output).await {
        Ok(output) => {
            let output = output.unwrap();
            (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
        }
        Err(_) => {
            Command::new("kill").arg(id.to_string()).status().unwrap();
            panic!("tidegate went on running");
        }
    }
}
