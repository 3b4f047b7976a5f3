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
///
/// A key lies in its home, a slot that follows from its tag, where it found that vacant: most do,
/// and are found with one look at memory. The index says where the others are.
#[derive(Debug)]
pub struct Keys {
    index: HashTable<u32>,
    /// As many as there may be.
    slots: Box<[Slot]>,
    taken: usize,
    /// No slot before it is vacant.
    vacant: usize,
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
    /// A vacant slot.
    Vacant(u32),
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
        // Zero is nobody.
        Name { tag: identity(key).wrapping_add(salt).max(1), span, account }
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
    /// All memory it will ever need for its slots.
    pub fn new(max: usize) -> Keys {
        Keys {
            index: HashTable::with_capacity(max),
            slots: vec![Slot::default(); max].into(),
            taken: 0,
            vacant: 0,
            overflow: BTreeMap::new(),
            spilled: BTreeMap::new(),
            hand: 0,
            unused: Slot::default(),
        }
    }

    pub fn len(&self) -> usize {
        self.taken
    }

    /// Keys with requests in flight in the overflow.
    #[cfg(test)]
    pub fn shared(&self) -> usize {
        self.spilled.len()
    }

    pub fn find(&self, tag: u128) -> Option<u32> {
        let is_it = |at: &u32| self.slots.get(*at as usize).is_some_and(|slot| slot.tag == tag);
        let hash = spread(tag);
        let home = self.home(hash);
        if is_it(&home) { Some(home) } else { self.index.find(hash, is_it).copied() }
    }

    fn home(&self, hash: u64) -> u32 {
        let at = (u128::from(hash) * self.slots.len() as u128) >> 64;
        u32::try_from(at).unwrap_or(u32::MAX)
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
        let free = |slots: &[Slot], at: u32| {
            let taken =
                matches!(besides, Some(Place::Own(by) | Place::Vacant(by) | Place::Replace(by)) if by == at);
            slots.get(at as usize).filter(|_| !taken).map(|slot| (slot.tag == 0, slot.is_idle(view)))
        };
        let home = self.home(spread(name.tag));
        let at_home = free(&self.slots, home);
        if let Some((true, _)) = at_home {
            return Place::Vacant(home);
        }
        let wanted = usize::from(matches!(besides, Some(Place::Vacant(_))));
        if self.taken + wanted < self.slots.len() {
            return self.next_vacant(besides).map_or(Place::Overflow, Place::Vacant);
        }
        if let Some((_, true)) = at_home {
            return Place::Replace(home);
        }
        for _ in 0..SWEEP_MAX.min(self.slots.len()) {
            let at = u32::try_from(self.hand).unwrap_or(u32::MAX);
            self.hand = (self.hand + 1) % self.slots.len().max(1);
            if let Some((_, true)) = free(&self.slots, at) {
                return Place::Replace(at);
            }
        }
        Place::Overflow
    }

    /// A slot once taken is never vacant again, so that the search goes over all of them once.
    fn next_vacant(&mut self, besides: Option<Place>) -> Option<u32> {
        let is_vacant = |(_, slot): &(usize, &Slot)| slot.tag == 0;
        let after = |from: usize| self.slots.iter().enumerate().skip(from).find(is_vacant).map(|(at, _)| at);
        let first = after(self.vacant)?;
        let taken = besides == u32::try_from(first).ok().map(Place::Vacant);
        let next = if taken { after(first + 1)? } else { first };
        self.vacant = first;
        u32::try_from(next).ok()
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
            Place::Vacant(_) | Place::Replace(_) => (slot, self.spilled(name.tag)),
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
            Place::Vacant(at) | Place::Replace(at) => {
                let fresh = self.fresh(&name);
                let Some(slot) = self.slots.get_mut(at as usize) else { return KeySlot::Own(at) };
                let old = std::mem::replace(slot, fresh);
                if old.tag == 0 {
                    self.taken += 1;
                } else if let Ok(entry) = self.index.find_entry(spread(old.tag), |known| *known == at) {
                    entry.remove();
                }
                self.enter(name.tag, at);
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
        if at == self.home(spread(tag)) {
            return;
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enforce::minute::Minute;
    use crate::unit::Instant;

    /// Keys come and go; each is found where it was put, one that is gone nowhere, and as many are
    /// held as there is room for.
    #[test]
    fn a_key_is_found_where_it_was_put_whoever_else_comes_and_goes() {
        const ROOM: usize = 64;
        let view = View { flows: &[], now: Instant(0), minute: Minute::default() };
        let name = |tag: u128| Name { tag, span: 0, account: false };
        let mut keys = Keys::new(ROOM);
        let mut put: BTreeMap<u128, u32> = BTreeMap::new();
        let (mut state, mut homes) = (7_u64, 0);
        for turn in 0..20_000_u32 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // More names than room, so that some come back after they were forgotten.
            let tag = u128::from(spread(u128::from(state >> 33) % 200)) + 1;
            assert_eq!(keys.find(tag), put.get(&tag).copied(), "turn {turn}");
            let KeySlot::Own(at) = ({
                let place = keys.place(&name(tag), None, &view);
                keys.take(name(tag), place)
            }) else {
                panic!("idle keys are forgotten before the overflow is used");
            };
            put.retain(|known, by| *known == tag || *by != at);
            put.insert(tag, at);
            homes += u32::from(at == keys.home(spread(tag)));
            assert_eq!((keys.find(tag), keys.len()), (Some(at), put.len()));
        }
        assert_eq!(keys.len(), ROOM);
        assert!(homes > 10_000, "most are at home: {homes}");
    }
}
