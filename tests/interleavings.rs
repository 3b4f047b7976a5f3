//! Two and three threads on one limiter, in orders that a machine rarely shows: shuttle runs each
//! model many times, with another order of its locks every time.
//!
//! `cargo test --no-default-features --features model --test interleavings`
#![cfg(feature = "model")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a broken promise ends the test")]

use std::collections::BTreeMap;

use shuttle::sync::Arc;
use shuttle::thread;
use tidegate::enforce::{Limiter, Request, Settlement, Verdict};
use tidegate::unit::{Dimension, Instant, Limit, PPM, WorkUnit};
use tidegate::wire::table::SCHEMA;
use tidegate::wire::{Entry, LimitTable, PoolEntry, Row, Stamp, Yields};

const NOW: Instant = Instant(3_600_000_000_000);
const ORDERS: usize = 300;

fn table(version: u64, key: u64, tier_at_once: u64) -> LimitTable {
    let requests =
        Entry { key_limit: Limit::Finite(key), account_limit: Limit::Finite(3), ..Entry::default() };
    let at_once = Entry { tier_limit: Limit::Finite(tier_at_once), ..Entry::default() };
    let limits = BTreeMap::from([
        (Dimension::RequestsPerMinute, requests),
        (Dimension::TokensPerMinute, Entry::default()),
        (Dimension::Concurrency, at_once),
    ]);
    let row = Row {
        model: "m".into(),
        tier: "t".into(),
        pool: "p".into(),
        yields: Yields::default(),
        limits,
        product: None,
        budgets: BTreeMap::new(),
        credit: Default::default(),
    };
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
    LimitTable {
        schema: SCHEMA,
        stamp: Stamp { epoch: 1, version, tick: version },
        policy: "00".to_owned(),
        interval_ms: 2_000,
        valid_for_ms: 20_000,
        pools: BTreeMap::from([("p".into(), pool)]),
        rows: vec![row],
        products: BTreeMap::new(),
        models: BTreeMap::new(),
        providers: BTreeMap::new(),
    }
}

/// Room for several shards.
fn limiter(key: u64, tier_at_once: u64) -> Arc<Limiter> {
    let limiter = Limiter::new("n".into(), 1_024);
    limiter.offer(table(1, key, tier_at_once), NOW).unwrap();
    Arc::new(limiter)
}

/// Asks so many times and settles what passes; how many did.
fn ask(limiter: &Limiter, key: u8, account: Option<u8>, times: usize) -> u64 {
    let mut passed = 0;
    for _ in 0..times {
        let account = account.map(|account| [account; 32]);
        let wanted = Request { account, streamed: true, ..Request::new("m", "t", [key; 32]) };
        if let Verdict::Admitted(mut ticket) = limiter.admit(NOW, &wanted) {
            limiter.first_token(NOW, &mut ticket);
            limiter.settle(NOW, ticket, Settlement::Rejected);
            passed += 1;
        }
    }
    passed
}

fn at_rest(limiter: &Limiter, admitted: u64) {
    let report = limiter.report(NOW, NOW, 1);
    let pool = report.pools.values().next().unwrap();
    assert_eq!((pool.in_flight, pool.waiting_work), (0, 0));
    assert_eq!(report.rows.first().map_or(0, |row| row.admitted.requests), admitted);
}

#[test]
fn one_key_of_two_threads_gets_its_limit_and_no_more_while_tables_are_swapped() {
    shuttle::check_random(
        || {
            let limiter = limiter(2, 100);
            let threads: Vec<_> = (0..2)
                .map(|_| {
                    let limiter = Arc::clone(&limiter);
                    thread::spawn(move || ask(&limiter, 1, None, 2))
                })
                .collect();
            // Neither table allows a third.
            limiter.offer(table(2, 1, 100), NOW).unwrap();
            limiter.offer(table(3, 2, 100), NOW).unwrap();
            let passed: u64 = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
            assert!((1..=2).contains(&passed), "{passed} of a limit of 2");
            let rest = ask(&limiter, 1, None, 3);
            assert_eq!(passed + rest, 2);
            at_rest(&limiter, 2);
        },
        ORDERS,
    );
}

#[test]
fn keys_of_one_account_share_its_limit_and_a_tiers_slots_are_never_overdrawn() {
    shuttle::check_random(
        || {
            let limiter = limiter(2, 1);
            let threads: Vec<_> = (0..3_u8)
                .map(|key| {
                    let limiter = Arc::clone(&limiter);
                    thread::spawn(move || {
                        let account = Some([200; 32]).filter(|_| key < 2);
                        let wanted = Request { account, ..Request::new("m", "t", [key; 32]) };
                        match limiter.admit(NOW, &wanted) {
                            Verdict::Admitted(ticket) => {
                                let report = limiter.report(NOW, NOW, 1);
                                let held = report.pools.values().map(|pool| pool.in_flight).sum::<u64>();
                                assert!(held <= 1, "{held} at once of one slot");
                                limiter.settle(NOW, ticket, Settlement::Rejected);
                                1
                            }
                            Verdict::Refused(_) => 0,
                        }
                    })
                })
                .collect();
            let passed: u64 = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
            assert!((1..=3).contains(&passed));
            at_rest(&limiter, passed);
            let more = ask(&limiter, 0, Some(200), 4) + ask(&limiter, 1, Some(200), 4);
            assert!(passed + more <= 4, "three of the account, and one of the key without");
        },
        ORDERS,
    );
}
