//! Whether the demo kept its promises: pure, over one record a second.
//!
//! A promise with nothing to judge it by (a demo too short, no limits) is untested, never kept.

use std::ops::Range;
use std::time::Duration;

use serde::Serialize;

use super::ledger::{Seen, TIERS, quantile};

/// Budget over capacity that is still right, once the halving is known.
const BUDGET_OVER: f64 = 1.05;
/// Ticks until it has to be.
const TICKS: u64 = 3;
/// Seconds after a step in which guarantees are not judged.
const SETTLE: usize = 6;
/// Seconds after a step by which first tokens are quick again.
const RECOVER: usize = 10;
/// Seconds after the return by which the budget is back, and the part of it that counts as back.
const RETURN: usize = 20;
const RETURN_PART: f64 = 0.9;
/// Seconds of a window in which a promise is judged.
const WINDOW: usize = 10;
/// Seconds of first tokens behind one quantile.
pub const TTFT_WINDOW: usize = 5;
/// Seconds of its limit that a tier may send at once: the buckets of both nodes, 4 s by the root
/// of two, and half a second for what a second of the clock cuts apart.
const BURST: f64 = 6.2;

/// What a demo left behind.
#[derive(Clone, Debug)]
pub struct Record {
    pub seconds: Vec<Second>,
    /// First second with half of the replicas, and the first with all again.
    pub halved: usize,
    pub returned: usize,
    pub slo: Duration,
    /// Most work that one request can cost.
    pub cost_max: f64,
}

/// One second. Rates are work a second; gauges as they stood at its end.
#[derive(Clone, Debug, Default)]
pub struct Second {
    pub capacity: f64,
    pub load: f64,
    /// From the table in force; none before the first, or without a controller.
    pub budget: Option<f64>,
    pub tick: Option<u64>,
    pub tiers: [Terms; TIERS.len()],
    pub seen: Seen,
}

/// What the table says of one tier.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Terms {
    /// Infinite where unlimited.
    pub limit: Option<f64>,
    /// The highest limit in force at any time of this second.
    pub limit_max: Option<f64>,
    pub guarantee: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    Kept,
    Broken,
    Untested,
}

#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    pub promise: &'static str,
    pub outcome: Kept,
    /// The number it was judged by, and where.
    pub measured: String,
}

/// The whole demo in numbers.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Totals {
    /// Work finished with its first token within the SLO, over what the replicas could do.
    pub goodput: f64,
    pub goodput_halved: f64,
    /// Worst p99 over 5 s.
    pub ttft_p99_worst: Option<f64>,
    pub ttft_p99_halved: Option<f64>,
    /// Load over capacity.
    pub utilisation: f64,
    /// Served over demanded, by tier, while halved.
    pub served_share_halved: [f64; TIERS.len()],
    pub failed_requests: u64,
    pub lost_requests: u64,
}

// === impl Record ===

impl Record {
    pub fn verdicts(&self) -> Vec<Verdict> {
        vec![
            self.budget_follows_the_halving(),
            self.guarantee_is_served(),
            self.shares_are_ordered(),
            self.first_tokens_recover(),
            self.budget_returns(),
            self.limits_hold(),
        ]
    }

    pub fn totals(&self) -> Totals {
        let halved = self.part(self.halved + SETTLE, self.returned);
        let all = self.seconds.as_slice();
        let worst = |range: Range<usize>| range.filter_map(|at| self.ttft_p99(at)).max_by(f64::total_cmp);
        Totals {
            goodput: over(all, |second| second.seen.good),
            goodput_halved: over(halved, |second| second.seen.good),
            ttft_p99_worst: worst(0..all.len()),
            ttft_p99_halved: worst(self.halved + RECOVER..self.returned),
            utilisation: over(all, |second| second.load),
            served_share_halved: self.served_shares(),
            failed_requests: all.iter().map(|second| second.seen.failed_requests).sum(),
            lost_requests: all.iter().map(|second| second.seen.lost_requests).sum(),
        }
    }

