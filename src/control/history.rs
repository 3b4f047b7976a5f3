//! The policies that were in force, kept on disk: what an operator can go back to, and which one
//! is held until the directory is edited.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::bounds::HELD_NOTE_BYTES_MAX;
use crate::bounds::KEPT_BYTES_MAX;
use crate::bounds::KEPT_POLICIES_MAX;
use crate::control::reload::Loaded;
use crate::publish::file::{Access, read_bounded, write_atomic};
use crate::wire::Stamp;

/// Name of the former policies in a state directory.
const KEPT: &str = "policies.json";
/// Name of the note that a policy is held.
const HELD: &str = "held.json";

/// A policy that was in force from a version on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Kept {
    #[serde(flatten)]
    pub since: Since,
    /// Name and text; policy files are UTF-8.
    files: Vec<(String, String)>,
}

/// When a policy came into force: the first table that was published under it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Since {
    pub policy: String,
    pub epoch: u64,
    pub version: u64,
}

/// Which policy is in force instead of the directory's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    pub policy: String,
    /// The version that was asked for.
    pub to: u64,
    /// Digest of the directory's contents at that time: other contents end it.
    pub directory: String,
}

/// Every policy that is kept, the oldest first.
///
/// # Errors
/// With the path.
pub fn kept(state: &Path) -> Result<Vec<Kept>, String> {
    let path = state.join(KEPT);
    let bytes = read_bounded(&path, KEPT_BYTES_MAX).map_err(|error| error.to_string())?;
    let Some(bytes) = bytes else { return Ok(Vec::new()) };
    serde_json::from_slice(&bytes).map_err(|error| format!("{}: {error}", path.display()))
}

/// Keeps a policy under which a table was published; returns what is kept then.
///
/// # Errors
/// With the path, or the file that is not text. Former policies that cannot be read are given up.
pub fn keep(state: &Path, loaded: &Loaded, stamp: Stamp) -> Result<Vec<Since>, String> {
    let mut all = kept(state).unwrap_or_default();
    let policy = &loaded.policy.digest;
    if all.last().is_none_or(|last| last.since.policy != *policy) {
        let since = Since { policy: policy.clone(), epoch: stamp.epoch, version: stamp.version };
        all.push(Kept { since, files: loaded.texts()? });
        let mut bytes = encode(&all)?;
        while all.len() > 1 && (all.len() > KEPT_POLICIES_MAX || bytes.len() > KEPT_BYTES_MAX) {
            all.remove(0);
            bytes = encode(&all)?;
        }
        write_atomic(state, KEPT, &bytes, Access::Everyone).map_err(|error| error.to_string())?;
    }
    Ok(all.into_iter().map(|kept| kept.since).collect())
}

fn encode(all: &[Kept]) -> Result<Vec<u8>, String> {
    serde_json::to_vec(all).map_err(|error| error.to_string())
}

/// The policy that was in force at version `to`; without one, the last that is not in force now.
///
/// # Errors
/// Why there is none, and which versions there are.
pub fn find(all: Vec<Kept>, to: Option<u64>, now: Stamp, in_force: &str) -> Result<Kept, String> {
    let oldest = all.first().map(|kept| kept.since.version);
    let found = match to {
        Some(to) if to > now.version => {
            return Err(format!("version {to} was never published; the last one is {}", now.version));
        }
        Some(to) => all.into_iter().rev().find(|kept| kept.since.version <= to),
        None => all.into_iter().rev().find(|kept| kept.since.policy != in_force),
    };
    match (found, oldest) {
        (Some(kept), _) if kept.since.policy == in_force => {
            Err(format!("version {} had the policy that is in force now", to.unwrap_or(now.version)))
        }
        (Some(kept), _) => Ok(kept),
        (None, Some(oldest)) if to.is_some() => Err(format!("the policies kept begin with version {oldest}")),
        (None, _) => Err("no former policy is kept".to_owned()),
    }
}

/// Notes that a policy is held, for a restart.
///
/// # Errors
/// With the path.
pub fn hold(state: &Path, held: &Held) -> Result<(), String> {
    let bytes = serde_json::to_vec(held).map_err(|error| error.to_string())?;
    write_atomic(state, HELD, &bytes, Access::Everyone).map_err(|error| error.to_string())
}

/// The directory is in force again. Without a note that is what a restart believes, too.
///
/// # Errors
/// With the path: the note stays, and a restart would hold what it says again.
pub fn release(state: &Path) -> Result<(), String> {
    let path = state.join(HELD);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("{}: {error}; remove it, or a restart holds the former policy again", path.display()))
        }
        _ => Ok(()),
    }
}

/// What is held, where the directory is still what it was then.
pub fn held(state: &Path, directory: &str) -> Option<Held> {
    let bytes = read_bounded(&state.join(HELD), HELD_NOTE_BYTES_MAX).ok()??;
    let held: Held = serde_json::from_slice(&bytes).ok()?;
    (held.directory == directory).then_some(held)
}

// === impl Kept ===

impl Kept {
    pub fn into_files(self) -> Vec<(String, Vec<u8>)> {
        self.files.into_iter().map(|(name, text)| (name, text.into_bytes())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(policy: &str, version: u64) -> Kept {
        let since = Since { policy: policy.to_owned(), epoch: 1, version };
        Kept { since, files: Vec::new() }
    }

    #[test]
    fn d13_a_version_names_the_policy_that_was_in_force_then() {
        let all = || vec![kept("a", 3), kept("b", 10), kept("a", 20), kept("c", 30)];
        let now = Stamp { epoch: 1, version: 40, tick: 99 };
        let found = |to| find(all(), to, now, "c").map(|kept| (kept.since.policy, kept.since.version));
        assert_eq!(found(Some(12)), Ok(("b".to_owned(), 10)));
        assert_eq!(found(Some(9)), Ok(("a".to_owned(), 3)));
        assert_eq!(found(None), Ok(("a".to_owned(), 20)));
        for (to, reason) in [
            (Some(2), "the policies kept begin with version 3"),
            (Some(41), "version 41 was never published; the last one is 40"),
            (Some(35), "version 35 had the policy that is in force now"),
        ] {
            assert_eq!(found(to).unwrap_err(), reason);
        }
        assert_eq!(find(Vec::new(), None, now, "c").unwrap_err(), "no former policy is kept");
    }

    #[test]
    fn d13_a_hold_ends_when_the_directory_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let note = Held { policy: "a".to_owned(), to: 3, directory: "d1".to_owned() };
        hold(dir.path(), &note).unwrap();
        assert_eq!(held(dir.path(), "d1"), Some(note));
        assert_eq!(held(dir.path(), "d2"), None);
        release(dir.path()).unwrap();
        release(dir.path()).unwrap();
        assert_eq!(held(dir.path(), "d1"), None);
        std::fs::create_dir(dir.path().join(HELD)).unwrap();
        assert!(release(dir.path()).unwrap_err().contains("remove it"));
    }
}
