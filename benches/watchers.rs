//! How long a new table takes to reach thousands of watchers, what each of them costs, and how long
//! all of them need to come back to a controller that was lost; with a bare hyper server doing the
//! same fan-out beside it in the same run.
//!
//! `cargo bench --bench watchers`, on a machine that does nothing else. Servers are processes of
//! their own, so that their memory is theirs; the watchers share this process. Options:
//! `--watchers 2000`, `--rounds 20`, `--bytes 65536`.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a benchmark that cannot run says so by ending"
)]

use std::convert::Infallible;
use std::hash::{BuildHasher, Hasher};
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tidegate::bounds::FOLLOW_RECONNECT_MAX;
use tidegate::publish::board::{Announced, Board};
use tidegate::publish::server::Server;
use tidegate::publish::token::Token;
use tidegate::wire::{LimitTable, Stamp};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if arguments.first().is_some_and(|first| first == "serve") {
        return serve(&arguments[1], arguments[2].parse().unwrap(), arguments[3].parse().unwrap());
    }
    let option = |name: &str, default: usize| {
        let at = arguments.iter().position(|argument| argument == name);
        at.map_or(default, |at| arguments[at + 1].parse().expect("a number"))
    };
    let (watchers, rounds) = (option("--watchers", 2_000), option("--rounds", 20));
    let bytes = option("--bytes", 64 << 10);
    enough_descriptors(2 * watchers + 100);
    tokio::runtime::Runtime::new().unwrap().block_on(measure(watchers, rounds, bytes));
}

// === what is measured ===

async fn measure(watchers: usize, rounds: usize, bytes: usize) {
    println!("{watchers} watchers, a table of {} bytes, {rounds} rounds", table(1, bytes).len());
    let mut sides = Vec::new();
    for kind in ["tidegate", "bare"] {
        sides.push(Side::start(kind, watchers, bytes).await);
    }
    let mut all = [Vec::new(), Vec::new()];
    let mut p99s = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        for (at, side) in sides.iter_mut().enumerate() {
            let mut round = side.round().await;
            round.sort_unstable();
            p99s[at].push(quantile(&round, 0.99));
            all[at].extend(round);
        }
    }
    for (side, (all, p99s)) in sides.iter().zip(all.iter_mut().zip(&mut p99s)) {
        all.sort_unstable();
        p99s.sort_unstable();
        println!(
            "{:<9} p50 {}, p99 {}, max {}; p99 of a round {} to {}; {:.1} kB of memory a watcher",
            side.kind,
            ms(quantile(all, 0.5)),
            ms(quantile(all, 0.99)),
            ms(quantile(all, 1.0)),
            ms(p99s[0]),
            ms(p99s[p99s.len() - 1]),
            side.kilobytes_each,
        );
    }
    let ratio = |q: f64| quantile(&all[0], q).as_secs_f64() / quantile(&all[1], q).as_secs_f64();
    println!("tidegate takes {:.2} x the bare server's p50, {:.2} x its p99", ratio(0.5), ratio(0.99));
    sides.truncate(1);
    for (how, longest) in [("as nodes do", FOLLOW_RECONNECT_MAX), ("all at once", Duration::ZERO)] {
        let took = sides[0].restart(longest).await;
        println!(
            "reconnecting {how}: {watchers} of {watchers} have the new table {took:.2?} after the restart"
        );
    }
}

fn quantile(sorted: &[Duration], q: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * q).round() as usize]
}

fn ms(time: Duration) -> String {
    format!("{:.0} ms", time.as_secs_f64() * 1e3)
}

/// One server in its process, and those who watch it.
struct Side {
    kind: &'static str,
    bytes: usize,
    server: Served,
    addr: SocketAddr,
    watchers: usize,
    tick: u64,
    arrived: mpsc::UnboundedReceiver<(u64, Instant)>,
    /// Longest pause before a watcher reconnects, nanoseconds.
    pause: Arc<AtomicU64>,
    kilobytes_each: f64,
}

