//! The law, case by case: what it does, and that it says why.

use super::*;
use crate::estimate::{Freshness, PoolDemand};

const REPLICA: f64 = 1000.0;

fn context(tick: u64) -> Context {
    let interval = Duration::from_secs(2);
    Context {
        now: Instant::ZERO + interval * tick as u32,
        interval,
        slo: Duration::from_secs(1),
        safe: 400.0,
    }
}

fn estimate(ready: f64) -> Estimate {
    Estimate {
        freshness: Freshness::Fresh,
        replicas: ready as usize,
        rejected: 0,
        frozen: 0,
        ready,
        ready_before: ready,
        running: 0.0,
        waiting: 0.0,
        delivered: None,
        backlogged: false,
        per_replica: Some(REPLICA),
        capacity: Some(REPLICA * ready),
        running_saturated: Some(16.0),
        output_cost: 1.0,
        loss_confirmed: false,
        latency: None,
    }
}

fn unmeasured(ready: f64) -> Estimate {
    Estimate { per_replica: None, capacity: None, running_saturated: None, ..estimate(ready) }
}

/// Requests of 100 work, some refused or none.
fn demand(admitted: f64, binding: bool) -> PoolDemand {
    let admitted = crate::estimate::demand::Rate { requests: admitted / 100.0, work: admitted };
    PoolDemand { offered: admitted.work, admitted, binding, ..PoolDemand::default() }
}

/// A law at this budget, two intervals after anything happened to it.
fn at(budget: f64) -> Law {
    Law { budget: Some(budget), request_work: Some(100.0), best: budget, ..Law::default() }
}

#[test]
fn it_begins_at_what_is_safe() {
    let decision = Law::default().step(&context(1), &unmeasured(4.0), &demand(0.0, false));
    assert_eq!((decision.budget, decision.reason), (400.0, Reason::Started));
}

#[test]
fn a_pool_that_began_without_signals_is_given_what_is_safe_with_them() {
    let decision = at(1.0).step(&context(5), &unmeasured(4.0), &demand(0.0, false));
    assert_eq!((decision.budget, decision.reason), (400.0, Reason::Started));
}

#[test]
fn before_the_first_backlog_it_grows_by_a_quarter_while_the_limit_binds_and_is_used() {
    let grown = at(1000.0).step(&context(5), &unmeasured(4.0), &demand(900.0, true));
    assert_eq!((grown.budget, grown.reason, grown.motion), (1250.0, Reason::SlowStart, Motion::Steer));
    let idle = at(1000.0).step(&context(5), &unmeasured(4.0), &demand(900.0, false));
    assert_eq!((idle.budget, idle.reason), (1000.0, Reason::NotBinding));
    let unused = at(1000.0).step(&context(5), &unmeasured(4.0), &demand(500.0, true));
    assert_eq!(unused.budget, 1000.0, "a limit that is not used is not raised (RFC 7661)");
}

#[test]
fn a_lost_replica_is_followed_in_one_step() {
    let halved = Estimate { ready_before: 4.0, ..estimate(2.0) };
    let decision = at(4080.0).step(&context(5), &halved, &demand(4000.0, true));
    assert_eq!((decision.budget, decision.reason), (2040.0, Reason::CapacityLost));
    assert_eq!(decision.motion, Motion::Follow);
}

#[test]
fn a_gained_replica_is_followed_up_to_measured_capacity() {
    let doubled = Estimate { ready_before: 2.0, ..estimate(4.0) };
    let decision = at(2000.0).step(&context(5), &doubled, &demand(2000.0, true));
    assert_eq!((decision.budget, decision.reason), (4000.0, Reason::CapacityGained));
    let unknown = Estimate { ready_before: 2.0, ..unmeasured(4.0) };
    let decision = at(2000.0).step(&context(5), &unknown, &demand(100.0, false));
    assert_eq!(decision.budget, 2000.0, "of one more replica nothing is known before a measurement");
}

#[test]
fn a_budget_above_measured_capacity_comes_down_to_it() {
    let decision = at(5000.0).step(&context(5), &estimate(4.0), &demand(4000.0, true));
    assert_eq!((decision.budget, decision.reason), (4000.0 * PROBE_MAX, Reason::CapacityMeasured));
}

