//! Known servers: a preset is a map from signals to metrics and the unit they count, no code.
//!
//! For a Prometheus each alternative is a plain selector wherever it can be one, so that the
//! reader may ask for its age too and sum a replica's series itself. What a server does not say
//! soon enough to steer by is left out, and [`Preset::strength`] says so.

use std::fmt;

use crate::policy::SignalMap;
use crate::policy::selector::narrow;
use crate::unit::WorkUnit;

/// Names of the presets there are.
pub const NAMES: [&str; 8] = ["vllm", "sglang", "trtllm", "tgi", "llamacpp", "triton", "dynamo", "ray-serve"];
/// Names of the signals there are.
pub const SIGNALS: [&str; 7] =
    ["ready", "running", "waiting", "work_done", "work_done_output", "latency", "errors"];

/// A map for one source, and what its `work_done` counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Preset {
    pub unit: WorkUnit,
    pub signals: SignalMap,
    pub strength: Strength,
    /// Where a target without a path has its page.
    pub path: &'static str,
}

/// How well a server can be steered by what it says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strength {
    /// Queue, batch and work in both directions, each as it happens.
    Full,
    /// What cannot be known, or not in time.
    Weaker(&'static str),
}

/// One server. Names are tried in order under each prefix in turn, so the newest comes first.
#[derive(Debug)]
pub struct Server {
    pub preset: &'static str,
    /// As its makers write it.
    pub name: &'static str,
    pub unit: WorkUnit,
    pub strength: Strength,
    pub path: &'static str,
    /// What precedes every name below; relabelling and Ray put more in front.
    prefixes: &'static [&'static str],
    running: &'static [&'static str],
    waiting: &'static [&'static str],
    work_done: &'static [&'static str],
    work_done_output: &'static [&'static str],
    errors: &'static [&'static str],
    /// Histogram of the time to first token, seconds; read from a Prometheus only.
    first_token: &'static [&'static str],
}

/// Every server there is a preset for, in the order of [`NAMES`].
pub const SERVERS: [Server; 8] = [VLLM, SGLANG, TRTLLM, TGI, LLAMACPP, TRITON, DYNAMO, RAY_SERVE];

/// Since 0.6. Ray writes `_` for `:`; KServe's and llm-d's monitors put `kserve_` in front.
const VLLM: Server = Server {
    preset: "vllm",
    name: "vLLM",
    unit: WorkUnit::Tokens,
    strength: Strength::Full,
    path: "/metrics",
    prefixes: &["vllm:", "ray_vllm_", "kserve_vllm:"],
    running: &["num_requests_running"],
    // Requests deferred for other reasons than capacity would look like a backlog.
    waiting: &["num_requests_waiting_by_reason{reason=\"capacity\"}", "num_requests_waiting"],
    // Tokens found in the prefix cache are no work.
    work_done: &[
        "prompt_tokens_by_source_total{source=\"local_compute\"}",
        "prompt_tokens_total",
        "prompt_tokens",
    ],
    work_done_output: &["generation_tokens_total", "generation_tokens"],
    // `abort` is the client's doing.
    errors: &["request_success_total{finished_reason=\"error\"}"],
    first_token: &["time_to_first_token_seconds"],
};

/// Not its `prompt_tokens_total` and `generation_tokens_total`: they count a request as it ends.
const SGLANG: Server = Server {
    preset: "sglang",
    name: "SGLang",
    unit: WorkUnit::Tokens,
    strength: Strength::Full,
    path: "/metrics",
    prefixes: &["sglang:"],
    running: &["num_running_reqs"],
    waiting: &["num_queue_reqs"],
    work_done: &["realtime_tokens_total{mode=\"prefill_compute\"}"],
    work_done_output: &["realtime_tokens_total{mode=\"decode\"}"],
    errors: &[],
    first_token: &["time_to_first_token_seconds"],
};

