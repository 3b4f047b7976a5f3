//! One number per tier instead of a prediction per key: the level at which keys that ask for more
//! than their fair share are cut alike.
//!
//! The level sought is μ with Σ min(demand of a key, μ) = the tier's limit (max-min within the
//! tier). Nobody needs to know the keys for it: while the tier still refuses what stayed inside the
//! shares μ is too high, and while shares refuse what the tier had room for it is too low. Asking
//! for more moves neither, so that it buys nothing; a key that wakes finds its share there.

use serde::{Deserialize, Serialize};

use crate::planted::without;

/// Part of what stays inside the shares that a tier may refuse: with none there would be no sign
/// that the level is not too low.
const REFUSED: f64 = 0.04;
/// A tier is used up from this part of its limit on, smoothed by this gain: bursts that are refused
/// while it is not are no matter of fairness.
const USED_UP: f64 = 0.9;
const GAIN: f64 = 0.3;
/// From this part on shares are published at all: a tier that refuses less is not fought over.
const FOUGHT_OVER: f64 = 0.05;
/// Most that the level falls in one interval, as the factor that remains: a share's bucket is seconds
/// deep, so that a lower level shows late, and one that falls faster is far too low by then.
const FALL: f64 = 0.9;
/// What it falls by for each part that is refused too much.
const EAGER: f64 = 1.0;
/// What it rises by while shares refuse and the tier has room.
const RISE: f64 = 1.08;
/// What it rises by while nobody is refused at all, until it is no limit any more.
const RELEASE: f64 = 1.25;
/// The level is never below this part of the tier's limit, however many keys there are.
const LEAST: f64 = 1e-4;

/// What is remembered of one row between intervals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct KeyShare {
    /// Work per second; none while nobody is in another's way.
    level: Option<f64>,
    /// The tier's limit when the level was set.
    limit: f64,
    /// Part of the limit that is used, smoothed.
    #[serde(default)]
    used: f64,
}

/// What became of a row's requests in the last interval, work per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outcomes {
    pub admitted: f64,
    /// Over the key's share.
    pub refused_share: f64,
    /// Inside the key's share, but the tier or the pool had no room.
    pub refused_room: f64,
}

// === impl KeyShare ===

impl KeyShare {
    /// The level for the next interval under a tier's limit, work per second.
    pub fn step(&mut self, limit: f64, seen: &Outcomes) -> Option<f64> {
        let asked = seen.admitted + seen.refused_room;
        let refused = if asked > 0.0 { seen.refused_room / asked } else { 0.0 };
        self.used += GAIN * (seen.admitted / limit.max(1e-9) - self.used);
        let refused = if self.used > USED_UP { refused } else { 0.0 };
        let level = match self.level {
            None if refused <= FOUGHT_OVER || without("key-share") => None,
            None => Some(limit * FALL),
            // A known change of the limit is a known change of every fair part of it.
            Some(level) => {
                let scale = if without("share-follows-limit") { 1.0 } else { limit / self.limit };
                let level = if self.limit > 0.0 { level * scale } else { limit };
                Some(level * KeyShare::turn(refused, seen))
            }
        };
        self.limit = limit;
        self.level = level.filter(|level| *level < limit).map(|level| level.max(limit * LEAST));
        self.level
    }

    fn turn(refused: f64, seen: &Outcomes) -> f64 {
        if refused > REFUSED {
            (1.0 - EAGER * (refused - REFUSED)).max(FALL)
        } else if seen.refused_share > 0.0 {
            1.0 + (RISE - 1.0) * (1.0 - refused / REFUSED)
        } else {
            RELEASE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys of a tier, each asking for so much; who is inside its share meets the tier's limit in
    /// the order of chance, so that all of those are refused alike.
    fn interval(level: Option<f64>, limit: f64, demands: &[f64]) -> (Outcomes, Vec<f64>) {
        let inside: Vec<f64> =
            demands.iter().map(|asked| asked.min(level.unwrap_or(f64::INFINITY))).collect();
        let (asked, sum) = (demands.iter().sum::<f64>(), inside.iter().sum::<f64>());
        let part = (limit / sum).min(1.0);
        let admitted: f64 = sum * part;
        let seen = Outcomes { admitted, refused_share: asked - sum, refused_room: sum - admitted };
        (seen, inside.iter().map(|asked| asked * part).collect())
    }

    fn settled(demands: &[f64], limit: f64, ticks: usize) -> Vec<f64> {
        let (mut share, mut level, mut got) = (KeyShare::default(), None, Vec::new());
        for _ in 0..ticks {
            let (seen, parts) = interval(level, limit, demands);
            (level, got) = (share.step(limit, &seen), parts);
        }
        got
    }

    #[test]
    fn a_noisy_key_costs_the_others_no_more_than_the_sign_of_it() {
        let mut demands = vec![10.0; 9];
        demands.push(1_000.0);
        let got = settled(&demands, 120.0, 40);
        for got in &got[..9] {
            assert!(*got > 9.5, "{got} of 10");
        }
        assert!(got[9] < 40.0 && got.iter().sum::<f64>() > 114.0, "{got:?}");
    }

    #[test]
    fn asking_for_more_buys_nothing() {
        let honest = settled(&[50.0; 10], 100.0, 40);
        let mut greedy = vec![50.0; 10];
        greedy[0] = 5_000.0;
        let greedy = settled(&greedy, 100.0, 40);
        assert!((greedy[0] / honest[0] - 1.0).abs() < 0.05, "{} and {}", greedy[0], honest[0]);
    }

    #[test]
    fn the_level_follows_the_limit_at_once() {
        let (mut share, mut level) = (KeyShare::default(), None);
        for _ in 0..40 {
            let (seen, _) = interval(level, 100.0, &[50.0; 10]);
            level = share.step(100.0, &seen);
        }
        let (before, (seen, _)) = (level.unwrap(), interval(level, 100.0, &[50.0; 10]));
        let after = share.step(50.0, &seen).unwrap();
        assert!((after / before - 0.5).abs() < 0.05, "{before} became {after}");
    }

    #[test]
    fn without_contention_there_is_no_share_and_after_it_none_is_left() {
        let mut share = KeyShare::default();
        let calm = Outcomes { admitted: 50.0, ..Outcomes::default() };
        assert_eq!(share.step(100.0, &calm), None);
        let fight = Outcomes { admitted: 100.0, refused_room: 400.0, ..calm };
        let begins = (0..20).find(|_| share.step(100.0, &fight).is_some());
        assert!(begins.is_some_and(|ticks| (3..10).contains(&ticks)), "{begins:?}");
        let released = (0..20).find(|_| share.step(100.0, &calm).is_none());
        assert!(released.is_some_and(|ticks| ticks < 10), "{released:?}");
    }
}
