//! Counters of keys and accounts, in bounded memory.
//!
//! Only one whose rates are free and that has nothing in flight may be forgotten: forgetting any
//! other would refill it. When none is found, new ones share one overflow state. Who leaves it
//! takes along what it has used, and all requests it still has in flight there.

use std::collections::BTreeMap;

use hashbrown::HashTable;

use crate::bounds::SWEEP_MAX;
use crate::enforce::slot::{Slot, View};
use crate::enforce::ticket::{KeyId, KeySlot};

/// Whose counters: a key or an account, in what they span (one model, or all of a product).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name {
    pub tag: u128,
    pub span: u32,
    pub account: bool,
}

/// One shard's keys.
#[derive(Debug)]
pub struct Keys {
    max: usize,
    index: HashTable<u32>,
    slots: Vec<Slot>,
    /// By span; of keys, and of accounts.
    overflow: BTreeMap<(u32, bool), Slot>,
    /// Requests and jobs of those without a slot; as many entries as such requests at most.
    spilled: BTreeMap<u128, (u32, u32)>,
    hand: usize,
    unused: Slot,
}

/// A place for a key, not taken yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Own(u32),
    /// The next slot at the end.
    Append,
    /// The slot of a key that may be forgotten.
    Replace(u32),
    Overflow,
}

/// An odd number without a pattern, to spread bits with.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
const SPREAD_MORE: u64 = 0xd6e8_feb8_6659_fd93;

// === impl Name ===

impl Name {
    pub fn new(key: &KeyId, span: u32, account: bool) -> Name {
        let salt = ((u64::from(span) << 1) | u64::from(account)).wrapping_add(1).wrapping_mul(SPREAD);
        let salt = (u128::from(salt) << 64) | u128::from(salt.rotate_left(29).wrapping_mul(SPREAD_MORE));
        Name { tag: identity(key).wrapping_add(salt), span, account }
    }
}

/// The part of an id that tells keys apart.
pub fn identity(key: &KeyId) -> u128 {
    key.first_chunk().map_or(0, |half| u128::from_le_bytes(*half))
}

/// Spreads what may have a pattern over all bits.
pub fn spread(tag: u128) -> u64 {
    let product = u128::from(tag as u64 ^ SPREAD) * u128::from((tag >> 64) as u64 ^ SPREAD_MORE);
    let folded = product as u64 ^ (product >> 64) as u64;
    (folded ^ (folded >> 32)).wrapping_mul(SPREAD)
}

// === impl Keys ===

