//! Scores of runs made by hand.

use std::time::Duration;

use super::*;
use crate::sim::law::Ask;
use crate::sim::law::Terms;
use crate::sim::trial::demand::Demand;
use crate::sim::trial::{Happening, Trial};
use crate::unit::Instant;

const SLO: Duration = Duration::from_secs(2);

fn trial() -> Trial {
    Trial { seconds: 100.0, warm: 0.0, ..Trial::default() }
}

/// A ledger in which the pool does 1,000 work a second, and the terms of the trial.
fn ledger(trial: &Trial) -> (Ledger, Terms) {
    let terms = Demand::draw(trial, None, 1).terms;
    let mut ledger = Ledger::new(trial, &terms);
    (0..100).for_each(|at| ledger.sampled(at, 1_000.0, 0.0));
    (ledger, terms)
}

fn at(seconds: f64) -> Instant {
    Instant::ZERO + Duration::from_secs_f64(seconds)
}

/// 1,000 work of prompt and as much of answer, by this key.
fn ask(key: u32) -> Ask {
    let tier = key as usize / 8;
    Ask { id: 1, tier, key, prompt: 1_000, images: 0, output: 400 }
}

/// Offered and admitted at `arrived`, first token and end then.
fn serve(ledger: &mut Ledger, ask: &Ask, arrived: f64, first: f64, ended: f64) {
    ledger.offered(at(arrived), ask, true);
    ledger.admitted(at(arrived), ask);
    ledger.first_token(at(first), at(first).since(at(arrived)));
    let outcome =
        Outcome { ask, arrived: at(arrived), first: Some(at(first)), ended: at(ended), first_attempt: true };
    ledger.served(&outcome, SLO);
}

#[test]
fn work_counts_when_it_is_done_and_only_if_it_was_in_time() {
    let trial = trial();
    let (mut ledger, terms) = ledger(&trial);
    serve(&mut ledger, &ask(0), 10.5, 11.5, 21.5);
    // Its first token is late; then one that is written too slowly.
    serve(&mut ledger, &ask(0), 30.0, 33.0, 40.0);
    serve(&mut ledger, &ask(0), 50.0, 51.0, 51.0 + 0.201 * 400.0);
    ledger.close();
    let delivered: Vec<f64> = ledger.seconds.iter().map(|second| second.delivered.round()).collect();
    assert_eq!(
        &delivered[10..23],
        [0., 1050., 100., 100., 100., 100., 100., 100., 100., 100., 100., 50., 0.]
    );
    assert_eq!(delivered.iter().sum::<f64>(), 2_000.0);
    let report = report(&trial, &terms, &ledger);
    assert_eq!((report.served.round(), report.violation_s), (2_000.0, 2.0));
    assert_eq!((report.ttft_p99, report.ttft_peak), (Some(3.0), Some(3.0)));
}

#[test]
fn the_bound_keeps_what_can_still_be_in_time_and_no_more() {
    let trial = trial();
    let (mut ledger, terms) = ledger(&trial);
    // 20,000 work at once: a second's worth is done, two seconds' worth can wait, the rest is lost.
    (0..10).for_each(|_| ledger.offered(at(5.0), &ask(0), true));
    ledger.close();
    assert_eq!(report(&trial, &terms, &ledger).bound, 3_000.0);
}

#[test]
fn what_dies_with_its_replica_is_nobodys_fault_and_nobodys_merit() {
    let happenings = vec![(20.0, Happening::Die { replicas: vec![0] })];
    let trial = Trial { happenings, ..trial() };
    let (mut ledger, terms) = ledger(&trial);
    let ask = ask(0);
    for arrived in 0..20 {
        ledger.offered(at(f64::from(arrived)), &ask, true);
    }
    let outcome =
        Outcome { ask: &ask, arrived: at(10.0), first: Some(at(11.0)), ended: at(20.0), first_attempt: true };
    ledger.lost(&outcome, 1_800.0);
    ledger.close();
    let report = report(&trial, &terms, &ledger);
    assert_eq!(report.violation_s, 0.0);
    // What is offered in 20 s, and 2 s that wait, less what was done for nothing.
    assert_eq!(report.bound.round(), 22_000.0 - 1_800.0);
    assert_eq!(report.stretches.len(), 2);
    assert_eq!(report.settle_s, Some(2.0), "until nothing of what waited could have been served");
}

#[test]
fn shares_are_fair_by_what_each_key_could_have_had() {
    let trial = trial();
    for (extra, fair) in [(0, true), (6, false)] {
        let (mut ledger, terms) = ledger(&trial);
        for key in 0..4 {
            // Each asks for ten; in turn each is served four, but the first gets the extra.
            for turn in 0..10 {
                let served = turn < 4 || (key == 0 && turn < 4 + extra);
                if served {
                    serve(&mut ledger, &ask(key), f64::from(turn), f64::from(turn) + 1.0, 20.0);
                } else {
                    ledger.offered(at(f64::from(turn)), &ask(key), true);
                }
            }
        }
        ledger.close();
        let jain = report(&trial, &terms, &ledger).jain.unwrap();
        assert_eq!(jain > 0.99, fair, "{jain}");
    }
}

#[test]
fn a_budget_swings_by_its_spread_in_steady_overload_only() {
    let trial = trial();
    for (asked, swing) in [(1, None), (2, Some(0.1))] {
        let (mut ledger, terms) = ledger(&trial);
        for second in 0..100 {
            (0..asked).for_each(|_| ledger.offered(at(f64::from(second)), &ask(0), true));
            let budget = if second % 2 == 0 { 900.0 } else { 1_100.0 };
            ledger.ticked(at(f64::from(second)), Some(budget));
            ledger.sampled(second as usize, 2_500.0, 0.0);
        }
        ledger.close();
        let found = report(&trial, &terms, &ledger).swing;
        assert_eq!(found.map(|swing| (swing * 1e3).round() / 1e3), swing);
    }
}
