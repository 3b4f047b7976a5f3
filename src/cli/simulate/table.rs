//! What `tidegate simulate` prints for people: a table of laws for each scenario, and of several
//! scenarios the goals and the goodput side by side.

use tidegate::sim::trial::contest::{ORACLE, Row, Spread};
use tidegate::sim::trial::file::Scenario;
use tidegate::sim::trial::score::Metric;

/// The law that ships.
const OURS: &str = "tide";

/// Laws that the table shows: of a rival's grid only the best, where all were run.
pub fn shown_of(rows: &[Row], laws: &[String], best_only: bool) -> Vec<String> {
    let rival = |law: &String| law.split_once('/').map(|(rival, _)| rival.to_owned());
    let is_best = |law: &&String| {
        let Some(of) = rival(law).filter(|_| best_only) else { return true };
        let grid = laws.iter().filter(|other| rival(other).as_ref() == Some(&of));
        grid.max_by(|a, b| served(rows, a).total_cmp(&served(rows, b))) == Some(*law)
    };
    laws.iter().filter(is_best).cloned().collect()
}

pub fn table(scenario: &Scenario, rows: &[Row], laws: &[String]) -> String {
    let mut head = vec!["law".to_owned()];
    head.extend(Metric::ALL.iter().map(|(name, _)| (*name).to_owned()));
    let mut lines = vec![head];
    for law in laws {
        let of = || rows.iter().filter(|row| row.law == *law);
        if of().next().is_none() {
            continue;
        }
        let mut line = vec![law.clone()];
        for (_, metric) in Metric::ALL {
            let spread = Spread::of(of().map(|row| row.metric(metric)));
            line.push(spread.map_or("-".to_owned(), |spread| shown(metric, &spread)));
        }
        lines.push(line);
    }
    let trial = &scenario.trial;
    format!("{}: {}\n{}\n", trial.name, trial.why, aligned(&lines))
}

/// The median, and how far the runs lie from it.
fn shown(metric: Metric, spread: &Spread) -> String {
    let digits = match metric {
        Metric::ViolationS | Metric::SettleS | Metric::GuaranteeMissedS => 0,
        Metric::TtftP99 | Metric::TtftPeak => 2,
        _ => 3,
    };
    let off = f64::max(spread.most - spread.median, spread.median - spread.least);
    let median = format!("{:.digits$}", spread.median);
    let shows = off * 10f64.powi(digits as i32) >= 0.5;
    if shows { format!("{median} ±{off:.digits$}") } else { median }
}

fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        for (at, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let pad = " ".repeat(width - cell.chars().count());
            // Names to the left, numbers to the right.
            text += &if at == 0 { format!("{cell}{pad}") } else { format!("  {pad}{cell}") };
        }
        text.push('\n');
    }
    text
}

/// Of several scenarios: what each law served, and what ours reached of its goals.
pub fn summary(runs: &[(&Scenario, Vec<Row>)], laws: &[String]) -> String {
    format!(
        "work served in time, over the oracle's (for a provider: over its quota); of a rival the better of\n\
         its default and its grid\n{}\ngoals\n{}",
        aligned(&goodput(runs, laws)),
        aligned(&goals(runs, laws))
    )
}

/// One line a scenario, one column a law: of a rival the variant that served most there.
fn goodput(runs: &[(&Scenario, Vec<Row>)], laws: &[String]) -> Vec<Vec<String>> {
    let mut names: Vec<&str> = laws.iter().map(|law| family(law)).collect();
    names.dedup();
    let mut lines =
        vec![std::iter::once("scenario").chain(names.iter().copied()).map(str::to_owned).collect()];
    for (scenario, rows) in runs {
        let cell = |name: &&str| {
            let variants = laws.iter().filter(|law| family(law) == *name);
            let best = variants.max_by(|a, b| served(rows, a).total_cmp(&served(rows, b)));
            best.and_then(|law| spread(rows, law, metric_of(rows)))
                .map_or("-".to_owned(), |of| shown(Metric::GoodputOracle, &of))
        };
        lines.push(std::iter::once(scenario.trial.name.clone()).chain(names.iter().map(cell)).collect());
    }
    lines
}

/// One line a goal, with the rival that served most in that scenario beside.
fn goals(runs: &[(&Scenario, Vec<Row>)], laws: &[String]) -> Vec<Vec<String>> {
    let head = ["scenario", "metric", "goal", OURS, "", "the best rival", "is"];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    for (scenario, rows) in runs {
        let rivals = laws.iter().filter(|law| ![OURS, ORACLE].contains(&law.as_str()));
        let rival = rivals.max_by(|a, b| served(rows, a).total_cmp(&served(rows, b)));
        for (name, metric) in Metric::ALL {
            let Some(goal) = scenario.goal.get(&metric) else { continue };
            let Some(ours) = spread(rows, OURS, metric) else { continue };
            let (sign, kept) = if metric.more_is_better() {
                (">=", ours.median >= *goal)
            } else {
                ("<=", ours.median <= *goal)
            };
            let theirs = rival.and_then(|rival| spread(rows, rival, metric));
            lines.push(vec![
                scenario.trial.name.clone(),
                name.to_owned(),
                format!("{sign} {goal}"),
                shown(metric, &ours),
                if kept { "kept" } else { "missed" }.to_owned(),
                theirs.map_or("-".to_owned(), |theirs| shown(metric, &theirs)),
                rival.cloned().unwrap_or_default(),
            ]);
        }
    }
    lines
}

/// Whose variant a law is.
fn family(law: &str) -> &str {
    law.split_once('/').map_or(law, |(family, _)| family)
}

fn spread(rows: &[Row], law: &str, metric: Metric) -> Option<Spread> {
    Spread::of(rows.iter().filter(|row| row.law == law).map(|row| row.metric(metric)))
}

/// A provider has no oracle: its quota says what could have been served.
fn metric_of(rows: &[Row]) -> Metric {
    let any = rows.iter().any(|row| row.oracle.is_some());
    if any { Metric::GoodputOracle } else { Metric::GoodputBound }
}

fn served(rows: &[Row], law: &str) -> f64 {
    spread(rows, law, Metric::GoodputBound).map_or(0.0, |of| of.median)
}
