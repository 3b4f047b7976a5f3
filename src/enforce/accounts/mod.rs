//! Who is asking, and what is known of them: keys by their digests and accounts, from a file that
//! holds no key.
//!
//! A key is hashed and the digest looked up, so the time of a lookup says nothing about a key,
//! and missing, malformed, unknown and doubled credentials are one and the same answer.
//!
//! The file is the seam to whatever sells plans: it is replaced or written by that, and followed
//! here (`enforce/files.rs`). All of a version is in force, or none.

mod line;
mod merge;

use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};

use crate::bounds::KEY_BYTES_MAX;
use crate::enforce::ticket::KeyId;
use crate::unit::TierId;
use crate::wire::Product;

pub use line::{Account, Overrides};

use merge::{SHARDS, Shard, shard_of};

#[derive(Clone, Debug)]
pub struct Accounts {
    shards: Vec<Arc<Shard>>,
    keys: usize,
}

/// Whom a key stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The key's digest.
    pub key: KeyId,
    /// Its account's, shared by all keys of it; a key without one is alone.
    pub account: Option<KeyId>,
    /// What the file says of the account, if it does.
    pub facts: Option<Arc<Account>>,
    /// The key's own overrides; the account's are in `facts`.
    pub overrides: Option<Arc<Overrides>>,
    tier: Option<TierId>,
}

/// Why a holder has no tier of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoTier {
    /// The account has not recharged what the lowest tier asks for.
    BelowMinimum,
    /// Nothing says which one.
    Unknown,
}

/// Names the line, never its contents.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct AccountsError {
    line: usize,
    reason: String,
}

// === impl Accounts ===

impl Default for Accounts {
    fn default() -> Accounts {
        let empty = Arc::new(Shard::default());
        Accounts { shards: vec![empty; SHARDS], keys: 0 }
    }
}

impl Accounts {
    /// JSON Lines; all of it or none.
    ///
    /// # Errors
    /// The first bad line.
    pub fn parse(text: &str) -> Result<Accounts, AccountsError> {
        Accounts::default().updated(text)
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.keys
    }

    pub fn is_empty(&self) -> bool {
        self.keys == 0
    }

    /// The one holder of the one credential in the headers.
    pub fn identify(&self, headers: &HeaderMap) -> Option<Holder> {
        self.holder(sha256(credential(headers)?.as_bytes()))
    }

    fn holder(&self, id: KeyId) -> Option<Holder> {
        let (_, key) = self.shards.get(shard_of(&id))?.keys.get(&id)?;
        let facts = key.account.and_then(|account| {
            let (_, facts) = self.shards.get(shard_of(&account))?.accounts.get(&account)?;
            Some(Arc::clone(facts))
        });
        let overrides = key.overrides.clone();
        Some(Holder { key: id, account: key.account, facts, overrides, tier: key.tier.clone() })
    }
}

// === impl Holder ===

impl Holder {
    /// The key's own tier, else its account's, else the one that the account's recharge has reached.
    ///
    /// # Errors
    /// There is none.
    pub fn tier<'a>(&'a self, product: Option<&'a Product>) -> Result<&'a TierId, NoTier> {
        let facts = self.facts.as_deref();
        if let Some(tier) = self.tier.as_ref().or_else(|| facts?.tier.as_ref()) {
            return Ok(tier);
        }
        let Some(product) = product.filter(|product| !product.recharge.is_empty()) else {
            return Err(NoTier::Unknown);
        };
        product.tier_of(facts.map_or(0, |facts| facts.recharged)).ok_or(NoTier::BelowMinimum)
    }
}

/// The one credential; two are none, since which one counts is not ours to guess.
fn credential(headers: &HeaderMap) -> Option<&str> {
    let mut bearer = headers.get_all(AUTHORIZATION).iter();
    let mut plain = headers.get_all("x-api-key").iter();
    let (first, key) = (bearer.next(), plain.next());
    if bearer.next().is_some() || plain.next().is_some() {
        return None;
    }
    let key = match (first, key) {
        (Some(value), None) => {
            let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())?
        }
        (None, Some(value)) => value.to_str().ok()?.trim(),
        _ => return None,
    };
    (key.len() <= KEY_BYTES_MAX).then_some(key)
}

fn sha256(bytes: &[u8]) -> KeyId {
    Sha256::digest(bytes).into()
}

#[cfg(test)]
mod tests;
