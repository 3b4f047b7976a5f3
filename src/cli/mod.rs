//! The verbs. Each file holds one verb's flags and its wiring, and calls into the library.

mod backtest;
mod check;
mod control;
mod dashboard;
mod demo;
mod descriptors;
mod enforce;
mod log;
mod simulate;

use std::process::ExitCode;
use std::sync::LazyLock;

use clap::{Parser, Subcommand};
use tidegate::metrics::REVISION;

/// Dynamic, load-aware rate limits.
#[derive(Parser)]
#[command(name = "tidegate", version = VERSION.as_str())]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Check every policy file of a directory.
    Check(check::Args),
    /// Run the control loop: scrape, decide, publish limit tables.
    Control(control::Args),
    /// Run an enforcement node: a reverse proxy that obeys the tables.
    Enforce(enforce::Args),
    /// Watch limits follow load, on an embedded cluster.
    Demo(demo::Args),
    /// Try laws against each other on a simulated pool, and score them.
    Simulate(simulate::Args),
    /// Replay a record through a policy: what it would have published, and who would have been refused.
    Backtest(backtest::Args),
    /// Print the Grafana dashboard, or the alerting rules.
    Dashboard(dashboard::Args),
}

/// The version, and the commit where the build was told it.
static VERSION: LazyLock<String> = LazyLock::new(|| match REVISION {
    Some(revision) => format!("{} ({revision})", env!("CARGO_PKG_VERSION")),
    None => env!("CARGO_PKG_VERSION").to_owned(),
});

/// A verb that could not do its work: printed to stderr, exit code 1.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

pub fn run() -> ExitCode {
    // clap exits with 2 on a usage error, the code promised for it.
    let outcome = match Cli::parse().verb {
        Verb::Check(args) => check::run(args),
        Verb::Control(args) => control::run(args),
        Verb::Enforce(args) => enforce::run(args),
        Verb::Demo(args) => demo::run(args),
        Verb::Simulate(args) => simulate::run(args),
        Verb::Backtest(args) => backtest::run(args),
        Verb::Dashboard(args) => dashboard::run(args),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("tidegate: {error}");
            ExitCode::FAILURE
        }
    }
}
