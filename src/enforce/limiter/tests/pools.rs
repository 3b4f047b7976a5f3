//! Shares, drift, pool caps and everything else the table says about a node's part.

use super::*;

#[test]
fn a8_concurrency_is_the_limit_times_the_share_rounded_up() {
    let three = entry(M, Limit::Finite(3));
    let mut shared = table(1, &[(Dimension::Concurrency, three)]);
    pool_of(&mut shared).shares = BTreeMap::from([("n".into(), 500_000)]);
    let limiter = limiter(shared);
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
    let limiter = limiter(capped);
    let mut large = request("b", 1);
    large.input_tokens = 100_000;
    let mut first = admitted(limiter.admit(START, &large));
    let room = Refusal::new(RefusalReason::Capacity { cap: Cap::WaitingWork }, RETRY_SOON);
    assert_eq!(refused(limiter.admit(START, &request("a", 1))), room);
    limiter.first_token(START, &mut first);
    limiter.first_token(START, &mut first);
    // Tier b leaves half of the cap: it stops at 50 and the root of 50 x 10, tier a at 100 and the
    // root of 100 x 10.
    let mut tickets = Vec::new();
    for (tier, count) in [("b", 8), ("a", 6)] {
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
    let limiter = limiter(capped.clone());
    let tickets: Vec<_> = (0..2).map(|_| admitted(limiter.admit(START, &request("b", 1)))).collect();
    let refusal = refused(limiter.admit(START, &request("b", 1)));
    assert_eq!(refusal.reason, RefusalReason::Capacity { cap: Cap::InFlight });
    let _ = admitted(limiter.admit(START, &request("a", 1)));
    drop(tickets);
    capped.stamp.version = 2;
    pool_of(&mut capped).in_flight = Limit::Finite(1);
    let small = Limiter::new("n".into(), 1);
    small.offer(capped.clone(), START).unwrap();
    let _ = admitted(small.admit(START, &request("b", 1)));
    refused(small.admit(START, &request("a", 1)));
    capped.stamp.version = 3;
    pool_of(&mut capped).in_flight = Limit::Finite(0);
    let closed = Limiter::new("n".into(), 1);
    closed.offer(capped, START).unwrap();
    refused(closed.admit(START, &request("a", 1)));
}

#[test]
fn a_row_that_leaves_and_returns_keeps_its_counters() {
    let limits = [(RPM, entry(M, Limit::Finite(60)))];
    let limiter = limiter(table(1, &limits));
    assert_eq!(drain(&limiter, START, &request("a", 1)), 60);
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
        let limiter = limiter(units);
        let mut one = request("a", 1);
        one.output_max = Some(20);
        one.images = 4;
        let ticket = admitted(limiter.admit(START, &one));
        assert_eq!(ticket.reserved_work(), expected);
        limiter.settle(START, ticket, Settlement::NotSent);
    }
}

#[test]
fn a_node_holds_its_share_and_an_unlisted_one_its_part_of_safe() {
    let mut shared = table(1, &[(RPM, only(60_000, M))]);
    pool_of(&mut shared).shares = BTreeMap::from([("n".into(), 250_000), ("zero".into(), 0)]);
    pool_of(&mut shared).unlisted_share = 100_000;
    // A quarter of 60 000 a minute for 2.8 s by the root of a quarter; of the safe 6 000 a minute a
    // tenth for 2.8 s by the root of a tenth.
    for (node, expected) in [("n", 1_400), ("zero", 88), ("other", 88)] {
        let limiter = Limiter::new(node.into(), 10);
        limiter.offer(shared.clone(), START).unwrap();
        assert_eq!(drain(&limiter, START, &request("a", 1)), expected, "{node}");
    }
}

#[test]
fn a_small_key_on_a_small_share_still_gets_one_a_minute() {
    let mut shared = table(1, &[(RPM, entry(M, Limit::Finite(5)))]);
    pool_of(&mut shared).shares = BTreeMap::from([("n".into(), 1_000)]);
    let limiter = limiter(shared);
    assert_eq!(drain(&limiter, START, &request("a", 1)), 1);
    assert_eq!(refused(limiter.admit(START, &request("a", 1))).retry_after, Duration::from_secs(60));
}

#[test]
fn n2_without_renewal_the_tier_drifts_to_safe_and_stays_there() {
    let limiter = limiter(table(1, &[(RPM, only(60_000, M))]));
    assert_eq!(drain(&limiter, at(19.9), &request("a", 1)), 2_800);
    // 2.8 s of the safe 6 000 a minute.
    assert_eq!(drain(&limiter, at(1_000.0), &request("a", 1)), 280, "safe");
    assert_eq!(drain(&limiter, at(30.0 * 86_400.0), &request("a", 1)), 280);
    let quota = limiter.quotas(at(20.0), &Request::new("m", "a", [1; 32]), None)[0].unwrap();
    assert_eq!(quota.limit, 42_000);
}

#[test]
fn f02_a_restored_table_is_steered_toward_safe_at_once() {
    let limiter = Limiter::new("n".into(), 10);
    limiter.restore(table(7, &[(RPM, only(60_000, M))]), START).unwrap();
    assert_eq!(drain(&limiter, START, &request("a", 1)), 1_960);
    limiter.restore(table(6, &[]), START).unwrap();
    assert_eq!(limiter.held().unwrap().stamp().version, 7, "an older one is not taken back");
    limiter.offer(table(8, &[(RPM, only(60_000, M))]), at(100.0)).unwrap();
    assert_eq!(drain(&limiter, at(100.0), &request("a", 1)), 2_800);
}

#[test]
fn a_tier_that_yields_all_of_a_pool_still_has_one_slot_of_it() {
    let mut capped = table(1, &[]);
    pool_of(&mut capped).in_flight = Limit::Finite(4);
    capped.rows[1].yields.in_flight = PPM;
    let limiter = limiter(capped);
    let _held = admitted(limiter.admit(START, &request("b", 1)));
    refused(limiter.admit(START, &request("b", 1)));
}
