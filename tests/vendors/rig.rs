//! A shipped policy, the controller that makes its table, and a node in front of upstreams that use
//! as many tokens as they are told.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tidegate::control::{Controller, State, Tick};
use tidegate::enforce::config::{KeySource, RoutingConfig, Secret, UpstreamConfig};
use tidegate::enforce::jobs::Hook;
use tidegate::enforce::node::{Node, Running};
use tidegate::observe::{Outcome, PoolRound, Reading, Round, Signals};
use tidegate::policy::Policy;
use tidegate::policy::diagnostic::render;
use tidegate::policy::load::load;
use tidegate::unit::{Instant, ReplicaId};
use tidegate::wire::{LimitTable, UsageReport, UsageRow, Work};

use crate::support::node::{Http, client, config, until, write, write_table};
use crate::upstream::{self, World};

/// A policy as it is shipped.
pub fn policy(name: &str) -> Policy {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies").join(format!("{name}.yaml"));
    load(&path).unwrap_or_else(|found| panic!("{}", render(&found, false))).policy
}

/// A controller whose pools' replicas and node `n` say what they are told to say.
pub struct Loop {
    pub controller: Controller,
    turn: u64,
    done: f64,
    offered: BTreeMap<(String, String), u64>,
}

/// What the replicas of every measured pool report in one interval.
#[derive(Clone, Copy)]
pub struct Load {
    pub replicas: usize,
    /// Work of each in a second.
    pub each: f64,
    pub running: f64,
    pub waiting: f64,
}

/// Far from its limit: a hundred replicas that each do ten million tokens a second.
pub const VAST: Load = Load { replicas: 100, each: 1e7, running: 100.0, waiting: 30.0 };

impl Loop {
    pub fn new(policy: Policy) -> Loop {
        let controller = Controller::new(Arc::new(policy), State::default());
        Loop { controller, turn: 0, done: 0.0, offered: BTreeMap::new() }
    }

    /// One interval of 2 s; `offered` is work of each row since the last.
    pub fn turn(&mut self, load: Load, offered: impl Fn(&str, &str) -> u64) -> Tick {
        self.turn += 1;
        self.done += load.each * 2.0;
        let now = Instant::ZERO + Duration::from_secs(2) * self.turn as u32;
        let policy = Arc::clone(self.controller.policy());
        let reading = |at: usize| Reading {
            replica: ReplicaId::new(format!("r{at}")),
            at: now,
            outcome: Outcome::Up(Signals {
                running: Some(load.running),
                waiting: Some(load.waiting),
                work_done: Some(self.done),
                work_done_output: Some(0.0),
                ..Signals::default()
            }),
        };
        let round =
            |_: &_| PoolRound { replicas: (0..load.replicas).map(reading).collect(), ..Default::default() };
        let measured = policy.pools.iter().filter(|(_, pool)| !pool.is_fixed());
        let pools = measured.map(|(id, _)| (id.clone(), round(id))).collect();
        let mut rows = Vec::new();
        for (model, entry) in &policy.models {
            for tier in entry.tiers.keys() {
                let key = (model.to_string(), tier.to_string());
                let sum = self.offered.entry(key).or_default();
                *sum += offered(model.as_str(), tier.as_str());
                let work = Work { requests: *sum / 100, work: *sum };
                rows.push(UsageRow {
                    model: model.clone(),
                    tier: tier.clone(),
                    offered: work,
                    admitted: work,
                    refused_limit: Work { requests: *sum / 1_000, work: *sum / 10 },
                    refused_capacity: Work::default(),
                    refused_share: Work::default(),
                    refused_tier: Work::default(),
                });
            }
        }
        let usage = vec![UsageReport {
            schema: 1,
            node: "n".into(),
            instance: 1,
            uptime_ms: 2_000 * self.turn,
            applied: None,
            nack: None,
            rows,
            pools: BTreeMap::new(),
            providers: BTreeMap::new(),
        }];
        self.controller.tick(now, &Round { pools, usage })
    }

