//! What nodes were offered, admitted and refused, per model and tier, and which nodes there are.
//!
//! Reports are cumulative and carry the node's own uptime; a rate is the difference of two
//! reports of one process over the difference of their uptimes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::btree_map::Iter;
use std::iter::Peekable;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use statrs::distribution::{Binomial, DiscreteCDF};

use crate::bounds::DEMAND_NODES_MAX;
use crate::bounds::STAMP_MAX;
use crate::estimate::node::Node;
use crate::estimate::rows::Key;
use crate::estimate::rows::Lookup;
use crate::planted::without;
use crate::unit::{Instant, ModelId, NodeId, PoolId, TierId};
use crate::wire::{Stamp, UsageReport};

/// Gain of the mean of offered work, per tick.
pub(super) const GAIN_DEMAND: f64 = 0.35;
/// A node's rates are held for this many intervals without a report.
const HELD_INTERVALS: f64 = 5.0;
/// A silent node keeps its share this long: until its table has run out it may still use it.
const FORGOTTEN_INTERVALS: f64 = 15.0;
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

/// Per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    pub requests: f64,
    pub work: f64,
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
                let node = Node::heard(self.nodes.remove(&report.node), now, report, &pool_of);
                self.nodes.insert(report.node.clone(), node);
            }
        }
        let keys: Vec<Key<'_>> = self.offered.keys().map(|(model, tier)| (model, tier)).collect();
        let mut known = vec![0.0; keys.len()];
        let mut woken: BTreeMap<(ModelId, TierId), f64> = BTreeMap::new();
        for node in self.live(now, interval) {
            let mut places = Lookup::new(&keys, |key| *key);
            for row in node.rows.iter().filter(|row| row.offered.work > 0.0) {
                match places.find((&row.model, &row.tier)).and_then(|at| known.get_mut(at)) {
                    Some(sum) => *sum += row.offered.work,
                    None => {
                        *woken.entry((row.model.clone(), row.tier.clone())).or_default() += row.offered.work;
                    }
                }
            }
        }
        for (smoothed, seen) in self.offered.values_mut().zip(known) {
            *smoothed += if without("smooth-demand") { 1.0 } else { GAIN_DEMAND } * (seen - *smoothed);
        }
        self.offered.extend(woken.into_iter().map(|(key, seen)| (key, GAIN_DEMAND * seen)));
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

    /// What a node said last, of rows that the policy names.
    pub fn last_report(&self, node: &NodeId) -> Option<&UsageReport> {
        self.nodes.get(node).map(|node| &node.last)
    }

    /// Highest table any node has applied: a controller that lost its state begins above it.
    pub fn highest_applied(&self) -> Option<Stamp> {
        let applied = self.nodes.values().filter_map(|node| node.last.applied);
        applied.filter(|stamp| stamp.epoch.max(stamp.version).max(stamp.tick) <= STAMP_MAX).max()
    }

    /// What was asked of each row; rows are sorted by model and tier, none twice.
    pub fn rows(&self, now: Instant, interval: f64, rows: &[Key<'_>]) -> Vec<Demand> {
        let smoothed: Vec<(&(ModelId, TierId), &f64)> = self.offered.iter().collect();
        let mut places = Lookup::new(&smoothed, |((model, tier), _)| (model, tier));
        let offered = |key: &Key<'_>| {
            let offered = places.find(*key).and_then(|at| smoothed.get(at));
            Demand { offered: offered.map_or(0.0, |(_, offered)| **offered), ..Demand::default() }
        };
        let mut demands: Vec<Demand> = rows.iter().map(offered).collect();
        for node in self.live(now, interval) {
            let mut places = Lookup::new(rows, |key| *key);
            for row in node.rows.iter().filter(|row| !row.is_idle()) {
                let place = places.find((&row.model, &row.tier));
                if let Some(demand) = place.and_then(|at| demands.get_mut(at)) {
                    demand.admitted.add(row.admitted);
                    demand.refused_limit.add(row.refused_limit);
                    demand.refused_capacity.add(row.refused_capacity);
                    demand.refused_share.add(row.refused_share);
                    demand.refused_tier.add(row.refused_tier);
                }
            }
        }
        demands
    }

    /// What was asked of each pool, in the order of their names, by the demands of its rows.
    pub fn pools<'a, R: Iterator<Item = &'a Demand>>(
        &self,
        now: Instant,
        interval: f64,
        pools: impl Iterator<Item = (&'a PoolId, R)>,
    ) -> Vec<PoolDemand> {
        let mut nodes: Vec<_> = self
            .nodes
            .iter()
            .map(|(name, node)| {
                let age = now.seconds_since(node.heard_at);
                (name, age, node.offered.iter().peekable(), node.pools.iter().peekable())
            })
            .collect();
        let demand = |(pool, rows): (&PoolId, R)| {
            let mut total = PoolDemand::default();
            for row in rows {
                total.offered += row.offered;
                total.admitted.add(row.admitted);
                total.binding |= row.refused_limit.requests > 0.0;
            }
            let (mut requests, mut errors) = (0u64, 0u64);
            for (name, age, offered, pools) in &mut nodes {
                let silent = *age > HELD_INTERVALS * interval;
                let offered = walk(offered, pool).unwrap_or(0.0);
                total.nodes.push(NodeDemand { node: (*name).clone(), offered, silent });
                let rate = walk(pools, pool).unwrap_or_default();
                if *age <= interval * 1.5 {
                    requests = requests.saturating_add(rate.requests);
                    errors = errors.saturating_add(rate.errors);
                }
            }
            total.errors_significant = significant(requests, errors);
            total.served = requests > errors;
            total
        };
        pools.map(demand).collect()
    }
}

/// Goes on to a pool in a list that is asked in its own order.
fn walk<V: Copy>(list: &mut Peekable<Iter<'_, PoolId, V>>, pool: &PoolId) -> Option<V> {
    while list.next_if(|(id, _)| *id < pool).is_some() {}
    list.next_if(|(id, _)| *id == pool).map(|(_, value)| *value)
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
