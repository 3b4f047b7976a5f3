//! What the controller's tests share: a plain HTTP client, replicas that behave and misbehave,
//! and a policy whose files hold one number.
#![allow(dead_code, reason = "every test binary uses its part")]
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a broken promise ends the test"
)]

pub mod large;
pub mod node;
pub mod program;
pub mod prometheus;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tidegate::control::reload::{Loaded, Loader};
use tidegate::control::standing::Origin;
use tidegate::policy::load::Contents;
use tidegate::policy::{Grant, ModelPolicy, OutputCost, Policy, PoolPolicy, SignalMap, SourcePolicy};
use tidegate::unit::{Limit, WorkUnit};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Nothing in these tests may take longer.
pub const LONG: Duration = Duration::from_secs(15);

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub fn etag(&self) -> String {
        self.headers["etag"].clone()
    }
}

/// One request on a connection of its own.
pub async fn call(addr: SocketAddr, head: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    let exchange = async {
        let stream = TcpStream::connect(addr).await.unwrap();
        call_on(stream, head, headers, body).await
    };
    tokio::time::timeout(LONG, exchange).await.expect("an answer in time")
}

pub async fn call_on(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    head: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Reply {
    let mut request = format!("{head} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n");
    if !body.is_empty() {
        request.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{request}\r\n").as_bytes()).await.unwrap();
    // A server that refuses early may not read all of it.
    let _ = stream.write_all(body).await;
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes).await;
    reply(&bytes)
}

fn reply(bytes: &[u8]) -> Reply {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a whole head");
    let head = std::str::from_utf8(&bytes[..end]).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Reply { status, headers, body: bytes[end + 4..].to_vec() }
}

pub async fn get(addr: SocketAddr, path: &str) -> Reply {
    call(addr, &format!("GET {path}"), &[], b"").await
}

/// The value of a metric without labels, or with exactly these.
pub async fn metric(addr: SocketAddr, name: &str) -> f64 {
    let page = get(addr, "/metrics").await.text();
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name} is not on\n{page}")).parse().unwrap()
}

/// Asks until `done` says so.
pub async fn until<T>(what: &str, mut done: impl AsyncFnMut() -> Option<T>) -> T {
    let asking = async {
        loop {
            if let Some(value) = done().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LONG, asking).await.unwrap_or_else(|_| panic!("in time: {what}"))
}

/// A server that gives every connection the same treatment.
#[derive(Clone)]
pub enum Manner {
    /// A whole answer: status, content type, body.
    Answers(u16, &'static str, String),
    /// 200, then a byte every second.
    Dribbles,
    /// A byte every second, from the first of its head on.
    DribblesHead,
    /// Accepts and never says anything.
    Mute,
    /// 200, then megabytes without end.
    Floods,
    /// Promises more than it sends.
    BreaksOff(String),
    /// A redirect to the given place.
    Redirects(String),
    /// 200, said to be encoded so, which it is not.
    Encodes(&'static str),
    /// A replica that has done a thousand units of work each second since then.
    Works(std::time::Instant),
}

pub const TEXT: &str = "text/plain; version=0.0.4";

pub async fn serve(manner: Manner) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(serve_on(listener, manner));
    addr
}

/// Serves until aborted; its connections end with it.
pub async fn serve_on(listener: TcpListener, manner: Manner) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        connections.spawn(treat(stream, manner.clone()));
    }
}

/// A replica with this metrics page.
pub async fn replica(page: &str) -> SocketAddr {
    serve(Manner::Answers(200, TEXT, page.to_owned())).await
}

async fn treat(mut stream: TcpStream, manner: Manner) {
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    // Keep-alive: every request on the connection is answered.
    loop {
        while !seen.windows(4).any(|four| four == b"\r\n\r\n") {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(count) => seen.extend_from_slice(&buffer[..count]),
            }
        }
        let head = String::from_utf8_lossy(&seen).to_ascii_lowercase();
        let end = head.find("\r\n\r\n").unwrap() + 4;
        let length = head
            .split("\r\n")
            .find_map(|line| line.strip_prefix("content-length:"))
            .map_or(0, |value| value.trim().parse::<usize>().unwrap());
        while seen.len() < end + length {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(count) => seen.extend_from_slice(&buffer[..count]),
            }
        }
        seen.drain(..end + length);
        if !answer(&mut stream, &manner).await {
            return;
        }
    }
}

