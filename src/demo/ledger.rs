//! The outside ledger: what tenants asked for and got, at its true cost, second by second.
//!
//! It is kept by the clients, so it owes nothing to what nodes or controller believe. A request
//! belongs to the second it was sent in, whenever its outcome comes; until it is refused it counts
//! as admitted, because a refusal comes at once and an answer does not.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;

/// Tiers of the demo, best first.
pub const TIERS: [&str; 3] = ["enterprise", "starter", "free"];

/// First tokens remembered of one second; far above what the demo sends.
const SAMPLES_MAX: usize = 4096;

/// Work of one tier in one second, by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Served {
    /// All that was sent, or would have been with room for it.
    pub demand: f64,
    /// Refused with 429.
    pub refused_limit: f64,
    /// Refused with 503.
    pub refused_capacity: f64,
    /// Admitted, then broken by the upstream's death or given up by the client.
    pub failed: f64,
    /// Never sent: the client had too many requests in flight.
    pub lost: f64,
}

/// One second of the whole demo, as clients saw it.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub tiers: [Served; TIERS.len()],
    /// Seconds to the first token, of streams whose first token came in this second.
    pub first_tokens: Vec<f64>,
    /// Work finished in this second whose first token came within the SLO.
    pub good: f64,
    pub failed_requests: u64,
    pub lost_requests: u64,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome {
    Answered {
        first_token: f64,
    },
    RefusedLimit,
    RefusedCapacity,
    Failed,
    /// Nothing came for as long as the client waits.
    Abandoned {
        waited: f64,
        had_first_token: bool,
    },
    Lost,
}

#[derive(Debug)]
pub struct Ledger {
    slo: f64,
    seconds: Mutex<Vec<Seen>>,
}

// === impl Served ===

impl Served {
    pub fn refused(&self) -> f64 {
        self.refused_limit + self.refused_capacity
    }

    /// What nodes let through, answered or not.
    pub fn admitted(&self) -> f64 {
        (self.demand - self.refused() - self.lost).max(0.0)
    }

    /// What was admitted, less what broke in this second.
    pub fn served(&self) -> f64 {
        self.admitted() - self.failed
    }
}

// === impl Ledger ===

impl Ledger {
    pub fn new(seconds: usize, slo: Duration) -> Ledger {
        Ledger { slo: slo.as_secs_f64(), seconds: Mutex::new(vec![Seen::default(); seconds]) }
    }

    /// A request of `work` was sent at `at` seconds.
    pub fn sent(&self, tier: usize, at: f64, work: f64) {
        self.change(at, |seen| {
            if let Some(tier) = seen.tiers.get_mut(tier) {
                tier.demand += work;
            }
        });
    }

    /// A stream's first token came at `at`, `after` seconds after it was asked for.
    pub fn first_token(&self, at: f64, after: f64) {
        self.change(at, |seen| {
            if seen.first_tokens.len() < SAMPLES_MAX {
                seen.first_tokens.push(after);
            }
        });
    }

    /// The request sent at `sent` came to its end at `at`.
    pub fn ended(&self, tier: usize, sent: f64, at: f64, work: f64, outcome: Outcome) {
        if let Outcome::Answered { first_token } = outcome
            && first_token <= self.slo
        {
            self.change(at, |seen| seen.good += work);
        }
        if let Outcome::Abandoned { waited, had_first_token: false } = outcome {
            // The first token that never came was at least this slow.
            self.first_token(at, waited);
        }
        // A refusal is told of the second it was asked in; a failure of the second it happened in,
        // which for a request that died with its replica is that of the death.
        let broke = matches!(outcome, Outcome::Failed | Outcome::Abandoned { .. });
        self.change(if broke { at } else { sent }, |seen| {
            let Some(served) = seen.tiers.get_mut(tier) else { return };
            match outcome {
                Outcome::Answered { .. } => {}
                Outcome::RefusedLimit => served.refused_limit += work,
                Outcome::RefusedCapacity => served.refused_capacity += work,
                Outcome::Failed | Outcome::Abandoned { .. } => {
                    served.failed += work;
                    seen.failed_requests += 1;
                }
                Outcome::Lost => {
                    served.lost += work;
                    seen.lost_requests += 1;
                }
            }
        });
    }

    /// The second as it stands now.
    pub fn second(&self, index: usize) -> Seen {
        self.lock().get(index).cloned().unwrap_or_default()
    }

    /// What came after the last second of the demo belongs to none.
    fn change(&self, at: f64, change: impl FnOnce(&mut Seen)) {
        if let Some(seen) = self.lock().get_mut(at.max(0.0) as usize) {
            change(seen);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Seen>> {
        self.seconds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The `p` quantile, by the nearest rank. None of nothing.
pub fn quantile(mut samples: Vec<f64>, p: f64) -> Option<f64> {
    samples.sort_by(f64::total_cmp);
    let rank = (samples.len() as f64 * p).ceil() as usize;
    samples.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_lands_in_the_second_of_its_request_a_failure_in_its_own() {
        let ledger = Ledger::new(3, Duration::from_secs(1));
        for work in [100.0, 10.0, 1.0, 1000.0] {
            ledger.sent(1, 0.9, work);
        }
        ledger.ended(1, 0.9, 1.0, 10.0, Outcome::RefusedLimit);
        ledger.ended(1, 0.9, 1.0, 1.0, Outcome::RefusedCapacity);
        ledger.ended(1, 0.9, 2.5, 1000.0, Outcome::Failed);
        ledger.first_token(1.5, 0.6);
        ledger.ended(1, 0.9, 2.1, 100.0, Outcome::Answered { first_token: 0.6 });
        let served = ledger.second(0).tiers[1];
        assert_eq!((served.demand, served.admitted(), served.refused()), (1111.0, 1100.0, 11.0));
        assert_eq!(ledger.second(0).failed_requests, 0);
        assert_eq!((ledger.second(2).failed_requests, ledger.second(2).tiers[1].failed), (1, 1000.0));
        assert_eq!(ledger.second(1).first_tokens, [0.6]);
        assert_eq!(ledger.second(2).good, 100.0);
        assert_eq!(ledger.second(0).tiers[0], Served::default());
    }

    #[test]
    fn an_answer_past_the_slo_is_no_goodput_and_a_missing_one_a_slow_sample() {
        let ledger = Ledger::new(40, Duration::from_secs(1));
        ledger.ended(0, 0.0, 2.0, 5.0, Outcome::Answered { first_token: 1.01 });
        ledger.ended(0, 0.0, 30.0, 5.0, Outcome::Abandoned { waited: 30.0, had_first_token: false });
        assert_eq!(ledger.second(2).good, 0.0);
        assert_eq!(ledger.second(30).first_tokens, [30.0]);
        // What fails after the last second of the demo belongs to none.
        ledger.ended(0, 39.0, 99.0, 5.0, Outcome::Failed);
        assert_eq!(ledger.second(39).tiers[0].failed, 0.0);
    }

    #[test]
    fn quantiles_are_samples() {
        assert_eq!(quantile(vec![], 0.99), None);
        assert_eq!(quantile(vec![3.0], 0.99), Some(3.0));
        assert_eq!(quantile((1..=100).map(f64::from).collect(), 0.99), Some(99.0));
    }
}
