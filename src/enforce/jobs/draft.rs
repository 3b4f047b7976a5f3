//! A job whose creation is under way: it has its slot, and no end that anybody could see yet.

use std::sync::Arc;
use std::time::Duration;

use crate::enforce::jobs::desk::Desk;
use crate::enforce::jobs::table::{Nonce, Owner};
use crate::enforce::ticket::{JobSlot, Settlement};
use crate::unit::ProviderId;

/// Given back when dropped, unless it was [kept](Draft::keep).
pub struct Draft {
    desk: Arc<Desk>,
    slot: Option<JobSlot>,
    owner: Owner,
    lease: Duration,
    nonce: Nonce,
}

// === impl Draft ===

impl Draft {
    pub(super) fn new(desk: Arc<Desk>, slot: JobSlot, owner: Owner, lease: Duration, nonce: Nonce) -> Draft {
        Draft { desk, slot: Some(slot), owner, lease, nonce }
    }

    pub fn nonce(&self) -> Nonce {
        self.nonce
    }

    /// It is created by this provider, if by anybody.
    pub fn ask(&mut self, provider: &ProviderId) {
        self.owner.provider = Some(provider.clone());
    }

    /// The job is there, or may be: it counts until its end is seen or its lease is over.
    pub fn keep(mut self) {
        if let Some(slot) = self.slot.take() {
            self.desk.enter(self.nonce, self.owner.clone(), self.lease, slot);
        }
    }

    /// By what became of the request. A client that leaves early gets no slot back: the job may
    /// run, and leaving would be a way around the limit.
    pub fn settle(self, end: Settlement) {
        match end {
            Settlement::Used { .. } | Settlement::Broken { .. } | Settlement::Died { .. } => self.keep(),
            Settlement::Rejected | Settlement::NotSent | Settlement::UpstreamError => {}
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.desk.give_back(slot);
        }
    }
}
