//! A node between a client that may send anything and an upstream that must not be confused: the
//! node's own service, fed byte for byte, before a real upstream on loopback.
//!
//! The client's end is a script: once it is used up, the connection ends as soon as no admitted
//! request is left, so that one input takes as long as its requests and no timeout is waited for.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tidegate::enforce::Cell;
use tidegate::enforce::config::{
    KeySource, NodeConfig, RouteConfig, RoutingConfig, Secret, TableSource, UpstreamConfig,
};
use tidegate::enforce::node::{Node, Running};
use tidegate::unit::{Dimension, Instant, Limit, PPM, WorkUnit};
use tidegate::wire::{Entry, LimitTable, PoolEntry, Row, Stamp};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Runtime;

/// No input takes longer, or something waits for what never comes.
const HANG: Duration = Duration::from_secs(60);
/// SHA-256 of `secret` and of `free`, the keys that the inputs use.
const KEYS: &str = r#"{"key_sha256":"2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b","tier":"paid"}
{"key_sha256":"ad95d5fa651ba86d8923fe1238d24a4f1988a752acfe426ac72ac7c04471bc17","tier":"free"}"#;
const CREDENTIAL: &str = "upstream-credential";
/// Body models, and the one that a path stands for.
const MODELS: [&str; 2] = ["m", "s"];
const ROUTED: (&str, &str) = ("/images", "flux");
/// On every answer that the upstream gave.
const SERVED: &str = "x-served";
/// Looks at an exhausted script before it is the end: what was read is still being worked on.
const TURNS: u32 = 16;

/// A node and its upstream, kept from input to input: what one leaves behind meets the next.
struct World {
    runtime: Runtime,
    node: Running,
    seen: Arc<Mutex<Seen>>,
}

/// What reached the upstream.
#[derive(Debug, Default)]
struct Seen {
    requests: usize,
    broken: Option<String>,
}

/// The client's end of a connection.
struct Script {
    rest: Vec<u8>,
    /// How many bytes come at a time.
    piece: usize,
    turns: u32,
    cell: Arc<Cell>,
    answered: Arc<Mutex<Vec<u8>>>,
}

thread_local! {
    static WORLD: OnceCell<World> = const { OnceCell::new() };
}

/// The first byte says in how large pieces the rest arrives.
pub fn check(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    WORLD.with(|world| {
        let world = world.get_or_init(World::new);
        world.runtime.block_on(world.serve(usize::from(*first) * 8 + 1, rest));
    });
}

/// How many requests of all inputs so far were admitted and answered: without any, the property
/// says nothing.
pub fn reached() -> usize {
    WORLD.with(|world| world.get().map_or(0, |world| world.seen.lock().unwrap().requests))
}

// === impl World ===

impl World {
    fn new() -> World {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let node = runtime.block_on(node(Arc::clone(&seen)));
        World { runtime, node, seen }
    }

    async fn serve(&self, piece: usize, bytes: &[u8]) {
        let cell = self.node.cell();
        let before = self.seen.lock().unwrap().requests;
        let sent_before = sent(&cell);
        let answered = Arc::new(Mutex::new(Vec::new()));
        let script = Script {
            rest: bytes.iter().rev().copied().collect(),
            piece,
            turns: 0,
            cell: Arc::clone(&cell),
            answered: Arc::clone(&answered),
        };
        let served = tokio::time::timeout(HANG, self.node.serve_connection(script)).await;
        assert!(served.is_ok(), "the connection hangs");
        let seen = self.seen.lock().unwrap();
        if let Some(broken) = &seen.broken {
            panic!("the upstream got {broken}");
        }
        let requests = seen.requests - before;
        drop(seen);
        let sent = sent(&cell) - sent_before;
        assert!(requests as u64 <= sent, "{sent} requests were admitted, {requests} arrived");
        let (in_flight, waiting) = pending(&cell);
        assert_eq!((in_flight, waiting), (0, 0), "a reservation is left behind");
        answers(&answered.lock().unwrap(), requests, bytes);
    }
}

fn sent(cell: &Cell) -> u64 {
    let report = cell.with(|limiter, now| limiter.report(now, Instant::ZERO, 1));
    report.pools.values().map(|pool| pool.upstream_requests).sum()
}