async fn answer(stream: &mut TcpStream, manner: &Manner) -> bool {
    let text = match manner {
        Manner::Answers(status, kind, body) => {
            format!(
                "HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            )
        }
        Manner::Redirects(to) => format!("HTTP/1.1 302 X\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n"),
        Manner::Encodes(how) => {
            format!("HTTP/1.1 200 X\r\ncontent-encoding: {how}\r\ncontent-length: 3\r\n\r\nabc")
        }
        Manner::BreaksOff(body) => {
            format!("HTTP/1.1 200 X\r\ncontent-length: {}\r\n\r\n{body}", body.len() + 10)
        }
        Manner::Works(since) => {
            let done = since.elapsed().as_secs_f64() * 1000.0;
            let body = format!(
                "vllm:num_requests_running 3\nvllm:num_requests_waiting 1\n\
                vllm:prompt_tokens_total{{engine=\"0\"}} {done}\nvllm:generation_tokens_total 10\n"
            );
            format!("HTTP/1.1 200 X\r\ncontent-type: {TEXT}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
        }
        Manner::Dribbles | Manner::Floods => "HTTP/1.1 200 X\r\nconnection: close\r\n\r\n".to_owned(),
        Manner::Mute | Manner::DribblesHead => String::new(),
    };
    if stream.write_all(text.as_bytes()).await.is_err() {
        return false;
    }
    match manner {
        Manner::Answers(..) | Manner::Redirects(_) | Manner::Encodes(_) | Manner::Works(_) => true,
        Manner::BreaksOff(_) => false,
        Manner::Mute => {
            tokio::time::sleep(LONG).await;
            false
        }
        Manner::DribblesHead => {
            for byte in "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".bytes() {
                if stream.write_all(&[byte]).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            false
        }
        Manner::Dribbles => {
            while stream.write_all(b"a").await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            false
        }
        Manner::Floods => {
            let much = vec![b'#'; 1 << 20];
            while stream.write_all(&much).await.is_ok() {}
            false
        }
    }
}

/// A peer that is absent: an error where peers are required, a line elsewhere.
pub fn not_tested(what: &str) {
    let required = ["CI", "TIDEGATE_REQUIRE_PEERS"]
        .into_iter()
        .any(|name| std::env::var(name).is_ok_and(|value| value == "true" || value == "1"));
    assert!(!required, "NOT TESTED: {what}");
    eprintln!("NOT TESTED: {what}");
}

/// A port that refuses connections.
pub async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

pub fn signals() -> SignalMap {
    let one = |text: &str| vec![text.to_owned()];
    SignalMap {
        running: one("vllm:num_requests_running"),
        waiting: one("vllm:num_requests_waiting"),
        work_done: one("vllm:prompt_tokens_total"),
        work_done_output: one("vllm:generation_tokens_total"),
        ..SignalMap::default()
    }
}

/// One pool, one model, one tier.
pub fn policy(source: SourcePolicy, interval: Duration, ceiling: u64, digest: &str) -> Policy {
    let pool = PoolPolicy {
        product: "test".to_owned(),
        unit: WorkUnit::Tokens,
        output_cost: OutputCost::Stated(2.0),
        slo: Duration::from_secs(2),
        source,
        signals: signals(),
    };
    let grant = Grant {
        priority: 1,
        weight: 1.0,
        guarantee: 600,
        safe: 600,
        ceiling: Limit::Finite(ceiling),
        tier_limits: BTreeMap::new(),
        key_limits: BTreeMap::new(),
        ..Grant::default()
    };
    let model = ModelPolicy::new("gpu".into(), [("free".into(), grant)].into());
    Policy {
        digest: digest.to_owned(),
        interval,
        pools: [("gpu".into(), pool)].into(),
        models: [("m".into(), model)].into(),
        ..Policy::default()
    }
}

/// A loader for directories whose `*.yaml` files hold one number, the ceiling.
pub fn loader(source: SourcePolicy, interval: Duration) -> Loader {
    Loader::new(move |contents: Contents| {
        if let Some(problem) = contents.problems.first() {
            return Err(problem.to_string());
        }
        let files = contents.files;
        let (name, bytes) = files.first().ok_or("there is no policy file")?;
        let text = String::from_utf8_lossy(bytes).trim().to_owned();
        let ceiling: u64 = text.parse().map_err(|_| format!("{name}:1:1: `{text}` is not a number"))?;
        let policy = Arc::new(policy(source.clone(), interval, ceiling, &text));
        Ok(Loaded { policy, files, warnings: Vec::new(), origin: Origin::Directory })
    })
}
