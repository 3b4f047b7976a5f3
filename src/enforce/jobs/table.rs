//! The jobs that run: whose slot each holds, until when without a sign of life, and when it was
//! last asked for.
//!
//! A job is entered when its creation is under way and leaves when its end is seen: by a poll, a
//! webhook, a cancel, a release, or because its lease is over. Whoever makes it leave gets its
//! slot, once. Bounded by [`JOBS_MAX`]; memory does not depend on who asks.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bounds::JOBS_MAX;
use crate::bounds::NAME_BYTES_MAX;
use crate::enforce::ticket::KeyId;
use crate::unit::{Instant, ModelId, ProductId, ProviderId, TierId};

/// A job before anybody gave it a name: drawn by the node, and told to nobody but in a signed token.
pub type Nonce = u128;

/// `S` is the slot, which is not looked into.
#[derive(Debug)]
pub struct Table<S> {
    jobs: BTreeMap<Nonce, Job<S>>,
    names: BTreeMap<(ProductId, String), Nonce>,
}

#[derive(Debug)]
pub struct Job<S> {
    pub slot: S,
    pub owner: Owner,
    pub lease: Duration,
    id: Option<String>,
    until: Instant,
    polled: Option<Instant>,
}

/// In whose counts a job's slot is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub product: ProductId,
    pub model: ModelId,
    pub tier: TierId,
    pub key: KeyId,
    pub account: Option<KeyId>,
    /// Who created it, where the model has a list of providers: nobody else knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<ProviderId>,
}

/// What an upstream says of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Runs,
    Ended,
}

/// A job as it is written down; times that survive the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    nonce: String,
    #[serde(flatten)]
    pub owner: Owner,
    id: Option<String>,
    lease_ms: u64,
    until_unix_ms: u64,
}

// === impl Table ===

impl<S> Default for Table<S> {
    fn default() -> Table<S> {
        Table { jobs: BTreeMap::new(), names: BTreeMap::new() }
    }
}

impl<S> Table<S> {
    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    pub fn is_full(&self) -> bool {
        self.jobs.len() >= JOBS_MAX
    }

    pub fn owner(&self, nonce: Nonce) -> Option<&Owner> {
        self.jobs.get(&nonce).map(|job| &job.owner)
    }

    /// # Errors
    /// There is no room; the slot comes back.
    pub fn enter(
        &mut self,
        now: Instant,
        nonce: Nonce,
        owner: Owner,
        lease: Duration,
        slot: S,
    ) -> Result<(), S> {
        if self.jobs.len() >= JOBS_MAX || self.jobs.contains_key(&nonce) {
            return Err(slot);
        }
        self.jobs.insert(nonce, Job { slot, owner, lease, id: None, until: now + lease, polled: None });
        Ok(())
    }

    /// The upstream has told the job's id. One that the same key has under that id already is the
    /// same job, created once; its second slot comes back.
    pub fn name(&mut self, nonce: Nonce, id: &str) -> Option<S> {
        let job = self.jobs.get_mut(&nonce)?;
        if id.is_empty() || id.len() > NAME_BYTES_MAX || job.id.is_some() {
            return None;
        }
        let name = (job.owner.product.clone(), id.to_owned());
        let Some(first) = self.names.get(&name).copied() else {
            job.id = Some(id.to_owned());
            self.names.insert(name, nonce);
            return None;
        };
        let owner = job.owner.clone();
        let same = self.jobs.get(&first).is_some_and(|first| first.owner.key == owner.key);
        // Another key's job of that id: this one is known by its lease alone.
        if same { self.leave(nonce) } else { None }
    }

    pub fn find(&self, product: &ProductId, id: &str) -> Option<(Nonce, &Owner)> {
        let nonce = *self.names.get(&(product.clone(), id.to_owned()))?;
        Some((nonce, &self.jobs.get(&nonce)?.owner))
    }

