//! What one busy replica delivers, input and output apart, and what an output token costs.
//!
//! Law: signals-and-control notes, "Estimation (BBR-style, per ready replica)". Gains: 0.3 on a
//! busy sample; an idle pool's samples can only raise, by 0.1, and only when clearly above, since
//! the noise of a maximum is a bias.

use serde::{Deserialize, Serialize};

use crate::estimate::replicas::{ReplicaRate, Seen};
use crate::estimate::trust;
use crate::planted::{bug, without};
use crate::policy::OutputCost;

const GAIN_BUSY: f64 = 0.3;
const GAIN_IDLE: f64 = 0.1;
/// Of the most it was seen running: from this part on a replica is full, and what it delivers is
/// what it can do. One that is not full and has a backlog may only be between two batches.
const FULL: f64 = 0.85;
/// An idle sample counts from this factor above the estimate on.
const IDLE_EXCESS: f64 = 1.02;
/// A sample more than this factor above the estimate is a unit change or a reset, not a rate.
const IMPLAUSIBLE: f64 = 10.0;
/// Busy samples in a row beyond [`IMPLAUSIBLE`] after which it is believed after all.
const BELIEVED_AFTER: u32 = 3;
/// Then the estimate grows by this factor a tick at most: as nobody knows what changed, as slowly
/// as before the first measurement.
const BELIEVED_GROWTH: f64 = 1.25;
/// Cost of an output token before any is learned.
const OUTPUT_COST_PRIOR: f64 = 4.0;
/// What is learned of the output cost halves in about this many ticks.
const FORGETTING: f64 = 0.98;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Capacity {
    /// Per second of one busy replica; none before the first backlog.
    rates: Option<Rates>,
    running_saturated: Option<f64>,
    implausible_ticks: u32,
    learned: Regression,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Rates {
    input: f64,
    output: f64,
}

/// Least squares of `1 = a·input + b·output` over busy ticks: one replica-second is spent on
/// input at `a` and on output at `b` a token, so an output token costs `b / a` input tokens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Regression {
    input_input: f64,
    input_output: f64,
    output_output: f64,
    input: f64,
    output: f64,
    /// In force; moves only when what is learned differs by more than a tenth.
    published: Option<f64>,
}

// === impl Capacity ===

impl Capacity {
    pub fn update(&mut self, cost: OutputCost, seen: &Seen) {
        if seen.unsettled && !without("settled-only") {
            return;
        }
        let counts = |rate: &&ReplicaRate| rate.busy || without("backlog-only");
        let busy: Vec<ReplicaRate> = seen.rates.iter().filter(counts).copied().collect();
        let running: Vec<f64> = seen.rates.iter().filter_map(|rate| rate.running).collect();
        let running = if seen.replicas >= trust::QUORUM {
            trust::middle(running, seen.replicas)
        } else {
            running.into_iter().reduce(f64::max)
        };
        let backlogged = (seen.backlogged || without("backlog-only")) && !busy.is_empty();
        // What it was seen running it can run, backlog or not; without any, nothing is capped.
        if backlogged || self.running_saturated.is_some() {
            self.running_saturated = match (self.running_saturated, running) {
                (Some(known), Some(seen)) => Some(known.max(seen)),
                (known, seen) => known.or(seen),
            };
        }
        let output_cost = self.output_cost(cost);
        let shown = if backlogged { busy } else { seen.rates.clone() };
        let (rates, doubted) = self.quarantined(shown, backlogged, output_cost);
        let Some(sample) = median(&rates, seen.replicas) else { return };
        if backlogged {
            let full = running >= self.running_saturated.map(|most| FULL * most) || without("full-batch");
            self.busy(sample, output_cost, doubted, if full { GAIN_BUSY } else { GAIN_IDLE });
            self.learned.add(sample);
        } else if let Some(rates) = &mut self.rates {
            let (known, shown) = (rates.work(output_cost), sample.work(output_cost));
            if shown > known * IDLE_EXCESS && !without("idle-raise") {
                rates.approach(sample, GAIN_IDLE);
            }
        }
    }

