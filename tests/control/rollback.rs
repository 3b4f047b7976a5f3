//! An operator goes back to a former policy: a new version with old content, steered, audited, and
//! held until somebody edits the directory.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::support::{Reply, call, get, loader, metric, replica, until};
use tidegate::control::run::{Options, Running, start};
use tidegate::policy::SourcePolicy;
use tidegate::unit::{Dimension, Limit};
use tidegate::wire::LimitTable;

const PAGE: &str = "vllm:num_requests_running 3\nvllm:num_requests_waiting 1\n\
                    vllm:prompt_tokens_total 500\nvllm:generation_tokens_total 10\n";

struct Place {
    dir: tempfile::TempDir,
    target: String,
}

impl Place {
    fn policy(&self) -> PathBuf {
        self.dir.path().join("policies/p.yaml")
    }

    async fn start(&self) -> Running {
        let source = SourcePolicy::targets(vec![self.target.clone()]);
        let loader = loader(source, Duration::from_millis(200));
        let mut options =
            Options::new(self.dir.path().join("policies"), self.dir.path().join("state"), loader);
        options.settle = Duration::from_millis(20);
        start(options).await.unwrap()
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

async fn post(running: &Running, path: &str) -> Reply {
    let token = format!("Bearer {}", running.token.reveal());
    call(running.addr, &format!("POST {path}"), &[("authorization", &token)], b"").await
}

fn ceiling(table: &LimitTable) -> f64 {
    match table.rows[0].limits[&Dimension::TokensPerMinute].ceiling {
        Limit::Finite(ceiling) => ceiling as f64,
        Limit::Unlimited => f64::INFINITY,
    }
}

#[tokio::test]
async fn d13_a_rollback_is_a_new_version_with_old_content_steered_audited_and_held() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("policies")).unwrap();
    let place = Place { dir, target: replica(PAGE).await.to_string() };
    fs::write(place.policy(), "50000").unwrap();
    let running = place.start().await;
    let addr = running.addr;
    let old = with_policy(addr, "50000").await;
    let refused = post(&running, "/-/rollback").await;
    assert!(refused.text().contains("no former policy is kept"), "{}", refused.text());
    fs::write(place.policy(), "400000").unwrap();
    with_policy(addr, "400000").await;
    let wide = until("the edit has steered", async || {
        let table = table(addr).await;
        (ceiling(&table) == 400_000.0).then_some(table)
    })
    .await;

    // Without a token nobody goes anywhere.
    assert_eq!(call(addr, "POST /-/rollback", &[], b"").await.status, 401);
    for (path, reason) in [
        ("/-/rollback?to=99999", "was never published"),
        ("/-/rollback?to=x", "not a version to go back to"),
        ("/-/rollback?too=1", "not a version to go back to"),
    ] {
        let refused = post(&running, path).await;
        assert_eq!(refused.status, 400);
        assert!(refused.text().contains(reason), "{}", refused.text());
    }
    let path = format!("/-/rollback?to={}", old.stamp.version);
    let done = post(&running, &path).await;
    assert_eq!(done.status, 200, "{}", done.text());
    assert!(done.text().contains("policy 50000 is in force with the next tick"), "{}", done.text());
    let mut former = wide.clone();
    // A new version, and no step of more than 30 % on the way.
    let back = until("the old content", async || {
        let table = table(addr).await;
        assert!(table.stamp >= former.stamp);
        assert!(ceiling(&table) >= ceiling(&former) * 0.7 - 1.0, "{} {}", ceiling(&former), ceiling(&table));
        former = table.clone();
        (ceiling(&table) == 50_000.0).then_some(table)
    })
    .await;
    assert_eq!(back.policy, "50000");
    assert!(back.stamp.version > wide.stamp.version);
    // Audited: with every entry of the journal, which the status is the last of.
    let status = get(addr, "/v1/status").await.json();
    assert_eq!(status["origin"]["rollback"]["to"], old.stamp.version);
    assert_eq!(status["reload"]["origin"]["rollback"]["to"], old.stamp.version);
    let kept = status["reload"]["kept"].as_array().unwrap();
    let policies: Vec<&str> = kept.iter().map(|kept| kept["policy"].as_str().unwrap()).collect();
    assert_eq!(policies, ["50000", "400000", "50000"]);
    let journal = fs::read_to_string(place.dir.path().join("state/journal.jsonl")).unwrap();
    assert!(journal.contains("\"origin\":{\"rollback\":{\"to\":"));
    assert_eq!(metric(addr, "tidegate_policy_held").await, 1.0);
    // The directory still says otherwise; that is no edit, also not after a restart.
    running.shutdown().await;
    let running = place.start().await;
    let addr = running.addr;
    assert_eq!(table(addr).await.policy, "50000");
    assert_eq!(metric(addr, "tidegate_policy_held").await, 1.0);
    // Forward again: the policy before this one.
    let forward = post(&running, "/-/rollback").await;
    assert_eq!(forward.status, 200, "{}", forward.text());
    with_policy(addr, "400000").await;
    // The next edit ends it.
    fs::write(place.policy(), "60000").unwrap();
    with_policy(addr, "60000").await;
    assert_eq!(metric(addr, "tidegate_policy_held").await, 0.0);
    assert_eq!(metric(addr, "tidegate_policy_last_reload_successful").await, 1.0);
    // So does a reload.
    assert_eq!(post(&running, "/-/rollback").await.status, 200);
    with_policy(addr, "400000").await;
    assert_eq!(post(&running, "/-/reload").await.status, 200);
    with_policy(addr, "60000").await;
    running.shutdown().await;
    let running = place.start().await;
    assert_eq!(table(running.addr).await.policy, "60000");
    running.shutdown().await;
}
