//! From allocation to table: per minute, in integers, damped, steered after a policy edit, and
//! stamped.
//!
//! The version rises only when an entry changes, so entries may not twitch: a limit is republished
//! when it falls by more than 1 % or rises by more than 3 %.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::allocate::Bound;
use crate::bounds::SHARED_NODES_MAX;
use crate::control::Controller;
use crate::control::PoolTick;
use crate::control::RowTick;
use crate::control::order;
use crate::estimate::Lookup;
use crate::estimate::NodeDemand;
use crate::planted::{bug, without};
use crate::policy::{Grant, PoolPolicy};
use crate::unit::{Dimension, Limit, NodeId, PPM, PoolId, ProductId};
use crate::wire::table::SCHEMA;
use crate::wire::{Entry, LimitTable, ModelEntry, PoolEntry, Product, Row, Stamp, Yields};

/// Kept for nodes that have not reported yet: this part of `safe`.
const UNLISTED_SHARE: u32 = PPM / 100;
/// Of the listed share, what is split evenly so that a node that wakes is not at zero.
const EVEN_PART: f64 = 0.1;
/// Shares move when one is off by more than this.
const SHARE_STEP: u32 = PPM / 50;
/// Of the waiting work, what the tier after the highest leaves free, and what the lowest does.
const YIELDS_SECOND: f64 = 0.52;
const YIELDS_LAST: f64 = 0.68;

/// The same for every tier but the highest while nothing is contended.
const YIELDS_IDLE: f64 = 0.3;
/// Steering: most that a limit moves in one interval.
const STEER_DOWN: f64 = 0.7;
const STEER_UP_OF_CEILING: f64 = 0.05;

impl Controller {
    /// Seals the next table; says whether its version is new.
    pub(super) fn seal(&mut self, pools: &BTreeMap<PoolId, PoolTick>) -> (Arc<LimitTable>, bool) {
        let previous = self.state.table.clone();
        let mut arrived = true;
        let mut rows = Vec::with_capacity(previous.as_ref().map_or(0, |table| table.rows.len()));
        let before = previous.as_ref().map_or(&[][..], |table| &table.rows);
        let mut places = Lookup::new(before, |row: &Row| (&row.model, &row.tier));
        let ranks: BTreeMap<&PoolId, Vec<u32>> = pools.iter().map(|(id, pool)| (id, ranks(pool))).collect();
        for (model, policy) in &self.policy.models {
            let (Some(pool), Some(served), Some(ranks)) =
                (pools.get(&policy.pool), self.policy.pools.get(&policy.pool), ranks.get(&policy.pool))
            else {
                continue;
            };
            // While an edit steers, a loss of capacity is still followed in one step. What nobody
            // measures is in force as it is written.
            let steers = self.state.steering && !served.is_fixed();
            let steering = steers.then(|| STEER_DOWN.min(fall(pool, &policy.pool, &previous)));
            let product = self.product(&served.product);
            // Sorted, as `rows` of the controller makes them: a model's are side by side.
            let first = pool.rows.partition_point(|row| row.model < *model);
            let ticks = pool.rows.iter().skip(first);
            for ((tier, grant), tick) in policy.tiers.iter().zip(ticks) {
                let old = places.find((model, tier)).and_then(|at| before.get(at));
                let (limits, there) = entries(grant, served, tick, old, steering);
                arrived &= there;
                rows.push(Row {
                    model: model.clone(),
                    tier: tier.clone(),
                    pool: policy.pool.clone(),
                    yields: yields(pool, ranks, tick.priority),
                    limits,
                    product: product.clone(),
                    budgets: grant.budgets.clone(),
                    credit: grant.credit,
                });
            }
        }
        if !self.state.steering {
            order::keep(&self.policy, &mut rows);
        }
        self.state.steering &= !arrived;
        let entries = self.pool_entries(pools, previous.as_deref());
        let mut table = LimitTable {
            schema: SCHEMA,
            stamp: self.state.stamp,
            policy: self.policy.digest.clone(),
            interval_ms: millis(self.policy.interval),
            valid_for_ms: millis(self.policy.valid_for()),
            pools: entries,
            rows,
            products: BTreeMap::new(),
            models: BTreeMap::new(),
            providers: self.policy.providers.clone(),
        };
        // What says nothing is not said.
        let said = self.policy.products.iter().filter(|(_, product)| **product != Product::default());
        table.products = said.map(|(id, product)| (id.clone(), product.clone())).collect();
        let none = ModelEntry::default();
        let said = self.policy.models.iter().filter(|(_, model)| model.entry != none);
        table.models = said.map(|(id, model)| (id.clone(), model.entry.clone())).collect();
        table.providers.retain(|_, limits| !limits.is_empty());
        let changed = previous.as_deref().is_none_or(|previous| !previous.same_entries(&table));
        table.stamp = self.next_stamp(changed);
        self.state.stamp = table.stamp;
        let table = Arc::new(table);
        self.state.table = Some(Arc::clone(&table));
        (table, changed)
    }

