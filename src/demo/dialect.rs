//! What other servers than vLLM say of the same batch: their names, and the moments at which they
//! count. Those matter more than the names: a server that counts a request's tokens when it ends
//! says in lumps, and late, what vLLM says step by step.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::sim::batch::{Batch, Delivered, SequenceId};

/// Steps between two lines of SGLang's log, with which it renews its decode counter and gauges.
const SGLANG_LOG_STEPS: u64 = 40;

/// The server whose metrics a fleet speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dialect {
    /// Work as it is done, gauges as they are.
    #[default]
    Vllm,
    /// Prompt tokens with each prefill, output tokens and gauges when it logs.
    Sglang,
    /// Prompt tokens when a prompt is read to its end, output tokens when its slot is released.
    Llamacpp,
}

/// Counters and gauges of one replica, as its server keeps them.
#[derive(Debug, Default)]
pub struct Told {
    /// Tokens of each sequence in service: its prompt, and its output so far.
    sequences: BTreeMap<SequenceId, (u64, u64)>,
    steps: u64,
    logged_at: u64,
    prefill: u64,
    decode: u64,
    /// As they were at the last line of SGLang's log.
    decode_logged: u64,
    running_logged: usize,
    waiting_logged: usize,
    /// Of whole prompts and of released slots.
    prompts_read: u64,
    predicted: u64,
}

// === impl Dialect ===

impl Dialect {
    pub const ALL: [Dialect; 3] = [Dialect::Vllm, Dialect::Sglang, Dialect::Llamacpp];

    /// The preset that reads it.
    pub fn preset(self) -> &'static str {
        match self {
            Dialect::Vllm => "vllm",
            Dialect::Sglang => "sglang",
            Dialect::Llamacpp => "llamacpp",
        }
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.preset())
    }
}

impl FromStr for Dialect {
    type Err = String;

    fn from_str(text: &str) -> Result<Dialect, String> {
        let known = Dialect::ALL.into_iter().find(|dialect| dialect.preset() == text);
        known.ok_or_else(|| "expected vllm, sglang or llamacpp".to_owned())
    }
}

// === impl Told ===

impl Told {
    pub fn submitted(&mut self, id: SequenceId, prompt: u32) {
        self.sequences.insert(id, (u64::from(prompt.max(1)), 0));
    }

    /// After a step, with the batch as it is then.
    pub fn stepped(&mut self, delivered: &Delivered, batch: &Batch) {
        self.prefill += delivered.prompt_tokens;
        self.decode += delivered.output_tokens;
        self.steps += u64::from(!delivered.tokens.is_empty());
        for token in &delivered.tokens {
            let Some(sequence) = self.sequences.get_mut(&token.id) else { continue };
            sequence.1 += 1;
            if token.first {
                self.prompts_read += sequence.0;
            }
            if token.last {
                self.released(token.id);
            }
        }
        let idle = batch.running() == 0 && batch.waiting() == 0;
        let due = self.steps >= self.logged_at + SGLANG_LOG_STEPS;
        if due || idle {
            self.decode_logged = self.decode;
            self.logged_at = self.steps;
        }
        // A prefill is logged too.
        if due || idle || delivered.prompt_tokens > 0 {
            self.running_logged = batch.running();
            self.waiting_logged = batch.waiting();
        }
    }

    /// A sequence that ended, or whose client left.
    pub fn released(&mut self, id: SequenceId) {
        if let Some((_, output)) = self.sequences.remove(&id) {
            self.predicted += output;
        }
    }

    /// SGLang's page, and beside what is steered by the counters that it fills at a request's end.
    pub fn sglang(&self, model: &str) -> String {
        let mut page = String::new();
        let mut family = |name: &str, kind: &str, lines: &[(&str, u64)]| {
            page.push_str(&format!("# HELP sglang:{name} {name}.\n# TYPE sglang:{name} {kind}\n"));
            for (label, value) in lines {
                let labels = format!("model_name=\"{model}\",engine_type=\"unified\",tp_rank=\"0\"{label}");
                page.push_str(&format!("sglang:{name}{{{labels}}} {value}\n"));
            }
        };
        family("num_running_reqs", "gauge", &[("", self.running_logged as u64)]);
        family("num_queue_reqs", "gauge", &[("", self.waiting_logged as u64)]);
        let realtime = [
            (",mode=\"prefill_compute\"", self.prefill),
            (",mode=\"prefill_cache\"", 0),
            (",mode=\"decode\"", self.decode_logged),
        ];
        family("realtime_tokens_total", "counter", &realtime);
        family("prompt_tokens_total", "counter", &[("", self.prompts_read)]);
        family("generation_tokens_total", "counter", &[("", self.predicted)]);
        page
    }

    pub fn llamacpp(&self, batch: &Batch) -> String {
        let family = |name: &str, kind: &str, value: u64| {
            format!(
                "# HELP llamacpp:{name} {name}.\n# TYPE llamacpp:{name} {kind}\nllamacpp:{name} {value}\n"
            )
        };
        [
            family("prompt_tokens_total", "counter", self.prompts_read),
            family("tokens_predicted_total", "counter", self.predicted),
            family("n_decode_total", "counter", self.steps),
            family("requests_processing", "gauge", batch.running() as u64),
            family("requests_deferred", "gauge", batch.waiting() as u64),
        ]
        .concat()
    }
}
