//! Counters of keys, in bounded memory.
//!
//! Only a key whose buckets are full and that has nothing in flight may be forgotten: forgetting
//! any other would refill it. When no such key is found, new keys share one overflow state. Who
//! leaves it takes along what it has used, and all requests it still has in flight there.

use std::collections::BTreeMap;

use crate::bounds::SWEEP_MAX;
use crate::enforce::bucket::Bucket;
use crate::enforce::ticket::{KeyId, KeySlot};

#[expect(clippy::disallowed_types, reason = "looked up only, never iterated; one lookup a request")]
use std::collections::HashMap;

#[derive(Clone, Debug, Default)]
pub struct KeyState {
    /// In the order of [`RATES`](crate::enforce::ticket::RATES).
    pub buckets: [Bucket; 3],
    pub in_flight: u64,
    /// The row of the last request: its limits say whether the buckets are full.
    pub row: usize,
}

/// A key's counters are kept per model, across tiers: a changed tier keeps what was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyName {
    pub key: KeyId,
    pub model: usize,
}

#[derive(Debug)]
#[expect(clippy::disallowed_types, reason = "looked up only, never iterated")]
pub struct Keys {
    max: usize,
    index: HashMap<KeyName, usize>,
    slots: Vec<(KeyName, KeyState)>,
    /// One per model.
    overflow: Vec<KeyState>,
    /// Requests in flight of keys without a slot; as many entries as such requests at most.
    spilled: BTreeMap<KeyName, u64>,
    hand: usize,
}

/// A place for a key, not taken yet.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    Taken(KeySlot),
    /// The next slot at the end.
    Append,
    /// The slot of a key that may be forgotten.
    Replace(usize),
}

// === impl Keys ===

impl Keys {
    pub fn new(max: usize) -> Keys {
        #[expect(clippy::disallowed_types, reason = "looked up only, never iterated")]
        let index = HashMap::new();
        Keys { max, index, slots: Vec::new(), overflow: Vec::new(), spilled: BTreeMap::new(), hand: 0 }
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Keys with requests in flight in the overflow.
    #[cfg(test)]
    pub fn shared(&self) -> usize {
        self.spilled.len()
    }

    pub fn state(&self, slot: KeySlot) -> Option<&KeyState> {
        match slot {
            KeySlot::Own(at) => self.slots.get(at).map(|(_, state)| state),
            KeySlot::Overflow(name) => self.overflow.get(name.model),
        }
    }

    pub fn state_mut(&mut self, slot: KeySlot) -> Option<&mut KeyState> {
        match slot {
            KeySlot::Own(at) => self.slots.get_mut(at).map(|(_, state)| state),
            KeySlot::Overflow(name) => self.overflow.get_mut(name.model),
        }
    }

    pub fn find(&self, name: &KeyName) -> Option<KeySlot> {
        self.index.get(name).map(|at| KeySlot::Own(*at))
    }

    /// Where the key is, or could be. `idle` says that a state may be forgotten.
    pub fn place(&mut self, name: &KeyName, idle: impl Fn(&KeyState) -> bool) -> Place {
        if let Some(slot) = self.find(name) {
            return Place::Taken(slot);
        }
        while self.overflow.len() <= name.model {
            self.overflow.push(KeyState::default());
        }
        if self.slots.len() < self.max {
            return Place::Append;
        }
        for _ in 0..SWEEP_MAX.min(self.slots.len()) {
            let at = self.hand;
            self.hand = (self.hand + 1) % self.slots.len().max(1);
            if self.slots.get(at).is_some_and(|(_, state)| state.in_flight == 0 && idle(state)) {
                return Place::Replace(at);
            }
        }
        Place::Taken(KeySlot::Overflow(*name))
    }

    /// What the key is tested against: a new one starts with what its model's overflow has used,
    /// since it may have been one of those.
    pub fn view(&mut self, place: Place, model: usize) -> Option<&mut KeyState> {
        match place {
            Place::Taken(slot) => self.state_mut(slot),
            Place::Append | Place::Replace(_) => self.overflow.get_mut(model),
        }
    }

    /// In flight under the key itself, or under all keys of the overflow it is in.
    pub fn in_flight(&self, name: &KeyName, place: Place) -> u64 {
        match place {
            Place::Taken(slot) => self.state(slot).map_or(0, |state| state.in_flight),
            Place::Append | Place::Replace(_) => self.spilled.get(name).copied().unwrap_or(0),
        }
    }

    /// The key's place is its own from here on, and holds one request more than before.
    pub fn take(&mut self, name: KeyName, place: Place) -> KeySlot {
        let slot = match place {
            Place::Taken(slot) => slot,
            Place::Append => {
                let fresh = self.fresh(&name);
                self.index.insert(name, self.slots.len());
                self.slots.push((name, fresh));
                KeySlot::Own(self.slots.len() - 1)
            }
            Place::Replace(at) => {
                let fresh = self.fresh(&name);
                if let Some(slot) = self.slots.get_mut(at) {
                    self.index.remove(&slot.0);
                    *slot = (name, fresh);
                    self.index.insert(name, at);
                }
                KeySlot::Own(at)
            }
        };
        if let KeySlot::Overflow(name) = slot {
            let count = self.spilled.entry(name).or_default();
            *count = count.saturating_add(1);
        }
        slot
    }

    /// Ends one request of a place. A key that left the overflow meanwhile took the request along,
    /// so that its end counts for both.
    pub fn release(&mut self, slot: KeySlot, mut end: impl FnMut(&mut KeyState)) {
        if let Some(state) = self.state_mut(slot) {
            end(state);
        }
        let KeySlot::Overflow(name) = slot else { return };
        if let Some(count) = self.spilled.get_mut(&name) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.spilled.remove(&name);
            }
        }
        if let Some(state) = self.find(&name).and_then(|own| self.state_mut(own)) {
            end(state);
        }
    }

    /// What a key starts with: it may have been in the overflow.
    fn fresh(&self, name: &KeyName) -> KeyState {
        let buckets = self.overflow.get(name.model).map(|state| state.buckets).unwrap_or_default();
        KeyState { buckets, in_flight: self.spilled.get(name).copied().unwrap_or(0), row: 0 }
    }
}