    /// The product of a row, where there is more to say of it than the defaults.
    fn product(&self, name: &str) -> Option<ProductId> {
        let (id, product) = self.policy.products.get_key_value(name)?;
        (*product != Product::default()).then(|| id.clone())
    }

    fn next_stamp(&self, changed: bool) -> Stamp {
        let own = self.state.stamp;
        let applied = self.state.nodes.highest_applied().unwrap_or_default();
        let ahead = (applied.epoch, applied.version) > (own.epoch, own.version);
        if self.state.table.is_none() || ahead {
            // Without its predecessor's state a controller cannot know what was published last.
            let above = own.max(applied);
            let epoch = above.epoch.saturating_add(1);
            return Stamp {
                epoch,
                version: above.version.saturating_add(1),
                tick: above.tick.saturating_add(1),
            };
        }
        let rise = u64::from(changed && !bug("version-reused"));
        Stamp {
            epoch: own.epoch,
            version: own.version.saturating_add(rise),
            tick: own.tick.saturating_add(1),
        }
    }

    fn pool_entries(
        &self,
        pools: &BTreeMap<PoolId, PoolTick>,
        previous: Option<&LimitTable>,
    ) -> BTreeMap<PoolId, PoolEntry> {
        let mut entries = BTreeMap::new();
        for (id, tick) in pools {
            let Some(policy) = self.policy.pools.get(id) else { continue };
            let old = previous.and_then(|table| table.pools.get(id));
            let damp = |new: Option<f64>, old: Option<Limit>| match new {
                Some(new) if !policy.is_fixed() => damped(Limit::from_f64(round_down(new)), old),
                _ => Limit::Unlimited,
            };
            let entry = PoolEntry {
                unit: policy.unit,
                output_cost_milli: (tick.estimate.output_cost * 1e3).round() as u64,
                budget: damp(Some(tick.decision.budget * 60.0), old.map(|old| old.budget)),
                waiting_work: damp(Some(tick.decision.waiting_work), old.map(|old| old.waiting_work)),
                slo_ms: millis(policy.slo),
                in_flight: damp(tick.decision.in_flight.map(f64::ceil), old.map(|old| old.in_flight)),
                degraded: tick.estimate.freshness != crate::estimate::Freshness::Fresh,
                shares: shares(&tick.demand.nodes, old.map(|old| &old.shares)),
                unlisted_share: UNLISTED_SHARE,
            };
            entries.insert(id.clone(), entry);
        }
        entries
    }
}

