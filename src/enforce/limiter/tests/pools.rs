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
    // Tier b leaves half of the cap.
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

/// What one of four nodes has varies more than its part is large: it may have the root of it more,
/// as far as the pool is not its own. While first tokens come at once twice as much waits, and less
/// once they are late.
#[test]
fn one_node_of_four_has_room_for_the_spread_of_what_it_sees() {
    let mut capped = table(1, &[]);
    pool_of(&mut capped).shares = BTreeMap::from([("n".into(), 250_000)]);
    (pool_of(&mut capped).waiting_work, pool_of(&mut capped).slo_ms) = (Limit::Finite(400), 1_000);
    let fits = |limiter: &Limiter, now: Instant| {
        let tickets: Vec<_> = std::iter::from_fn(|| match limiter.admit(now, &request("a", 1)) {
            Verdict::Admitted(ticket) => Some(ticket),
            Verdict::Refused(_) => None,
        })
        .collect();
        let count = tickets.len();
        tickets.into_iter().for_each(|ticket| limiter.settle(now, ticket, USED));
        count
    };
    // 100 and three quarters of the root of 100 x 10: 124 while nobody knows of a queue, twice.
    let fresh = limiter(capped.clone());
    assert_eq!(fits(&fresh, START), 25);
    let late = limiter(capped.clone());
    let mut ticket = admitted(late.admit(START, &request("a", 1)));
    late.first_token(at(2.0), &mut ticket);
    late.settle(at(2.0), ticket, USED);
    // Half of two seconds count, the whole SLO: half of the room is left, once the pool was full.
    assert_eq!(fits(&late, at(2.0)), 13);
    capped.stamp.version = 2;
    pool_of(&mut capped).in_flight = Limit::Finite(1_000);
    late.offer(capped.clone(), at(2.0)).unwrap();
    assert_eq!(fits(&late, at(2.0)), 7);
    // In flight: one of four, and twice the root of it.
    (pool_of(&mut capped).waiting_work, pool_of(&mut capped).in_flight) = (M, Limit::Finite(64));
    assert_eq!(fits(&limiter(capped), START), 22);
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
    // A quarter of 60 000 a minute for 4 s by the root of a quarter; of the safe 6 000 a minute a
    // tenth for 4 s by the root of a tenth.
    for (node, expected) in [("n", 2_000), ("zero", 126), ("other", 126)] {
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
    assert_eq!(drain(&limiter, at(19.9), &request("a", 1)), 4_000);
    // 4 s of the safe 6 000 a minute.
    assert_eq!(drain(&limiter, at(1_000.0), &request("a", 1)), 400, "safe");
    assert_eq!(drain(&limiter, at(30.0 * 86_400.0), &request("a", 1)), 400);
    let quota = limiter.quotas(at(20.0), &Request::new("m", "a", [1; 32]), None)[0].unwrap();
    assert_eq!(quota.limit, 42_000);
}

#[test]
fn f02_a_restored_table_is_steered_toward_safe_at_once() {
    let limiter = Limiter::new("n".into(), 10);
    limiter.restore(table(7, &[(RPM, only(60_000, M))]), START).unwrap();
    assert_eq!(drain(&limiter, START, &request("a", 1)), 2_800);
    limiter.restore(table(6, &[]), START).unwrap();
    assert_eq!(limiter.held().unwrap().stamp().version, 7, "an older one is not taken back");
    limiter.offer(table(8, &[(RPM, only(60_000, M))]), at(100.0)).unwrap();
    assert_eq!(drain(&limiter, at(100.0), &request("a", 1)), 4_000);
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

#[test]
fn what_a_tier_is_guaranteed_gives_way_to_nobody() {
    let mut capped = table(1, &[]);
    pool_of(&mut capped).waiting_work = Limit::Finite(100);
    let limits = &mut capped.rows[1].limits;
    limits.entry(TPM).and_modify(|entry| entry.guarantee = Limit::Finite(6_000));
    let limiter = limiter(capped);
    // Tier b yields half of the room but for what it is guaranteed: it has all of it.
    let _held: Vec<_> = (0..10).map(|_| admitted(limiter.admit(START, &request("b", 1)))).collect();
    refused(limiter.admit(START, &request("b", 1)));
}
