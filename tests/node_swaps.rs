//! A hundred tables swapped under load, a thousand with `TIDEGATE_LONG=1`: no request fails, every
//! answer is of one table, and what the node says it admitted is what an outside ledger counted.

#![cfg(feature = "daemon")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a helper that fails is a test that fails"
)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use http::StatusCode;
use support::node::*;
use tidegate::unit::{Dimension, Limit};
use tidegate::wire::LimitTable;

const CLIENTS: u64 = 8;

fn swaps() -> u64 {
    if std::env::var_os("TIDEGATE_LONG").is_some() { 1_000 } else { 100 }
}

/// Each version changes limits of the key and of the tier, in two dimensions.
fn version(number: u64) -> LimitTable {
    let tokens = entry(Limit::Finite(900_000_000 + number), Limit::Finite(800_000_000 - number));
    let requests = entry(Limit::Unlimited, Limit::Finite(10_000_000 + number));
    table(number, &[(Dimension::TokensPerMinute, tokens), (Dimension::RequestsPerMinute, requests)])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f08_swaps_under_load_fail_no_request_mix_no_tables_and_lose_no_work() {
    let swaps = swaps();
    let rig = Arc::new(Rig::start(&version(1)).await);
    let stop = Arc::new(AtomicBool::new(false));
    let served = Arc::new(AtomicU64::new(0));
    let started = tokio::time::Instant::now();
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let (rig, stop, served) = (Arc::clone(&rig), Arc::clone(&stop), Arc::clone(&served));
        clients.spawn(async move {
            let (mut ledger, mut newest) = (0, 0);
            while !stop.load(Ordering::Relaxed) {
                let (status, headers, body) = rig.answer(rig.chat("", client % 2 == 0)).await;
                assert_eq!(status, StatusCode::OK, "{body}");
                let limit = |of: &str| headers[of].to_str().unwrap().parse::<u64>().unwrap();
                let requests = limit("x-ratelimit-limit-requests") - 10_000_000;
                let tokens = 800_000_000 - limit("x-ratelimit-limit-tokens");
                assert_eq!(requests, tokens, "two tables in one answer");
                // A newer table than the one before, or the same: none comes back.
                assert!(requests >= newest, "table {requests} after {newest}");
                newest = requests;
                let complete =
                    if client % 2 == 0 { body.ends_with("[DONE]\n\n") } else { body.ends_with('}') };
                assert!(complete, "cut off: {body}");
                ledger += INPUT + OUTPUT;
                served.fetch_add(1, Ordering::Relaxed);
            }
            ledger
        });
    }
    let (mut forwarded, mut before) = (0, 0);
    for number in 2..=swaps + 1 {
        // Not the fake's record of every request.
        forwarded += std::mem::take(&mut *rig.upstream.seen.lock().unwrap()).len();
        if number == swaps / 2 {
            before = resident();
        }
        // As much load between two swaps as makes the rate, whatever the machine is doing.
        let enough = served.load(Ordering::Relaxed) + 30;
        write_table(&rig.table_path(), &version(number));
        let cell = rig.node.cell();
        until("the table", || cell.held().is_some_and(|held| held.stamp().version == number)).await;
        until("load", || served.load(Ordering::Relaxed) >= enough || clients.len() < CLIENTS as usize).await;
    }
    let elapsed = started.elapsed();
    stop.store(true, Ordering::Relaxed);
    let mut ledger = 0;
    while let Some(client) = clients.join_next().await {
        ledger += client.expect("no request fails");
    }
    let rate = served.load(Ordering::Relaxed) as f64 / elapsed.as_secs_f64();
    let grown = resident().saturating_sub(before);
    println!("{swaps} swaps, {rate:.0} requests/s over {elapsed:?}, {grown} kB more memory");
    let (requests, work) = rig.settled().await;
    assert_eq!(requests, served.load(Ordering::Relaxed));
    assert_eq!(work, ledger);
    forwarded += rig.upstream.requests();
    assert_eq!(requests as usize, forwarded, "the upstream saw exactly the admitted ones");
    assert!(grown < 32 << 10, "{grown} kB more memory in the second half");
}

/// Kilobytes of this process in memory.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
