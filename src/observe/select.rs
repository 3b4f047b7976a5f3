//! A page's samples and a pool's signal map: the signals of one replica.
//!
//! Servers rename their metrics; a map lists the names in order and the first one present wins.
//! All series it matches are summed (data-parallel ranks of one server report each for
//! themselves). Impossible values are turned away here: no room below checks again.

use std::collections::{BTreeMap, BTreeSet};

use crate::observe::exposition::{Format, Samples};
use crate::observe::skim::Skimmed;
use crate::observe::{Outcome, Signals};
use crate::policy::SignalMap;
use crate::unit::MAX_FINITE;

/// One metric of a page: `name` or `name{label="value",...}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    pub name: String,
    pub labels: Vec<(String, String)>,
}

/// A signal map, ready to be applied to pages.
#[derive(Clone, Debug, Default)]
pub struct Selectors {
    /// By metric name: which alternatives of which signals look at it.
    by_name: BTreeMap<String, Vec<Alternative>>,
    /// Alternatives per signal; zero where the pool does not have it.
    counts: BTreeMap<Signal, usize>,
}

/// What a pool may report, in the order of [`SignalMap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    Ready,
    Running,
    Waiting,
    WorkDone,
    WorkDoneOutput,
    Latency,
    Errors,
}

/// Why a selector cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("selector `{selector}`: {reason}; write `name` or `name{{label=\"value\"}}`")]
pub struct SelectorError {
    pub selector: String,
    pub reason: String,
}

#[derive(Clone, Debug)]
struct Alternative {
    signal: Signal,
    order: usize,
    labels: Vec<(String, String)>,
}

/// Largest value: beyond it a double no longer counts one by one, and what is squared further
/// down would become infinite, which the journal could not give back.
const VALUE_MAX: f64 = MAX_FINITE as f64;

/// A sum over the series of one alternative, or why there is none.
type Sum = Result<f64, String>;

// === impl Signal ===

impl Signal {
    pub const ALL: [Signal; 7] = [
        Signal::Ready,
        Signal::Running,
        Signal::Waiting,
        Signal::WorkDone,
        Signal::WorkDoneOutput,
        Signal::Latency,
        Signal::Errors,
    ];

    /// As a policy writes it.
    pub fn name(self) -> &'static str {
        match self {
            Signal::Ready => "ready",
            Signal::Running => "running",
            Signal::Waiting => "waiting",
            Signal::WorkDone => "work_done",
            Signal::WorkDoneOutput => "work_done_output",
            Signal::Latency => "latency",
            Signal::Errors => "errors",
        }
    }

    pub fn is_counter(self) -> bool {
        matches!(self, Signal::WorkDone | Signal::WorkDoneOutput | Signal::Errors)
    }

    pub fn alternatives(self, map: &SignalMap) -> &[String] {
        match self {
            Signal::Ready => &map.ready,
            Signal::Running => &map.running,
            Signal::Waiting => &map.waiting,
            Signal::WorkDone => &map.work_done,
            Signal::WorkDoneOutput => &map.work_done_output,
            Signal::Latency => &map.latency,
            Signal::Errors => &map.errors,
        }
    }
}

// === impl Selector ===

impl Selector {
    /// # Errors
    /// Says what is wrong with the text.
    pub fn parse(text: &str) -> Result<Selector, SelectorError> {
        let fail = |reason: &str| SelectorError { selector: text.to_owned(), reason: reason.to_owned() };
        let trimmed = text.trim();
        let bare = !trimmed.contains('{');
        // The page's own grammar: a selector is a sample without its value.
        let line = format!("{trimmed} 0\n");
        let mut samples = Samples::new(line.as_bytes(), Format::Text).map_err(|error| fail(&error.reason))?;
        let sample = match samples.next() {
            Some(Ok(sample)) if sample.timestamp.is_none() => sample,
            Some(Ok(_)) => return Err(fail("something follows the metric")),
            Some(Err(error)) => return Err(fail(&format!("column {}: {}", error.column, error.reason))),
            None => return Err(fail("no metric name")),
        };
        if samples.next().is_some() || (bare && sample.name != trimmed) {
            return Err(fail("something follows the metric"));
        }
        let labels =
            sample.labels.iter().map(|(name, value)| (name.to_owned(), value.into_owned())).collect();
        Ok(Selector { name: sample.name.to_owned(), labels })
    }
}

// === impl Selectors ===

