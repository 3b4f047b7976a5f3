//! Scenario files: one trial each, with the band its scores must end in.
//!
//! Read with the policy's own reader, so that a mistake is named with file, line, column and
//! remedy, and a field that nobody knows is refused.

mod events;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::bounds::TRIAL_SECONDS_MAX;
use crate::policy::diagnostic::{Diagnostic, Place};
use crate::policy::fields::{Fields, Text};
use crate::policy::file::{self, Node};
use crate::policy::report::{Report, listed, nearest};
use crate::policy::value::{self, Refusal};
use crate::sim::engine::Quota;
use crate::sim::engine::Shape;
use crate::sim::trial::score::Metric;
use crate::sim::trial::sizes::Sizes;
use crate::sim::trial::{Retries, TierTerms, Trial, Wave};

const FIELDS: &[&str] = &[
    "scenario",
    "why",
    "seconds",
    "warm",
    "load",
    "replicas",
    "nodes",
    "slo",
    "slo_prompt_rate",
    "interval",
    "delay",
    "sizes",
    "quota",
    "burst",
    "burst_for",
    "wave",
    "retries",
    "tiers",
    "happens",
    "band",
    "goal",
];
const TIER_FIELDS: &[&str] = &["part", "priority", "weight", "guarantee", "keys"];
/// Most replicas, nodes or keys of a trial.
const COUNT_MOST: f64 = 4_096.0;

/// A scenario as its file says it.
#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    pub trial: Trial,
    /// Where the shipped law's scores must end: at least, or at most, by what is better.
    pub band: BTreeMap<Metric, f64>,
    /// Where they are meant to.
    pub goal: BTreeMap<Metric, f64>,
}

/// Reads one scenario.
///
/// # Errors
/// Everything that is wrong with it.
pub fn read(name: &str, bytes: &[u8]) -> Result<Scenario, Vec<Diagnostic>> {
    let mut report = Report::default();
    let scenario = file::read(name, bytes, &mut report).and_then(|node| scenario(node, &mut report));
    match scenario {
        Some(scenario) if !report.has_errors() => Ok(scenario),
        _ => Err(report.finish()),
    }
}

fn scenario(node: Node, report: &mut Report) -> Option<Scenario> {
    let place = Place { span: 0..0, ..node.place.clone() };
    let mut fields = Fields::open(node, "the scenario".to_owned(), place, FIELDS, report)?;
    let base = Trial::default();
    let name = fields.required_text("scenario", "write its name: `scenario: halving`");
    let why = fields.required_text("why", "say in one line why it exists");
    let most = TRIAL_SECONDS_MAX as f64;
    if !fields.has("seconds") {
        fields.missing("seconds", "write its length: `seconds: 900`");
    }
    let seconds = number(&mut fields, "seconds", [10.0, most]).unwrap_or(base.seconds);
    let warm = number(&mut fields, "warm", [0.0, most]).unwrap_or(base.warm).min(seconds);
    let mut trial = Trial {
        name: name.map(|name| name.value).unwrap_or_default(),
        why: why.map(|why| why.value).unwrap_or_default(),
        seconds,
        warm,
        load: number(&mut fields, "load", [0.01, 100.0]).unwrap_or(base.load),
        replicas: count(&mut fields, "replicas").unwrap_or(base.replicas),
        nodes: count(&mut fields, "nodes").unwrap_or(base.nodes),
        slo: duration(&mut fields, "slo").unwrap_or(base.slo),
        slo_prompt_rate: number(&mut fields, "slo_prompt_rate", [1.0, 1e9]).unwrap_or(base.slo_prompt_rate),
        interval: duration(&mut fields, "interval").unwrap_or(base.interval),
        delay: duration(&mut fields, "delay").unwrap_or(base.delay),
        sizes: sizes(&mut fields).unwrap_or(base.sizes),
        burst: number(&mut fields, "burst", [0.0, 10.0]).unwrap_or(base.burst),
        burst_seconds: duration(&mut fields, "burst_for")
            .map_or(base.burst_seconds, |time| time.as_secs_f64()),
        wave: wave(&mut fields),
        retries: retries(&mut fields),
        tiers: tiers(&mut fields).unwrap_or(base.tiers),
        ..base
    };
    if trial.sizes == Sizes::Images {
        // Eight servers a replica, and nobody leaves before a minute has passed.
        let patience = Duration::from_secs(60);
        trial.shape = Shape { slots: 8, jobs: true, output_cost: 0.0, patience, ..trial.shape };
    }
    if let Some(quota) = quota(&mut fields) {
        // Whatever it lets in is served, in seconds.
        trial.shape =
            Shape { slots: usize::MAX, jobs: true, output_cost: 0.0, quota: Some(quota), ..trial.shape };
    }
    events::take(&mut fields, &mut trial);
    let (band, goal) = (metrics(&mut fields, "band"), metrics(&mut fields, "goal"));
    fields.close(FIELDS);
    Some(Scenario { trial, band, goal })
}

