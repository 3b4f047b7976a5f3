//! A policy stepped through a record by the daemon's own controller.
//!
//! Under the policy of the record every table must come out as it was published. Under another one
//! the controller is told what nodes would have reported.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::backtest::asked::{Asked, Counts};
use crate::backtest::outcome::{Gate, outcome};
use crate::control::entry::Recorded;
use crate::control::{Controller, Tick};
use crate::decide::Reason;
use crate::enforce::bucket::Bucket;
use crate::observe::Round;
use crate::policy::Policy;
use crate::unit::{ModelId, NodeId, PoolId, TierId};
use crate::wire::{LimitTable, UsageReport, UsageRow, Work};

pub struct Arm {
    policy: Arc<Policy>,
    controller: Controller,
    /// In force until the next tick.
    pub table: Arc<LimitTable>,
    /// The policy is the record's: every table ought to be as it was published.
    on_record: bool,
    rows: BTreeMap<(NodeId, ModelId, TierId), NodeRow>,
}

/// One row at one node's process.
#[derive(Default)]
struct NodeRow {
    instance: u64,
    bucket: Bucket,
    shift: Shift,
}

/// What the node's counters would be beyond those recorded: requests, work.
#[derive(Clone, Copy, Default)]
struct Shift {
    admitted: [i64; 2],
    refused_limit: [i64; 2],
    refused_share: [i64; 2],
    refused_tier: [i64; 2],
}

/// One turn of an arm.
pub struct Turned {
    /// Why each pool's budget is what it is from here on.
    pub reasons: BTreeMap<PoolId, Reason>,
    pub sameness: Sameness,
    /// What was said of the way on: it began anew here, and why.
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sameness {
    Same,
    /// What is different first.
    Different(String),
    /// It is another policy's table, or the arm goes on from here.
    NotCompared,
}

// === impl Arm ===

impl Arm {
    /// Goes on from a recorded state; another policy than the record's counts as if it had been in force.
    pub fn begin(policy: &Arc<Policy>, entry: &Recorded) -> Arm {
        Arm {
            policy: Arc::clone(policy),
            controller: Controller::recorded(Arc::clone(policy), entry.state.clone()),
            table: Arc::clone(&entry.table),
            on_record: entry.policy == policy.digest,
            rows: BTreeMap::new(),
        }
    }

    /// What becomes of what was asked, under the table in force.
    pub fn outcome(&mut self, recorded: &LimitTable, asked: &Asked) -> Counts {
        let name = (asked.node.clone(), asked.model.clone(), asked.tier.clone());
        let row = self.rows.entry(name).or_default();
        if row.instance != asked.instance {
            *row = NodeRow { instance: asked.instance, ..NodeRow::default() };
        }
        let (model, tier) = (asked.model.as_str(), asked.tier.as_str());
        let was = Gate::of(recorded, model, tier, &asked.node);
        let is = Gate::of(&self.table, model, tier, &asked.node);
        let counts = outcome(&mut row.bucket, was, is, asked);
        row.shift.add(&asked.counts, &counts);
        counts
    }

    /// One tick on what was recorded at `entry`, which follows `before`.
    pub fn turn(&mut self, before: &Recorded, entry: &Recorded) -> Turned {
        self.rows.retain(|(node, ..), _| entry.last_report(node).is_some());
        let mut notes = Vec::new();
        if let Some(reason) = self.must_begin_anew(before, entry) {
            notes.push(format!("it goes on from what was recorded, because {reason}"));
            return self.begun_anew(entry, notes);
        }
        if self.on_record && entry.policy != self.policy.digest {
            self.on_record = false;
            notes.push(format!("here policy {} came into force in the record", short(&entry.policy)));
        }
        if entry.turns == Some(1) {
            let (policy, state) = (Arc::clone(&self.policy), self.controller.state().clone());
            self.controller = Controller::new(policy, state);
        }
        let tick = self.tick(entry);
        let sameness = match self.on_record {
            false => Sameness::NotCompared,
            true => compared(&tick.table, entry),
        };
        if entry.turns == Some(1) && matches!(sameness, Sameness::Different(_)) {
            let reason = "the controller was started here from more than the record holds";
            notes.push(format!("it goes on from what was recorded, because {reason}"));
            return self.begun_anew(entry, notes);
        }
        self.table = Arc::clone(&tick.table);
        let reasons = tick.pools.into_iter().map(|(id, pool)| (id, pool.decision.reason)).collect();
        Turned { reasons, sameness, notes }
    }

