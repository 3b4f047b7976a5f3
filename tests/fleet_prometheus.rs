//! The same overloaded fleet, read by PromQL and read directly: both controllers decide the same.
//!
//! Needs a real Prometheus, as tests/control/prometheus.rs does.
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

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use support::prometheus::Prometheus;
use support::{call, get};
use tidegate::control::reload::Loader;
use tidegate::control::run::{Options, Running, start};
use tidegate::demo::cluster::{Cluster, SLO};
use tidegate::demo::ledger::Ledger;
use tidegate::demo::plant::{LATE_MAX, Plant};
use tidegate::demo::tenants;
use tidegate::sim::batch::Shape;
use tidegate::unit::{Instant, SystemClock};
use tokio::task::JoinSet;

const REPLICAS: usize = 4;
/// What each tier offers, over what the fleet can do.
const OFFERED: [f64; 3] = [0.22, 0.50, 0.78];
/// Seconds of overload; from `SETTLED` on decisions are compared.
const SECONDS: u64 = 30;
const SETTLED: u64 = 20;
const AGREE: f64 = 0.10;

/// What one controller decided in the seconds that count.
#[derive(Debug, Default)]
struct Decided {
    capacity: Vec<f64>,
    budget: Vec<f64>,
}

// === impl Decided ===

impl Decided {
    fn read(&mut self, name: &str, status: &Value) {
        let pool = &status["tick"]["pools"]["llm"];
        println!("{name}: capacity {} {}", pool["estimate"]["capacity"], pool["decision"]);
        self.capacity.push(pool["estimate"]["capacity"].as_f64().unwrap_or(f64::NAN));
        self.budget.push(pool["decision"]["budget"].as_f64().unwrap_or(f64::NAN));
    }
}

/// The policy of the controller that scrapes, but by PromQL.
async fn by_promql(cluster: &Cluster, prometheus: &Prometheus, dir: &std::path::Path) -> Running {
    let text = std::fs::read_to_string(cluster.directory.policies().join("demo.yaml")).unwrap();
    let mut replaced = 0;
    let mut lines = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("targets:") {
            replaced += 1;
            lines.push(format!("    prometheus: {}\n    selector: 'job=\"fleet\"'", prometheus.url()));
        } else {
            lines.push(line.to_owned());
        }
    }
    assert_eq!(replaced, 1, "{text}");
    let policies = dir.join("policies");
    std::fs::create_dir(&policies).unwrap();
    std::fs::write(policies.join("demo.yaml"), lines.join("\n") + "\n").unwrap();
    start(Options::new(policies, dir.join("state"), Loader::checked())).await.unwrap()
}

/// What the nodes told the one, the other hears too, but for the table they hold: it is not its.
async fn forward(status: &Value, to: &Running) {
    let token = format!("Bearer {}", to.token.reveal());
    for node in status["round"]["reported"].as_array().unwrap() {
        let mut report = status["state"]["nodes"]["nodes"][node.as_str().unwrap()]["last"].clone();
        report["applied"] = Value::Null;
        let body = report.to_string();
        let taken = call(to.addr, "POST /v1/usage", &[("authorization", &token)], body.as_bytes()).await;
        assert_eq!(taken.status, 204, "{}", taken.text());
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_by_promql_or_directly_an_overloaded_fleet_gets_the_same_budget() {
    let dir = tempfile::tempdir().unwrap();
    let plant = Plant::start(REPLICAS, Shape::default()).unwrap();
    let urls = plant.replica_urls();
    let hosts: Vec<String> = urls.iter().map(|url| url.replacen("http://", "", 1)).collect();
    let Some(prometheus) = Prometheus::scraping(dir.path(), &hosts).await else { return };
    // One controller scrapes and two nodes obey it; the other only watches the same fleet.
    let cluster = Cluster::start(&urls).await.unwrap();
    let scraping: SocketAddr = cluster.controller.strip_prefix("http://").unwrap().parse().unwrap();
    let querying = by_promql(&cluster, &prometheus, dir.path()).await;

    let load = tenants::Load {
        seed: 3,
        seconds: SECONDS,
        targets: cluster.nodes.iter().map(|node| node.proxy.clone()).collect(),
        demand: OFFERED.map(|part| part * plant.capacity()),
        in_flight_max: 1000,
    };
    let ledger = Arc::new(Ledger::new(SECONDS as usize, SLO));
    let mut load_running = JoinSet::new();
    load_running.spawn(tenants::run(load, ledger, Arc::new(SystemClock::starting_at(Instant::ZERO))));

    let (mut direct, mut queried) = (Decided::default(), Decided::default());
    let mut polls = tokio::time::interval(Duration::from_millis(250));
    let mut forwarded = Value::Null;
    for poll in 0..SECONDS * 4 {
        polls.tick().await;
        let status = get(scraping, "/v1/status").await.json();
        if status["now"] != forwarded {
            forward(&status, &querying).await;
            forwarded = status["now"].clone();
        }
        if poll >= SETTLED * 4 && poll % 4 == 0 {
            direct.read("directly", &status);
            queried.read("by query", &get(querying.addr, "/v1/status").await.json());
        }
    }
    assert!(plant.late() < LATE_MAX, "machine too slow: the plant was {:?} late", plant.late());

    let near = |name: &str, value: f64, wanted: f64| {
        let off = (value / wanted - 1.0).abs();
        assert!(off <= AGREE, "{name}: {value:.0} is {:.1} % off {wanted:.0}", off * 100.0);
    };
    for (name, decided) in [("directly", &direct), ("by query", &queried)] {
        near(&format!("capacity {name} and truth"), mean(&decided.capacity), plant.capacity());
        near(&format!("budget {name} and truth"), mean(&decided.budget), plant.capacity());
    }
    near("capacity by query and directly", mean(&queried.capacity), mean(&direct.capacity));
    near("budget by query and directly", mean(&queried.budget), mean(&direct.budget));
    load_running.abort_all();
    querying.shutdown().await;
    cluster.shutdown().await;
}