fn pending(cell: &Cell) -> (u64, u64) {
    let report = cell.with(|limiter, now| limiter.report(now, Instant::ZERO, 1));
    let sum = |of: fn(&tidegate::wire::PoolUsage) -> u64| report.pools.values().map(of).sum();
    (sum(|pool| pool.in_flight), sum(|pool| pool.waiting_work))
}

/// Each answer is whole, one that a node gives, and came from the upstream if it says so.
fn answers(mut rest: &[u8], requests: usize, asked: &[u8]) {
    assert!(!contains(rest, CREDENTIAL.as_bytes()), "the upstream's credential reached the client");
    let mut served = 0;
    while !rest.is_empty() {
        let end = find(rest, b"\r\n\r\n").expect("a head that ends") + 4;
        let head = std::str::from_utf8(&rest[..end]).expect("a head of text").to_ascii_lowercase();
        rest = &rest[end..];
        let status: u16 = head.get(9..12).and_then(|status| status.parse().ok()).expect("a status");
        assert!(head.starts_with("http/1.") && known(status), "{head}");
        if status == 100 {
            continue;
        }
        served += usize::from(head.contains(SERVED));
        // An answer to HEAD announces a body that does not come; which one it answers is not said.
        if contains(asked, b"HEAD ") {
            return;
        }
        let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        if let Some(length) = field("content-length:") {
            let length: usize = length.parse().expect("a length");
            // The client may be gone before the end.
            rest = rest.get(length..).unwrap_or_default();
        } else if field("transfer-encoding:").is_some() {
            rest = find(rest, b"0\r\n\r\n").map_or(&[][..], |end| &rest[end + 5..]);
        } else {
            rest = &[];
        }
    }
    assert!(served <= requests, "{served} answers of an upstream that saw {requests} requests");
}

/// The upstream here never fails, so that no 502 and no 504 can be right.
fn known(status: u16) -> bool {
    matches!(
        status,
        100 | 200 | 400 | 401 | 403 | 404 | 405 | 408 | 413 | 414 | 415 | 417 | 429 | 431 | 501 | 503 | 505
    )
}

// === the node and its upstream ===

async fn node(seen: Arc<Mutex<Seen>>) -> Running {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let Ok((socket, _)) = listener.accept().await else { continue };
            let seen = Arc::clone(&seen);
            let service = service_fn(move |request| answer(request, Arc::clone(&seen)));
            tokio::spawn(async move {
                let builder = hyper::server::conn::http1::Builder::new();
                let _ = builder.serve_connection(TokioIo::new(socket), service).await;
            });
        }
    });
    let upstream = UpstreamConfig {
        urls: vec![url],
        ask_usage: true,
        credential: Some(Secret::new(CREDENTIAL)),
        models: MODELS.iter().chain([&ROUTED.1]).map(|model| (*model).to_owned()).collect(),
        ..UpstreamConfig::default()
    };
    let routes = vec![RouteConfig { prefix: ROUTED.0.to_owned(), model: ROUTED.1.into() }];
    let routing = RoutingConfig { upstreams: BTreeMap::from([("u".to_owned(), upstream)]), routes };
    let nowhere = TableSource::File(PathBuf::from("/nowhere/table.json"));
    let mut config = NodeConfig::embedded("n", nowhere, KeySource::Inline(KEYS.to_owned()), routing);
    config.caps.poll_ms = 1 << 40;
    // Small enough for an input to pass it.
    config.caps.body_bytes = 1 << 10;
    let node = Node::start(config, None).await.unwrap();
    node.cell().offer(table()).unwrap();
    node
}

fn table() -> LimitTable {
    let entry = |limit| Entry { tier_limit: limit, key_limit: limit, safe: limit, ..Entry::default() };
    let pool = PoolEntry {
        unit: WorkUnit::Tokens,
        output_cost_milli: 1_000,
        budget: Limit::Unlimited,
        waiting_work: Limit::Unlimited,
        slo_ms: 0,
        in_flight: Limit::Unlimited,
        degraded: false,
        shares: BTreeMap::from([("n".into(), PPM)]),
        unlisted_share: 0,
    };
    let row = |model: &str, tier: &str, limit| Row {
        model: model.into(),
        tier: tier.into(),
        pool: "p".into(),
        yields: Default::default(),
        limits: BTreeMap::from([(Dimension::TokensPerMinute, entry(limit))]),
        product: None,
        budgets: BTreeMap::new(),
        credit: Default::default(),
    };
    let models = [ROUTED.1, MODELS[0], MODELS[1]];
    let rows =
        models.map(|model| [row(model, "free", Limit::Finite(600)), row(model, "paid", Limit::Unlimited)]);
    LimitTable {
        schema: 1,
        stamp: Stamp { epoch: 1, version: 1, tick: 1 },
        policy: "00".to_owned(),
        interval_ms: 2_000,
        valid_for_ms: 1 << 40,
        pools: BTreeMap::from([("p".into(), pool)]),
        rows: rows.into_iter().flatten().collect(),
        products: BTreeMap::new(),
        models: BTreeMap::new(),
        providers: BTreeMap::new(),
    }
}