    /// Why the tick of `entry` cannot be made from what this arm remembers.
    fn must_begin_anew(&self, before: &Recorded, entry: &Recorded) -> Option<String> {
        if entry.now <= before.now {
            return Some("the controller's clock began anew: its state was lost".to_owned());
        }
        if !self.on_record {
            let came = entry.policy == self.policy.digest && before.policy != self.policy.digest;
            return came.then(|| "its policy came into force in the record".to_owned());
        }
        if before.nodes_cut.max(entry.nodes_cut) > 0 {
            let cut = before.nodes_cut.max(entry.nodes_cut);
            return Some(format!("the record leaves out what {cut} nodes reported, for their size"));
        }
        let (last, next) = (before.table.stamp.tick, entry.table.stamp.tick);
        let missing = next.saturating_sub(last.saturating_add(1));
        (missing > 0).then(|| format!("{missing} ticks before it are not in the record"))
    }

    fn begun_anew(&mut self, entry: &Recorded, notes: Vec<String>) -> Turned {
        *self = Arm::begin(&self.policy, entry);
        Turned { reasons: entry.reasons.clone(), sameness: Sameness::NotCompared, notes }
    }

    /// The epoch may have been raised between two ticks, for a disk that could not be written.
    fn tick(&mut self, entry: &Recorded) -> Tick {
        let epoch = entry.table.stamp.epoch;
        let usage = entry.round.usage.iter().map(|report| self.reported(report)).collect();
        let round = Round { pools: entry.round.pools.clone(), usage };
        let lower = (self.controller.state().stamp.epoch < epoch).then(|| self.controller.clone());
        let tick = self.controller.tick(entry.now, &round);
        match lower {
            Some(mut raised) if tick.table.stamp.epoch < epoch => {
                raised.raise_epoch(epoch);
                self.controller = raised;
                self.controller.tick(entry.now, &round)
            }
            _ => tick,
        }
    }

    /// A report as it would have been.
    fn reported(&self, report: &UsageReport) -> UsageReport {
        let mut report = report.clone();
        for row in &mut report.rows {
            let name = (report.node.clone(), row.model.clone(), row.tier.clone());
            if let Some(known) = self.rows.get(&name).filter(|known| known.instance == report.instance) {
                known.shift.apply(row);
            }
        }
        report
    }
}

/// To the byte, as it was written.
fn compared(table: &LimitTable, entry: &Recorded) -> Sameness {
    if serde_json::to_vec(table).is_ok_and(|bytes| bytes == entry.table_bytes) {
        return Sameness::Same;
    }
    Sameness::Different(difference(&entry.table, table))
}

fn difference(was: &LimitTable, is: &LimitTable) -> String {
    if was.stamp != is.stamp && was.same_entries(is) {
        let text = |stamp: crate::wire::Stamp| format!("{}.{}.{}", stamp.epoch, stamp.version, stamp.tick);
        return format!("its stamp is {}, recorded is {}", text(is.stamp), text(was.stamp));
    }
    let row = was.rows.iter().zip(&is.rows).find(|(was, is)| was != is);
    if let Some((was, is)) = row {
        let limits = was.limits.iter().filter_map(|(dimension, entry)| {
            let other = is.limits.get(dimension)?;
            (other != entry).then(|| {
                let (was, is) = (entry.tier_limit, other.tier_limit);
                format!(", {} {is}, recorded is {was}", dimension.short())
            })
        });
        let first: String = limits.take(1).collect();
        return format!("row {} / {}{first}", was.model, was.tier);
    }
    let pool = was.pools.iter().find(|(id, pool)| is.pools.get(*id) != Some(*pool));
    pool.map_or("beside its rows and pools".to_owned(), |(id, _)| format!("pool {id}"))
}

/// As many digits of a digest as people compare.
pub fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

// === impl Shift ===

impl Shift {
    fn add(&mut self, was: &Counts, is: &Counts) {
        let add = |shift: &mut [i64; 2], was: Work, is: Work| {
            let of = |was: u64, is: u64| is.wrapping_sub(was).cast_signed();
            let [requests, work] = shift;
            *requests = requests.saturating_add(of(was.requests, is.requests));
            *work = work.saturating_add(of(was.work, is.work));
        };
        add(&mut self.admitted, was.admitted, is.admitted);
        add(&mut self.refused_limit, was.refused_limit, is.refused_limit);
        add(&mut self.refused_share, was.refused_share, is.refused_share);
        add(&mut self.refused_tier, was.refused_tier, is.refused_tier);
    }

    fn apply(&self, row: &mut UsageRow) {
        let apply = |work: &mut Work, [requests, of]: [i64; 2]| {
            work.requests = work.requests.saturating_add_signed(requests);
            work.work = work.work.saturating_add_signed(of);
        };
        apply(&mut row.admitted, self.admitted);
        apply(&mut row.refused_limit, self.refused_limit);
        apply(&mut row.refused_share, self.refused_share);
        apply(&mut row.refused_tier, self.refused_tier);
    }
}
