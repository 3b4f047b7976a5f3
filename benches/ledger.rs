//! Durable settles of the ledger, and the same batches appended to a file and synced, in one run.
//!
//! `cargo bench --bench ledger`. Exits with 1 where the ledger makes less than half as many settles
//! durable in a second as the bare file does.
//!
//! Each of many clients has one request at a time: it reserves, settles, and waits until that is on
//! disk. The bare file gets the bytes of each batch the ledger has written, one write and one
//! `fdatasync` for each.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a benchmark"
)]

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tidegate::ledger::{Amount, Asked, Holder, Ledger, Limits, Options, Wall, Zone};
use tidegate::unit::{Limit, ProductId};

const ACCOUNTS: u64 = 10_000;
const SECONDS: u64 = 5;
/// Bytes of an entry: a number, a step, a request, an account, a product and what it used.
const ENTRY: u64 = 8 + 1 + 8 + 32 + 2 + 4 + 4 + 4 + 16;

fn account(number: u64) -> [u8; 32] {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    id
}

async fn client(ledger: Arc<Ledger>, client: u64, until: Instant) -> Vec<Duration> {
    let (zone, product) = (Zone::utc(), ProductId::new("chat"));
    let limits = Limits { spend_per_month: Limit::Finite(1 << 50), ..Limits::default() };
    let mut waits = Vec::new();
    let mut turn = client;
    while Instant::now() < until {
        turn = turn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let account = account((turn >> 33) % ACCOUNTS);
        let _pinned = ledger.pin(vec![Holder { account, key: None }]).await.unwrap();
        let calendar = zone.periods(ledger.wall());
        let reserved = ledger.reserve(&Asked {
            account,
            account_limits: limits,
            key: None,
            product: &product,
            zone: &zone,
            calendar: &calendar,
            amount: Amount { tokens: 500, micros: 700 },
            bounded: true,
        });
        let begun = Instant::now();
        let sent = ledger.settle(reserved.unwrap(), Amount { tokens: 321, micros: 456 });
        ledger.settled(sent).await.unwrap();
        waits.push(begun.elapsed());
    }
    waits
}

struct Measured {
    settles: usize,
    seconds: f64,
    commits: u64,
    entries: u64,
    p50: Duration,
    p99: Duration,
    worst: Duration,
}

async fn durable(dir: &Path, clients: u64) -> Measured {
    let ledger = Arc::new(Ledger::open(Options {
        node: "n".into(),
        dir: Some(dir.to_owned()),
        records_max: 100_000,
        seed: 1,
        wall: Wall::system(),
    }));
    ledger.see(["n".into()].into(), 0);
    let count = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
    let begun = Instant::now();
    let until = begun + Duration::from_secs(SECONDS);
    let clients: Vec<_> =
        (0..clients).map(|number| tokio::spawn(client(Arc::clone(&ledger), number, until))).collect();
    let mut waits = Vec::new();
    for client in clients {
        waits.extend(client.await.unwrap());
    }
    let seconds = begun.elapsed().as_secs_f64();
    waits.sort_unstable();
    let (commits, entries) = (count(&ledger.counts().commits), count(&ledger.counts().entries));
    ledger.stop();
    Measured {
        settles: waits.len(),
        seconds,
        commits,
        entries,
        p50: waits[waits.len() / 2],
        p99: waits[waits.len() * 99 / 100],
        worst: waits[waits.len() - 1],
    }
}

/// As many batches of the same size, each appended and synced; batches a second.
fn bare(dir: &Path, batches: u64, bytes: u64) -> f64 {
    let mut file = File::create(dir.join("bare")).unwrap();
    let batch = vec![7_u8; usize::try_from(bytes).unwrap()];
    let batches = batches.min(5_000);
    let begun = Instant::now();
    for _ in 0..batches {
        file.write_all(&batch).unwrap();
        file.sync_data().unwrap();
    }
    batches as f64 / begun.elapsed().as_secs_f64()
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut fast_enough = true;
    println!("clients   settles/s   bare/s   ratio   entries/batch      p50      p99     worst");
    for clients in [64, 512] {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let measured = durable(dir.path(), clients).await;
        let batch = measured.entries as f64 / measured.commits as f64;
        let bytes = measured.entries * ENTRY / measured.commits.max(1);
        let rate = measured.settles as f64 / measured.seconds;
        // Of a batch's entries as many are settles here as there.
        let settles = measured.settles as f64 / measured.commits as f64;
        let path = dir.path().to_owned();
        let raw = tokio::task::spawn_blocking(move || bare(&path, measured.commits, bytes)).await.unwrap();
        let ratio = rate / (raw * settles);
        fast_enough &= ratio >= 0.5;
        println!(
            "{clients:>7} {rate:>11.0} {:>8.0} {ratio:>7.2} {batch:>15.0} {:>8.1?} {:>8.1?} {:>9.1?}",
            raw * settles,
            measured.p50,
            measured.p99,
            measured.worst
        );
    }
    if !fast_enough {
        println!("less than half of a bare append and fdatasync");
        std::process::exit(1);
    }
}
