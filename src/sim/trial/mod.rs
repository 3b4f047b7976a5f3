//! Trials: a scenario, a seed and a law in, scores out.
//!
//! Where [`crate::sim::World`] looks for broken promises among drawn faults, a trial measures: the
//! reference plant of [`crate::sim::engine`], demand from a generator or a trace, what happens
//! when is written in a file, and every law meets the same requests on the same seed. Scores are
//! shares of what no controller can exceed.

pub mod calibrate;
pub mod contest;
pub mod demand;
#[cfg(feature = "daemon")]
pub mod file;
pub mod laws;
#[cfg(feature = "daemon")]
pub mod partner;
pub mod plots;
pub mod run;
pub mod score;
pub mod sizes;
pub mod tide;
pub mod trace;

use std::time::Duration;

use crate::sim::engine::Shape;
use crate::sim::page::Untrue;
use sizes::Sizes;

/// One scenario: a plant, a demand, and what happens to both.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    pub name: String,
    /// Why it exists, one line.
    pub why: String,
    /// Length, seconds; a trace is repeated to it.
    pub seconds: f64,
    /// From here on it is scored, seconds.
    pub warm: f64,
    /// Demand over what the pool can do with every replica well.
    pub load: f64,
    pub shape: Shape,
    pub replicas: usize,
    pub nodes: usize,
    /// Time to first token.
    pub slo: Duration,
    /// Prompt tokens that earn a request one second more; infinite where none do.
    pub slo_prompt_rate: f64,
    pub interval: Duration,
    pub delay: Duration,
    pub sizes: Sizes,
    /// How unevenly requests come: coefficient of variation of the rate, and for how many seconds a
    /// swing lasts.
    pub burst: f64,
    pub burst_seconds: f64,
    /// The rate swings between its mean's multiples with this ratio of peak to trough.
    pub wave: Option<Wave>,
    pub retries: Option<Retries>,
    pub tiers: Vec<TierTerms>,
    /// In order of time, seconds.
    pub happenings: Vec<(f64, Happening)>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct TierTerms {
    pub name: String,
    /// Of all requests.
    pub part: f64,
    pub priority: u32,
    pub weight: f64,
    /// Part of what the pool can do with every replica well.
    pub guarantee: f64,
    /// The k-th asks 1/k as often as the first.
    pub keys: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wave {
    pub period: f64,
    pub ratio: f64,
}

/// What refused clients do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retries {
    /// Of those refused, how many try again.
    pub part: f64,
    /// Attempts in all.
    pub tries: u32,
    /// Seconds between two, ± half.
    pub after: f64,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Happening {
    /// Replicas die with what they were serving.
    Die {
        replicas: Vec<usize>,
    },
    Revive {
        replicas: Vec<usize>,
    },
    /// They do this part of what they could, and say nothing of it.
    Slow {
        replicas: Vec<usize>,
        part: f64,
    },
    /// Their pages show this instead of the truth.
    Show {
        replicas: Vec<usize>,
        untrue: Option<Untrue>,
    },
    /// A tier, or one key of it, asks this many times as often as at first.
    Flood {
        tier: usize,
        key: Option<u32>,
        times: f64,
    },
    /// Answers are this many times as long as at first.
    Output {
        times: f64,
    },
    /// The controller dies, or is back with its state.
    Controller {
        up: bool,
    },
}

// === impl Trial ===

impl Default for Trial {
    /// Steady overload of four replicas behind four nodes.
    fn default() -> Trial {
        let tier = |name: &str, part, priority, weight, guarantee| TierTerms {
            name: name.to_owned(),
            part,
            priority,
            weight,
            guarantee,
            keys: 8,
        };
        Trial {
            name: "steady".to_owned(),
            why: String::new(),
            seconds: 900.0,
            warm: 60.0,
            load: 1.3,
            shape: Shape::default(),
            replicas: 4,
            nodes: 4,
            slo: Duration::from_secs(2),
            slo_prompt_rate: f64::INFINITY,
            interval: Duration::from_secs(2),
            delay: Duration::from_secs(1),
            sizes: Sizes::Chat,
            burst: 0.12,
            burst_seconds: 15.0,
            wave: None,
            retries: None,
            tiers: vec![
                tier("ent", 0.30, 1, 4.0, 0.25),
                tier("pro", 0.35, 2, 2.0, 0.10),
                tier("free", 0.35, 3, 1.0, 0.02),
            ],
            happenings: Vec::new(),
        }
    }
}

impl Trial {
    /// Until when a request's first token is in time.
    pub fn slo_of(&self, prompt: u32) -> Duration {
        self.slo + Duration::from_secs_f64(f64::from(prompt) / self.slo_prompt_rate)
    }

    /// How many times as long as at first answers are at `at` seconds.
    pub fn output_times(&self, at: f64) -> f64 {
        let past = self.happenings.iter().take_while(|(when, _)| *when <= at);
        let times = past.filter_map(|(_, what)| match what {
            Happening::Output { times } => Some(*times),
            _ => None,
        });
        times.last().unwrap_or(1.0)
    }
}
