//! Requests that use more than they reserved, while they are under way.

use super::*;

// === impl Ledger ===

impl Ledger {
    /// A request has come to `asked.amount`, which counts from now on where it is more than was
    /// reserved. Of what it has used more than there is. Does not wait; while the ledger cannot be
    /// asked nothing changes.
    pub fn grow(&self, reserved: &mut Reserved, asked: &Asked<'_>) -> Option<Denied> {
        if **self.state.load() != State::Open {
            return None;
        }
        let mut book = shard(&self.shards, &asked.account);
        let mut queue = self.queue.lock();
        if queue.is_full() {
            return None;
        }
        let past = book.grow(reserved, asked, &mut |entry| queue.push(entry));
        drop(queue);
        self.queue.wake();
        past
    }
}