async fn answer(
    request: Request<Incoming>,
    seen: Arc<Mutex<Seen>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes());
    {
        let mut seen = seen.lock().unwrap();
        seen.requests += 1;
        if let Err(broken) = admissible(&parts, body.as_deref().ok()) {
            seen.broken.get_or_insert(format!("{broken} in {parts:?} {body:?}"));
        }
    }
    let body = body.unwrap_or_default();
    let streamed = contains(&body, b"\"s\"");
    let usage =
        r#"{"choices":[{"delta":{"content":"x"}}],"usage":{"prompt_tokens":3,"completion_tokens":2}}"#;
    let (kind, text) = match streamed {
        true => ("text/event-stream", format!("data: {usage}\n\ndata: [DONE]\n\n")),
        false => ("application/json", usage.to_owned()),
    };
    let answer = Response::builder().header(header::CONTENT_TYPE, kind).header(SERVED, "1");
    Ok(answer.header("connection", "keep-alive").body(Full::new(text.into())).unwrap())
}

/// What an upstream may be sent, whatever the client wrote.
fn admissible(parts: &http::request::Parts, body: Option<&[u8]>) -> Result<(), &'static str> {
    let body = body.ok_or("half a body")?;
    let path = parts.uri.path();
    let routed = path == ROUTED.0 || path.strip_prefix(ROUTED.0).is_some_and(|rest| rest.starts_with('/'));
    if !routed && !path.starts_with("/v1/") {
        return Err("a path that is neither the API nor a route");
    }
    if path.split('/').any(|part| matches!(part, "." | "..")) || path.contains('\\') {
        return Err("a path that climbs");
    }
    let mut authorization = parts.headers.get_all(header::AUTHORIZATION).iter();
    let own = authorization.next().is_some_and(|value| value == &format!("Bearer {CREDENTIAL}")[..]);
    if !own || authorization.next().is_some() || parts.headers.contains_key("x-api-key") {
        return Err("another credential than the upstream's own");
    }
    let kept = ["te", "trailer", "transfer-encoding", "upgrade", "keep-alive", "proxy-connection", "expect"];
    let forged = ["x-tier", "x-forwarded-for", "x-forwarded-host", "forwarded", "x-envoy-original-path"];
    if kept.iter().chain(&forged).any(|name| parts.headers.contains_key(*name)) {
        return Err("a header that belongs to the node");
    }
    if parts.headers.get_all(header::CONTENT_LENGTH).iter().count() > 1
        || parts.headers.get_all(header::HOST).iter().count() != 1
    {
        return Err("doubled framing");
    }
    if parts.method == http::Method::CONNECT {
        return Err("a tunnel");
    }
    // The last one wins, as in most JSON readers.
    let read: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let named = read.as_ref().and_then(|body| body.get("model")).and_then(|model| model.as_str());
    if named.is_some_and(|model| !MODELS.contains(&model) && model != ROUTED.1) {
        return Err("a model that nobody was admitted to");
    }
    Ok(())
}

// === impl Script ===

impl AsyncRead for Script {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.rest.is_empty() {
            self.turns += 1;
            if self.turns < TURNS {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            // Asked again when the admitted request moves on: it is part of the same task.
            return if pending(&self.cell).0 > 0 { Poll::Pending } else { Poll::Ready(Ok(())) };
        }
        let count = self.piece.min(into.remaining()).min(self.rest.len());
        let kept = self.rest.len() - count;
        let piece: Vec<u8> = self.rest.drain(kept..).rev().collect();
        into.put_slice(&piece);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Script {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.answered.lock().unwrap().extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

fn contains(text: &[u8], what: &[u8]) -> bool {
    find(text, what).is_some()
}