impl Selectors {
    /// # Errors
    /// The first selector that is not one.
    pub fn new(map: &SignalMap) -> Result<Selectors, SelectorError> {
        let mut selectors = Selectors::default();
        for signal in Signal::ALL {
            let alternatives = signal.alternatives(map);
            for (order, text) in alternatives.iter().enumerate() {
                let Selector { name, labels } = Selector::parse(text)?;
                let alternative = Alternative { signal, order, labels };
                selectors.by_name.entry(name).or_default().push(alternative);
            }
            selectors.counts.insert(signal, alternatives.len());
        }
        Ok(selectors)
    }

    /// What one replica's page says.
    pub fn apply(&self, page: &[u8], format: Format) -> Outcome {
        match self.sums(page, format) {
            Err(reason) => Outcome::Silent(reason),
            Ok(sums) => self.outcome(sums),
        }
    }

    fn sums(&self, page: &[u8], format: Format) -> Result<BTreeMap<(Signal, usize), Sum>, String> {
        let mut sums: BTreeMap<(Signal, usize), Sum> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        let wanted = |name: &str| self.by_name.contains_key(name);
        for sample in Skimmed::new(page, format, wanted).map_err(|error| error.to_string())? {
            let sample = sample.map_err(|error| error.to_string())?;
            let Some(alternatives) = self.by_name.get(sample.name) else {
                continue;
            };
            if !seen.insert((sample.name, sample.labels)) {
                return Err(format!("series `{}` is on the page twice", sample.name));
            }
            for alternative in alternatives {
                let asked = |(name, value): &(String, String)| {
                    sample.labels.get(name).as_deref().unwrap_or_default() == value
                };
                if !alternative.labels.iter().all(asked) {
                    continue;
                }
                let sum = sums.entry((alternative.signal, alternative.order)).or_insert(Ok(0.0));
                add(sum, sample.name, sample.value);
            }
        }
        Ok(sums)
    }

    fn outcome(&self, mut sums: BTreeMap<(Signal, usize), Sum>) -> Outcome {
        let mut first = BTreeMap::new();
        for signal in Signal::ALL {
            let count = self.counts.get(&signal).copied().unwrap_or_default();
            let found = (0..count).find_map(|order| sums.remove(&(signal, order)));
            if let Some(sum) = found {
                first.insert(signal, sum);
            } else if signal == Signal::Ready && count > 0 {
                return Outcome::Silent("no series on the page matches `ready`".to_owned());
            }
        }
        if first.is_empty() {
            return Outcome::Silent("no metric of the pool's signal map is on the page".to_owned());
        }
        outcome_of(first)
    }
}

/// A replica's outcome from the sums of its signals; the same for every kind of source.
pub fn outcome_of(mut sums: BTreeMap<Signal, Sum>) -> Outcome {
    // Shown and never steered by: a latency that is not a number (no request yet) is no latency.
    if sums.get(&Signal::Latency).is_some_and(Result::is_err) {
        sums.remove(&Signal::Latency);
    }
    let mut values = BTreeMap::new();
    for (signal, sum) in sums {
        match sum {
            Ok(value) => values.insert(signal, value),
            Err(reason) => return Outcome::Silent(format!("{}: {reason}", signal.name())),
        };
    }
    if values.get(&Signal::Ready).is_some_and(|ready| *ready <= 0.0) {
        return Outcome::Down("ready is 0".to_owned());
    }
    let value = |signal| values.get(&signal).copied();
    Outcome::Up(Signals {
        running: value(Signal::Running),
        waiting: value(Signal::Waiting),
        work_done: value(Signal::WorkDone),
        work_done_output: value(Signal::WorkDoneOutput),
        latency: value(Signal::Latency),
        errors: value(Signal::Errors),
    })
}

