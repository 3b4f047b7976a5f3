//! `tidegate simulate`: the shipped law ends every scenario in its band, the same seed says the
//! same twice, and a bad file is named with its place.
//!
//! `TIDEGATE_LONG=1` runs five seeds instead of two.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a broken promise ends the test")]

#[path = "simulate/page.rs"]
mod page;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tidegate::sim::trial::contest::{Spread, contest};
use tidegate::sim::trial::file::{Scenario, read};
use tidegate::sim::trial::laws::law;
use tidegate::sim::trial::score::Metric;

fn scenarios() -> Vec<(PathBuf, Scenario)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut paths: Vec<PathBuf> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let scenario = |path: PathBuf| {
        let found = read(&path.display().to_string(), &fs::read(&path).unwrap());
        let scenario = found.unwrap_or_else(|found| panic!("{found:?}"));
        (path, scenario)
    };
    paths.into_iter().map(scenario).collect()
}

fn simulate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tidegate")).arg("simulate").args(arguments).output().unwrap()
}

/// The command's complaint about a scenario, and about a trace, with these contents.
fn complaint(scenario: &str, trace: Option<&str>) -> String {
    let directory = tempfile::tempdir().unwrap();
    let (path, of_trace) = (directory.path().join("s.yaml"), directory.path().join("t.csv"));
    fs::write(&path, scenario).unwrap();
    fs::write(&of_trace, trace.unwrap_or_default()).unwrap();
    let mut arguments = vec![path.to_str().unwrap()];
    if trace.is_some() {
        arguments.extend(["--trace", of_trace.to_str().unwrap()]);
    }
    let output = simulate(&arguments);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr).unwrap().replace(&format!("{}/", directory.path().display()), "")
}

#[test]
fn every_scenario_says_why_it_exists_and_where_it_must_end() {
    let all = scenarios();
    assert!(all.len() >= 17, "{}", all.len());
    for (path, scenario) in all {
        assert_eq!(path.file_stem().unwrap().to_str().unwrap(), scenario.trial.name);
        assert!(!scenario.trial.why.contains('\n'));
        assert!(
            [Metric::GoodputOracle, Metric::GoodputBound]
                .iter()
                .any(|metric| scenario.band.contains_key(metric)),
            "{} has no band",
            scenario.trial.name
        );
        for (metric, goal) in &scenario.goal {
            let band = scenario.band.get(metric).unwrap_or_else(|| panic!("{}: {metric:?}", path.display()));
            let wider = if metric.more_is_better() { band <= goal } else { band >= goal };
            assert!(wider, "{}: the band of {metric:?} is narrower than its goal", path.display());
        }
    }
}

/// What left its band, a line each.
fn outside(scenario: &Scenario, seeds: u64) -> Vec<String> {
    let laws = ["tide".to_owned()];
    let rows: Vec<_> =
        (1..=seeds).flat_map(|seed| contest(&scenario.trial, None, seed, &laws, &law)).collect();
    let mut found = Vec::new();
    for (name, metric) in Metric::ALL {
        let Some(band) = scenario.band.get(&metric) else { continue };
        let spread = Spread::of(rows.iter().map(|row| row.metric(metric)));
        let median = spread.map(|spread| spread.median);
        let inside = median.is_some_and(|it| if metric.more_is_better() { it >= *band } else { it <= *band });
        if !inside {
            let relation = if metric.more_is_better() { "at least" } else { "at most" };
            found.push(format!("{}: {name} is {median:?}, {relation} {band}", scenario.trial.name));
        }
    }
    found
}

