//! The limiter's promises, one test each; the seeded ones compare with a model in floating point.

use std::collections::BTreeMap;

use super::*;
use crate::enforce::ticket::Settlement;
use crate::unit::WorkUnit;
use crate::wire::{Entry, PoolEntry, Row, Stamp};

const START: Instant = Instant(3_600_000_000_000);
const M: Limit = Limit::Unlimited;

fn at(seconds: f64) -> Instant {
    START + Duration::from_secs_f64(seconds)
}

fn entry(tier: Limit, key: Limit) -> Entry {
    let safe = tier.finite().map_or(M, |tier| Limit::Finite(tier.min(6_000)));
    Entry { tier_limit: tier, key_limit: key, safe, ceiling: M }
}

fn only(tier: u64, key: Limit) -> Entry {
    entry(Limit::Finite(tier), key)
}

/// One pool `p`, model `m`, tiers `a` (yields nothing) and `b` (yields half).
fn table(version: u64, limits: &[(Dimension, Entry)]) -> LimitTable {
    let mut limits: BTreeMap<_, _> = limits.iter().copied().collect();
    limits.entry(Dimension::TokensPerMinute).or_insert(entry(M, M));
    let row = |tier: &str, yields| Row {
        model: "m".into(),
        tier: tier.into(),
        pool: "p".into(),
        yields,
        limits: limits.clone(),
    };
    let pool = PoolEntry {
        unit: WorkUnit::Tokens,
        output_cost_milli: 1_000,
        budget: M,
        waiting_work: M,
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
    }
}

fn pool_of(table: &mut LimitTable) -> &mut PoolEntry {
    table.pools.values_mut().next().unwrap()
}

fn limiter(table: LimitTable) -> Limiter {
    let mut limiter = Limiter::new("n".into(), 100);
    limiter.offer(table, START).unwrap();
    limiter
}

fn request(tier: &str, key: u8) -> Request<'_> {
    Request {
        model: "m",
        tier,
        key: [key; 32],
        input_tokens: 10,
        output_max: Some(0),
        images: 1,
        streamed: true,
    }
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

const USED: Settlement = Settlement::Used { input_tokens: 10, output_tokens: 0, images: 1 };

/// Admits and settles until refused; how many went through.
fn drain(limiter: &mut Limiter, now: Instant, request: &Request<'_>) -> u64 {
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
    let mut limiter = Limiter::new("n".into(), 1);
    assert_eq!(refused(limiter.admit(START, &request("a", 1))).reason, RefusalReason::NoTable);
}

#[test]
fn unknown_names_are_told_apart() {
    let mut limiter = limiter(table(1, &[]));
    let mut other = request("a", 1);
    other.model = "x";
    assert_eq!(refused(limiter.admit(START, &other)).reason, RefusalReason::UnknownModel);
    assert_eq!(refused(limiter.admit(START, &request("x", 1))).reason, RefusalReason::UnknownTier);
}

#[test]
fn sixty_a_minute_admits_sixty_at_once_and_refuses_the_sixty_first() {
    let mut limiter = limiter(table(1, &[(RPM, entry(M, Limit::Finite(60)))]));
    assert_eq!(drain(&mut limiter, START, &request("a", 1)), 60);
    let refusal = refused(limiter.admit(START, &request("a", 1)));
    assert_eq!(refusal.retry_after, Duration::from_secs(1));
    let expected = RefusalReason::Limit { scope: Scope::Key, dimension: RPM, limit: Limit::Finite(60) };
    assert_eq!(refusal.reason, expected);
    // Another key is not touched by it, and the promised wait comes true.
    let _ = admitted(limiter.admit(START, &request("a", 2)));
    assert_eq!(drain(&mut limiter, at(1.0), &request("a", 1)), 1);
}

