//! `tidegate backtest --prometheus`: what a real Prometheus kept of an overloaded fleet, replayed;
//! and what it did not keep, named.
//!
//! Needs a real Prometheus, as tests/control/prometheus.rs does.
#![cfg(feature = "daemon")]
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a broken promise ends the test"
)]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use support::prometheus::Prometheus;
use support::{Manner, TEXT, serve};
use tidegate::demo::cluster::{Cluster, SLO};
use tidegate::demo::ledger::Ledger;
use tidegate::demo::plant::Plant;
use tidegate::demo::tenants;
use tidegate::sim::batch::Shape;
use tidegate::unit::{Instant, SystemClock, unix_now};

const OFFERED: [f64; 3] = [0.22, 0.50, 0.78];
const SECONDS: u64 = 14;

fn backtest(policies: &Path, url: &str, from: Duration, to: Duration) -> Output {
    let seconds = |at: Duration| format!("{:.3}", at.as_secs_f64());
    let (from, to) = (seconds(from), seconds(to));
    let arguments = ["--prometheus", url, "--from", &from, "--to", &to, "--json", "--policies"];
    Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .arg("backtest")
        .args(arguments)
        .arg(policies)
        .output()
        .unwrap()
}

fn lines(output: &Output) -> (Vec<Value>, Value) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let summary = lines.pop().unwrap()["summary"].clone();
    (lines, summary)
}

fn notes(summary: &Value) -> Vec<String> {
    let notes = summary["notes"].as_array().unwrap();
    notes.iter().map(|note| note["text"].as_str().unwrap().to_owned()).collect()
}

