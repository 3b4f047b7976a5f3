//! What nodes were offered, admitted and refused, per model and tier, and which nodes there are.
//!
//! Reports are cumulative and carry the node's own uptime; a rate is the difference of two
//! reports of one process over the difference of their uptimes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use statrs::distribution::{Binomial, DiscreteCDF};

use crate::bounds::DEMAND_NODES_MAX;
use crate::bounds::STAMP_MAX;
use crate::planted::without;
use crate::unit::{Instant, ModelId, NodeId, PoolId, TierId};
use crate::wire::{PoolUsage, Stamp, UsageReport, UsageRow, Work};

/// Gain of the mean of offered work, per tick.
const GAIN_DEMAND: f64 = 0.35;
/// A node's rates are held for this many intervals without a report.
const HELD_INTERVALS: f64 = 5.0;
/// A silent node keeps its share this long: until its table has run out it may still use it.
const FORGOTTEN_INTERVALS: f64 = 15.0;
/// No node is offered more than this a second, whatever it says: a lie may not drown a truth.
const OFFERED_MAX: f64 = 1e7;
/// Upstream errors expected of a healthy pool, and the significance of more.
const ERROR_RATIO: f64 = 0.01;
const SIGNIFICANT: f64 = 0.01;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Nodes {
    nodes: BTreeMap<NodeId, Node>,
    /// Smoothed offered work per second.
    #[serde(with = "pairs")]
    offered: BTreeMap<(ModelId, TierId), f64>,
    #[serde(default)]
    updated_at: Option<Instant>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Node {
    heard_at: Instant,
    last: UsageReport,
    /// Per second, between the last two reports.
    rows: Vec<RowRate>,
    pools: BTreeMap<PoolId, PoolRate>,
    /// Smoothed offered work per second and pool: what shares follow.
    offered: BTreeMap<PoolId, f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct RowRate {
    model: ModelId,
    tier: TierId,
    offered: Rate,
    admitted: Rate,
    refused_limit: Rate,
    refused_capacity: Rate,
    #[serde(default)]
    refused_share: Rate,
    #[serde(default)]
    refused_tier: Rate,
}

/// Per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    pub requests: f64,
    pub work: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct PoolRate {
    requests: u64,
    errors: u64,
}

/// One row's rates over all nodes. `offered` is smoothed, the others are of the last interval.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Demand {
    pub offered: f64,
    pub admitted: Rate,
    pub refused_limit: Rate,
    pub refused_capacity: Rate,
    /// Of `refused_limit`: over the key's share of the tier.
    #[serde(default)]
    pub refused_share: Rate,
    /// Of `refused_limit`: over the tier's limit alone.
    #[serde(default)]
    pub refused_tier: Rate,
}

/// A node of a pool, for its share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeDemand {
    pub node: NodeId,
    pub offered: f64,
    /// Not heard of for a while: it may still use the share it has.
    pub silent: bool,
}

/// Everything asked of one pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PoolDemand {
    pub offered: f64,
    pub admitted: Rate,
    /// Some request was over a limit that a higher budget would raise.
    pub binding: bool,
    pub nodes: Vec<NodeDemand>,
    /// More upstream errors than a healthy pool has: one sign of a loss.
    pub errors_significant: bool,
    /// Some request was answered in the last interval.
    #[serde(default)]
    pub served: bool,
}

// === impl Nodes ===

impl Nodes {
    /// Takes the reports of one interval in. `pool_of` names a model's pool.
    pub fn update(
        &mut self,
        now: Instant,
        interval: f64,
        reports: &[UsageReport],
        pool_of: impl Fn(&ModelId) -> Option<PoolId>,
    ) {
        self.stood_still(now, interval);
        self.nodes.retain(|_, node| now.seconds_since(node.heard_at) <= FORGOTTEN_INTERVALS * interval);
        // Counters are cumulative: the last report of each node says it all.
        let latest: BTreeMap<&NodeId, &UsageReport> =
            reports.iter().map(|report| (&report.node, report)).collect();
        for report in latest.into_values() {
            if self.nodes.contains_key(&report.node) || self.nodes.len() < DEMAND_NODES_MAX {
                let node = Node::heard(self.nodes.get(&report.node), now, report, &pool_of);
                self.nodes.insert(report.node.clone(), node);
            }
        }
        let mut offered: BTreeMap<(ModelId, TierId), f64> = BTreeMap::new();
        for node in self.live(now, interval) {
            for row in &node.rows {
                *offered.entry((row.model.clone(), row.tier.clone())).or_default() += row.offered.work;
            }
        }
        for key in offered.keys() {
            self.offered.entry(key.clone()).or_default();
        }
        for (key, smoothed) in &mut self.offered {
            let seen = offered.get(key).copied().unwrap_or(0.0);
            *smoothed += if without("smooth-demand") { 1.0 } else { GAIN_DEMAND } * (seen - *smoothed);
        }
        self.offered.retain(|_, smoothed| *smoothed > 1e-3);
    }

