//! What the operator asked for, valid by construction.
//!
//! A [`Policy`] is built by `check` from files, all of them or none, or by hand in tests; the
//! rooms below it never see YAML and never check again.

#[cfg(feature = "daemon")]
mod answers;
#[cfg(feature = "daemon")]
pub mod check;
#[cfg(feature = "daemon")]
pub mod compare;
#[cfg(feature = "daemon")]
pub mod diagnostic;
#[cfg(feature = "daemon")]
pub(crate) mod fields;
#[cfg(feature = "daemon")]
pub mod file;
#[cfg(feature = "daemon")]
mod jobs;
#[cfg(feature = "daemon")]
mod limits;
#[cfg(feature = "daemon")]
pub mod load;
#[cfg(feature = "daemon")]
mod model;
pub mod money;
#[cfg(feature = "daemon")]
mod order;
#[cfg(feature = "daemon")]
mod origin;
#[cfg(feature = "daemon")]
mod pool;
pub mod preset;
#[cfg(feature = "daemon")]
mod product;
#[cfg(feature = "daemon")]
pub mod report;
pub mod selector;
#[cfg(feature = "daemon")]
mod shape;
pub mod source;
#[cfg(feature = "daemon")]
mod tier;
#[cfg(feature = "daemon")]
mod trap;
pub mod value;

use std::collections::BTreeMap;
use std::time::Duration;

pub use source::SourcePolicy;

use crate::unit::{Dimension, Limit, ModelId, PoolId, ProductId, ProviderId, TierId, WorkUnit};
use crate::wire::{Budget, BudgetEntry, Credit, ModelEntry, Product};

/// Default control interval.
pub const INTERVAL: Duration = Duration::from_secs(2);
/// A table is valid for this many intervals after its last renewal.
pub const VALID_INTERVALS: u32 = 10;

/// Every policy file of a directory, merged.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {
    /// SHA-256 over the files' names and bytes, hex.
    pub digest: String,
    pub interval: Duration,
    /// What each file says of all its models.
    pub products: BTreeMap<ProductId, Product>,
    pub pools: BTreeMap<PoolId, PoolPolicy>,
    pub models: BTreeMap<ModelId, ModelPolicy>,
    /// What each provider may be asked, all nodes together.
    pub providers: BTreeMap<ProviderId, BTreeMap<Dimension, Limit>>,
}

/// Where a pool's load is read, and what its numbers mean.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolPolicy {
    pub product: String,
    pub unit: WorkUnit,
    pub output_cost: OutputCost,
    /// Time to first token (or to the start of service) that the pool promises.
    pub slo: Duration,
    pub source: SourcePolicy,
    pub signals: SignalMap,
}

/// Work of one output token, in input tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum OutputCost {
    Stated(f64),
    /// Regressed from what backlogged replicas deliver.
    Learned,
}

/// Signal to metric: for a direct source a selector (`name` or `name{label="value"}`), for a
/// Prometheus any PromQL that yields one series a replica. Alternatives in order; the first one
/// present wins (renames). An empty list: the pool does not have that signal.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SignalMap {
    /// Above 0 while the replica can serve. Empty: it is ready when its page can be read.
    pub ready: Vec<String>,
    /// Requests being served (gauge).
    pub running: Vec<String>,
    /// Requests that wait for capacity (gauge).
    pub waiting: Vec<String>,
    /// Work delivered: uncached input tokens, or requests, or images (counter).
    pub work_done: Vec<String>,
    /// Output tokens delivered (counter); each costs [`PoolPolicy::output_cost`].
    pub work_done_output: Vec<String>,
    /// Time to first token, seconds (gauge or PromQL). Shown, never steered by.
    pub latency: Vec<String>,
    /// Failed requests (counter).
    pub errors: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ModelPolicy {
    pub pool: PoolId,
    pub tiers: BTreeMap<TierId, Grant>,
    /// Parameters. Where models state theirs, a smaller one of a pool is granted no less than a
    /// larger one.
    pub size: Option<u64>,
    /// What holds for all tiers together.
    pub entry: ModelEntry,
}

/// What one tier is granted on one model. Rates are per minute, in the pool's unit of work.
#[derive(Clone, Debug, PartialEq)]
pub struct Grant {
    /// 1 is the highest; lower tiers give way first.
    pub priority: u32,
    /// Share of what is left above the guarantees; finite, above 0.
    pub weight: f64,
    pub guarantee: u64,
    /// Where a node alone steers to; the guarantee unless stated.
    pub safe: u64,
    pub ceiling: Limit,
    /// Constant limits of all keys of the tier together, in dimensions the loop does not move.
    pub tier_limits: BTreeMap<Dimension, Limit>,
    /// Constant limits of one key, in any dimension.
    pub key_limits: BTreeMap<Dimension, Limit>,
    /// The same of one account with all its keys.
    pub account_limits: BTreeMap<Dimension, Limit>,
    /// What one key, and one account, may use in a day or month.
    pub budgets: BTreeMap<Budget, BudgetEntry>,
    pub credit: Credit,
}

// === impl Policy ===

impl Policy {
    /// How long a table holds after its last renewal.
    pub fn valid_for(&self) -> Duration {
        self.interval * VALID_INTERVALS
    }
}

// === impl PoolPolicy ===

impl PoolPolicy {
    /// Nobody measures it: its tiers have what is stated, always.
    pub fn is_fixed(&self) -> bool {
        self.source == SourcePolicy::Fixed
    }
}

// === impl ModelPolicy ===

impl ModelPolicy {
    /// A model of which nothing is said but who serves it and who may ask.
    pub fn new(pool: PoolId, tiers: BTreeMap<TierId, Grant>) -> Self {
        Self { pool, tiers, size: None, entry: ModelEntry::default() }
    }
}

// === impl Grant ===

impl Default for Grant {
    /// One of equals, without a promise and without a limit.
    fn default() -> Self {
        Self {
            priority: 1,
            weight: 1.0,
            guarantee: 0,
            safe: 0,
            ceiling: Limit::Unlimited,
            tier_limits: BTreeMap::new(),
            key_limits: BTreeMap::new(),
            account_limits: BTreeMap::new(),
            budgets: BTreeMap::new(),
            credit: Credit::Ignored,
        }
    }
}
