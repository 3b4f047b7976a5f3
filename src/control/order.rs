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
use crate::planted::without;
use crate::policy::{Grant, Policy};
use crate::unit::{Limit, PoolId, TierId};
use crate::wire::Row;

/// When guarantees do not fit, a row is cut to what it asks for, and a small model that is asked for
/// little would be limited below a large one. What it does not use is used by nobody else.
pub fn raise_smaller(policy: &Policy, rows: &mut [RowTick]) {
    let mut sized: Vec<(u64, usize)> = Vec::new();
    if without("smaller-no-less") {
        return;
    }
    for (at, row) in rows.iter().enumerate() {
        let size = policy.models.get(&row.model).and_then(|model| model.size);
        sized.extend(size.map(|size| (size, at)));
    }
    sized.sort_unstable_by_key(|(size, _)| std::cmp::Reverse(*size));
    let mut most: BTreeMap<TierId, f64> = BTreeMap::new();
    for (_, at) in sized {
        let Some(row) = rows.get_mut(at) else { continue };
        let grant = policy.models.get(&row.model).and_then(|model| model.tiers.get(&row.tier));
        let ceiling = grant.map_or(0.0, |grant| grant.ceiling.as_f64() / 60.0);
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
        let mut order: Vec<(&Grant, usize)> = Vec::with_capacity(rows.len());
        for (at, row) in rows.iter().enumerate() {
            order.extend(model.tiers.get(&row.tier).map(|grant| (grant, at)));
        }
        order.sort_by_key(|(grant, _)| grant.priority);
        for (place, (grant, at)) in order.iter().enumerate() {
            let above = order
                .iter()
                .take(place)
                .filter(|(above, _)| above.priority < grant.priority && is_above(above, grant));
            let least = above.filter_map(|(_, at)| moved(policy, rows.get(*at)?)).min();
            lower(policy, rows.get_mut(*at), least);
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
    for mut models in sized.into_values() {
        models.sort_by_key(|(size, ..)| *size);
        for (place, (size, grant, at)) in models.iter().enumerate() {
            let smaller = models.iter().take(place);
            let smaller = smaller.filter(|(other, above, _)| other < size && is_above(above, grant));
            let least = smaller.filter_map(|(.., at)| moved(policy, rows.get(*at)?)).min();
            lower(policy, rows.get_mut(*at), least);
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

/// The limit that the loop moves.
fn moved(policy: &Policy, row: &Row) -> Option<Limit> {
    let unit = policy.pools.get(&row.pool)?.unit;
    row.limits.get(&unit.dimension()).map(|entry| entry.tier_limit)
}

fn lower(policy: &Policy, row: Option<&mut Row>, to: Option<Limit>) {
    let (Some(row), Some(to)) = (row, to) else { return };
    let unit = policy.pools.get(&row.pool).map(|pool| pool.unit).unwrap_or_default();
    if let Some(entry) = row.limits.get_mut(&unit.dimension()) {
        entry.tier_limit = entry.tier_limit.min(to);
    }
}

#[cfg(test)]
mod tests;
