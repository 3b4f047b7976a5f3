//! The limiter's promises, one test each; the seeded ones compare with a model in floating point.

mod dimensions;
#[cfg(feature = "sim")]
mod exact;
#[cfg(feature = "sim")]
mod extremes;
#[cfg(feature = "sim")]
mod keys;
mod pools;
#[cfg(feature = "sim")]
mod seeded;
mod shares;

use std::collections::BTreeMap;

use super::*;
use crate::enforce::ticket::{Cap, RefusalReason, Scope, Settlement};
use crate::unit::{Dimension, Limit, PPM, WorkUnit};
use crate::wire::Yields;
use crate::wire::{Entry, PoolEntry, Row, Stamp};

const START: Instant = Instant(3_600_000_000_000);
const M: Limit = Limit::Unlimited;

fn at(seconds: f64) -> Instant {
    START + Duration::from_secs_f64(seconds)
}

fn entry(tier: Limit, key: Limit) -> Entry {
    let safe = tier.finite().map_or(M, |tier| Limit::Finite(tier.min(6_000)));
    Entry { tier_limit: tier, key_limit: key, safe, ceiling: M, ..Entry::default() }
}

fn only(tier: u64, key: Limit) -> Entry {
    entry(Limit::Finite(tier), key)
}

/// One pool `p`, model `m`, tiers `a` (yields nothing) and `b` (yields half).
fn table(version: u64, limits: &[(Dimension, Entry)]) -> LimitTable {
    let mut limits: BTreeMap<_, _> = limits.iter().copied().collect();
    limits.entry(Dimension::TokensPerMinute).or_insert(entry(M, M));
    let row = |tier: &str, yields: u32| Row {
        model: "m".into(),
        tier: tier.into(),
        pool: "p".into(),
        yields: Yields { waiting: yields, in_flight: yields },
        limits: limits.clone(),
        product: None,
        budgets: BTreeMap::new(),
        credit: Default::default(),
    };
    let pool = PoolEntry {
        unit: WorkUnit::Tokens,
        output_cost_milli: 1_000,
        budget: M,
        waiting_work: M,
        slo_ms: 0,
        in_flight: M,
        degraded: false,
        shares: BTreeMap::from([("n".into(), PPM)]),
        unlisted_share: 0,
    };
    LimitTable {
        schema: 1,
        stamp: Stamp { epoch: 1, version, tick: version },
        policy: "00".to_owned(),
        interval_ms: 2_000,
        valid_for_ms: 20_000,
        pools: BTreeMap::from([("p".into(), pool)]),
        rows: vec![row("a", 0), row("b", 500_000)],
        products: BTreeMap::new(),
        models: BTreeMap::new(),
        providers: BTreeMap::new(),
    }
}

fn pool_of(table: &mut LimitTable) -> &mut PoolEntry {
    table.pools.values_mut().next().unwrap()
}

fn limiter(table: LimitTable) -> Limiter {
    let limiter = Limiter::new("n".into(), 100);
    limiter.offer(table, START).unwrap();
    limiter
}

fn request(tier: &str, key: u8) -> Request<'_> {
    Request { input_tokens: 10, images: 1, streamed: true, ..Request::new("m", tier, [key; 32]) }
}

#[track_caller]
fn admitted(verdict: Verdict) -> Ticket {
    match verdict {
        Verdict::Admitted(ticket) => ticket,
        Verdict::Refused(refusal) => panic!("refused: {refusal:?}"),
    }
}

#[track_caller]
fn refused(verdict: Verdict) -> Refusal {
    match verdict {
        Verdict::Admitted(ticket) => panic!("admitted: {ticket:?}"),
        Verdict::Refused(refusal) => refusal,
    }
}

const USED: Settlement = Settlement::Used { input_tokens: 10, cached_tokens: 0, output_tokens: 0, images: 1 };

/// Admits and settles until refused; how many went through.
fn drain(limiter: &Limiter, now: Instant, request: &Request<'_>) -> u64 {
    for count in 0..1_000_000 {
        match limiter.admit(now, request) {
            Verdict::Admitted(ticket) => limiter.settle(now, ticket, USED),
            Verdict::Refused(_) => return count,
        }
    }
    panic!("never refused");
}

