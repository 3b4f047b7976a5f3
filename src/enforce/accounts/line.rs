//! One line of the accounts file: a key, or what is known of an account.
//!
//! ```json
//! {"key_sha256":"<64 hex>","account":"acme","tier":"free","limits":{"rpm":120}}
//! {"account":"acme","recharged_micros":10000000,"vouchers_micros":5000000,"models":{"wan i2v":{"rpm":40}}}
//! ```

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::bounds::ACCOUNT_LINE_BYTES_MAX;
use crate::bounds::NAME_BYTES_MAX;
use crate::enforce::ticket::{KeyId, Limits};
use crate::unit::{Dimension, Limit, ModelId, TierId};
use crate::wire::Budget;

/// What a line says, under the digest that finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    Key(KeyId, Key),
    Account(KeyId, Account),
}

/// What is known of a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Key {
    pub account: Option<KeyId>,
    /// The key's own, before what its account has.
    pub tier: Option<TierId>,
    pub overrides: Option<Arc<Overrides>>,
}

/// What is known of an account, for all its keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    pub tier: Option<TierId>,
    /// Micro-dollars recharged so far, ever: what a tier may follow from.
    pub recharged: u64,
    /// Micro-dollars given on top: they are credit and never raise a tier.
    pub vouchers: u64,
    pub overrides: Option<Arc<Overrides>>,
}

/// Limits of one key or account in place of its tier's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    rates: BTreeMap<Dimension, Limit>,
    budgets: BTreeMap<Budget, Limit>,
    /// Those of `rates` among them.
    models: BTreeMap<ModelId, BTreeMap<Dimension, Limit>>,
}

/// Tier names, each kept once.
#[derive(Default)]
pub struct Names(BTreeMap<String, TierId>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    key_sha256: Option<String>,
    account: Option<String>,
    tier: Option<String>,
    recharged_micros: Option<u64>,
    vouchers_micros: Option<u64>,
    #[serde(default)]
    limits: BTreeMap<String, Limit>,
    #[serde(default)]
    models: BTreeMap<String, BTreeMap<String, Limit>>,
}

const EXPECTED: &str = "expected {\"key_sha256\":\"<64 hex>\",\"account\":\"...\",\"tier\":\"...\"} or \
                        {\"account\":\"...\",\"tier\":\"...\"}";

// === impl Fact ===

impl Fact {
    /// # Errors
    /// What is wrong; never quotes the line, which may hold a secret in the wrong place.
    pub fn parse(line: &str, names: &mut Names) -> Result<Fact, String> {
        if line.len() > ACCOUNT_LINE_BYTES_MAX {
            return Err(format!("longer than {ACCOUNT_LINE_BYTES_MAX} bytes"));
        }
        // The error's text may quote the line; its column does not.
        let line: Line = serde_json::from_str(line)
            .map_err(|error| format!("{EXPECTED}, not that at column {}", error.column()))?;
        let tier = line.tier.map(|tier| names.tier(tier)).transpose()?;
        let overrides = Overrides::of(line.limits, line.models)?;
        let account = line.account.as_deref().map(account_id).transpose()?;
        match (line.key_sha256, account) {
            (Some(digest), account) => {
                if line.recharged_micros.is_some() || line.vouchers_micros.is_some() {
                    return Err("recharges and vouchers belong to an account's own line, without \
                                `key_sha256`"
                        .to_owned());
                }
                if tier.is_none() && account.is_none() {
                    return Err("neither `tier` nor `account`: nothing says what the key may do".to_owned());
                }
                let digest =
                    unhex(digest.as_bytes()).ok_or_else(|| "key_sha256 must be 64 hex digits".to_owned())?;
                Ok(Fact::Key(digest, Key { account, tier, overrides }))
            }
            (None, Some(account)) => {
                let recharged = line.recharged_micros.unwrap_or(0);
                let vouchers = line.vouchers_micros.unwrap_or(0);
                Ok(Fact::Account(account, Account { tier, recharged, vouchers, overrides }))
            }
            (None, None) => Err(EXPECTED.to_owned()),
        }
    }
}

// === impl Account ===

impl Account {
    /// Micro-dollars it may use up in all, ever.
    pub fn credit(&self) -> u64 {
        self.recharged.saturating_add(self.vouchers)
    }
}

// === impl Overrides ===

impl Overrides {
    /// What replaces limits on a model: its own entries, and those for all models beside them.
    pub fn limits(&self, model: &str) -> &Limits {
        self.models.get(model).unwrap_or(&self.rates)
    }

    pub fn budget(&self, budget: Budget) -> Option<Limit> {
        self.budgets.get(&budget).copied()
    }

    fn of(
        limits: BTreeMap<String, Limit>,
        models: BTreeMap<String, BTreeMap<String, Limit>>,
    ) -> Result<Option<Arc<Overrides>>, String> {
        if limits.is_empty() && models.is_empty() {
            return Ok(None);
        }
        let mut overrides = Overrides::default();
        for (name, limit) in limits {
            if let Some(budget) = Budget::ALL.into_iter().find(|budget| budget.short() == name) {
                overrides.budgets.insert(budget, limit);
            } else {
                overrides.rates.insert(dimension(&name)?, limit);
            }
        }
        for (model, limits) in models {
            if model.is_empty() || model.len() > NAME_BYTES_MAX {
                return Err("a model's name is empty or too long".to_owned());
            }
            let Entry::Vacant(place) = overrides.models.entry(ModelId::new(model)) else { continue };
            let all = place.insert(overrides.rates.clone());
            for (name, limit) in limits {
                all.insert(dimension(&name)?, limit);
            }
        }
        Ok(Some(Arc::new(overrides)))
    }
}

fn dimension(name: &str) -> Result<Dimension, String> {
    // Not quoted: whatever stands there may be a secret in the wrong place.
    Dimension::ALL.into_iter().find(|dimension| dimension.short() == name).ok_or_else(|| {
        "a limit's name is none of rpm, tpm, itpm, otpm, ipm, concurrent, jobs, tpd, spend_per_day, \
         spend_per_month (the last three not per model)"
            .to_owned()
    })
}

// === impl Names ===

impl Names {
    fn tier(&mut self, name: String) -> Result<TierId, String> {
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err("tier is empty or too long".to_owned());
        }
        Ok(self.0.entry(name).or_insert_with_key(|name| TierId::new(name)).clone())
    }
}

fn account_id(name: &str) -> Result<KeyId, String> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err("account is empty or too long".to_owned());
    }
    Ok(Sha256::digest(name.as_bytes()).into())
}

/// A digest in hex.
pub fn unhex(text: &[u8]) -> Option<KeyId> {
    let mut digest = [0; 32];
    if text.len() != 64 {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    for (byte, pair) in digest.iter_mut().zip(text.chunks_exact(2)) {
        let [high, low] = pair else { return None };
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(digest)
}
