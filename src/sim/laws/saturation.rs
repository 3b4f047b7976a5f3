//! Thresholds: nothing is let in while the pool counts as saturated (gateway-api-inference-extension),
//! or each priority only its share (LiteLLM).
//!
//! Sources: <https://github.com/kubernetes-sigs/gateway-api-inference-extension>,
//! `pkg/epp/saturationdetector/framework/plugins/utilizationdetector/` (`detector.go`,
//! `config.go`): saturation is the mean over endpoints of `max(waiting / 5, kv / 0.8)`, an endpoint
//! whose metrics are stale counts 1, and from 1 on requests of a negative priority are refused.
//! With the library's priority 0 nobody ever is, so here all tiers are sheddable; a variant sheds
//! the lowest only. Its metrics are 50 ms old there, and here as old as every law's.
//!
//! <https://github.com/BerriAI/litellm>, `litellm/proxy/hooks/dynamic_rate_limiter_v3.py` and
//! `litellm/types/utils.py` (`PriorityReservationSettings`): a model's RPM and TPM over 60 s are
//! always enforced; from 0.5 of either on, each priority has its part of them. Tokens count when a
//! call has ended, requests when it begins. Its capacity is here nominal, its reservations are the
//! tiers' weights.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::observe::Outcome;
use crate::sim::law::Ask;
use crate::sim::law::End;
use crate::sim::law::Law;
use crate::sim::law::Seen;
use crate::sim::law::Terms;
use crate::unit::Instant;

use super::door::work;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    pub detector: Detector,
    /// Only the lowest priority is refused.
    pub lowest_only: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Detector {
    /// Requests that wait on a replica, and part of its KV memory.
    Utilization { waiting: f64, kv: f64 },
    /// Part of a minute's requests or tokens; whether requests are limited as well.
    Reservation { threshold: f64, requests: bool },
}

pub const DEFAULT: Settings =
    Settings { detector: Detector::Utilization { waiting: 5.0, kv: 0.8 }, lowest_only: false };

const LITELLM: Settings =
    Settings { detector: Detector::Reservation { threshold: 0.5, requests: true }, lowest_only: false };

pub const GRID: &[(&str, Settings)] = &[
    ("waiting1", Settings { detector: Detector::Utilization { waiting: 1.0, kv: 0.8 }, ..DEFAULT }),
    ("waiting20", Settings { detector: Detector::Utilization { waiting: 20.0, kv: 0.9 }, ..DEFAULT }),
    ("lowest-only", Settings { lowest_only: true, ..DEFAULT }),
    ("litellm", LITELLM),
    (
        "litellm-0.8",
        Settings { detector: Detector::Reservation { threshold: 0.8, requests: true }, ..LITELLM },
    ),
    (
        "litellm-tokens",
        Settings { detector: Detector::Reservation { threshold: 0.5, requests: false }, ..LITELLM },
    ),
];

const WINDOW: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
pub struct Utilization {
    waiting: f64,
    kv: f64,
    lowest_only: bool,
    lowest: u32,
    terms: Terms,
    /// From 1 on the pool is saturated.
    saturation: f64,
}

/// What was counted in the minute under way, of one limit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Counted {
    requests: f64,
    tokens: f64,
}

#[derive(Clone, Debug)]
pub struct Reservation {
    threshold: f64,
    /// Per minute, all priorities together.
    limit: Counted,
    /// Of the whole, by tier.
    parts: Vec<f64>,
    output_cost: f64,
    ends: Instant,
    model: Counted,
    tiers: Vec<Counted>,
    open: BTreeSet<u64>,
}

// === impl Settings ===

impl Settings {
    pub fn law(self, terms: &Terms) -> Box<dyn Law> {
        match self.detector {
            Detector::Utilization { waiting, kv } => {
                Box::new(Utilization::new(terms, waiting, kv, self.lowest_only))
            }
            Detector::Reservation { threshold, requests } => {
                Box::new(Reservation::new(terms, threshold, requests))
            }
        }
    }
}

// === impl Utilization ===

impl Utilization {
    fn new(terms: &Terms, waiting: f64, kv: f64, lowest_only: bool) -> Utilization {
        let lowest = terms.tiers.iter().map(|tier| tier.priority).max().unwrap_or(0);
        Utilization { waiting, kv, lowest_only, lowest, terms: terms.clone(), saturation: 0.0 }
    }
}

