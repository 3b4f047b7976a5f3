//! The law without each of its terms: what every scenario loses, and whether that is more than noise.
//!
//! `cargo bench --bench ablation --features planted` prints a line a term of `docs/law.md`; with
//! `TIDEGATE_REGENERATE=1` it writes them there and into the README. Names after `--` run only those terms.
//!
//! The law draws nothing, so that a seed is a demand, the same with a term and without it. Four
//! seeds find what suffers most of every scenario and metric; that choice alone would show something
//! for any change, so it is checked on ten fresh seeds: worse by Student's t of the differences seed
//! by seed, and in the median by more than nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a benchmark")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use statrs::distribution::{ContinuousCDF, StudentsT};
use statrs::statistics::Statistics;
use tidegate::sim::trial::contest::Spread;
use tidegate::sim::trial::demand::Demand;
use tidegate::sim::trial::file::read;
use tidegate::sim::trial::laws::{TIDE, law};
use tidegate::sim::trial::run::run;
use tidegate::sim::trial::score::Metric;

/// Switches a term off, in a process of its own.
const WITHOUT: &str = "TIDEGATE_WITHOUT";
const EXPLORED: RangeInclusive<u64> = 1..=4;
const FRESH: RangeInclusive<u64> = 5..=14;
/// What suffers most is looked for among this many.
const CANDIDATES: usize = 4;
/// Nodes cannot see when a request that is not streamed begins to be answered, so that their cap on
/// waiting work does not count it: there the budget is on its own.
const NOT_STREAMED: &str = "waiting-cap";
/// Of all of them together.
const SIGNIFICANT: f64 = 0.01;

