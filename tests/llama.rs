//! A real inference server, flooded at three times what it can do: through a node its queue stays
//! short and the guaranteed tier is served; straight, neither holds.
//!
//! The server is llama.cpp's on random weights, see tests/llama/server.py; its controller knows
//! nothing but its metrics page. Needs the virtual environment that tests/run makes.
//! `TIDEGATE_LONG=1` floods for three minutes.
#![cfg(feature = "daemon")]
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a broken promise ends the test"
)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use sha2::{Digest, Sha256};
use tidegate::control::reload::Loader;
use tidegate::control::run as control;
use tidegate::enforce::config::{KeySource, NodeConfig, RoutingConfig, Secret, TableSource, UpstreamConfig};
use tidegate::enforce::node::{Node, Running};
use tokio::task::JoinSet;

type Http = Client<HttpConnector, Full<Bytes>>;

const SLOTS: usize = 8;
const TIERS: [&str; 3] = ["enterprise", "starter", "free"];
/// Offered work over what the server can do: three times of it in all.
const OFFERED: [f64; 3] = [0.2, 1.0, 1.8];
/// Of the server's capacity, guaranteed to enterprise.
const GUARANTEE: f64 = 0.25;
/// Work of one output token, in the policy and in what is measured here.
const OUTPUT_COST: f64 = 4.0;
const OUTPUT: u32 = 16;
/// The longest that enterprise should wait for a first token, and the policy's promise.
const SLO: Duration = Duration::from_secs(2);
/// A request that is not answered by then is lost to its client.
const PATIENCE: Duration = Duration::from_secs(30);
/// Twice the promise: the server's queue knows no tiers, so that the guaranteed one stands in it too.
const SERVED: Duration = Duration::from_secs(4);
const PROMPT: &str = "the moon pulls the sea";

struct Llama {
    child: Child,
    url: String,
}

/// What the server's page says.
#[derive(Clone, Copy, Debug)]
struct Page {
    work: f64,
    running: f64,
    deferred: f64,
}

/// One request as its client saw it; status 0 is one that waits still.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    tier: usize,
    sent: Duration,
    status: u16,
    first_token: Option<Duration>,
}

/// What one flood did, from its settled part.
#[derive(Debug)]
struct Flood {
    delivered: f64,
    deferred: Vec<f64>,
    outcomes: Vec<Outcome>,
    /// Work a second that the table allowed at the end of each second.
    budget: Vec<f64>,
}

// === impl Llama ===

impl Llama {
    /// None, with a line that says so, where it cannot run and peers are not required.
    fn start(dir: &Path) -> Option<Llama> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut child = Command::new(root.join("target/venv/bin/python"))
            .arg(root.join("tests/llama/server.py"))
            .arg(dir)
            .arg(SLOTS.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok();
        let port = child.as_mut().and_then(|child| {
            let mut line = String::new();
            BufReader::new(child.stdout.take()?).read_line(&mut line).ok()?;
            Some(line.strip_prefix("PORT ")?.trim().to_owned())
        });
        if let (Some(child), Some(port)) = (child, port) {
            return Some(Llama { child, url: format!("http://127.0.0.1:{port}") });
        }
        let message = "NOT TESTED: no llama.cpp server in target/venv; tests/run installs it";
        let required = ["CI", "TIDEGATE_REQUIRE_PEERS"]
            .into_iter()
            .any(|name| std::env::var(name).is_ok_and(|value| value == "true" || value == "1"));
        assert!(!required, "{message}");
        eprintln!("{message}");
        None
    }

