//! `/metrics` at 100 models by 10 tiers by 4 dimensions, over a socket, at a controller and at a
//! node; beside it the bare `prometheus` registry and encoder with as many plain gauges.
//!
//! `cargo bench --bench metrics`. Exits with 1 where a page is over 4 MB or its median over 50 ms.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a benchmark"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use prometheus::{Encoder, GaugeVec, Opts, Registry, TextEncoder};
use support::{get, large};
use tidegate::metrics::Detail;

const ROUNDS: usize = 40;
const BYTES_MAX: usize = 4 << 20;
const TIME_MAX: Duration = Duration::from_millis(50);

struct Measured {
    bytes: usize,
    series: usize,
    median: Duration,
    worst: Duration,
}

async fn scraped(admin: SocketAddr) -> Measured {
    let mut times = Vec::new();
    let mut page = Vec::new();
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        page = get(admin, "/metrics").await.body;
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    let series = page.split(|byte| *byte == b'\n').filter(|line| !line.is_empty() && line[0] != b'#').count();
    Measured { bytes: page.len(), series, median: times[ROUNDS / 2], worst: times[ROUNDS - 1] }
}

/// As many series of one family with as many labels, gathered and encoded without any socket.
fn bare(series: usize) -> Duration {
    let registry = Registry::new();
    let labels = ["pool", "model", "tier", "dimension"];
    let gauges = GaugeVec::new(Opts::new("tidegate_publish_limit_per_second", "A limit."), &labels).unwrap();
    registry.register(Box::new(gauges.clone())).unwrap();
    for at in 0..series {
        let model = format!("meta-llama/Llama-3.{at}-70B-Instruct");
        gauges
            .with_label_values(&["gpu-cluster-1", &model, "enterprise-plan-1", "tokens"])
            .set(at as f64 / 60.0);
    }
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let begun = Instant::now();
            let mut page = Vec::new();
            TextEncoder::new().encode(&registry.gather(), &mut page).unwrap();
            begun.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[ROUNDS / 2]
}

fn report(name: &str, measured: &Measured) -> bool {
    let bare = bare(measured.series);
    println!(
        "{name}: {} series, {:.2} MB, median {:.1} ms, worst {:.1} ms; bare encoder of as many gauges {:.1} ms, ratio {:.2}",
        measured.series,
        measured.bytes as f64 / 1e6,
        measured.median.as_secs_f64() * 1e3,
        measured.worst.as_secs_f64() * 1e3,
        bare.as_secs_f64() * 1e3,
        measured.median.as_secs_f64() / bare.as_secs_f64(),
    );
    measured.bytes <= BYTES_MAX && measured.median <= TIME_MAX
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let dir = tempfile::tempdir().unwrap();
    let controller = large::controller(dir.path(), Detail::Full).await;
    let at_controller = scraped(controller.addr).await;
    let table = get(controller.addr, "/v1/table").await.body;
    controller.shutdown().await;
    let node = large::node(dir.path(), &table, Detail::Full).await;
    let at_node = scraped(node.admin).await;
    node.shutdown().await;
    let within = [report("controller", &at_controller), report("node", &at_node)];
    if within != [true, true] {
        std::process::exit(1);
    }
}
