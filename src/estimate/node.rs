//! What one node said last, and what happened there since it said so before.
//!
//! A report of the same rows as the one before, which nearly every report is, is taken in where the
//! last one lies: neither names nor lists are made anew.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::estimate::demand::GAIN_DEMAND;
use crate::estimate::demand::Rate;
use crate::estimate::rows::Key;
use crate::estimate::rows::Lookup;
use crate::estimate::rows::is_sorted;
use crate::unit::{Instant, ModelId, PoolId, TierId};
use crate::wire::{PoolUsage, UsageReport, UsageRow, Work};

/// No node is offered more than this a second, whatever it says: a lie may not drown a truth.
const OFFERED_MAX: f64 = 1e7;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    pub heard_at: Instant,
    pub last: UsageReport,
    /// Per second, between the last two reports.
    pub rows: Vec<RowRate>,
    pub pools: BTreeMap<PoolId, PoolRate>,
    /// Smoothed offered work per second and pool: what shares follow.
    pub offered: BTreeMap<PoolId, f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RowRate {
    pub model: ModelId,
    pub tier: TierId,
    pub offered: Rate,
    pub admitted: Rate,
    pub refused_limit: Rate,
    pub refused_capacity: Rate,
    #[serde(default)]
    pub refused_share: Rate,
    #[serde(default)]
    pub refused_tier: Rate,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PoolRate {
    pub requests: u64,
    pub errors: u64,
}

/// The rows of the report before, to be found by name.
enum Before<'a> {
    Sorted(Lookup<'a, UsageRow>, &'a [UsageRow]),
    Any(BTreeMap<Key<'a>, &'a UsageRow>),
}

// === impl Node ===

impl Node {
    /// The same without what it said of rows: counters without a base are none.
    pub fn without_rows(&self) -> Node {
        let last = UsageReport {
            schema: self.last.schema,
            node: self.last.node.clone(),
            // Of no process: counters without their rows are no base for a rate.
            instance: 0,
            uptime_ms: 0,
            applied: self.last.applied,
            nack: self.last.nack.clone(),
            rows: Vec::new(),
            pools: BTreeMap::new(),
            providers: BTreeMap::new(),
        };
        Node {
            heard_at: self.heard_at,
            last,
            rows: Vec::new(),
            pools: self.pools.clone(),
            offered: self.offered.clone(),
        }
    }

    /// Takes a report in. `pool_of` names a model's pool.
    pub fn heard(
        before: Option<Node>,
        now: Instant,
        report: &UsageReport,
        pool_of: impl Fn(&ModelId) -> Option<PoolId>,
    ) -> Node {
        let mut node = match before {
            // A repeated or overtaken report says nothing new.
            Some(node)
                if node.last.instance == report.instance && report.uptime_ms <= node.last.uptime_ms =>
            {
                return node;
            }
            Some(node) if node.last.instance == report.instance => node,
            // Another process: nothing was counted by it yet.
            before => Node {
                heard_at: now,
                last: UsageReport { rows: Vec::new(), pools: BTreeMap::new(), uptime_ms: 0, ..head(report) },
                rows: Vec::new(),
                pools: BTreeMap::new(),
                offered: before.map(|node| node.offered).unwrap_or_default(),
            },
        };
        let milliseconds = report.uptime_ms - node.last.uptime_ms;
        let seconds = milliseconds.max(1) as f64 / 1e3;
        let mut seen: BTreeMap<PoolId, f64> = node.offered.keys().map(|pool| (pool.clone(), 0.0)).collect();
        // What the policy does not name is nobody's demand, and may not be remembered.
        let mut runs = report.rows.chunk_by(|a, b| a.model == b.model);
        let named = runs.all(|rows| rows.first().is_some_and(|row| pool_of(&row.model).is_some()));
        if !(named && node.takes_in_place(&report.rows, seconds)) {
            node.takes_anew(report, seconds, &pool_of);
        }
        for rows in node.rows.chunk_by(|a, b| a.model == b.model) {
            let Some(pool) = rows.first().and_then(|row| pool_of(&row.model)) else { continue };
            let sum = seen.entry(pool).or_default();
            rows.iter().for_each(|row| *sum += row.offered.work);
        }
        for (pool, work) in seen {
            let smoothed = node.offered.entry(pool).or_default();
            *smoothed += GAIN_DEMAND * (work - *smoothed);
        }
        node.takes_pools(&report.pools);
        let (rows, pools) = (std::mem::take(&mut node.last.rows), std::mem::take(&mut node.last.pools));
        node.last = UsageReport { rows, pools, ..head(report) };
        node.heard_at = now;
        node
    }

    /// Where the rows are those of the last report; says whether they are.
    fn takes_in_place(&mut self, rows: &[UsageRow], seconds: f64) -> bool {
        let same = rows.len() == self.last.rows.len()
            && rows.len() == self.rows.len()
            && rows.iter().zip(&self.last.rows).all(|(new, old)| new.key() == old.key())
            && is_sorted(rows, UsageRow::key);
        if same {
            for ((new, old), rate) in rows.iter().zip(&mut self.last.rows).zip(&mut self.rows) {
                rate.set(Some(old), new, seconds);
                old.count(new);
            }
        }
        same
    }

