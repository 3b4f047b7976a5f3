//! Known servers: a preset is a map from signals to metrics and the unit they count, no code.
//!
//! For a Prometheus each alternative is a plain selector wherever it can be one, so that the
//! reader may ask for its age too and sum a replica's series itself.

use crate::policy::SignalMap;
use crate::unit::WorkUnit;

/// Names of the presets there are.
pub const NAMES: [&str; 1] = ["vllm"];
/// Names of the signals there are.
pub const SIGNALS: [&str; 7] =
    ["ready", "running", "waiting", "work_done", "work_done_output", "latency", "errors"];

/// A map for one source, and what its `work_done` counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Preset {
    pub unit: WorkUnit,
    pub signals: SignalMap,
}

/// `name{label="value", ..}`, the form that both sources read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    pub name: String,
    /// What stands in the braces, trimmed; empty without braces.
    pub matchers: String,
}

/// The preset for replicas that are scraped directly.
pub fn direct(name: &str) -> Option<Preset> {
    (name == "vllm").then(|| Preset { unit: WorkUnit::Tokens, signals: vllm() })
}

/// The preset read from a Prometheus, narrowed to the series that `selector` names.
pub fn prometheus(name: &str, selector: &str) -> Option<Preset> {
    let mut preset = direct(name)?;
    preset.signals = preset.signals.narrowed(selector);
    preset.signals.ready = vllm_ready(selector);
    preset.signals.latency = ["vllm:time_to_first_token_seconds", "ray_vllm_time_to_first_token_seconds"]
        .map(|metric| {
            let bucket = narrow(&format!("{metric}_bucket"), selector);
            format!("histogram_quantile(0.99, sum by (instance, le) (rate({bucket}[1m])))")
        })
        .into();
    Some(preset)
}

/// vLLM's names since 0.6, newest first, then the same through Ray, which writes `_` for `:`.
/// Its time to first token is a histogram, of which a page holds no recent value.
fn vllm() -> SignalMap {
    let names = |suffixes: &[&str]| -> Vec<String> {
        let named = |prefix: &'static str| suffixes.iter().map(move |suffix| format!("{prefix}{suffix}"));
        named("vllm:").chain(named("ray_vllm_")).collect()
    };
    SignalMap {
        ready: Vec::new(),
        running: names(&["num_requests_running"]),
        // Requests deferred for other reasons than capacity would look like a backlog.
        waiting: names(&["num_requests_waiting_by_reason{reason=\"capacity\"}", "num_requests_waiting"]),
        // Tokens found in the prefix cache are no work.
        work_done: names(&[
            "prompt_tokens_by_source_total{source=\"local_compute\"}",
            "prompt_tokens_total",
            "prompt_tokens",
        ]),
        work_done_output: names(&["generation_tokens_total", "generation_tokens"]),
        latency: Vec::new(),
        // `abort` is the client's doing.
        errors: names(&["request_success_total{finished_reason=\"error\"}"]),
    }
}

/// `up` tells a dead replica from an unknown one, but without a selector it names every target
/// of the Prometheus: then only those count that lately showed vLLM's metrics.
fn vllm_ready(selector: &str) -> Vec<String> {
    if !selector.is_empty() {
        return vec![narrow("up", selector)];
    }
    ["vllm:num_requests_running", "ray_vllm_num_requests_running"]
        .map(|metric| format!("up and on (instance, job) last_over_time({metric}[5m])"))
        .into()
}

/// Adds `matchers` to a plain selector; any other expression says for itself what it means.
pub fn narrow(expression: &str, matchers: &str) -> String {
    match Selector::parse(expression) {
        Some(selector) if !matchers.is_empty() => {
            let comma = if selector.matchers.is_empty() { "" } else { "," };
            format!("{}{{{}{comma}{matchers}}}", selector.name, selector.matchers)
        }
        _ => expression.to_owned(),
    }
}

/// Splits `a="x",b=~"y"` into label, operator and quoted value. `None`: it is not that.
pub fn matchers(text: &str) -> Option<Vec<(&str, &str, &str)>> {
    let mut found = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (label, after) = rest.split_at(rest.find(|c: char| !is_label(c)).unwrap_or(rest.len()));
        if label.is_empty() || label.starts_with(|c: char| c.is_ascii_digit()) {
            return None;
        }
        let after = after.trim_start();
        let operator = ["=~", "!~", "!=", "="].into_iter().find(|operator| after.starts_with(operator))?;
        let quoted = after.strip_prefix(operator)?.trim_start().strip_prefix('"')?;
        let end = closing_quote(quoted)?;
        found.push((label, operator, quoted.get(..end)?));
        let after = quoted.get(end + 1..)?.trim_start();
        match after.strip_prefix(',') {
            Some(next) => rest = next.trim_start(),
            None if after.is_empty() => rest = after,
            None => return None,
        }
    }
    Some(found)
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(at, c)| {
        let closes = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        closes.then_some(at)
    })
}

