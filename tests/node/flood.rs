//! A node as a process of its own under floods: what it holds in memory, and what known keys feel.
//!
//! `TIDEGATE_LONG=1` sends as many requests as the promise says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::cli::{Process, addresses, enforce};
use crate::support::node::*;
use http::StatusCode;
use serde_json::json;
use tidegate::enforce::accounts::Accounts;
use tidegate::enforce::{Limiter, Request, Settlement, Verdict};
use tidegate::unit::Dimension;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;

/// What a flood may leave behind, KiB: buffers that the allocator keeps.
const GROWTH_KIB: u64 = 48 << 10;

pub fn long() -> bool {
    std::env::var_os("TIDEGATE_LONG").is_some_and(|value| value == "1")
}

/// A node process in front of the rig's upstream.
struct Flooded {
    process: Process,
    proxy: SocketAddr,
    rig: Rig,
}

impl Flooded {
    async fn start(caps: &str) -> Flooded {
        let rig = Rig::start(&table(1, &[])).await;
        let dir = rig.dir.path();
        write_table(&dir.join("table.json"), &table(1, &[(Dimension::TokensPerMinute, key_limit(1 << 40))]));
        std::fs::write(dir.join("keys.jsonl"), keys()).unwrap();
        let url = rig.upstream.url();
        let text = format!(
            "node: n\nkeys: keys.jsonl\nupstreams:\n  main: {{urls: [\"{url}\"]}}\ncaps: {{{caps}}}\n"
        );
        std::fs::write(dir.join("node.yaml"), text).unwrap();
        let arguments = [
            "--config",
            "node.yaml",
            "--table",
            "table.json",
            "--listen",
            "127.0.0.1:0",
            "--admin",
            "127.0.0.1:0",
        ];
        let mut process = Process(enforce(dir, &arguments).spawn().unwrap());
        let (proxy, admin, _lines) = addresses(&mut process);
        let admin = admin.parse().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while rig.get(admin, "/-/ready").await.0 != StatusCode::OK {
            assert!(Instant::now() < deadline, "never ready");
        }
        Flooded { process, proxy: proxy.parse().unwrap(), rig }
    }

    /// A line of the process's `status`, KiB.
    fn memory(&self, line: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.0.id())).unwrap();
        let line = status.lines().find(|text| text.starts_with(line)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    fn chat(&self) -> http::Request<http_body_util::Full<bytes::Bytes>> {
        let mut request = self.rig.chat("", false);
        *request.uri_mut() = format!("http://{}/v1/chat/completions", self.proxy).parse().unwrap();
        request
    }

    /// A known key's requests, one after the other, until told to stop: how long each took.
    async fn known(&self, stop: &AtomicBool) -> Vec<Duration> {
        let mut took = Vec::new();
        while !stop.load(Ordering::Relaxed) || took.is_empty() {
            let began = Instant::now();
            assert_eq!(self.rig.answer(self.chat()).await.0, StatusCode::OK);
            took.push(began.elapsed());
        }
        took.sort_unstable();
        took
    }
}

/// From an address of its own, since a source has few attempts on one connection.
async fn connect_from(source: u32, to: SocketAddr) -> TcpStream {
    let [_, a, b, c] = source.to_be_bytes();
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, a, b, c.max(1)], 0))).unwrap();
    timed(socket.connect(to)).await.unwrap()
}

