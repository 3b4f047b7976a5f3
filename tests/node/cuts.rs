//! Streams cut at random points: by their client, by their upstream, by a node that drains, quits
//! or is killed. At rest nothing of them is left: every slot is free, nothing is reserved, and each
//! was charged once, for what was seen of it.
//!
//! `TIDEGATE_SEED=S` draws another run, `TIDEGATE_LONG=1` ten times as many.

use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tidegate::sim::Chance;
use tidegate::unit::{Dimension, Limit};
use tidegate::wire::{Budget, BudgetEntry, LimitTable, ModelEntry, Price, Product};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::cli::{Process, addresses, enforce};
use crate::edges::socket2_linger;
use crate::support::node::{
    Http, INPUT, M, PATIENCE, client, entry, key_limit, key_line, table, timed, until, write, write_table,
};

const AT_ONCE: usize = 40;
/// Of one node's life.
const LIFE: usize = 100;
/// Output tokens that every client allows; no stream has more events.
const ALLOWED: u64 = 100;
/// Tokens in one event, as the upstream reports them.
const EACH: u64 = 3;
/// More than the node can take a request's input for.
const INPUT_MOST: u64 = 400;
/// Slots of the whole tier.
const SLOTS: u64 = 64;
/// A key whose own slots are not limited: it is shown the tier's.
const PROBE: &str = "canary-probe";

/// One stream, and who cuts it.
#[derive(Clone, Debug)]
struct Plan {
    number: usize,
    events: u64,
    cut: Cut,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    Nobody,
    /// The client, after so many bytes of the request, or of the answer.
    Request {
        bytes: usize,
    },
    Answer {
        bytes: usize,
        reset: bool,
    },
    /// The upstream, before its head, or at this event.
    Head,
    Event {
        at: u64,
        how: How,
    },
    /// Nobody; the upstream says nothing of usage.
    Unsaid,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Close,
    Reset,
    /// In the middle of a chunk.
    Half,
}

/// How the node's life ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Once nothing is in flight.
    Rest,
    /// Asked to stop: what is in flight goes on.
    Drain,
    /// Asked twice: what is in flight is cut.
    Quit,
    /// Kill -9.
    Kill,
}

/// What the client saw.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    events: u64,
    /// To its last byte.
    whole: bool,
    answered: bool,
}

fn draw(chance: &mut Chance, number: usize) -> Plan {
    let events = 1 + chance.below(30) as u64;
    let cut = match chance.below(10) {
        0 | 1 => Cut::Nobody,
        2 => Cut::Request { bytes: chance.below(420) },
        3..=5 => Cut::Answer { bytes: chance.below(4_000), reset: chance.happens(0.5) },
        6 => Cut::Head,
        7 | 8 => {
            let how = [How::Close, How::Reset, How::Half][chance.below(3)];
            Cut::Event { at: chance.below(events as usize + 1) as u64, how }
        }
        _ => Cut::Unsaid,
    };
    Plan { number, events, cut }
}

// === the upstream ===

/// Does what the request's `user` says: events, what is cut, and where.
async fn upstream() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let Ok((socket, _)) = listener.accept().await else { continue };
            tokio::spawn(serve(socket));
        }
    });
    url
}

