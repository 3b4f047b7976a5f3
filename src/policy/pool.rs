//! What a pool's fields mean: where its load is read and in which unit it counts.

use std::time::Duration;

use crate::bounds::EXPRESSION_BYTES_MAX;
use crate::policy::diagnostic::Placed;
use crate::policy::origin::source;
use crate::policy::preset::{self, NAMES, Preset, SIGNALS};
use crate::policy::report::{Report, listed, nearest};
use crate::policy::selector::{self, Selector};
use crate::policy::shape::{Named, POOL_FIELDS, PoolShape, Text};
use crate::policy::trap::trap;
use crate::policy::value::{self, Refusal};
use crate::policy::{OutputCost, PoolPolicy, SignalMap, SourcePolicy};
use crate::unit::WorkUnit;

/// Least and most a pool may promise.
const SLO: [Duration; 2] = [Duration::from_millis(10), Duration::from_secs(600)];
/// Least and most work of one output token.
const OUTPUT_COST: [f64; 2] = [0.1, 1_000.0];
/// The one thing that may be said of a capacity that nobody measures.
const CAPACITY: &str = "fixed";
const UNITS: [(&str, WorkUnit); 3] =
    [("tokens", WorkUnit::Tokens), ("requests", WorkUnit::Requests), ("images", WorkUnit::Images)];

/// What is known of a pool, also when parts of it are wrong.
pub struct Pool {
    /// Its models' limits are checked against this even when the pool itself is refused.
    pub unit: Option<WorkUnit>,
    /// Nothing of it is measured, so nothing of it is shared.
    pub fixed: bool,
    pub policy: Option<PoolPolicy>,
}

pub fn pool(product: &str, name: &Text, shape: &PoolShape, report: &mut Report) -> Pool {
    if let Some(capacity) = &shape.capacity {
        return fixed(product, name, shape, capacity, report);
    }
    let selector = selector(shape, report);
    let preset = shape.preset.as_ref().and_then(|name| preset_of(name, shape, &selector, report));
    let unit = unit(name, shape, preset.as_ref(), report);
    let source = source(name, shape, preset.as_ref(), report);
    let signals = signals(name, shape, preset.as_ref(), unit, &selector, report);
    let slo = shape.slo.as_ref().and_then(|slo| {
        let parsed = accept(slo, value::duration(&slo.value), report)?;
        within(slo, parsed, SLO, "an SLO is from 10ms to 10m", report)
    });
    let output_cost = output_cost(shape, unit, report);
    let policy = || {
        Some(PoolPolicy {
            product: product.to_owned(),
            unit: unit?,
            output_cost: output_cost?,
            slo: slo?,
            source: source?,
            signals: signals?,
        })
    };
    Pool { unit, fixed: false, policy: policy() }
}

/// A pool of a published table: nobody is asked how loaded it is.
fn fixed(product: &str, name: &Text, shape: &PoolShape, capacity: &Text, report: &mut Report) -> Pool {
    let mut good = capacity.value == CAPACITY;
    if !good {
        let message = format!("`capacity` is `{}`", capacity.value);
        let help = "write `capacity: fixed`, or leave it out and name where the load is read";
        report.error(&capacity.place, message, help);
    }
    for (field, place) in &shape.stated {
        if !["capacity", "unit"].contains(&field.as_str()) && POOL_FIELDS.contains(&field.as_str()) {
            let message = format!("`{field}` in a pool of fixed capacity");
            let help =
                "remove one of the two: where nothing is measured the limits of the tiers are constants";
            report.error_and(place, (&capacity.place, "its capacity"), message, help);
            good = false;
        }
    }
    let unit = unit(name, shape, None, report);
    let [_, slo] = SLO;
    let policy = unit.filter(|_| good).map(|unit| PoolPolicy {
        product: product.to_owned(),
        unit,
        output_cost: OutputCost::Stated(1.0),
        slo,
        source: SourcePolicy::Fixed,
        signals: SignalMap::default(),
    });
    Pool { unit, fixed: true, policy }
}