    /// While nobody listened, nobody was silent: after a pause, nodes are as old as before it.
    fn stood_still(&mut self, now: Instant, interval: f64) {
        let before = self.updated_at.replace(now).unwrap_or(now);
        let gap = now.since(before);
        if gap.as_secs_f64() > HELD_INTERVALS * interval {
            let unheard = gap.saturating_sub(Duration::from_secs_f64(interval));
            for node in self.nodes.values_mut() {
                node.heard_at = node.heard_at + unheard;
            }
        }
    }

    /// The same with at most so many rows of reports, and how many nodes lost theirs: for a store.
    /// Such a node's next report counts as a new process's; its share is kept.
    pub fn at_most(&self, rows_max: usize) -> (Cow<'_, Nodes>, usize) {
        let rows = |node: &Node| node.last.rows.len();
        if self.nodes.values().map(rows).sum::<usize>() <= rows_max {
            return (Cow::Borrowed(self), 0);
        }
        // Those with most to say last: their rates are missed most, but one of them fills it all.
        let mut by_rows: Vec<(&NodeId, &Node)> = self.nodes.iter().collect();
        by_rows.sort_by_key(|(_, node)| rows(node));
        let mut left = rows_max;
        let mut kept =
            Nodes { nodes: BTreeMap::new(), offered: self.offered.clone(), updated_at: self.updated_at };
        let mut cut = 0;
        for (name, node) in by_rows {
            let node = match left.checked_sub(rows(node)) {
                Some(rest) => {
                    left = rest;
                    node.clone()
                }
                None => {
                    cut += 1;
                    node.without_rows()
                }
            };
            kept.nodes.insert(name.clone(), node);
        }
        (Cow::Owned(kept), cut)
    }

    fn live(&self, now: Instant, interval: f64) -> impl Iterator<Item = &Node> {
        self.nodes.values().filter(move |node| now.seconds_since(node.heard_at) <= HELD_INTERVALS * interval)
    }

    /// Highest table any node has applied: a controller that lost its state begins above it.
    pub fn highest_applied(&self) -> Option<Stamp> {
        let applied = self.nodes.values().filter_map(|node| node.last.applied);
        applied.filter(|stamp| stamp.epoch.max(stamp.version).max(stamp.tick) <= STAMP_MAX).max()
    }

    pub fn row(&self, now: Instant, interval: f64, model: &ModelId, tier: &TierId) -> Demand {
        let key = (model.clone(), tier.clone());
        let mut demand =
            Demand { offered: self.offered.get(&key).copied().unwrap_or(0.0), ..Demand::default() };
        let rows = self.live(now, interval).flat_map(|node| &node.rows);
        for row in rows.filter(|row| row.model == *model && row.tier == *tier) {
            demand.admitted.add(row.admitted);
            demand.refused_limit.add(row.refused_limit);
            demand.refused_capacity.add(row.refused_capacity);
            demand.refused_share.add(row.refused_share);
            demand.refused_tier.add(row.refused_tier);
        }
        demand
    }

    pub fn pool(&self, now: Instant, interval: f64, pool: &PoolId, rows: &[Demand]) -> PoolDemand {
        let mut total = PoolDemand::default();
        for row in rows {
            total.offered += row.offered;
            total.admitted.add(row.admitted);
            total.binding |= row.refused_limit.requests > 0.0;
        }
        let (mut requests, mut errors) = (0u64, 0u64);
        for (name, node) in &self.nodes {
            let silent = now.seconds_since(node.heard_at) > HELD_INTERVALS * interval;
            let offered = node.offered.get(pool).copied().unwrap_or(0.0);
            total.nodes.push(NodeDemand { node: name.clone(), offered, silent });
            if now.seconds_since(node.heard_at) <= interval * 1.5 {
                let rate = node.pools.get(pool).copied().unwrap_or_default();
                requests = requests.saturating_add(rate.requests);
                errors = errors.saturating_add(rate.errors);
            }
        }
        total.errors_significant = significant(requests, errors);
        total.served = requests > errors;
        total
    }
}