/// None: whoever asked is gone.
async fn serve(mut socket: TcpStream) -> Option<()> {
    let mut request = Vec::new();
    let body = loop {
        if socket.read_buf(&mut request).await.ok()? == 0 {
            return None;
        }
        let Some(end) = request.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        // Chunked or not: the object is whole when it can be read.
        let Some(begin) = request[end..].iter().position(|byte| *byte == b'{') else { continue };
        let last = request.iter().rposition(|byte| *byte == b'}').unwrap_or(0);
        if let Some(Ok(body)) = request.get(end + begin..=last).map(serde_json::from_slice::<Value>) {
            break body;
        }
    };
    let words: Vec<&str> = body["user"].as_str()?.split(' ').collect();
    let (events, how, at): (u64, _, u64) = (words[0].parse().ok()?, words[1], words[2].parse().ok()?);
    if how == "head" {
        return None;
    }
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\
                transfer-encoding: chunked\r\n\r\n";
    socket.write_all(head.as_bytes()).await.ok()?;
    for event in 0..=events {
        if how != "none" && how != "unsaid" && event == at {
            match how {
                "half" => socket.write_all(b"40\r\ndata: {\"choices\":[{\"del").await.ok()?,
                "reset" => socket2_linger(&socket),
                _ => {}
            }
            return None;
        }
        if event < events {
            let piece = json!({"choices": [{"index": 0, "delta": {"content": "Hi "}}]});
            chunk(&mut socket, &format!("data: {piece}\n\n")).await?;
            if event % 3 == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }
    if how != "unsaid" {
        let usage = json!({"prompt_tokens": INPUT, "completion_tokens": events * EACH});
        chunk(&mut socket, &format!("data: {}\n\n", json!({"choices": [], "usage": usage}))).await?;
    }
    chunk(&mut socket, "data: [DONE]\n\n").await?;
    socket.write_all(b"0\r\n\r\n").await.ok()
}

async fn chunk(socket: &mut TcpStream, data: &str) -> Option<()> {
    socket.write_all(format!("{:x}\r\n{data}\r\n", data.len()).as_bytes()).await.ok()
}

// === the client ===

// === impl Plan ===

impl Plan {
    fn key(&self) -> String {
        format!("canary-{}", self.number)
    }

    fn request(&self) -> Vec<u8> {
        let (how, at) = match self.cut {
            Cut::Head => ("head", 0),
            Cut::Event { at, how: How::Close } => ("close", at),
            Cut::Event { at, how: How::Reset } => ("reset", at),
            Cut::Event { at, how: How::Half } => ("half", at),
            Cut::Unsaid => ("unsaid", 0),
            Cut::Nobody | Cut::Request { .. } | Cut::Answer { .. } => ("none", 0),
        };
        let body = json!({
            "model": "m", "user": format!("{} {how} {at}", self.events), "stream": true,
            "max_tokens": ALLOWED, "messages": [{"role": "user", "content": "Hi, how are you today?"}],
        });
        let body = body.to_string();
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\n\
             content-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            self.key(),
            body.len()
        );
        [head, body].concat().into_bytes()
    }

    /// As far as it goes; nothing where nobody listens.
    async fn run(&self, proxy: &str) -> Seen {
        let mut seen = Seen::default();
        let Ok(mut socket) = TcpStream::connect(proxy).await else { return seen };
        let request = self.request();
        let sent = match self.cut {
            Cut::Request { bytes } => bytes.min(request.len() - 1),
            _ => request.len(),
        };
        if socket.write_all(&request[..sent]).await.is_err() || sent < request.len() {
            return seen;
        }
        let most = match self.cut {
            Cut::Answer { bytes, .. } => bytes,
            _ => usize::MAX,
        };
        let mut answer = Vec::new();
        while answer.len() < most {
            let mut some = [0; 512];
            let room = some.len().min(most - answer.len());
            match timed(socket.read(&mut some[..room])).await {
                Ok(0) | Err(_) => break,
                Ok(read) => answer.extend_from_slice(&some[..read]),
            }
            if answer.ends_with(b"\r\n0\r\n\r\n") {
                seen.whole = true;
                break;
            }
        }
        if let Cut::Answer { reset: true, .. } = self.cut {
            socket2_linger(&socket);
        }
        let text = String::from_utf8_lossy(&answer);
        seen.answered = text.starts_with("HTTP/1.1 200 ");
        seen.events = text.matches("\"content\":\"Hi \"").count() as u64;
        seen
    }

    /// Tokens that it may have been charged for.
    fn due(&self, seen: Seen, end: End) -> RangeInclusive<u64> {
        let most = INPUT_MOST + ALLOWED;
        if end == End::Kill {
            // Not admitted, settled, or only its reservation was written, or nothing.
            return 0..=most;
        }
        match self.cut {
            Cut::Request { .. } => 0..=0,
            // An upstream's failure costs nothing; quitting breaks off what may have been done.
            Cut::Head if end == End::Rest => 0..=0,
            Cut::Unsaid if seen.whole => self.events..=self.events + INPUT_MOST,
            _ if seen.whole => INPUT + self.events * EACH..=INPUT + self.events * EACH,
            _ if seen.answered => seen.events.max(1)..=most,
            _ => 0..=most,
        }
    }
}

// === the node ===

struct Life {
    process: Process,
    proxy: String,
    admin: String,
    http: Http,
}

impl Life {
    async fn begin(dir: &Path) -> Life {
        let arguments = ["--config", "node.yaml", "--table", "table.json", "--listen", "127.0.0.1:0"];
        let mut process = Process(enforce(dir, &arguments).args(["--admin", "127.0.0.1:0"]).spawn().unwrap());
        let (proxy, admin, _) = addresses(&mut process);
        let life = Life { process, proxy, admin, http: client() };
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while life.get(&life.admin, "/-/ready", PROBE).await.0 != StatusCode::OK {
            assert!(tokio::time::Instant::now() < deadline, "never ready");
        }
        life
    }

