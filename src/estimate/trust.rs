//! How far one source's word goes: impossible numbers, frozen pages, replicas that come and go,
//! and one that says far more than the others.
//!
//! What a single replica of three or more says moves nothing by itself; with fewer there is
//! nobody to ask.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::observe::Signals;
use crate::planted::{bug, without};
use crate::unit::{Instant, MAX_FINITE, ReplicaId};

/// Part of the known replicas that must be seen for the pool to count as seen; below it neither
/// capacity nor load has fallen, the source has.
pub const SEEN_MIN: f64 = 0.5;
/// Readings in a row that say exactly the same, while nodes are served, before a page is frozen.
pub const FROZEN_AFTER: u32 = 10;
/// Replicas from which on one is judged by the others.
pub const QUORUM: usize = 3;
/// The replica that says most counts at most this many times the next.
const ABOVE_NEXT: f64 = 2.0;
/// Scrapes running that a replica must answer to count: twice as many once it has fallen again. Not
/// more: one that comes and goes serves while it is there.
const RETURNS_AFTER: u32 = 2;
const RETURNS_DOUBLINGS: u32 = 1;

/// What nodes saw of a pool in the last interval: the sign that is independent of its source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Witness {
    /// Significantly many upstream errors.
    pub errors: bool,
    /// Some request was answered.
    pub served: bool,
}

/// Replicas that fell while they counted, and how often of late.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Fallen(BTreeMap<ReplicaId, Falls>);

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Falls {
    times: u32,
    at: Instant,
}

/// Numbers that can be what they claim: finite, not negative, countable. The border turns others
/// away too; this holds for every border there will be.
pub fn possible(signals: &Signals) -> bool {
    let values = [
        signals.running,
        signals.waiting,
        signals.work_done,
        signals.work_done_output,
        signals.latency,
        signals.errors,
    ];
    values.into_iter().flatten().all(|value| (0.0..=MAX_FINITE as f64).contains(&value))
}

/// Does the page itself say that there is work that must move its counters?
pub fn claims_work(signals: &Signals) -> bool {
    let some = |value: Option<f64>| value.is_some_and(|value| value >= 1.0);
    some(signals.running) || some(signals.waiting)
}

/// Without a counter a page of a pool at its limit looks the same for hours.
pub fn counts(signals: &Signals) -> bool {
    signals.work_done.is_some() || signals.work_done_output.is_some()
}

/// The sum, in which one of three or more counts at most twice the next.
pub fn bounded_sum(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    if !bug("liar-believed")
        && values.len() >= QUORUM
        && let [.., next, most] = values.as_mut_slice()
    {
        *most = most.min(ABOVE_NEXT * *next);
    }
    values.iter().sum()
}

/// The value in the middle; of two that disagree, where there are others to know better, the lower.
pub fn middle(mut values: Vec<f64>, known: usize) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = values.get(values.len() / 2).copied()?;
    let lower = values.get(values.len().checked_sub(1)? / 2).copied()?;
    if bug("liar-believed") {
        return Some(values.iter().sum::<f64>() / values.len() as f64);
    }
    let disagree = known >= QUORUM && values.len() == 2 && upper > 2.0 * lower;
    Some(if disagree { lower } else { (upper + lower) / 2.0 })
}

// === impl Fallen ===

impl Fallen {
    pub fn fell(&mut self, id: &ReplicaId, now: Instant, most: usize) {
        if self.0.len() < most || self.0.contains_key(id) {
            let falls = self.0.entry(id.clone()).or_insert(Falls { times: 0, at: now });
            *falls = Falls { times: falls.times.saturating_add(1), at: now };
        }
    }

    /// Who has not fallen for `seconds` is trusted as before.
    pub fn forget(&mut self, now: Instant, seconds: f64) {
        self.0.retain(|_, falls| now.seconds_since(falls.at) <= seconds);
    }

    /// Scrapes running in which it must answer before it counts.
    pub fn returns_after(&self, id: &ReplicaId) -> u32 {
        let times = self.0.get(id).map_or(0, |falls| falls.times);
        if without("second-scrape") {
            return 1;
        }
        let times = if without("flap-doubling") { 0 } else { times };
        RETURNS_AFTER << times.saturating_sub(1).min(RETURNS_DOUBLINGS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a04_only_numbers_that_can_be_counts_are_possible() {
        let signals = |value: f64| Signals { work_done: Some(value), ..Signals::default() };
        for good in [0.0, -0.0, 5e-324, 1.0, MAX_FINITE as f64] {
            assert!(possible(&signals(good)), "{good}");
        }
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, -5e-324, 1e308, 1e16] {
            assert!(!possible(&signals(bad)), "{bad}");
            assert!(!possible(&Signals { latency: Some(bad), ..signals(1.0) }), "{bad}");
        }
    }

    #[test]
    fn a07_one_of_three_counts_at_most_twice_the_next() {
        assert_eq!(bounded_sum(vec![1e9, 3.0, 1.0]), 6.0 + 3.0 + 1.0);
        assert_eq!(bounded_sum(vec![1e9, 0.0, 0.0]), 0.0);
        assert_eq!(bounded_sum(vec![9.0, 3.0]), 12.0, "of two nobody knows which");
        assert_eq!(middle(vec![1e9, 3.0, 4.0], 3), Some(4.0));
        assert_eq!(middle(vec![1e9, 3.0], 3), Some(3.0));
        assert_eq!(middle(vec![9.0, 3.0], 2), Some(6.0));
        assert_eq!(middle(Vec::new(), 3), None);
    }

    #[test]
    fn a10_who_falls_again_and_again_must_answer_longer() {
        let (mut fallen, id) = (Fallen::default(), ReplicaId::new("r"));
        let mut needed = vec![fallen.returns_after(&id)];
        for _ in 0..6 {
            fallen.fell(&id, Instant::ZERO, 10);
            needed.push(fallen.returns_after(&id));
        }
        assert_eq!(needed, [2, 2, 4, 4, 4, 4, 4]);
        fallen.forget(Instant(301_000_000_000), 300.0);
        assert_eq!(fallen.returns_after(&id), 2);
    }
}
