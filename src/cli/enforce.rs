//! `tidegate enforce`.

use std::process::ExitCode;

use super::Failure;

#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: Args) -> Result<ExitCode, Failure> {
    Err("not built yet".into())
}