/// By scenario and metric, one value a seed.
type Scores = BTreeMap<(String, &'static str), Vec<Option<f64>>>;

/// Less than this of a metric is nothing; and its digits behind the point.
fn minded(metric: Metric) -> Option<(f64, usize)> {
    match metric {
        Metric::GoodputBound => Some((0.001, 3)),
        // The same over a constant.
        Metric::GoodputOracle => None,
        Metric::ViolationS => Some((1.0, 0)),
        Metric::SettleS => Some((2.0, 0)),
        Metric::TtftP99 => Some((0.05, 2)),
        Metric::TtftPeak => Some((0.1, 2)),
        Metric::Jain => Some((0.005, 3)),
        Metric::FirstTier => Some((0.002, 3)),
        Metric::Swing => Some((0.002, 3)),
        Metric::GuaranteeMissedS => Some((10.0, 0)),
        Metric::Refused => Some((0.001, 3)),
    }
}

/// One metric of one scenario, with the whole law and without a term.
struct Suffers {
    scenario: String,
    streamed: bool,
    name: &'static str,
    metric: Metric,
    whole: Vec<f64>,
    without: Vec<f64>,
}

// === impl Suffers ===

impl Suffers {
    fn worse(&self) -> Vec<f64> {
        let sign = if self.metric.more_is_better() { -1.0 } else { 1.0 };
        self.whole.iter().zip(&self.without).map(|(whole, without)| sign * (without - whole)).collect()
    }

    /// How far it is off, in errors of the mean; none where that is nothing.
    fn t(&self) -> Option<f64> {
        let worse = self.worse();
        let nothing = minded(self.metric)?.0;
        let (count, mean) = (worse.len() as f64, worse.iter().mean());
        // Runs that are off by the same are as far off as what is nothing lets them be.
        let error = f64::max(worse.iter().std_dev(), nothing / 10.0) / count.sqrt();
        (spread(&worse).median >= nothing && mean >= nothing).then(|| mean / error)
    }

    /// How far it is off, in what is nothing.
    fn times_minded(&self) -> f64 {
        minded(self.metric).map_or(0.0, |(nothing, _)| spread(&self.worse()).median / nothing)
    }

    fn is_measured(&self) -> bool {
        let chance = SIGNIFICANT / (2 * CANDIDATES) as f64;
        let student = StudentsT::new(0.0, 1.0, self.whole.len() as f64 - 1.0).unwrap();
        self.t().is_some_and(|t| student.sf(t) < chance)
    }

    fn shown(&self) -> String {
        let digits = minded(self.metric).map_or(3, |(_, digits)| digits);
        let one = |values: &[f64]| {
            let spread = spread(values);
            let off = f64::max(spread.most - spread.median, spread.median - spread.least);
            format!("{:.digits$} ±{off:.digits$}", spread.median)
        };
        let how = if self.streamed { "" } else { ", not streamed:" };
        format!("`{}`{how} {} {} → {}", self.scenario, self.name, one(&self.whole), one(&self.without))
    }
}

fn spread(values: &[f64]) -> Spread {
    Spread::of(values.iter().copied().map(Some)).expect("there are seeds")
}

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// In the child: runs what it is told, and says one line a run.
fn child(arguments: &[String]) {
    for argument in arguments {
        let (name, seeds) = argument.split_once('=').unwrap();
        let path = root("tests/scenarios").join(format!("{name}.yaml"));
        let trial = read(name, &fs::read(path).unwrap()).unwrap().trial;
        for seed in seeds.split(',') {
            let number: u64 = seed.parse().unwrap();
            let demand = Demand::draw(&trial, None, number);
            let mut tide = law(TIDE, &demand.terms, number).unwrap();
            let report = run(&trial, &demand, number, tide.as_mut());
            let value = |(_, metric): &(&str, Metric)| {
                report.metric(*metric, None).map_or("-".to_owned(), |value| value.to_string())
            };
            let values: Vec<String> = Metric::ALL.iter().map(value).collect();
            println!("{name} {}", values.join(" "));
        }
    }
}

/// All scores without some terms.
fn scores(without: &str, scenarios: &BTreeSet<String>, seeds: RangeInclusive<u64>) -> Scores {
    let seeds: Vec<String> = seeds.map(|seed| seed.to_string()).collect();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("--child").args(scenarios.iter().map(|name| format!("{name}={}", seeds.join(","))));
    let output = command.env(WITHOUT, without).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{without:?}: {}", String::from_utf8_lossy(&output.stderr));
    let mut scores = Scores::new();
    for line in said.lines() {
        let mut words = line.split(' ');
        let scenario = words.next().unwrap();
        for ((name, _), value) in Metric::ALL.iter().zip(words) {
            scores.entry((scenario.to_owned(), name)).or_default().push(value.parse().ok());
        }
    }
    scores
}

/// What the rest of the law does with every request streamed, and with none.
struct Base {
    streamed: bool,
    explored: Scores,
    fresh: Scores,
}

// === impl Base ===

impl Base {
    fn new(streamed: bool, scenarios: &BTreeSet<String>) -> Base {
        let without = if streamed { "" } else { NOT_STREAMED };
        let explored = scores(without, scenarios, EXPLORED);
        Base { streamed, explored, fresh: scores(without, scenarios, FRESH) }
    }

    fn without(&self, term: &str) -> String {
        if self.streamed { term.to_owned() } else { format!("{term},{NOT_STREAMED}") }
    }

    /// What suffers most from the term's absence on the seeds for it.
    fn candidates(&self, term: &str, scenarios: &BTreeSet<String>) -> Vec<Suffers> {
        let without = scores(&self.without(term), scenarios, EXPLORED);
        let mut found = compare(&self.explored, &without, self.streamed);
        found.retain(|found| found.t().is_some());
        found.truncate(CANDIDATES);
        found
    }

    /// Whether one of the candidates suffers on fresh seeds too.
    fn confirmed(&self, term: &str, candidates: &[Suffers]) -> Option<Suffers> {
        let again: BTreeSet<String> = candidates.iter().map(|found| found.scenario.clone()).collect();
        let checked = compare(&self.fresh, &scores(&self.without(term), &again, FRESH), self.streamed);
        let is_candidate = |checked: &Suffers| {
            let is_it = |found: &Suffers| found.scenario == checked.scenario && found.name == checked.name;
            candidates.iter().any(is_it)
        };
        let measured = checked.into_iter().filter(is_candidate).filter(Suffers::is_measured);
        measured.max_by(|a, b| a.times_minded().total_cmp(&b.times_minded()))
    }
}

/// What suffers, most first.
fn compare(whole: &Scores, without: &Scores, streamed: bool) -> Vec<Suffers> {
    let mut found = Vec::new();
    for ((scenario, name), without) in without {
        let Some(whole) = whole.get(&(scenario.clone(), *name)) else { continue };
        let metric = Metric::ALL.iter().find(|(known, _)| known == name).map(|(_, metric)| *metric).unwrap();
        let both: Vec<(f64, f64)> =
            whole.iter().zip(without).filter_map(|(whole, without)| whole.zip(*without)).collect();
        if minded(metric).is_some() && both.len() == whole.len() {
            let (whole, without) = both.into_iter().unzip();
            found.push(Suffers { scenario: scenario.clone(), streamed, name, metric, whole, without });
        }
    }
    found.sort_by(|a, b| b.t().unwrap_or(0.0).total_cmp(&a.t().unwrap_or(0.0)));
    found
}

/// What the term is worth, if anything is measured of it: with every request streamed, else with none.
fn ablated(term: &str, scenarios: &BTreeSet<String>, bases: &[Base]) -> Option<String> {
    let bases = bases.iter().filter(|base| base.streamed || term != NOT_STREAMED);
    let found = |base: &Base| base.confirmed(term, &base.candidates(term, scenarios));
    bases.into_iter().find_map(found).map(|found| found.shown())
}

/// Where a table of terms is: its file, what stands before and behind it, and the cell for figures.
type Place = (&'static str, &'static str, usize);
const ALL: Place = ("docs/law.md", "terms", 5);
const SOME: Place = ("README.md", "ablation", 2);

/// What is before a table, the table, and what is behind it.
fn table((file, mark, _): Place) -> [String; 3] {
    let text = fs::read_to_string(root(file)).unwrap();
    let (before, rest) = text.split_once(&format!("<!-- {mark} -->")).expect("there is a table");
    let (table, behind) = rest.split_once(&format!("<!-- {mark} end -->")).expect("the table ends");
    [before, table, behind].map(str::to_owned)
}

fn name(line: &str) -> Option<&str> {
    Some(line.strip_prefix("| `")?.split_once('`')?.0)
}

/// Writes what was measured into a table.
fn regenerate(place: Place, measured: &BTreeMap<String, String>) {
    let [before, table, behind] = table(place);
    let (file, mark, at) = place;
    let line = |line: &str| {
        let mut cells: Vec<&str> = line.split('|').collect();
        let said = name(line).and_then(|name| measured.get(name)).map(|said| format!(" {said} "));
        if let (Some(said), Some(cell)) = (&said, cells.get_mut(at)) {
            *cell = said;
        }
        cells.join("|")
    };
    let lines: Vec<String> = table.split('\n').map(line).collect();
    let text = format!("{before}<!-- {mark} -->{}<!-- {mark} end -->{behind}", lines.join("\n"));
    fs::write(root(file), text).unwrap();
}

fn main() -> ExitCode {
    if !cfg!(feature = "planted") {
        println!("nothing can be left out of this build; add --features planted");
        return ExitCode::FAILURE;
    }
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [first, rest @ ..] = arguments.as_slice()
        && first == "--child"
    {
        child(rest);
        return ExitCode::SUCCESS;
    }
    let [_, all, _] = table(ALL);
    let listed = || all.lines().filter_map(name).map(str::to_owned).collect();
    let terms: Vec<String> = if arguments.is_empty() { listed() } else { arguments };
    let scenarios: BTreeSet<String> = fs::read_dir(root("tests/scenarios"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    let bases = std::thread::scope(|scope| {
        let scenarios = &scenarios;
        let base = |streamed| scope.spawn(move || Base::new(streamed, scenarios));
        [true, false].map(base).map(|base| base.join().unwrap())
    });
    let (next, measured) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let work = || {
        while let Some(term) = terms.get(next.fetch_add(1, Ordering::Relaxed)) {
            let said = ablated(term, &scenarios, &bases).unwrap_or_else(|| "-".to_owned());
            println!("{term:<20} {said}");
            measured.lock().unwrap().insert(term.clone(), said);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let measured = measured.into_inner().unwrap();
    let counted = measured.values().filter(|said| *said != "-").count();
    println!("{counted} of {} terms: some scenario is measurably worse without them", measured.len());
    if std::env::var_os("TIDEGATE_REGENERATE").is_some() {
        regenerate(ALL, &measured);
        regenerate(SOME, &measured);
    }
    ExitCode::SUCCESS
}
