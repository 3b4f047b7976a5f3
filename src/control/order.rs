//! Orders between limits that clients are told of: a tier that is served first has no less than one
//! that gives way to it, a smaller model no less than a larger one of the same pool.
//!
//! The allocation keeps both but for one case, and rounding and damping may break either by a few
//! percent. An order holds only where the policy has it in every field: who writes a lower ceiling
//! for a higher tier means it (`tidegate check` asks). Between pools there is none: one that fails
//! would drag the others down.

use std::collections::BTreeMap;

use crate::allocate::Bound;
use crate::control::RowTick;
use crate::control::Stated;
use crate::planted::without;
use crate::policy::{Grant, Policy};
use crate::unit::{Dimension, Limit, PoolId, TierId};
use crate::wire::Row;

/// When guarantees do not fit, a row is cut to what it asks for, and a small model that is asked for
/// little would be limited below a large one. What it does not use is used by nobody else.
pub(super) fn raise_smaller(stated: &[Stated<'_>], rows: &mut [RowTick]) {
    let mut sized: Vec<(u64, usize)> = Vec::new();
    if without("smaller-no-less") {
        return;
    }
    for (at, stated) in stated.iter().enumerate() {
        sized.extend(stated.size.map(|size| (size, at)));
    }
    sized.sort_unstable_by_key(|(size, _)| std::cmp::Reverse(*size));
    let mut most: BTreeMap<TierId, f64> = BTreeMap::new();
    for (_, at) in sized {
        let (Some(row), Some(stated)) = (rows.get_mut(at), stated.get(at)) else { continue };
        let ceiling = stated.grant.ceiling.as_f64() / 60.0;
        let least = most.entry(row.tier.clone()).or_insert(0.0);
        if row.limit < least.min(ceiling) {
            row.limit = least.min(ceiling);
            row.bound = Bound::FairShare;
        }
        *least = least.max(row.limit);
    }
}

/// Takes out of sealed limits what rounding and damping put into the wrong order. Down only, and by
/// as little as those two change.
pub fn keep(policy: &Policy, rows: &mut [Row]) {
    // By model, as rows are sorted.
    for rows in rows.chunk_by_mut(|a, b| a.model == b.model) {
        let Some(model) = rows.first().and_then(|row| policy.models.get(&row.model)) else { continue };
        let dimension = moved(policy, &model.pool);
        let mut order: Vec<(&Grant, usize, Option<Limit>)> = Vec::with_capacity(rows.len());
        for (at, row) in rows.iter().enumerate() {
            order.extend(model.tiers.get(&row.tier).map(|grant| (grant, at, limit(row, dimension))));
        }
        order.sort_by_key(|(grant, ..)| grant.priority);
        for place in 0..order.len() {
            let (above, rest) = order.split_at_mut(place);
            let Some((grant, at, own)) = rest.first_mut() else { continue };
            let above =
                above.iter().filter(|(above, ..)| above.priority < grant.priority && is_above(above, grant));
            lower(rows.get_mut(*at), dimension, own, above.filter_map(|(.., limit)| *limit).min());
        }
    }
    smaller_first(policy, rows);
}

fn smaller_first(policy: &Policy, rows: &mut [Row]) {
    type Sized<'a> = Vec<(u64, &'a Grant, usize)>;
    let mut sized: BTreeMap<(PoolId, TierId), Sized> = BTreeMap::new();
    for (at, row) in rows.iter().enumerate() {
        let Some(model) = policy.models.get(&row.model) else { continue };
        if let (Some(size), Some(grant)) = (model.size, model.tiers.get(&row.tier)) {
            sized.entry((row.pool.clone(), row.tier.clone())).or_default().push((size, grant, at));
        }
    }
    for ((pool, _), mut models) in sized {
        let dimension = moved(policy, &pool);
        models.sort_by_key(|(size, ..)| *size);
        let own = |(.., at): &(u64, &Grant, usize)| rows.get(*at).and_then(|row| limit(row, dimension));
        let mut limits: Vec<Option<Limit>> = models.iter().map(own).collect();
        for (place, (size, grant, at)) in models.iter().enumerate() {
            let (smaller, rest) = limits.split_at_mut(place);
            let Some(own) = rest.first_mut() else { continue };
            let smaller = models.iter().zip(smaller);
            let smaller = smaller.filter(|((other, above, _), _)| other < size && is_above(above, grant));
            let least = smaller.filter_map(|(_, limit)| *limit).min();
            lower(rows.get_mut(*at), dimension, own, least);
        }
    }
}

/// No less is stated of `above`, in any field.
fn is_above(above: &Grant, below: &Grant) -> bool {
    above.priority <= below.priority
        && above.weight >= below.weight
        && above.guarantee >= below.guarantee
        && above.ceiling >= below.ceiling
}

/// The dimension that the loop moves.
fn moved(policy: &Policy, pool: &PoolId) -> Dimension {
    policy.pools.get(pool).map(|pool| pool.unit).unwrap_or_default().dimension()
}

fn limit(row: &Row, dimension: Dimension) -> Option<Limit> {
    row.limits.get(&dimension).map(|entry| entry.tier_limit)
}

/// Lowers a row's limit, and `own`, which is the same number.
fn lower(row: Option<&mut Row>, dimension: Dimension, own: &mut Option<Limit>, to: Option<Limit>) {
    let (Some(row), Some(to), Some(own)) = (row, to, own.as_mut()) else { return };
    if to >= *own {
        return;
    }
    *own = to;
    if let Some(entry) = row.limits.get_mut(&dimension) {
        entry.tier_limit = to;
    }
}

#[cfg(test)]
mod tests;
