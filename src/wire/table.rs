//! The limit table: what nodes obey. One row per model and tier, one entry per pool.
//!
//! The publisher and every consumer run the same [`LimitTable::validate`] with the same bounds:
//! a table that one accepts and the other cannot hold is how configuration pushes end badly.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::bounds::NAME_BYTES_MAX;
use crate::bounds::TABLE_BYTES_MAX;
use crate::bounds::TABLE_ENTRIES_MAX;
use crate::unit::{Dimension, Limit, ModelId, NodeId, PPM, PoolId, ProductId, ProviderId, TierId, WorkUnit};
use crate::wire::entry::Entry;
use crate::wire::head::Head;
use crate::wire::product::{Budget, BudgetEntry, Credit, ModelEntry, Product};

/// The only schema there is. A reader refuses any other and names it.
pub const SCHEMA: u32 = 1;
/// The last field of an encoded table: eight hex digits, the CRC-32 of all bytes before the field.
const CHECK: &[u8] = b",\"crc32\":\"";

/// Total order of tables, across restarts and controllers.
///
/// `epoch` rises when a controller starts without the state of its predecessor, `version` when
/// an entry changes, `tick` with every renewal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stamp {
    pub epoch: u64,
    pub version: u64,
    pub tick: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitTable {
    pub schema: u32,
    #[serde(flatten)]
    pub stamp: Stamp,
    /// Digest of the policy in force, hex.
    pub policy: String,
    /// Length of one control interval, milliseconds.
    pub interval_ms: u64,
    /// How long after its last renewal the table holds, on the holder's clock, milliseconds.
    pub valid_for_ms: u64,
    pub pools: BTreeMap<PoolId, PoolEntry>,
    /// Sorted by model, then tier; no pair twice.
    pub rows: Vec<Row>,
    /// What holds for all rows of a product.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub products: BTreeMap<ProductId, Product>,
    /// What holds for all tiers of a model; one that is not listed has nothing of it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub models: BTreeMap<ModelId, ModelEntry>,
    /// What a provider may be asked, all nodes together.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub providers: BTreeMap<ProviderId, BTreeMap<Dimension, Limit>>,
}

/// What a node needs to act without delay, for one pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolEntry {
    pub unit: WorkUnit,
    /// Work of one output token, in thousandths of an input token.
    pub output_cost_milli: u64,
    /// What the pool can admit, work per minute. For people; nodes enforce the rows.
    pub budget: Limit,
    /// Work that may be admitted and still wait for its first token, all nodes together.
    pub waiting_work: Limit,
    /// Time to first token that is promised, milliseconds; 0 where nobody says. Nodes let more or
    /// less wait by what of it they see used.
    #[serde(default)]
    pub slo_ms: u64,
    /// Requests in flight, all nodes together.
    pub in_flight: Limit,
    /// Limits follow held or drifting signals, not fresh ones.
    pub degraded: bool,
    /// Node to its share in parts per million.
    pub shares: BTreeMap<NodeId, u32>,
    /// Share of `safe` for a node that is not listed. With `shares` it sums to at most [`PPM`].
    pub unlisted_share: u32,
}

/// Limits of one tier on one model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    pub model: ModelId,
    pub tier: TierId,
    pub pool: PoolId,
    /// What this tier leaves free for tiers of higher priority.
    pub yields: Yields,
    pub limits: BTreeMap<Dimension, Entry>,
    /// One of the table's products; without one the defaults of [`Product`] hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product: Option<ProductId>,
    /// What one key or account may use in a day or month.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub budgets: BTreeMap<Budget, BudgetEntry>,
    #[serde(default)]
    pub credit: Credit,
}

/// Parts of a pool's caps that a tier does not use, ppm: lower priorities are refused first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Yields {
    pub waiting: u32,
    pub in_flight: u32,
}

/// Why a table may not be published or applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    #[error("schema {0} is not {SCHEMA}; run a tidegate of the controller's version")]
    Schema(u32),
    #[error(
        "it requires `{0}`, which this version does not know; run a tidegate of the controller's version"
    )]
    Requires(String),
    #[error("the table has {0}, allowed are {1}")]
    TooLarge(String, usize),
    #[error("the table has no row; last good stays in force")]
    Empty,
    #[error("{place}: {reason}")]
    Invalid { place: String, reason: String },
    #[error("the table is not JSON of the expected shape: {0}")]
    Syntax(String),
    #[error(
        "damaged: its bytes do not have the checksum in its field `crc32`; take it from the controller again"
    )]
    Damaged,
    #[error("version {}.{} was published with other contents before", .0.epoch, .0.version)]
    Reused(Stamp),
}

