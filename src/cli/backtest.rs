//! `tidegate backtest`: a record replayed through a policy.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tidegate::backtest::journal::Journal;
use tidegate::backtest::replay;
use tidegate::backtest::show;
use tidegate::backtest::span::{Span, instant};
use tidegate::policy::Policy;
use tidegate::policy::diagnostic::render;
use tidegate::policy::load::load;

use super::Failure;

#[derive(clap::Args)]
pub struct Args {
    /// The policy to try: a directory of policy files, or one file.
    #[arg(long, value_name = "DIR")]
    policies: PathBuf,
    /// Another policy to compare it with, in place of what was published.
    #[arg(long, value_name = "OTHER_DIR")]
    against: Option<PathBuf>,
    /// A controller's state directory, or a journal in it.
    #[arg(long, value_name = "FILE")]
    journal: PathBuf,
    /// Begin with the first tick from here on: RFC 3339, or seconds since 1970.
    #[arg(long, value_name = "T", value_parser = instant)]
    from: Option<Duration>,
    /// End with the last tick up to here.
    #[arg(long, value_name = "T", value_parser = instant)]
    to: Option<Duration>,
    /// One JSON object a line: each row, then a summary.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<ExitCode, Failure> {
    let Some(tried) = policy(&args.policies) else { return Ok(ExitCode::FAILURE) };
    let against = match &args.against {
        None => None,
        Some(dir) => match policy(dir) {
            None => return Ok(ExitCode::FAILURE),
            some => some,
        },
    };
    let span = Span { from: args.from, to: args.to };
    let report = replay(Journal::open(&args.journal)?, span, &tried, against.as_ref())?;
    print!("{}", if args.json { show::json(&report) } else { show::table(&report) });
    Ok(ExitCode::SUCCESS)
}

/// None: its diagnostics are on stderr.
fn policy(dir: &Path) -> Option<Arc<Policy>> {
    match load(dir) {
        Ok(loaded) => Some(Arc::new(loaded.policy)),
        Err(found) => {
            let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            eprint!("{}", render(&found, colour));
            None
        }
    }
}