    /// Rates that may be believed, and whether they were doubted until now. One that is too high
    /// to be a rate counts only when all are, in several busy samples running: those that are not
    /// contradict it.
    fn quarantined(
        &mut self,
        mut rates: Vec<ReplicaRate>,
        backlogged: bool,
        output_cost: f64,
    ) -> (Vec<ReplicaRate>, bool) {
        let Some(most) = self.most(output_cost) else { return (rates, false) };
        let high = |rate: &ReplicaRate| rate.input + output_cost * rate.output > most;
        if without("quarantine") {
            return (rates, false);
        }
        if rates.is_empty() || !rates.iter().all(high) {
            self.implausible_ticks = 0;
            rates.retain(|rate| !high(rate) || bug("liar-believed"));
            return (rates, false);
        }
        if !backlogged || self.implausible_ticks < BELIEVED_AFTER {
            self.implausible_ticks = self.implausible_ticks.saturating_add(u32::from(backlogged));
            return (Vec::new(), true);
        }
        (rates, true)
    }

    fn busy(&mut self, sample: Rates, output_cost: f64, doubted: bool, gain: f64) {
        let Some(rates) = &mut self.rates else {
            self.rates = (sample.work(output_cost) > 0.0).then_some(sample);
            return;
        };
        let known = rates.work(output_cost);
        rates.approach(sample, gain);
        let grown = rates.work(output_cost) / known.max(1e-9);
        if doubted && grown > BELIEVED_GROWTH {
            rates.input *= BELIEVED_GROWTH / grown;
            rates.output *= BELIEVED_GROWTH / grown;
        }
    }

    /// The highest that can be a rate of one replica; none before the first measurement.
    pub fn most(&self, output_cost: f64) -> Option<f64> {
        if bug("reset-is-a-rate") {
            return None;
        }
        self.per_replica(output_cost).map(|rate| rate * IMPLAUSIBLE)
    }

    /// Work per second of one busy replica.
    pub fn per_replica(&self, output_cost: f64) -> Option<f64> {
        self.rates.map(|rates| rates.work(output_cost)).filter(|rate| *rate > 0.0)
    }

    pub fn running_saturated(&self) -> Option<f64> {
        self.running_saturated
    }

    pub fn output_cost(&self, cost: OutputCost) -> f64 {
        match cost {
            OutputCost::Stated(cost) => cost,
            OutputCost::Learned => self.learned.published.unwrap_or(OUTPUT_COST_PRIOR),
        }
    }
}

// === impl Rates ===

impl Rates {
    fn work(&self, output_cost: f64) -> f64 {
        self.input + output_cost * self.output
    }

    fn approach(&mut self, sample: Rates, gain: f64) {
        self.input += gain * (sample.input - self.input);
        self.output += gain * (sample.output - self.output);
    }
}

/// The replica in the middle: one lying replica of three moves nothing.
fn median(rates: &[ReplicaRate], known: usize) -> Option<Rates> {
    Some(Rates {
        input: trust::middle(rates.iter().map(|rate| rate.input).collect(), known)?,
        output: trust::middle(rates.iter().map(|rate| rate.output).collect(), known)?,
    })
}

// === impl Regression ===

impl Regression {
    fn add(&mut self, sample: Rates) {
        for sum in [&mut self.input_input, &mut self.input_output, &mut self.output_output] {
            *sum *= FORGETTING;
        }
        self.input *= FORGETTING;
        self.output *= FORGETTING;
        self.input_input += sample.input * sample.input;
        self.input_output += sample.input * sample.output;
        self.output_output += sample.output * sample.output;
        self.input += sample.input;
        self.output += sample.output;
        if let Some(learned) = self.solve() {
            let known = self.published.unwrap_or(OUTPUT_COST_PRIOR);
            if (learned / known - 1.0).abs() > 0.1 {
                self.published = Some(learned);
            }
        }
    }

    /// Ridge toward what is known: with a constant mix the ratio cannot be seen, and must not
    /// wander.
    fn solve(&self) -> Option<f64> {
        let known = self.published.unwrap_or(OUTPUT_COST_PRIOR);
        // Penalty r·(b - known·a)², scaled to the data.
        let ridge = 0.02 * self.output_output.max(1e-9);
        let aa = self.input_input + ridge * known * known;
        let ab = self.input_output - ridge * known;
        let bb = self.output_output + ridge;
        let determinant = aa * bb - ab * ab;
        if determinant <= 1e-9 * aa * bb {
            return None;
        }
        let a = (self.input * bb - self.output * ab) / determinant;
        let b = (self.output * aa - self.input * ab) / determinant;
        (a > 0.0 && b > 0.0).then(|| (b / a).clamp(0.5, 50.0))
    }
}