/// Dynamo 0.7 wrote `trtllm:`. Its page of Prometheus text is not `/metrics`, which is JSON.
const TRTLLM: Server = Server {
    preset: "trtllm",
    name: "TensorRT-LLM (trtllm-serve)",
    unit: WorkUnit::Tokens,
    strength: Strength::Weaker(
        "tokens are counted when a request ends: measured capacity is late by one request and rough while few \
         end in an interval; needs `return_perf_metrics` and `enable_iter_perf_stats`",
    ),
    path: "/prometheus/metrics",
    prefixes: &["trtllm_", "trtllm:"],
    running: &["num_requests_running"],
    waiting: &["num_requests_waiting"],
    work_done: &["prompt_tokens_total"],
    work_done_output: &["generation_tokens_total"],
    errors: &["request_error_total"],
    first_token: &["time_to_first_token_seconds"],
};

/// The sum of a histogram, but one that is filled as a batch takes requests in.
const TGI: Server = Server {
    preset: "tgi",
    name: "Text Generation Inference",
    unit: WorkUnit::Requests,
    strength: Strength::Weaker(
        "input tokens are counted on arrival and output tokens when a request ends: work is requests, counted as \
         a batch takes them in, so that a long request weighs as much as a short one",
    ),
    path: "/metrics",
    prefixes: &["tgi_"],
    running: &["batch_current_size"],
    waiting: &["queue_size"],
    work_done: &["batch_next_size_sum"],
    work_done_output: &[],
    errors: &["request_failure"],
    first_token: &[],
};

/// Its server counts output tokens only as a slot is released.
const LLAMACPP: Server = Server {
    preset: "llamacpp",
    name: "llama.cpp",
    unit: WorkUnit::Tokens,
    strength: Strength::Weaker(
        "output tokens are counted when a request ends: measured capacity is late by one request and rough while \
         few end in an interval; needs `--metrics`",
    ),
    path: "/metrics",
    prefixes: &["llamacpp:"],
    running: &["requests_processing"],
    waiting: &["requests_deferred"],
    work_done: &["prompt_tokens_total"],
    work_done_output: &["tokens_predicted_total"],
    errors: &[],
    first_token: &[],
};

/// An ensemble counts a request once for each of its models, hence the label.
const TRITON: Server = Server {
    preset: "triton",
    name: "Triton with the TensorRT-LLM backend",
    unit: WorkUnit::Requests,
    strength: Strength::Weaker(
        "there are no token counters: work is requests, counted when they end, so that a long request weighs as \
         much as a short one; the model must be named `tensorrt_llm`",
    ),
    path: "/metrics",
    prefixes: &["nv_"],
    running: &["trt_llm_request_metrics{request_type=\"scheduled\"}"],
    waiting: &[
        "trt_llm_request_metrics{request_type=\"waiting\"}",
        "inference_pending_request_count{model=\"tensorrt_llm\"}",
    ],
    work_done: &["inference_request_success{model=\"tensorrt_llm\"}"],
    work_done_output: &[],
    errors: &["inference_request_failure{model=\"tensorrt_llm\"}"],
    first_token: &[],
};

/// One frontend stands for all workers behind it. Input is counted at the first token.
const DYNAMO: Server = Server {
    preset: "dynamo",
    name: "NVIDIA Dynamo frontend",
    unit: WorkUnit::Tokens,
    strength: Strength::Weaker(
        "a frontend hides its workers: the loss of one shows as slower work, not as a lost replica; requests \
         without a first token count as waiting and as running, cached input counts as work",
    ),
    path: "/metrics",
    prefixes: &["dynamo_frontend_"],
    running: &["inflight_requests"],
    waiting: &["queued_requests"],
    work_done: &["input_sequence_tokens_sum"],
    work_done_output: &["output_tokens_total"],
    errors: &["requests_total{status=\"error\"}"],
    first_token: &["time_to_first_token_seconds"],
};

/// A page is a Ray node's. Metrics of the engine inside, where there are any, are stronger.
const RAY_SERVE: Server = Server {
    preset: "ray-serve",
    name: "Ray Serve",
    unit: WorkUnit::Requests,
    strength: Strength::Weaker(
        "only `running` is the replica's own: requests wait at whoever sends them, on another node's page or on \
         none, and work is requests, counted when they end; a replica is a Ray node",
    ),
    path: "/metrics",
    prefixes: &["ray_serve_"],
    running: &["replica_processing_queries", "num_ongoing_requests_at_replicas"],
    waiting: &["deployment_queued_queries"],
    work_done: &["deployment_request_counter_total", "deployment_request_counter"],
    work_done_output: &[],
    errors: &["deployment_error_counter_total", "deployment_error_counter"],
    first_token: &[],
};