impl Side {
    async fn start(kind: &'static str, watchers: usize, bytes: usize) -> Side {
        let mut server = Served::start(kind, 0, bytes);
        let addr = SocketAddr::from(([127, 0, 0, 1], server.port));
        server.say("publish 1");
        let before = server.rss();
        let (sender, arrived) = mpsc::unbounded_channel();
        let pause = Arc::new(AtomicU64::new(0));
        for _ in 0..watchers {
            tokio::spawn(watch(addr, sender.clone(), Arc::clone(&pause)));
        }
        let mut side =
            Side { kind, bytes, server, addr, watchers, tick: 1, arrived, pause, kilobytes_each: 0.0 };
        side.all_have(1).await;
        // Warm, and everyone waiting for the next one.
        side.round().await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        side.kilobytes_each = (side.server.rss() - before) / watchers as f64;
        side
    }

    /// From the order to publish until the last byte was read, for each watcher.
    async fn round(&mut self) -> Vec<Duration> {
        tokio::time::sleep(Duration::from_millis(400)).await;
        self.tick += 1;
        let begun = Instant::now();
        self.server.say(&format!("publish {}", self.tick));
        self.all_have(self.tick).await.into_iter().map(|at| at - begun).collect()
    }

    async fn all_have(&mut self, tick: u64) -> Vec<Instant> {
        let mut times = Vec::with_capacity(self.watchers);
        let all = async {
            while times.len() < self.watchers {
                let (seen, at) = self.arrived.recv().await.unwrap();
                if seen == tick {
                    times.push(at);
                }
            }
        };
        tokio::time::timeout(PATIENCE, all).await.expect("every watcher has the table");
        times
    }

    /// The controller dies; how long after its successor listens everyone has that one's table.
    async fn restart(&mut self, longest: Duration) -> Duration {
        self.pause.store(longest.as_nanos() as u64, Ordering::Relaxed);
        self.server.kill();
        self.server = Served::start(self.kind, self.addr.port(), self.bytes);
        let begun = Instant::now();
        self.tick += 1;
        self.server.say(&format!("publish {}", self.tick));
        let last = self.all_have(self.tick).await.into_iter().max().unwrap();
        last - begun
    }
}

// === a watcher ===

/// Asks as a node does, for ever; tells when each table had arrived.
async fn watch(addr: SocketAddr, arrived: mpsc::UnboundedSender<(u64, Instant)>, pause: Arc<AtomicU64>) {
    let mut tick = 0;
    loop {
        // Lost: back on a new connection.
        let _ = follow(addr, &arrived, &mut tick).await;
        let longest = Duration::from_nanos(pause.load(Ordering::Relaxed));
        tokio::time::sleep(longest.mul_f64(chance()).max(Duration::from_millis(10))).await;
    }
}

async fn follow(
    addr: SocketAddr,
    arrived: &mpsc::UnboundedSender<(u64, Instant)>,
    tick: &mut u64,
) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 16 << 10];
    loop {
        let ask =
            format!("GET /v1/table?wait=10s HTTP/1.1\r\nhost: x\r\nif-none-match: \"1.1.{}\"\r\n\r\n", *tick);
        stream.write_all(ask.as_bytes()).await?;
        let mut filled = 0;
        let head = loop {
            let count = stream.read(&mut buffer[filled..]).await?;
            if count == 0 {
                return Ok(());
            }
            filled += count;
            if let Some(at) = buffer[..filled].windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
        };
        let text = String::from_utf8_lossy(&buffer[..head]).to_ascii_lowercase();
        let field = |name: &str| text.split("\r\n").find_map(|line| line.strip_prefix(name));
        if text.starts_with("http/1.1 304") {
            continue;
        }
        let mut missing = field("content-length: ").unwrap().parse::<usize>().unwrap() - (filled - head);
        let tag = field("etag: ").unwrap().to_owned();
        while missing > 0 {
            match stream.read(&mut buffer).await? {
                0 => return Ok(()),
                count => missing -= count,
            }
        }
        *tick = tag.trim_matches('"').rsplit('.').next().unwrap().parse().unwrap();
        let _ = arrived.send((*tick, Instant::now()));
    }
}

