//! `tidegate dashboard`: what an operator imports, on stdout.

use std::io::Write as _;
use std::process::ExitCode;

use tidegate::dashboard::{alerts, grafana};

use super::Failure;

#[derive(clap::Args)]
pub struct Args {
    /// Alerting rules for Prometheus instead
    #[arg(long)]
    alerts: bool,
}

pub fn run(args: Args) -> Result<ExitCode, Failure> {
    let text = if args.alerts { alerts::rules() } else { grafana() };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