/// A parsed value, or its refusal in the report.
pub fn accept<T>(text: &Text, parsed: Result<T, Refusal>, report: &mut Report) -> Option<T> {
    parsed.map_err(|refusal| report.error(&text.place, refusal.reason, refusal.help)).ok()
}

/// The value when it is in range, or a complaint.
pub fn within<T: PartialOrd>(
    text: &Text,
    value: T,
    [least, most]: [T; 2],
    help: &str,
    report: &mut Report,
) -> Option<T> {
    if value < least || value > most {
        report.error(&text.place, format!("`{}` is out of range", text.value), help);
        return None;
    }
    Some(value)
}

/// Says that a name is none of those there are, and which was likely meant.
pub fn unknown(name: &Text, noun: &str, there_are: &[&str], report: &mut Report) {
    let candidates = there_are.iter().copied().filter(|_| !report.is_full());
    let help = match nearest(&name.value, candidates) {
        Some(near) => format!("did you mean `{near}`?"),
        None if there_are.len() > 12 => {
            format!("there are {} of them, none with a similar name", there_are.len())
        }
        None if there_are.is_empty() => "there is none".to_owned(),
        None => format!("there is {}", listed(there_are)),
    };
    report.error(&name.place, format!("there is no {noun} `{}`", name.value), help);
}

fn selector(shape: &PoolShape, report: &mut Report) -> String {
    let Some(selector) = &shape.selector else { return String::new() };
    let direct = shape.targets.is_some() || shape.file_sd.is_some() || shape.dns.is_some();
    if shape.prometheus.is_none() && direct {
        let help = "remove it: `targets` are read directly, one replica each";
        report.error(&selector.place, "`selector` belongs to `prometheus`", help);
    } else if selector.value.len() > EXPRESSION_BYTES_MAX
        || selector::matchers(&selector.value).is_none_or(|all| all.is_empty())
    {
        let help = "write label matchers without braces: `selector: 'job=\"vllm\"'`";
        report.error(&selector.place, "`selector` is not a list of label matchers", help);
    } else {
        return selector.value.trim().trim_end_matches(',').to_owned();
    }
    String::new()
}

fn preset_of(name: &Text, shape: &PoolShape, selector: &str, report: &mut Report) -> Option<Preset> {
    let found = match shape.prometheus {
        Some(_) => preset::prometheus(&name.value, selector),
        None => preset::direct(&name.value),
    };
    if found.is_none() {
        unknown(name, "preset", &NAMES, report);
    }
    found
}

fn unit(name: &Text, shape: &PoolShape, preset: Option<&Preset>, report: &mut Report) -> Option<WorkUnit> {
    match &shape.unit {
        Some(unit) => {
            let found = UNITS.into_iter().find(|(word, _)| *word == unit.value).map(|(_, unit)| unit);
            if found.is_none() {
                unknown(unit, "unit of work", &UNITS.map(|(word, _)| word), report);
            }
            found
        }
        None if preset.is_some() => preset.map(|preset| preset.unit),
        // A mistyped preset is reported as such.
        None if shape.preset.is_some() => None,
        None => {
            let help = "without a preset, write `unit: tokens`, `requests` or `images`";
            report.error(&name.place, format!("pool `{}` has no `unit`", name.value), help);
            None
        }
    }
}