/// The preset for replicas that are scraped directly.
pub fn direct(name: &str) -> Option<Preset> {
    server(name).map(|server| server.preset(""))
}

/// The preset read from a Prometheus, narrowed to the series that `selector` names.
pub fn prometheus(name: &str, selector: &str) -> Option<Preset> {
    let server = server(name)?;
    let mut preset = server.preset(selector);
    preset.signals.ready = server.ready(selector);
    preset.signals.latency = server
        .names(server.first_token)
        .map(|metric| {
            let bucket = narrow(&format!("{metric}_bucket"), selector);
            format!("histogram_quantile(0.99, sum by (instance, le) (rate({bucket}[1m])))")
        })
        .collect();
    Some(preset)
}

fn server(name: &str) -> Option<&'static Server> {
    SERVERS.iter().find(|server| server.preset == name)
}

// === impl Server ===

impl Server {
    fn preset(&self, selector: &str) -> Preset {
        let all = |names: &'static [&'static str]| self.names(names).collect();
        let signals = SignalMap {
            ready: Vec::new(),
            running: all(self.running),
            waiting: all(self.waiting),
            work_done: all(self.work_done),
            work_done_output: all(self.work_done_output),
            // A page holds no recent value of a histogram.
            latency: Vec::new(),
            errors: all(self.errors),
        };
        Preset {
            unit: self.unit,
            signals: signals.narrowed(selector),
            strength: self.strength,
            path: self.path,
        }
    }

    fn names(&self, suffixes: &'static [&'static str]) -> impl Iterator<Item = String> {
        let under = move |prefix| suffixes.iter().map(move |suffix| format!("{prefix}{suffix}"));
        self.prefixes.iter().flat_map(under)
    }

    /// `up` tells a dead replica from an unknown one, but without a selector it names every
    /// target of the Prometheus: then only those count that lately showed this server's metrics.
    fn ready(&self, selector: &str) -> Vec<String> {
        if !selector.is_empty() {
            return vec![narrow("up", selector)];
        }
        self.names(self.running)
            .map(|metric| format!("up and on (instance, job) last_over_time({metric}[5m])"))
            .collect()
    }
}

// === impl Strength ===

impl fmt::Display for Strength {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Strength::Full => f.write_str("full"),
            Strength::Weaker(unknown) => write!(f, "weaker: {unknown}"),
        }
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
    use crate::policy::selector::Selector;

    #[test]
    fn both_sources_of_vllm_read_the_same_metrics() {
        let query = prometheus("vllm", "job=\"v\"").expect("vllm").signals;
        assert_eq!(
            query.running,
            [
                "vllm:num_requests_running{job=\"v\"}",
                "ray_vllm_num_requests_running{job=\"v\"}",
                "kserve_vllm:num_requests_running{job=\"v\"}"
            ]
        );
        assert_eq!(query.ready, ["up{job=\"v\"}"]);
        assert!(query.latency[0].contains("_bucket{job=\"v\"}[1m]"));
    }

    #[test]
    fn every_preset_is_complete_and_plain_for_either_source() {
        assert_eq!(SERVERS.each_ref().map(|server| server.preset), NAMES);
        assert!(SIGNALS.into_iter().all(|name| SignalMap::default().named(name).is_some()));
        for name in NAMES {
            let (mut page, mut query) = (direct(name).expect(name), prometheus(name, "").expect(name));
            assert!(page.path.starts_with('/') && page.signals.ready.is_empty(), "{name}");
            assert!(page.signals.latency.is_empty() && !query.signals.ready.is_empty(), "{name}");
            let output = page.signals.work_done_output.is_empty();
            assert_eq!(output, page.unit != WorkUnit::Tokens, "{name}: output tokens belong to tokens");
            for signal in ["running", "waiting", "work_done", "work_done_output", "errors"] {
                let read = page.signals.named(signal).expect(signal).clone();
                assert_eq!(&read, query.signals.named(signal).expect(signal), "{name} {signal}");
                let plain = |text: &String| Selector::parse(text).is_some_and(|selector| selector.is_exact());
                assert!(read.iter().all(plain), "{name} {signal} {read:?}");
            }
            assert!(!page.signals.running.is_empty() && !page.signals.work_done.is_empty(), "{name}");
        }
    }
}