const RPM: Dimension = Dimension::RequestsPerMinute;
const TPM: Dimension = Dimension::TokensPerMinute;

#[test]
fn no_table_is_never_unlimited() {
    let limiter = Limiter::new("n".into(), 1);
    assert_eq!(refused(limiter.admit(START, &request("a", 1))).reason, RefusalReason::NoTable);
}

#[test]
fn unknown_names_are_told_apart() {
    let limiter = limiter(table(1, &[]));
    let mut other = request("a", 1);
    other.model = "x";
    assert_eq!(refused(limiter.admit(START, &other)).reason, RefusalReason::UnknownModel);
    assert_eq!(refused(limiter.admit(START, &request("x", 1))).reason, RefusalReason::UnknownTier);
}

#[test]
fn sixty_a_minute_admits_sixty_at_once_and_refuses_the_sixty_first() {
    let limiter = limiter(table(1, &[(RPM, entry(M, Limit::Finite(60)))]));
    assert_eq!(drain(&limiter, START, &request("a", 1)), 60);
    let refusal = refused(limiter.admit(START, &request("a", 1)));
    assert_eq!(refusal.retry_after, Duration::from_secs(1));
    let expected = RefusalReason::Limit { scope: Scope::Key, dimension: RPM, limit: Limit::Finite(60) };
    assert_eq!(refusal.reason, expected);
    // Another key is not touched by it, and the promised wait comes true.
    let _ = admitted(limiter.admit(START, &request("a", 2)));
    assert_eq!(drain(&limiter, at(1.0), &request("a", 1)), 1);
}

#[test]
fn a6_lowered_and_raised_limits_bind_on_the_next_request_and_counters_survive() {
    let key_rpm = |version, rpm| table(version, &[(RPM, entry(M, Limit::Finite(rpm)))]);
    let limiter = limiter(key_rpm(1, 100));
    for _ in 0..40 {
        let ticket = admitted(limiter.admit(START, &request("a", 1)));
        limiter.settle(START, ticket, USED);
    }
    limiter.offer(key_rpm(2, 30), START).unwrap();
    refused(limiter.admit(START, &request("a", 1)));
    let quota = limiter.quotas(START, &Request::new("m", "a", [1; 32]), None)[0].unwrap();
    assert_eq!((quota.limit, quota.remaining), (30, 0));
    limiter.offer(key_rpm(3, 60), START).unwrap();
    assert_eq!(drain(&limiter, START, &request("a", 1)), 20, "40 of 60 stay used");
    limiter.offer(key_rpm(4, 1_000), START).unwrap();
    assert_eq!(drain(&limiter, START, &request("a", 1)), 940);
}

#[test]
fn a_stale_table_changes_nothing_and_a_reused_version_is_an_error() {
    let limiter = limiter(table(5, &[(RPM, only(60, M))]));
    assert!(matches!(limiter.offer(table(4, &[]), START), Ok(Offer::Stale)));
    let mut reused = table(5, &[]);
    reused.stamp.tick += 1;
    assert!(limiter.offer(reused, START).is_err());
    assert_eq!(limiter.held().unwrap().stamp().version, 5);
}

#[test]
fn a7_a_refusal_changes_no_counter() {
    let limits =
        [(RPM, entry(M, Limit::Finite(60))), (TPM, entry(Limit::Finite(6_000_000), Limit::Finite(100)))];
    let limiter = limiter(table(1, &limits));
    drain(&limiter, START, &request("a", 1));
    let before =
        (limiter.quotas(START, &Request::new("m", "a", [1; 32]), None), limiter.report(START, START, 1));
    for _ in 0..100 {
        refused(limiter.admit(START, &request("a", 1)));
    }
    let after = limiter.report(START, START, 1);
    assert_eq!(limiter.quotas(START, &Request::new("m", "a", [1; 32]), None), before.0);
    assert_eq!(after.rows[0].admitted, before.1.rows[0].admitted);
    assert_eq!(after.pools, before.1.pools);
    assert_eq!(after.rows[0].refused_limit.requests, before.1.rows[0].refused_limit.requests + 100);
    // No state is kept for a key that was only ever refused.
    let keys = limiter.keys_held();
    let mut large = request("a", 9);
    large.model = "m";
    limiter.offer(table(2, &[(RPM, entry(Limit::Finite(0), Limit::Finite(60)))]), START).unwrap();
    refused(limiter.admit(START, &large));
    assert_eq!(limiter.keys_held(), keys);
}

