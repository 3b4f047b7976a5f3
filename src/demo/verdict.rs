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
/// Seconds of its limit that a tier may send at once.
const BURST: f64 = 2.0;

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
#[derive(Clone, Copy, Debug, Default)]
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
        let after = (self.returned..self.returned + RETURN)
            .filter_map(|at| Some((at, self.seconds.get(at)?.budget? / old)));
        let back = after.clone().find(|(_, part)| *part > RETURN_PART);
        match (back, after.last()) {
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
            let of = |pick: fn(&super::ledger::Served) -> f64| -> f64 {
                part.iter().filter_map(|second| second.seen.tiers.get(tier)).map(pick).sum()
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
    part.iter().map(what).sum::<f64>() / capacity.max(1.0)
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
mod tests {
    use super::super::ledger::Served;
    use super::*;

    const FULL: f64 = 32_000.0;

    /// 90 s in which every promise is kept.
    fn good() -> Record {
        let seconds = (0..90_u32).map(|t| {
            let halved = (30..60).contains(&t);
            let capacity = if halved { FULL / 2.0 } else { FULL };
            let known = if (34..64).contains(&t) { 15_000.0 } else { 30_000.0 };
            let limits =
                [12_000.0, if halved { 2_600.0 } else { 12_000.0 }, if halved { 700.0 } else { 8_000.0 }];
            let demands = [7_000.0, 16_000.0, 22_000.0];
            let mut second = Second {
                capacity,
                load: capacity * 0.95,
                budget: Some(known),
                tick: Some(u64::from(t / 2)),
                ..Second::default()
            };
            second.seen.first_tokens = vec![if (30..36).contains(&t) { 2.0 } else { 0.2 }; 50];
            second.seen.good = capacity * 0.9;
            for (tier, (limit, demand)) in limits.into_iter().zip(demands).enumerate() {
                second.tiers[tier] = Terms {
                    limit: Some(limit),
                    limit_max: Some(limit),
                    guarantee: [10_240.0, 2_560.0, 640.0][tier],
                };
                let refused_limit = f64::max(demand - limit, 0.0);
                second.seen.tiers[tier] = Served { demand, refused_limit, ..Served::default() };
            }
            second
        });
        Record {
            seconds: seconds.collect(),
            halved: 30,
            returned: 60,
            slo: Duration::from_secs(1),
            cost_max: 1600.0,
        }
    }

    fn outcomes(record: &Record) -> Vec<Kept> {
        record.verdicts().into_iter().map(|verdict| verdict.outcome).collect()
    }

    /// Exactly the promise at `index` is broken.
    fn breaks(index: usize, spoil: impl FnOnce(&mut Record)) {
        let mut record = good();
        spoil(&mut record);
        let mut wanted = vec![Kept::Kept; 6];
        wanted[index] = Kept::Broken;
        assert_eq!(outcomes(&record), wanted, "{:#?}", record.verdicts());
    }

    #[test]
    fn a_good_demo_keeps_every_promise() {
        assert_eq!(outcomes(&good()), vec![Kept::Kept; 6], "{:#?}", good().verdicts());
    }

    #[test]
    fn a_budget_that_stays_high_is_seen() {
        breaks(0, |record| record.seconds[36].budget = Some(17_000.0));
    }

    #[test]
    fn three_ticks_are_not_judged() {
        let mut record = good();
        // The last tick before the halving was 14, so 17 is the first that counts.
        record.seconds[33].budget = Some(32_000.0);
        assert_eq!(outcomes(&record)[0], Kept::Kept);
    }

    #[test]
    fn one_refused_enterprise_request_is_seen_outside_the_settling_only() {
        breaks(1, |record| record.seconds[45].seen.tiers[0].refused_capacity = 300.0);
        breaks(1, |record| record.seconds[45].seen.tiers[0].failed = 300.0);
        let mut record = good();
        record.seconds[31].seen.tiers[0].failed = 5000.0;
        record.seconds[65].seen.tiers[0].failed = 5000.0;
        assert_eq!(outcomes(&record)[1], Kept::Kept);
    }

    #[test]
    fn demand_above_the_guarantee_may_be_refused_down_to_it() {
        let mut record = good();
        for second in &mut record.seconds {
            second.seen.tiers[0] = Served { demand: 20_000.0, refused_limit: 9_760.0, ..Served::default() };
        }
        assert_eq!(outcomes(&record)[1], Kept::Kept);
    }

    #[test]
    fn shares_out_of_order_are_seen() {
        breaks(2, |record| {
            for second in &mut record.seconds[30..60] {
                second.seen.tiers[1].refused_limit = 16_000.0;
            }
        });
    }

    #[test]
    fn slow_first_tokens_are_seen_after_each_step() {
        breaks(3, |record| record.seconds[59].seen.first_tokens = vec![1.1; 50]);
        breaks(3, |record| record.seconds[72].seen.first_tokens = vec![1.1; 50]);
    }

    #[test]
    fn a_budget_that_comes_back_late_is_seen() {
        breaks(4, |record| {
            for second in &mut record.seconds[60..80] {
                second.budget = Some(26_000.0);
            }
        });
    }

    #[test]
    fn more_admitted_than_the_limit_is_seen() {
        breaks(5, |record| {
            for second in &mut record.seconds[10..20] {
                second.tiers[2].limit_max = Some(6_000.0);
                second.seen.tiers[2] = Served { demand: 7_400.0, ..Served::default() };
            }
        });
    }

    #[test]
    fn without_limits_or_time_nothing_is_kept() {
        let mut short = good();
        short.seconds.truncate(30);
        assert!(outcomes(&short)[2..5].iter().all(|outcome| *outcome == Kept::Untested), "{short:#?}");
        let mut without = good();
        for second in &mut without.seconds {
            (second.budget, second.tick) = (None, None);
            second.tiers = [Terms::default(); 3];
        }
        for index in [0, 1, 4, 5] {
            assert_eq!(outcomes(&without)[index], Kept::Untested);
        }
    }

    #[test]
    fn totals_are_over_capacity() {
        let totals = good().totals();
        assert!((totals.goodput - 0.9).abs() < 1e-9 && (totals.utilisation - 0.95).abs() < 1e-9);
        assert_eq!(totals.ttft_p99_worst, Some(2.0));
        assert_eq!(totals.ttft_p99_halved, Some(0.2));
    }
}
