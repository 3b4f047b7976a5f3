//! Planted bugs: whichever is switched on, the simulator must catch it by name.
//!
//! `tests/planted.sh` runs this once per bug. Without a bug it checks that the promise
//! each bug breaks is otherwise kept, so that a catch means something.
#![cfg(feature = "sim")]
#![allow(clippy::panic, clippy::unwrap_used, clippy::expect_used, reason = "a broken promise ends the test")]

use tidegate::sim::Promise;
use tidegate::sim::Scenario;
use tidegate::sim::World;

const SECONDS: f64 = 600.0;
const SEEDS: u64 = 60;

/// Every bug and the promise it must be caught by.
const BUGS: [(&str, Promise); 15] = [
    ("frozen-believed", Promise::FrozenIsStale),
    ("full-limit-per-node", Promise::TableValid),
    ("liar-believed", Promise::MeasuredIsReal),
    ("never-drifts", Promise::AdmittedInsideLimit),
    ("no-decrease-bound", Promise::LossNeedsTwoSigns),
    ("no-steer-bound", Promise::EditSteers),
    ("part-is-the-pool", Promise::PartIsNoLoss),
    ("raise-on-stale", Promise::NoRaiseBlind),
    ("raise-unbounded", Promise::RaiseBounded),
    ("refill-on-swap", Promise::AdmittedInsideLimit),
    ("refused-charges", Promise::RefusalChangesNothing),
    ("replay-accepted", Promise::NodeNeverGoesBack),
    ("reset-is-a-rate", Promise::MeasuredIsReal),
    ("slot-leak", Promise::SlotsBalance),
    ("version-reused", Promise::VersionUnique),
];

#[test]
fn the_planted_bug_is_caught_by_name() {
    let on = std::env::var("TIDEGATE_BUG").ok();
    let planted = on.map(|on| {
        let known = BUGS.into_iter().find(|(name, _)| *name == on);
        let built = cfg!(feature = "planted").then_some(known).expect("built with the feature `planted`");
        built.unwrap_or_else(|| panic!("no bug is called {on}"))
    });
    for seed in 0..SEEDS {
        let outcome = World::new(Scenario::draw(seed, SECONDS)).run();
        let Some((name, promise)) = planted else {
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
    let (name, promise) = planted.unwrap_or(("none", Promise::TableValid));
    panic!("{name} was not caught by {promise:?} in {SEEDS} seeds");
}

/// A bug that no code plants would be caught by nothing, one that is not listed by nobody.
#[test]
fn every_bug_is_planted_somewhere_and_listed() {
    fn asked(dir: &std::path::Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                asked(&path, found);
            } else {
                let text = std::fs::read_to_string(&path).unwrap();
                let names = text.split("bug(\"").skip(1).filter_map(|rest| rest.split('"').next());
                found.extend(names.map(str::to_owned));
            }
        }
    }
    let mut found = Vec::new();
    asked(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    found.sort();
    found.dedup();
    let mut listed: Vec<_> = BUGS.iter().map(|(name, _)| *name).collect();
    listed.sort_unstable();
    assert_eq!(found, listed);
}
