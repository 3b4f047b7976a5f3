//! Gradient2 of Netflix's concurrency-limits, in the node, on the time to first token.
//!
//! Source: <https://github.com/Netflix/concurrency-limits>, `limit/Gradient2Limit.java`,
//! `limit/WindowedLimit.java`, `limit/measurement/ExpAvgMeasurement.java` (0.4). Defaults there:
//! limit 20 at first, 20 to 200; smoothing 0.2; queue 4; tolerance 1.5; long average over 600
//! samples (the first 10 plainly averaged), times 0.95 while it is over twice the short one;
//! gradient clamped to 0.5..1; unchanged while fewer than half of the limit are in flight. A
//! window is a second and counts from 10 samples; its sample is the average. The library measures
//! whole calls; the first token, which is told at once, is the better signal for streams, so this
//! is an advantage.

use std::time::Duration;

use crate::sim::law::Ask;
use crate::sim::law::End;
use crate::sim::law::Law;
use crate::sim::law::Seen;
use crate::sim::law::Terms;
use crate::unit::Instant;

use super::in_flight::InFlight;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    pub initial: f64,
    pub min: f64,
    /// Requests; none is twice what the replicas serve at once.
    pub max: Option<f64>,
    pub smoothing: f64,
    pub queue: f64,
    pub tolerance: f64,
    /// Samples.
    pub long_window: f64,
}

pub const DEFAULT: Settings = Settings {
    initial: 20.0,
    min: 20.0,
    max: Some(200.0),
    smoothing: 0.2,
    queue: 4.0,
    tolerance: 1.5,
    long_window: 600.0,
};

/// A limit of 200 is less than one large replica serves, so all of these may go further.
pub const GRID: &[(&str, Settings)] = &[
    ("sized", Settings { max: None, ..DEFAULT }),
    ("sized-tolerance1", Settings { max: None, tolerance: 1.0, ..DEFAULT }),
    ("sized-tolerance2", Settings { max: None, tolerance: 2.0, ..DEFAULT }),
    ("sized-queue16", Settings { max: None, queue: 16.0, ..DEFAULT }),
    ("sized-long6000", Settings { max: None, long_window: 6000.0, ..DEFAULT }),
];

/// A window's length, and what makes it count.
const WINDOW: Duration = Duration::from_secs(1);
const WINDOW_SAMPLES: u32 = 10;
/// Samples of the long average that are averaged plainly.
const WARM_UP: u32 = 10;

/// `WindowedLimit`: the average of a second's samples.
#[derive(Clone, Copy, Debug, Default)]
pub struct Window {
    ends: Instant,
    sum: f64,
    samples: u32,
    in_flight: usize,
    dropped: bool,
}

/// One sample of a window. Seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    pub rtt: f64,
    /// Most requests in flight.
    pub in_flight: usize,
    pub dropped: bool,
}

#[derive(Clone, Debug)]
pub struct Gradient2 {
    settings: Settings,
    max: f64,
    limit: f64,
    /// Seconds.
    long: f64,
    warm: u32,
    window: Window,
    inside: InFlight,
}

// === impl Window ===

impl Window {
    /// The window's sample, if this one ended it.
    pub fn add(&mut self, now: Instant, sample: Sample) -> Option<Sample> {
        self.sum += sample.rtt;
        self.samples += 1;
        self.in_flight = self.in_flight.max(sample.in_flight);
        self.dropped |= sample.dropped;
        if now <= self.ends {
            return None;
        }
        let ended = std::mem::replace(self, Window { ends: now + WINDOW, ..Window::default() });
        (ended.samples >= WINDOW_SAMPLES).then(|| Sample {
            rtt: ended.sum / f64::from(ended.samples),
            in_flight: ended.in_flight,
            dropped: ended.dropped,
        })
    }
}

// === impl Gradient2 ===

impl Gradient2 {
    pub fn new(terms: &Terms, settings: Settings) -> Gradient2 {
        Gradient2 {
            settings,
            max: settings.max.unwrap_or(2.0 * (terms.replicas * terms.slots) as f64),
            limit: settings.initial,
            long: 0.0,
            warm: 0,
            window: Window::default(),
            inside: InFlight::default(),
        }
    }

    fn update(&mut self, sample: Sample) {
        let set = self.settings;
        if self.warm < WARM_UP {
            self.warm += 1;
            self.long += (sample.rtt - self.long) / f64::from(self.warm);
        } else {
            self.long += 2.0 / (set.long_window + 1.0) * (sample.rtt - self.long);
        }
        if self.long / sample.rtt > 2.0 {
            self.long *= 0.95;
        }
        if (sample.in_flight as f64) < self.limit / 2.0 {
            return;
        }
        let gradient = (set.tolerance * self.long / sample.rtt).clamp(0.5, 1.0);
        let aim = self.limit * gradient + set.queue;
        let next = self.limit * (1.0 - set.smoothing) + aim * set.smoothing;
        self.limit = next.min(self.max).max(set.min);
    }
}

impl Law for Gradient2 {
    fn tick(&mut self, _now: Instant, _seen: &Seen<'_>) {}

    fn admit(&mut self, now: Instant, _node: usize, ask: &Ask) -> bool {
        self.inside.admit(now, ask.id, self.limit)
    }

    fn first_token(&mut self, now: Instant, _node: usize, id: u64, ttft: Duration) {
        let Some(begun) = self.inside.of(id) else { return };
        let sample = Sample { rtt: ttft.as_secs_f64(), in_flight: begun.among, dropped: false };
        if let Some(sample) = self.window.add(now, sample) {
            self.update(sample);
        }
    }

    fn done(&mut self, now: Instant, _node: usize, ask: &Ask, end: &End) {
        let Some(begun) = self.inside.end(ask.id) else { return };
        if *end == End::Abandoned {
            let rtt = now.seconds_since(begun.at);
            if let Some(sample) = self.window.add(now, Sample { rtt, in_flight: begun.among, dropped: true })
            {
                self.update(sample);
            }
        }
    }

    fn budget(&self) -> Option<f64> {
        None
    }
}