/// Every dimension of one row, and whether all of them are where the policy wants them.
fn entries(
    grant: &Grant,
    pool: &PoolPolicy,
    tick: &RowTick,
    old: Option<&Row>,
    steering: Option<f64>,
) -> (BTreeMap<Dimension, Entry>, bool) {
    let mut limits = BTreeMap::new();
    let mut arrived = true;
    let controlled = pool.unit.dimension();
    let stated = [&grant.tier_limits, &grant.key_limits, &grant.account_limits];
    let is_there = |dimension: &&Dimension| {
        **dimension == controlled || stated.iter().any(|limits| limits.contains_key(*dimension))
    };
    for dimension in Dimension::ALL.iter().filter(is_there) {
        let before = old.and_then(|row| row.limits.get(dimension));
        let of =
            |limits: &BTreeMap<Dimension, Limit>| limits.get(dimension).copied().unwrap_or(Limit::Unlimited);
        let ceiling = if *dimension == controlled { grant.ceiling } else { of(&grant.tier_limits) };
        let constant = Entry {
            tier_limit: ceiling,
            key_limit: of(&grant.key_limits).min(ceiling),
            account_limit: of(&grant.account_limits).min(ceiling),
            safe: ceiling,
            ceiling,
            guarantee: Limit::Finite(0),
            key_share: Limit::Unlimited,
        };
        let wanted = match *dimension == controlled {
            true if pool.is_fixed() => Entry { guarantee: Limit::Finite(grant.guarantee), ..constant },
            true => Entry {
                tier_limit: published(tick, grant, before.map(|entry| entry.tier_limit)),
                safe: Limit::Finite(grant.safe).min(ceiling),
                guarantee: Limit::Finite(grant.guarantee),
                key_share: shared(tick.key_share, before.map(|entry| entry.key_share)),
                ..constant
            },
            false => constant,
        };
        let entry = match (before, steering) {
            (Some(before), Some(down)) => steered(before, &wanted, down),
            _ => wanted,
        };
        arrived &= entry == wanted;
        limits.insert(*dimension, entry);
    }
    (limits, arrived)
}

/// A key's fair part of a row's controlled limit, per minute.
fn shared(share: Option<f64>, old: Option<Limit>) -> Limit {
    share.map_or(Limit::Unlimited, |share| {
        damped(Limit::from_f64(round_down(share * 60.0)).max(Limit::Finite(1)), old)
    })
}

/// A row's controlled limit per minute: exact where a policy's number binds, else rounded down to
/// three digits and damped.
fn published(tick: &RowTick, grant: &Grant, old: Option<Limit>) -> Limit {
    let limit = match tick.bound {
        Bound::Ceiling => return grant.ceiling,
        Bound::Guarantee => return Limit::Finite(grant.guarantee).min(grant.ceiling),
        Bound::Priority => Limit::from_f64(round_down(tick.limit * 60.0)),
        Bound::Uncontended | Bound::FairShare => {
            let least = if without("guarantees") { 0 } else { grant.guarantee };
            Limit::from_f64(round_down(tick.limit * 60.0)).max(Limit::Finite(least))
        }
    };
    damped(limit, old).min(grant.ceiling)
}

/// A policy edit moves a limit at most 30 % down and 5 % of the ceiling up in one interval; to and
/// from `unlimited` there is no proportional way.
fn steered(before: &Entry, wanted: &Entry, down: f64) -> Entry {
    let steer = |before: Limit, wanted: Limit, ceiling: Limit| match (before, wanted) {
        (Limit::Finite(from), Limit::Finite(to)) if !bug("no-steer-bound") => {
            let lowest = (from as f64 * down).ceil() as u64;
            let of = ceiling.finite().unwrap_or(to.max(from));
            let highest = from.saturating_add(((of as f64 * STEER_UP_OF_CEILING) as u64).max(1));
            Limit::Finite(to.clamp(lowest.min(highest), highest))
        }
        _ => wanted,
    };
    let tier_limit = steer(before.tier_limit, wanted.tier_limit, wanted.ceiling);
    let safe = steer(before.safe, wanted.safe, wanted.ceiling);
    // On its way down a limit may still be above the new ceiling; the ceiling comes down with it.
    let ceiling = steer(before.ceiling, wanted.ceiling, wanted.ceiling).max(tier_limit).max(safe);
    let key_limit = steer(before.key_limit, wanted.key_limit, wanted.ceiling).min(ceiling);
    Entry { tier_limit, key_limit, safe, ceiling, ..*wanted }
}

/// The pool's budget now over its last published one.
fn fall(pool: &PoolTick, id: &PoolId, previous: &Option<Arc<LimitTable>>) -> f64 {
    let old = previous.as_ref().and_then(|table| table.pools.get(id)).and_then(|old| old.budget.finite());
    old.map_or(1.0, |old| pool.decision.budget * 60.0 / (old as f64).max(1.0))
}

/// The priorities of a pool, highest first.
fn ranks(pool: &PoolTick) -> Vec<u32> {
    let mut ranks: Vec<u32> = pool.rows.iter().map(|row| row.priority).collect();
    ranks.sort_unstable();
    ranks.dedup();
    ranks
}

