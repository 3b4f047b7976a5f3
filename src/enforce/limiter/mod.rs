//! One node's counters for every pool, tier, model, account and key, and the verdict on a request.
//!
//! Pure: no clock, no I/O, no log. A request is tested against everything first and charged only
//! when all of it agrees, so a refusal changes no counter. Counters belong to names, not to
//! tables: a new table changes what they are compared with, never what they hold.
//!
//! Any number of threads may use one limiter. Keys are parted into shards, each with a lock, its
//! share of the memory, and the compiled table; a table is put in force under all of these locks,
//! so that every decision is taken wholly before or wholly after it. What requests of all keys
//! share has small locks of its own, taken in one order and only where something is limited or
//! held. The table in force is read without any.

mod admit;
mod cells;
mod charge;
mod quota;
mod registry;
mod rules;
mod sync;
#[cfg(test)]
mod tests;
mod usage;
mod wait;

use std::hash::{BuildHasher, RandomState};
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use siphasher::sip128::{Hasher128, SipHasher13};
use std::hash::Hasher;

use crate::enforce::keys::{Keys, identity, spread};
use crate::enforce::minute::Wall;
use crate::enforce::ticket::{Costs, KeyId, Refusal, Request, Ticket, Verdict};
use crate::unit::{Instant, NodeId};
use crate::wire::{Held, LimitTable, Offer, TableError};

use admit::Shard;
use cells::Padded;
use registry::Registry;
use rules::Rules;
use sync::{Mutex, MutexGuard, lock};

pub use crate::enforce::meters::{RETRY_SOON, RETRY_ZERO};
pub use quota::{Quota, Quotas};
pub use usage::RowCounts;

/// Most parts that keys are divided into, and keys that make another one worth it.
const SHARDS: usize = 256;
const KEYS_PER_SHARD: usize = 512;

#[derive(Debug)]
pub struct Limiter {
    node: NodeId,
    shards: Box<[Padded<Mutex<Shard>>]>,
    registry: Mutex<Registry>,
    held: ArcSwapOption<Held>,
    secret: (u64, u64),
}

// === impl Limiter ===

impl Limiter {
    /// `keys_max` bounds the states of keys and accounts, one for each and what it spans.
    pub fn new(node: NodeId, keys_max: usize) -> Limiter {
        let most = (keys_max / KEYS_PER_SHARD).clamp(1, SHARDS);
        let count = if most.is_power_of_two() { most } else { most.next_power_of_two() / 2 };
        let shard = |at: usize| {
            Padded(Mutex::new(Shard {
                at: u32::try_from(at).unwrap_or(u32::MAX),
                held: None,
                valid_until: Instant::ZERO,
                rules: Arc::new(Rules::default()),
                wall: Wall::default(),
                keys: Keys::new(keys_max / count),
            }))
        };
        let random = RandomState::new();
        Limiter {
            node,
            shards: (0..count).map(shard).collect(),
            registry: Mutex::new(Registry::default()),
            held: ArcSwapOption::empty(),
            secret: (random.hash_one(0), random.hash_one(1)),
        }
    }

    /// The table in force.
    pub fn held(&self) -> Option<Arc<Held>> {
        self.held.load_full()
    }

    /// As [`Limiter::held`], borrowed: for a look at the table on the way of every request.
    pub fn table(&self) -> impl Deref<Target = Option<Arc<Held>>> {
        self.held.load()
    }

    pub fn node(&self) -> &NodeId {
        &self.node
    }

    /// The id of a key by its bytes: a keyed hash with a secret of this limiter, so that nobody can
    /// choose keys that meet. Means nothing to another limiter.
    pub fn key(&self, bytes: &[u8]) -> KeyId {
        let mut hasher = SipHasher13::new_with_keys(self.secret.0, self.secret.1);
        hasher.write(bytes);
        let mut id = [0; 32];
        if let Some(half) = id.first_chunk_mut() {
            *half = hasher.finish128().as_bytes();
        }
        id
    }

    /// States of keys and accounts in memory, at most `keys_max`.
    pub fn keys_held(&self) -> usize {
        self.shards.iter().map(|shard| lock(&shard.0).keys.len()).sum()
    }

    /// Keys with requests in flight in the overflow.
    #[cfg(test)]
    fn keys_shared(&self) -> usize {
        self.shards.iter().map(|shard| lock(&shard.0).keys.shared()).sum()
    }

    /// Takes a table that is newer than the one held; it binds on the next request.
    ///
    /// # Errors
    /// Whatever [`Held::offer`] finds; the table held stays in force.
    pub fn offer(&self, table: LimitTable, now: Instant) -> Result<Offer, TableError> {
        let mut registry = lock(&self.registry);
        let offer = Held::offer(registry.held.as_ref(), table, now)?;
        match &offer {
            Offer::Applied(held) => {
                let rules = self.compile(&mut registry, &held.table, now)?;
                self.put_in_force(&mut registry, held.clone(), Some(rules));
            }
            Offer::Renewed(held) => self.put_in_force(&mut registry, held.clone(), None),
            Offer::Stale => {}
        }
        Ok(offer)
    }

