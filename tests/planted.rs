//! Planted bugs: built with one `bug-*` feature, the simulator must catch it by name.
//!
//! `tests/planted.sh` builds and runs this once per bug. Without a bug it checks that the promise
//! each bug breaks is otherwise kept, so that a catch means something.
#![cfg(feature = "sim")]

use tidegate::sim::Promise;
use tidegate::sim::Scenario;
use tidegate::sim::World;

const SECONDS: f64 = 600.0;
const SEEDS: u64 = 60;

/// Feature compiled in, its name, and the promise it must be caught by.
fn bugs() -> Vec<(bool, &'static str, Promise)> {
    vec![
        (cfg!(feature = "bug-frozen-believed"), "bug-frozen-believed", Promise::FrozenIsStale),
        (cfg!(feature = "bug-full-limit-per-node"), "bug-full-limit-per-node", Promise::TableValid),
        (cfg!(feature = "bug-liar-believed"), "bug-liar-believed", Promise::MeasuredIsReal),
        (cfg!(feature = "bug-never-drifts"), "bug-never-drifts", Promise::AdmittedInsideLimit),
        (cfg!(feature = "bug-no-decrease-bound"), "bug-no-decrease-bound", Promise::LossNeedsTwoSigns),
        (cfg!(feature = "bug-no-steer-bound"), "bug-no-steer-bound", Promise::EditSteers),
        (cfg!(feature = "bug-part-is-the-pool"), "bug-part-is-the-pool", Promise::PartIsNoLoss),
        (cfg!(feature = "bug-raise-on-stale"), "bug-raise-on-stale", Promise::NoRaiseBlind),
        (cfg!(feature = "bug-raise-unbounded"), "bug-raise-unbounded", Promise::RaiseBounded),
        (cfg!(feature = "bug-refill-on-swap"), "bug-refill-on-swap", Promise::AdmittedInsideLimit),
        (cfg!(feature = "bug-refused-charges"), "bug-refused-charges", Promise::RefusalChangesNothing),
        (cfg!(feature = "bug-replay-accepted"), "bug-replay-accepted", Promise::NodeNeverGoesBack),
        (cfg!(feature = "bug-reset-is-a-rate"), "bug-reset-is-a-rate", Promise::MeasuredIsReal),
        (cfg!(feature = "bug-slot-leak"), "bug-slot-leak", Promise::SlotsBalance),
        (cfg!(feature = "bug-version-reused"), "bug-version-reused", Promise::VersionUnique),
    ]
}

#[test]
fn the_planted_bug_is_caught_by_name() {
    let planted = bugs().into_iter().find(|(built_in, ..)| *built_in);
    for seed in 0..SEEDS {
        let outcome = World::new(Scenario::draw(seed, SECONDS)).run();
        let Some((_, name, promise)) = planted else {
            assert!(outcome.broken.is_empty(), "no bug is planted, yet {:?}", outcome.broken.first());
            if seed == 5 {
                return;
            }
            continue;
        };
        if let Some(caught) = outcome.broken.iter().find(|broken| broken.promise == promise) {
            let at = caught.at.0 as f64 / 1e9;
            println!("{name}: caught by {promise:?}, seed {seed} at {at:.1} s: {}", caught.detail);
            return;
        }
    }
    let (_, name, promise) = planted.unwrap_or((false, "none", Promise::TableValid));
    panic!("{name} was not caught by {promise:?} in {SEEDS} seeds");
}
