//! The program itself: its signals and its exit codes. What a `kill -9` may not do: control_kills.rs.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::program::{Program, wait_for};
use crate::support::{call, get, metric, replica, until};
use tidegate::wire::LimitTable;

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
    let mut program = Program::start(dir.path(), "127.0.0.1:0");
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
    let mut program = Program::start(dir.path(), "127.0.0.1:0");
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
