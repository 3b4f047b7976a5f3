//! A shipped policy, the controller that makes its table, and a node in front of an upstream that
//! uses as many tokens as it is told.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tidegate::control::{Controller, State, Tick};
use tidegate::enforce::config::KeySource;
use tidegate::enforce::node::{Node, Running};
use tidegate::observe::{Outcome, PoolRound, Reading, Round, Signals};
use tidegate::policy::Policy;
use tidegate::policy::diagnostic::render;
use tidegate::policy::load::load;
use tidegate::unit::{Instant, ReplicaId};
use tidegate::wire::{LimitTable, UsageReport, UsageRow, Work};

use crate::support::node::{Http, client, config, routing, until, write_table};

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
    _dir: TempDir,
    upstream: tokio::task::JoinHandle<()>,
    pub node: Running,
    http: Http,
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
    format!("{{\"account\":\"{name}\",\"recharged_micros\":{}}}\n", cents * 10_000)
}

fn secret(name: &str) -> String {
    format!("canary-{name}")
}

impl Rig {
    pub async fn start(name: &str, keys: String) -> Arc<Rig> {
        let table = Loop::new(policy(name)).table();
        let dir = TempDir::new().unwrap();
        write_table(&dir.path().join("table.json"), &table);
        let (address, upstream) = upstream().await;
        let urls = [format!("http://{address}")];
        let mut config = config(dir.path(), &urls);
        config.keys = KeySource::Inline(keys);
        config.routing = routing(&urls);
        // Credit and budgets are kept there.
        config.state = Some(dir.path().join("state"));
        let mut models: Vec<String> = table.rows.iter().map(|row| row.model.to_string()).collect();
        models.dedup();
        config.routing.upstreams.values_mut().for_each(|upstream| upstream.models = Vec::clone(&models));
        let node = Node::start(config, None).await.unwrap();
        until("the first table", || node.cell().held().is_some()).await;
        Arc::new(Rig { _dir: dir, upstream, node, http: client() })
    }

    /// Status and body of one request.
    pub async fn ask(&self, key: &str, path: &str, body: &Value) -> (StatusCode, String) {
        let request = Request::post(format!("http://{}{path}", self.node.proxy))
            .header("authorization", format!("Bearer {}", secret(key)))
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body.to_string())))
            .unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(60), self.http.request(request)).await;
        let (parts, body) = answer.expect("an answer in time").unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (parts.status, String::from_utf8_lossy(&body).into_owned())
    }

    /// A chat that uses so many tokens in the end.
    pub async fn chat(&self, key: &str, model: &str, tokens: u64) -> StatusCode {
        let body = json!({
            "model": model, "max_tokens": 1, "user": tokens.to_string(),
            "messages": [{"role": "user", "content": "Hi"}],
        });
        self.ask(key, "/v1/chat/completions", &body).await.0
    }

    pub async fn images(&self, key: &str, model: &str, n: u64) -> StatusCode {
        let body = json!({"model": model, "n": n, "user": "0", "prompt": "a tide gate"});
        self.ask(key, "/v1/images/generations", &body).await.0
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
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.upstream.abort();
    }
}

fn unix() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

pub fn minute() -> u64 {
    unix().as_secs() / 60
}

/// Whatever has to happen within one minute of the clock has most of one before it.
pub async fn aligned() {
    let into = unix().as_secs() % 60;
    if into > 15 {
        tokio::time::sleep(Duration::from_secs(60 - into) + Duration::from_millis(50)).await;
    }
}

/// Serves; `user` says how many tokens that used, or `hang`.
async fn upstream() -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let Ok((socket, _)) = listener.accept().await else { continue };
            connections.spawn(async move {
                let builder = hyper::server::conn::http1::Builder::new();
                let _ = builder.serve_connection(TokioIo::new(socket), service_fn(serve)).await;
            });
        }
    });
    (address, task)
}

async fn serve(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let ask: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let user = ask["user"].as_str().unwrap_or_default();
    if user == "hang" {
        std::future::pending::<()>().await;
    }
    let tokens: u64 = user.parse().unwrap_or(2);
    let answer = json!({
        "id": "1", "object": "chat.completion", "created": 1, "model": ask["model"],
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "H"}}],
        "usage": {"prompt_tokens": tokens.saturating_sub(1), "completion_tokens": 1, "total_tokens": tokens},
    });
    let mut response = Response::new(Full::new(Bytes::from(answer.to_string())));
    response.headers_mut().insert("content-type", "application/json".parse().unwrap());
    Ok(response)
}