fn signals(
    name: &Text,
    shape: &PoolShape,
    preset: Option<&Preset>,
    unit: Option<WorkUnit>,
    selector: &str,
    report: &mut Report,
) -> Option<SignalMap> {
    let mut map = preset.map_or_else(SignalMap::default, |preset| preset.signals.clone());
    if preset.is_some_and(|preset| unit.is_some_and(|unit| unit != preset.unit)) {
        map.work_done.clear();
        map.work_done_output.clear();
    }
    let mut good = true;
    for (signal, alternatives) in &shape.signals {
        let Some(list) = map.named(&signal.value) else {
            unknown(signal, "signal", &SIGNALS, report);
            good = false;
            continue;
        };
        *list = expressions(shape, &signal.value, alternatives, selector, report).unwrap_or_default();
        good &= !list.is_empty();
    }
    // A mistyped preset or signal is reported as such, not as a signal that is missing.
    let named = preset.is_some() || shape.preset.is_none();
    let mut missing = Vec::new();
    for (list, signal) in [(&map.running, "running"), (&map.work_done, "work_done")] {
        let stated = shape.signals.iter().any(|(name, _)| name.value == signal);
        if list.is_empty() && !stated && named {
            missing.push(signal);
        }
    }
    for signal in missing {
        let help = match signal {
            "running" => "name the gauge of requests being served: `signals: {running: METRIC}`",
            _ => "name the counter of work delivered, in the pool's unit: `signals: {work_done: METRIC}`",
        };
        report.error(&name.place, format!("pool `{}` has no signal `{signal}`", name.value), help);
        good = false;
    }
    if let Some((output, _)) = shape.signals.iter().find(|(name, _)| name.value == "work_done_output")
        && unit.is_some_and(|unit| unit != WorkUnit::Tokens)
    {
        let help = "remove it: only a pool that counts tokens has output tokens";
        report.error(&output.place, "`work_done_output` in a pool that does not count tokens", help);
        good = false;
    }
    if map.ready.is_empty() && shape.prometheus.is_some() && !selector.is_empty() {
        map.ready = vec![selector::narrow("up", selector)];
    }
    (good && named).then_some(map)
}

fn expressions(
    shape: &PoolShape,
    signal: &str,
    alternatives: &Placed<Vec<Text>>,
    selector: &str,
    report: &mut Report,
) -> Option<Vec<String>> {
    let mut good = true;
    let mut list = Vec::with_capacity(alternatives.value.len());
    for text in &alternatives.value {
        let expression = text.value.trim();
        let plain = Selector::parse(expression);
        let (accepted, reason, help) = if shape.prometheus.is_some() {
            let balanced = ["()", "{}", "[]"].into_iter().all(|pair| {
                let [open, close] = [0, 1].map(|at| pair.chars().nth(at).unwrap_or_default());
                expression.matches(open).count() == expression.matches(close).count()
            });
            let known = plain.is_some() || balanced && !expression.is_empty();
            (
                known,
                "not a PromQL expression",
                "write a metric or any PromQL that yields one series a replica",
            )
        } else {
            let exact = plain.is_some_and(|selector| selector.is_exact());
            (
                exact,
                "not a metric on a page",
                "write `name` or `name{label=\"value\"}`; queries need `prometheus`",
            )
        };
        if !accepted || expression.len() > EXPRESSION_BYTES_MAX || expression.chars().any(char::is_control) {
            report.error(&text.place, reason, help);
            good = false;
        } else if let Some(trap) = trap(signal, expression) {
            let message = format!("`{}` cannot be `{signal}`: {}", trap.metric, trap.why);
            report.error(&text.place, message, trap.instead);
            good = false;
        }
        list.push(selector::narrow(expression, selector));
    }
    good.then_some(list)
}

fn output_cost(shape: &PoolShape, unit: Option<WorkUnit>, report: &mut Report) -> Option<OutputCost> {
    let Some(cost) = &shape.output_token_cost else {
        return Some(match unit {
            Some(WorkUnit::Requests | WorkUnit::Images) => OutputCost::Stated(1.0),
            _ => OutputCost::Learned,
        });
    };
    if unit.is_some_and(|unit| unit != WorkUnit::Tokens) {
        let help = "remove it: one request or image is one unit of work";
        report.error(&cost.place, "`output_token_cost` in a pool that does not count tokens", help);
        return None;
    }
    if cost.value == "learned" {
        return Some(OutputCost::Learned);
    }
    let help = "write a number from 0.1 to 1000, in input tokens, or `learned`";
    let parsed = value::decimal(&cost.value).map_err(|refusal| Refusal { help: help.to_owned(), ..refusal });
    let parsed = accept(cost, parsed, report)?;
    within(cost, parsed, OUTPUT_COST, help, report).map(OutputCost::Stated)
}

/// Pools by name, for those who refer to them.
pub fn find<'a, T>(pools: &'a [Named<T>], name: &str) -> Option<&'a T> {
    pools.iter().find(|(found, _)| found.value == name).map(|(_, pool)| pool)
}
