//! `tidegate backtest`: a record replayed through a policy.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tidegate::backtest::compare::Report;
use tidegate::backtest::journal::Journal;
use tidegate::backtest::replay;
use tidegate::backtest::scraped::Scraped;
use tidegate::backtest::show;
use tidegate::backtest::span::{Span, instant};
use tidegate::observe::range::Ranges;
use tidegate::policy::diagnostic::render;
use tidegate::policy::load::load;
use tidegate::policy::source::Access;
use tidegate::policy::{Policy, SourcePolicy};

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
    #[arg(long, value_name = "FILE", required_unless_present = "prometheus", conflicts_with = "prometheus")]
    journal: Option<PathBuf>,
    /// A Prometheus that scrapes replicas, nodes and controller, in place of a journal.
    #[arg(long, value_name = "URL", requires = "from", requires = "to")]
    prometheus: Option<String>,
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
    let report = match (&args.journal, &args.prometheus) {
        (Some(journal), _) => replay(Journal::open(journal)?, span, &tried, against.as_ref())?,
        (None, Some(url)) => scraped(url, span, &tried, against.as_ref())?,
        (None, None) => return Err("name a record: --journal or --prometheus".into()),
    };
    print!("{}", if args.json { show::json(&report) } else { show::table(&report) });
    Ok(ExitCode::SUCCESS)
}

fn scraped(
    url: &str,
    span: Span,
    policy: &Arc<Policy>,
    against: Option<&Arc<Policy>>,
) -> Result<Report, Failure> {
    let (Some(from), Some(to)) = (span.from, span.to) else { return Err("say --from and --to".into()) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut server = Ranges::new(url, access(policy, url));
    let ask = |query: &str, window| runtime.block_on(server.ask(query, window));
    let mut record = Scraped::new(policy, from, to, ask)?;
    let mut report = replay(&mut record, Span::default(), policy, against)?;
    for note in record.notes() {
        report.note(note.at, std::iter::once(note.text));
    }
    Ok(report)
}

/// How the policy says that its pools' server is reached, where it is the same one.
fn access(policy: &Policy, url: &str) -> Access {
    let same = |server: &String| server.trim_end_matches('/') == url.trim_end_matches('/');
    let known = policy.pools.values().find_map(|pool| match &pool.source {
        SourcePolicy::Prometheus { servers, access } if servers.iter().any(same) => Some(access.clone()),
        _ => None,
    });
    known.unwrap_or_default()
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