// === impl LimitTable ===

impl LimitTable {
    /// The row of a model and tier. O(log rows).
    pub fn row(&self, model: &str, tier: &str) -> Option<&Row> {
        let found =
            self.rows.binary_search_by(|row| (row.model.as_str(), row.tier.as_str()).cmp(&(model, tier)));
        found.ok().and_then(|at| self.rows.get(at))
    }

    /// The product of a model, where the table says one.
    pub fn product_of(&self, model: &str) -> Option<&Product> {
        self.products.get(self.row_of(model)?.product.as_ref()?)
    }

    /// A row of a model, whatever the tier: pool and product are the same in all of them.
    pub fn row_of(&self, model: &str) -> Option<&Row> {
        let at = self.rows.partition_point(|row| row.model.as_str() < model);
        self.rows.get(at).filter(|row| row.model.as_str() == model)
    }

    /// Same entries, whatever the stamp: the condition under which a version may stay.
    pub fn same_entries(&self, other: &LimitTable) -> bool {
        self.policy == other.policy
            && self.interval_ms == other.interval_ms
            && self.valid_for_ms == other.valid_for_ms
            && self.pools == other.pools
            && self.rows == other.rows
            && self.products == other.products
            && self.models == other.models
            && self.providers == other.providers
    }

    /// One line of JSON with a checksum in its last field.
    ///
    /// # Errors
    /// [`TableError::TooLarge`] above [`TABLE_BYTES_MAX`].
    pub fn encode(&self) -> Result<Vec<u8>, TableError> {
        let mut bytes = serde_json::to_vec(self).map_err(|error| TableError::Syntax(error.to_string()))?;
        bytes.pop();
        let sum = crc32fast::hash(&bytes);
        bytes.extend_from_slice(CHECK);
        bytes.extend_from_slice(format!("{sum:08x}\"}}").as_bytes());
        check_bytes(bytes.len())?;
        Ok(bytes)
    }

    /// The part of the bounds that the table fills, encoded to `bytes`: the fullest of them.
    pub fn filled(&self, bytes: usize) -> f64 {
        let shares: usize = self.pools.values().map(|pool| pool.shares.len()).sum();
        let entries = self.rows.len().max(self.pools.len()).max(shares);
        (bytes as f64 / TABLE_BYTES_MAX as f64).max(entries as f64 / TABLE_ENTRIES_MAX as f64)
    }

    /// Decodes and validates; what it returns may be applied. A table without a checksum, as a
    /// person writes it, is taken at its word.
    ///
    /// # Errors
    /// Any [`TableError`]; the caller keeps the table it has.
    pub fn decode(bytes: &[u8]) -> Result<LimitTable, TableError> {
        check_bytes(bytes.len())?;
        check_sum(bytes)?;
        Head::read(bytes).map_err(|error| TableError::Syntax(error.to_string()))?.check()?;
        let table: LimitTable =
            serde_json::from_slice(bytes).map_err(|error| TableError::Syntax(error.to_string()))?;
        table.validate()?;
        Ok(table)
    }

    /// The stamp of a table that may not be decodable otherwise, to name it in a refusal.
    pub fn stamp_of(bytes: &[u8]) -> Option<Stamp> {
        check_bytes(bytes.len()).ok()?;
        serde_json::from_slice(bytes).ok()
    }

