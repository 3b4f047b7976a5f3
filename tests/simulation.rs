//! Seeds of the simulator: every promise, under faults and after healing.
//!
//! `TIDEGATE_SEEDS=N` runs N seeds (default 20), `TIDEGATE_SEED=S` one alone.
#![cfg(feature = "sim")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tidegate::estimate::Freshness;
use tidegate::sim::Fault;
use tidegate::sim::Outcome;
use tidegate::sim::Scenario;
use tidegate::sim::Seen;
use tidegate::sim::Untrue;
use tidegate::sim::World;
use tidegate::sim::alone;
use tidegate::unit::{Clock, Instant, SystemClock};

const SECONDS: f64 = 600.0;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn run(seed: u64) -> Outcome {
    World::new(Scenario::draw(seed, SECONDS)).run()
}

#[test]
fn every_promise_holds_for_every_seed() {
    let seeds: Vec<u64> = match number("TIDEGATE_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("TIDEGATE_SEEDS").unwrap_or(20)).collect(),
    };
    let clock = SystemClock::starting_at(Instant::ZERO);
    // Seeds are worlds of their own: as many side by side as there are processors.
    let next = AtomicUsize::new(0);
    let take = || {
        let mut outcomes = Vec::new();
        while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
            outcomes.push((*seed, run(*seed)));
        }
        outcomes
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let outcomes: Vec<(u64, Outcome)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(take)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a world that does not panic")).collect()
    });
    let mut outcomes: BTreeMap<u64, Outcome> = outcomes.into_iter().collect();
    let (mut events, mut offered) = (0, 0);
    for (seed, outcome) in &outcomes {
        events += outcome.events;
        offered += outcome.offered;
        assert!(outcome.admitted > 0, "seed {seed} admitted nothing: the simulation tests nothing");
    }
    let broken: Vec<_> = outcomes
        .values_mut()
        .flat_map(|outcome| outcome.broken.drain(..).take(3).collect::<Vec<_>>())
        .collect();
    println!(
        "{} seeds of {SECONDS} simulated seconds, {events} events, {offered} requests in {:.1} s",
        seeds.len(),
        clock.now().seconds_since(Instant::ZERO)
    );
    for broken in &broken {
        println!(
            "seed {} at {:.1} s: {:?}: {}",
            broken.seed,
            broken.at.0 as f64 / 1e9,
            broken.promise,
            broken.detail
        );
    }
    assert!(broken.is_empty(), "{} promises broken; rerun one with TIDEGATE_SEED=<seed>", broken.len());
}

#[test]
fn the_same_seed_gives_the_same_tables() {
    for seed in [3, 7] {
        let (first, second) = (run(seed), run(seed));
        assert_eq!(first, second, "seed {seed}");
        assert_ne!(first.tables, run(seed + 1).tables);
    }
}

/// A day in short, a month in long; each for a pool of its own.
#[test]
fn f01_nodes_whose_controller_never_comes_back_serve_what_is_safe() {
    let long = std::env::var_os("TIDEGATE_LONG").is_some();
    let day = Duration::from_secs(86_400);
    let times: &[(u64, Duration)] = if long {
        &[(1, 30 * day), (2, 30 * day), (3, 30 * day)]
    } else {
        &[(1, Duration::from_secs(3600)), (2, day)]
    };
    for (seed, time) in times {
        let clock = SystemClock::starting_at(Instant::ZERO);
        let survived = alone(*seed, *time);
        println!(
            "seed {seed}: {:.1} days alone in {} bursts, {} requests, {} admitted, limits {:?} to {:?}, in {:.1} s",
            time.as_secs_f64() / 86_400.0,
            survived.bursts,
            survived.offered,
            survived.admitted,
            survived.first,
            survived.last,
            clock.now().seconds_since(Instant::ZERO)
        );
        assert!(survived.broken.is_empty(), "{:?}", survived.broken);
        assert!(survived.admitted > 1000 && survived.first.len() == 3 && survived.last.len() == 3);
        for (tier, last) in &survived.last {
            assert!(*last > 0 && *last <= survived.first[tier], "{tier}");
        }
        assert_ne!(survived.first, survived.last, "limits drifted");
    }
}

