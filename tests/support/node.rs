//! A fake upstream, tables and a client for the node's tests: real sockets, no inference.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a helper that fails is a test that fails"
)]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tidegate::enforce::config::{KeySource, NodeConfig, RoutingConfig, TableSource, UpstreamConfig};
use tidegate::enforce::node::{Node, Running};
use tidegate::unit::{Dimension, Limit, PPM, WorkUnit};
use tidegate::wire::{Entry, LimitTable, PoolEntry, Row, Stamp, UsageReport};

pub const PATIENCE: Duration = Duration::from_secs(10);
/// What every credential of the tests holds and no output may show.
pub const CANARY: &str = "canary-";
pub const KEY: &str = "canary-key";
pub type Boxed = http_body_util::combinators::UnsyncBoxBody<Bytes, std::io::Error>;
pub type Http = Client<HttpConnector, Full<Bytes>>;

pub fn client() -> Http {
    Client::builder(TokioExecutor::new()).build_http()
}

// === tables and keys ===

pub const M: Limit = Limit::Unlimited;

pub fn entry(tier: Limit, key: Limit) -> Entry {
    Entry { tier_limit: tier, key_limit: key, safe: tier, ceiling: M, ..Entry::default() }
}

pub fn key_limit(limit: u64) -> Entry {
    entry(M, Limit::Finite(limit))
}

/// Pool `p`, model `m`, tier `t`, node `n`.
pub fn table(version: u64, limits: &[(Dimension, Entry)]) -> LimitTable {
    let mut limits: BTreeMap<_, _> = limits.iter().copied().collect();
    limits.entry(Dimension::TokensPerMinute).or_insert(entry(M, M));
    let pool = PoolEntry {
        unit: WorkUnit::Tokens,
        output_cost_milli: 1_000,
        budget: M,
        waiting_work: M,
        slo_ms: 0,
        in_flight: M,
        degraded: false,
        shares: BTreeMap::from([("n".into(), PPM)]),
        unlisted_share: 0,
    };
    let row = Row {
        model: "m".into(),
        tier: "t".into(),
        pool: "p".into(),
        yields: Default::default(),
        limits,
        product: None,
        budgets: BTreeMap::new(),
        credit: Default::default(),
    };
    LimitTable {
        schema: 1,
        stamp: Stamp { epoch: 1, version, tick: version },
        policy: "00".to_owned(),
        interval_ms: 2_000,
        valid_for_ms: 3_600_000,
        pools: BTreeMap::from([("p".into(), pool)]),
        rows: vec![row],
        products: BTreeMap::new(),
        models: BTreeMap::new(),
        providers: BTreeMap::new(),
    }
}

pub fn write_table(path: &Path, table: &LimitTable) {
    write(path, &table.encode().unwrap());
}

/// As a publisher does it: complete, then renamed.
pub fn write(path: &Path, bytes: &[u8]) {
    let temporary = path.with_extension("tmp");
    std::fs::write(&temporary, bytes).unwrap();
    std::fs::rename(&temporary, path).unwrap();
}

