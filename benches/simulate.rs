//! How many times faster than real time a trial runs: ten replicas, an hour, on one core.
//!
//! `cargo bench --bench simulate`. The shipped law is the controller and four limiters; `none` is
//! the plant and the scores alone. Exits with 1 where the plant with the cheapest law that limits
//! is below 20,000 times real time.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a benchmark")]

use std::process::ExitCode;
use std::time::Instant;

use tidegate::sim::trial::demand::Demand;
use tidegate::sim::trial::laws::law;
use tidegate::sim::trial::run::run;
use tidegate::sim::trial::{TierTerms, Trial};

const SECONDS: f64 = 3_600.0;
const ROUNDS: usize = 5;
const TIMES_MIN: f64 = 20_000.0;

/// The fastest of several rounds, as a multiple of real time.
fn times(name: &str, trial: &Trial, demand: &Demand) -> f64 {
    let round = |_| {
        let mut law = law(name, &demand.terms, 1).unwrap();
        let begun = Instant::now();
        let report = run(trial, demand, 1, law.as_mut());
        assert!(report.bound > 0.0);
        SECONDS / begun.elapsed().as_secs_f64()
    };
    (0..ROUNDS).map(round).fold(0.0, f64::max)
}

fn main() -> ExitCode {
    let mut reached = 0.0;
    for (load, what) in [(0.7, "under load"), (1.3, "overloaded")] {
        let tiers: Vec<TierTerms> = Trial::default().tiers;
        let trial = Trial { seconds: SECONDS, replicas: 10, load, tiers, ..Trial::default() };
        let begun = Instant::now();
        let demand = Demand::draw(&trial, None, 1);
        let drawn = begun.elapsed();
        println!("{what} ({load}): {} requests, drawn in {drawn:.1?}", demand.arrivals.len());
        for name in ["static", "aimd", "oracle", "tide"] {
            let times = times(name, &trial, &demand);
            println!("  {name:<8} {times:>9.0} x real time");
            if name == "static" && load < 1.0 {
                reached = times;
            }
        }
    }
    if reached < TIMES_MIN {
        println!("below {TIMES_MIN:.0} x real time");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
