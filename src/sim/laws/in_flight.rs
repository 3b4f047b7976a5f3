//! What rivals that limit requests in flight share: who is inside, and since when.

use std::collections::BTreeMap;

use crate::unit::Instant;

#[derive(Clone, Debug, Default)]
pub struct InFlight(BTreeMap<u64, Begun>);

#[derive(Clone, Copy, Debug)]
pub struct Begun {
    pub at: Instant,
    /// Requests in flight when it began, itself included.
    pub among: usize,
}

// === impl InFlight ===

impl InFlight {
    pub fn count(&self) -> usize {
        self.0.len()
    }

    pub fn begin(&mut self, now: Instant, id: u64) {
        let among = self.0.len() + 1;
        self.0.insert(id, Begun { at: now, among });
    }

    pub fn of(&self, id: u64) -> Option<Begun> {
        self.0.get(&id).copied()
    }

    pub fn end(&mut self, id: u64) -> Option<Begun> {
        self.0.remove(&id)
    }

    /// Lets `id` in while fewer than `limit` are.
    pub fn admit(&mut self, now: Instant, id: u64, limit: f64) -> bool {
        let room = (self.count() as f64) < limit.floor();
        if room {
            self.begin(now, id);
        }
        room
    }
}