#[test]
fn an_overload_is_cut_below_capacity_once_per_feedback_delay() {
    // 40 requests start a second; 16 may wait.
    let crowded = Estimate { waiting: 40.0, ..estimate(4.0) };
    let mut law = at(4000.0);
    let cut = law.step(&context(5), &crowded, &demand(4000.0, true));
    assert_eq!((cut.reason, cut.motion, cut.waiting_threshold), (Reason::Overload, Motion::Steer, 16.0));
    let drain = (40.0 - 8.0) * 100.0 / (std::f64::consts::E * 3.0);
    assert!((cut.budget - (4000.0 - drain)).abs() < 1e-9, "{}", cut.budget);
    let worse = Estimate { waiting: 60.0, ..estimate(4.0) };
    let again = law.step(&context(6), &worse, &demand(4000.0, true));
    assert_eq!((again.budget, again.reason), (cut.budget, Reason::Cooling));
    let later = law.step(&context(7), &worse, &demand(4000.0, true));
    assert!(later.budget < cut.budget && later.reason == Reason::Overload);
    assert!(later.budget >= 0.7 * 4000.0, "no cut goes below 0.7 x capacity");
}

#[test]
fn a_burst_that_may_be_chance_is_no_overload() {
    let some = Estimate { waiting: 19.0, ..estimate(4.0) };
    let decision = at(4000.0).step(&context(5), &some, &demand(4000.0, true));
    assert_eq!((decision.budget, decision.reason), (4000.0, Reason::Backlogged));
}

#[test]
fn without_a_measurement_an_overload_is_cut_by_its_severity_and_at_most_30_percent() {
    let crowded = Estimate { waiting: 500.0, ..unmeasured(4.0) };
    let decision = at(4000.0).step(&context(5), &crowded, &demand(4000.0, true));
    assert!((decision.budget - 2800.0).abs() < 1.0, "{}", decision.budget);
}

#[test]
fn a_queue_that_came_past_the_nodes_does_not_starve_them() {
    let crowded = Estimate { waiting: 500.0, ..estimate(4.0) };
    let decision = at(300.0).step(&context(5), &crowded, &demand(300.0, true));
    assert_eq!((decision.budget, decision.motion), (0.7 * 4000.0, Motion::Follow));
}

#[test]
fn after_a_drain_it_returns_to_capacity_and_probes_only_while_binding() {
    let back = at(3000.0).step(&context(5), &estimate(4.0), &demand(3000.0, false));
    assert_eq!((back.budget, back.reason), (0.97 * 4000.0, Reason::Recovered));
    let idle = at(3900.0).step(&context(5), &estimate(4.0), &demand(3000.0, false));
    assert_eq!((idle.budget, idle.reason), (3900.0, Reason::NotBinding));
    let mut law = at(3900.0);
    let mut budget = 3900.0;
    for tick in 5..40 {
        let decision = law.step(&context(tick), &estimate(4.0), &demand(3900.0, true));
        assert!(decision.budget >= budget && decision.budget <= budget + 0.05 * 4000.0);
        assert_eq!(decision.reason, Reason::Probing);
        budget = decision.budget;
    }
    assert_eq!(budget, PROBE_MAX * 4000.0, "never above capacity times the probe");
}

#[test]
fn a01_a12_signals_that_age_hold_then_drift_to_safe_and_never_raise() {
    let mut law = at(4000.0);
    let held = Estimate { freshness: Freshness::Held, ..estimate(4.0) };
    let decision = law.step(&context(5), &held, &demand(4000.0, true));
    assert_eq!((decision.budget, decision.reason), (4000.0, Reason::SignalsHeld));
    let stale = Estimate { freshness: Freshness::Stale, ..estimate(4.0) };
    let mut budget = 4000.0;
    for tick in 6..120 {
        let decision = law.step(&context(tick), &stale, &demand(4000.0, true));
        assert!(decision.budget <= budget && decision.budget >= 0.7 * budget);
        assert_eq!(decision.reason, Reason::SignalsStale);
        budget = decision.budget;
    }
    assert_eq!(budget, 400.0, "it ends at what is safe");
    let back = law.step(&context(120), &estimate(4.0), &demand(400.0, true));
    assert_eq!((back.budget, back.reason), (400.0 + 0.05 * 4000.0, Reason::Recovered));
    assert_eq!(back.motion, Motion::Steer, "signals that come back are followed without a step");
    let below = at(300.0).step(&context(5), &stale, &demand(0.0, false));
    assert_eq!(below.budget, 300.0, "drifting to safe never raises");
}

