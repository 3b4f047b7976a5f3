//! The ledger of a run, summed up.

use crate::sim::law::Terms;
use crate::sim::trial::score::ledger::{Ledger, OfKey, Second};
use crate::sim::trial::{Happening, Trial};

/// More than this part of a second's requests late: the second is violated.
const VIOLATED: f64 = 0.05;
/// A guarantee is looked at in spans of this many seconds.
const GUARANTEE_SECONDS: usize = 10;
const GUARANTEE_KEPT: f64 = 0.95;
/// After a step, this many seconds without a queue and with this part of the bound: settled.
const SETTLED_SECONDS: usize = 20;
const SETTLED_QUEUE: f64 = 0.5;
const SETTLED_SERVED: f64 = 0.9;
/// Swing is looked at where nothing has changed for this long, seconds, and this much more is
/// asked than can be served.
const STEADY_AFTER: usize = 60;
const STEADY_LOAD: f64 = 1.05;
/// A tier that gets less than this part of what it asks is congested.
const CONGESTED: f64 = 0.95;

/// What `--json` prints, and what bands are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// Work served in time over the fluid bound.
    GoodputBound,
    /// The same over the oracle's.
    GoodputOracle,
    /// Seconds in which more than 5 % of those let in were late.
    ViolationS,
    /// Seconds from the worst step of capacity to a settled pool.
    SettleS,
    /// Seconds.
    TtftP99,
    /// Over the keys of the most congested tier, of what each got over its max-min fair share.
    Jain,
    /// Coefficient of variation of the budget in steady overload.
    Swing,
    /// Tier-seconds in which a tier got less than it was guaranteed and asked for.
    GuaranteeMissedS,
    /// Latest first token after a step, seconds.
    TtftPeak,
    /// Part of what was let in that a provider refused.
    Refused,
    /// Served in time over offered, of the first tier.
    FirstTier,
}

/// One run, summed up. None where a metric says nothing about it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Work served in time, and the most anybody could have.
    pub served: f64,
    pub bound: f64,
    /// Both, for each stretch between two steps: from when, seconds.
    pub stretches: Vec<(f64, f64, f64)>,
    pub violation_s: f64,
    pub settle_s: Option<f64>,
    pub ttft_p99: Option<f64>,
    pub ttft_peak: Option<f64>,
    pub refused: Option<f64>,
    pub jain: Option<f64>,
    pub swing: Option<f64>,
    pub guarantee_missed_s: f64,
    /// Served in time over offered, by tier.
    pub tiers: Vec<f64>,
}

/// Sums up a closed ledger.
pub fn report(trial: &Trial, terms: &Terms, ledger: &Ledger) -> Report {
    let bound = fluid_bound(&ledger.seconds, terms.slo.as_secs_f64());
    let scored = |from: usize, to: usize| -> (f64, f64) {
        let both = ledger.seconds.iter().zip(&bound).take(to).skip(from.max(ledger.from));
        both.fold((0.0, 0.0), |(served, most), (second, bound)| {
            (served + second.delivered, most + (bound - second.lost).max(0.0))
        })
    };
    let (served, most) = scored(0, ledger.seconds.len());
    let steps = steps(trial);
    let mut edges: Vec<usize> = std::iter::once(0).chain(steps.iter().map(|(at, _)| *at)).collect();
    edges.dedup();
    let ends = edges.iter().skip(1).copied().chain([ledger.seconds.len()]);
    let stretches = edges.iter().zip(ends).map(|(from, to)| {
        let (served, most) = scored(*from, to);
        (*from as f64, served, most)
    });
    let seconds = || ledger.seconds.iter().skip(ledger.from);
    let violated = |second: &&Second| f64::from(second.late) > VIOLATED * f64::from(second.arrived);
    Report {
        served,
        bound: most,
        stretches: stretches.collect(),
        violation_s: seconds().filter(violated).count() as f64,
        settle_s: settle(&steps, ledger, &bound, terms.slo.as_secs_f64()),
        ttft_p99: quantile(&ledger.first_tokens, 0.99),
        ttft_peak: peak(&steps, ledger),
        refused: trial.shape.quota.map(|_| refused(ledger)),
        jain: jain(&ledger.keys, ledger.tier_count),
        swing: swing(&steps, ledger),
        guarantee_missed_s: guarantee_missed(terms, ledger),
        tiers: tiers(ledger),
    }
}

fn fluid_bound(seconds: &[Second], slo: f64) -> Vec<f64> {
    let mut queue = 0.0;
    let bound = |second: &Second| {
        let asked = queue + second.offered;
        let done = f64::min(asked, second.capacity);
        queue = f64::min(asked - done, slo * second.capacity);
        done
    };
    seconds.iter().map(bound).collect()
}

