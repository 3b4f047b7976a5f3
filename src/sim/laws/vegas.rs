//! Vegas of Netflix's concurrency-limits, in the node, on the time to first token.
//!
//! Source: <https://github.com/Netflix/concurrency-limits>, `limit/VegasLimit.java`,
//! `limit/functions/Log10RootIntFunction.java` (0.4). Defaults there: limit 20 at first, at most
//! 1000; smoothing 1; queue estimate `ceil(limit * (1 - least / rtt))`; at most `log10(limit)`:
//! plus `6 log10`; below `3 log10`: plus `log10`; above `6 log10`, or dropped: minus `log10`
//! (`log10` of an integer limit, at least 1); unchanged while fewer than half of the limit are in
//! flight; the least time is measured anew every `30 * limit * U(0.5, 1)` samples. Every call is a
//! sample: `AbstractLimiter`'s default has no window.

use std::time::Duration;

use crate::sim::Chance;
use crate::sim::law::Ask;
use crate::sim::law::End;
use crate::sim::law::Law;
use crate::sim::law::Seen;
use crate::sim::law::Terms;
use crate::unit::Instant;

use super::gradient2::Sample;
use super::gradient2::Window;
use super::in_flight::InFlight;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    pub initial: f64,
    /// Requests; none is twice what the replicas serve at once.
    pub max: Option<f64>,
    pub smoothing: f64,
    /// Of `log10(limit)`.
    pub alpha: f64,
    /// Of `log10(limit)`.
    pub beta: f64,
    /// A second's average instead of every call.
    pub windowed: bool,
}

pub const DEFAULT: Settings =
    Settings { initial: 20.0, max: Some(1000.0), smoothing: 1.0, alpha: 3.0, beta: 6.0, windowed: false };

pub const GRID: &[(&str, Settings)] = &[
    ("sized", Settings { max: None, ..DEFAULT }),
    ("sized-windowed", Settings { max: None, windowed: true, ..DEFAULT }),
    ("sized-windowed-x10", Settings { max: None, windowed: true, alpha: 30.0, beta: 60.0, ..DEFAULT }),
    ("sized-windowed-x100", Settings { max: None, windowed: true, alpha: 300.0, beta: 600.0, ..DEFAULT }),
];

const PROBE: f64 = 30.0;

#[derive(Debug)]
pub struct Vegas {
    settings: Settings,
    max: f64,
    limit: f64,
    /// Seconds; none before the first sample.
    least: Option<f64>,
    probed: u32,
    jitter: f64,
    chance: Chance,
    window: Window,
    inside: InFlight,
}

/// `log10` of a whole limit, at least 1.
fn root(limit: f64) -> f64 {
    limit.floor().max(1.0).log10().floor().max(1.0)
}

// === impl Vegas ===

impl Vegas {
    pub fn new(terms: &Terms, settings: Settings, seed: u64) -> Vegas {
        let mut chance = Chance::seeded(seed);
        Vegas {
            settings,
            max: settings.max.unwrap_or(2.0 * (terms.replicas * terms.slots) as f64),
            limit: settings.initial,
            least: None,
            probed: 0,
            jitter: chance.between(0.5, 1.0),
            chance,
            window: Window::default(),
            inside: InFlight::default(),
        }
    }

    fn sample(&mut self, now: Instant, sample: Sample) {
        if !self.settings.windowed {
            self.update(sample);
        } else if let Some(sample) = self.window.add(now, sample) {
            self.update(sample);
        }
    }

    fn update(&mut self, sample: Sample) {
        self.probed += 1;
        if self.jitter * PROBE * self.limit <= f64::from(self.probed) {
            self.jitter = self.chance.between(0.5, 1.0);
            self.probed = 0;
            self.least = Some(sample.rtt);
            return;
        }
        let least = match self.least {
            Some(least) if sample.rtt >= least => least,
            _ => {
                self.least = Some(sample.rtt);
                return;
            }
        };
        let step = root(self.limit);
        let queue = (self.limit * (1.0 - least / sample.rtt)).ceil();
        let next = if sample.dropped {
            self.limit - step
        } else if 2.0 * (sample.in_flight as f64) < self.limit {
            return;
        } else if queue <= step {
            self.limit + self.settings.beta * step
        } else if queue < self.settings.alpha * step {
            self.limit + step
        } else if queue > self.settings.beta * step {
            self.limit - step
        } else {
            return;
        };
        let next = next.min(self.max).max(1.0);
        self.limit += self.settings.smoothing * (next - self.limit);
    }
}

impl Law for Vegas {
    fn tick(&mut self, _now: Instant, _seen: &Seen<'_>) {}

    fn admit(&mut self, now: Instant, _node: usize, ask: &Ask) -> bool {
        self.inside.admit(now, ask.id, self.limit)
    }

    fn first_token(&mut self, now: Instant, _node: usize, id: u64, ttft: Duration) {
        let Some(begun) = self.inside.of(id) else { return };
        self.sample(now, Sample { rtt: ttft.as_secs_f64(), in_flight: begun.among, dropped: false });
    }

    fn done(&mut self, now: Instant, _node: usize, ask: &Ask, end: &End) {
        let Some(begun) = self.inside.end(ask.id) else { return };
        if *end == End::Abandoned {
            let rtt = now.seconds_since(begun.at);
            self.sample(now, Sample { rtt, in_flight: begun.among, dropped: true });
        }
    }

    fn budget(&self) -> Option<f64> {
        None
    }
}
