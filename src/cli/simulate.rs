//! `tidegate simulate`: laws side by side on the same demand, scored.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tidegate::bounds::TRACE_BYTES_MAX;
use tidegate::policy::diagnostic::render;
use tidegate::sim::trial::contest::{Row, contest};
use tidegate::sim::trial::demand::Demand;
use tidegate::sim::trial::file::{Scenario, read};
use tidegate::sim::trial::laws::{self, law};
use tidegate::sim::trial::plots;
use tidegate::sim::trial::run::record;
use tidegate::sim::trial::score::Metric;
use tidegate::sim::trial::trace::Trace;

use super::Failure;

mod table;

#[derive(clap::Args)]
pub struct Args {
    /// Scenario files; those of this project are in `tests/scenarios/`.
    #[arg(required = true)]
    scenario: Vec<PathBuf>,
    /// Decides when requests come, and how long they are.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// This many seeds, from `--seed` on; the table shows medians and spread.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: u64,
    /// Only this law; may come more than once. Without it all of them, the rivals at their defaults
    /// and at the best of a grid.
    #[arg(long, value_name = "NAME")]
    law: Vec<String>,
    /// Requests of a trace instead of drawn ones: Azure LLM CSV, or Mooncake JSON lines.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Writes a page with plots of the first seed; it opens without a network.
    #[arg(long, value_name = "OUT.html")]
    report: Option<PathBuf>,
    /// One JSON object a line, for each law and seed.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<ExitCode, Failure> {
    let every = laws::all();
    if let Some(name) = args.law.iter().find(|name| !every.contains(name)) {
        return Err(format!("there is no law `{name}`; there are {}", every.join(", ")).into());
    }
    let laws = if args.law.is_empty() { every } else { args.law.clone() };
    let mut scenarios = Vec::new();
    let mut good = true;
    for path in &args.scenario {
        match scenario(path)? {
            Some(scenario) => scenarios.push(scenario),
            None => good = false,
        }
    }
    if !good {
        return Ok(ExitCode::FAILURE);
    }
    let trace = args.trace.as_deref().map(trace).transpose()?;
    if args.report.is_some() && scenarios.len() != 1 {
        return Err("`--report` shows one scenario; name one".into());
    }
    let mut runs = Vec::new();
    for scenario in &scenarios {
        let rows = all(scenario, trace.as_ref(), args.seed..args.seed.saturating_add(args.seeds), &laws);
        if args.json {
            rows.iter().for_each(|row| println!("{}", json(&scenario.trial.name, row)));
        } else {
            clear();
            let shown = table::shown_of(&rows, &laws, args.law.is_empty());
            print!("{}", table::table(scenario, &rows, &shown));
        }
        runs.push((scenario, rows));
    }
    if !args.json && runs.len() > 1 {
        print!("{}", table::summary(&runs, &laws));
    }
    if let (Some(path), Some(scenario)) = (&args.report, scenarios.first()) {
        let page = page(scenario, trace.as_ref(), args.seed, &laws, !args.law.is_empty());
        std::fs::write(path, page).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Of the laws that were named, else of every law at its defaults.
fn page(scenario: &Scenario, trace: Option<&Trace>, seed: u64, laws: &[String], named: bool) -> String {
    let demand = Demand::draw(&scenario.trial, trace, seed);
    let one = |name: &String| {
        let mut law = law(name, &demand.terms, seed)?;
        Some((name.clone(), record(&scenario.trial, &demand, seed, law.as_mut())))
    };
    let runs: Vec<_> = laws.iter().filter(|name| named || !name.contains('/')).filter_map(one).collect();
    plots::page(&scenario.trial, &demand.terms, seed, &runs)
}

/// How far it is, for people who wait.
fn progress(name: &str, done: usize, all: usize) {
    const WIDTH: usize = 30;
    if std::io::stderr().is_terminal() {
        let full = WIDTH * done / all.max(1);
        eprint!("\r{name} [{}{}] {done}/{all} seeds", "#".repeat(full), "-".repeat(WIDTH - full));
    }
}

fn clear() {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[2K");
    }
}

fn scenario(path: &Path) -> Result<Option<Scenario>, Failure> {
    let shown = path.display().to_string();
    let bytes = std::fs::read(path).map_err(|error| format!("{shown}: {error}; name a scenario file"))?;
    match read(&shown, &bytes) {
        Ok(scenario) => Ok(Some(scenario)),
        Err(found) => {
            let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            eprint!("{}", render(&found, colour));
            Ok(None)
        }
    }
}

fn trace(path: &Path) -> Result<Trace, Failure> {
    let shown = path.display().to_string();
    let fail = |error: std::io::Error| format!("{shown}: {error}; name a trace file");
    let size = std::fs::metadata(path).map_err(fail)?.len();
    if size > TRACE_BYTES_MAX {
        return Err(format!("{shown}: larger than {TRACE_BYTES_MAX} bytes; cut it").into());
    }
    let text = std::fs::read_to_string(path).map_err(fail)?;
    Ok(Trace::parse(&shown, &text)?)
}

/// Every seed, side by side on the machine's cores; in the order of the seeds.
fn all(scenario: &Scenario, trace: Option<&Trace>, seeds: std::ops::Range<u64>, laws: &[String]) -> Vec<Row> {
    let seeds: Vec<u64> = seeds.collect();
    let name = &scenario.trial.name;
    progress(name, 0, seeds.len());
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
            let rows = contest(&scenario.trial, trace, *seed, laws, &law);
            let mut found = found.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            found.push((*seed, rows));
            progress(name, found.len(), seeds.len());
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(seeds.len());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let mut found = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    found.sort_by_key(|(seed, _)| *seed);
    found.into_iter().flat_map(|(_, rows)| rows).collect()
}

/// Three digits behind the point are more than a seed repeats.
fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

fn json(scenario: &str, row: &Row) -> String {
    let mut line = serde_json::Map::new();
    line.insert("scenario".to_owned(), scenario.into());
    line.insert("law".to_owned(), row.law.as_str().into());
    line.insert("seed".to_owned(), row.seed.into());
    for (name, metric) in Metric::ALL {
        line.insert(name.to_owned(), row.metric(metric).map(rounded).into());
    }
    let tiers: Vec<f64> = row.report.tiers.iter().copied().map(rounded).collect();
    line.insert("served_by_tier".to_owned(), tiers.into());
    let stretch = |(from, served, bound): &(f64, f64, f64)| {
        let part = rounded(served / bound.max(1e-9));
        serde_json::json!({ "from_s": from, "goodput_bound": part })
    };
    line.insert("stretches".to_owned(), row.report.stretches.iter().map(stretch).collect());
    serde_json::Value::Object(line).to_string()
}