fn is_label(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

// === impl Selector ===

impl Selector {
    pub fn parse(text: &str) -> Option<Self> {
        let (name, matchers) = match text.split_once('{') {
            Some((name, rest)) => (name.trim_end(), rest.strip_suffix('}')?.trim()),
            None => (text, ""),
        };
        let valid = !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.chars().all(|c| is_label(c) || c == ':');
        let matchers = matchers.strip_suffix(',').unwrap_or(matchers);
        (valid && self::matchers(matchers).is_some())
            .then(|| Self { name: name.to_owned(), matchers: matchers.to_owned() })
    }

    /// Only `=`: what can be looked up on a page without a query language.
    pub fn is_exact(&self) -> bool {
        matchers(&self.matchers).is_some_and(|all| all.iter().all(|(_, operator, _)| *operator == "="))
    }
}

// === impl SignalMap ===

impl SignalMap {
    /// The list of a signal by its name in the policy language.
    pub fn named(&mut self, signal: &str) -> Option<&mut Vec<String>> {
        match signal {
            "ready" => Some(&mut self.ready),
            "running" => Some(&mut self.running),
            "waiting" => Some(&mut self.waiting),
            "work_done" => Some(&mut self.work_done),
            "work_done_output" => Some(&mut self.work_done_output),
            "latency" => Some(&mut self.latency),
            "errors" => Some(&mut self.errors),
            _ => None,
        }
    }

    /// Every plain selector of the map with `matchers` added.
    #[must_use]
    pub fn narrowed(mut self, matchers: &str) -> Self {
        for signal in SIGNALS {
            if let Some(list) = self.named(signal) {
                list.iter_mut().for_each(|expression| *expression = narrow(expression, matchers));
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_is_merged_into_labels_and_left_out_of_expressions() {
        let job = "job=\"vllm\"";
        assert_eq!(narrow("up", job), "up{job=\"vllm\"}");
        assert_eq!(narrow("a{b=\"c\"}", job), "a{b=\"c\",job=\"vllm\"}");
        assert_eq!(narrow("a{b=\"c\",}", job), "a{b=\"c\",job=\"vllm\"}");
        assert_eq!(narrow("a{}", job), "a{job=\"vllm\"}");
        assert_eq!(narrow("a", ""), "a");
        assert_eq!(narrow("sum by (instance) (a)", job), "sum by (instance) (a)");
        assert_eq!(narrow("a / b", job), "a / b");
    }

    #[test]
    fn matchers_are_what_promql_takes() {
        assert_eq!(matchers("a=\"x\", b=~\"y|z\"").map(|all| all.len()), Some(2));
        assert_eq!(matchers("a=\"x,}\\\"\""), Some(vec![("a", "=", "x,}\\\"")]));
        assert_eq!(matchers(""), Some(Vec::new()));
        for text in
            ["a", "a=x", "a='x'", "a=\"x", "=\"x\"", "1a=\"x\"", "a=\"x\" b=\"y\"", "{a=\"x\"}", "a==\"x\""]
        {
            assert_eq!(matchers(text), None, "{text}");
        }
    }

    #[test]
    fn both_sources_of_vllm_read_the_same_metrics() {
        let page = direct("vllm").expect("vllm").signals;
        let query = prometheus("vllm", "job=\"v\"").expect("vllm").signals;
        assert_eq!(
            query.running,
            ["vllm:num_requests_running{job=\"v\"}", "ray_vllm_num_requests_running{job=\"v\"}"]
        );
        assert_eq!(query.ready, ["up{job=\"v\"}"]);
        assert_eq!(page.work_done.len(), query.work_done.len());
        for expression in page.work_done.iter().chain(&page.waiting).chain(&page.errors) {
            assert!(Selector::parse(expression).is_some_and(|selector| selector.is_exact()), "{expression}");
        }
        assert!(page.latency.is_empty() && page.ready.is_empty());
        assert!(query.latency[0].contains("_bucket{job=\"v\"}[1m]"));
        assert!(NAMES.into_iter().all(|name| direct(name).is_some()));
        assert!(SIGNALS.into_iter().all(|name| SignalMap::default().named(name).is_some()));
    }
}