    /// A poll by the key that created the job; `pause` is what has to lie between two.
    ///
    /// # Errors
    /// How long it is too early. What was refused does not count.
    pub fn poll(&mut self, now: Instant, nonce: Nonce, key: KeyId, pause: Duration) -> Result<(), Duration> {
        let Some(job) = self.jobs.get_mut(&nonce).filter(|job| job.owner.key == key) else { return Ok(()) };
        let next = job.polled.map(|polled| polled + pause).filter(|next| *next > now);
        match next {
            Some(next) => Err(next.since(now)),
            None => {
                job.polled = Some(now);
                Ok(())
            }
        }
    }

    /// The slot of a job that has ended; one that runs keeps it for another lease.
    ///
    /// `id` is what the answer calls it: an answer about another job changes nothing.
    pub fn see(&mut self, now: Instant, nonce: Nonce, id: Option<&str>, seen: Seen) -> Option<S> {
        let job = self.jobs.get_mut(&nonce)?;
        if id.is_some_and(|id| job.id.as_deref().is_some_and(|known| known != id)) {
            return None;
        }
        match seen {
            Seen::Ended => self.leave(nonce),
            Seen::Runs => {
                job.until = now + job.lease;
                None
            }
        }
    }

    /// Slots of jobs that gave no sign of life for a whole lease.
    pub fn expire(&mut self, now: Instant) -> Vec<S> {
        let over = self.jobs.iter().filter(|(_, job)| job.until <= now);
        let over: Vec<Nonce> = over.map(|(nonce, _)| *nonce).collect();
        over.into_iter().filter_map(|nonce| self.leave(nonce)).collect()
    }

    pub fn leave(&mut self, nonce: Nonce) -> Option<S> {
        let job = self.jobs.remove(&nonce)?;
        if let Some(id) = job.id {
            self.names.remove(&(job.owner.product, id));
        }
        Some(job.slot)
    }

    /// The jobs of all products that have this id.
    pub fn leave_all(&mut self, id: &str) -> Vec<S> {
        let found = self.names.iter().filter(|((_, name), _)| name == id);
        let found: Vec<Nonce> = found.map(|(_, nonce)| *nonce).collect();
        found.into_iter().filter_map(|nonce| self.leave(nonce)).collect()
    }

    pub fn save(&self, now: Instant, unix_ms: u64) -> Vec<Saved> {
        let saved = self.jobs.iter().map(|(nonce, job)| Saved {
            nonce: format!("{nonce:032x}"),
            owner: job.owner.clone(),
            id: job.id.clone(),
            lease_ms: millis(job.lease),
            until_unix_ms: unix_ms.saturating_add(millis(job.until.since(now))),
        });
        saved.collect()
    }