#[test]
fn a6_lowered_and_raised_limits_bind_on_the_next_request_and_counters_survive() {
    let key_rpm = |version, rpm| table(version, &[(RPM, entry(M, Limit::Finite(rpm)))]);
    let mut limiter = limiter(key_rpm(1, 100));
    for _ in 0..40 {
        let ticket = admitted(limiter.admit(START, &request("a", 1)));
        limiter.settle(START, ticket, USED);
    }
    limiter.offer(key_rpm(2, 30), START).unwrap();
    refused(limiter.admit(START, &request("a", 1)));
    let quota = limiter.quotas(START, "m", "a", [1; 32])[0].unwrap();
    assert_eq!((quota.limit, quota.remaining), (30, 0));
    limiter.offer(key_rpm(3, 60), START).unwrap();
    assert_eq!(drain(&mut limiter, START, &request("a", 1)), 20, "40 of 60 stay used");
    limiter.offer(key_rpm(4, 1_000), START).unwrap();
    assert_eq!(drain(&mut limiter, START, &request("a", 1)), 940);
}

#[test]
fn a_stale_table_changes_nothing_and_a_reused_version_is_an_error() {
    let mut limiter = limiter(table(5, &[(RPM, only(60, M))]));
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
    let mut limiter = limiter(table(1, &limits));
    drain(&mut limiter, START, &request("a", 1));
    let before = (limiter.quotas(START, "m", "a", [1; 32]), limiter.report(START, START, 1));
    for _ in 0..100 {
        refused(limiter.admit(START, &request("a", 1)));
    }
    let after = limiter.report(START, START, 1);
    assert_eq!(limiter.quotas(START, "m", "a", [1; 32]), before.0);
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
    let mut limiter = limiter(table(1, &[(TPM, entry(M, Limit::Finite(1_000)))]));
    let mut large = request("a", 1);
    large.output_max = Some(200);
    let ticket = admitted(limiter.admit(START, &large));
    assert_eq!(ticket.reserved_work(), 210);
    let left = |limiter: &Limiter| limiter.quotas(START, "m", "a", [1; 32])[1].unwrap().remaining;
    assert_eq!(left(&limiter), 790);
    limiter.settle(START, ticket, Settlement::Used { input_tokens: 10, output_tokens: 40, images: 0 });
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
    let mut limiter = limiter(table(1, &[(TPM, entry(M, Limit::Finite(600)))]));
    let mut one = request("a", 1);
    one.output_max = None;
    let ticket = admitted(limiter.admit(START, &one));
    assert_eq!(ticket.reserved_work(), 266);
    limiter.settle(START, ticket, Settlement::Used { input_tokens: 10, output_tokens: 1_190, images: 0 });
    // 1200 used of 600; the next request needs min(10 + 1190, 600) = 600, so all 1200 must drain.
    assert_eq!(refused(limiter.admit(START, &one)).retry_after, Duration::from_secs(120));
    refused(limiter.admit(at(119.9), &one));
    let _ = admitted(limiter.admit(at(120.0), &one));
}

#[test]
fn h06_a_first_request_on_a_small_limit_is_admitted() {
    let mut limiter =
        limiter(table(1, &[(RPM, only(1, Limit::Finite(1))), (TPM, only(3, Limit::Finite(3)))]));
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
            let mut limiter = limiter(table(1, &[(dimension, zero)]));
            let reason = refused(limiter.admit(START, &request("a", 1))).reason;
            assert_eq!(reason, RefusalReason::Limit { scope, dimension, limit: Limit::Finite(0) });
        }
    }
    let mut limiter = limiter(table(1, &[]));
    for _ in 0..10_000 {
        let ticket = admitted(limiter.admit(START, &request("a", 1)));
        limiter.settle(START, ticket, USED);
    }
    assert_eq!(limiter.keys_held(), 0, "nothing to count");
}

#[test]
fn a_node_holds_its_share_and_an_unlisted_one_its_part_of_safe() {
    let mut shared = table(1, &[(RPM, only(60_000, M))]);
    pool_of(&mut shared).shares = BTreeMap::from([("n".into(), 250_000), ("zero".into(), 0)]);
    pool_of(&mut shared).unlisted_share = 100_000;
    // Two seconds of 60 000 a minute are 2 000; of the safe 6 000 a minute, 200.
    for (node, expected) in [("n", 500), ("zero", 20), ("other", 20)] {
        let mut limiter = Limiter::new(node.into(), 10);
        limiter.offer(shared.clone(), START).unwrap();
        assert_eq!(drain(&mut limiter, START, &request("a", 1)), expected, "{node}");
    }
}