    /// The table once the cluster is known to be vast.
    pub fn table(&mut self) -> LimitTable {
        let tick = (0..30).map(|_| self.turn(VAST, |_, _| 0)).last().unwrap();
        tick.table.validate().unwrap();
        (*tick.table).clone()
    }
}

pub struct Rig {
    dir: TempDir,
    upstreams: Vec<tokio::task::JoinHandle<()>>,
    pub world: Arc<World>,
    pub node: Running,
    http: Http,
}

/// What a client got.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

fn digest(key: &str) -> String {
    Sha256::digest(key.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A key of an account, and what else its line says.
pub fn key(name: &str, account: &str, rest: &str) -> String {
    let comma = if rest.is_empty() { "" } else { "," };
    format!("{{\"key_sha256\":\"{}\",\"account\":\"{account}\"{comma}{rest}}}\n", digest(&secret(name)))
}

/// An account by what it has recharged.
pub fn account(name: &str, cents: u64) -> String {
    account_with(name, cents, "")
}

/// What else its line says, each part with a comma before it.
pub fn account_with(name: &str, cents: u64, rest: &str) -> String {
    format!("{{\"account\":\"{name}\",\"recharged_micros\":{}{rest}}}\n", cents * 10_000)
}

fn secret(name: &str) -> String {
    format!("canary-{name}")
}

// === impl Answer ===

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    pub fn header(&self, name: &str) -> u64 {
        let value = self.headers.get(name).unwrap_or_else(|| panic!("no {name}: {self:?}"));
        value.to_str().unwrap().parse().unwrap()
    }

    /// Names of those that tell of limits.
    pub fn limit_headers(&self) -> BTreeSet<&str> {
        let names = self.headers.keys().map(http::HeaderName::as_str);
        names.filter(|name| name.contains("ratelimit") || name.starts_with("retry-after")).collect()
    }
}

// === impl Rig ===

impl Rig {
    /// With the table of a vast cluster.
    pub async fn start(name: &str, accounts: String) -> Arc<Rig> {
        Rig::with(&Loop::new(policy(name)).table(), accounts).await
    }

    pub async fn with(table: &LimitTable, accounts: String) -> Arc<Rig> {
        let dir = TempDir::new().unwrap();
        write_table(&dir.path().join("table.json"), table);
        write(&dir.path().join("accounts.jsonl"), accounts.as_bytes());
        let world = Arc::new(World::default());
        // Whom the policy lists, or one for all.
        let listed: BTreeSet<String> =
            table.models.values().flat_map(|model| &model.providers).map(ToString::to_string).collect();
        let models: BTreeSet<String> = table.rows.iter().map(|row| row.model.to_string()).collect();
        let (mut routing, mut upstreams) = (RoutingConfig::default(), Vec::new());
        for name in if listed.is_empty() { ["main".to_owned()].into() } else { listed.clone() } {
            let (address, task) = upstream::start(&name, &world).await;
            upstreams.push(task);
            let urls = vec![format!("http://{address}")];
            // A provider is found by its name.
            let models =
                if listed.is_empty() { models.iter().cloned().collect() } else { vec![name.clone()] };
            routing.upstreams.insert(name, UpstreamConfig { urls, models, ..UpstreamConfig::default() });
        }
        let mut config = config(dir.path(), &[]);
        config.routing = routing;
        config.keys = KeySource::File(dir.path().join("accounts.jsonl"));
        // Credit and budgets are kept there.
        config.state = Some(dir.path().join("state"));
        config.hook =
            Some(Hook { url: "http://edge".to_owned(), secret: Secret::new("canary-hook"), relay: false });
        let node = Node::start(config, None).await.unwrap();
        until("the first table", || node.cell().held().is_some()).await;
        Arc::new(Rig { dir, upstreams, world, node, http: client() })
    }

    pub async fn publish(&self, table: &LimitTable) {
        write_table(&self.dir.path().join("table.json"), table);
        let version = table.stamp.version;
        until("the next table", || self.node.cell().held().unwrap().stamp().version == version).await;
    }

    /// Replaces the accounts file; the node sees it a moment later.
    pub fn accounts(&self, text: &str) {
        write(&self.dir.path().join("accounts.jsonl"), text.as_bytes());
    }

    pub async fn call(&self, key: &str, method: Method, path: &str, body: &Value) -> Answer {
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.node.proxy))
            .header("authorization", format!("Bearer {}", secret(key)))
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(text)))
            .unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(60), self.http.request(request)).await;
        let (parts, body) = answer.expect("an answer in time").unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body = String::from_utf8_lossy(&body).into_owned();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    pub async fn ask(&self, key: &str, path: &str, body: &Value) -> Answer {
        self.call(key, Method::POST, path, body).await
    }

    /// A chat that uses so many tokens in the end: all together, or `INPUT+OUTPUT`.
    pub async fn say(&self, key: &str, model: &str, tokens: &str) -> Answer {
        let body = json!({
            "model": model, "max_tokens": 1, "user": tokens,
            "messages": [{"role": "user", "content": "Hi"}],
        });
        self.ask(key, "/v1/chat/completions", &body).await
    }

    pub async fn chat(&self, key: &str, model: &str, tokens: u64) -> StatusCode {
        self.say(key, model, &tokens.to_string()).await.status
    }

    pub async fn draw(&self, key: &str, model: &str, n: u64) -> Answer {
        let body = json!({"model": model, "n": n, "user": "0", "prompt": "a tide gate"});
        self.ask(key, "/v1/images/generations", &body).await
    }

    pub async fn images(&self, key: &str, model: &str, n: u64) -> StatusCode {
        self.draw(key, model, n).await.status
    }

    /// How the key stands with each model, by `GET /v1/limits`.
    pub async fn standing(&self, key: &str, model: &str) -> Value {
        let answer = self.call(key, Method::GET, "/v1/limits", &Value::Null).await;
        let body = answer.json();
        let found = body["models"].as_array().unwrap().iter().find(|found| found["model"] == model);
        found.unwrap_or_else(|| panic!("{model}: {}", answer.body)).clone()
    }

    /// The same, of one dimension.
    pub async fn limit(&self, key: &str, model: &str, dimension: &str) -> Value {
        let standing = self.standing(key, model).await;
        let limits = standing["limits"].as_array().unwrap();
        let found = limits.iter().find(|found| found["dimension"] == dimension);
        found.unwrap_or_else(|| panic!("{dimension}: {standing}")).clone()
    }

    /// How many of `count` chats are admitted, so many at a time.
    pub async fn admitted(
        self: &Arc<Self>,
        key: &str,
        model: &'static str,
        count: u64,
        at_a_time: u64,
    ) -> u64 {
        let workers = at_a_time.min(32);
        let mut asking = tokio::task::JoinSet::new();
        for worker in 0..workers {
            let (rig, key) = (Arc::clone(self), key.to_owned());
            asking.spawn(async move {
                let mut admitted = 0;
                for _ in 0..count / workers + u64::from(worker < count % workers) {
                    admitted += u64::from(rig.chat(&key, model, 2).await == StatusCode::OK);
                }
                admitted
            });
        }
        asking.join_all().await.into_iter().sum()
    }

    /// Requests in flight, of all keys.
    pub fn in_flight(&self) -> u64 {
        let start = Instant::ZERO;
        let report = self.node.cell().with(|limiter, now| limiter.report(now, start, 1));
        report.pools.values().map(|pool| pool.in_flight).sum()
    }

    pub fn asked(&self, upstream: &str) -> u64 {
        self.world.asked.lock().unwrap().get(upstream).copied().unwrap_or(0)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.upstreams.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// Asks until it is so.
pub async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let some = crate::support::until(what, async || is_so().await.then_some(()));
    some.await;
}

pub fn unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

pub fn minute() -> u64 {
    unix() / 60
}

/// Whatever has to happen within one minute of the clock has most of one before it.
pub async fn aligned() {
    let into = unix() % 60;
    if into > 15 {
        tokio::time::sleep(Duration::from_secs(60 - into) + Duration::from_millis(50)).await;
    }
}