    async fn page(&self, http: &Http) -> Page {
        // Now and then the server closes a connection under a request; a page may be asked for twice.
        let read = async {
            loop {
                let request = Request::get(format!("{}/metrics", self.url)).header("connection", "close");
                let Ok(answer) = http.request(request.body(Full::default()).unwrap()).await else { continue };
                if let Ok(body) = answer.into_body().collect().await {
                    return body.to_bytes();
                }
            }
        };
        // Flooded without limits it answers its pages as late as everything else.
        let text = tokio::time::timeout(PATIENCE * 4, read).await.expect("a page in time");
        let text = String::from_utf8(text.to_vec()).unwrap();
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("llamacpp:{name} ")));
            line.unwrap_or_else(|| panic!("no {name}: {text}")).parse().unwrap()
        };
        Page {
            work: value("prompt_tokens_total") + OUTPUT_COST * value("tokens_predicted_total"),
            running: value("requests_processing"),
            deferred: value("requests_deferred"),
        }
    }

    /// Until the queue of an earlier flood is gone.
    async fn drain(&self, http: &Http) {
        let idle = async {
            loop {
                let page = self.page(http).await;
                if page.running + page.deferred == 0.0 {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(4 * PATIENCE, idle).await.expect("an idle server");
    }

    /// Work a second with every slot busy.
    async fn capacity(&self, http: &Http) -> f64 {
        let mut workers = JoinSet::new();
        for _ in 0..2 * SLOTS {
            let (http, url) = (http.clone(), self.url.clone());
            workers.spawn(async move {
                // Now and then the server closes a connection under a request.
                loop {
                    let _ = ask(&http, &url, "none").await;
                }
            });
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (begun, before) = (Instant::now(), self.page(http).await.work);
        tokio::time::sleep(Duration::from_secs(4)).await;
        (self.page(http).await.work - before) / begun.elapsed().as_secs_f64()
    }
}

impl Drop for Llama {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// === impl Flood ===

impl Flood {
    /// Requests of a tier, and those answered whose first token came within the promise.
    fn served(&self, tier: usize) -> (usize, usize) {
        let mine = self.outcomes.iter().filter(|outcome| outcome.tier == tier);
        let kept = mine.clone().filter(|outcome| outcome.first_token.is_some_and(|after| after <= SERVED));
        (mine.count(), kept.count())
    }

    fn print(&self, name: &str, capacity: f64) {
        let most = self.deferred.iter().copied().fold(0.0, f64::max);
        println!(
            "{name}: delivered {:.0} of {capacity:.0} work/s, queue {:.1} on average and {most} at most, budget {:?}",
            self.delivered,
            mean(&self.deferred),
            self.budget.iter().map(|budget| budget.round()).collect::<Vec<_>>(),
        );
        for (tier, name) in TIERS.iter().enumerate() {
            let (asked, kept) = self.served(tier);
            let mut statuses: BTreeMap<u16, usize> = BTreeMap::new();
            let mine = self.outcomes.iter().filter(|outcome| outcome.tier == tier);
            mine.for_each(|outcome| *statuses.entry(outcome.status).or_default() += 1);
            println!("  {name}: {kept} of {asked} answered within {SERVED:?}; by status {statuses:?}");
        }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn key(tier: usize) -> String {
    format!("llama-test-{}", TIERS[tier])
}

/// Status, and when the first token came; 0 where no answer came in time.
async fn ask(http: &Http, url: &str, key: &str) -> (StatusCode, Option<Duration>) {
    let body = serde_json::json!({
        "model": "llama", "prompt": PROMPT, "max_tokens": OUTPUT, "ignore_eos": true, "stream": true,
    });
    let request = Request::post(format!("{url}/v1/completions"))
        .header("content-type", "application/json")
        .header("authorization", format!("Bearer {key}"))
        .body(Full::from(body.to_string()))
        .unwrap();
    let begun = Instant::now();
    let exchange = async {
        let answer = http.request(request).await.ok()?;
        let status = answer.status();
        let mut body = answer.into_body();
        let mut first = None;
        while let Some(frame) = body.frame().await {
            // A stream that breaks is no answer.
            let Ok(_) = frame else { return Some((status, None)) };
            first.get_or_insert_with(|| begun.elapsed());
        }
        Some((status, first.filter(|_| status == StatusCode::OK)))
    };
    let lost = (StatusCode::from_u16(599).unwrap(), None);
    tokio::time::timeout(PATIENCE, exchange).await.ok().flatten().unwrap_or(lost)
}

/// Every tier sends at its rate whatever becomes of what it sent.
async fn flood(
    llama: &Llama,
    http: &Http,
    url: &str,
    rates: [f64; 3],
    seconds: Duration,
    node: Option<&Running>,
) -> Flood {
    let outcomes = Arc::new(Mutex::new(Vec::new()));
    let mut senders = JoinSet::new();
    let begun = Instant::now();
    for (tier, rate) in rates.into_iter().enumerate() {
        let (http, url, outcomes) = (http.clone(), url.to_owned(), Arc::clone(&outcomes));
        senders.spawn(async move {
            let mut pace = tokio::time::interval(Duration::from_secs_f64(1.0 / rate));
            let mut requests = JoinSet::new();
            while begun.elapsed() < seconds {
                pace.tick().await;
                let (http, url, outcomes) = (http.clone(), url.clone(), Arc::clone(&outcomes));
                requests.spawn(async move {
                    let sent = begun.elapsed();
                    let at = {
                        let mut all = outcomes.lock().unwrap();
                        all.push(Outcome { tier, sent, status: 0, first_token: None });
                        all.len() - 1
                    };
                    let (status, first_token) = ask(&http, &url, &key(tier)).await;
                    let mut all = outcomes.lock().unwrap();
                    all[at] = Outcome { tier, sent, status: status.as_u16(), first_token };
                });
                while requests.try_join_next().is_some() {}
            }
            while requests.join_next().await.is_some() {}
        });
    }
    // The first half is how the limits get there, or how the queue does.
    let settled = seconds / 2;
    tokio::time::sleep(settled.saturating_sub(begun.elapsed())).await;
    let (from, before) = (begun.elapsed(), llama.page(http).await.work);
    let (mut deferred, mut budget) = (Vec::new(), Vec::new());
    while begun.elapsed() < seconds {
        // A server that does not even tell its queue has one without bound.
        let page = tokio::time::timeout(SLO, llama.page(http)).await;
        deferred.push(page.map_or(f64::INFINITY, |page| page.deferred));
        if let Some(held) = node.and_then(|node| node.cell().held()) {
            budget.push(held.table.pools.values().map(|pool| pool.budget.as_f64() / 60.0).sum());
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let delivered = (llama.page(http).await.work - before) / (begun.elapsed() - from).as_secs_f64();
    // Who has no first token by then is not served in time, whatever comes.
    let rest = async { while senders.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(2 * SERVED, rest).await;
    senders.shutdown().await;
    let mut outcomes = outcomes.lock().unwrap().clone();
    outcomes.retain(|outcome| outcome.sent >= settled);
    Flood { delivered, deferred, outcomes, budget }
}

/// A controller that scrapes the server and a node before it.
async fn limits(dir: &Path, llama: &Llama, capacity: f64) -> (control::Running, Running) {
    let guarantee = (GUARANTEE * capacity * 60.0) as u64;
    let policies = dir.join("policies");
    std::fs::create_dir(&policies).unwrap();
    let policy = format!(
        "product: llama
interval: 1s
pools:
  cpu: {{preset: llamacpp, targets: [{}], slo: {}s, output_token_cost: {OUTPUT_COST}}}
models:
  llama: {{pool: cpu}}
tiers:
  enterprise: {{priority: 1, weight: 4, guarantee: {guarantee} tpm, ceiling: unlimited, key_limits: unlimited}}
  starter: {{priority: 2, weight: 2, guarantee: 0 tpm, ceiling: 100M tpm, key_limits: unlimited}}
  free: {{priority: 3, weight: 1, guarantee: 0 tpm, ceiling: 100M tpm, key_limits: unlimited}}
",
        llama.url,
        SLO.as_secs(),
    );
    std::fs::write(policies.join("llama.yaml"), policy).unwrap();
    let state: PathBuf = dir.join("state");
    let options = control::Options::new(policies, state.clone(), Loader::checked());
    let controller = control::start(options).await.unwrap();
    let keys = (0..TIERS.len()).map(|tier| {
        let digest: String =
            Sha256::digest(key(tier).as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{{\"key_sha256\":\"{digest}\",\"tier\":\"{}\"}}\n", TIERS[tier])
    });
    let upstream = UpstreamConfig {
        urls: vec![llama.url.clone()],
        models: vec!["llama".to_owned()],
        ask_usage: true,
        ..UpstreamConfig::default()
    };
    let routing =
        RoutingConfig { upstreams: BTreeMap::from([("llama".to_owned(), upstream)]), routes: Vec::new() };
    let table = TableSource::Http(controller.url());
    let mut config = NodeConfig::embedded("n1", table, KeySource::Inline(keys.collect()), routing);
    config.controller_token = Some(Secret::load(&state.join("token")).unwrap());
    let node = Node::start(config, None).await.unwrap();
    let listed = async {
        while node
            .cell()
            .held()
            .is_none_or(|held| held.table.pools.values().any(|pool| pool.shares.is_empty()))
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, listed).await.expect("a table that lists the node");
    (controller, node)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flooded_llama_server_keeps_its_promises_behind_a_node_and_not_without() {
    let long = std::env::var("TIDEGATE_LONG").is_ok_and(|value| value == "1");
    let dir = tempfile::tempdir().unwrap();
    let Some(llama) = Llama::start(dir.path()) else { return };
    let http: Http =
        Client::builder(TokioExecutor::new()).pool_idle_timeout(Duration::from_secs(2)).build_http();
    let capacity = llama.capacity(&http).await;
    llama.drain(&http).await;
    let before = llama.page(&http).await.work;
    while ask(&http, &llama.url, "none").await.0 != StatusCode::OK {}
    let cost = llama.page(&http).await.work - before;
    let rates = OFFERED.map(|part| part * capacity / cost);
    println!("capacity {capacity:.0} work/s, {cost} a request, offered {rates:.1?} requests/s");

    let (controller, node) = limits(dir.path(), &llama, capacity).await;
    let proxy = format!("http://{}", node.proxy);
    let limited =
        flood(&llama, &http, &proxy, rates, Duration::from_secs(if long { 180 } else { 24 }), Some(&node))
            .await;
    limited.print("behind a node", capacity);
    node.shutdown().await;
    controller.shutdown().await;
    llama.drain(&http).await;

    let free =
        flood(&llama, &http, &llama.url, rates, Duration::from_secs(if long { 20 } else { 8 }), None).await;
    free.print("without limits", capacity);

    // The queue is the server's own: what it holds beyond its slots.
    let (most, queued) = (limited.deferred.iter().copied().fold(0.0, f64::max), mean(&free.deferred));
    let room = SERVED.as_secs_f64() * capacity / cost;
    assert!(most <= room, "{most} requests waited behind a node, {room:.0} are served in {SERVED:?}");
    assert!(
        queued >= 2.0 * most.max(SLOTS as f64),
        "only {queued:.0} waited without limits, {most} with them"
    );
    let (asked, kept) = limited.served(0);
    assert!(asked > 10 && kept * 100 >= asked * 95, "enterprise: {kept} of {asked} in time");
    let (asked, kept) = free.served(0);
    assert!(kept * 2 < asked, "without limits {kept} of {asked} in time: the flood is no flood");
    // What is allowed is what the server does, not what is asked of it.
    let budget = mean(&limited.budget);
    let ratio = budget / limited.delivered;
    assert!((0.5..=2.0).contains(&ratio), "allowed {budget:.0} work/s, delivered {:.0}", limited.delivered);
}