    async fn get(&self, at: &str, path: &str, key: &str) -> (StatusCode, String) {
        let request = Request::get(format!("http://{at}{path}"))
            .header("authorization", format!("Bearer {key}"))
            .body(Full::default())
            .unwrap();
        let response = timed(self.http.request(request)).await.unwrap();
        let status = response.status();
        let body = timed(response.into_body().collect()).await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn metric(&self, name: &str) -> u64 {
        let (_, page) = self.get(&self.admin, "/metrics", PROBE).await;
        let found = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        found.unwrap_or_else(|| panic!("{name}: {page}")).parse::<f64>().unwrap() as u64
    }

    /// Slots free, and by budget what is used and reserved.
    async fn standing(&self, key: &str) -> (u64, Vec<(u64, u64)>) {
        let (status, text) = self.get(&self.proxy, "/v1/limits", key).await;
        assert_eq!(status, StatusCode::OK, "{text}");
        let page: Value = serde_json::from_str(&text).unwrap();
        let model = &page["models"][0];
        let slots = model["limits"].as_array().unwrap().iter().find(|line| line["dimension"] == "concurrent");
        let of_account = model["periods"].as_array().unwrap().iter().filter(|one| one["scope"] == "account");
        let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("{text}"));
        let periods = of_account.map(|line| (number(&line["used"]), number(&line["reserved"])));
        (slots.map_or_else(|| panic!("{text}"), |line| number(&line["remaining"])), periods.collect())
    }

