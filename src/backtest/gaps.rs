//! Where series that were there are not: which, and how long.

use std::collections::{BTreeMap, BTreeSet};

use crate::bounds::GAPS_WATCHED_MAX;

/// What was asked for, and the instance that a series of it is of.
pub type SeriesName = (String, String);

/// Steps are counted from the beginning of the replay.
#[derive(Default)]
pub struct Gaps {
    steps: u64,
    /// The step at which each was last seen.
    last: BTreeMap<SeriesName, u64>,
    found: Vec<Gap>,
}

/// From one step to another, both without the series.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    pub series: SeriesName,
    pub from: u64,
    pub to: u64,
}

// === impl Gaps ===

impl Gaps {
    /// The series seen at the next step.
    pub fn step(&mut self, seen: BTreeSet<SeriesName>) {
        let now = self.steps;
        self.steps += 1;
        for series in seen {
            let room = self.last.len() < GAPS_WATCHED_MAX;
            match self.last.get_mut(&series) {
                Some(last) => {
                    if *last + 1 < now && self.found.len() < GAPS_WATCHED_MAX {
                        self.found.push(Gap { series, from: *last + 1, to: now - 1 });
                    }
                    *last = now;
                }
                None if room => {
                    if now > 0 {
                        self.found.push(Gap { series: series.clone(), from: 0, to: now - 1 });
                    }
                    self.last.insert(series, now);
                }
                None => {}
            }
        }
    }

    /// Was there any series of this?
    pub fn saw(&self, what: &str) -> bool {
        self.last.keys().any(|(known, _)| known == what)
    }

    /// All of them.
    pub fn end(mut self) -> Vec<Gap> {
        for (series, last) in self.last {
            if last + 1 < self.steps {
                self.found.push(Gap { series, from: last + 1, to: self.steps - 1 });
            }
        }
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_from_where_to_where() {
        let mut gaps = Gaps::default();
        let name = |what: &str| (what.to_owned(), "i".to_owned());
        for step in ["a", "a", "b", "b", "b", "ab", "a"] {
            gaps.step(step.chars().map(|what| name(&what.to_string())).collect());
        }
        assert!(gaps.saw("a") && !gaps.saw("c"));
        let gap = |what, from, to| Gap { series: name(what), from, to };
        assert_eq!(gaps.end(), [gap("b", 0, 1), gap("a", 2, 4), gap("b", 6, 6)]);
    }
}