    /// The p99 of first tokens over the seconds up to and including `at`.
    pub fn ttft_p99(&self, at: usize) -> Option<f64> {
        let window = self.part((at + 1).saturating_sub(TTFT_WINDOW), at + 1);
        quantile(window.iter().flat_map(|second| second.seen.first_tokens.iter().copied()).collect(), 0.99)
    }

    fn budget_follows_the_halving(&self) -> Verdict {
        let promise = "budget at most 1.05 x capacity within 3 ticks after the halving";
        let before = self.halved.checked_sub(1).and_then(|at| self.seconds.get(at)?.tick);
        let Some(before) = before else { return untested(promise, "no table before the halving") };
        let judged = (self.halved..self.returned).filter_map(|at| {
            let second = self.seconds.get(at)?;
            (second.tick? >= before + TICKS).then_some((at, second.budget? / second.capacity.max(1.0)))
        });
        match judged.max_by(|a, b| a.1.total_cmp(&b.1)) {
            None => untested(promise, "fewer than 3 ticks while halved"),
            Some((at, ratio)) => {
                verdict(promise, ratio <= BUDGET_OVER, format!("at most {ratio:.3} x, in second {at}"))
            }
        }
    }

    fn guarantee_is_served(&self) -> Verdict {
        let promise = "enterprise is served min(demand, guarantee) in every 10 s window";
        if self.seconds.iter().all(|second| second.budget.is_none()) {
            return untested(promise, "no table was in force");
        }
        let worst = self
            .windows()
            .filter(|window| ![self.halved, self.returned].iter().any(|step| touches(window, *step)))
            .filter_map(|window| {
                let part = self.part(window.start, window.end);
                let demand: f64 = part.iter().map(|second| second.seen.tiers[0].demand).sum();
                let guarantee: f64 = part.iter().map(|second| second.tiers[0].guarantee).sum();
                let served: f64 = part.iter().map(|second| second.seen.tiers[0].served()).sum();
                let due = demand.min(guarantee);
                (due > 0.0).then_some((window.start, served / due))
            })
            .min_by(|a, b| a.1.total_cmp(&b.1));
        match worst {
            None => untested(promise, "no window of 10 s outside the 6 s after a step"),
            // Sums of floats, not a tolerance for a refused request.
            Some((at, ratio)) => verdict(
                promise,
                ratio >= 1.0 - 1e-9,
                format!("at least {:.1} % of it, from second {at}", ratio * 100.0),
            ),
        }
    }

    fn shares_are_ordered(&self) -> Verdict {
        let promise = "while halved, free is served a smaller share than starter, starter than enterprise";
        if self.part(self.halved + SETTLE, self.returned).is_empty() {
            return untested(promise, "halved for less than 6 s");
        }
        let [enterprise, starter, free] = self.served_shares();
        let measured = format!(
            "enterprise {:.1} %, starter {:.1} %, free {:.1} %",
            enterprise * 100.0,
            starter * 100.0,
            free * 100.0
        );
        verdict(promise, free < starter && starter < enterprise, measured)
    }

    fn first_tokens_recover(&self) -> Verdict {
        let promise = "p99 time to first token under the SLO within 10 s after each step";
        let judged = (self.halved + RECOVER..self.returned)
            .chain(self.returned + RECOVER..self.seconds.len())
            .filter_map(|at| Some((at, self.ttft_p99(at)?)));
        match judged.max_by(|a, b| a.1.total_cmp(&b.1)) {
            None => untested(promise, "no first token later than 10 s after a step"),
            Some((at, p99)) => verdict(
                promise,
                p99 < self.slo.as_secs_f64(),
                format!("at most {p99:.3} s, in second {at} (SLO {:.3} s)", self.slo.as_secs_f64()),
            ),
        }
    }

