//! Metrics that look like a signal and are none: what is wrong with each, and what to take.
//!
//! A counter that moves when a request ends comes in lumps and late by a whole request, which is
//! tens of seconds under load; a histogram of durations is later still. Steering by either cuts
//! when the queue has long drained. `check` refuses them where they would steer.

use crate::policy::selector::Selector;

/// Signals that steer; `latency` and `errors` are only shown.
const STEERING: [&str; 5] = ["ready", "running", "waiting", "work_done", "work_done_output"];

/// Why a metric cannot be a signal, and which can.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trap {
    pub metric: String,
    pub why: &'static str,
    pub instead: &'static str,
}

const ENDS: &str = "it moves only when a request ends, late by the whole request and in lumps";
const BUCKETS: &str = "a histogram is filled after what it measures is over";
const UTILISED: &str = "it is near 100 % as soon as one request runs: no sign of overload";
const AVERAGE: &str = "it is an average of the past, not a counter of work";

const VLLM: &str = "take `vllm:num_requests_waiting` for the queue, and `vllm:prompt_tokens_total` and \
                    `vllm:generation_tokens_total` for work";
const SGLANG: &str = "take `sglang:num_queue_reqs` for the queue, and `sglang:realtime_tokens_total` with \
                      `mode=\"prefill_compute\"` and `mode=\"decode\"` for work";
const TRTLLM: &str = "take `trtllm_num_requests_waiting` and `trtllm_num_requests_running`";
const TGI: &str =
    "take `tgi_queue_size` and `tgi_batch_current_size`, and `tgi_batch_next_size_sum` for work in requests";
const LLAMACPP: &str = "take `llamacpp:requests_deferred` for the queue, and `llamacpp:prompt_tokens_total` and \
                        `llamacpp:tokens_predicted_total` for work";
const TRITON: &str = "take `nv_trt_llm_request_metrics` with `request_type=\"waiting\"` and `\"scheduled\"`, or \
                      `nv_inference_pending_request_count`";
const DYNAMO: &str = "take `dynamo_frontend_queued_requests` for the queue, and \
                      `dynamo_frontend_input_sequence_tokens_sum` and `dynamo_frontend_output_tokens_total` for work";
const RAY: &str = "take `ray_serve_replica_processing_queries`, `ray_serve_deployment_queued_queries` and \
                   `ray_serve_deployment_request_counter_total`";
const ENGINE: &str = "take the server's own gauges of running and waiting requests; see the presets";

/// Names as [`canonical`] makes them: server, stems, why, instead.
const TRAPS: &[(&str, &[&str], &str, &str)] = &[
    (
        "vllm_",
        &[
            "request_queue_time_seconds",
            "request_prefill_time_seconds",
            "request_decode_time_seconds",
            "request_inference_time_seconds",
            "request_time_per_output_token_seconds",
            "request_prompt_tokens",
            "request_generation_tokens",
            "request_max_num_generation_tokens",
            "request_success",
            "e2e_request_latency_seconds",
        ],
        ENDS,
        VLLM,
    ),
    ("vllm_", &["iteration_tokens"], "it is a histogram of batch sizes despite its name", VLLM),
    (
        "sglang_",
        &[
            "prompt_tokens",
            "generation_tokens",
            "cached_tokens",
            "num_requests",
            "prompt_tokens_histogram",
            "generation_tokens_histogram",
            "e2e_request_latency_seconds",
            "queue_time_seconds",
        ],
        ENDS,
        SGLANG,
    ),
    ("sglang_", &["gen_throughput"], AVERAGE, SGLANG),
    (
        "trtllm_",
        &[
            "e2e_request_latency_seconds",
            "request_queue_time_seconds",
            "request_prefill_time_seconds",
            "request_decode_time_seconds",
            "request_inference_time_seconds",
            "time_per_output_token_seconds",
        ],
        ENDS,
        TRTLLM,
    ),
    (
        "tgi_",
        &[
            "request_generated_tokens",
            "request_duration",
            "request_inference_duration",
            "request_queue_duration",
            "request_mean_time_per_token_duration",
        ],
        ENDS,
        TGI,
    ),
    (
        "tgi_",
        &["request_input_length", "request_max_new_tokens", "request_count"],
        "it counts what was asked for, as it arrives, not what was done",
        TGI,
    ),
    (
        "llamacpp_",
        &["prompt_tokens_seconds", "predicted_tokens_seconds", "n_busy_slots_per_decode"],
        AVERAGE,
        LLAMACPP,
    ),
    (
        "nv_",
        &[
            "inference_request_duration_us",
            "inference_queue_duration_us",
            "inference_compute_infer_duration_us",
            "inference_request_summary_us",
            "inference_queue_summary_us",
        ],
        ENDS,
        TRITON,
    ),
    ("nv_", &["gpu_utilization"], UTILISED, TRITON),
    ("dynamo_frontend_", &["request_duration_seconds", "output_sequence_tokens"], ENDS, DYNAMO),
    (
        "ray_serve_",
        &[
            "deployment_processing_latency_ms",
            "http_request_latency_ms",
            "num_deployment_http_error_requests",
        ],
        ENDS,
        RAY,
    ),
    (
        "DCGM_FI_",
        &[
            "DEV_GPU_UTIL",
            "DEV_MEM_COPY_UTIL",
            "DEV_FB_USED",
            "PROF_GR_ENGINE_ACTIVE",
            "PROF_SM_ACTIVE",
            "PROF_SM_OCCUPANCY",
            "PROF_PIPE_TENSOR_ACTIVE",
            "PROF_DRAM_ACTIVE",
        ],
        UTILISED,
        ENGINE,
    ),
    (
        "DCGM_FI_",
        &["DEV_XID_ERRORS", "DEV_POWER_USAGE", "DEV_SM_CLOCK", "DEV_GPU_TEMP"],
        "it may explain a change of capacity but measures none",
        ENGINE,
    ),
    (
        "",
        &["process_cpu_seconds", "node_cpu_seconds", "container_cpu_usage_seconds", "node_load1"],
        "a busy processor says nothing about a queue of requests",
        ENGINE,
    ),
];

