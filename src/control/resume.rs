//! What a controller finds when it starts: the journal's last entry, the table it last
//! published, and the policy that made them.

use std::path::Path;

use crate::control::State;
use crate::control::entry::Saved;
use crate::control::history;
use crate::control::reload::{LAST_GOOD, Loaded, Loader, PROVEN, load_policy};
use crate::control::standing::Origin;
use crate::policy::load::Contents;
use crate::publish::file::load_table;
use crate::publish::journal::{Journal, JournalError};
use crate::unit::Instant;

/// Where to go on.
#[derive(Debug)]
pub struct Resumed {
    pub journal: Journal,
    /// None: this is a first start, or the state is lost.
    pub state: Option<State>,
    /// Nodes are to be heard before the first tick: the state says nothing of what some of them do.
    pub hear_nodes: bool,
    /// The clock counts on from here.
    pub now: Instant,
}

/// Reads a state directory. The later of journal and table file says which version was last
/// used: either may have been written without the other.
///
/// # Errors
/// A journal that may not be continued. A damaged table file is no error: the journal, or else
/// the nodes, know how far versions had come.
pub fn resume(dir: &Path, journal_bytes_max: u64) -> Result<Resumed, JournalError> {
    let (journal, saved): (_, Option<Saved>) = Journal::open(dir, journal_bytes_max)?;
    let hear_nodes = saved.as_ref().is_none_or(|saved| saved.nodes_cut > 0);
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
    Ok(Resumed { journal, hear_nodes: state.is_none() || (hear_nodes && now > Instant::ZERO), state, now })
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::control::Controller;
    use crate::control::entry::{Entry, Recorded};
    use crate::observe::Round;
    use crate::policy::{Policy, load};
    use crate::publish::file::{Access, TABLE_FILE, write_atomic};
    use crate::wire::{Stamp, UsageReport, UsageRow, Work};

    fn policy(models: usize) -> Arc<Policy> {
        let models: String = (0..models).map(|model| format!("  m{model}: {{pool: gpu}}\n")).collect();
        let text = format!(
            "product: chat\ninterval: 2s\npools:\n  gpu:\n    preset: vllm\n    \
             targets: [http://127.0.0.1:1/metrics]\n    slo: 1s\nmodels:\n{models}tiers:\n  \
             free: {{priority: 1, weight: 1, guarantee: 6k tpm, ceiling: 60k tpm, key_limits: unlimited}}\n"
        );
        let files = vec![("chat.yaml".to_owned(), text.into_bytes())];
        Arc::new(load::check(load::Contents { files, problems: Vec::new() }).unwrap().policy)
    }

    fn report(node: usize, models: usize, seconds: u64) -> UsageReport {
        let offered = Work { requests: seconds, work: 1000 * seconds };
        let row = |model| UsageRow {
            model: format!("m{model}").as_str().into(),
            tier: "free".into(),
            offered,
            admitted: offered,
            refused_limit: Work::default(),
            refused_capacity: Work::default(),
            refused_share: Work::default(),
            refused_tier: Work::default(),
        };
        UsageReport {
            schema: 1,
            node: format!("n{node}").as_str().into(),
            instance: 7,
            uptime_ms: seconds * 1000,
            applied: Some(Stamp { epoch: 1, version: 1, tick: 1 }),
            nack: None,
            rows: (0..models).map(row).collect(),
            pools: BTreeMap::new(),
            providers: BTreeMap::new(),
        }
    }

    /// A controller after some ticks, and the entry of the last.
    fn entry(nodes: usize, models: usize) -> (Controller, Vec<u8>) {
        let mut controller = Controller::new(policy(models), State::default());
        let mut last = Vec::new();
        for turn in 1..4 {
            let usage = (0..nodes).map(|node| report(node, models, 2 * turn)).collect();
            let round = Round { pools: BTreeMap::new(), usage };
            let tick = controller.tick(Instant(turn * 2_000_000_000), &round);
            let entry =
                Entry::new(Duration::from_secs(5), (&Origin::Directory, None), &round, &tick, &controller);
            last = serde_json::to_vec(&entry).unwrap();
        }
        (controller, last)
    }

    #[test]
    fn an_entry_is_bounded_at_fleet_scale_and_still_resumed_from() {
        let (unix, (controller, small)) = (Duration::from_secs(5), entry(3, 100));
        let saved: Saved = serde_json::from_slice(&small).unwrap();
        assert_eq!(saved.nodes_cut, 0);
        assert_eq!(saved.into_state().nodes, controller.state().nodes);
        let recorded = Recorded::read(&small).unwrap();
        assert_eq!((recorded.turns, recorded.round.usage.len(), recorded.unix), (Some(3), 3, Some(unix)));
        // 30,000 rows of reports in all.
        let (controller, large) = entry(30, 1000);
        println!("30 nodes of 1,000 rows: an entry has {} bytes", large.len());
        assert!(large.len() < 12 << 20, "{} bytes", large.len());
        let dir = tempfile::tempdir().unwrap();
        Journal::open::<u64>(dir.path(), 1 << 30).unwrap().0.append(&large).unwrap();
        let resumed = resume(dir.path(), 1 << 30).unwrap();
        assert!(resumed.hear_nodes);
        let state = resumed.state.unwrap();
        assert_eq!(
            (state.stamp, state.nodes.highest_applied()),
            (controller.state().stamp, Some(Stamp { epoch: 1, version: 1, tick: 1 }))
        );
        // The same reports a tick later: nobody's counters are taken for those of one interval.
        let (mut before, mut after) = (controller.clone(), Controller::new(policy(1000), state));
        let usage: Vec<UsageReport> = (0..30).map(|node| report(node, 1000, 8)).collect();
        let round = Round { pools: BTreeMap::new(), usage };
        let now = Instant(8_000_000_000);
        let (before, after) = (before.tick(now, &round), after.tick(now, &round));
        for ((id, before), after) in before.pools.iter().zip(after.pools.values()) {
            for (before, after) in before.rows.iter().zip(&after.rows) {
                let (old, new) = (before.demand.offered, after.demand.offered);
                assert!((new - old).abs() <= old * 0.01, "{id} {}: {old} to {new}", before.model);
            }
        }
    }

    #[test]
    fn d12_a_flipped_bit_in_one_file_loses_no_version() {
        let (controller, entry) = entry(1, 1);
        let stamp = controller.state().stamp;
        let table = controller.state().table.clone().unwrap().encode().unwrap();
        let dir = tempfile::tempdir().unwrap();
        Journal::open::<u64>(dir.path(), 1 << 20).unwrap().0.append(&entry).unwrap();
        write_atomic(dir.path(), TABLE_FILE, &table, Access::Everyone).unwrap();
        for name in [TABLE_FILE, "journal.jsonl"] {
            let path = dir.path().join(name);
            let good = std::fs::read(&path).unwrap();
            for at in 0..good.len() {
                let mut bad = good.clone();
                bad[at] ^= 1 << (at % 8);
                std::fs::write(&path, &bad).unwrap();
                // The journal's own version is refused by name; nothing is ever resumed below.
                if let Ok(resumed) = resume(dir.path(), 1 << 20) {
                    assert!(resumed.state.unwrap().stamp >= stamp, "{name}, byte {at}");
                }
            }
            std::fs::write(&path, &good).unwrap();
        }
    }
}
