//! The same overloaded fleet, read by PromQL and read directly: both controllers decide the same.
//!
//! Needs a real Prometheus, as tests/control_prometheus.rs does.
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

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::json;
use support::prometheus::Prometheus;
use support::{call, get};
use tidegate::control::reload::Loader;
use tidegate::control::run::{Options, Running, start};
use tidegate::demo::plant::Plant;
use tidegate::sim::batch::Shape;
use tokio::task::JoinSet;

const REPLICAS: usize = 4;
/// Above the 32 slots of a replica: the others queue.
const CLIENTS_PER_REPLICA: usize = 60;
/// Offered over what the plant can do.
const OFFERED: f64 = 1.5;
/// Reports, one second apart; the last third is judged.
const SECONDS: u64 = 27;
const AGREE: f64 = 0.10;

/// One controller, what it has decided in the judged seconds.
struct Side {
    name: &'static str,
    running: Running,
    capacity: Vec<f64>,
    budget: Vec<f64>,
}

// === impl Side ===

impl Side {
    async fn start(name: &'static str, dir: &Path, source: &str) -> Side {
        let policies = dir.join(name);
        std::fs::create_dir(&policies).unwrap();
        let text = format!(
            "product: fleet\npools:\n  gpu:\n    preset: vllm\n    {source}\n    slo: 1s\n    \
             output_token_cost: 4\nmodels:\n  m: {{pool: gpu}}\ntiers:\n  paid: {{priority: 1, weight: 2, \
             guarantee: 300k tpm, ceiling: unlimited, key_limits: unlimited}}\n"
        );
        std::fs::write(policies.join("fleet.yaml"), text).unwrap();
        let state = dir.join(format!("{name}-state"));
        let running = start(Options::new(policies, state, Loader::checked())).await.unwrap();
        Side { name, running, capacity: Vec::new(), budget: Vec::new() }
    }

    /// What a node in front of the fleet would say after `seconds` of overload.
    async fn report(&self, seconds: f64, capacity: f64) {
        let work = |rate: f64| {
            let done = rate * seconds;
            json!({"requests": (done / 500.0) as u64, "work": done as u64})
        };
        let report = json!({
            "schema": 1, "node": "n", "instance": 1, "uptime_ms": (seconds * 1000.0) as u64, "applied": null,
            "rows": [{
                "model": "m", "tier": "paid", "offered": work(OFFERED * capacity), "admitted": work(capacity),
                "refused_limit": work((OFFERED - 1.0) * capacity), "refused_capacity": work(0.0),
            }],
            "pools": {"gpu": {
                "in_flight": REPLICAS * CLIENTS_PER_REPLICA, "waiting_work": 0, "upstream_requests": 0,
                "upstream_errors": 0,
            }},
        });
        let token = format!("Bearer {}", self.running.token.reveal());
        let body = report.to_string();
        let head = "POST /v1/usage";
        let taken = call(self.running.addr, head, &[("authorization", &token)], body.as_bytes()).await;
        assert_eq!(taken.status, 204, "{}", taken.text());
    }

    async fn judge(&mut self) {
        let status = get(self.running.addr, "/v1/status").await.json();
        let pool = &status["tick"]["pools"]["gpu"];
        println!("{}: {} {}", self.name, pool["estimate"]["capacity"], pool["decision"]);
        self.capacity.push(pool["estimate"]["capacity"].as_f64().unwrap_or(f64::NAN));
        self.budget.push(pool["decision"]["budget"].as_f64().unwrap_or(f64::NAN));
    }
}

/// Asks one replica again and again, each time with a prompt of its own.
async fn ask_forever(url: String, client: usize) {
    let http: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    for turn in 0_usize.. {
        let prompt = format!("{client:08} {turn:08} {}", "~".repeat(700));
        let body = json!({
            "model": "demo-model", "max_tokens": 200, "stream": false,
            "messages": [{"role": "user", "content": prompt}],
        });
        let body = Full::new(Bytes::from(body.to_string()));
        let request = Request::post(format!("{url}/v1/chat/completions")).body(body).unwrap();
        let reply = http.request(request).await.unwrap();
        assert!(reply.status().is_success(), "{}", reply.status());
        reply.into_body().collect().await.unwrap();
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

    let mut clients = JoinSet::new();
    for client in 0..REPLICAS * CLIENTS_PER_REPLICA {
        clients.spawn(ask_forever(urls[client % REPLICAS].clone(), client));
    }
    let by_query = format!("prometheus: {}\n    selector: 'job=\"fleet\"'", prometheus.url());
    let pages: Vec<String> = urls.iter().map(|url| format!("{url}/metrics")).collect();
    let directly = format!("targets: [{}]", pages.join(", "));
    let mut sides = [
        Side::start("prometheus", dir.path(), &by_query).await,
        Side::start("directly", dir.path(), &directly).await,
    ];

    let begun = Instant::now();
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    for second in 0..SECONDS {
        seconds.tick().await;
        for side in &mut sides {
            side.report(begun.elapsed().as_secs_f64(), plant.capacity()).await;
            if second >= SECONDS * 2 / 3 {
                side.judge().await;
            }
        }
    }
    assert!(clients.try_join_next().is_none(), "a client failed, so the fleet was not overloaded throughout");
    clients.abort_all();
    let late = plant.late();
    assert!(late < tidegate::demo::plant::LATE_MAX, "machine too slow: the plant was {late:?} late");

    let near = |name: &str, value: f64, wanted: f64| {
        let off = (value / wanted - 1.0).abs();
        assert!(off <= AGREE, "{name}: {value:.0} is {:.1} % off {wanted:.0}", off * 100.0);
    };
    let [queried, direct] = &sides;
    for side in [queried, direct] {
        near(&format!("{}: capacity and truth", side.name), mean(&side.capacity), plant.capacity());
        near(&format!("{}: budget and truth", side.name), mean(&side.budget), plant.capacity());
    }
    near("capacity by query and directly", mean(&queried.capacity), mean(&direct.capacity));
    near("budget by query and directly", mean(&queried.budget), mean(&direct.budget));
    for side in sides {
        side.running.shutdown().await;
    }
}