/// Seconds at which something happened, and whether it changed capacity.
fn steps(trial: &Trial) -> Vec<(usize, bool)> {
    let mut steps: Vec<(usize, bool)> = Vec::new();
    for (at, what) in &trial.happenings {
        let changes = match what {
            Happening::Die { .. } | Happening::Revive { .. } | Happening::Slow { .. } => true,
            Happening::Flood { .. } | Happening::Output { .. } | Happening::Controller { .. } => false,
            Happening::Show { .. } => continue,
        };
        let at = *at as usize;
        match steps.last_mut() {
            Some(last) if last.0 == at => last.1 |= changes,
            _ => steps.push((at, changes)),
        }
    }
    steps
}

/// The longest that any change of capacity took to settle; what never settles took until the next.
fn settle(steps: &[(usize, bool)], ledger: &Ledger, bound: &[f64], slo: f64) -> Option<f64> {
    let calm = |at: usize| {
        let window = ledger.seconds.get(at..at + SETTLED_SECONDS)?;
        let short = window.iter().all(|second| second.queued <= SETTLED_QUEUE * slo * second.capacity);
        let most: f64 = bound.get(at..at + SETTLED_SECONDS)?.iter().sum();
        let good: f64 = window.iter().map(|second| second.good).sum();
        Some(short && good >= SETTLED_SERVED * most)
    };
    let settled = |(at, next): (usize, usize)| {
        let last = next.saturating_sub(SETTLED_SECONDS);
        let found = (at..=last.max(at)).find(|second| calm(*second) == Some(true));
        found.map_or(next - at, |second| second - at) as f64
    };
    let nexts = steps.iter().skip(1).map(|(at, _)| *at).chain([ledger.seconds.len()]);
    let changes = steps.iter().zip(nexts).filter(|((at, changes), _)| *changes && *at >= ledger.from);
    changes
        .map(|((at, _), next)| settled((*at, next)))
        .fold(None, |most, took| Some(f64::max(most.unwrap_or(0.0), took)))
}

/// Latest first token within a minute of a step, or of all where there is none.
fn peak(steps: &[(usize, bool)], ledger: &Ledger) -> Option<f64> {
    let near = |at: usize| steps.is_empty() || steps.iter().any(|(step, _)| (*step..step + 60).contains(&at));
    let seconds = ledger.seconds.iter().enumerate().skip(ledger.from);
    let ttfts = seconds.filter(|(at, second)| near(*at) && second.ttft > 0.0).map(|(_, second)| second.ttft);
    ttfts.fold(None, |most, ttft| Some(f64::max(most.unwrap_or(0.0), ttft)))
}

fn quantile(milliseconds: &[u32], part: f64) -> Option<f64> {
    let all: u64 = milliseconds.iter().map(|count| u64::from(*count)).sum();
    let wanted = (part * all as f64).ceil() as u64;
    let mut seen = 0;
    let found = milliseconds.iter().position(|count| {
        seen += u64::from(*count);
        seen >= wanted.max(1)
    });
    found.map(|at| at as f64 / 1e3)
}

/// Jain's index over the keys of the tier that gets the least of what it asks.
fn jain(keys: &[OfKey], tiers: usize) -> Option<f64> {
    let of = |tier: usize| keys.iter().filter(move |key| key.tier == tier && key.offered > 0.0);
    let part = |tier: usize| {
        let (good, offered) =
            of(tier).fold((0.0, 0.0), |(good, offered), key| (good + key.good, offered + key.offered));
        (good / f64::max(offered, 1e-9), tier)
    };
    let asked = (0..tiers).filter(|tier| of(*tier).next().is_some());
    let (served, tier) = asked.map(part).min_by(|a, b| a.0.total_cmp(&b.0))?;
    // Where nothing is served there is nothing to share.
    if !(0.01..CONGESTED).contains(&served) {
        return None;
    }
    let total: f64 = of(tier).map(|key| key.good).sum();
    let mut wants: Vec<f64> = of(tier).map(|key| key.offered).collect();
    wants.sort_by(f64::total_cmp);
    let (mut left, mut level) = (total, 0.0);
    for (at, want) in wants.iter().enumerate() {
        level = left / (wants.len() - at) as f64;
        if *want > level {
            break;
        }
        left -= want;
    }
    let ratios = || of(tier).map(|key| key.good / f64::max(key.offered.min(level), 1e-9));
    let (sum, squares) = ratios().fold((0.0, 0.0), |(sum, squares), x| (sum + x, squares + x * x));
    Some(sum * sum / (wants.len() as f64 * f64::max(squares, 1e-9)))
}