/// What a priority leaves to those above it. Of requests in flight only the part above a full
/// batch is given up: a full batch is no queue, leaving slots idle would help nobody.
fn yields(pool: &PoolTick, ranks: &[u32], priority: u32) -> Yields {
    let part = match ranks.iter().position(|rank| *rank == priority).unwrap_or(0) {
        0 => return Yields::default(),
        _ if without("yields") => return Yields::default(),
        // Half for everybody below before a measurement: the room is small then, and without a
        // backlog there would never be one.
        _ if pool.estimate.capacity.is_none() => YIELDS_SECOND,
        _ if !pool.contended => YIELDS_IDLE,
        _ if without("yields-graded") => YIELDS_SECOND,
        rank => {
            let last = ranks.len().saturating_sub(2).max(1);
            YIELDS_SECOND + (YIELDS_LAST - YIELDS_SECOND) * (rank - 1) as f64 / last as f64
        }
    };
    let above = pool.decision.in_flight_above_batch;
    let ppm = |part: f64| (part * f64::from(PPM)) as u32;
    Yields { waiting: ppm(part), in_flight: ppm(part * above) / 10_000 * 10_000 }
}

/// Shares follow reported demand, equal at first; a silent node keeps what it has, because until
/// its table runs out it may use it. Old shares stay while they are close.
fn shares(nodes: &[NodeDemand], old: Option<&BTreeMap<NodeId, u32>>) -> BTreeMap<NodeId, u32> {
    let kept = |node: &NodeDemand| {
        let share = old.and_then(|old| old.get(&node.node)).copied();
        if node.silent && !without("silent-share") { Some(share.unwrap_or(0)) } else { None }
    };
    let mut pinned: u64 = nodes.iter().filter_map(kept).map(u64::from).sum();
    let live: Vec<&NodeDemand> =
        nodes.iter().filter(|node| !node.silent || without("silent-share")).collect();
    let all = u64::from(PPM - UNLISTED_SHARE);
    if live.is_empty() {
        pinned = pinned.min(all);
    }
    let free = all.saturating_sub(pinned) as f64;
    let offered: f64 = live.iter().map(|node| node.offered).sum();
    let share = |node: &NodeDemand| {
        let even = 1.0 / live.len() as f64;
        let evenly = if without("even-part") { 0.0 } else { EVEN_PART };
        let part = if offered > 0.0 && !without("node-demand") {
            (1.0 - evenly) * node.offered / offered + evenly * even
        } else {
            even
        };
        // Rounded down: the sum stays below one.
        (part * free) as u32
    };
    let fresh: BTreeMap<NodeId, u32> = nodes
        .iter()
        .take(SHARED_NODES_MAX)
        .map(|node| (node.node.clone(), kept(node).unwrap_or_else(|| share(node))))
        .collect();
    let fresh =
        if bug("full-limit-per-node") { fresh.into_keys().map(|node| (node, PPM)).collect() } else { fresh };
    match old {
        Some(old) if old.keys().eq(fresh.keys()) && close(old, &fresh) => old.clone(),
        _ => fresh,
    }
}

fn close(old: &BTreeMap<NodeId, u32>, new: &BTreeMap<NodeId, u32>) -> bool {
    let sum: u64 = old.values().map(|share| u64::from(*share)).sum();
    sum <= u64::from(PPM - UNLISTED_SHARE)
        && !without("share-step")
        && old.values().zip(new.values()).all(|(old, new)| old.abs_diff(*new) <= SHARE_STEP)
}

/// Three significant digits, down.
fn round_down(value: f64) -> f64 {
    if value < 1000.0 {
        return value.floor();
    }
    let step = 10f64.powi(value.log10().floor() as i32 - 2);
    (value / step).floor() * step
}

/// Keeps the old limit while the new one is at most 1 % below or 3 % above it.
fn damped(new: Limit, old: Option<Limit>) -> Limit {
    match (new, old) {
        _ if without("damping") => new,
        (Limit::Finite(to), Some(Limit::Finite(from)))
            if to as f64 >= from as f64 * 0.99 && to as f64 <= from as f64 * 1.03 =>
        {
            Limit::Finite(from)
        }
        _ => new,
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