    /// Enters a job of a former life. Its lease ends when it would have ended, and no later than a
    /// whole lease from now, whatever the wall clock did. False where it is over, or not to be
    /// believed; `slot` is then not asked for.
    pub fn restore(
        &mut self,
        now: Instant,
        unix_ms: u64,
        saved: &Saved,
        slot: impl FnOnce(&Owner) -> Option<S>,
    ) -> bool {
        let lease = Duration::from_millis(saved.lease_ms);
        let left = Duration::from_millis(saved.until_unix_ms.saturating_sub(unix_ms)).min(lease);
        let Ok(nonce) = Nonce::from_str_radix(&saved.nonce, 16) else { return false };
        if left.is_zero() || self.jobs.len() >= JOBS_MAX || self.jobs.contains_key(&nonce) {
            return false;
        }
        let Some(slot) = slot(&saved.owner) else { return false };
        let (owner, until) = (saved.owner.clone(), now + left);
        self.jobs.insert(nonce, Job { slot, owner, lease, id: None, until, polled: None });
        if let Some(id) = &saved.id {
            // Twice in one file is a damaged file: the second is known by its lease.
            let _ = self.name(nonce, id);
        }
        true
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(60);

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    fn owner(key: u8) -> Owner {
        let (product, model, tier) = ("p".into(), "m".into(), "t".into());
        Owner { product, model, tier, key: [key; 32], account: None, provider: None }
    }

    fn table() -> Table<u32> {
        let mut table = Table::default();
        table.enter(at(0), 1, owner(1), LEASE, 11).unwrap();
        assert_eq!(table.name(1, "a"), None);
        table
    }

    #[test]
    fn s2_10_a_slot_comes_back_once_at_the_end() {
        let mut table = table();
        assert_eq!(table.see(at(1), 1, Some("a"), Seen::Runs), None);
        assert_eq!(table.see(at(1), 1, Some("b"), Seen::Ended), None, "another job's end");
        assert_eq!(table.see(at(2), 1, Some("a"), Seen::Ended), Some(11));
        assert_eq!(table.see(at(2), 1, Some("a"), Seen::Ended), None, "twice is once");
        assert_eq!((table.len(), table.find(&"p".into(), "a")), (0, None));
    }

    #[test]
    fn s2_10_a_lease_ends_a_job_and_a_sign_of_life_renews_it() {
        let mut table = table();
        assert!(table.expire(at(59)).is_empty());
        table.see(at(59), 1, None, Seen::Runs);
        assert!(table.expire(at(118)).is_empty());
        assert_eq!(table.expire(at(119)), [11]);
        assert!(table.names.is_empty());
    }

    #[test]
    fn s2_14_polls_are_limited_per_job_and_refused_ones_do_not_count() {
        let mut table = table();
        let pause = Duration::from_secs(1);
        assert_eq!(table.poll(at(0), 1, [1; 32], pause), Ok(()));
        for _ in 0..100 {
            assert_eq!(table.poll(at(0), 1, [1; 32], pause), Err(pause));
        }
        assert_eq!(table.poll(at(1), 1, [1; 32], pause), Ok(()));
        // Nobody else's polls take the owner's turn.
        assert_eq!(table.poll(at(2), 1, [2; 32], pause), Ok(()));
        assert_eq!(table.poll(at(2), 1, [1; 32], pause), Ok(()));
    }

    #[test]
    fn one_job_created_twice_is_one_job_and_anothers_id_stays_anothers() {
        let mut table = table();
        table.enter(at(0), 2, owner(1), LEASE, 12).unwrap();
        assert_eq!(table.name(2, "a"), Some(12), "an idempotent creation");
        table.enter(at(0), 3, owner(2), LEASE, 13).unwrap();
        assert_eq!(table.name(3, "a"), None);
        assert_eq!(table.find(&"p".into(), "a").map(|(nonce, _)| nonce), Some(1));
        assert_eq!(table.expire(at(60)), [11, 13]);
    }

    #[test]
    fn the_table_is_bounded() {
        let mut table = Table::default();
        for nonce in 0..JOBS_MAX as u128 {
            table.enter(at(0), nonce, owner(1), LEASE, 0).unwrap();
        }
        assert_eq!(table.enter(at(0), Nonce::MAX, owner(1), LEASE, 7), Err(7));
        assert_eq!(table.len(), JOBS_MAX);
    }

    #[test]
    fn a_restart_keeps_what_is_left_of_each_lease() {
        let mut table = table();
        table.enter(at(0), 2, owner(2), LEASE, 12).unwrap();
        let saved = table.save(at(20), 1_000_000);
        let text = serde_json::to_string(&saved).unwrap();
        let saved: Vec<Saved> = serde_json::from_str(&text).unwrap();
        let restored = |unix_ms: u64| {
            let mut next = Table::default();
            let kept =
                saved.iter().filter(|one| next.restore(at(500), unix_ms, one, |_| Some(5_u32))).count();
            (next, kept)
        };
        let (mut next, kept) = restored(1_010_000);
        assert_eq!((kept, next.find(&"p".into(), "a").map(|(nonce, _)| nonce)), (2, Some(1)));
        assert!(next.expire(at(529)).is_empty());
        assert_eq!(next.expire(at(530)).len(), 2);
        assert_eq!(restored(1_040_000).1, 0, "over by now");
        // A wall clock that fell makes no lease longer than one.
        let (mut early, _) = restored(0);
        assert_eq!(early.expire(at(560)).len(), 2);
    }
}