    /// The one validator: the publisher runs it before any channel sees the table, every holder
    /// before it applies one.
    ///
    /// # Errors
    /// The first violation, with its place.
    pub fn validate(&self) -> Result<(), TableError> {
        if self.schema != SCHEMA {
            return Err(TableError::Schema(self.schema));
        }
        if self.rows.is_empty() {
            return Err(TableError::Empty);
        }
        let shares: usize = self.pools.values().map(|pool| pool.shares.len()).sum();
        let counts = [
            (self.rows.len(), "rows"),
            (self.pools.len(), "pools"),
            (shares, "shares"),
            (self.products.len(), "products"),
            (self.models.len(), "models"),
            (self.providers.len(), "providers"),
        ];
        for (count, what) in counts {
            if count > TABLE_ENTRIES_MAX {
                return Err(TableError::TooLarge(format!("{count} {what}"), TABLE_ENTRIES_MAX));
            }
        }
        if self.interval_ms == 0 || self.valid_for_ms < self.interval_ms {
            return Err(invalid("valid_for_ms", "must be at least interval_ms, which must be above 0"));
        }
        for (name, pool) in &self.pools {
            pool.validate().map_err(|reason| invalid(&format!("pool {name}"), &reason))?;
        }
        for (name, product) in &self.products {
            product.validate().map_err(|reason| invalid(&format!("product {name}"), &reason))?;
        }
        for (name, model) in &self.models {
            model.validate().map_err(|reason| invalid(&format!("model {name}"), &reason))?;
        }
        self.validate_rows()
    }

    fn validate_rows(&self) -> Result<(), TableError> {
        let mut previous: Option<(&ModelId, &TierId)> = None;
        for row in &self.rows {
            let place = format!("row {} / {}", row.model, row.tier);
            let key = (&row.model, &row.tier);
            if previous.is_some_and(|previous| previous >= key) {
                return Err(invalid(&place, "rows must be sorted by model and tier, none twice"));
            }
            previous = Some(key);
            let Some(pool) = self.pools.get(&row.pool) else {
                return Err(invalid(&place, &format!("pool {} is not in the table", row.pool)));
            };
            if let Some(product) = row.product.as_ref().filter(|name| !self.products.contains_key(*name)) {
                return Err(invalid(&place, &format!("product {product} is not in the table")));
            }
            row.validate(pool).map_err(|reason| invalid(&place, &reason))?;
        }
        Ok(())
    }
}

// === impl PoolEntry ===

impl PoolEntry {
    /// The share of a node: listed, or what is kept for the unlisted.
    pub fn share(&self, node: &NodeId) -> Share {
        match self.shares.get(node) {
            Some(ppm) => Share::Listed(*ppm),
            None => Share::Unlisted(self.unlisted_share),
        }
    }

    fn validate(&self) -> Result<(), String> {
        let sum =
            self.shares.values().map(|ppm| u64::from(*ppm)).sum::<u64>() + u64::from(self.unlisted_share);
        if sum > u64::from(PPM) {
            return Err(format!("shares sum to {sum} ppm, allowed are {PPM}"));
        }
        if self.shares.keys().any(|node| !name_ok(node.as_str())) {
            return Err(format!("a node name is empty or longer than {NAME_BYTES_MAX} bytes"));
        }
        if self.output_cost_milli > 1_000_000 {
            return Err("output_cost_milli is above 1000000".to_owned());
        }
        Ok(())
    }
}

/// How much of a limit a node holds, ppm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// Of the limit.
    Listed(u32),
    /// Of `safe` only.
    Unlisted(u32),
}

// === impl Row ===

impl Row {
    fn validate(&self, pool: &PoolEntry) -> Result<(), String> {
        if !name_ok(self.model.as_str()) || !name_ok(self.tier.as_str()) {
            return Err(format!("a name is empty or longer than {NAME_BYTES_MAX} bytes"));
        }
        let most = self.yields.waiting.max(self.yields.in_flight);
        if most > PPM {
            return Err(format!("yields {most} ppm, allowed are {PPM}"));
        }
        if !self.limits.contains_key(&pool.unit.dimension()) {
            return Err(format!("has no {} entry, which its pool controls", pool.unit.dimension().short()));
        }
        for (dimension, entry) in &self.limits {
            let over =
                [("tier_limit", entry.tier_limit), ("key_limit", entry.key_limit), ("safe", entry.safe)]
                    .into_iter()
                    .find(|(_, limit)| *limit > entry.ceiling);
            if let Some((field, limit)) = over {
                let (short, ceiling) = (dimension.short(), entry.ceiling);
                return Err(format!("{short}: {field} {limit} is above the ceiling {ceiling}"));
            }
        }
        Ok(())
    }
}

fn name_ok(name: &str) -> bool {
    !name.is_empty() && name.len() <= NAME_BYTES_MAX
}

