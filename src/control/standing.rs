//! How the policy stands: which one is in force and why that one, what is wrong with the
//! directory's, which ones are in quarantine. Shown under `reload` in `GET /v1/status`.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::bounds::DIAGNOSTICS_BYTES_SHOWN_MAX;
use crate::bounds::QUARANTINE_MAX;
use crate::control::history::Since;
use crate::publish::board::Board;

/// Why a policy is in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// It is the directory's.
    #[default]
    Directory,
    /// The directory's was refused when the controller started.
    LastGood,
    /// An operator went back to the policy of this version.
    Rollback { to: u64 },
    /// The one after it could not be stepped.
    Quarantine,
}

/// Shared by whoever reads policies and whoever steps them.
pub struct Standing {
    board: Arc<Board>,
    shown: Mutex<Shown>,
}

#[derive(Debug, Default, Serialize)]
struct Shown {
    /// The directory's policy is the one in force.
    successful: bool,
    /// Digest of the policy that was accepted last.
    policy: String,
    origin: Origin,
    /// What is wrong with the directory, or with what was asked for.
    diagnostics: Option<String>,
    /// Limits that the last edit widened.
    widened: Vec<String>,
    quarantined: VecDeque<Quarantined>,
    /// What can be gone back to, the oldest first.
    kept: Vec<Since>,
}

#[derive(Clone, Debug, Serialize)]
struct Quarantined {
    policy: String,
    reason: String,
}

// === impl Standing ===

impl Standing {
    pub fn new(board: Arc<Board>, kept: Vec<Since>) -> Standing {
        Standing { board, shown: Mutex::new(Shown { kept, ..Shown::default() }) }
    }

    /// A policy was accepted.
    pub fn accepted(&self, policy: &str, origin: Origin, widened: Vec<String>) {
        self.show(|shown| {
            shown.successful = origin == Origin::Directory;
            shown.diagnostics = None;
            (shown.policy, shown.origin, shown.widened) = (policy.to_owned(), origin, widened);
        });
    }

    /// The directory's policy was refused; what was in force stays.
    pub fn refused(&self, diagnostics: &str) {
        let text = cut(diagnostics);
        self.show(|shown| {
            shown.successful = false;
            shown.diagnostics = Some(text);
        });
    }

    /// A policy could not be stepped, or its table not be published; `good` is in force instead.
    pub fn quarantine(&self, policy: &str, reason: &str, good: &str) {
        let quarantined = Quarantined { policy: policy.to_owned(), reason: cut(reason) };
        self.show(|shown| {
            shown.successful = false;
            shown.diagnostics = Some(quarantined.refusal());
            (shown.policy, shown.origin) = (good.to_owned(), Origin::Quarantine);
            shown.quarantined.retain(|known| known.policy != policy);
            shown.quarantined.push_back(quarantined);
            if shown.quarantined.len() > QUARANTINE_MAX {
                shown.quarantined.pop_front();
            }
        });
    }

    /// Why a policy may not be tried again.
    pub fn quarantined(&self, policy: &str) -> Option<String> {
        let shown = self.lock();
        shown.quarantined.iter().find(|known| known.policy == policy).map(Quarantined::refusal)
    }

    /// Digest of the policy that was accepted last and still stands.
    pub fn policy(&self) -> String {
        self.lock().policy.clone()
    }

    pub fn kept(&self, kept: Vec<Since>) {
        self.show(|shown| shown.kept = kept);
    }

    fn show(&self, change: impl FnOnce(&mut Shown)) {
        let mut shown = self.lock();
        change(&mut shown);
        if let Ok(json) = serde_json::to_vec(&*shown) {
            self.board.show_reload(Bytes::from(json));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Quarantined ===

impl Quarantined {
    fn refusal(&self) -> String {
        format!("policy {} is in quarantine until it is edited: {}", self.policy, self.reason)
    }
}

fn cut(text: &str) -> String {
    if text.len() <= DIAGNOSTICS_BYTES_SHOWN_MAX {
        return text.to_owned();
    }
    let end = (0..=DIAGNOSTICS_BYTES_SHOWN_MAX).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}\n... the log has all of it\n", text.get(..end).unwrap_or_default())
}