/// Requests with keys nobody has ever seen; how many were answered before the connection was closed
/// on this source or one that shares its count.
async fn strangers(proxy: SocketAddr, source: u32, count: usize) -> usize {
    let mut socket = connect_from(source, proxy).await;
    let requests: String = (0..count)
        .map(|at| {
            let key = (u64::from(source) << 32 | at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            format!("GET /v1/models HTTP/1.1\r\nhost: a\r\nauthorization: Bearer sk-{key:016x}\r\n\r\n")
        })
        .collect();
    let (mut reader, mut writer) = socket.split();
    let receive = async {
        let (mut answers, mut buffer, mut tail) = (0, vec![0; 1 << 16], Vec::new());
        while answers < count {
            let Ok(read @ 1..) = timed(reader.read(&mut buffer)).await else { break };
            tail.extend_from_slice(&buffer[..read]);
            // Every answer has this once; one that is cut in two is counted with its rest.
            answers += tail.windows(CODE.len()).filter(|window| *window == CODE).count();
            let kept = tail.len().min(CODE.len() - 1);
            tail.drain(..tail.len() - kept);
        }
        answers
    };
    let send = async { drop(writer.write_all(requests.as_bytes()).await) };
    futures_util::future::join(send, receive).await.1
}

const CODE: &[u8] = b"invalid_api_key";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i01_keys_nobody_knows_leave_nothing_behind_and_known_ones_are_served() {
    const EACH: usize = 100;
    let connections: u32 = if long() { 100_000 } else { 150 };
    let node = Arc::new(Flooded::start("").await);
    let quiet = node.known(&AtomicBool::new(true)).await;
    let flood = |from: u32, to: u32| {
        let node = Arc::clone(&node);
        async move {
            let (mut answered, mut source) = (0, from);
            while answered < (to - from) as usize * EACH {
                answered += strangers(node.proxy, source * 7 + 1, EACH).await;
                source += 2;
            }
            answered
        }
    };
    // What the process needs for such a flood at all is not what one more key costs.
    flood(0, 50).await;
    let before = node.memory("VmRSS");
    let (stop, known) = (Arc::new(AtomicBool::new(false)), Arc::clone(&node));
    let stopping = Arc::clone(&stop);
    let known = tokio::spawn(async move { known.known(&stopping).await });
    let began = Instant::now();
    let half = connections / 2;
    let answered = futures_util::future::join(flood(50, 50 + half), flood(51, 51 + connections - half)).await;
    let seconds = began.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    let took = known.await.unwrap();
    assert!(answered.0 + answered.1 >= connections as usize * EACH);
    let after = node.memory("VmRSS");
    println!(
        "{} unknown keys in {seconds:.1} s: {before} KiB before, {after} KiB after; a known key was served {} times \
         meanwhile, each time, in {:?} at the median and {:?} at p99 ({:?} before)",
        answered.0 + answered.1,
        took.len(),
        took[took.len() / 2],
        took[took.len() * 99 / 100],
        quiet[0],
    );
    assert!(after < before + GROWTH_KIB, "{before} KiB, then {after} KiB");
}

#[tokio::test]
async fn i01_a_source_of_strangers_loses_its_connections_and_its_neighbour_with_a_key_does_not() {
    let rig = Rig::start(&table(1, &[])).await;
    let nobody = || {
        let mut request = rig.chat("", false);
        request.headers_mut().insert("authorization", "Bearer nobody".parse().unwrap());
        request
    };
    let mut kept = 0;
    let closed = loop {
        let (status, headers, _) = rig.answer(nobody()).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        if headers.contains_key("connection") {
            break headers;
        }
        kept += 1;
        assert!(kept < 10_000, "never closed");
    };
    assert!(kept >= 200, "{kept}");
    assert_eq!(closed["connection"], "close");
    // Same source, known key: served, and its connection stays open.
    for _ in 0..10 {
        let (status, headers, _) = rig.answer(rig.chat("", false)).await;
        assert_eq!((status, headers.contains_key("connection")), (StatusCode::OK, false));
    }
}

#[test]
fn i01_a_ring_of_known_keys_is_not_changed_by_any_number_of_others() {
    let ring = Accounts::parse(&keys()).unwrap();
    let mut headers = http::HeaderMap::new();
    for at in 0..200_000_u64 {
        let key = at.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        headers.insert("authorization", format!("Bearer sk-{key:016x}").parse().unwrap());
        assert!(ring.identify(&headers).is_none());
    }
    headers.insert("authorization", format!("Bearer {KEY}").parse().unwrap());
    assert!(ring.identify(&headers).is_some());
    assert_eq!(ring.len(), 2);
}

/// Ten million keys in the long form: known ones, far more than there is room for, some of them
/// watched closely.
#[test]
fn i02_of_millions_of_known_keys_none_is_refilled_in_bounded_memory() {
    const ROOM: usize = 15_000;
    const WATCHED: u64 = 500;
    let total: u64 = if long() { 20_000_000 } else { 400_000 };
    let start = tidegate::unit::Instant(3_600_000_000_000);
    let limits = table(1, &[(Dimension::RequestsPerMinute, key_limit(60))]);
    let (mut bounded, mut exact) = (Limiter::new("n".into(), ROOM), Limiter::new("n".into(), 1_000));
    for limiter in [&mut bounded, &mut exact] {
        limiter.offer(limits.clone(), start).unwrap();
    }
    let (mut random, mut admitted, mut watched, mut before) = (1_u64, 0, 0, 0);
    for at in 0..total {
        if at == total / 10 {
            before = resident_kib();
        }
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let is_watched = random >> 60 == 0;
        let name = if is_watched { (random >> 20) % WATCHED } else { WATCHED + at };
        let mut key = [0; 32];
        key[..8].copy_from_slice(&name.to_be_bytes());
        // The table is held for an hour; so many requests take less.
        let now = start + Duration::from_micros(50) * u32::try_from(at).unwrap();
        let request = Request { input_tokens: 1, images: 1, ..Request::new("m", "t", key) };
        let used = Settlement::Used { input_tokens: 1, cached_tokens: 0, output_tokens: 0, images: 1 };
        let Verdict::Admitted(ticket) = bounded.admit(now, &request) else { continue };
        bounded.settle(now, ticket, used);
        admitted += 1;
        if is_watched {
            watched += 1;
            let Verdict::Admitted(ticket) = exact.admit(now, &request) else {
                panic!("key {name} was refilled at request {at}");
            };
            exact.settle(now, ticket, used);
        }
        assert!(bounded.keys_held() <= ROOM);
    }
    println!(
        "{total} requests of as many keys, room for {ROOM}: {admitted} admitted, {watched} of watched keys; \
         {before} KiB after a tenth, {} KiB in the end",
        resident_kib()
    );
    assert!(watched > 1_000 && admitted < total);
}

/// Of this process, other tests included.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A request with this body as raw bytes; the status, or nothing where the connection was cut.
async fn post(node: &Flooded, length: usize, pieces: impl Iterator<Item = Vec<u8>>) -> Option<u16> {
    let mut socket = TcpStream::connect(node.proxy).await.unwrap();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: a\r\nx-api-key: {KEY}\r\ncontent-type: application/json\r\n\
         connection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    let (mut reader, mut writer) = socket.split();
    let send = async {
        if writer.write_all(head.as_bytes()).await.is_ok() {
            for piece in pieces {
                if writer.write_all(&piece).await.is_err() {
                    return;
                }
            }
        }
    };
    let receive = async {
        let mut answer = Vec::new();
        let _ = reader.read_to_end(&mut answer).await;
        answer
    };
    let (_, answer) =
        tokio::time::timeout(3 * PATIENCE, futures_util::future::join(send, receive)).await.unwrap();
    std::str::from_utf8(answer.get(9..12)?).ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h12_huge_deep_and_broken_bodies_are_refused_in_little_memory() {
    let node = Flooded::start("").await;
    let whole = |body: Vec<u8>| (body.len(), vec![body]);
    let deep = |field: &str| {
        let (open, close) = ("[".repeat(100_000), "]".repeat(100_000));
        whole(format!("{{\"model\":\"m\",\"{field}\":{open}{close}}}").into_bytes())
    };
    let objects = format!("{{\"model\":\"m\",\"x\":{}1{}}}", "{\"a\":".repeat(100_000), "}".repeat(100_000));
    let names: Vec<String> = (0..1_000_000).map(|at| format!("\"k{at:x}\":0")).collect();
    let many = format!("{{\"model\":\"m\",{}}}", names.join(","));
    let few: Vec<String> = (0..600_000).map(|at| format!("\"{at:x}\":0")).collect();
    let fitting = format!("{{\"model\":\"m\",\"metadata\":{{{}}}}}", few.join(","));
    assert!(many.len() > 8 << 20 && fitting.len() < 8 << 20);
    let before = node.memory("VmRSS");
    for (what, expected, (length, body)) in [
        ("100 MB", 413, (100 << 20, vec![vec![b' '; 1 << 20]; 100])),
        ("deep text", 400, deep("messages")),
        ("deep where nobody looks", 400, deep("x")),
        ("deep objects", 400, whole(objects.into_bytes())),
        ("a million names", 413, whole(many.into_bytes())),
        ("many names in few bytes", 400, whole(fitting.into_bytes())),
        ("not UTF-8", 400, whole(b"{\"model\":\"m\",\"prompt\":\"\xff\"}".to_vec())),
        ("not UTF-8 where nobody looks", 400, whole(b"{\"model\":\"m\",\"x\":\"\xc3\x28\"}".to_vec())),
        ("a surrogate alone", 400, whole(b"{\"model\":\"m\",\"prompt\":\"\\ud800\"}".to_vec())),
        ("cut off", 400, whole(b"{\"model\":\"m\",\"prompt\":\"".to_vec())),
    ] {
        let status = post(&node, length, body.into_iter()).await;
        // Whoever is still sending 100 MB may not hear the answer before the connection is cut.
        let cut = length > 8 << 20 && status.is_none();
        assert!(status == Some(expected) || cut, "{what}: {status:?}");
    }
    assert_eq!(node.rig.answer(node.chat()).await.0, StatusCode::OK);
    assert_eq!(node.rig.upstream.requests(), 1, "none of them reached the upstream");
    let most = node.memory("VmHWM");
    println!("refusing bodies: {before} KiB before, {most} KiB at most");
    // One body, its copy on the way and what reading it takes.
    assert!(most < before + (64 << 10), "{before} KiB, then {most} KiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h12_ten_times_the_bodies_there_is_room_for_are_503_in_bounded_memory() {
    let node = Arc::new(Flooded::start("body_bytes: 1048576, bodies_bytes: 8388608").await);
    let before = node.memory("VmRSS");
    let body =
        json!({"model": "m", "user": "hang", "prompt": "x".repeat(1_000_000)}).to_string().into_bytes();
    let mut senders = tokio::task::JoinSet::new();
    for _ in 0..80 {
        let (node, body) = (Arc::clone(&node), body.clone());
        senders.spawn(async move { post(&node, body.len(), body.chunks(65_536).map(<[u8]>::to_vec)).await });
    }
    // Eight fit and hang; all others hear 503 at once.
    let mut refused = 0;
    while refused < 72 {
        let status = timed(senders.join_next()).await.unwrap().unwrap();
        assert!(matches!(status, Some(503) | None), "{status:?}");
        refused += 1;
    }
    let most = node.memory("VmHWM");
    println!("80 bodies of 1 MB, room for 8: {before} KiB before, {most} KiB at most");
    assert!(most < before + (64 << 10), "{before} KiB, then {most} KiB");
    senders.abort_all();
    while senders.join_next().await.is_some() {}
    // The room comes back.
    let deadline = Instant::now() + PATIENCE;
    while node.rig.answer(node.chat()).await.0 != StatusCode::OK {
        assert!(Instant::now() < deadline, "never free again");
    }
}