fn check_bytes(bytes: usize) -> Result<(), TableError> {
    if bytes > TABLE_BYTES_MAX {
        return Err(TableError::TooLarge(format!("{bytes} bytes"), TABLE_BYTES_MAX));
    }
    Ok(())
}

/// Bytes without a checksum pass: whatever turned the field into another one changed nothing else,
/// or is no JSON any more.
fn check_sum(bytes: &[u8]) -> Result<(), TableError> {
    let bytes = bytes.trim_ascii_end();
    let Some(at) = bytes.len().checked_sub(CHECK.len() + 8 + 2) else { return Ok(()) };
    let (covered, field) = bytes.split_at(at);
    let Some(sum) = field.strip_prefix(CHECK).and_then(|rest| rest.strip_suffix(b"\"}")) else {
        return Ok(());
    };
    let sum = std::str::from_utf8(sum).ok().and_then(|hex| u32::from_str_radix(hex, 16).ok());
    if sum == Some(crc32fast::hash(covered)) { Ok(()) } else { Err(TableError::Damaged) }
}

fn invalid(place: &str, reason: &str) -> TableError {
    TableError::Invalid { place: place.to_owned(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> LimitTable {
        let entry = Entry {
            tier_limit: Limit::Finite(600),
            key_limit: Limit::Unlimited,
            safe: Limit::Finite(60),
            ..Entry::default()
        };
        let pool = PoolEntry {
            unit: WorkUnit::Tokens,
            output_cost_milli: 2_000,
            budget: Limit::Finite(6_000),
            waiting_work: Limit::Finite(10),
            slo_ms: 0,
            in_flight: Limit::Unlimited,
            degraded: false,
            shares: BTreeMap::from([("n".into(), PPM)]),
            unlisted_share: 0,
        };
        let limits = BTreeMap::from([(Dimension::TokensPerMinute, entry)]);
        let row = Row {
            model: "m".into(),
            tier: "t".into(),
            pool: "p".into(),
            yields: Yields::default(),
            limits,
            product: None,
            budgets: BTreeMap::new(),
            credit: Credit::Ignored,
        };
        LimitTable {
            schema: SCHEMA,
            stamp: Stamp { epoch: 1, version: 7, tick: 9 },
            policy: "00".to_owned(),
            interval_ms: 2_000,
            valid_for_ms: 20_000,
            pools: BTreeMap::from([("p".into(), pool)]),
            rows: vec![row],
            products: BTreeMap::new(),
            models: BTreeMap::new(),
            providers: BTreeMap::new(),
        }
    }

    #[test]
    fn f03_every_truncation_and_every_flipped_byte_is_refused_or_changes_nothing() {
        let table = table();
        let good = table.encode().unwrap();
        assert_eq!(LimitTable::decode(&good).unwrap(), table);
        for length in 0..good.len() {
            assert!(LimitTable::decode(&good[..length]).is_err(), "cut to {length}");
        }
        let mut refused = 0;
        for at in 0..good.len() {
            for flip in [0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[at] ^= flip;
                match LimitTable::decode(&bad) {
                    Err(_) => refused += 1,
                    Ok(read) => assert_eq!(read, table, "byte {at} ^ {flip:#x}"),
                }
            }
        }
        // Without the checksum a limit of 600 becomes one of 700.
        assert!(refused > good.len() * 8, "{refused}");
    }

    #[test]
    fn a_table_written_by_hand_needs_no_checksum_and_a_stamp_outlives_the_rest() {
        let table = table();
        let mut text = serde_json::to_string_pretty(&table).unwrap();
        assert_eq!(LimitTable::decode(text.as_bytes()).unwrap(), table);
        text = text.replace("\"interval_ms\": 2000", "\"interval_ms\": 0");
        assert!(matches!(LimitTable::decode(text.as_bytes()), Err(TableError::Invalid { .. })));
        assert_eq!(LimitTable::stamp_of(text.as_bytes()), Some(table.stamp));
        assert_eq!(LimitTable::stamp_of(b"{\"epoch\":1"), None);
        let spaced = [table.encode().unwrap(), b"\n".to_vec()].concat();
        assert_eq!(LimitTable::decode(&spaced).unwrap(), table);
    }
}