#[test]
fn settling_replaces_the_estimate_by_the_use() {
    let limiter = limiter(table(1, &[(TPM, entry(M, Limit::Finite(1_000)))]));
    let mut large = request("a", 1);
    large.output_max = Some(200);
    let ticket = admitted(limiter.admit(START, &large));
    assert_eq!(ticket.reserved_work(), 210);
    let left = |limiter: &Limiter| {
        limiter.quotas(START, &Request::new("m", "a", [1; 32]), None)[1].unwrap().remaining
    };
    assert_eq!(left(&limiter), 790);
    limiter.settle(
        START,
        ticket,
        Settlement::Used { input_tokens: 10, cached_tokens: 0, output_tokens: 40, images: 0 },
    );
    assert_eq!(left(&limiter), 950);
    assert_eq!(limiter.report(START, START, 1).rows[0].admitted.work, 50);
    assert_eq!(limiter.output_expected("m", "a"), Some(40.0));
    // The learned 40 are reserved from now on, and the client's own bound when it is lower.
    let ticket = admitted(limiter.admit(START, &large));
    assert_eq!(ticket.reserved_work(), 50);
    limiter.settle(START, ticket, Settlement::Broken { output_seen: 5 });
    assert_eq!(left(&limiter), 900, "a broken stream costs its estimate at least");
    let ticket = admitted(limiter.admit(START, &large));
    limiter.settle(START, ticket, Settlement::Died { output_seen: 500 });
    assert_eq!(left(&limiter), 390, "and what was seen when that is more");
    let ticket = admitted(limiter.admit(START, &large));
    limiter.settle(START, ticket, Settlement::NotSent);
    assert_eq!(left(&limiter), 390);
    let report = limiter.report(START, START, 1);
    assert_eq!(report.rows[0].admitted.requests, 3);
    assert_eq!((report.pools["p"].upstream_requests, report.pools["p"].upstream_errors), (3, 1));
    assert_eq!(report.pools["p"].in_flight, 0);
    assert_eq!(report.pools["p"].waiting_work, 0);
}

#[test]
fn a_bucket_is_debited_below_empty_and_the_debt_is_paid_by_time() {
    let limiter = limiter(table(1, &[(TPM, entry(M, Limit::Finite(600)))]));
    let mut one = request("a", 1);
    one.output_max = None;
    let ticket = admitted(limiter.admit(START, &one));
    assert_eq!(ticket.reserved_work(), 266);
    limiter.settle(
        START,
        ticket,
        Settlement::Used { input_tokens: 10, cached_tokens: 0, output_tokens: 1_190, images: 0 },
    );
    // 1200 used of 600; the next request needs min(10 + 1190, 600) = 600, so all 1200 must drain.
    assert_eq!(refused(limiter.admit(START, &one)).retry_after, Duration::from_secs(120));
    refused(limiter.admit(at(119.9), &one));
    let _ = admitted(limiter.admit(at(120.0), &one));
}

#[test]
fn h06_a_first_request_on_a_small_limit_is_admitted() {
    let limiter = limiter(table(1, &[(RPM, only(1, Limit::Finite(1))), (TPM, only(3, Limit::Finite(3)))]));
    let mut large = request("a", 1);
    large.output_max = Some(1 << 50);
    large.input_tokens = 100_000;
    let _ = admitted(limiter.admit(START, &large));
    let refusal = refused(limiter.admit(START, &large));
    assert!(refusal.retry_after > Duration::from_secs(60));
}