    /// Nothing is in flight, every slot is free, nothing is reserved, and the limiter has settled
    /// what the ledger has.
    async fn at_rest(&self, streams: &[(Plan, Seen)]) {
        let (in_flight, ledger) =
            ("tidegate_enforce_in_flight_requests{pool=\"p\"}", "tidegate_enforce_ledger_waiting_entries");
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while self.metric(in_flight).await + self.metric(ledger).await > 0 {
            assert!(
                tokio::time::Instant::now() < deadline,
                "{} slots leaked by {} streams",
                self.metric(in_flight).await,
                streams.len()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(self.metric("tidegate_enforce_waiting_work{pool=\"p\"}").await, 0);
        assert_eq!(self.standing(PROBE).await.0, SLOTS, "slots of the tier");
        let mut charged = 0;
        for (plan, seen) in streams {
            let (slots, periods) = self.standing(&plan.key()).await;
            assert_eq!(slots, 1, "{plan:?} {seen:?}");
            charged += periods[0].0;
        }
        let settled = "tidegate_enforce_work_total{pool=\"p\",model=\"m\",tier=\"t\",verdict=\"admitted\"}";
        assert_eq!(self.metric(settled).await, charged, "the limiter and the ledger");
    }

    /// Cuts it short once so many streams are over.
    async fn end(&mut self, end: End, after: usize, over: &AtomicUsize) {
        let closed = || std::net::TcpStream::connect(&self.proxy).is_err();
        if end == End::Rest {
            return;
        }
        until("streams to end", || over.load(Ordering::SeqCst) >= after).await;
        match end {
            End::Kill => self.process.signal("-KILL"),
            End::Quit => {
                self.process.signal("-TERM");
                until("the port to close", closed).await;
                self.process.signal("-TERM");
            }
            _ => self.process.signal("-TERM"),
        }
    }
}

/// [`AT_ONCE`] of them at a time; `over` counts those that have ended.
async fn run(batch: &[Plan], proxy: String, over: Arc<AtomicUsize>) -> Vec<(Plan, Seen)> {
    let (proxy, room) = (Arc::new(proxy), Arc::new(Semaphore::new(AT_ONCE)));
    let mut running = JoinSet::new();
    for plan in batch.iter().cloned() {
        let (proxy, over) = (Arc::clone(&proxy), Arc::clone(&over));
        let room = Arc::clone(&room).acquire_owned().await.unwrap();
        running.spawn(async move {
            let seen = plan.run(&proxy).await;
            over.fetch_add(1, Ordering::SeqCst);
            drop(room);
            (plan, seen)
        });
    }
    running.join_all().await
}

/// A slot for each key and [`SLOTS`] for all; each stream has an account of its own, whose tokens
/// cost a millionth of a dollar each.
fn limits() -> LimitTable {
    let mut slots = key_limit(1);
    slots.tier_limit = Limit::Finite(SLOTS);
    let tokens = entry(M, Limit::Finite(1 << 40));
    let mut table = table(1, &[(Dimension::Concurrency, slots), (Dimension::TokensPerMinute, tokens)]);
    table.products = [("chat".into(), Product::default())].into();
    let row = &mut table.rows[0];
    row.product = Some("chat".into());
    let most = BudgetEntry { key: M, account: Limit::Finite(1 << 40) };
    row.budgets = [(Budget::TokensPerDay, most), (Budget::SpendPerMonth, most)].into();
    let price = Price { input: 1_000_000, output: 1_000_000, ..Price::default() };
    table.models = [("m".into(), ModelEntry { price: Some(price), ..ModelEntry::default() })].into();
    table
}

async fn set_up(dir: &Path, streams: usize) {
    write_table(&dir.join("table.json"), &limits());
    let probe = key_line(PROBE, None).replace('}', ",\"limits\":{\"concurrent\":\"unlimited\"}}");
    let keys = (0..streams).map(|at| key_line(&format!("canary-{at}"), Some(&format!("a-{at}"))));
    let lines: Vec<String> = keys.chain([probe]).collect();
    write(&dir.join("keys.jsonl"), lines.join("\n").as_bytes());
    let url = upstream().await;
    let text =
        format!("node: n\nkeys: keys.jsonl\nstate: state\nupstreams:\n  main: {{urls: [\"{url}\"]}}\n");
    write(&dir.join("node.yaml"), text.as_bytes());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_streams_cut_anywhere_every_slot_is_free_and_reserved_equals_settled() {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seed = number("TIDEGATE_SEED").unwrap_or(5);
    let streams = if number("TIDEGATE_LONG") == Some(1) { 10_000 } else { 1_000 };
    println!("seed {seed}: {streams} streams");
    let mut chance = Chance::seeded(seed);
    let dir = tempfile::TempDir::new().unwrap();
    set_up(dir.path(), streams).await;
    let plans: Vec<Plan> = (0..streams).map(|at| draw(&mut chance, at)).collect();
    let mut told = Vec::new();
    for (at, batch) in plans.chunks(LIFE).enumerate() {
        let end = [End::Rest, End::Kill, End::Drain, End::Rest, End::Quit][at % 5];
        let mut life = Life::begin(dir.path()).await;
        let over = Arc::new(AtomicUsize::new(0));
        let running = run(batch, life.proxy.clone(), Arc::clone(&over));
        let after = chance.below(batch.len() - AT_ONCE);
        let (seen, ()) = tokio::join!(running, life.end(end, after, &over));
        match end {
            End::Rest => {
                life.at_rest(&seen).await;
                life.process.signal("-TERM");
                assert_eq!(life.process.code().await, Some(0));
            }
            End::Drain => assert_eq!(life.process.code().await, Some(0)),
            // All may have ended before it was asked again.
            End::Quit => assert!(matches!(life.process.code().await, Some(0 | 1))),
            End::Kill => assert_eq!(life.process.code().await, None),
        }
        told.extend(seen.into_iter().map(|(plan, seen)| (plan, seen, end)));
    }
    // What was right at each end is right now, with what the killed ones left behind.
    let life = Life::begin(dir.path()).await;
    assert_eq!(life.standing(PROBE).await.0, SLOTS);
    let (mut cut, mut by_node) = (0, 0);
    for (plan, seen, end) in &told {
        let (slots, periods) = life.standing(&plan.key()).await;
        let [(tokens, 0), (micros, 0)] = periods[..] else { panic!("{plan:?}: still reserved: {periods:?}") };
        assert_eq!((slots, micros), (1, tokens), "{plan:?}");
        let due = plan.due(*seen, *end);
        assert!(due.contains(&tokens), "seed {seed}: {plan:?} {seen:?} {end:?}: {tokens}, not {due:?}");
        cut += usize::from(!seen.whole);
        by_node += usize::from(plan.cut == Cut::Nobody && seen.answered && !seen.whole);
    }
    assert!(cut > streams / 2 && cut < streams * 9 / 10, "{cut} of {streams} were cut");
    assert!(by_node > 0, "a node that ends cuts what is in flight");
    println!(
        "{cut} of {streams} streams were cut, {by_node} by the node, over {} lives of it",
        streams / LIFE
    );
}