#[test]
fn a_small_key_on_a_small_share_still_gets_one_a_minute() {
    let mut shared = table(1, &[(RPM, entry(M, Limit::Finite(5)))]);
    pool_of(&mut shared).shares = BTreeMap::from([("n".into(), 1_000)]);
    let mut limiter = limiter(shared);
    assert_eq!(drain(&mut limiter, START, &request("a", 1)), 1);
    assert_eq!(refused(limiter.admit(START, &request("a", 1))).retry_after, Duration::from_secs(60));
}

#[test]
fn n2_without_renewal_the_tier_drifts_to_safe_and_stays_there() {
    let mut limiter = limiter(table(1, &[(RPM, only(60_000, M))]));
    assert_eq!(drain(&mut limiter, at(19.9), &request("a", 1)), 2_000);
    // 70 % of it in the first interval past the validity: 1400 in two seconds.
    assert_eq!(drain(&mut limiter, at(1_000.0), &request("a", 1)), 200, "safe");
    assert_eq!(drain(&mut limiter, at(30.0 * 86_400.0), &request("a", 1)), 200);
    let quota = limiter.quotas(at(20.0), "m", "a", [1; 32])[0].unwrap();
    assert_eq!(quota.limit, 42_000);
}

#[test]
fn f02_a_restored_table_is_steered_toward_safe_at_once() {
    let mut limiter = Limiter::new("n".into(), 10);
    limiter.restore(table(7, &[(RPM, only(60_000, M))]), START).unwrap();
    assert_eq!(drain(&mut limiter, START, &request("a", 1)), 1_400);
    limiter.restore(table(6, &[]), START).unwrap();
    assert_eq!(limiter.held().unwrap().stamp().version, 7, "an older one is not taken back");
    limiter.offer(table(8, &[(RPM, only(60_000, M))]), at(100.0)).unwrap();
    assert_eq!(drain(&mut limiter, at(100.0), &request("a", 1)), 2_000);
}

#[test]
fn a9_forgetting_a_key_never_refills_it() {
    let mut limiter = Limiter::new("n".into(), 4);
    limiter.offer(table(1, &[(RPM, entry(M, Limit::Finite(60)))]), START).unwrap();
    for key in 0..4 {
        assert_eq!(drain(&mut limiter, START, &request("a", key)), 60);
    }
    // All four have used up their minute: the next two share what is left of one.
    let shared = drain(&mut limiter, START, &request("a", 4)) + drain(&mut limiter, START, &request("a", 5));
    assert_eq!(shared, 60);
    assert_eq!(limiter.keys_held(), 4);
    for key in 0..4 {
        assert_eq!(drain(&mut limiter, START, &request("a", key)), 0);
    }
    // After a minute all are full and may be forgotten; the newcomers get their own.
    for key in 4..8 {
        assert_eq!(drain(&mut limiter, at(60.0), &request("a", key)), 60);
    }
    // A key in flight is kept even when its buckets are full.
    let ticket = admitted(limiter.admit(at(200.0), &request("a", 4)));
    for key in 20..40 {
        drain(&mut limiter, at(201.0), &request("a", key));
    }
    assert_eq!(drain(&mut limiter, at(201.0), &request("a", 4)), 60);
    limiter.settle(at(201.0), ticket, USED);
    assert_eq!(limiter.keys_held(), 4);
}

#[test]
fn a_changed_tier_keeps_what_the_key_has_used() {
    let mut limiter = limiter(table(1, &[(RPM, entry(M, Limit::Finite(60)))]));
    assert_eq!(drain(&mut limiter, START, &request("a", 1)), 60);
    assert_eq!(drain(&mut limiter, START, &request("b", 1)), 0);
}

#[test]
fn a8_concurrency_is_the_limit_times_the_share_rounded_up() {
    let three = entry(M, Limit::Finite(3));
    let mut shared = table(1, &[(Dimension::Concurrency, three)]);
    pool_of(&mut shared).shares = BTreeMap::from([("n".into(), 500_000)]);
    let mut limiter = limiter(shared);
    let first = admitted(limiter.admit(START, &request("a", 1)));
    let second = admitted(limiter.admit(START, &request("a", 1)));
    let refusal = refused(limiter.admit(START, &request("a", 1)));
    assert!(matches!(refusal.reason, RefusalReason::Limit { dimension: Dimension::Concurrency, .. }));
    limiter.settle(START, first, Settlement::NotSent);
    let third = admitted(limiter.admit(START, &request("a", 1)));
    // H16: a limit lowered below what is active lets none in until it is below.
    limiter.offer(table(2, &[(Dimension::Concurrency, entry(M, Limit::Finite(1)))]), START).unwrap();
    limiter.settle(START, second, USED);
    refused(limiter.admit(START, &request("a", 1)));
    limiter.settle(START, third, USED);
    let _ = admitted(limiter.admit(START, &request("a", 1)));
}

