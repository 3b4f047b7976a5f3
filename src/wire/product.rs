//! What a table says of a product and of a model, beside the limits of its rows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::bounds::NAME_BYTES_MAX;
use crate::unit::{Dimension, Limit, ProviderId, TierId};
use crate::wire::dialect::Dialect;
use crate::wire::jobs::Jobs;

/// One policy file: how its limits are counted and its refusals said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Product {
    pub window: Window,
    pub span: Span,
    pub cached_input: CachedInput,
    pub pinned: Pinned,
    pub streams: Streams,
    /// IANA name of the time zone in which days and months begin.
    pub zone: String,
    /// Cumulative recharge, micro-dollars, from which on an account has the tier. Empty: accounts
    /// name their tier themselves.
    pub recharge: BTreeMap<TierId, u64>,
    pub answers: Dialect,
    /// What outlives the request that made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jobs: Option<Jobs>,
}

/// When what was used in a minute is free again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Window {
    /// Bit by bit: a token bucket one minute deep.
    #[default]
    Rolling,
    /// All of it when the next minute (UTC) begins.
    Minute,
}

/// What the counters of a key and of an account span.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Span {
    /// Each model has its own.
    #[default]
    Model,
    /// All models of the product share them.
    Product,
}

/// Whether input that an upstream had cached counts in limits on tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CachedInput {
    #[default]
    Counted,
    Free,
}

/// Whose requests always reach the same node, by hash of the key in front of the nodes. Nodes do not
/// divide what is pinned: 1 concurrent request is 1 on one node, not one on each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pinned {
    #[default]
    Nothing,
    Keys,
    /// And with each account all its keys.
    Accounts,
}

/// What becomes of a stream whose key or account has run past a budget or its credit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Streams {
    /// It runs to its end; what it used is owed.
    #[default]
    Finish,
    /// It ends with an error.
    EndPastBudget,
}

/// What is counted over a day or month of the product's time zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Budget {
    /// Input and output together.
    TokensPerDay,
    /// Micro-dollars.
    SpendPerDay,
    /// Micro-dollars.
    SpendPerMonth,
}

/// Limits of one budget, all nodes together; tokens or micro-dollars.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetEntry {
    pub key: Limit,
    pub account: Limit,
}

/// What exhausted credit does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Credit {
    /// Nothing: what is used is billed, or free.
    #[default]
    Ignored,
    /// Requests are refused.
    Required,
}

/// What holds for a model, whatever the tier.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelEntry {
    /// All tiers together, all nodes together.
    pub limits: BTreeMap<Dimension, Limit>,
    pub price: Option<Price>,
    /// Most output tokens that one choice of an answer can have.
    pub output_max: Option<u64>,
    /// Who serves it, in the order in which they are asked; empty: whatever upstream names it.
    pub providers: Vec<ProviderId>,
}

/// Integers only: no amount of money is ever rounded but up, once, per request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Price {
    /// Micro-dollars for a million uncached input tokens.
    pub input: u64,
    /// The same for those that an upstream had cached.
    pub cached_input: u64,
    /// The same for output tokens.
    pub output: u64,
    /// Micro-dollars for one image.
    pub image: u64,
    /// Micro-dollars for one request.
    pub request: u64,
}

// === impl Budget ===

impl Budget {
    pub const ALL: [Budget; 3] = [Budget::TokensPerDay, Budget::SpendPerDay, Budget::SpendPerMonth];

    /// As files and people write it.
    pub fn short(self) -> &'static str {
        match self {
            Budget::TokensPerDay => "tpd",
            Budget::SpendPerDay => "spend_per_day",
            Budget::SpendPerMonth => "spend_per_month",
        }
    }
}

// === impl Product ===