    fn takes_anew(
        &mut self,
        report: &UsageReport,
        seconds: f64,
        pool_of: impl Fn(&ModelId) -> Option<PoolId>,
    ) {
        let mut before = Before::new(&self.last.rows);
        let runs = report.rows.chunk_by(|a, b| a.model == b.model);
        let named = runs.filter(|rows| rows.first().is_some_and(|row| pool_of(&row.model).is_some()));
        let last: Vec<UsageRow> = named.flatten().cloned().collect();
        self.rows = last.iter().map(|row| RowRate::between(before.find(row.key()), row, seconds)).collect();
        self.last.rows = last;
    }

    fn takes_pools(&mut self, pools: &BTreeMap<PoolId, PoolUsage>) {
        if self.last.pools.keys().eq(pools.keys()) && self.pools.keys().eq(pools.keys()) {
            for ((new, old), rate) in
                pools.values().zip(self.last.pools.values_mut()).zip(self.pools.values_mut())
            {
                *rate = PoolRate::between(*old, *new);
                *old = *new;
            }
            return;
        }
        let rate = |(pool, usage): (&PoolId, &PoolUsage)| {
            let old = self.last.pools.get(pool).copied().unwrap_or_default();
            (pool.clone(), PoolRate::between(old, *usage))
        };
        self.pools = pools.iter().map(rate).collect();
        self.last.pools = pools.clone();
    }
}

/// A report but for its rows and pools.
fn head(report: &UsageReport) -> UsageReport {
    UsageReport {
        schema: report.schema,
        node: report.node.clone(),
        instance: report.instance,
        uptime_ms: report.uptime_ms,
        applied: report.applied,
        nack: report.nack.clone(),
        rows: Vec::new(),
        pools: BTreeMap::new(),
        providers: report.providers.clone(),
    }
}

// === impl Before ===

impl<'a> Before<'a> {
    fn new(rows: &'a [UsageRow]) -> Before<'a> {
        if is_sorted(rows, UsageRow::key) {
            return Before::Sorted(Lookup::new(rows, UsageRow::key), rows);
        }
        Before::Any(rows.iter().map(|row| (row.key(), row)).collect())
    }

    fn find(&mut self, key: Key<'_>) -> Option<&'a UsageRow> {
        match self {
            Before::Sorted(places, rows) => places.find(key).and_then(|at| rows.get(at)),
            Before::Any(rows) => rows.get(&key).copied(),
        }
    }
}

// === impl UsageRow ===

impl UsageRow {
    fn key(&self) -> Key<'_> {
        (&self.model, &self.tier)
    }

    /// Takes the counters of a later report of the same row.
    fn count(&mut self, new: &UsageRow) {
        self.offered = new.offered;
        self.admitted = new.admitted;
        self.refused_limit = new.refused_limit;
        self.refused_capacity = new.refused_capacity;
        self.refused_share = new.refused_share;
        self.refused_tier = new.refused_tier;
    }
}

// === impl RowRate ===

impl RowRate {
    fn between(old: Option<&UsageRow>, new: &UsageRow, seconds: f64) -> RowRate {
        let none = Rate::default();
        let mut rate = RowRate {
            model: new.model.clone(),
            tier: new.tier.clone(),
            offered: none,
            admitted: none,
            refused_limit: none,
            refused_capacity: none,
            refused_share: none,
            refused_tier: none,
        };
        rate.set(old, new, seconds);
        rate
    }

    fn set(&mut self, old: Option<&UsageRow>, new: &UsageRow, seconds: f64) {
        let rate = |field: fn(&UsageRow) -> Work| {
            let old = old.map(field).unwrap_or_default();
            let new = field(new);
            Rate {
                requests: new.requests.saturating_sub(old.requests) as f64 / seconds,
                work: (new.work.saturating_sub(old.work) as f64 / seconds).min(OFFERED_MAX),
            }
        };
        self.offered = rate(|row| row.offered);
        self.admitted = rate(|row| row.admitted);
        self.refused_limit = rate(|row| row.refused_limit);
        self.refused_capacity = rate(|row| row.refused_capacity);
        self.refused_share = rate(|row| row.refused_share);
        self.refused_tier = rate(|row| row.refused_tier);
    }

    /// Nothing but what was offered is more than nothing.
    pub fn is_idle(&self) -> bool {
        let rates =
            [self.admitted, self.refused_limit, self.refused_capacity, self.refused_share, self.refused_tier];
        rates.iter().all(|rate| *rate == Rate::default())
    }
}

// === impl PoolRate ===

impl PoolRate {
    fn between(old: PoolUsage, new: PoolUsage) -> PoolRate {
        PoolRate {
            requests: new.upstream_requests.saturating_sub(old.upstream_requests),
            errors: new.upstream_errors.saturating_sub(old.upstream_errors),
        }
    }
}
