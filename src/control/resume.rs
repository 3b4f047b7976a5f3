//! What a controller finds when it starts: the journal's last entry, the table it last
//! published, and the policy that made them.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::control::reload::{Loaded, Loader, load_last_good};
use crate::control::{State, Tick};
use crate::observe::Round;
use crate::publish::file::load_table;
use crate::publish::journal::{Journal, JournalError};
use crate::unit::Instant;

/// One line of the journal, and the answer of `GET /v1/status`.
#[derive(Debug, Serialize)]
pub struct Entry<'a> {
    pub now: Instant,
    /// Digest of the policy files in force.
    pub policy: &'a str,
    pub round: &'a Round,
    pub tick: &'a Tick,
    pub state: &'a State,
}

/// As much of an entry as a restart needs.
#[derive(Debug, Deserialize)]
struct Saved {
    now: Instant,
    state: State,
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

/// Reads a state directory. The later of journal and table file says which version was last
/// used: either may have been written without the other.
///
/// # Errors
/// A journal that may not be continued. A damaged table file is no error: the journal, or else
/// the nodes, know how far versions had come.
pub fn resume(dir: &Path, journal_bytes_max: u64) -> Result<Resumed, JournalError> {
    let (journal, saved): (_, Option<Saved>) = Journal::open(dir, journal_bytes_max)?;
    let (now, mut state) = saved.map_or((Instant::ZERO, None), |saved| (saved.now, Some(saved.state)));
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

/// The policy to start with, and what was wrong with the directory's if it is not that one.
///
/// # Errors
/// Neither the directory nor the state has a policy that passes; every diagnostic.
pub fn first_policy(dir: &Path, state: &Path, loader: &Loader) -> Result<(Loaded, Option<String>), String> {
    let diagnostics = match loader.dir(dir) {
        Ok(loaded) => return Ok((loaded, None)),
        Err(diagnostics) => diagnostics,
    };
    match load_last_good(state, loader) {
        Ok(Some(loaded)) => Ok((loaded, Some(diagnostics))),
        Ok(None) => Err(diagnostics),
        Err(stored) => Err(format!("{diagnostics}\nand the last good policy cannot be used: {stored}")),
    }
}