/// A parsed value, or its refusal in the report.
fn accept<T>(text: &Text, parsed: Result<T, Refusal>, report: &mut Report) -> Option<T> {
    parsed.map_err(|refusal| report.error(&text.place, refusal.reason, refusal.help)).ok()
}

fn within(text: &Text, value: f64, [least, most]: [f64; 2], report: &mut Report) -> Option<f64> {
    if (least..=most).contains(&value) {
        return Some(value);
    }
    let help = format!("write a number from {least} to {most}");
    report.error(&text.place, format!("`{}` is out of range", text.value), help);
    None
}

fn number(fields: &mut Fields<'_>, field: &str, range: [f64; 2]) -> Option<f64> {
    let text = fields.text(field)?;
    let value = accept(&text, value::decimal(&text.value), fields.report)?;
    within(&text, value, range, fields.report)
}

fn count(fields: &mut Fields<'_>, field: &str) -> Option<usize> {
    let text = fields.text(field)?;
    let value = accept(&text, value::integer(&text.value), fields.report)?;
    within(&text, value as f64, [1.0, COUNT_MOST], fields.report).map(|value| value as usize)
}

fn duration(fields: &mut Fields<'_>, field: &str) -> Option<Duration> {
    let text = fields.text(field)?;
    let time = accept(&text, value::duration(&text.value), fields.report)?;
    within(&text, time.as_secs_f64(), [0.001, TRIAL_SECONDS_MAX as f64], fields.report).map(|_| time)
}

fn sizes(fields: &mut Fields<'_>) -> Option<Sizes> {
    let text = fields.text("sizes")?;
    one_of(&text, "sizes", &Sizes::ALL, fields.report)
}

/// The value of a word.
fn one_of<T: Copy>(text: &Text, noun: &str, words: &[(&str, T)], report: &mut Report) -> Option<T> {
    let found = words.iter().find(|(word, _)| *word == text.value).map(|(_, value)| *value);
    if found.is_none() {
        let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let help = match nearest(&text.value, names.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("there is {}", listed(&names)),
        };
        report.error(&text.place, format!("there is no {noun} `{}`", text.value), help);
    }
    found
}