fn chance() -> f64 {
    let bits = std::hash::RandomState::new().build_hasher().finish();
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

// === the servers ===

/// A server's process: told what to do on its standard input.
struct Served {
    process: Child,
    said: BufReader<std::process::ChildStdout>,
    port: u16,
}

impl Served {
    fn start(kind: &str, port: u16, bytes: usize) -> Served {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["serve", kind, &port.to_string(), &bytes.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(process.stdout.take().unwrap());
        let mut served = Served { process, said, port };
        served.port = served.hear().parse().unwrap();
        served
    }

    fn say(&mut self, line: &str) {
        writeln!(self.process.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// Kilobytes in memory, without the kernel's buffers.
    fn rss(&mut self) -> f64 {
        self.say("rss");
        self.hear().parse().unwrap()
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn serve(kind: &str, port: u16, bytes: usize) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (listener, port) = runtime.block_on(async {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    });
    let publish: Box<dyn Fn(u64)> = if kind == "tidegate" {
        let (reloads, _) = mpsc::channel(1);
        let token = Token::new("0123456789abcdef").unwrap();
        let board = Arc::new(Board::new(token, false, reloads, Box::new(Bytes::new)));
        let server = runtime.block_on(async { Server::start(listener, None, Arc::clone(&board)) });
        Box::new(move |tick| {
            let _held = &server;
            let stamp = Stamp { epoch: 1, version: 1, tick };
            board.announce(Announced { stamp, table: table(tick, bytes), status: Bytes::new() });
        })
    } else {
        let tables = watch::Sender::new((String::new(), Bytes::new()));
        runtime.spawn(bare(listener, tables.clone()));
        Box::new(move |tick| {
            tables.send_replace((format!("\"1.1.{tick}\""), table(tick, bytes)));
        })
    };
    println!("{port}");
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        match line.strip_prefix("publish ") {
            Some(tick) => publish(tick.parse().unwrap()),
            None => println!("{}", resident()),
        }
    }
}

/// The least that hyper needs for the same answers.
async fn bare(listener: TcpListener, tables: watch::Sender<(String, Bytes)>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let _ = stream.set_nodelay(true);
        let tables = tables.subscribe();
        let service = service_fn(move |request: Request<Incoming>| {
            let mut tables = tables.clone();
            async move {
                let known = request.headers().get("if-none-match").cloned();
                let known = known.as_ref().and_then(|tag| tag.to_str().ok()).unwrap_or_default();
                let (tag, body) = tables.wait_for(|(tag, _)| tag != known).await.unwrap().clone();
                Ok::<_, Infallible>(Response::builder().header("etag", tag).body(Full::new(body)).unwrap())
            }
        });
        tokio::spawn(async move {
            let builder = hyper::server::conn::http1::Builder::new();
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// A real table of about this many bytes.
fn table(tick: u64, bytes: usize) -> Bytes {
    let row = |at: usize| {
        format!(
            r#"{{"model":"model-{at:06}","tier":"enterprise","pool":"p","yields":{{"waiting":0,"in_flight":0}},"limits":{{"tokens_per_minute":{{"tier_limit":6000000,"key_limit":60000,"safe":60000,"ceiling":"unlimited"}}}}}}"#
        )
    };
    let rows: Vec<String> = (0..(bytes / (row(0).len() + 1)).max(1)).map(row).collect();
    let text = format!(
        r#"{{"schema":1,"epoch":1,"version":1,"tick":{tick},"policy":"0","interval_ms":2000,"valid_for_ms":20000,"pools":{{"p":{{"unit":"tokens","output_cost_milli":1000,"budget":6000000,"waiting_work":9,"in_flight":9,"degraded":false,"shares":{{}},"unlisted_share":0}}}},"rows":[{}]}}"#,
        rows.join(",")
    );
    Bytes::from(LimitTable::decode(text.as_bytes()).unwrap().encode().unwrap())
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn enough_descriptors(wanted: usize) {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let soft: usize = line.split_whitespace().next().unwrap().parse().unwrap();
    assert!(soft >= wanted, "{wanted} descriptors are needed, {soft} allowed: ulimit -n {wanted}");
}
