//! The controller: one pure step that observes, estimates, decides, allocates and seals a table.
//!
//! [`Controller::tick`] is the only decision in the daemon. It takes no lock, reads no clock and
//! logs nothing: it returns a [`Tick`], which the shell journals, publishes and counts.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::observe::Round;
use crate::policy::Policy;
use crate::unit::Instant;
use crate::wire::{LimitTable, Stamp};

/// A running control loop: the policy in force and all that is remembered between ticks.
#[derive(Clone, Debug)]
pub struct Controller {
    policy: Arc<Policy>,
    state: State,
}

/// Everything remembered between ticks; the journal stores it, a restart continues from it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// The stamp of the last sealed table. The next one is above it.
    pub stamp: Stamp,
    pub table: Option<Arc<LimitTable>>,
}

/// One turn of the loop, nothing thrown away: `GET /v1/status` is the last one as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tick {
    pub now: Instant,
    pub table: Arc<LimitTable>,
    /// The table's version is new.
    pub changed: bool,
}

// === impl Controller ===

impl Controller {
    /// Begins, or continues from `state`. A controller without state passes a default one whose
    /// `stamp` is the highest that nodes report; the epoch then rises.
    pub fn new(policy: Arc<Policy>, state: State) -> Controller {
        Controller { policy, state }
    }

    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    /// Puts another policy in force from the next tick on. Limits steer to it.
    pub fn set_policy(&mut self, policy: Arc<Policy>) {
        self.policy = policy;
    }

    /// One step: what arrived since the last one in, the next table and its reasons out.
    pub fn tick(&mut self, now: Instant, round: &Round) -> Tick {
        let _ = (now, round);
        unimplemented!()
    }
}
