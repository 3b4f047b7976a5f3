//! What a controller finds when it starts: the journal's last entry, the table it last
//! published, and the policy that made them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::control::history;
use crate::control::reload::{LAST_GOOD, Loaded, Loader, PROVEN, load_policy};
use crate::control::standing::Origin;
use crate::control::{PoolState, State, Tick};
use crate::estimate::Nodes;
use crate::observe::{PoolRound, Round};
use crate::policy::load::Contents;
use crate::publish::file::load_table;
use crate::publish::journal::{Journal, JournalError};
use crate::unit::{Instant, NodeId, PoolId};
use crate::wire::{LimitTable, Stamp};

/// One line of the journal, and the answer of `GET /v1/status`. What a tick shows in two places
/// (its table, the reports of its nodes) is written once: a fleet's reports are most of a line.
#[derive(Debug, Serialize)]
pub struct Entry<'a> {
    now: Instant,
    /// Digest of the policy files in force.
    policy: &'a str,
    /// Why these: an operator's rollback is written here, with every table made under it.
    origin: &'a Origin,
    /// Digest of a policy that is not started again; three runs ended badly under it.
    #[serde(skip_serializing_if = "Option::is_none")]
    quarantined: Option<&'a str>,
    round: RoundEntry<'a>,
    tick: &'a Tick,
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
    nodes: &'a Nodes,
    pools: &'a BTreeMap<PoolId, PoolState>,
    steering: bool,
}

/// As much of an entry as a restart needs.
#[derive(Debug, Deserialize)]
struct Saved {
    now: Instant,
    tick: SavedTick,
    state: State,
}

#[derive(Debug, Deserialize)]
struct SavedTick {
    table: Arc<LimitTable>,
}

/// Where to go on.
#[derive(Debug)]
pub struct Resumed {
    pub journal: Journal,
    /// None: this is a first start, or the state is lost.
    pub state: Option<State>,
    /// The clock counts on from here.
    pub now: Instant,
}

// === impl Entry ===

impl<'a> Entry<'a> {
    pub fn new(
        policy: &'a str,
        (origin, quarantined): (&'a Origin, Option<&'a str>),
        round: &'a Round,
        tick: &'a Tick,
        state: &'a State,
    ) -> Entry<'a> {
        // Named one by one, so that a field that is added to a state is not forgotten here.
        let State { stamp, table: _, nodes, pools, steering } = state;
        Entry {
            now: tick.now,
            policy,
            origin,
            quarantined,
            round: RoundEntry {
                pools: &round.pools,
                reported: round.usage.iter().map(|report| &report.node).collect(),
            },
            tick,
            state: StateEntry { stamp: *stamp, nodes, pools, steering: *steering },
        }
    }
}

// === impl Saved ===

impl Saved {
    fn into_state(self) -> State {
        State { table: Some(self.tick.table), ..self.state }
    }
}

/// Reads a state directory. The later of journal and table file says which version was last
/// used: either may have been written without the other.
///
/// # Errors
/// A journal that may not be continued. A damaged table file is no error: the journal, or else
/// the nodes, know how far versions had come.
pub fn resume(dir: &Path, journal_bytes_max: u64) -> Result<Resumed, JournalError> {
    let (journal, saved): (_, Option<Saved>) = Journal::open(dir, journal_bytes_max)?;
    let (now, mut state) = saved.map_or((Instant::ZERO, None), |saved| (saved.now, Some(saved.into_state())));
    match load_table(dir) {
        Ok(Some(table)) => {
            let state = state.get_or_insert_default();
            if table.stamp > state.stamp {
                state.stamp = table.stamp;
                state.table = Some(table.into());
            }
        }
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, "the table file is set aside"),
    }
    Ok(Resumed { journal, state, now })
}

/// As much of an entry as a restart would go on with.
pub fn saved_state(entry: &[u8]) -> Option<State> {
    serde_json::from_slice::<Saved>(entry).ok().map(Saved::into_state)
}

/// The policy to start with.
#[derive(Debug)]
pub struct First {
    pub loaded: Loaded,
    /// What was wrong with the directory's, if it is not that one.
    pub refused: Option<String>,
    /// The last good one, if it is another.
    pub good: Option<Loaded>,
}

/// The policy to start with: the directory's, or one that an operator holds against it, or the last
/// good one.
///
/// # Errors
/// Neither the directory nor the state has a policy that passes; every diagnostic.
pub fn first_policy(contents: Contents, state: &Path, loader: &Loader) -> Result<First, String> {
    let good = load_policy(state, LAST_GOOD, loader);
    if let Some(loaded) = held(&contents, state, loader) {
        return Ok(First { loaded, refused: None, good: None });
    }
    let diagnostics = match loader.judge(contents) {
        Ok(loaded) => {
            let other = |good: &Loaded| good.policy.digest != loaded.policy.digest;
            let good = good.ok().flatten().filter(other);
            return Ok(First { loaded, refused: None, good });
        }
        Err(diagnostics) => diagnostics,
    };
    let mut reasons = diagnostics.clone();
    match good {
        Ok(Some(loaded)) => return Ok(First { loaded, refused: Some(diagnostics), good: None }),
        Ok(None) => {}
        Err(stored) => {
            reasons = format!("{reasons}\nand the last good policy cannot be used: {stored}");
        }
    }
    match load_policy(state, PROVEN, loader) {
        Ok(Some(loaded)) => Ok(First { loaded, refused: Some(diagnostics), good: None }),
        Ok(None) => Err(reasons),
        Err(stored) => Err(format!("{reasons}\nand the proven policy cannot be used: {stored}")),
    }
}

fn held(contents: &Contents, state: &Path, loader: &Loader) -> Option<Loaded> {
    let held = history::held(state, &contents.digest())?;
    let kept = history::kept(state).ok()?.into_iter().rev().find(|kept| kept.since.policy == held.policy)?;
    let loaded = loader.files(kept.into_files()).ok()?;
    Some(Loaded { origin: Origin::Rollback { to: held.to }, ..loaded })
}
