//! Aperture's AIMD load scheduler: a load multiplier on the incoming rate, grown by an integrator.
//!
//! Source: <https://github.com/fluxninja/aperture>,
//! `pkg/policies/controlplane/components/flowcontrol/load-scheduler/aimd-load-scheduler.go`,
//! `components/controller/gradient.go`, `components/integrator.go`, the agent's
//! `scheduler/token-bucket-load-multiplier.go`, and the blueprints `load-scheduling/common-aimd`
//! and `load-scheduling/average-latency`. Defaults there: overload while the short latency exceeds
//! 1.25 times that of 1800 s; then the observed multiplier times `(signal / setpoint)^-1` in
//! 0.1..1, else the observed one plus an integrator that begins at 2, is reset by overload and
//! takes 0.025 every 10 s; from 2 on, and while there is no signal (`actuator.go`), nothing is
//! limited. Policies are evaluated every 10 s; what is
//! observed (accepted over incoming tokens) and the incoming rate that is multiplied are of the
//! last 10 s.
//!
//! Its latency is here that to the first token over 30 s (an advantage: the flux meter sees whole
//! responses), its weighted fair queue with timeouts the weighted max-min split without
//! guarantees and without waiting.

use std::collections::VecDeque;
use std::time::Duration;

use crate::sim::law::Ask;
use crate::sim::law::End;
use crate::sim::law::Law;
use crate::sim::law::Seen;
use crate::sim::law::Terms;
use crate::unit::Instant;

use super::aimd::waiting;
use super::door::Door;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    pub signal: Signal,
    /// Of the integrator, every 10 s.
    pub increment: f64,
    pub min_gradient: f64,
    pub multiplier_max: f64,
    /// Between two evaluations, and two steps of the integrator.
    pub every: Duration,
}

/// What is compared with what.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Signal {
    /// Time to first token, with this multiple of its long average.
    Latency(f64),
    /// Waiting requests, with this many per replica (the `queue-buildup` blueprints).
    Waiting(f64),
}

pub const DEFAULT: Settings = Settings {
    signal: Signal::Latency(1.25),
    increment: 0.025,
    min_gradient: 0.1,
    multiplier_max: 2.0,
    every: Duration::from_secs(10),
};

/// As often as metrics are scraped here.
const WAITING: Settings = Settings { signal: Signal::Waiting(5.0), every: Duration::from_secs(1), ..DEFAULT };

pub const GRID: &[(&str, Settings)] = &[
    ("slow", Settings { increment: 0.0025, ..DEFAULT }),
    ("tolerance2", Settings { signal: Signal::Latency(2.0), ..DEFAULT }),
    ("waiting5", WAITING),
    ("waiting5-slow", Settings { increment: 0.0025, ..WAITING }),
    ("waiting5-cut0.5", Settings { min_gradient: 0.5, ..WAITING }),
    ("waiting5-10s", Settings { every: DEFAULT.every, ..WAITING }),
];

const SHORT: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(1800);
/// Sum and count of what came in a sliding time.
#[derive(Clone, Debug)]
struct Sliding {
    over: Duration,
    bins: VecDeque<(Instant, f64, u32)>,
    sum: f64,
    count: u32,
}

#[derive(Clone, Debug)]
pub struct Aperture {
    settings: Settings,
    door: Door,
    short: Sliding,
    long: Sliding,
    /// Since the last tick.
    latencies: (f64, u32),
    /// Since the last evaluation.
    came: f64,
    integral: f64,
    evaluated: Instant,
    multiplier: f64,
}

// === impl Sliding ===

impl Sliding {
    fn new(over: Duration) -> Sliding {
        Sliding { over, bins: VecDeque::new(), sum: 0.0, count: 0 }
    }

    fn add(&mut self, now: Instant, sum: f64, count: u32) {
        self.bins.push_back((now, sum, count));
        self.sum += sum;
        self.count += count;
        while let Some(&(at, sum, count)) = self.bins.front()
            && now.since(at) >= self.over
        {
            self.sum -= sum;
            self.count -= count;
            self.bins.pop_front();
        }
    }

    fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / f64::from(self.count))
    }
}

// === impl Aperture ===

impl Aperture {
    pub fn new(terms: &Terms, settings: Settings) -> Aperture {
        Aperture {
            settings,
            door: Door::holding(terms, f64::INFINITY, Duration::from_secs(1), false),
            short: Sliding::new(SHORT),
            long: Sliding::new(LONG),
            latencies: (0.0, 0),
            came: 0.0,
            integral: settings.multiplier_max,
            evaluated: Instant::ZERO,
            multiplier: settings.multiplier_max,
        }
    }

    /// Signal over setpoint; none while nothing is known.
    fn severity(&self, seen: &Seen<'_>) -> Option<f64> {
        match self.settings.signal {
            Signal::Latency(tolerance) => Some(self.short.mean()? / (tolerance * self.long.mean()?)),
            Signal::Waiting(each) => match waiting(seen) {
                (_, 0) => None,
                (waiting, replicas) => Some(waiting / (each * replicas as f64)),
            },
        }
    }
}

impl Law for Aperture {
    fn tick(&mut self, now: Instant, seen: &Seen<'_>) {
        let (sum, count) = std::mem::take(&mut self.latencies);
        self.short.add(now, sum, count);
        self.long.add(now, sum, count);
        let seconds = now.seconds_since(self.evaluated);
        if seconds < self.settings.every.as_secs_f64() {
            return;
        }
        self.evaluated = now;
        let (came, admitted) = (std::mem::take(&mut self.came), self.door.admitted());
        let observed = if came > 0.0 { admitted / came } else { self.multiplier.min(1.0) };
        match self.severity(seen) {
            Some(severity) if severity > 1.0 => {
                self.integral = 0.0;
                self.multiplier = observed * severity.recip().clamp(self.settings.min_gradient, 1.0);
            }
            Some(_) => {
                self.integral = (self.integral + self.settings.increment).min(self.settings.multiplier_max);
                self.multiplier = observed + self.integral;
            }
            // An invalid reading passes all.
            None => self.multiplier = self.settings.multiplier_max,
        }
        let open = self.multiplier >= self.settings.multiplier_max;
        self.door.set(now, if open { f64::INFINITY } else { self.multiplier * came / seconds });
    }

    fn admit(&mut self, now: Instant, _node: usize, ask: &Ask) -> bool {
        self.came += self.door.expected(ask);
        self.door.admit(now, ask)
    }

    fn first_token(&mut self, _now: Instant, _node: usize, _id: u64, ttft: Duration) {
        self.latencies.0 += ttft.as_secs_f64();
        self.latencies.1 += 1;
    }

    fn done(&mut self, _now: Instant, _node: usize, ask: &Ask, end: &End) {
        self.door.done(ask, end);
    }

    fn budget(&self) -> Option<f64> {
        Some(self.door.budget()).filter(|budget| budget.is_finite())
    }
}
