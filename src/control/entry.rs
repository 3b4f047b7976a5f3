//! One line of the journal: as it is written, as a restart reads it, as a replay reads it.
//!
//! A restart needs the last line alone. A replay needs of each line what went into the tick beside
//! the state of the line before: what was read, who reported, and whether it was the same
//! controller that turned.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::bounds::JOURNAL_NODE_ROWS_MAX;
use crate::control::standing::Origin;
use crate::control::{Controller, PoolState, State, Tick};
use crate::decide::Reason;
use crate::estimate::Nodes;
use crate::observe::{PoolRound, Round};
use crate::unit::{Instant, NodeId, PoolId};
use crate::wire::{LimitTable, Stamp, UsageReport};

/// One line of the journal, and the answer of `GET /v1/status`. What a tick shows in two places
/// (its table, the reports of its nodes) is written once: a fleet's reports are most of a line.
#[derive(Debug, Serialize)]
pub struct Entry<'a> {
    now: Instant,
    /// Wall time of the tick, milliseconds since 1970: for people, who ask by it.
    unix_ms: u64,
    /// Ticks of this controller since it was put together, this one included: at 1 it went on from
    /// what was stored, not from what it remembered.
    turns: u64,
    /// Digest of the policy files in force.
    policy: &'a str,
    /// Why these: an operator's rollback is written here, with every table made under it.
    origin: &'a Origin,
    /// Digest of a policy that is not started again; three runs ended badly under it.
    #[serde(skip_serializing_if = "Option::is_none")]
    quarantined: Option<&'a str>,
    round: RoundEntry<'a>,
    tick: &'a Tick,
    /// So many nodes are in `state` without their last report: a fleet's rows do not fit.
    #[serde(skip_serializing_if = "is_zero")]
    nodes_cut: usize,
    state: StateEntry<'a>,
}

#[derive(Debug, Serialize)]
struct RoundEntry<'a> {
    pools: &'a BTreeMap<PoolId, PoolRound>,
    /// Whose report came, in order; `state.nodes` has what each says.
    reported: Vec<&'a NodeId>,
}

/// A [`State`] without its table, which is the tick's.
#[derive(Debug, Serialize)]
struct StateEntry<'a> {
    stamp: Stamp,
    nodes: Cow<'a, Nodes>,
    pools: &'a BTreeMap<PoolId, PoolState>,
    steering: bool,
}

/// As much of an entry as a restart needs.
#[derive(Debug, Deserialize)]
pub struct Saved {
    pub now: Instant,
    tick: SavedTick,
    #[serde(default)]
    pub nodes_cut: usize,
    state: State,
}

#[derive(Debug, Deserialize)]
struct SavedTick {
    table: Arc<LimitTable>,
}

/// As much of an entry as a replay needs.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub now: Instant,
    /// None: written before entries had it.
    pub unix: Option<Duration>,
    /// None: written before entries had it.
    pub turns: Option<u64>,
    pub policy: String,
    /// Whether the tick has a line of its own that it was made from: with reports cut it has not.
    pub nodes_cut: usize,
    pub round: Round,
    pub table: Arc<LimitTable>,
    /// The table as it was written.
    pub table_bytes: Vec<u8>,
    pub reasons: BTreeMap<PoolId, Reason>,
    /// What the controller remembered after the tick.
    pub state: State,
    /// What nodes said last, of a record that is not a controller's own.
    known: Option<BTreeMap<NodeId, Arc<UsageReport>>>,
}

#[derive(Deserialize)]
struct RecordedEntry<'a> {
    now: Instant,
    #[serde(default)]
    unix_ms: Option<u64>,
    #[serde(default)]
    turns: Option<u64>,
    policy: String,
    round: RecordedRound,
    #[serde(borrow)]
    tick: RecordedTick<'a>,
    #[serde(default)]
    nodes_cut: usize,
    state: State,
}

#[derive(Deserialize)]
struct RecordedRound {
    pools: BTreeMap<PoolId, PoolRound>,
    reported: Vec<NodeId>,
}

#[derive(Deserialize)]
struct RecordedTick<'a> {
    #[serde(borrow)]
    table: &'a RawValue,
    pools: BTreeMap<PoolId, RecordedPool>,
}

#[derive(Deserialize)]
struct RecordedPool {
    decision: RecordedDecision,
}