/// Are `errors` of `requests` more than a healthy pool has? Binomial test, one-sided.
fn significant(requests: u64, errors: u64) -> bool {
    if errors == 0 {
        return false;
    }
    let at_least = |binomial: Binomial| binomial.sf(errors - 1);
    let chance = Binomial::new(ERROR_RATIO, requests.max(errors)).map(at_least);
    chance.is_ok_and(|p| p <= SIGNIFICANT) || without("errors-significant")
}

// === impl Node ===

impl Node {
    fn without_rows(&self) -> Node {
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

    fn heard(
        before: Option<&Node>,
        now: Instant,
        report: &UsageReport,
        pool_of: impl Fn(&ModelId) -> Option<PoolId>,
    ) -> Node {
        let same = before.filter(|node| node.last.instance == report.instance);
        let since = same.map_or(0, |node| node.last.uptime_ms);
        if let (Some(node), true) = (same, report.uptime_ms <= since) {
            // A repeated or overtaken report says nothing new.
            return node.clone();
        }
        let milliseconds = report.uptime_ms - since;
        let seconds = milliseconds.max(1) as f64 / 1e3;
        let old: BTreeMap<(&ModelId, &TierId), &UsageRow> = same
            .map(|node| node.last.rows.iter().map(|row| ((&row.model, &row.tier), row)).collect())
            .unwrap_or_default();
        // What the policy does not name is nobody's demand, and may not be remembered.
        let mut last = report.clone();
        last.rows.retain(|row| pool_of(&row.model).is_some());
        let rate =
            |row: &UsageRow| RowRate::between(old.get(&(&row.model, &row.tier)).copied(), row, seconds);
        let rows: Vec<RowRate> = last.rows.iter().map(rate).collect();
        let pools = report
            .pools
            .iter()
            .map(|(pool, usage)| {
                let old = same.and_then(|node| node.last.pools.get(pool)).copied().unwrap_or_default();
                (pool.clone(), PoolRate::between(old, *usage))
            })
            .collect();
        let mut offered = before.map(|node| node.offered.clone()).unwrap_or_default();
        let mut seen: BTreeMap<PoolId, f64> = offered.keys().map(|pool| (pool.clone(), 0.0)).collect();
        for row in &rows {
            if let Some(pool) = pool_of(&row.model) {
                *seen.entry(pool).or_default() += row.offered.work;
            }
        }
        for (pool, work) in seen {
            let smoothed = offered.entry(pool).or_default();
            *smoothed += GAIN_DEMAND * (work - *smoothed);
        }
        Node { heard_at: now, last, rows, pools, offered }
    }
}

// === impl RowRate ===

impl RowRate {
    fn between(old: Option<&UsageRow>, new: &UsageRow, seconds: f64) -> RowRate {
        let rate = |field: fn(&UsageRow) -> Work| {
            let old = old.map(field).unwrap_or_default();
            let new = field(new);
            Rate {
                requests: new.requests.saturating_sub(old.requests) as f64 / seconds,
                work: (new.work.saturating_sub(old.work) as f64 / seconds).min(OFFERED_MAX),
            }
        };
        RowRate {
            model: new.model.clone(),
            tier: new.tier.clone(),
            offered: rate(|row| row.offered),
            admitted: rate(|row| row.admitted),
            refused_limit: rate(|row| row.refused_limit),
            refused_capacity: rate(|row| row.refused_capacity),
            refused_share: rate(|row| row.refused_share),
            refused_tier: rate(|row| row.refused_tier),
        }
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

// === impl Rate ===

impl Rate {
    pub fn add(&mut self, other: Rate) {
        self.requests += other.requests;
        self.work += other.work;
    }
}

/// JSON keys are strings; a map keyed by a pair is written as a list.
mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serializer};

    use crate::unit::{ModelId, TierId};

    type Map = BTreeMap<(ModelId, TierId), f64>;

    pub fn serialize<S: Serializer>(map: &Map, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map.iter().map(|((model, tier), value)| (model, tier, value)))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Map, D::Error> {
        let list = Vec::<(ModelId, TierId, f64)>::deserialize(deserializer)?;
        Ok(list.into_iter().map(|(model, tier, value)| ((model, tier), value)).collect())
    }
}
