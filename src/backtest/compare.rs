//! Two ways to limit the same record, side by side: the record's own, or a policy's, against the
//! policy that is tried.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::backtest::arm::{Arm, Sameness, Turned};
use crate::backtest::asked::{Asked, Counts, asked, less};
use crate::backtest::score::{RowName, RowScore, pool_of};
use crate::bounds::BACKTEST_NOTES_MAX;
use crate::control::entry::Recorded;
use crate::decide::Reason;
use crate::policy::Policy;
use crate::unit::{Instant, PoolId};
use crate::wire::LimitTable;

pub struct Comparison {
    against: Option<Arm>,
    against_differs: bool,
    tried: Arm,
    reasons: BTreeMap<PoolId, Reason>,
    before: Recorded,
    report: Report,
}

/// What came out of a replay.
#[derive(Clone, Debug)]
pub struct Report {
    /// Digest of the policy tried, and of the one it is compared with.
    pub policy: String,
    pub against: Option<String>,
    /// Digests of the policies in the record, in their order.
    pub recorded: Vec<String>,
    pub from: When,
    pub to: When,
    /// Ticks that were replayed.
    pub ticks: u64,
    /// Of those, made under the policy tried, so that their tables have to be the record's.
    pub compared: u64,
    /// Of those, the same to the byte.
    pub same: u64,
    pub first_difference: Option<Note>,
    /// Where a replay began anew, and what else is to be known of it.
    pub notes: Vec<Note>,
    pub notes_left_out: usize,
    pub rows: BTreeMap<RowName, RowScore>,
}

/// An instant of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct When {
    pub now: Instant,
    /// Since 1970, where the record has it.
    pub unix: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    pub at: When,
    pub text: String,
}

// === impl When ===

impl When {
    pub fn of(entry: &Recorded) -> When {
        When { now: entry.now, unix: entry.unix }
    }
}

// === impl Comparison ===

impl Comparison {
    /// Begins at the first entry of a record, with what its controller remembered then.
    pub fn begin(policy: &Arc<Policy>, against: Option<&Arc<Policy>>, first: Recorded) -> Comparison {
        let at = When::of(&first);
        let report = Report {
            policy: policy.digest.clone(),
            against: against.map(|policy| policy.digest.clone()),
            recorded: vec![first.policy.clone()],
            from: at,
            to: at,
            ticks: 0,
            compared: 0,
            same: 0,
            first_difference: None,
            notes: Vec::new(),
            notes_left_out: 0,
            rows: BTreeMap::new(),
        };
        Comparison {
            against: against.map(|policy| Arm::begin(policy, &first)),
            against_differs: false,
            tried: Arm::begin(policy, &first),
            reasons: first.reasons.clone(),
            before: first,
            report,
        }
    }

    /// The next entry of the record.
    pub fn step(&mut self, entry: Recorded) {
        let at = When::of(&entry);
        if !self.report.recorded.contains(&entry.policy) {
            self.report.recorded.push(entry.policy.clone());
        }
        if entry.now > self.before.now {
            self.account(&entry, at);
        }
        if let Some(against) = &mut self.against {
            let Turned { sameness, notes, .. } = against.turn(&self.before, &entry);
            let differs = match sameness {
                // Once is enough: what follows it differs too.
                Sameness::Different(what) if !std::mem::replace(&mut self.against_differs, true) => {
                    Some(format!("its first table that is not the recorded one: {what}"))
                }
                _ => None,
            };
            let notes = notes.into_iter().chain(differs);
            self.report.note(at, notes.map(|note| format!("of the policy compared with: {note}")));
        }
        let turned = self.tried.turn(&self.before, &entry);
        self.report.note(at, turned.notes.into_iter());
        self.reasons = turned.reasons;
        self.report.compare(at, turned.sameness);
        self.publish(&entry.table);
        self.report.to = at;
        self.report.ticks += 1;
        self.before = entry;
    }

    pub fn report(self) -> Report {
        self.report
    }

    /// What became of what was asked since the entry before.
    fn account(&mut self, entry: &Recorded, at: When) {
        let seconds = entry.now.seconds_since(self.before.now);
        let mut rows: BTreeMap<RowName, [Counts; 2]> = BTreeMap::new();
        for asked in asked(&self.before, entry) {
            // Of a row that no table had nobody knows what it was limited to.
            if self.before.table.row(asked.model.as_str(), asked.tier.as_str()).is_none() {
                continue;
            }
            let both = self.outcomes(&asked);
            let [was, is] = rows.entry((asked.model, asked.tier)).or_default();
            (*was, *is) = (was.plus(both[0]), is.plus(both[1]));
        }
        for (name, [was, is]) in rows {
            let reason = pool_of(&self.tried.table, &name).and_then(|pool| self.reasons.get(pool)).copied();
            let there = self.against.as_ref().map_or(&self.before.table, |arm| &arm.table);
            let changed = [less(was.admitted, is.admitted), less(is.admitted, was.admitted)];
            let score = self.report.rows.entry(name.clone()).or_default();
            score.add(at, &was, &is, changed, reason);
            score.was.served(there, &name, &was, seconds);
            score.is.served(&self.tried.table, &name, &is, seconds);
        }
    }

    fn outcomes(&mut self, asked: &Asked) -> [Counts; 2] {
        let recorded = &self.before.table;
        let was = self.against.as_mut().map_or(asked.counts, |arm| arm.outcome(recorded, asked));
        [was, self.tried.outcome(recorded, asked)]
    }

    fn publish(&mut self, recorded: &LimitTable) {
        let there = self.against.as_ref().map_or(recorded, |arm| &*arm.table);
        let here = &*self.tried.table;
        let names: BTreeSet<RowName> =
            there.rows.iter().chain(&here.rows).map(|row| (row.model.clone(), row.tier.clone())).collect();
        for name in names {
            let score = self.report.rows.entry(name.clone()).or_default();
            score.was.published(there, &name);
            score.is.published(here, &name);
        }
    }
}

// === impl Report ===

impl Report {
    fn compare(&mut self, at: When, sameness: Sameness) {
        match sameness {
            Sameness::NotCompared => return,
            Sameness::Same => self.same += 1,
            Sameness::Different(what) => {
                self.first_difference.get_or_insert(Note { at, text: what });
            }
        }
        self.compared += 1;
    }

    /// Something is to be said of the record, wherever in it.
    pub fn note(&mut self, at: When, texts: impl Iterator<Item = String>) {
        for text in texts {
            if self.notes.len() < BACKTEST_NOTES_MAX {
                self.notes.push(Note { at, text });
            } else {
                self.notes_left_out += 1;
            }
        }
    }
}
