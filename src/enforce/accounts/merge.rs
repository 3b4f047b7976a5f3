//! From one version of the accounts file to the next: what did not change is not parsed again.
//!
//! Facts lie in shards by their digest, each immutable. A line whose digest and hash are those of
//! a fact in hand is that fact; only shards in which something differs are read anew, so that a
//! million lines of which one changed cost a look at each and the parsing of a shard's few.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;

use crate::bounds::ACCOUNT_LINES_MAX;
use crate::enforce::ticket::KeyId;

use super::line::{Account, Fact, Key, Names, unhex};
use super::{Accounts, AccountsError};

/// So many that one of a million lines is among about a thousand.
pub const SHARDS: usize = 1_024;

/// Facts whose digests begin alike, each with the hash of its line.
#[derive(Debug, Default)]
pub struct Shard {
    pub keys: BTreeMap<KeyId, (u64, Key)>,
    pub accounts: BTreeMap<KeyId, (u64, Arc<Account>)>,
}

/// What a look at a line's beginning tells.
enum Glance {
    /// Its fact is in this shard, unchanged.
    Known(usize, u64),
    Changed(usize),
    /// Not seen without parsing: an account's line, or none at all.
    Unclear,
}

/// Of the lines of a shard, in any order. A line twice and another one gone is not the same sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    lines: usize,
    hashes: u64,
}

const KEY_FIELD: &[u8] = b"{\"key_sha256\":\"";

// === impl Accounts ===

impl Accounts {
    /// The facts of another version of the file; all of it or none.
    ///
    /// # Errors
    /// The first bad line.
    pub fn updated(&self, text: &str) -> Result<Accounts, AccountsError> {
        let mut names = Names::default();
        let mut seen = vec![Sum::default(); SHARDS];
        let mut dirty = vec![false; SHARDS];
        let mut unclear: BTreeMap<usize, (usize, u64, Fact)> = BTreeMap::new();
        let mut count = 0_usize;
        for (at, line) in lines(text) {
            count += 1;
            if count > ACCOUNT_LINES_MAX {
                let reason = format!("more than {ACCOUNT_LINES_MAX} lines");
                return Err(AccountsError { line: at, reason });
            }
            match self.glance(line) {
                Glance::Known(shard, hash) => add(&mut seen, shard, hash),
                Glance::Changed(shard) => mark(&mut dirty, shard),
                Glance::Unclear => {
                    let fact = parse(at, line, &mut names)?;
                    let (shard, hash) = (shard_of(fact.id()), hash(line));
                    match self.holds(&fact, hash) {
                        true => add(&mut seen, shard, hash),
                        false => mark(&mut dirty, shard),
                    }
                    unclear.insert(at, (shard, hash, fact));
                }
            }
        }
        // A fact that is gone, or a line that is there twice.
        for (at, shard) in self.shards.iter().enumerate() {
            if seen.get(at).is_none_or(|seen| *seen != shard.sum()) {
                mark(&mut dirty, at);
            }
        }
        let mut fresh: BTreeMap<usize, Shard> = BTreeMap::new();
        for (at, line) in lines(text) {
            let (shard, hash, fact) = match unclear.remove(&at) {
                Some(found) => found,
                None => {
                    let Some(shard) = key_of(line).map(|id| shard_of(&id)) else { continue };
                    if !dirty.get(shard).copied().unwrap_or(true) {
                        continue;
                    }
                    (shard, hash(line), parse(at, line, &mut names)?)
                }
            };
            if dirty.get(shard).copied().unwrap_or(true) {
                fresh.entry(shard).or_default().add(at, hash, fact)?;
            }
        }
        let mut shards = self.shards.clone();
        for (at, shard) in shards.iter_mut().enumerate() {
            if dirty.get(at).copied().unwrap_or(false) {
                *shard = Arc::new(fresh.remove(&at).unwrap_or_default());
            }
        }
        let keys = shards.iter().map(|shard| shard.keys.len()).sum();
        Ok(Accounts { shards, keys })
    }

    fn glance(&self, line: &str) -> Glance {
        let Some(id) = key_of(line) else { return Glance::Unclear };
        let shard = shard_of(&id);
        let known = self.shards.get(shard).and_then(|shard| shard.keys.get(&id));
        let hash = hash(line);
        match known {
            Some((known, _)) if *known == hash => Glance::Known(shard, hash),
            _ => Glance::Changed(shard),
        }
    }

    fn holds(&self, fact: &Fact, hash: u64) -> bool {
        let Some(shard) = self.shards.get(shard_of(fact.id())) else { return false };
        let known = match fact {
            Fact::Key(id, _) => shard.keys.get(id).map(|(known, _)| *known),
            Fact::Account(id, _) => shard.accounts.get(id).map(|(known, _)| *known),
        };
        known == Some(hash)
    }
}

// === impl Sum ===

impl Sum {
    fn add(&mut self, hash: u64) {
        self.lines += 1;
        self.hashes = self.hashes.wrapping_add(hash);
    }
}

// === impl Shard ===

impl Shard {
    fn sum(&self) -> Sum {
        let mut sum = Sum::default();
        let hashes = self.keys.values().map(|(hash, _)| hash);
        hashes.chain(self.accounts.values().map(|(hash, _)| hash)).for_each(|hash| sum.add(*hash));
        sum
    }

    fn add(&mut self, line: usize, hash: u64, fact: Fact) -> Result<(), AccountsError> {
        let twice = match fact {
            Fact::Key(id, key) => self.keys.insert(id, (hash, key)).is_some().then_some("key"),
            Fact::Account(id, account) => {
                self.accounts.insert(id, (hash, Arc::new(account))).is_some().then_some("account")
            }
        };
        match twice {
            Some(what) => Err(AccountsError { line, reason: format!("the {what} is listed twice") }),
            None => Ok(()),
        }
    }
}

// === impl Fact ===

impl Fact {
    fn id(&self) -> &KeyId {
        match self {
            Fact::Key(id, _) | Fact::Account(id, _) => id,
        }
    }
}

/// Numbered from 1; empty ones say nothing.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let numbered = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
    numbered.filter(|(_, line)| !line.is_empty())
}

fn parse(at: usize, line: &str, names: &mut Names) -> Result<Fact, AccountsError> {
    Fact::parse(line, names).map_err(|reason| AccountsError { line: at, reason })
}

/// The digest of a line that begins as such lines are written.
fn key_of(line: &str) -> Option<KeyId> {
    unhex(line.as_bytes().strip_prefix(KEY_FIELD)?.get(..64)?)
}

/// Of the whole line: what differs in anything is parsed again.
fn hash(line: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(line.as_bytes());
    hasher.finish()
}

pub fn shard_of(id: &KeyId) -> usize {
    let [first, second, ..] = id;
    (usize::from(*first) << 8 | usize::from(*second)) % SHARDS
}

fn add(sums: &mut [Sum], at: usize, hash: u64) {
    if let Some(sum) = sums.get_mut(at) {
        sum.add(hash);
    }
}

fn mark(flags: &mut [bool], at: usize) {
    if let Some(flag) = flags.get_mut(at) {
        *flag = true;
    }
}
