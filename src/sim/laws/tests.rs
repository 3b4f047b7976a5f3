//! Each rival against what its source says of it, and the oracle against what nobody exceeds.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a broken promise ends the test"
)]

use std::time::Duration;

use super::*;
use crate::observe::Outcome;
use crate::observe::PoolRound;
use crate::observe::Reading;
use crate::observe::Signals;
use crate::sim::law::Ask;
use crate::sim::law::End;
use crate::sim::law::Seen;
use crate::sim::law::Tier;
use crate::sim::law::Truth;
use crate::unit::Instant;
use crate::unit::ReplicaId;

const NOMINAL: f64 = 10_000.0;

fn terms() -> Terms {
    let tier = |priority, weight, guarantee| Tier { priority, weight, guarantee, keys: 8 };
    Terms {
        provider: false,
        tiers: vec![tier(1, 4.0, 2500.0), tier(2, 2.0, 1000.0), tier(3, 1.0, 200.0)],
        nominal: NOMINAL,
        output_cost: 2.0,
        replicas: 4,
        slots: 256,
        slo: Duration::from_secs(2),
        interval: Duration::from_secs(2),
        delay: Duration::from_secs(1),
        nodes: 1,
        mean_output: 100.0,
    }
}

fn law(name: &str) -> Box<dyn Law> {
    build(name, &terms(), 1).unwrap()
}

fn at(seconds: f64) -> Instant {
    Instant::ZERO + Duration::from_secs_f64(seconds)
}

fn ask(id: u64, tier: usize) -> Ask {
    Ask { id, tier, key: 0, prompt: 800, images: 0, output: 100 }
}

/// Four replicas with `waiting` each.
fn tick(law: &mut dyn Law, now: f64, waiting: f64, kv: f64, first_tokens: u32, late: u32) {
    let reading = |name: &str| Reading {
        replica: ReplicaId::from(name),
        at: at(now),
        outcome: Outcome::Up(Signals { waiting: Some(waiting), ..Signals::default() }),
    };
    let round = PoolRound { replicas: ["a", "b", "c", "d"].map(reading).to_vec(), ..PoolRound::default() };
    law.tick(at(now), &Seen { round: &round, kv: &[kv; 4], first_tokens, late });
}

/// Offers a request of 1000 work `count` times within the second from `from`; how many came in.
fn offer(law: &mut dyn Law, from: f64, count: u64, tier: usize) -> u64 {
    let admit = |n: &u64| {
        let now = at(from + *n as f64 / count as f64);
        law.admit(now, 0, &ask((from * 1e6) as u64 + *n, tier))
    };
    (0..count).filter(admit).count() as u64
}

fn served(ttft: f64) -> End {
    let ttft = Duration::from_secs_f64(ttft);
    End::Served { output: 100, ttft, latency: ttft + Duration::from_secs(10) }
}

/// How many are let in at once.
fn limit(law: &mut dyn Law, now: f64) -> u64 {
    (0..5000).take_while(|n| law.admit(at(now), 0, &ask(9_000_000 + n, 0))).count() as u64
}

#[test]
fn every_name_and_every_variant_of_the_grid_is_a_law_and_no_other() {
    for rival in RIVALS {
        assert!(build(rival.name, &terms(), 1).is_some(), "{}", rival.name);
        for variant in rival.variants() {
            assert!(build(&variant, &terms(), 1).is_some(), "{variant}");
        }
        assert!(build(&format!("{}/other", rival.name), &terms(), 1).is_none(), "{}", rival.name);
    }
    assert!(build("tide", &terms(), 1).is_none(), "ours is not a rival");
}

#[test]
fn none_lets_everything_in() {
    assert_eq!(offer(&mut *law("none"), 0.0, 1000, 2), 1000);
}

#[test]
fn static_rows_are_their_tiers_alone_and_sum_to_nominal() {
    let mut law = law("static");
    // A third of 10 a second each, by keys; the full bucket is another second's.
    assert_eq!(offer(&mut *law, 0.0, 100, 0), 7);
    assert_eq!(offer(&mut *law, 1.0, 100, 0), 3, "two idle tiers leave it nothing");
    assert_eq!(law.budget(), Some(NOMINAL));
    tick(&mut *law, 2.0, 100.0, 1.0, 10, 10);
    assert_eq!(law.budget(), Some(NOMINAL), "nothing moves it");
}

#[test]
fn static_by_the_minute_lets_a_minute_in_at_once() {
    assert_eq!(offer(&mut *law("static/minute"), 0.0, 1000, 0), 204);
}