/// Over stretches in which nothing changed, each by itself; the mean by their length.
fn swing(steps: &[(usize, bool)], ledger: &Ledger) -> Option<f64> {
    let end = ledger.seconds.len();
    let begins =
        std::iter::once(ledger.from.max(STEADY_AFTER)).chain(steps.iter().map(|(at, _)| at + STEADY_AFTER));
    let ends = steps.iter().map(|(at, _)| *at).chain([end]);
    let (mut weights, mut sum) = (0.0, 0.0);
    for (from, to) in begins.zip(ends) {
        let Some(window) = ledger.seconds.get(from..to) else { continue };
        let (offered, capacity) = window.iter().fold((0.0, 0.0), |(offered, capacity), second| {
            (offered + second.offered, capacity + second.capacity)
        });
        if offered < STEADY_LOAD * capacity {
            continue;
        }
        let inside = |(at, _): &&(f64, f64)| (from as f64..to as f64).contains(at);
        let budgets: Vec<f64> = ledger.budgets.iter().filter(inside).map(|(_, budget)| *budget).collect();
        let count = budgets.len() as f64;
        if count < 5.0 {
            continue;
        }
        let mean = budgets.iter().sum::<f64>() / count;
        let variance = budgets.iter().map(|budget| (budget - mean) * (budget - mean)).sum::<f64>() / count;
        if mean.is_finite() && mean > 0.0 {
            sum += count * variance.sqrt() / mean;
            weights += count;
        }
    }
    (weights > 0.0).then(|| sum / weights)
}

fn refused(ledger: &Ledger) -> f64 {
    let seconds = ledger.seconds.iter().skip(ledger.from);
    let (sent, refused) = seconds.fold((0.0, 0.0), |(sent, refused), second| {
        (sent + f64::from(second.sent), refused + f64::from(second.refused))
    });
    refused / f64::max(sent, 1.0)
}

fn guarantee_missed(terms: &Terms, ledger: &Ledger) -> f64 {
    let mut missed = 0;
    let first = ledger.from.div_ceil(GUARANTEE_SECONDS);
    for span in first..ledger.seconds.len() / GUARANTEE_SECONDS {
        for (at, tier) in terms.tiers.iter().enumerate() {
            let of = |second: usize| ledger.tiers.get(second * ledger.tier_count + at);
            let seconds = (span * GUARANTEE_SECONDS..(span + 1) * GUARANTEE_SECONDS).filter_map(of);
            let (offered, good) = seconds
                .fold((0.0, 0.0), |(offered, good), second| (offered + second.offered, good + second.good));
            let due = f64::min(offered, tier.guarantee * GUARANTEE_SECONDS as f64);
            missed += usize::from(good < GUARANTEE_KEPT * due) * GUARANTEE_SECONDS;
        }
    }
    missed as f64
}

fn tiers(ledger: &Ledger) -> Vec<f64> {
    let scored = || ledger.tiers.chunks(ledger.tier_count.max(1)).skip(ledger.from);
    let part = |tier: usize| {
        let of = scored().filter_map(|second| second.get(tier));
        let (offered, good) =
            of.fold((0.0, 0.0), |(offered, good), second| (offered + second.offered, good + second.good));
        good / f64::max(offered, 1e-9)
    };
    (0..ledger.tier_count).map(part).collect()
}

// === impl Metric ===

impl Metric {
    pub const ALL: [(&'static str, Metric); 11] = [
        ("goodput_bound", Metric::GoodputBound),
        ("goodput_oracle", Metric::GoodputOracle),
        ("violation_s", Metric::ViolationS),
        ("settle_s", Metric::SettleS),
        ("ttft_p99", Metric::TtftP99),
        ("jain", Metric::Jain),
        ("swing", Metric::Swing),
        ("guarantee_missed_s", Metric::GuaranteeMissedS),
        ("ttft_peak", Metric::TtftPeak),
        ("refused", Metric::Refused),
        ("first_tier", Metric::FirstTier),
    ];

    pub fn more_is_better(self) -> bool {
        matches!(self, Metric::GoodputBound | Metric::GoodputOracle | Metric::Jain | Metric::FirstTier)
    }
}

// === impl Report ===

impl Report {
    pub fn goodput_bound(&self) -> f64 {
        self.served / f64::max(self.bound, 1e-9)
    }

    /// `oracle`: the oracle's report on the same seed.
    pub fn metric(&self, metric: Metric, oracle: Option<&Report>) -> Option<f64> {
        match metric {
            Metric::GoodputBound => Some(self.goodput_bound()),
            Metric::GoodputOracle => oracle.map(|oracle| self.served / f64::max(oracle.served, 1e-9)),
            Metric::ViolationS => Some(self.violation_s),
            Metric::SettleS => self.settle_s,
            Metric::TtftP99 => self.ttft_p99,
            Metric::Jain => self.jain,
            Metric::Swing => self.swing,
            Metric::GuaranteeMissedS => Some(self.guarantee_missed_s),
            Metric::TtftPeak => self.ttft_peak,
            Metric::Refused => self.refused,
            Metric::FirstTier => self.tiers.first().copied(),
        }
    }
}
