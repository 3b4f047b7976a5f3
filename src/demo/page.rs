//! A replica's metric page, under vLLM's names or in another [`Dialect`]: all that a controller
//! learns of a replica.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder,
};

use super::dialect::{Dialect, Told};
use crate::sim::batch::{Batch, Delivered, SequenceId};

pub const MODEL: &str = "demo-model";
/// vLLM's own edges.
const TTFT_BUCKETS: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
/// Tokens that fit into the simulated cache.
const CACHE_TOKENS: f64 = 32_000.0;

#[derive(Debug)]
pub struct Page {
    dialect: Dialect,
    told: Told,
    registry: Registry,
    running: IntGauge,
    waiting: IntGauge,
    waiting_by_reason: GaugeVec,
    cache: Gauge,
    prompt_tokens: IntCounter,
    generation_tokens: IntCounter,
    first_token: Histogram,
    success: IntCounterVec,
}

// === impl Page ===

impl Page {
    /// # Errors
    /// A name that Prometheus does not allow.
    pub fn new(dialect: Dialect) -> prometheus::Result<Page> {
        let first_token = HistogramOpts::new(
            "vllm:time_to_first_token_seconds",
            "Histogram of time to first token in seconds.",
        )
        .const_label("model_name", MODEL)
        .const_label("engine", "0")
        .buckets(TTFT_BUCKETS.to_vec());
        let page = Page {
            dialect,
            told: Told::default(),
            registry: Registry::new(),
            running: IntGauge::with_opts(opts(
                "vllm:num_requests_running",
                "Number of requests in model execution batches.",
            ))?,
            waiting: IntGauge::with_opts(opts(
                "vllm:num_requests_waiting",
                "Number of requests waiting to be processed.",
            ))?,
            waiting_by_reason: GaugeVec::new(
                opts("vllm:num_requests_waiting_by_reason", "Number of requests waiting, by reason."),
                &["reason"],
            )?,
            cache: Gauge::with_opts(opts(
                "vllm:kv_cache_usage_perc",
                "KV-cache usage. 1 means 100 percent usage.",
            ))?,
            prompt_tokens: IntCounter::with_opts(opts(
                "vllm:prompt_tokens_total",
                "Number of prefill tokens processed.",
            ))?,
            generation_tokens: IntCounter::with_opts(opts(
                "vllm:generation_tokens_total",
                "Number of generation tokens processed.",
            ))?,
            first_token: Histogram::with_opts(first_token)?,
            success: IntCounterVec::new(
                opts("vllm:request_success_total", "Count of successfully processed requests."),
                &["finished_reason"],
            )?,
        };
        for reason in ["stop", "length", "abort"] {
            page.success.with_label_values(&[reason]);
        }
        page.waiting_by_reason.with_label_values(&["deferred"]).set(0.0);
        page.waiting_by_reason.with_label_values(&["capacity"]).set(0.0);
        let all: [Box<dyn Collector>; 8] = [
            Box::new(page.running.clone()),
            Box::new(page.waiting.clone()),
            Box::new(page.waiting_by_reason.clone()),
            Box::new(page.cache.clone()),
            Box::new(page.prompt_tokens.clone()),
            Box::new(page.generation_tokens.clone()),
            Box::new(page.first_token.clone()),
            Box::new(page.success.clone()),
        ];
        for collector in all {
            page.registry.register(collector)?;
        }
        Ok(page)
    }

    pub fn submitted(&mut self, id: SequenceId, prompt: u32) {
        self.told.submitted(id, prompt);
    }

    /// After a step, with the batch as it is then.
    pub fn stepped(&mut self, delivered: &Delivered, batch: &Batch) {
        self.told.stepped(delivered, batch);
        self.prompt_tokens.inc_by(delivered.prompt_tokens);
        self.generation_tokens.inc_by(delivered.output_tokens);
    }

    pub fn first_token(&self, after: Duration) {
        self.first_token.observe(after.as_secs_f64());
    }

    pub fn finished(&mut self, id: SequenceId, reason: &str) {
        self.told.released(id);
        self.success.with_label_values(&[reason]).inc();
    }

    /// The page as text. Gauges are read off the batch now, as a scheduler's step would set them.
    ///
    /// # Errors
    /// None that the names above can cause.
    pub fn text(&self, batch: &Batch) -> prometheus::Result<Vec<u8>> {
        match self.dialect {
            Dialect::Vllm => {}
            Dialect::Sglang => return Ok(self.told.sglang(MODEL).into_bytes()),
            Dialect::Llamacpp => return Ok(self.told.llamacpp(batch).into_bytes()),
        }
        self.running.set(gauge(batch.running()));
        self.waiting.set(gauge(batch.waiting()));
        self.waiting_by_reason.with_label_values(&["capacity"]).set(batch.waiting() as f64);
        self.cache.set(batch.cached_tokens() as f64 / CACHE_TOKENS);
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(name, help).const_label("model_name", MODEL).const_label("engine", "0")
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