#[test]
fn b03_after_a_pause_of_the_loop_nothing_rises_at_the_first_look() {
    let mut law = at(3000.0);
    law.step(&context(5), &estimate(4.0), &demand(3000.0, true));
    let before = law.budget.unwrap();
    let first = law.step(&context(305), &estimate(5.0), &demand(3000.0, true));
    assert_eq!((first.budget, first.reason), (before, Reason::SignalsHeld));
    let next = law.step(&context(306), &estimate(5.0), &demand(3000.0, true));
    assert!(next.budget > before, "and then it goes on");
    let mut law = at(3000.0);
    law.step(&context(5), &estimate(4.0), &demand(3000.0, true));
    let lost = Estimate { ready_before: 4.0, ..estimate(1.0) };
    assert!(law.step(&context(305), &lost, &demand(3000.0, true)).budget < 1100.0, "a loss is followed");
}

#[test]
fn a_lost_pool_keeps_a_budget_by_which_it_can_be_seen_to_recover() {
    let gone = Estimate { ready_before: 4.0, ..estimate(0.0) };
    let mut law = at(4000.0);
    let decision = law.step(&context(5), &gone, &demand(0.0, true));
    assert_eq!(decision.budget, FLOOR * 4000.0);
    assert!(decision.waiting_work > 0.0 && decision.in_flight.is_some_and(|room| room >= 1.0));
    let back = Estimate { ready_before: 0.0, ..estimate(4.0) };
    let decision = law.step(&context(6), &back, &demand(0.0, true));
    assert_eq!((decision.budget, decision.reason), (0.97 * 4000.0, Reason::CapacityGained));
}

#[test]
fn waiting_room_is_the_slo_worth_of_capacity() {
    let decision = at(4000.0).step(&context(5), &estimate(4.0), &demand(4000.0, false));
    assert_eq!(decision.waiting_work, 0.75 * 4000.0);
    assert_eq!(decision.in_flight, Some(1.1 * 4.0 * 16.0 + 30.0));
    let unknown = at(1000.0).step(&context(5), &unmeasured(4.0), &demand(1000.0, false));
    assert_eq!((unknown.waiting_work, unknown.in_flight), (0.75 * 1000.0, None));
}

#[test]
fn a_burst_of_a_few_requests_more_than_poisson_allows_is_no_overload() {
    // Of arrivals that come one by one 28 where 16 are expected would be significant.
    let some = Estimate { waiting: 28.0, ..estimate(4.0) };
    let decision = at(4000.0).step(&context(5), &some, &demand(4000.0, true));
    assert_eq!(decision.reason, Reason::Backlogged);
}

#[test]
fn a_probe_comes_back_to_where_it_was_cut_slowly_and_goes_on_from_there() {
    let cut_at = context(5).now;
    let mut law = Law { cut_from: 4000.0, cut_to: 0.97 * 4000.0, cut_at, ..at(3900.0) };
    let soon = law.step(&context(7), &estimate(4.0), &demand(3900.0, true));
    assert_eq!(soon.reason, Reason::Probing);
    assert!((3900.0..4000.0).contains(&soon.budget), "{} after 4 s", soon.budget);
    let later = (8..=11).map(|tick| law.step(&context(tick), &estimate(4.0), &demand(3900.0, true)).budget);
    let later = later.last().unwrap();
    assert!((4000.0..4040.0).contains(&later), "{later} after 12 s");
}

#[test]
fn before_the_first_backlog_a_lost_replica_is_followed_too() {
    let halved = Estimate { ready_before: 4.0, ..unmeasured(2.0) };
    let decision = at(4000.0).step(&context(5), &halved, &demand(1000.0, false));
    assert_eq!((decision.budget, decision.reason), (2000.0, Reason::CapacityLost));
}