impl Default for Product {
    fn default() -> Product {
        Product {
            window: Window::Rolling,
            span: Span::Model,
            cached_input: CachedInput::Counted,
            pinned: Pinned::Nothing,
            streams: Streams::Finish,
            zone: "UTC".to_owned(),
            recharge: BTreeMap::new(),
            answers: Dialect::default(),
            jobs: None,
        }
    }
}

impl Product {
    /// The tier of an account by what it has recharged so far, micro-dollars: the highest of those
    /// whose amount it has reached, `None` below the lowest.
    pub fn tier_of(&self, recharged: u64) -> Option<&TierId> {
        let reached = self.recharge.iter().filter(|(_, from)| **from <= recharged);
        reached.max_by_key(|(_, from)| **from).map(|(tier, _)| tier)
    }

    pub(super) fn validate(&self) -> Result<(), String> {
        if self.zone.is_empty() || self.zone.len() > NAME_BYTES_MAX {
            return Err(format!("zone is empty or longer than {NAME_BYTES_MAX} bytes"));
        }
        self.jobs.as_ref().map_or(Ok(()), Jobs::validate)?;
        self.answers.validate()
    }
}

// === impl ModelEntry ===

impl ModelEntry {
    pub(super) fn validate(&self) -> Result<(), String> {
        let bad = |name: &&ProviderId| name.as_str().is_empty() || name.as_str().len() > NAME_BYTES_MAX;
        if self.providers.iter().any(|name| bad(&name)) {
            return Err(format!("a provider's name is empty or longer than {NAME_BYTES_MAX} bytes"));
        }
        Ok(())
    }
}

// === impl Price ===

impl Price {
    /// Micro-dollars of one request, rounded up once; saturating.
    pub fn of(&self, input: u64, cached_input: u64, output: u64, images: u64) -> u64 {
        const MILLION: u128 = 1_000_000;
        let tokens = [(self.input, input), (self.cached_input, cached_input), (self.output, output)];
        let millionths: u128 = tokens
            .iter()
            .map(|(price, count)| u128::from(*price) * u128::from(*count))
            .fold(0, u128::saturating_add);
        let flat = u128::from(self.image) * u128::from(images) + u128::from(self.request);
        u64::try_from(millionths.div_ceil(MILLION).saturating_add(flat)).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h07_a_price_is_exact_rounded_up_once_and_never_wraps() {
        let price =
            Price { input: 600_000, cached_input: 150_000, output: 2_500_000, image: 20_000, request: 1 };
        assert_eq!(price.of(0, 0, 0, 0), 1);
        // 0.6 + 0.15 + 2.5 micro-dollars.
        assert_eq!(price.of(1, 1, 1, 0), 1 + 4);
        assert_eq!(price.of(1_000_000, 0, 0, 2), 1 + 600_000 + 40_000);
        let most = Price {
            input: u64::MAX,
            cached_input: u64::MAX,
            output: u64::MAX,
            image: u64::MAX,
            request: u64::MAX,
        };
        assert_eq!(most.of(u64::MAX, u64::MAX, u64::MAX, u64::MAX), u64::MAX);
    }

    #[test]
    fn s1_3_the_tier_follows_from_the_cumulative_recharge() {
        let from =
            [("Tier0", 1), ("Tier1", 10), ("Tier2", 20), ("Tier3", 100), ("Tier4", 1_000), ("Tier5", 3_000)];
        let recharge = from.iter().map(|(tier, dollars)| ((*tier).into(), dollars * 1_000_000)).collect();
        let product = Product { recharge, ..Product::default() };
        let tier = |micros| product.tier_of(micros).map(TierId::as_str);
        assert_eq!((tier(0), tier(990_000)), (None, None));
        let mut below = None;
        for (name, dollars) in from {
            assert_eq!(tier(dollars * 1_000_000 - 10_000), below, "a cent below {dollars}");
            assert_eq!(tier(dollars * 1_000_000), Some(name));
            below = Some(name);
        }
        assert_eq!(tier(u64::MAX), Some("Tier5"));
    }
}