#[test]
fn aimd_halves_on_a_queue_or_late_first_tokens_and_grows_by_two_percent() {
    for (name, factor) in [("aimd", 0.5), ("aimd/x0.9", 0.9)] {
        let mut law = law(name);
        tick(&mut *law, 2.0, 5.0, 0.0, 100, 5);
        assert_eq!(law.budget(), Some(1.02 * NOMINAL), "at both thresholds there is no overload");
        tick(&mut *law, 4.0, 5.1, 0.0, 100, 0);
        assert_eq!(law.budget(), Some(1.02 * NOMINAL * factor));
        tick(&mut *law, 6.0, 0.0, 0.0, 100, 6);
        assert_eq!(law.budget(), Some(1.02 * NOMINAL * factor * factor));
    }
}

#[test]
fn aimd_holds_while_no_replica_answers() {
    let mut law = law("aimd");
    law.tick(at(2.0), &Seen { round: &PoolRound::default(), kv: &[], first_tokens: 0, late: 0 });
    assert_eq!(law.budget(), Some(NOMINAL));
}

#[test]
fn a_budget_is_split_as_ours_is_and_settled_by_what_was_served() {
    let mut law = law("aimd");
    let mut admitted = [0; 3];
    for step in 0..1600_u32 {
        let now = 0.05 * f64::from(step);
        for (tier, admitted) in admitted.iter_mut().enumerate() {
            let came =
                law.admit(at(now + 0.001 * tier as f64), 0, &ask(u64::from(3 * step) + tier as u64, tier));
            // From a minute on the budget has been at its floor for long.
            *admitted += u32::from(came && now >= 60.0);
        }
        if step % 40 == 39 {
            tick(&mut *law, now + 0.04, 5.1, 0.0, 10, 0);
        }
    }
    assert_eq!(law.budget(), Some(0.05 * NOMINAL));
    // 500 a second do not hold all guarantees: the first priority takes what there is, ten
    // requests of 1000 in 20 seconds, and nobody gets nothing.
    assert!((8..=11).contains(&admitted[0]), "{admitted:?}");
    assert!(admitted[1] <= 3 && admitted[2] <= 3, "{admitted:?}");
}

#[test]
fn what_was_charged_too_much_is_given_back() {
    let mut law = law("static");
    assert_eq!(offer(&mut *law, 0.0, 100, 0), 7);
    // Charged 1000 each; one ended before its first token, one wrote nothing.
    law.done(at(1.0), 0, &ask(0, 0), &End::Abandoned);
    law.done(at(1.0), 0, &ask(1, 0), &End::Lost);
    assert_eq!((0..10).filter(|n| law.admit(at(1.0), 0, &ask(100 + n, 0))).count(), 1, "lost work is not");
}

/// A round of requests with this time to first token, at the limit; a second long.
fn round(law: &mut dyn Law, from: f64, ttft: f64) -> u64 {
    let ids: Vec<u64> = (0..5000)
        .map(|n| (from * 1e6) as u64 + n)
        .take_while(|id| law.admit(at(from), 0, &ask(*id, 0)))
        .collect();
    for (n, id) in ids.iter().enumerate() {
        let now = at(from + 0.9 * n as f64 / ids.len() as f64 + 0.05);
        law.first_token(now, 0, *id, Duration::from_secs_f64(ttft));
    }
    for id in &ids {
        law.done(at(from + 0.99), 0, &ask(*id, 0), &served(ttft));
    }
    ids.len() as u64
}

#[test]
fn gradient2_grows_by_the_queue_while_steady_and_falls_by_a_tenth_at_half_gradient() {
    let mut law = law("gradient2/sized");
    let sizes: Vec<u64> = (0..60).map(|second| round(&mut *law, f64::from(second), 0.2)).collect();
    assert_eq!(sizes[0], 20);
    let grown = sizes[59] - sizes[9];
    // Smoothing 0.2 of a queue of 4 is 0.8 a window.
    assert!((36..=41).contains(&grown), "{sizes:?}");
    let before = round(&mut *law, 60.0, 5.0);
    round(&mut *law, 61.0, 5.0);
    let after = round(&mut *law, 62.0, 5.0);
    // Gradient 0.5, smoothed by 0.2: x0.9 + 0.8 a window.
    let due = 0.9 * (0.9 * before as f64 + 0.8) + 0.8;
    assert!((after as f64 - due).abs() <= 2.0, "{before} to {after}, due {due}");
}