#[derive(Deserialize)]
struct RecordedDecision {
    reason: Reason,
}

// === impl Entry ===

impl<'a> Entry<'a> {
    /// The entry of a controller's last tick, made of `round` at this wall time.
    pub fn new(
        unix: Duration,
        (origin, quarantined): (&'a Origin, Option<&'a str>),
        round: &'a Round,
        tick: &'a Tick,
        controller: &'a Controller,
    ) -> Entry<'a> {
        let (nodes, nodes_cut) = nodes_of(&controller.state);
        // Named one by one, so that a field that is added to a state is not forgotten here.
        let State { stamp, table: _, nodes: _, pools, steering } = &controller.state;
        Entry {
            now: tick.now,
            unix_ms: u64::try_from(unix.as_millis()).unwrap_or(u64::MAX),
            turns: controller.turns,
            policy: &controller.policy.digest,
            origin,
            quarantined,
            round: RoundEntry {
                pools: &round.pools,
                reported: round.usage.iter().map(|report| &report.node).collect(),
            },
            tick,
            nodes_cut,
            state: StateEntry { stamp: *stamp, nodes, pools, steering: *steering },
        }
    }
}

fn nodes_of(state: &State) -> (Cow<'_, Nodes>, usize) {
    state.nodes.at_most(JOURNAL_NODE_ROWS_MAX)
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

// === impl Saved ===

impl Saved {
    pub fn into_state(self) -> State {
        State { table: Some(self.tick.table), ..self.state }
    }
}

/// As much of an entry as a restart would go on with.
pub fn saved_state(entry: &[u8]) -> Option<State> {
    serde_json::from_slice::<Saved>(entry).ok().map(Saved::into_state)
}

// === impl Recorded ===

impl Recorded {
    /// Reads one line of a journal, without its line feed.
    ///
    /// # Errors
    /// The column, from one, at which it stops being an entry, and why.
    pub fn read(line: &[u8]) -> Result<Recorded, (usize, String)> {
        let entry: RecordedEntry<'_> = serde_json::from_slice(line).map_err(|error| placed(&error, 0))?;
        let raw = entry.tick.table.get();
        // It is a part of the line.
        let before = (raw.as_ptr() as usize).saturating_sub(line.as_ptr() as usize);
        let table = serde_json::from_str(raw).map_err(|error| placed(&error, before))?;
        let table: Arc<LimitTable> = Arc::new(table);
        let state = State { table: Some(Arc::clone(&table)), ..entry.state };
        let report = |node: &NodeId| state.nodes.last_report(node).cloned();
        let usage: Vec<UsageReport> = entry.round.reported.iter().filter_map(report).collect();
        let reasons = entry.tick.pools.into_iter().map(|(id, pool)| (id, pool.decision.reason)).collect();
        Ok(Recorded {
            now: entry.now,
            unix: entry.unix_ms.map(Duration::from_millis),
            turns: entry.turns,
            policy: entry.policy,
            nodes_cut: entry.nodes_cut,
            round: Round { pools: entry.round.pools, usage },
            table,
            table_bytes: raw.as_bytes().to_vec(),
            reasons,
            state,
            known: None,
        })
    }

    /// An entry put together from what others saw: nothing was remembered after it but what nodes
    /// said last.
    pub fn seen(
        (now, unix): (Instant, Duration),
        policy: String,
        round: Round,
        table: Arc<LimitTable>,
        known: BTreeMap<NodeId, Arc<UsageReport>>,
    ) -> Recorded {
        Recorded {
            now,
            unix: Some(unix),
            turns: None,
            policy,
            nodes_cut: 0,
            round,
            table,
            table_bytes: Vec::new(),
            reasons: BTreeMap::new(),
            state: State::default(),
            known: Some(known),
        }
    }

    /// What a node said last, of rows that the policy names.
    pub fn last_report(&self, node: &NodeId) -> Option<&UsageReport> {
        match &self.known {
            Some(known) => known.get(node).map(|report| &**report),
            None => self.state.nodes.last_report(node),
        }
    }
}

/// Without serde's own place, which knows one line only.
fn placed(error: &serde_json::Error, before: usize) -> (usize, String) {
    let text = error.to_string();
    let reason = text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason);
    (before.saturating_add(error.column()).max(1), reason.to_owned())
}