/// Adds one series to a sum; what cannot be counted spoils it.
pub fn add(sum: &mut Sum, name: &str, value: f64) {
    let Ok(total) = sum else { return };
    if !value.is_finite() || value < 0.0 {
        *sum = Err(format!("`{name}` is {value}, not a finite number from 0"));
        return;
    }
    *total += value;
    if *total > VALUE_MAX {
        *sum = Err(format!("the sum over `{name}` is too large"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VLLM: &[u8] = include_bytes!("../../tests/captures/vllm-0.32.0-preempting.prom");

    fn map() -> SignalMap {
        let one = |text: &str| vec![text.to_owned()];
        SignalMap {
            running: one("vllm:num_requests_running"),
            waiting: vec![
                "vllm:num_requests_waiting_by_reason{reason=\"capacity\"}".to_owned(),
                "vllm:num_requests_waiting".to_owned(),
            ],
            work_done: one("vllm:prompt_tokens_by_source_total{source=\"local_compute\"}"),
            work_done_output: one("vllm:generation_tokens_total"),
            errors: one("vllm:request_success_total{finished_reason=\"error\"}"),
            ..SignalMap::default()
        }
    }

    fn up(map: &SignalMap, page: &[u8]) -> Signals {
        match Selectors::new(map).unwrap().apply(page, Format::Text) {
            Outcome::Up(signals) => signals,
            other => panic!("{other:?}"),
        }
    }

    fn not_up(map: &SignalMap, page: &str) -> Outcome {
        Selectors::new(map).unwrap().apply(page.as_bytes(), Format::Text)
    }

    #[test]
    fn a_real_page_gives_its_signals() {
        let signals = up(&map(), VLLM);
        assert_eq!(signals.running, Some(6.0));
        assert_eq!(signals.waiting, Some(18.0));
        assert_eq!(signals.work_done, Some(232.0));
        assert_eq!(signals.work_done_output, Some(5259.0));
        assert_eq!((signals.errors, signals.latency), (Some(0.0), None));
    }

    #[test]
    fn the_first_name_present_wins_and_ranks_are_summed() {
        let old = "vllm:num_requests_waiting{engine=\"0\"} 2\nvllm:num_requests_waiting{engine=\"1\"} 3\n";
        assert_eq!(up(&map(), old.as_bytes()).waiting, Some(5.0));
        let new = format!("{old}vllm:num_requests_waiting_by_reason{{reason=\"capacity\"}} 4\n");
        assert_eq!(up(&map(), new.as_bytes()).waiting, Some(4.0));
        let deferred = format!("{old}vllm:num_requests_waiting_by_reason{{reason=\"deferred\"}} 4\n");
        assert_eq!(up(&map(), deferred.as_bytes()).waiting, Some(5.0));
    }

    #[test]
    fn impossible_values_silence_the_replica() {
        for bad in ["NaN", "+Inf", "-1"] {
            let page = format!("vllm:num_requests_running{{engine=\"0\"}} {bad}\n");
            let Outcome::Silent(reason) = not_up(&map(), &page) else { panic!("{bad}") };
            assert!(reason.starts_with("running: `vllm:num_requests_running` is "), "{reason}");
        }
        let twice = "vllm:num_requests_running 1\nvllm:num_requests_running 1\n";
        let Outcome::Silent(reason) = not_up(&map(), twice) else { panic!() };
        assert_eq!(reason, "series `vllm:num_requests_running` is on the page twice");
        for huge in ["1e308", "1e16"] {
            let page = format!("vllm:num_requests_running{{e=\"0\"}} {huge}\n");
            let Outcome::Silent(reason) = not_up(&map(), &page) else { panic!("{huge}") };
            assert!(reason.ends_with("is too large"), "{reason}");
        }
    }

    #[test]
    fn a_latency_that_is_no_number_is_none() {
        let map = SignalMap { latency: vec!["ttft".to_owned()], ..map() };
        let page = b"ttft NaN\nvllm:num_requests_running 1\n";
        assert_eq!((up(&map, page).latency, up(&map, page).running), (None, Some(1.0)));
    }

    #[test]
    fn ready_decides_between_up_down_and_silent() {
        let map = SignalMap { ready: vec!["ready".to_owned()], ..map() };
        assert!(matches!(not_up(&map, "ready 0\n"), Outcome::Down(_)));
        assert!(matches!(not_up(&map, "other 1\n"), Outcome::Silent(_)));
        assert_eq!(up(&map, b"ready 1\n"), Signals::default());
    }

    #[test]
    fn a_page_without_any_mapped_metric_is_not_a_replica() {
        let Outcome::Silent(reason) = not_up(&map(), "go_goroutines 12\n") else { panic!() };
        assert_eq!(reason, "no metric of the pool's signal map is on the page");
        assert!(matches!(not_up(&map(), "<html>\n"), Outcome::Silent(_)));
    }

    #[test]
    fn selectors_are_names_with_exact_labels() {
        let selector = Selector::parse("a:b{x=\"1\", y=\"q\\\"\"}").unwrap();
        assert_eq!(selector.name, "a:b");
        assert_eq!(selector.labels[1], ("y".to_owned(), "q\"".to_owned()));
        for bad in ["", "a b", "a{x=1}", "a{x=\"1\"", "rate(a[1m])", "a 1", "a\nb", "a{x=\"1\"} 2"] {
            assert!(Selector::parse(bad).is_err(), "{bad:?}");
        }
    }
}
