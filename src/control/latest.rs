//! What a metrics page is drawn from: the last turn as a whole, and what readings have failed of.
//!
//! Ages go on when the loop does not, so they are taken from a clock of the page's own.

use std::collections::BTreeMap;

use crate::control::Tick;
use crate::observe::Outcome;
use crate::observe::PoolRound;
use crate::unit::{Clock, Instant, PoolId, SystemClock};
use crate::wire::Stamp;

/// The last turn.
#[derive(Debug)]
pub struct Latest {
    pub signals: BTreeMap<PoolId, Signals>,
    pub tick: Option<Tick>,
    /// Nodes by state.
    pub nodes: [(&'static str, u64); 3],
    pub announced: Option<Stamp>,
    clock: SystemClock,
    round_at: Instant,
    announced_at: Option<Instant>,
}

/// One pool's sources in the last round.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Signals {
    pub up: u64,
    pub down: u64,
    pub silent: u64,
    pub source_up: bool,
    /// Of the newest reading when the round ended, seconds.
    pub age: Option<f64>,
    /// Readings that failed since the pool is in the policy, as [`KINDS`].
    pub failures: [u64; KINDS.len()],
}

/// How a reading fails: refused; too late; too large; another status than 200; not what was
/// expected on the page; and a source that could not be read as a whole.
pub const KINDS: [&str; 6] = ["down", "timeout", "oversize", "status", "unreadable", "source"];

// === impl Latest ===

impl Default for Latest {
    fn default() -> Latest {
        Latest {
            signals: BTreeMap::new(),
            tick: None,
            nodes: [("current", 0), ("behind", 0), ("silent", 0)],
            announced: None,
            clock: SystemClock::starting_at(Instant::ZERO),
            round_at: Instant::ZERO,
            announced_at: None,
        }
    }
}

impl Latest {
    /// A round has ended; `age` says how old a pool's newest reading is, seconds.
    pub fn observe_round<'a>(
        &mut self,
        pools: impl IntoIterator<Item = (&'a PoolId, &'a PoolRound)>,
        age: impl Fn(&PoolId) -> Option<f64>,
    ) {
        self.round_at = self.clock.now();
        let mut before = std::mem::take(&mut self.signals);
        for (id, pool) in pools {
            let next = before.remove(id).unwrap_or_default().next(pool, age(id));
            self.signals.insert(id.clone(), next);
        }
    }

    /// A table is announced; returns the stamp of the one before, or its own for the first.
    pub fn announce(&mut self, stamp: Stamp) -> Stamp {
        self.announced_at = Some(self.clock.now());
        self.announced.replace(stamp).unwrap_or(stamp)
    }

    /// Seconds since the last round.
    pub fn since_round(&self) -> f64 {
        self.clock.now().seconds_since(self.round_at)
    }

    /// Seconds since a table was announced.
    pub fn since_announced(&self) -> Option<f64> {
        Some(self.clock.now().seconds_since(self.announced_at?))
    }
}

// === impl Signals ===

impl Signals {
    /// The same pool, one round later.
    fn next(self, round: &PoolRound, age: Option<f64>) -> Signals {
        let mut next =
            Signals { source_up: round.failed.is_none(), age, failures: self.failures, ..Signals::default() };
        for reading in &round.replicas {
            match &reading.outcome {
                Outcome::Up(_) => next.up += 1,
                Outcome::Down(_) => {
                    next.down += 1;
                    next.fail("down");
                }
                Outcome::Silent(reason) => {
                    next.silent += 1;
                    next.fail(kind(reason));
                }
            }
        }
        if round.failed.is_some() {
            next.fail("source");
        }
        next
    }

    fn fail(&mut self, kind: &str) {
        let at = KINDS.iter().position(|known| *known == kind);
        if let Some(count) = at.and_then(|at| self.failures.get_mut(at)) {
            *count += 1;
        }
    }
}

/// The kind of a silent replica's reason, which is written for people.
fn kind(reason: &str) -> &'static str {
    if reason.starts_with("no whole answer within") {
        "timeout"
    } else if reason.contains("has more than") {
        "oversize"
    } else if reason.starts_with("HTTP ") {
        "status"
    } else {
        "unreadable"
    }
}