/// The first trap in an expression that `signal` would be steered by.
pub fn trap(signal: &str, expression: &str) -> Option<Trap> {
    if !STEERING.contains(&signal) {
        return None;
    }
    names(expression).into_iter().find_map(|(metric, quoted)| {
        let found = known(metric).or_else(|| {
            let bucket = !quoted && metric.ends_with("_bucket");
            bucket.then_some((BUCKETS, ENGINE))
        });
        found.map(|(why, instead)| Trap { metric: metric.to_owned(), why, instead })
    })
}

fn known(metric: &str) -> Option<(&'static str, &'static str)> {
    let name = canonical(metric);
    let stem = ["_bucket", "_sum", "_count", "_total"]
        .into_iter()
        .find_map(|suffix| name.strip_suffix(suffix))
        .unwrap_or(&name);
    TRAPS
        .iter()
        .find(|(server, stems, ..)| {
            let rest = |name: &str| name.strip_prefix(server).is_some_and(|rest| stems.contains(&rest));
            rest(stem) || rest(&name)
        })
        .map(|(_, _, why, instead)| (*why, *instead))
}

/// One spelling for what Ray and relabelling make of a name.
fn canonical(metric: &str) -> String {
    let name = metric.replace(':', "_");
    let name = name.strip_prefix("kserve_").unwrap_or(&name);
    let engine = name.strip_prefix("ray_").filter(|rest| !rest.starts_with("serve_"));
    engine.unwrap_or(name).to_owned()
}

/// What could be a metric's name in an expression, and whether it stands in quotes.
fn names(expression: &str) -> Vec<(&str, bool)> {
    if let Some(selector) = Selector::parse(expression) {
        let end = selector.name.len();
        return expression.get(..end).map(|name| (name, false)).into_iter().collect();
    }
    let mut names = Vec::new();
    let mut quoted = false;
    let mut rest = expression;
    let part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
    while let Some(first) = rest.chars().next() {
        let length =
            if part(first) { rest.find(|c| !part(c)).unwrap_or(rest.len()) } else { first.len_utf8() };
        let (word, after) = rest.split_at(length);
        if part(first) {
            names.push((word, quoted));
        } else if matches!(first, '"' | '\'' | '`') {
            quoted = !quoted;
        }
        rest = after;
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::preset::{NAMES, direct, prometheus};

    #[test]
    fn a_metric_is_found_out_under_every_name_it_has() {
        for text in [
            "vllm:request_queue_time_seconds_sum",
            "ray_vllm_request_queue_time_seconds_count",
            "kserve_vllm:request_queue_time_seconds_bucket{le=\"1\"}",
            "rate(vllm:request_queue_time_seconds_sum[1m]) / rate(up[1m])",
            "{__name__=\"vllm:request_queue_time_seconds_sum\"}",
            "sglang:prompt_tokens_total",
            "sum by (instance) (sglang:generation_tokens_total)",
            "vllm:iteration_tokens_total",
            "DCGM_FI_DEV_GPU_UTIL{gpu=\"0\"}",
            "my_own_histogram_bucket",
        ] {
            assert!(trap("work_done", text).is_some(), "{text}");
            assert_eq!(trap("latency", text), None, "{text} is only shown");
        }
    }

    #[test]
    fn what_steers_well_is_no_trap() {
        for text in [
            "sum(rate(images_total{le=\"x_bucket\"}[1m]))",
            "vllm:prompt_tokens_total",
            "tgi_batch_next_size_sum",
            "jobs_count",
            "",
        ] {
            assert_eq!(trap("work_done", text), None, "{text}");
        }
        for name in NAMES {
            for mut map in
                [direct(name), prometheus(name, "job=\"x\"")].map(|preset| preset.expect(name).signals)
            {
                for signal in STEERING {
                    let taken = map.named(signal).expect(signal).clone();
                    let trapped: Vec<_> = taken.iter().filter_map(|text| trap(signal, text)).collect();
                    assert!(trapped.is_empty(), "{name}: {trapped:?}");
                }
            }
        }
    }
}