#[test]
fn waiting_work_is_refused_by_tier_and_one_large_request_is_never_starved() {
    let mut capped = table(1, &[]);
    pool_of(&mut capped).waiting_work = Limit::Finite(100);
    let mut limiter = limiter(capped);
    let mut large = request("b", 1);
    large.input_tokens = 100_000;
    let mut first = admitted(limiter.admit(START, &large));
    let room = Refusal { reason: RefusalReason::Capacity { cap: Cap::WaitingWork }, retry_after: RETRY_SOON };
    assert_eq!(refused(limiter.admit(START, &request("a", 1))), room);
    limiter.first_token(START, &mut first);
    limiter.first_token(START, &mut first);
    // Tier b leaves half of the cap: it stops at 50, tier a at 100.
    let mut tickets = Vec::new();
    for (tier, count) in [("b", 5), ("a", 5)] {
        for _ in 0..count {
            tickets.push(admitted(limiter.admit(START, &request(tier, 1))));
        }
        assert_eq!(refused(limiter.admit(START, &request(tier, 1))), room);
    }
    for ticket in tickets {
        limiter.settle(START, ticket, Settlement::Broken { output_seen: 0 });
    }
    limiter.settle(START, first, USED);
    let report = limiter.report(START, START, 1);
    assert_eq!((report.pools["p"].waiting_work, report.pools["p"].in_flight), (0, 0));
    assert_eq!(report.rows.iter().map(|row| row.refused_capacity.requests).sum::<u64>(), 3);
}

#[test]
fn requests_in_flight_are_capped_by_tier_and_a_small_pool_keeps_one_slot() {
    let mut capped = table(1, &[]);
    pool_of(&mut capped).in_flight = Limit::Finite(4);
    let mut limiter = limiter(capped.clone());
    let tickets: Vec<_> = (0..2).map(|_| admitted(limiter.admit(START, &request("b", 1)))).collect();
    let refusal = refused(limiter.admit(START, &request("b", 1)));
    assert_eq!(refusal.reason, RefusalReason::Capacity { cap: Cap::InFlight });
    let _ = admitted(limiter.admit(START, &request("a", 1)));
    drop(tickets);
    capped.stamp.version = 2;
    pool_of(&mut capped).in_flight = Limit::Finite(1);
    let mut small = Limiter::new("n".into(), 1);
    small.offer(capped.clone(), START).unwrap();
    let _ = admitted(small.admit(START, &request("b", 1)));
    refused(small.admit(START, &request("a", 1)));
    capped.stamp.version = 3;
    pool_of(&mut capped).in_flight = Limit::Finite(0);
    let mut closed = Limiter::new("n".into(), 1);
    closed.offer(capped, START).unwrap();
    refused(closed.admit(START, &request("a", 1)));
}

#[test]
fn a_row_that_leaves_and_returns_keeps_its_counters() {
    let limits = [(RPM, entry(M, Limit::Finite(60)))];
    let mut limiter = limiter(table(1, &limits));
    assert_eq!(drain(&mut limiter, START, &request("a", 1)), 60);
    let open = admitted(limiter.admit(START, &request("a", 2)));
    let mut without = table(2, &limits);
    without.rows.remove(0);
    limiter.offer(without, START).unwrap();
    assert_eq!(refused(limiter.admit(START, &request("a", 1))).reason, RefusalReason::UnknownTier);
    limiter.settle(START, open, USED);
    limiter.offer(table(3, &limits), START).unwrap();
    refused(limiter.admit(START, &request("a", 1)));
    assert_eq!(limiter.report(START, START, 1).rows[0].admitted.requests, 61);
}