impl Law for Utilization {
    fn tick(&mut self, _now: Instant, seen: &Seen<'_>) {
        let kv = seen.kv.iter().copied().chain(std::iter::repeat(0.0));
        let scores = seen.round.replicas.iter().zip(kv).filter_map(|(reading, kv)| match &reading.outcome {
            Outcome::Up(signals) => Some((signals.waiting.unwrap_or(0.0) / self.waiting).max(kv / self.kv)),
            Outcome::Silent(_) => Some(1.0),
            // Not ready: no endpoint.
            Outcome::Down(_) => None,
        });
        let (sum, count) = scores.fold((0.0, 0.0), |(sum, count), score| (sum + score, count + 1.0));
        self.saturation = if count > 0.0 { sum / count } else { 1.0 };
    }

    fn admit(&mut self, _now: Instant, _node: usize, ask: &Ask) -> bool {
        let priority = self.terms.tiers.get(ask.tier).map_or(0, |tier| tier.priority);
        let sheddable = !self.lowest_only || priority == self.lowest;
        self.saturation < 1.0 || !sheddable
    }

    fn first_token(&mut self, _now: Instant, _node: usize, _id: u64, _ttft: Duration) {}

    fn done(&mut self, _now: Instant, _node: usize, _ask: &Ask, _end: &End) {}

    fn budget(&self) -> Option<f64> {
        None
    }
}

// === impl Counted ===

impl Counted {
    /// The larger used part of `part` of `limit`.
    fn of(self, limit: Counted, part: f64) -> f64 {
        (self.requests / (limit.requests * part)).max(self.tokens / (limit.tokens * part))
    }
}

// === impl Reservation ===

impl Reservation {
    fn new(terms: &Terms, threshold: f64, requests: bool) -> Reservation {
        let whole: f64 = terms.tiers.iter().map(|tier| tier.weight).sum();
        let minute = WINDOW.as_secs_f64() * terms.nominal;
        // What a request costs is its expected output and as much prompt: nobody knows better.
        let each = (2.0 * terms.output_cost * terms.mean_output).max(1.0);
        Reservation {
            threshold,
            limit: Counted { requests: if requests { minute / each } else { f64::INFINITY }, tokens: minute },
            parts: terms.tiers.iter().map(|tier| tier.weight / whole).collect(),
            output_cost: terms.output_cost,
            ends: Instant::ZERO + WINDOW,
            model: Counted::default(),
            tiers: vec![Counted::default(); terms.tiers.len()],
            open: BTreeSet::new(),
        }
    }

    fn roll(&mut self, now: Instant) {
        if now >= self.ends {
            self.ends = now + WINDOW;
            self.model = Counted::default();
            self.tiers.fill(Counted::default());
        }
    }
}

impl Law for Reservation {
    fn tick(&mut self, _now: Instant, _seen: &Seen<'_>) {}

    fn admit(&mut self, now: Instant, _node: usize, ask: &Ask) -> bool {
        self.roll(now);
        let used = self.model.of(self.limit, 1.0);
        let (Some(tier), Some(part)) = (self.tiers.get_mut(ask.tier), self.parts.get(ask.tier)) else {
            return false;
        };
        if used >= 1.0 || used >= self.threshold && tier.of(self.limit, *part) >= 1.0 {
            return false;
        }
        tier.requests += 1.0;
        self.model.requests += 1.0;
        self.open.insert(ask.id);
        true
    }

    fn first_token(&mut self, _now: Instant, _node: usize, _id: u64, _ttft: Duration) {}

    fn done(&mut self, now: Instant, _node: usize, ask: &Ask, end: &End) {
        self.roll(now);
        let tokens = match end {
            End::Served { output, .. } => work(ask, *output, self.output_cost),
            End::Lost | End::Abandoned => 0.0,
        };
        if self.open.remove(&ask.id)
            && let Some(tier) = self.tiers.get_mut(ask.tier)
        {
            tier.tokens += tokens;
            self.model.tokens += tokens;
        }
    }

    fn budget(&self) -> Option<f64> {
        None
    }
}
