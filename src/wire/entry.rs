//! One dimension of one row: what it is limited to, for whom, and what a node alone goes by.

use serde::{Deserialize, Serialize};

use crate::unit::Limit;

/// One dimension of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// All keys of the tier together, all nodes together.
    pub tier_limit: Limit,
    /// One key, all nodes together.
    pub key_limit: Limit,
    /// One account with all its keys, all nodes together.
    #[serde(default = "unlimited")]
    pub account_limit: Limit,
    /// Where a node alone steers `tier_limit` to.
    pub safe: Limit,
    /// No decision raises `tier_limit` above this.
    pub ceiling: Limit,
    /// What the tier has before any other gets more.
    #[serde(default = "nothing")]
    pub guarantee: Limit,
    /// Of `tier_limit`, one key's fair part while the tier uses it up: the level at which all keys
    /// that ask for more are cut alike. In the pool's unit; unlimited while nobody is in the way.
    #[serde(default = "unlimited", skip_serializing_if = "is_unlimited")]
    pub key_share: Limit,
}

// === impl Entry ===

impl Default for Entry {
    /// Limits nothing.
    fn default() -> Entry {
        Entry {
            tier_limit: Limit::Unlimited,
            key_limit: Limit::Unlimited,
            account_limit: Limit::Unlimited,
            safe: Limit::Unlimited,
            ceiling: Limit::Unlimited,
            guarantee: Limit::Finite(0),
            key_share: Limit::Unlimited,
        }
    }
}

fn is_unlimited(limit: &Limit) -> bool {
    *limit == Limit::Unlimited
}

fn unlimited() -> Limit {
    Limit::Unlimited
}

fn nothing() -> Limit {
    Limit::Finite(0)
}