    fn budget_returns(&self) -> Verdict {
        let promise = "budget above 90 % of its old value within 20 s after the return";
        let before = self.part(self.halved.saturating_sub(WINDOW), self.halved);
        let old = mean(before.iter().filter_map(|second| second.budget));
        let Some(old) = old.filter(|old| old.is_finite() && *old > 0.0) else {
            return untested(promise, "no budget before the halving");
        };
        if self.seconds.len() < self.returned + RETURN {
            return untested(promise, "the demo ended less than 20 s after the return");
        }
        let mut after = (self.returned..self.returned + RETURN)
            .filter_map(|at| Some((at, self.seconds.get(at)?.budget? / old)));
        let back = after.clone().find(|(_, part)| *part > RETURN_PART);
        match (back, after.next_back()) {
            (Some((at, part)), _) => {
                let seconds = at + 1 - self.returned;
                verdict(promise, true, format!("{:.1} % of it after {seconds} s", part * 100.0))
            }
            (None, Some((_, part))) => {
                verdict(promise, false, format!("{:.1} % of it after {RETURN} s", part * 100.0))
            }
            (None, None) => untested(promise, "no budget after the return"),
        }
    }

    fn limits_hold(&self) -> Verdict {
        let promise = "what both nodes admit together stays inside the limits";
        let judged = self.windows().flat_map(|window| {
            let part = self.part(window.start, window.end);
            (0..TIERS.len()).filter_map(move |tier| {
                let mut allowed = self.cost_max;
                let mut burst: f64 = 0.0;
                let mut admitted = 0.0;
                for second in part {
                    let limit = second.tiers.get(tier)?.limit_max?;
                    allowed += limit;
                    burst = burst.max(BURST * limit);
                    admitted += second.seen.tiers.get(tier)?.admitted();
                }
                Some((window.start, tier, admitted / (allowed + burst)))
            })
        });
        match judged.max_by(|a, b| a.2.total_cmp(&b.2)) {
            None => untested(promise, "no window of 10 s with limits"),
            Some((at, tier, ratio)) => verdict(
                promise,
                ratio <= 1.0,
                format!(
                    "at most {:.1} % of limit and burst ({}, from second {at})",
                    ratio * 100.0,
                    TIERS.get(tier).copied().unwrap_or_default()
                ),
            ),
        }
    }

    fn served_shares(&self) -> [f64; TIERS.len()] {
        let part = self.part(self.halved + SETTLE, self.returned);
        let mut shares = [0.0; TIERS.len()];
        for (tier, share) in shares.iter_mut().enumerate() {
            let of = |pick: fn(&super::ledger::Served) -> f64| {
                total(part.iter().filter_map(|second| second.seen.tiers.get(tier)).map(pick))
            };
            *share = of(super::ledger::Served::served) / of(|served| served.demand).max(1.0);
        }
        shares
    }

    fn windows(&self) -> impl Iterator<Item = Range<usize>> {
        (WINDOW..=self.seconds.len()).map(|end| end - WINDOW..end)
    }

    /// The seconds of a range, cut to what there is.
    fn part(&self, from: usize, to: usize) -> &[Second] {
        let to = to.min(self.seconds.len());
        self.seconds.get(from.min(to)..to).unwrap_or_default()
    }
}

/// Whether a window and the seconds after a step overlap.
fn touches(window: &Range<usize>, step: usize) -> bool {
    window.start < step + SETTLE && step < window.end
}

fn over(part: &[Second], what: fn(&Second) -> f64) -> f64 {
    let capacity: f64 = part.iter().map(|second| second.capacity).sum();
    total(part.iter().map(what)) / capacity.max(1.0)
}

/// `sum` of nothing is negative zero, which looks odd in print.
fn total(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |sum, value| sum + value)
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    (count > 0.0).then(|| sum / count)
}

fn verdict(promise: &'static str, kept: bool, measured: String) -> Verdict {
    Verdict { promise, outcome: if kept { Kept::Kept } else { Kept::Broken }, measured }
}

fn untested(promise: &'static str, why: &str) -> Verdict {
    Verdict { promise, outcome: Kept::Untested, measured: why.to_owned() }
}

#[cfg(test)]
mod tests;