#[test]
fn zero_means_zero_and_unlimited_is_no_test() {
    for dimension in [RPM, TPM, Dimension::ImagesPerMinute, Dimension::Concurrency] {
        for (zero, scope) in
            [(entry(Limit::Finite(0), M), Scope::Tier), (entry(M, Limit::Finite(0)), Scope::Key)]
        {
            let limiter = limiter(table(1, &[(dimension, zero)]));
            let reason = refused(limiter.admit(START, &request("a", 1))).reason;
            assert_eq!(reason, RefusalReason::Limit { scope, dimension, limit: Limit::Finite(0) });
        }
    }
    let limiter = limiter(table(1, &[]));
    for _ in 0..10_000 {
        let ticket = admitted(limiter.admit(START, &request("a", 1)));
        limiter.settle(START, ticket, USED);
    }
    assert_eq!(limiter.keys_held(), 0, "nothing to count");
}

#[test]
fn i02_a9_forgetting_a_key_never_refills_it() {
    let limiter = Limiter::new("n".into(), 4);
    limiter.offer(table(1, &[(RPM, entry(M, Limit::Finite(60)))]), START).unwrap();
    for key in 0..4 {
        assert_eq!(drain(&limiter, START, &request("a", key)), 60);
    }
    // All four have used up their minute: the next two share what is left of one.
    let shared = drain(&limiter, START, &request("a", 4)) + drain(&limiter, START, &request("a", 5));
    assert_eq!(shared, 60);
    assert_eq!(limiter.keys_held(), 4);
    for key in 0..4 {
        assert_eq!(drain(&limiter, START, &request("a", key)), 0);
    }
    // After a minute all are full and may be forgotten; the newcomers get their own.
    for key in 4..8 {
        assert_eq!(drain(&limiter, at(60.0), &request("a", key)), 60);
    }
    // A key in flight is kept even when its buckets are full.
    let ticket = admitted(limiter.admit(at(200.0), &request("a", 4)));
    for key in 20..40 {
        drain(&limiter, at(201.0), &request("a", key));
    }
    assert_eq!(drain(&limiter, at(201.0), &request("a", 4)), 60);
    limiter.settle(at(201.0), ticket, USED);
    assert_eq!(limiter.keys_held(), 4);
}

#[test]
fn i02_a9_a_key_that_leaves_the_overflow_takes_its_use_along() {
    let limiter = Limiter::new("n".into(), 2);
    limiter.offer(table(1, &[(RPM, entry(M, Limit::Finite(60)))]), START).unwrap();
    let ticket = admitted(limiter.admit(START, &request("a", 0)));
    limiter.settle(START, ticket, USED);
    assert_eq!(drain(&limiter, START, &request("a", 1)), 60);
    assert_eq!(drain(&limiter, START, &request("a", 2)), 60, "from the overflow");
    // Key 0 is full again and makes room; key 2 gets what one second has given back.
    assert_eq!(drain(&limiter, at(1.0), &request("a", 2)), 1);
}

#[test]
fn a_changed_tier_keeps_what_the_key_has_used() {
    let limiter = limiter(table(1, &[(RPM, entry(M, Limit::Finite(60)))]));
    assert_eq!(drain(&limiter, START, &request("a", 1)), 60);
    assert_eq!(drain(&limiter, START, &request("b", 1)), 0);
}

#[test]
fn h07_z8_absurd_numbers_saturate() {
    let limiter = limiter(table(1, &[(TPM, only(1 << 52, Limit::Finite(1 << 52)))]));
    let mut absurd = request("a", 1);
    (absurd.input_tokens, absurd.output_max, absurd.images) = (u64::MAX, Some(u64::MAX), u64::MAX);
    let ticket = admitted(limiter.admit(START, &absurd));
    let most = u64::MAX;
    limiter.settle(
        START,
        ticket,
        Settlement::Used { input_tokens: most, cached_tokens: 0, output_tokens: most, images: most },
    );
    refused(limiter.admit(START, &absurd));
    refused(limiter.admit(Instant(u64::MAX), &absurd));
}