/// Worlds in which nothing happens but these faults, under `load` times what the pool can do.
fn only(replicas: usize, load: f64, faults: &[(f64, Fault)]) -> Vec<Outcome> {
    let outcomes: Vec<Outcome> = (0..200)
        .map(|seed| Scenario::draw(seed, 400.0))
        .filter(|scenario| scenario.replicas == replicas)
        .take(3)
        .map(|mut scenario| {
            let mut offered = 0.0;
            for tenant in &scenario.tenants {
                offered += tenant.arrivals * 430.0;
            }
            let factor = load * scenario.capacity() / offered;
            scenario.tenants.iter_mut().for_each(|tenant| tenant.arrivals *= factor);
            scenario.hang_ups = 0.0;
            scenario.faults = faults.to_vec();
            scenario.faults.push((scenario.healed_at, Fault::Heal));
            let outcome = World::new(scenario).run();
            assert!(outcome.broken.is_empty(), "{:?}", outcome.broken);
            outcome
        })
        .collect();
    assert_eq!(outcomes.len(), 3, "seeds with {replicas} replicas");
    outcomes
}

fn show(replicas: std::ops::Range<usize>, untrue: Untrue, from: f64, to: f64) -> Vec<(f64, Fault)> {
    let replicas: Vec<usize> = replicas.collect();
    vec![
        (from, Fault::Show { replicas: replicas.clone(), untrue: Some(untrue) }),
        (to, Fault::Show { replicas, untrue: None }),
    ]
}

fn between(outcome: &Outcome, from: f64, to: f64) -> Vec<Seen> {
    let seen: Vec<Seen> = outcome.seen.iter().filter(|seen| (from..to).contains(&seen.at)).copied().collect();
    assert!(!seen.is_empty(), "no tick from {from} to {to}");
    seen
}

/// Highest less lowest budget, as a part of their mean.
fn swing(seen: &[Seen]) -> f64 {
    let (mut low, mut high, mut sum) = (f64::INFINITY, 0.0f64, 0.0);
    for seen in seen {
        (low, high, sum) = (low.min(seen.budget), high.max(seen.budget), sum + seen.budget);
    }
    (high - low) / (sum / seen.len() as f64)
}

#[test]
fn a01_half_of_the_sources_gone_leaves_limits_where_they_are() {
    for outcome in only(6, 1.5, &show(0..3, Untrue::Silent, 150.0, 250.0)) {
        let before = between(&outcome, 130.0, 150.0);
        for seen in between(&outcome, 150.0, 250.0) {
            assert_eq!(seen.freshness, Freshness::Fresh);
            assert!(seen.budget > 0.7 * before[0].budget, "{seen:?} after {:?}", before[0]);
        }
    }
}

#[test]
fn a04_garbled_pages_are_silent_ones() {
    for outcome in only(4, 1.5, &show(0..4, Untrue::Garbled, 150.0, 250.0)) {
        let stale = between(&outcome, 165.0, 250.0);
        assert!(stale.iter().all(|seen| seen.freshness == Freshness::Stale));
        assert!(stale.iter().all(|seen| seen.budget >= seen.safe.min(stale[0].budget) - 1.0));
    }
    for outcome in only(4, 1.5, &show(0..1, Untrue::Garbled, 150.0, 250.0)) {
        assert!(between(&outcome, 150.0, 250.0).iter().all(|seen| seen.freshness == Freshness::Fresh));
    }
}

#[test]
fn a05_resets_and_a_change_of_unit_are_no_capacity() {
    let resets: Vec<(f64, Fault)> = (0..10)
        .map(|at| (120.0 + 9.0 * f64::from(at), Fault::ResetCounters { replicas: (0..4).collect() }))
        .collect();
    for outcome in only(4, 1.5, &resets) {
        let seen = between(&outcome, 120.0, 220.0);
        assert!(swing(&seen) < 0.1, "{}", swing(&seen));
    }
    // Every replica counts in thousandths from now on: nobody is left to contradict.
    let unit = Untrue::Times { work: 1000.0, load: 1.0 };
    for outcome in only(4, 1.5, &show(0..4, unit, 150.0, 164.0)) {
        let seen = between(&outcome, 140.0, 164.0);
        for pair in seen.windows(2) {
            let growth = pair[1].capacity.unwrap() / pair[0].capacity.unwrap();
            assert!(growth < 1.26, "{pair:?}");
        }
        let three = between(&outcome, 150.0, 156.0);
        assert!(swing(&three) < 0.1, "three samples are not believed: {three:?}");
    }
}

