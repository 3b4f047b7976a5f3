//! Envoy's adaptive concurrency filter with its gradient controller and its minRTT probe.
//!
//! Source: <https://github.com/envoyproxy/envoy>,
//! `source/extensions/filters/http/adaptive_concurrency/controller/gradient_controller.cc`, and
//! the filter's documentation. Defaults of the code: median of a window's latencies, buffer 25 %,
//! jitter 15 %, 50 requests to a probe, 3 in flight while it lasts (and never fewer), at most
//! 1000; required and without a default, hence as in the documentation's example: a window of
//! 0.1 s, a probe every 60 s. `limit * gradient + sqrt(limit * gradient)`, gradient = (1 + buffer)
//! `* minRTT / sampleRTT` in 0.5..2. The least limit in five windows running begins a probe. It
//! measures whole responses, as the filter does: a stream's latency is its last token's.

use std::time::Duration;

use crate::sim::Chance;
use crate::sim::law::Ask;
use crate::sim::law::End;
use crate::sim::law::Law;
use crate::sim::law::Seen;
use crate::sim::law::Terms;
use crate::unit::Instant;

use super::in_flight::InFlight;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Quantile of a window's latencies.
    pub quantile: f64,
    /// Part of minRTT.
    pub buffer: f64,
    /// Requests; none is twice what the replicas serve at once.
    pub max: Option<f64>,
    pub window: Duration,
    pub probe_every: Duration,
    /// Part of `probe_every`.
    pub jitter: f64,
    pub probe_requests: usize,
    /// Requests in flight during a probe, and the least limit.
    pub min: f64,
}

pub const DEFAULT: Settings = Settings {
    quantile: 0.5,
    buffer: 0.25,
    max: Some(1000.0),
    window: Duration::from_millis(100),
    probe_every: Duration::from_secs(60),
    jitter: 0.15,
    probe_requests: 50,
    min: 3.0,
};

/// A probe every ten minutes or hour, with more in flight, and a window long enough for latencies
/// of tens of seconds.
const SLOW: Settings = Settings {
    max: None,
    window: Duration::from_secs(5),
    probe_every: Duration::from_secs(3600),
    min: 100.0,
    ..DEFAULT
};

pub const GRID: &[(&str, Settings)] = &[
    ("sized", Settings { max: None, ..DEFAULT }),
    ("documented-p90", Settings { quantile: 0.9, jitter: 0.1, ..DEFAULT }),
    ("slow", SLOW),
    ("slow-buffer100", Settings { buffer: 1.0, ..SLOW }),
    ("slow-buffer200", Settings { buffer: 2.0, ..SLOW }),
    ("slow-10min", Settings { probe_every: Duration::from_secs(600), buffer: 1.0, ..SLOW }),
];

/// Windows at the least limit until minRTT is doubted.
const DOUBT: u32 = 5;

#[derive(Debug)]
pub struct Envoy {
    settings: Settings,
    max: f64,
    limit: f64,
    /// What the limit was before the probe under way.
    deferred: Option<f64>,
    /// Samples of requests begun before are not counted.
    epoch: Instant,
    probe_at: Instant,
    window_ends: Instant,
    /// Seconds.
    least: f64,
    samples: Vec<f64>,
    at_least: u32,
    chance: Chance,
    inside: InFlight,
}

// === impl Envoy ===

impl Envoy {
    /// It begins with a probe.
    pub fn new(terms: &Terms, settings: Settings, seed: u64) -> Envoy {
        Envoy {
            settings,
            max: settings.max.unwrap_or(2.0 * (terms.replicas * terms.slots) as f64),
            limit: settings.min,
            deferred: Some(settings.min),
            epoch: Instant::ZERO,
            probe_at: Instant(u64::MAX),
            window_ends: Instant::ZERO + settings.window,
            least: 0.0,
            samples: Vec::new(),
            at_least: 0,
            chance: Chance::seeded(seed),
            inside: InFlight::default(),
        }
    }

    /// What its timers would have done.
    fn timers(&mut self, now: Instant) {
        if self.deferred.is_none() && now >= self.window_ends {
            self.window_ends = now + self.settings.window;
            if !self.samples.is_empty() {
                let sample = self.take();
                self.update(now, sample);
            }
        }
        if self.deferred.is_none() && now >= self.probe_at {
            self.deferred = Some(self.limit);
            self.limit = self.settings.min;
            self.samples.clear();
            (self.epoch, self.probe_at) = (now, Instant(u64::MAX));
        }
    }

    /// The quantile of the samples, which are forgotten.
    fn take(&mut self) -> f64 {
        self.samples.sort_by(f64::total_cmp);
        let rank = self.settings.quantile * (self.samples.len().saturating_sub(1)) as f64;
        let quantile = self.samples.get(rank as usize).copied().unwrap_or(0.0);
        self.samples.clear();
        quantile
    }

    fn update(&mut self, now: Instant, sample: f64) {
        let gradient = (self.least * (1.0 + self.settings.buffer) / sample).clamp(0.5, 2.0);
        let aim = self.limit * gradient;
        let next = (aim + aim.sqrt()).floor().min(self.max).max(self.settings.min);
        let stays = self.limit <= self.settings.min && next <= self.settings.min;
        self.at_least = if stays { self.at_least + 1 } else { 0 };
        self.limit = next;
        if self.at_least >= DOUBT {
            self.probe_at = now;
        }
    }

    fn sample(&mut self, now: Instant, begun: Instant) {
        if begun < self.epoch {
            return;
        }
        self.samples.push(now.seconds_since(begun));
        if self.samples.len() >= self.settings.probe_requests
            && let Some(deferred) = self.deferred.take()
        {
            self.least = self.take();
            (self.limit, self.at_least) = (deferred, 0);
            let jitter = self.chance.between(0.0, self.settings.jitter);
            self.probe_at = now + self.settings.probe_every.mul_f64(1.0 + jitter);
            self.window_ends = now + self.settings.window;
        }
    }
}

impl Law for Envoy {
    fn tick(&mut self, now: Instant, _seen: &Seen<'_>) {
        self.timers(now);
    }

    fn admit(&mut self, now: Instant, _node: usize, ask: &Ask) -> bool {
        self.timers(now);
        self.inside.admit(now, ask.id, self.limit)
    }

    fn first_token(&mut self, _now: Instant, _node: usize, _id: u64, _ttft: Duration) {}

    fn done(&mut self, now: Instant, _node: usize, ask: &Ask, end: &End) {
        self.timers(now);
        let Some(begun) = self.inside.end(ask.id) else { return };
        // A reset stream cancels its sample.
        if let End::Served { .. } = end {
            self.sample(now, begun.at);
        }
    }

    fn budget(&self) -> Option<f64> {
        None
    }
}