#[test]
fn gradient2_stays_while_half_of_its_limit_is_idle_and_below_its_maximum() {
    let mut law = law("gradient2");
    for second in 0..600 {
        round(&mut *law, f64::from(second), 0.2);
    }
    assert_eq!(limit(&mut *law, 601.0), 200, "the library's maximum");
    let mut idle = self::law("gradient2");
    for second in 0..100 {
        for n in 0..9 {
            let id = second * 10 + n;
            idle.admit(at(second as f64 + 0.1 * n as f64), 0, &ask(id, 0));
            idle.first_token(at(second as f64 + 0.1 * n as f64 + 0.01), 0, id, Duration::from_millis(10));
            idle.done(at(second as f64 + 0.1 * n as f64 + 0.02), 0, &ask(id, 0), &served(0.01));
        }
    }
    assert_eq!(limit(&mut *idle, 101.0), 20);
}

#[test]
fn vegas_grows_without_a_queue_and_shrinks_with_one() {
    let mut law = law("vegas");
    assert_eq!(round(&mut *law, 0.0, 0.2), 20);
    // log10(20) is 1: plus 6 at the samples that began among at least half of the limit, which are
    // the 10th, 13th, 16th and 19th.
    let grown = round(&mut *law, 1.0, 0.2);
    assert_eq!(grown, 44);
    let before = round(&mut *law, 2.0, 2.0);
    let after = round(&mut *law, 3.0, 2.0);
    assert!(after < before, "a tenth of the time is a queue of nine tenths: {before} to {after}");
}

#[test]
fn vegas_shrinks_on_a_drop() {
    let mut law = law("vegas");
    for id in 0..20 {
        assert!(law.admit(at(0.0), 0, &ask(id, 0)));
    }
    law.first_token(at(0.1), 0, 0, Duration::from_millis(100));
    for id in 1..11 {
        law.done(at(30.0), 0, &ask(id, 0), &End::Abandoned);
    }
    // 10 left, at a limit of 20 - 10.
    assert!(!law.admit(at(30.0), 0, &ask(100, 0)));
}

#[test]
fn envoy_probes_with_three_in_flight_then_doubles_and_halves_at_most() {
    let mut law = law("envoy/sized");
    let mut ids = 0..;
    // The probe: 50 requests of a second, three at once.
    let mut now = 0.0;
    let mut seen = 0;
    while seen < 50 {
        let inside: Vec<u64> =
            ids.by_ref().take(10).filter(|id| law.admit(at(now), 0, &ask(*id, 0))).collect();
        assert_eq!(inside.len(), 3);
        now += 1.0;
        for id in inside {
            law.done(at(now), 0, &ask(id, 0), &served(0.1));
            seen += 1;
        }
    }
    let fast = 1.0 / 1.25;
    let mut sizes = Vec::new();
    for latency in [fast, fast, fast, 100.0] {
        let inside: Vec<u64> =
            ids.by_ref().take(3000).take_while(|id| law.admit(at(now), 0, &ask(*id, 0))).collect();
        sizes.push(inside.len());
        now += latency;
        for id in inside {
            law.done(at(now), 0, &ask(id, 0), &served(0.1));
        }
        now += 0.2;
        tick(&mut *law, now, 0.0, 0.0, 0, 0);
    }
    // L = gL + sqrt(gL): with the probe's last sample g = 1.25 and 3 becomes 5; then g is 1.25 / 0.8.
    assert_eq!(sizes, [3, 10, 19, 35]);
    assert_eq!(limit(&mut *law, now), 3, "the probe is due after a minute");
}

#[test]
fn aperture_passes_all_then_cuts_by_severity_and_grows_by_its_integrator() {
    let mut law = law("aperture/waiting5-10s");
    let mut second = 0;
    let mut ten_seconds = |law: &mut dyn Law, waiting: f64| {
        for _ in 0..10 {
            offer(law, f64::from(second), 20, 1);
            second += 1;
            tick(law, f64::from(second), waiting, 0.0, 0, 0);
        }
        law.budget()
    };
    assert_eq!(ten_seconds(&mut *law, 5.0), None, "at its setpoint nothing is limited");
    // Twice the setpoint: half of what was let in, which was all of 20,000 a second.
    assert_eq!(ten_seconds(&mut *law, 10.0), Some(10_000.0));
    let grown = ten_seconds(&mut *law, 0.0).unwrap();
    // What was observed, a half and the bucket, and 0.025 of what came.
    assert!((10_500.0..=12_500.0).contains(&grown), "{grown}");
    let faster = ten_seconds(&mut *law, 0.0).unwrap() - grown;
    assert!((500.0..=1500.0).contains(&faster), "0.05 of what came: {faster}");
}