#[test]
fn the_shipped_law_ends_every_scenario_in_its_band() {
    let seeds = if std::env::var_os("TIDEGATE_LONG").is_some() { 5 } else { 2 };
    let all = scenarios();
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((_, scenario)) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    found.lock().unwrap().extend(outside(scenario, seeds));
                }
            });
        }
    });
    let found = found.into_inner().unwrap();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn the_same_seed_says_the_same_twice_and_another_says_something_else() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s.yaml");
    let text = "scenario: s\nwhy: w\nseconds: 200\nretries: {part: 0.5, tries: 3, after: 2s}\n\
                happens: [{at: 100s, replicas: 1, become: dead}]\n";
    fs::write(&path, text).unwrap();
    let run = |seed: &str| {
        let output = simulate(&[path.to_str().unwrap(), "--json", "--seed", seed]);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let first = run("7");
    assert_eq!(first, run("7"));
    assert_ne!(first, run("8").replace("\"seed\":8", "\"seed\":7"));
    let fields = [
        "scenario",
        "law",
        "seed",
        "goodput_bound",
        "goodput_oracle",
        "violation_s",
        "settle_s",
        "ttft_p99",
        "jain",
        "swing",
        "guarantee_missed_s",
    ];
    let mut laws = Vec::new();
    for line in first.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        for field in fields {
            assert!(line.get(field).is_some(), "{field}: {line}");
        }
        let ratio = line["goodput_bound"].as_f64().unwrap();
        // So short a run may have kinder requests than those that the capacity was measured with.
        assert!((0.0..=1.05).contains(&ratio), "{line}");
        laws.push(line["law"].as_str().unwrap().to_owned());
    }
    for name in
        ["tide", "none", "static", "aimd", "gradient2", "vegas", "envoy", "aperture", "saturation", "oracle"]
    {
        assert!(laws.iter().any(|law| law == name), "{name}: {laws:?}");
    }
}

#[test]
fn a_bad_scenario_is_named_with_file_line_column_and_remedy() {
    let found = complaint("scenario: s\nwhy: w\nseconds: 900\nlaod: 1.3\n", None);
    assert!(found.contains("the scenario has no field `laod`"), "{found}");
    assert!(found.contains("s.yaml:4:1") && found.contains("did you mean `load`?"), "{found}");
    let found = complaint("scenario: [\n", None);
    assert!(found.contains("s.yaml:"), "{found}");
}

#[test]
fn a_bad_line_of_a_trace_is_named_with_file_line_column_and_remedy() {
    let good = "scenario: s\nwhy: w\nseconds: 900\n";
    let trace = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n\
                 2023-11-16 18:15:50.9951690,396,many\n";
    let found = complaint(good, Some(trace));
    assert!(found.contains("t.csv:3:33: `many` is not a number of tokens"), "{found}");
    assert!(found.contains("an Azure trace has lines like"), "{found}");
    let found = complaint(good, Some("{\"timestamp\": 0, \"input_length\": 1, \"output_length\": 1}\n{}\n"));
    assert!(found.contains("t.csv:2:2: missing field `timestamp`"), "{found}");
}

#[test]
fn a_report_is_one_page_with_the_plots_of_every_law() {
    let directory = tempfile::tempdir().unwrap();
    let (path, page) = (directory.path().join("s.yaml"), directory.path().join("out.html"));
    fs::write(&path, "scenario: s\nwhy: w\nseconds: 100\n").unwrap();
    let output = simulate(&[path.to_str().unwrap(), "--report", page.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    let page = fs::read_to_string(page).unwrap();
    assert_eq!(page.matches("<svg").count(), 3 * page.matches("<h2>").count());
    assert!(page.matches("<h2>").count() >= 10 && !page.contains("://"));
}

#[test]
fn a_trace_drives_the_demand_and_an_unknown_law_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (path, trace) = (directory.path().join("s.yaml"), directory.path().join("t.csv"));
    fs::write(&path, "scenario: s\nwhy: w\nseconds: 200\n").unwrap();
    let mut text = "TIMESTAMP,ContextTokens,GeneratedTokens\n".to_owned();
    for at in 0..200 {
        text += &format!("2023-11-16 18:{:02}:{:02}.5000000,1000,{}\n", at / 60, at % 60, 100 + at);
    }
    fs::write(&trace, text).unwrap();
    let (path, trace) = (path.to_str().unwrap(), trace.to_str().unwrap());
    let output = simulate(&[path, "--trace", trace, "--law", "oracle", "--seeds", "2"]);
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && shown.contains("goodput_bound"), "{shown}");
    let output = simulate(&[path, "--law", "tides"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("there is no law `tides`; there are tide, none, static"), "{said}");
}
