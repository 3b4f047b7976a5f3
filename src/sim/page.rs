//! What a replica's metrics page shows, which need not be what the replica does.

use crate::observe::{Outcome, Reading, Signals};
use crate::unit::{Instant, ReplicaId};

/// What a page shows instead of the truth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Untrue {
    /// The scrape times out though the replica serves.
    Silent,
    /// The numbers of the first scrape, under fresh timestamps.
    Frozen,
    /// Numbers that cannot be, or a timestamp from the future: another one at each scrape.
    Garbled,
    /// Counters and gauges, each times a factor.
    Times { work: f64, load: f64 },
    /// Fails at every other `every` scrapes: times out, or refuses.
    Flaps { every: u64, refuses: bool },
}

#[derive(Clone, Debug, Default)]
pub struct Page {
    untrue: Option<Untrue>,
    scrapes: u64,
    frozen: Option<Signals>,
    /// What the counters had when they were last reset.
    reset: (f64, f64),
}

const GARBAGE: [f64; 6] = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, 1e308, -5e-324];

// === impl Page ===

impl Page {
    pub fn set(&mut self, untrue: Option<Untrue>) {
        (self.untrue, self.scrapes, self.frozen) = (untrue, 0, None);
    }

    pub fn untrue(&self) -> Option<Untrue> {
        self.untrue
    }

    /// Counters begin anew, as when a wrapped counter or a restarted exporter does.
    pub fn reset_counters(&mut self, truth: &Signals) {
        self.reset = (truth.work_done.unwrap_or(0.0), truth.work_done_output.unwrap_or(0.0));
    }

    /// The process itself began anew.
    pub fn restarted(&mut self) {
        self.reset = (0.0, 0.0);
    }

    /// One scrape; `truth` is none of a dead replica.
    pub fn show(&mut self, now: Instant, replica: &ReplicaId, truth: Option<Signals>) -> Reading {
        let reading = |at, outcome| Reading { replica: replica.clone(), at, outcome };
        let silent = || Outcome::Silent("timeout".to_owned());
        let down = || Outcome::Down("connection refused".to_owned());
        self.scrapes += 1;
        if self.untrue == Some(Untrue::Silent) {
            return reading(now, silent());
        }
        let Some(truth) = truth else { return reading(now, down()) };
        let mut shown = Signals {
            work_done: truth.work_done.map(|done| (done - self.reset.0).max(0.0)),
            work_done_output: truth.work_done_output.map(|done| (done - self.reset.1).max(0.0)),
            ..truth
        };
        let mut at = now;
        match self.untrue {
            None | Some(Untrue::Silent) => {}
            Some(Untrue::Frozen) => shown = *self.frozen.get_or_insert(shown),
            Some(Untrue::Garbled) => {
                let which = usize::try_from(self.scrapes).unwrap_or(0) % (GARBAGE.len() + 1);
                match GARBAGE.get(which) {
                    Some(bad) if self.scrapes.is_multiple_of(2) => shown.work_done = Some(*bad),
                    Some(bad) => shown.waiting = Some(*bad),
                    None => at = now + std::time::Duration::from_secs(3600),
                }
            }
            Some(Untrue::Times { work, load }) => {
                shown.work_done = shown.work_done.map(|done| done * work);
                shown.work_done_output = shown.work_done_output.map(|done| done * work);
                // A liar with nobody waiting says that there are some.
                shown.waiting = shown.waiting.map(|waiting| (waiting + 1.0) * load);
                shown.running = shown.running.map(|running| (running + 1.0) * load);
            }
            Some(Untrue::Flaps { every, refuses }) if (self.scrapes / every.max(1)).is_multiple_of(2) => {
                return reading(now, if refuses { down() } else { silent() });
            }
            Some(Untrue::Flaps { .. }) => {}
        }
        reading(at, Outcome::Up(shown))
    }
}
