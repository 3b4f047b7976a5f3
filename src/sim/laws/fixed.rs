//! Static tables: every tier has a rate, written once, and their sum is what the pool can do.
//!
//! The practice of published RPM and TPM tables (one row for each plan): every key has the same
//! rate, so a tier's is by its keys. Constants: the part of nominal that is handed out, and the
//! seconds a bucket holds (a table "per minute" holds 60).

use std::time::Duration;

use crate::sim::law::Ask;
use crate::sim::law::End;
use crate::sim::law::Law;
use crate::sim::law::Seen;
use crate::sim::law::Terms;
use crate::unit::Instant;

use super::door::Door;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Part of nominal that the table hands out.
    pub handed: f64,
    /// By weight instead of by keys.
    pub weighted: bool,
    pub depth: Duration,
}

/// Handed out completely, by keys, a second deep.
pub const DEFAULT: Settings = Settings { handed: 1.0, weighted: false, depth: Duration::from_secs(1) };

pub const GRID: &[(&str, Settings)] = &[
    ("0.9", Settings { handed: 0.9, ..DEFAULT }),
    ("0.8", Settings { handed: 0.8, ..DEFAULT }),
    ("0.7", Settings { handed: 0.7, ..DEFAULT }),
    ("0.5", Settings { handed: 0.5, ..DEFAULT }),
    ("weighted", Settings { weighted: true, ..DEFAULT }),
    ("minute", Settings { depth: Duration::from_secs(60), ..DEFAULT }),
];

#[derive(Clone, Debug)]
pub struct Fixed(Door);

// === impl Fixed ===

impl Fixed {
    pub fn new(terms: &Terms, settings: Settings) -> Fixed {
        let parts = || {
            let part = |tier: &crate::sim::law::Tier| {
                if settings.weighted { tier.weight } else { f64::from(tier.keys.max(1)) }
            };
            terms.tiers.iter().map(part)
        };
        let whole: f64 = parts().sum();
        let handed = settings.handed * terms.nominal;
        let rates: Vec<f64> = parts().map(|part| handed * part / whole).collect();
        let mut door = Door::holding(terms, handed, settings.depth, true);
        door.fix(Instant::ZERO, &rates);
        // A static row is its tier's alone: what one leaves is not another's.
        door.borrow(false);
        Fixed(door)
    }
}

impl Law for Fixed {
    fn tick(&mut self, _now: Instant, _seen: &Seen<'_>) {}

    fn admit(&mut self, now: Instant, _node: usize, ask: &Ask) -> bool {
        self.0.admit(now, ask)
    }

    fn first_token(&mut self, _now: Instant, _node: usize, _id: u64, _ttft: Duration) {}

    fn done(&mut self, _now: Instant, _node: usize, ask: &Ask, end: &End) {
        self.0.done(ask, end);
    }

    fn budget(&self) -> Option<f64> {
        Some(self.0.budget())
    }
}
