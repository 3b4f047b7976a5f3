//! The usage report: what a node tells the controller, every interval.
//!
//! Everything counted is cumulative since the node's process started, so a lost report loses
//! nothing and a report that comes twice counts once. `uptime_ms` is the node's own monotonic
//! clock: rates are formed from it, never from arrival times. A field of a newer node is ignored.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::bounds::NACK_BYTES_MAX;
use crate::bounds::NAME_BYTES_MAX;
use crate::bounds::REPORT_BYTES_MAX;
use crate::bounds::REPORT_LIMITS_MAX;
use crate::bounds::REPORT_PROVIDERS_MAX;
use crate::bounds::REPORT_ROWS_MAX;
use crate::unit::{ModelId, NodeId, PoolId, ProviderId, TierId};
use crate::wire::head::Head;
use crate::wire::table::Stamp;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UsageReport {
    pub schema: u32,
    pub node: NodeId,
    /// Differs from one process of the node to the next: counters start at zero with it.
    pub instance: u64,
    pub uptime_ms: u64,
    /// The table in force on the node; none before its first.
    pub applied: Option<Stamp>,
    /// The last table offered, when the node could not take it and goes on with `applied`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nack: Option<Nack>,
    pub rows: Vec<UsageRow>,
    pub pools: BTreeMap<PoolId, PoolUsage>,
    /// What was learned of the providers asked; at most [`REPORT_PROVIDERS_MAX`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub providers: BTreeMap<ProviderId, ProviderUsage>,
}

/// A table that a node refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nack {
    /// None when not even that could be read.
    pub stamp: Option<Stamp>,
    /// One line, at most [`NACK_BYTES_MAX`].
    pub reason: String,
}

/// Work of one model and tier since the node started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UsageRow {
    pub model: ModelId,
    pub tier: TierId,
    /// Admitted and refused together, as estimated at arrival.
    pub offered: Work,
    /// As estimated at admission, corrected when the request is settled.
    pub admitted: Work,
    /// Over the tier's or key's own limit (429).
    pub refused_limit: Work,
    /// Inside its limit, but the pool had no room (503).
    pub refused_capacity: Work,
    /// Of `refused_limit`: over the key's fair share of a tier that is used up.
    #[serde(default)]
    pub refused_share: Work,
    /// Of `refused_limit`: inside every limit of its own, but over the tier's.
    #[serde(default)]
    pub refused_tier: Work,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    pub requests: u64,
    /// In the pool's unit of work.
    pub work: u64,
}

/// One pool as the node sees it: gauges now, counters since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolUsage {
    /// Requests in flight now.
    pub in_flight: u64,
    /// Work admitted that has no first token yet, now.
    pub waiting_work: u64,
    /// Requests sent upstream.
    pub upstream_requests: u64,
    /// Of those, failed by the upstream: refused or broken connections, 5xx.
    pub upstream_errors: u64,
}

/// One provider as the node sees it: counters since start, the hold and its limits now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderUsage {
    /// Requests sent to it.
    pub attempts: u64,
    pub served: u64,
    /// Refused for its own rate limit.
    pub limited: u64,
    /// Refused for money, or for the quota of a day or longer.
    pub exhausted: u64,
    pub overloaded: u64,
    pub failed: u64,
    /// Answered that the request is at fault.
    #[serde(default)]
    pub rejected: u64,
    /// Requests that passed it over while it was held.
    #[serde(default)]
    pub skipped: u64,
    /// Longest that one of its models is still not asked for; zero while all are.
    #[serde(default)]
    pub held_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<Hold>,
    /// By model; at most [`REPORT_LIMITS_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<LearnedLimit>,
}

/// Why a provider is not asked now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hold {
    Limited,
    Exhausted,
    Overloaded,
    Failed,
}

/// A limit as a provider's last answer stated it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LearnedLimit {
    pub model: ModelId,
    pub quantity: Quantity,
    pub window: LimitWindow,
    /// Not there: not told, or told as zero or less, which is no limit but a way of not telling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset_ms: Option<u64>,
}

/// What a provider's limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantity {
    Requests,
    Tokens,
    /// Of one project of the account.
    ProjectTokens,
    /// Limited by what was used and not by what was asked for.
    UsedTokens,
    InputTokens,
    UncachedInputTokens,
    OutputTokens,
    /// Of reserved capacity, beyond which requests are served all the same.
    PriorityInputTokens,
    PriorityOutputTokens,
    Images,
}

/// Over what time a provider's limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitWindow {
    Second,
    Minute,
    Hour,
    Day,
    Month,
}

/// Why a report was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("usage report refused: {0}")]
pub struct UsageError(String);

// === impl UsageReport ===

impl UsageReport {
    /// Decodes and checks bounds. Values are not believed beyond that: see `observe`.
    ///
    /// # Errors
    /// Names the violated bound or the JSON error with line and column.
    pub fn decode(bytes: &[u8]) -> Result<UsageReport, UsageError> {
        if bytes.len() > REPORT_BYTES_MAX {
            return Err(UsageError(format!("{} bytes, allowed are {REPORT_BYTES_MAX}", bytes.len())));
        }
        let head = Head::read(bytes).map_err(|error| UsageError(error.to_string()))?;
        head.check().map_err(|error| UsageError(error.to_string()))?;
        let report: UsageReport =
            serde_json::from_slice(bytes).map_err(|error| UsageError(error.to_string()))?;
        report.check()?;
        Ok(report)
    }

    fn check(&self) -> Result<(), UsageError> {
        if self.schema != crate::wire::table::SCHEMA {
            return Err(UsageError(format!("schema {} is not {}", self.schema, crate::wire::table::SCHEMA)));
        }
        let count = self.rows.len().max(self.pools.len());
        if count > REPORT_ROWS_MAX {
            return Err(UsageError(format!("{count} rows, allowed are {REPORT_ROWS_MAX}")));
        }
        let providers = self.providers.len();
        if providers > REPORT_PROVIDERS_MAX {
            return Err(UsageError(format!("{providers} providers, allowed are {REPORT_PROVIDERS_MAX}")));
        }
        let limits = self.providers.values().map(|provider| provider.limits.len()).max().unwrap_or(0);
        if limits > REPORT_LIMITS_MAX {
            return Err(UsageError(format!(
                "{limits} limits of one provider, allowed are {REPORT_LIMITS_MAX}"
            )));
        }
        let name = self.node.as_str();
        let printable = !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.contains(char::is_control);
        if !printable {
            return Err(UsageError(format!("node must be 1 to {NAME_BYTES_MAX} printable bytes")));
        }
        let nack = self.nack.as_ref().map_or("", |nack| &nack.reason);
        if nack.len() > NACK_BYTES_MAX || nack.contains(char::is_control) {
            return Err(UsageError(format!("nack.reason must be at most {NACK_BYTES_MAX} printable bytes")));
        }
        Ok(())
    }
}

// === impl Nack ===

impl Nack {
    /// Makes the reason one bounded line.
    pub fn new(stamp: Option<Stamp>, reason: &str) -> Nack {
        let mut line: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        while line.len() > NACK_BYTES_MAX {
            line.pop();
        }
        Nack { stamp, reason: line }
    }
}

// === impl Work ===

impl Work {
    pub fn add(&mut self, work: u64) {
        self.requests = self.requests.saturating_add(1);
        self.work = self.work.saturating_add(work);
    }

    #[must_use]
    pub fn plus(self, other: Work) -> Work {
        Work {
            requests: self.requests.saturating_add(other.requests),
            work: self.work.saturating_add(other.work),
        }
    }
}
