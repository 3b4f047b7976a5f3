//! Plain AIMD on the pool's budget (Chiu and Jain, "Analysis of the increase and decrease
//! algorithms for congestion avoidance", Computer Networks and ISDN Systems 17, 1989; the halving
//! is that of RFC 5681, section 3.1).
//!
//! Each scrape: overload is more than 5 waiting requests a replica (the queue threshold of
//! gateway-api-inference-extension) or more than 5 % of first tokens later than the SLO; then the
//! budget is multiplied, else it grows by 2 % of nominal. A scrape that shows nothing changes
//! nothing.

use std::time::Duration;

use crate::observe::Outcome;
use crate::sim::law::Ask;
use crate::sim::law::End;
use crate::sim::law::Law;
use crate::sim::law::Seen;
use crate::sim::law::Terms;
use crate::unit::Instant;

use super::door::Door;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// What the budget is multiplied by in overload.
    pub decrease: f64,
    /// Part of nominal, per scrape.
    pub increase: f64,
    /// Requests that wait, per replica.
    pub waiting_max: f64,
    /// Part of first tokens.
    pub late_max: f64,
}

pub const DEFAULT: Settings = Settings { decrease: 0.5, increase: 0.02, waiting_max: 5.0, late_max: 0.05 };

pub const GRID: &[(&str, Settings)] = &[
    ("x0.9", Settings { decrease: 0.9, ..DEFAULT }),
    ("x0.7", Settings { decrease: 0.7, ..DEFAULT }),
    ("x0.9+1%", Settings { decrease: 0.9, increase: 0.01, ..DEFAULT }),
    ("x0.9-wait1", Settings { decrease: 0.9, waiting_max: 1.0, ..DEFAULT }),
    ("x0.8-wait2", Settings { decrease: 0.8, waiting_max: 2.0, ..DEFAULT }),
];

/// Neither shut for good nor without end: parts of nominal.
const FLOOR: f64 = 0.05;
const CEILING: f64 = 2.0;

#[derive(Clone, Debug)]
pub struct Aimd {
    settings: Settings,
    door: Door,
}

/// What a scrape says of queues: waiting requests and replicas that said so.
pub fn waiting(seen: &Seen<'_>) -> (f64, usize) {
    let up = seen.round.replicas.iter().filter_map(|reading| match &reading.outcome {
        Outcome::Up(signals) => Some(signals.waiting.unwrap_or(0.0)),
        Outcome::Down(_) | Outcome::Silent(_) => None,
    });
    up.fold((0.0, 0), |(sum, count), waiting| (sum + waiting, count + 1))
}

// === impl Aimd ===

impl Aimd {
    pub fn new(terms: &Terms, settings: Settings) -> Aimd {
        Aimd { settings, door: Door::new(terms, terms.nominal) }
    }
}

impl Law for Aimd {
    fn tick(&mut self, now: Instant, seen: &Seen<'_>) {
        let (waiting, replicas) = waiting(seen);
        let nominal = self.door.terms.nominal;
        let late = f64::from(seen.late) > self.settings.late_max * f64::from(seen.first_tokens);
        let overload = waiting > self.settings.waiting_max * replicas as f64 || late;
        let budget = if overload {
            self.door.budget() * self.settings.decrease
        } else if replicas == 0 {
            self.door.budget()
        } else {
            self.door.budget() + self.settings.increase * nominal
        };
        self.door.set(now, budget.clamp(FLOOR * nominal, CEILING * nominal));
    }

    fn admit(&mut self, now: Instant, _node: usize, ask: &Ask) -> bool {
        self.door.admit(now, ask)
    }

    fn first_token(&mut self, _now: Instant, _node: usize, _id: u64, _ttft: Duration) {}

    fn done(&mut self, _now: Instant, _node: usize, ask: &Ask, end: &End) {
        self.door.done(ask, end);
    }

    fn budget(&self) -> Option<f64> {
        Some(self.door.budget())
    }
}