    /// [`Limiter::restore_aged`] for a table that was valid until just now.
    ///
    /// # Errors
    /// As there.
    pub fn restore(&self, table: LimitTable, now: Instant) -> Result<(), TableError> {
        self.restore_aged(table, Duration::ZERO, now)
    }

    /// Takes the table of a former life, last renewed `age` ago: expired already, so that it steers
    /// toward `safe` from here on until a controller renews it, and no further up than it was when
    /// the former life ended. Nothing happens when a newer one is held.
    ///
    /// `now` must lie at least the table's validity above zero for that; a shell starts its clock
    /// accordingly.
    ///
    /// # Errors
    /// The table is not valid.
    pub fn restore_aged(&self, table: LimitTable, age: Duration, now: Instant) -> Result<(), TableError> {
        table.validate()?;
        let mut registry = lock(&self.registry);
        if registry.held.as_ref().is_some_and(|held| held.stamp() >= table.stamp) {
            return Ok(());
        }
        let rules = self.compile(&mut registry, &table, now)?;
        let age = age.max(Duration::from_millis(table.valid_for_ms));
        self.put_in_force(&mut registry, Held::fresh(table, now - age), Some(rules));
        Ok(())
    }

    /// What the wall clock says, for limits whose minutes are the clock's: an input like a table.
    /// Until it is called, minutes are those since the clock's zero.
    pub fn set_wall(&self, now: Instant, unix_ms: u64) {
        // One writer at a time, and every shard numbers its minutes alike.
        let _registry = lock(&self.registry);
        for mut shard in self.stop() {
            shard.wall = shard.wall.set(now, unix_ms);
        }
    }

    /// Tests everything, then charges everything.
    pub fn admit(&self, now: Instant, request: &Request<'_>) -> Verdict {
        match self.admit_with(now, request, |_| Ok(())) {
            Ok((ticket, ())) => Verdict::Admitted(ticket),
            Err(refusal) => Verdict::Refused(refusal),
        }
    }

    /// As [`Limiter::admit`], with a test and charge of the caller's own in the same decision: it is
    /// called with the estimate once every limit is passed and before any is charged, and its
    /// refusal leaves everything as it was. It runs under the key's lock: no I/O, no wait, and no
    /// call of this limiter in it.
    ///
    /// # Errors
    /// Why not, and when again.
    pub fn admit_with<T>(
        &self,
        now: Instant,
        request: &Request<'_>,
        also: impl FnOnce(&Costs) -> Result<T, Refusal>,
    ) -> Result<(Ticket, T), Refusal> {
        self.shard(self.shard_of(request)).admit(now, request, true, also)
    }

    /// For a request that is over as soon as it is admitted: what it costs is charged as it stands,
    /// nothing is in flight and nothing is to be settled.
    ///
    /// # Errors
    /// Why not, and when again.
    pub fn check(&self, now: Instant, request: &Request<'_>) -> Result<(), Refusal> {
        let request = Request { job: false, ..*request };
        self.shard(self.shard_of(&request)).admit(now, &request, false, |_| Ok(())).map(|_| ())
    }

    fn compile(
        &self,
        registry: &mut Registry,
        table: &LimitTable,
        now: Instant,
    ) -> Result<Rules, TableError> {
        registry.compile(table, &self.node, now)
    }

    fn put_in_force(&self, registry: &mut Registry, held: Held, rules: Option<Rules>) {
        if let Some(rules) = rules {
            registry.rules = Arc::new(rules);
        }
        let valid_until = held.renewed_at + Duration::from_millis(held.table.valid_for_ms);
        let mut shards = self.stop();
        for shard in &mut shards {
            shard.rules = Arc::clone(&registry.rules);
            shard.held = Some(held.clone());
            shard.valid_until = valid_until;
        }
        self.held.store(Some(Arc::new(held.clone())));
        registry.held = Some(held);
    }

    /// All shards at once: nothing is decided meanwhile.
    fn stop(&self) -> Vec<MutexGuard<'_, Shard>> {
        self.shards.iter().map(|shard| lock(&shard.0)).collect()
    }

    /// All keys of an account are in its shard.
    fn shard_of(&self, request: &Request<'_>) -> u32 {
        let id = request.account.as_ref().unwrap_or(&request.key);
        // Other bits than those that a shard finds its keys by.
        let at = (spread(identity(id)) >> 20) as usize & (self.shards.len() - 1);
        u32::try_from(at).unwrap_or(0)
    }

    #[expect(clippy::indexing_slicing, reason = "there is at least one shard, and its place is taken modulo")]
    fn shard(&self, at: u32) -> MutexGuard<'_, Shard> {
        lock(&self.shards[at as usize & (self.shards.len() - 1)].0)
    }
}