fn with_policy(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("demo.yaml"), text).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_prometheus_kept_of_a_fleet_is_replayed() {
    let dir = tempfile::tempdir().unwrap();
    let plant = Plant::start(4, Shape::default()).unwrap();
    let urls = plant.replica_urls();
    let cluster = Cluster::start(&urls).await.unwrap();
    let host = |url: &String| url.replacen("http://", "", 1);
    let mut hosts: Vec<String> = urls.iter().map(host).collect();
    hosts.push(host(&cluster.controller));
    hosts.extend(cluster.nodes.iter().map(|node| host(&node.admin)));
    let Some(prometheus) = Prometheus::scraping(dir.path(), &hosts).await else { return };
    let load = tenants::Load {
        seed: 3,
        seconds: SECONDS,
        targets: cluster.nodes.iter().map(|node| node.proxy.clone()).collect(),
        demand: OFFERED.map(|part| part * plant.capacity()),
        in_flight_max: 600,
    };
    let ledger = Arc::new(Ledger::new(SECONDS as usize, SLO));
    let clock = Arc::new(SystemClock::starting_at(Instant::ZERO));
    let from = unix_now() + Duration::from_secs(3);
    tenants::run(load, ledger, clock).await;
    let to = unix_now();
    let good = std::fs::read_to_string(cluster.directory.policies().join("demo.yaml")).unwrap();
    let cut = good.lines().map(|line| match line.trim_start().starts_with("free:") {
        true => line.replace("ceiling: 1500k", "ceiling: 60k"),
        false => line.to_owned(),
    });
    let cut = with_policy(dir.path(), "cut", &cut.collect::<Vec<_>>().join("\n"));
    // The program itself asks, while the server of this test's runtime answers nothing.
    let output = backtest(&cut, &prometheus.url(), from, to);
    let (rows, summary) = lines(&output);
    println!("{}", String::from_utf8_lossy(&output.stdout));
    assert!(summary["ticks"].as_u64().unwrap() >= 4, "{summary}");
    let told = notes(&summary);
    let absent: Vec<&String> = told.iter().filter(|note| note.contains("there is no series")).collect();
    assert!(absent.iter().all(|note| note.contains("`errors` of pool llm")), "{absent:?}");
    let free = rows.iter().find(|row| row["tier"] == "free").unwrap();
    // 60k tpm are 1,000 a second of the third of 32,000 that it asks for.
    assert_eq!(free["is"]["limit"]["max"], 60_000, "{free}");
    assert!(free["offered"]["work"].as_f64().unwrap() > 50_000.0, "{free}");
    assert!(free["was"]["limit"]["max"].as_f64().unwrap() > 60_000.0, "{free}");
    assert!(free["newly_refused"]["work"].as_f64().unwrap() > 1_000.0, "{free}");
    let admitted = free["is"]["admitted"]["work"].as_f64().unwrap();
    let seconds = summary["seconds"].as_f64().unwrap();
    // The first interval is the record's own; afterwards a rate and two nodes' buckets.
    let first = free["was"]["admitted"]["work"].as_f64().unwrap() / (seconds / 2.0 - 1.0);
    assert!(admitted <= 1_000.0 * (seconds + 2.0 * 4.0) + 3.0 * first, "{free}");

    // Before anybody was scraped there is nothing, and that is said of each.
    let early = from - Duration::from_secs(3_600);
    let (_, summary) = lines(&backtest(&cut, &prometheus.url(), early, early + Duration::from_secs(20)));
    let told = notes(&summary).join("\n");
    for missing in
        ["`tidegate_enforce_work_total`", "`tidegate_publish_limit_per_second`", "`waiting` of pool llm"]
    {
        assert!(told.contains(&format!("there is no series of {missing}")), "{told}");
    }
    // Half of the time before, half of the time since: gaps, with their length.
    let (_, summary) = lines(&backtest(&cut, &prometheus.url(), from - Duration::from_secs(60), to));
    let told = notes(&summary).join("\n");
    assert!(told.contains("no sample of `waiting` of pool llm for "), "{told}");
    assert!(told.contains(" s: 127.0.0.1:") && told.contains(" and 1 more"), "{told}");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_refuses_or_is_none_is_named_with_its_query() {
    let dir = tempfile::tempdir().unwrap();
    let text = "product: chat\ninterval: 2s\npools:\n  gpu:\n    preset: vllm\n    \
                targets: [http://127.0.0.1:1/metrics]\n    slo: 1s\nmodels:\n  m: {pool: gpu}\ntiers:\n  \
                free: {priority: 1, weight: 1, guarantee: 6k tpm, ceiling: 60k tpm, key_limits: unlimited}\n";
    let policies = with_policy(dir.path(), "policies", text);
    let hour = Duration::from_secs(3_600);
    let complaint = |url: String, to: Duration| {
        let policies = policies.clone();
        tokio::task::spawn_blocking(move || {
            let output = backtest(&policies, &url, hour, to);
            assert_eq!(output.status.code(), Some(1), "{output:?}");
            String::from_utf8(output.stderr).unwrap().replace(&url, "S")
        })
    };
    let body = r#"{"status":"error","errorType":"bad_data","error":"no such thing"}"#;
    let refusing = serve(Manner::Answers(400, TEXT, body.to_owned())).await;
    let told = complaint(format!("http://{refusing}"), 2 * hour).await.unwrap();
    assert!(
        told.starts_with("tidegate: S: range query of `") && told.ends_with("`: HTTP 400: no such thing\n"),
        "{told}"
    );
    let nobody = support::nobody().await;
    let told = complaint(format!("http://{nobody}"), 2 * hour).await.unwrap();
    assert!(told.ends_with("`: connection refused\n"), "{told}");
    let flood = serve(Manner::Floods).await;
    let told = complaint(format!("http://{flood}"), hour + Duration::from_secs(2)).await.unwrap();
    assert!(told.ends_with("`: the answer has more than 16777216 bytes\n"), "{told}");
    let told = complaint("http://127.0.0.1:1".to_owned(), hour / 2).await.unwrap();
    assert_eq!(told, "tidegate: --to is not after --from\n");
    let told = complaint("http://127.0.0.1:1".to_owned(), 200 * hour).await.unwrap();
    assert!(
        told.contains("steps of the policy's interval are more than 200000; ask for a shorter time"),
        "{told}"
    );
}