#[test]
fn work_follows_the_pools_unit() {
    for (unit, expected) in [(WorkUnit::Tokens, 10 + 3 * 20), (WorkUnit::Requests, 1), (WorkUnit::Images, 4)]
    {
        let mut units = table(1, &[(unit.dimension(), entry(M, M))]);
        pool_of(&mut units).unit = unit;
        pool_of(&mut units).output_cost_milli = 3_000;
        let mut limiter = limiter(units);
        let mut one = request("a", 1);
        one.output_max = Some(20);
        one.images = 4;
        let ticket = admitted(limiter.admit(START, &one));
        assert_eq!(ticket.reserved_work(), expected);
        limiter.settle(START, ticket, Settlement::NotSent);
    }
}

#[test]
fn z8_absurd_numbers_saturate() {
    let mut limiter = limiter(table(1, &[(TPM, only(1 << 52, Limit::Finite(1 << 52)))]));
    let mut absurd = request("a", 1);
    (absurd.input_tokens, absurd.output_max, absurd.images) = (u64::MAX, Some(u64::MAX), u64::MAX);
    let ticket = admitted(limiter.admit(START, &absurd));
    let most = u64::MAX;
    limiter.settle(START, ticket, Settlement::Used { input_tokens: most, output_tokens: most, images: most });
    refused(limiter.admit(START, &absurd));
    refused(limiter.admit(Instant(u64::MAX), &absurd));
}

/// Random traffic, swaps and settlements against a plain re-computation.
#[cfg(feature = "sim")]
mod seeded {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// used / drained, as the definition has it.
    struct Model {
        used: f64,
        at: f64,
        limit: f64,
    }

    impl Model {
        fn touch(&mut self, now: f64, limit: f64) {
            self.used = (self.used - (now - self.at) * limit.min(self.limit) / 60.0).max(0.0);
            (self.at, self.limit) = (now, limit);
        }
    }

    #[test]
    fn admission_equals_the_model_and_every_promised_wait_comes_true() {
        for seed in 0..40 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let mut tpm: u64 = rng.random_range(600..60_000);
            let mut version = 1;
            let tables = |version, tpm| table(version, &[(TPM, entry(M, Limit::Finite(tpm)))]);
            let mut limiter = limiter(tables(1, tpm));
            let mut model = Model { used: 0.0, at: 0.0, limit: tpm as f64 };
            let (mut now, mut open) = (0.0, Vec::new());
            let mut one = request("a", 1);
            for step in 0..500 {
                now += rng.random_range(0.0..2.0);
                let instant = at(now);
                if rng.random_bool(0.1) {
                    (version, tpm) = (version + 1, rng.random_range(600..60_000));
                    limiter.offer(tables(version, tpm), instant).unwrap();
                }
                model.touch(now, tpm as f64);
                if rng.random_bool(0.4) && !open.is_empty() {
                    let ticket: Ticket = open.swap_remove(rng.random_range(0..open.len()));
                    let used = rng.random_range(0..2_000);
                    model.used = (model.used + used as f64 - ticket.reserved_work() as f64).max(0.0);
                    let outcome = Settlement::Used { input_tokens: used, output_tokens: 0, images: 0 };
                    limiter.settle(instant, ticket, outcome);
                    continue;
                }
                one.input_tokens = rng.random_range(1..2_000);
                let cost = (one.input_tokens as f64).min(tpm as f64);
                let slack = tpm as f64 - model.used - cost;
                match limiter.admit(instant, &one) {
                    Verdict::Admitted(ticket) => {
                        assert!(slack > -1e-3, "seed {seed} step {step}: {slack} short");
                        model.used += ticket.reserved_work() as f64;
                        open.push(ticket);
                    }
                    Verdict::Refused(refusal) => {
                        assert!(slack < 1e-3, "seed {seed} step {step}: {slack} left");
                        let wait = -slack * 60.0 / tpm as f64;
                        let promised = refusal.retry_after.as_secs_f64();
                        assert!((promised - wait).abs() < 1e-3, "seed {seed}: {promised} is not {wait}");
                        now += refusal.retry_after.as_secs_f64() + 1e-6;
                        model.touch(now, tpm as f64);
                        let ticket = admitted(limiter.admit(at(now), &one));
                        model.used += ticket.reserved_work() as f64;
                        open.push(ticket);
                    }
                }
            }
            for ticket in open {
                limiter.settle(at(now), ticket, USED);
            }
            assert_eq!(limiter.report(at(now), START, 1).pools["p"].in_flight, 0);
        }
    }
}