#[test]
fn a06_a_third_of_a_pool_is_no_smaller_pool() {
    for outcome in only(6, 1.5, &show(2..6, Untrue::Silent, 150.0, 250.0)) {
        let seen = between(&outcome, 150.0, 250.0);
        assert!(seen.iter().all(|seen| seen.ready == 6.0), "no capacity is lost by not looking");
        assert!(seen.windows(2).all(|pair| pair[1].budget <= pair[0].budget * 1.0001 || pair[0].at < 158.0));
        assert_eq!(seen.last().map(|seen| seen.freshness), Some(Freshness::Stale));
    }
}

#[test]
fn a07_one_liar_of_four_moves_limits_by_less_than_a_step() {
    for (work, load) in [(100.0, 0.0), (100.0, 1000.0), (0.01, 1000.0), (0.01, 0.0), (1.0, 0.0)] {
        for outcome in only(4, 1.5, &show(1..2, Untrue::Times { work, load }, 150.0, 250.0)) {
            let before = between(&outcome, 130.0, 150.0);
            let seen = between(&outcome, 150.0, 250.0);
            for seen in &seen {
                let moved = seen.budget / before[0].budget;
                assert!((0.7..1.3).contains(&moved), "work {work}, load {load}: {moved} in {seen:?}");
            }
        }
    }
}

#[test]
fn a08_frozen_pages_are_stale_and_steer_nothing() {
    for load in [0.6, 1.5] {
        for outcome in only(4, load, &show(0..4, Untrue::Frozen, 150.0, 250.0)) {
            let seen = between(&outcome, 150.0, 250.0);
            assert_eq!(seen.last().map(|seen| seen.freshness), Some(Freshness::Stale));
            let back = between(&outcome, 256.0, 300.0);
            assert!(back.iter().all(|seen| seen.freshness == Freshness::Fresh));
        }
    }
}

#[test]
fn a10_a_source_that_flaps_does_not_make_limits_oscillate() {
    for (every, refuses) in [(1, false), (1, true), (2, true), (3, true)] {
        for outcome in only(5, 1.5, &show(0..1, Untrue::Flaps { every, refuses }, 90.0, 300.0)) {
            // Settled after 60 intervals.
            let seen = between(&outcome, 210.0, 300.0);
            assert!(swing(&seen) <= 0.1, "every {every}, refuses {refuses}: {}", swing(&seen));
        }
    }
    for outcome in only(5, 1.5, &show(0..5, Untrue::Flaps { every: 1, refuses: false }, 90.0, 300.0)) {
        assert!(swing(&between(&outcome, 210.0, 300.0)) <= 0.1);
    }
}

#[test]
fn a12_all_sources_down_holds_drifts_to_safe_and_comes_back_without_a_step() {
    for outcome in only(4, 1.5, &show(0..4, Untrue::Silent, 90.0, 290.0)) {
        let held = between(&outcome, 96.0, 100.0);
        assert!(held.iter().all(|seen| seen.freshness == Freshness::Held && seen.budget == held[0].budget));
        let stale = between(&outcome, 102.0, 290.0);
        assert!(stale.iter().all(|seen| seen.freshness == Freshness::Stale));
        assert!(stale.windows(2).all(|pair| pair[1].budget <= pair[0].budget));
        let last = stale.last().unwrap();
        assert!(last.budget < 1.05 * last.safe && last.budget >= last.safe - 1.0, "{last:?}");
        // Promise::RecoversWithoutStep judged each tick of the way back.
        let back = between(&outcome, 340.0, 398.0);
        assert!(back.iter().any(|seen| seen.budget > 0.9 * seen.capacity.unwrap()), "{back:?}");
    }
}

#[test]
fn b03_ten_minutes_of_pause_are_one_tick_and_no_rise() {
    let pause = [(120.0, Fault::Pause { seconds: 600.0 })];
    for mut scenario in (0..4).map(|seed| Scenario::draw(seed, 1200.0)) {
        scenario.faults = pause.to_vec();
        scenario.faults.push((scenario.healed_at, Fault::Heal));
        let outcome = World::new(scenario).run();
        assert!(outcome.broken.is_empty(), "{:?}", outcome.broken);
        assert!(outcome.seen.iter().all(|seen| !(121.0..719.0).contains(&seen.at)), "it was paused");
        let ticks = outcome.seen.iter().filter(|seen| (719.0..721.0).contains(&seen.at)).count();
        assert_eq!(ticks, 1, "one tick, not 300");
    }
}