pub fn key_line(key: &str, account: Option<&str>) -> String {
    let digest: String = Sha256::digest(key.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    json!({"key_sha256": digest, "account": account, "tier": "t"}).to_string()
}

// === the fake upstream ===

/// What the upstream does is written in the request's `user` field:
/// `slow` (a chunk every 20 ms, endless), `die` (three chunks, then the connection breaks),
/// `pause` (two chunks, then nothing more ever), `steps` (served well, an event every 30 ms), `much`
/// (64 kB a chunk, endless), `open` (complete, but the connection's end never comes), `gzip` (a stream nobody can read),
/// `hang` (no answer), `500`, `400`, `nousage`, `absurd` (1e9 tokens of output), `twice` (its usage); anything else is served well.
pub struct Upstream {
    pub address: SocketAddr,
    pub seen: Arc<Mutex<Vec<(String, HeaderMap, Bytes)>>>,
    task: tokio::task::JoinHandle<()>,
}

/// Tokens that a served request is said to have used.
pub const INPUT: u64 = 11;
pub const OUTPUT: u64 = 4;

impl Upstream {
    pub async fn start() -> Upstream {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let Ok((socket, _)) = listener.accept().await else { continue };
                let record = Arc::clone(&record);
                let service = service_fn(move |request| serve(request, Arc::clone(&record)));
                connections.spawn(async move {
                    let builder = hyper::server::conn::http1::Builder::new();
                    let _ = builder.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        Upstream { address, seen, task }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn requests(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Record = Arc<Mutex<Vec<(String, HeaderMap, Bytes)>>>;

async fn serve(request: Request<Incoming>, record: Record) -> Result<Response<Boxed>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    record.lock().unwrap().push((parts.uri.to_string(), parts.headers, body.clone()));
    let ask: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let behave = ask["user"].as_str().unwrap_or_default().to_owned();
    let output = if behave == "absurd" { 1_000_000_000 } else { OUTPUT };
    let usage = json!({"prompt_tokens": INPUT, "completion_tokens": output, "total_tokens": INPUT + output});
    match behave.as_str() {
        "hang" => std::future::pending().await,
        "500" => return Ok(whole(StatusCode::INTERNAL_SERVER_ERROR, &json!({"error": "broken"}))),
        "400" => return Ok(whole(StatusCode::BAD_REQUEST, &json!({"error": "no"}))),
        _ => {}
    }
    let messages = parts.uri.path() == "/v1/messages";
    if messages && ask["stream"] != json!(true) {
        return Ok(whole(StatusCode::OK, &message(&ask)));
    }
    if ask["stream"] != json!(true) {
        let mut answer = json!({
            "id": "1", "object": "chat.completion", "created": 1, "model": ask["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hello there"}}],
        });
        if behave != "nousage" {
            answer["usage"] = usage;
        }
        return Ok(whole(StatusCode::OK, &answer));
    }
    let mut lines = lines(&ask, usage.clone(), behave != "nousage");
    if behave == "twice" {
        let said = lines.len() - 2;
        lines.insert(said, lines[said].clone());
    }
    let first = if messages { delta() } else { lines[0].clone() };
    let much = Bytes::from(format!("data: {{\"choices\":[{{}}],\"x\":\"{}\"}}\n\n", "x".repeat(1 << 16)));
    let encoded = behave == "gzip";
    let frames = stream::unfold(0_usize, move |at| {
        let (line, behave, first) = (lines.get(at).cloned(), behave.clone(), first.clone());
        let much = much.clone();
        async move {
            let item = match behave.as_str() {
                "slow" => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    Ok(first)
                }
                "pause" if at == 2 => std::future::pending().await,
                "steps" => {
                    tokio::time::sleep(Duration::from_millis(30)).await;
                    Ok(line?)
                }
                "much" => Ok(much.clone()),
                "die" if at == 3 => {
                    // The pieces before it are on the wire first.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    Err(std::io::Error::other("dies"))
                }
                "open" if line.is_none() => std::future::pending().await,
                "gzip" if at < 3 => Ok(Bytes::from_static(b"\x1f\x8b\x08 not a line of a stream")),
                "gzip" => return None,
                _ => Ok(line?),
            };
            Some((item.map(Frame::data), at + 1))
        }
    });
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    response.headers_mut().insert("content-type", "text/event-stream; charset=utf-8".parse().unwrap());
    if encoded {
        response.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
    }
    Ok(response)
}

/// As Anthropic answers.
fn message(ask: &Value) -> Value {
    json!({
        "id": "1", "type": "message", "role": "assistant", "model": ask["model"], "stop_reason": "end_turn",
        "stop_sequence": null, "content": [{"type": "text", "text": "Hello there"}],
        "usage": {"input_tokens": INPUT, "output_tokens": OUTPUT},
    })
}

/// An event of a stream as Anthropic sends it.
fn delta() -> Bytes {
    let data = json!({
        "type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi "},
    });
    format!("event: content_block_delta\ndata: {data}\n\n").into()
}

/// A stream's events, as they go over the wire.
fn lines(ask: &Value, usage: Value, told: bool) -> Vec<Bytes> {
    let chunk = |delta: Value| {
        json!({
            "id": "1", "object": "chat.completion.chunk", "created": 1, "model": ask["model"],
            "choices": [{"index": 0, "delta": delta, "finish_reason": null}],
        })
    };
    let mut events: Vec<Value> = (0..OUTPUT).map(|_| chunk(json!({"content": "Hi "}))).collect();
    if ask["stream_options"]["include_usage"] == json!(true) && told {
        events.push(json!({
            "id": "1", "object": "chat.completion.chunk", "created": 1, "model": ask["model"],
            "choices": [], "usage": usage,
        }));
    }
    let mut lines: Vec<Bytes> = events.iter().map(|event| format!("data: {event}\n\n").into()).collect();
    lines.push(Bytes::from_static(b"data: [DONE]\n\n"));
    lines
}

fn whole(status: StatusCode, answer: &Value) -> Response<Boxed> {
    let body = Full::new(Bytes::from(answer.to_string())).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", "application/json".parse().unwrap());
    response
}

// === a node in front of it ===

pub struct Rig {
    pub dir: TempDir,
    pub upstream: Upstream,
    pub node: Running,
    pub http: Http,
}

/// Keys [`KEY`] (account `acme`) and `other`.
pub fn keys() -> String {
    format!("{}\n{}\n", key_line(KEY, Some("acme")), key_line("other", None))
}

pub fn routing(urls: &[String]) -> RoutingConfig {
    let upstream = UpstreamConfig {
        urls: urls.to_vec(),
        models: vec!["m".to_owned()],
        ask_usage: true,
        ..UpstreamConfig::default()
    };
    RoutingConfig { upstreams: BTreeMap::from([("main".to_owned(), upstream)]), routes: Vec::new() }
}

pub fn config(dir: &Path, urls: &[String]) -> NodeConfig {
    let source = TableSource::File(dir.join("table.json"));
    let mut config = NodeConfig::embedded("n", source, KeySource::Inline(keys()), routing(urls));
    config.caps.poll_ms = 10;
    config
}

impl Rig {
    pub async fn start(table: &LimitTable) -> Rig {
        Rig::with(table, |_| {}).await
    }

    pub async fn with(table: &LimitTable, change: impl FnOnce(&mut NodeConfig)) -> Rig {
        let dir = TempDir::new().unwrap();
        write_table(&dir.path().join("table.json"), table);
        let upstream = Upstream::start().await;
        let mut config = config(dir.path(), &[upstream.url()]);
        change(&mut config);
        let node = Node::start(config, None).await.unwrap();
        until("the first table", || node.cell().held().is_some()).await;
        Rig { dir, upstream, node, http: client() }
    }

    pub fn table_path(&self) -> PathBuf {
        self.dir.path().join("table.json")
    }

    pub fn chat(&self, behave: &str, stream: bool) -> Request<Full<Bytes>> {
        let body = json!({
            "model": "m", "user": behave, "stream": stream, "max_tokens": 100,
            "messages": [{"role": "user", "content": "Hi, how are you today?"}],
        });
        self.post("/v1/chat/completions", &body)
    }

    pub fn post(&self, path: &str, body: &Value) -> Request<Full<Bytes>> {
        Request::post(format!("http://{}{path}", self.node.proxy))
            .header("authorization", "Bearer canary-key")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body.to_string())))
            .unwrap()
    }

    pub async fn send(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        timed(self.http.request(request)).await.unwrap()
    }

    /// Status, headers and the whole body.
    ///
    /// No answer of a node, admin listener and metrics included, may show a credential.
    pub async fn answer(&self, request: Request<Full<Bytes>>) -> (StatusCode, HeaderMap, String) {
        let (parts, body) = self.send(request).await.into_parts();
        let body = timed(body.collect()).await.unwrap().to_bytes();
        let text = String::from_utf8(body.to_vec()).unwrap();
        assert!(!format!("{:?} {text}", parts.headers).contains(CANARY), "{:?} {text}", parts.headers);
        (parts.status, parts.headers, text)
    }

    pub async fn get(&self, at: SocketAddr, path: &str) -> (StatusCode, HeaderMap, String) {
        let request = Request::get(format!("http://{at}{path}")).body(Full::default()).unwrap();
        self.answer(request).await
    }

    pub fn report(&self) -> UsageReport {
        let start = tidegate::unit::Instant::ZERO;
        self.node.cell().with(|limiter, now| limiter.report(now, start, 1))
    }

    /// Nothing in flight any more; how much work was admitted in the end.
    pub async fn settled(&self) -> (u64, u64) {
        until("everything settled", || self.report().pools["p"].in_flight == 0).await;
        let report = self.report();
        assert_eq!(report.pools["p"].waiting_work, 0);
        report.rows.first().map_or((0, 0), |row| (row.admitted.requests, row.admitted.work))
    }
}

pub async fn timed<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("took too long")
}

pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}