/// A mapping below a field.
fn below<T>(
    fields: &mut Fields<'_>,
    field: &str,
    known: &[&str],
    read: impl FnOnce(&mut Fields<'_>) -> Option<T>,
) -> Option<T> {
    let (name, node) = fields.take(field)?;
    inside(node, format!("`{field}`"), name.place, known, fields.report, read)
}

fn inside<T>(
    node: Node,
    what: String,
    place: Place,
    known: &[&str],
    report: &mut Report,
    read: impl FnOnce(&mut Fields<'_>) -> Option<T>,
) -> Option<T> {
    let mut fields = Fields::open(node, what, place, known, report)?;
    let value = read(&mut fields);
    fields.close(known);
    value
}

fn required(fields: &mut Fields<'_>, field: &str, example: &str) {
    if !fields.has(field) {
        fields.missing(field, &format!("write one: `{field}: {example}`"));
    }
}

fn wave(fields: &mut Fields<'_>) -> Option<Wave> {
    below(fields, "wave", &["period", "ratio"], |fields| {
        required(fields, "period", "600s");
        required(fields, "ratio", "3");
        let period = duration(fields, "period").map(|time| time.as_secs_f64());
        let ratio = number(fields, "ratio", [1.0, 1000.0]);
        Some(Wave { period: period?, ratio: ratio? })
    })
}

fn quota(fields: &mut Fields<'_>) -> Option<Quota> {
    let known = ["per_second", "depth", "counts_refused", "headers"];
    below(fields, "quota", &known, |fields| {
        required(fields, "per_second", "20");
        let flag = |fields: &mut Fields<'_>, field: &str| {
            let text = fields.text(field)?;
            one_of(&text, field, &[("yes", true), ("no", false)], fields.report)
        };
        let per_second = number(fields, "per_second", [0.1, 1e6]);
        let depth = number(fields, "depth", [1.0, 1e6]);
        let counts_refused = flag(fields, "counts_refused").unwrap_or(false);
        let headers = flag(fields, "headers").unwrap_or(false);
        let per_second = per_second?;
        Some(Quota { per_second, depth: depth.unwrap_or(per_second.max(1.0)), counts_refused, headers })
    })
}

fn retries(fields: &mut Fields<'_>) -> Option<Retries> {
    below(fields, "retries", &["part", "tries", "after"], |fields| {
        required(fields, "part", "0.8");
        required(fields, "tries", "3");
        required(fields, "after", "2s");
        let (part, tries) = (number(fields, "part", [0.0, 1.0]), number(fields, "tries", [1.0, 100.0]));
        let after = duration(fields, "after").map(|time| time.as_secs_f64());
        Some(Retries { part: part?, tries: tries? as u32, after: after? })
    })
}

fn tiers(fields: &mut Fields<'_>) -> Option<Vec<TierTerms>> {
    if !fields.has("tiers") {
        return None;
    }
    let entries = fields.entries("tiers", "tier", false);
    let tier = |(name, node): (Text, Node)| {
        let what = format!("tier `{}`", name.value);
        let place = name.place.clone();
        inside(node, what, place, TIER_FIELDS, fields.report, |fields| {
            required(fields, "part", "0.3");
            required(fields, "priority", "1");
            let part = number(fields, "part", [0.0, 1.0]);
            let priority = number(fields, "priority", [1.0, 100.0]);
            Some(TierTerms {
                name: name.value.clone(),
                weight: number(fields, "weight", [0.001, 1e6]).unwrap_or(1.0),
                guarantee: number(fields, "guarantee", [0.0, 1.0]).unwrap_or(0.0),
                keys: count(fields, "keys").and_then(|keys| u32::try_from(keys).ok()).unwrap_or(8),
                part: part?,
                priority: priority? as u32,
            })
        })
    };
    Some(entries.into_iter().filter_map(tier).collect())
}

fn metrics(fields: &mut Fields<'_>, field: &str) -> BTreeMap<Metric, f64> {
    let known: Vec<&str> = Metric::ALL.iter().map(|(name, _)| *name).collect();
    let read = |fields: &mut Fields<'_>| {
        let one = |(name, metric): &(&str, Metric)| Some((*metric, number(fields, name, [0.0, 1e6])?));
        Some(Metric::ALL.iter().filter_map(one).collect())
    };
    below(fields, field, &known, read).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::page::Untrue;
    use crate::sim::trial::Happening;

    const GOOD: &str = "scenario: s\nwhy: w\nseconds: 900\n";

    fn refusals(text: &str) -> String {
        let found = read("s.yaml", text.as_bytes()).unwrap_err();
        found.iter().map(|one| format!("{one}\n")).collect()
    }

    #[test]
    fn everything_is_read_and_what_is_not_said_is_steady_overload() {
        let text = "wave: {period: 600s, ratio: 3}\nretries: {part: 0.8, tries: 3, after: 2s}\nsizes: code\n\
                    happens:\n- {at: 300s, tier: free, times: 6}\n- {at: 100s, replicas: [2, 3], become: dead}\n\
                    - {at: 200s, replicas: 2, become: slow, part: 0.7}\n- {at: 400s, pages: [0], show: silence}\n\
                    - {at: 500s, output_times: 2}\n- {at: 600s, tier: pro, key: 0, times: 10}\n\
                    - {from: 700s, to: 790s, every: 30s, replicas: 1, become: flapping}\n\
                    band: {goodput_oracle: 0.9, violation_s: 3}\n";
        let scenario = read("s.yaml", format!("{GOOD}{text}").as_bytes()).unwrap();
        let trial = &scenario.trial;
        assert_eq!((trial.load, trial.replicas, trial.sizes), (1.3, 4, Sizes::Code));
        assert_eq!(trial.wave, Some(Wave { period: 600.0, ratio: 3.0 }));
        let at: Vec<f64> = trial.happenings.iter().map(|(at, _)| *at).collect();
        assert_eq!(at, [100.0, 200.0, 300.0, 400.0, 500.0, 600.0, 700.0, 730.0, 760.0, 790.0]);
        assert_eq!(trial.happenings[0].1, Happening::Die { replicas: vec![2, 3] });
        assert_eq!(trial.happenings[1].1, Happening::Slow { replicas: vec![2], part: 0.7 });
        assert_eq!(trial.happenings[2].1, Happening::Flood { tier: 2, key: None, times: 6.0 });
        let silent = Happening::Show { replicas: vec![0], untrue: Some(Untrue::Silent) };
        assert_eq!(trial.happenings[3].1, silent);
        assert_eq!(trial.happenings[9].1, Happening::Revive { replicas: vec![1] });
        assert_eq!(scenario.band[&Metric::GoodputOracle], 0.9);
    }

    #[test]
    fn a_mistake_is_named_with_its_place_and_remedy() {
        for (text, said) in [
            ("laod: 1.3\n", "s.yaml:4:1: error: the scenario has no field `laod` (did you mean `load`?)"),
            (
                "load: much\n",
                "s.yaml:4:7: error: `much` is not a whole number (write a plain number: `4` or `0.5`)",
            ),
            ("load: 1000\n", "s.yaml:4:7: error: `1000` is out of range (write a number from 0.01 to 100)"),
            ("slo: 2\n", "s.yaml:4:6: error: `2` has no unit"),
            ("sizes: chatt\n", "s.yaml:4:8: error: there is no sizes `chatt` (did you mean `chat`?)"),
            ("wave: {period: 60s}\n", "s.yaml:4:1: error: `wave` has no `ratio` (write one: `ratio: 3`)"),
            ("band: {goodputs: 1}\n", "s.yaml:4:8: error: `band` has no field `goodputs`"),
            ("tiers: {a: {part: 1}}\n", "s.yaml:4:9: error: tier `a` has no `priority`"),
            ("happens: [{at: 1s}]\n", "s.yaml:4:11: error: nothing happens at this time (write "),
            (
                "happens: [{at: 1s, replicas: 9, become: dead}]\n",
                "error: there is no replica `9` (there are 4, from 0)",
            ),
            (
                "happens: [{at: 1s, replicas: 1, become: ded}]\n",
                "error: there is no state `ded` (did you mean `dead`?)",
            ),
            ("happens: [{at: 1s, tier: x, times: 2}]\n", "error: there is no tier `x`"),
        ] {
            let found = refusals(&format!("{GOOD}{text}"));
            assert!(found.contains(said), "{text}: {found}");
        }
        assert!(refusals("scenario: s\n").contains("the scenario has no `why`"));
    }
}
