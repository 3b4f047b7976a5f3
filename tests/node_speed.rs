//! What the node costs: requests/s and latency beside the bare upstream, and memory of idle
//! connections. Ignored: figures mean something on a quiet machine only.
//!
//! `cargo test --release --test node_speed -- --ignored --nocapture`

#![cfg(feature = "daemon")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a helper that fails is a test that fails"
)]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use support::node::*;
use tidegate::unit::{Dimension, Limit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

const CLIENTS: usize = 8;
const MEASURED: Duration = Duration::from_secs(4);
const IDLE: usize = 9_900;

/// Requests/s, and the latencies in order.
async fn load(rig: &Arc<Rig>, at: SocketAddr, stream: bool, clients: usize) -> (f64, Vec<Duration>) {
    let mut tasks = tokio::task::JoinSet::new();
    let began = Instant::now();
    for _ in 0..clients {
        let rig = Arc::clone(rig);
        tasks.spawn(async move {
            let mut took = Vec::new();
            while began.elapsed() < MEASURED {
                let mut request = rig.chat("", stream);
                *request.uri_mut() = format!("http://{at}/v1/chat/completions").parse().unwrap();
                let sent = Instant::now();
                assert_eq!(rig.answer(request).await.0, StatusCode::OK);
                took.push(sent.elapsed());
            }
            took
        });
    }
    let mut all = tasks.join_all().await.concat();
    all.sort_unstable();
    (all.len() as f64 / began.elapsed().as_secs_f64(), all)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn what_the_node_adds() {
    let limit = |limit| entry(Limit::Finite(limit), Limit::Finite(limit));
    let limits =
        [(Dimension::TokensPerMinute, limit(1 << 50)), (Dimension::RequestsPerMinute, limit(1 << 40))];
    let rig = Arc::new(Rig::start(&table(1, &limits)).await);
    for (stream, clients) in [(false, CLIENTS), (true, CLIENTS), (false, 1), (true, 1)] {
        let straight = load(&rig, rig.upstream.address, stream, clients).await;
        let through = load(&rig, rig.node.proxy, stream, clients).await;
        rig.upstream.seen.lock().unwrap().clear();
        let micros = |sorted: &[Duration], part: usize| sorted[sorted.len() * part / 100].as_micros();
        let added = |part| micros(&through.1, part) as i128 - micros(&straight.1, part) as i128;
        println!(
            "{} x {clients}: straight {:.0}/s, through {:.0}/s, ratio {:.2}; p50 {} us, p99 {} us; added p50 {} us, p99 {} us",
            if stream { "streams" } else { "plain" },
            straight.0,
            through.0,
            through.0 / straight.0,
            micros(&through.1, 50),
            micros(&through.1, 99),
            added(50),
            added(99),
        );
    }
}

fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Needs two descriptors a connection: both ends are in this process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn what_idle_connections_hold() {
    let rig = Rig::with(&table(1, &[]), |config| {
        (config.caps.keep_alive_seconds, config.caps.connections) = (600, 2 * IDLE);
    })
    .await;
    let head = "GET /v1/models HTTP/1.1\r\nhost: a\r\nx-api-key: canary-key\r\n\r\n";
    let before = resident_kib();
    let mut open = Vec::new();
    for at in 0..IDLE {
        let Ok(mut socket) = TcpStream::connect(rig.node.proxy).await else {
            println!("out of descriptors at {at}");
            break;
        };
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0; 1_024];
        assert!(timed(socket.read(&mut answer)).await.unwrap() > 0);
        open.push(socket);
    }
    let after = resident_kib();
    println!(
        "{} idle connections: {} KiB more, {:.1} KiB each, both ends",
        open.len(),
        after - before,
        (after - before) as f64 / open.len() as f64
    );
}
