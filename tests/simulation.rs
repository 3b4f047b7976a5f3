//! Seeds of the simulator: every promise, under faults and after healing.
//!
//! `TIDEGATE_SEEDS=N` runs N seeds (default 20), `TIDEGATE_SEED=S` one alone.
#![cfg(feature = "sim")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tidegate::sim::Outcome;
use tidegate::sim::Scenario;
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
