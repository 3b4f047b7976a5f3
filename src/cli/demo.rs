//! `tidegate demo`.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use tidegate::demo::dialect::Dialect;
use tidegate::demo::{Ending, Options};

use super::Failure;

#[derive(clap::Args)]
pub struct Args {
    /// How long it runs; half of the replicas are dead from one third to two thirds of it.
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u64).range(9..=3600))]
    seconds: u64,
    /// Decides when tenants ask, and how much.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
    /// Whose metrics the replicas speak: vllm, sglang or llamacpp.
    #[arg(long, default_value_t)]
    engine: Dialect,
    /// The same demand straight to the replicas.
    #[arg(long)]
    no_limits: bool,
    /// Makes this directory and leaves the policy and the controller's state in it.
    #[arg(long, value_name = "DIR", conflicts_with = "no_limits")]
    keep: Option<PathBuf>,
}

pub fn run(args: Args) -> Result<ExitCode, Failure> {
    let options = Options {
        seconds: args.seconds,
        seed: args.seed,
        json: args.json,
        engine: args.engine,
        limits: !args.no_limits,
        keep: args.keep,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ending = runtime.block_on(tidegate::demo::run(options, io::stdout()));
    // What still runs has nothing left to say.
    runtime.shutdown_background();
    Ok(match ending? {
        Ending::Kept | Ending::Unseen => ExitCode::SUCCESS,
        Ending::Broken => ExitCode::FAILURE,
    })
}