#[test]
fn aperture_takes_its_setpoint_from_the_long_average() {
    let mut law = law("aperture");
    let mut turn = |second: u32, ttft: f64| {
        offer(&mut *law, f64::from(second), 20, 1);
        law.first_token(at(f64::from(second) + 0.5), 0, 1, Duration::from_secs_f64(ttft));
        tick(&mut *law, f64::from(second) + 0.999, 0.0, 0.0, 1, 0);
        law.budget()
    };
    assert!((0..300).all(|second| turn(second, 1.0).is_none()), "steady is no overload");
    assert!((300..340).any(|second| turn(second, 10.0).is_some()), "ten times is");
}

#[test]
fn saturation_is_the_mean_over_replicas_of_queue_or_memory() {
    for (waiting, kv, lets) in [(4.9, 0.79, true), (5.0, 0.0, false), (0.0, 0.8, false)] {
        let mut law = law("saturation");
        tick(&mut *law, 2.0, waiting, kv, 0, 0);
        assert_eq!(law.admit(at(2.0), 0, &ask(1, 0)), lets, "{waiting} waiting, {kv} of memory");
    }
    let mut lowest = law("saturation/lowest-only");
    tick(&mut *lowest, 2.0, 50.0, 0.0, 0, 0);
    assert_eq!([0, 1, 2].map(|tier| lowest.admit(at(2.0), 0, &ask(1, tier))), [true, true, false]);
    let mut blind = law("saturation");
    blind.tick(at(2.0), &Seen { round: &PoolRound::default(), kv: &[], first_tokens: 0, late: 0 });
    assert!(!blind.admit(at(2.0), 0, &ask(1, 0)), "no endpoint is saturated");
}

#[test]
fn a_reservation_lends_below_its_threshold_and_not_above() {
    let mut law = law("saturation/litellm-tokens");
    // 600 requests of 1000 are a minute's tokens; the last tier's seventh is 86 of them.
    for id in 0..290 {
        assert!(law.admit(at(1.0), 0, &ask(id, 2)), "{id}: half is not used yet");
        law.done(at(1.0), 0, &ask(id, 2), &served(0.1));
    }
    for id in 290..300 {
        assert!(law.admit(at(1.0), 0, &ask(id, 2)));
        law.done(at(1.0), 0, &ask(id, 2), &served(0.1));
    }
    assert!(!law.admit(at(1.0), 0, &ask(300, 2)), "half is used, and it has had more than its part");
    assert!(law.admit(at(1.0), 0, &ask(301, 0)), "the first tier's part is untouched");
    assert!(law.admit(at(61.0), 0, &ask(302, 2)), "a new minute");
}

#[test]
fn the_oracle_keeps_work_waiting_within_the_slo_and_shares_by_true_demand() {
    let mut law = law("oracle");
    let truth = |capacity| Truth { capacity, queued_work: 0.0, replicas: 4, next_second: &[4e3, 8e3, 8e3] };
    law.know(at(0.0), &truth(10_000.0));
    // Three tenths of two seconds are missing and due within one.
    assert_eq!(law.budget(), Some(16_000.0));
    let admitted = (0..100).filter(|id| law.admit(at(0.0), 0, &ask(*id, 0))).count();
    // Half of two seconds at 10 requests a second; the one that passes the mark is let in.
    assert!((10..=13).contains(&admitted), "{admitted}");
    law.know(at(0.1), &truth(5_000.0));
    assert_eq!(law.budget(), Some(0.0), "half the capacity is known at once, and what waits is too much");
    for id in 0..100 {
        law.first_token(at(1.0), 0, id, Duration::from_secs(1));
    }
    law.know(at(1.0), &truth(5_000.0));
    assert_eq!(law.budget(), Some(8_000.0));
    assert!(law.admit(at(1.0), 0, &ask(200, 2)), "nothing waits: idling is nearer than unfairness");
}

#[test]
fn the_oracle_charges_by_true_size() {
    let mut law = law("oracle");
    law.know(at(0.0), &Truth { capacity: 1e5, queued_work: 0.0, replicas: 4, next_second: &[1e6, 1e6, 1e6] });
    for id in 0..40 {
        law.admit(at(0.0), 0, &ask(id, 0));
    }
    // A tier's bucket, which is two thirds of 160,000 deep, is below zero after one that writes
    // for 200,000.
    let long = Ask { output: 100_000, ..ask(100, 1) };
    assert!(law.admit(at(0.0), 0, &long));
    assert!(!law.admit(at(0.0), 0, &ask(101, 1)));
    assert!(law.admit(at(0.0), 0, &ask(102, 2)));
}