impl Keys {
    /// All memory it will ever need for its slots, untouched until they are used.
    pub fn new(max: usize) -> Keys {
        Keys {
            max,
            index: HashTable::with_capacity(max),
            slots: Vec::with_capacity(max),
            overflow: BTreeMap::new(),
            spilled: BTreeMap::new(),
            hand: 0,
            unused: Slot::default(),
        }
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Keys with requests in flight in the overflow.
    #[cfg(test)]
    pub fn shared(&self) -> usize {
        self.spilled.len()
    }

    pub fn find(&self, tag: u128) -> Option<u32> {
        let is_it = |at: &u32| self.slots.get(*at as usize).is_some_and(|slot| slot.tag == tag);
        self.index.find(spread(tag), is_it).copied()
    }

    pub fn state_mut(&mut self, slot: KeySlot) -> Option<&mut Slot> {
        match slot {
            KeySlot::Own(at) => self.slots.get_mut(at as usize),
            KeySlot::Overflow(name) => self.overflow.get_mut(&(name.span, name.account)),
        }
    }

    /// Where the key is, or could be, besides the place that the same request takes already.
    pub fn place(&mut self, name: &Name, besides: Option<Place>, view: &View<'_>) -> Place {
        if let Some(at) = self.find(name.tag) {
            return Place::Own(at);
        }
        let appended = usize::from(besides == Some(Place::Append));
        if self.slots.len() + appended < self.max {
            return Place::Append;
        }
        for _ in 0..SWEEP_MAX.min(self.slots.len()) {
            let at = self.hand;
            self.hand = (self.hand + 1) % self.slots.len().max(1);
            let place = u32::try_from(at).unwrap_or(u32::MAX);
            let taken = matches!(besides, Some(Place::Own(at) | Place::Replace(at)) if at == place);
            if !taken && self.slots.get(at).is_some_and(|slot| slot.is_idle(view)) {
                return Place::Replace(place);
            }
        }
        Place::Overflow
    }

    /// What the key is tested against, with its requests and jobs: a new one starts with what the
    /// overflow of its span has used, since it may have been one of those.
    pub fn state(&self, name: &Name, place: Place) -> (&Slot, (u32, u32)) {
        let own = |at: u32| self.slots.get(at as usize);
        let shared = self.overflow.get(&(name.span, name.account));
        let slot = match place {
            Place::Own(at) => own(at),
            _ => shared,
        };
        let slot = slot.unwrap_or(&self.unused);
        match place {
            Place::Own(_) | Place::Overflow => (slot, (slot.active, slot.jobs)),
            Place::Append | Place::Replace(_) => (slot, self.spilled(name.tag)),
        }
    }

    /// The state of a key that has one of its own, or one that has used nothing.
    pub fn known(&self, name: &Name) -> (&Slot, (u32, u32)) {
        let own = self.find(name.tag).and_then(|at| self.slots.get(at as usize));
        let slot = own.unwrap_or(&self.unused);
        (slot, (slot.active, slot.jobs))
    }

    fn spilled(&self, tag: u128) -> (u32, u32) {
        if self.spilled.is_empty() { (0, 0) } else { self.spilled.get(&tag).copied().unwrap_or_default() }
    }

    /// The key's place is its own from here on.
    pub fn take(&mut self, name: Name, place: Place) -> KeySlot {
        match place {
            Place::Own(at) => KeySlot::Own(at),
            Place::Append => {
                let at = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
                self.slots.push(self.fresh(&name));
                self.enter(name.tag, at);
                KeySlot::Own(at)
            }
            Place::Replace(at) => {
                let fresh = self.fresh(&name);
                if let Some(slot) = self.slots.get_mut(at as usize) {
                    let old = std::mem::replace(slot, fresh);
                    if let Ok(entry) = self.index.find_entry(spread(old.tag), |known| *known == at) {
                        entry.remove();
                    }
                    self.enter(name.tag, at);
                }
                KeySlot::Own(at)
            }
            Place::Overflow => {
                let shared = self.overflow.entry((name.span, name.account));
                shared.or_insert_with(|| Slot::new(0, name.account));
                KeySlot::Overflow(name)
            }
        }
    }

    fn enter(&mut self, tag: u128, at: u32) {
        let Keys { index, slots, .. } = self;
        let hash = |at: &u32| slots.get(*at as usize).map_or(0, |slot| spread(slot.tag));
        index.insert_unique(spread(tag), at, hash);
    }

    /// Adds one request, job or both to a place.
    pub fn hold(&mut self, slot: KeySlot, request: bool, job: bool) {
        let add = |active: &mut u32, jobs: &mut u32| {
            *active = active.saturating_add(u32::from(request));
            *jobs = jobs.saturating_add(u32::from(job));
        };
        if let Some(state) = self.state_mut(slot) {
            add(&mut state.active, &mut state.jobs);
        }
        if let KeySlot::Overflow(name) = slot
            && (request || job)
        {
            let (active, jobs) = self.spilled.entry(name.tag).or_default();
            add(active, jobs);
        }
    }

    /// Ends a request, a job or both of a place, and corrects what they used. A key that left the
    /// overflow meanwhile took them along, so that their end counts for both.
    pub fn release(&mut self, slot: KeySlot, request: bool, job: bool, mut end: impl FnMut(&mut Slot)) {
        let less = |active: &mut u32, jobs: &mut u32| {
            *active = active.saturating_sub(u32::from(request));
            *jobs = jobs.saturating_sub(u32::from(job));
        };
        if let Some(state) = self.state_mut(slot) {
            less(&mut state.active, &mut state.jobs);
            end(state);
        }
        let KeySlot::Overflow(name) = slot else { return };
        if let Some((active, jobs)) = self.spilled.get_mut(&name.tag) {
            less(active, jobs);
            if (*active, *jobs) == (0, 0) {
                self.spilled.remove(&name.tag);
            }
        }
        if let Some(own) = self.find(name.tag)
            && let Some(state) = self.slots.get_mut(own as usize)
        {
            less(&mut state.active, &mut state.jobs);
            end(state);
        }
    }

    /// What a key starts with: it may have been in the overflow.
    fn fresh(&self, name: &Name) -> Slot {
        let shared = self.overflow.get(&(name.span, name.account)).cloned();
        let mut slot = shared.unwrap_or_else(|| Slot::new(0, name.account));
        slot.tag = name.tag;
        (slot.active, slot.jobs) = self.spilled(name.tag);
        slot
    }
}
