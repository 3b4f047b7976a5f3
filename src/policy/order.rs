//! What is most likely a slip in how tiers, or models, stand to each other: a tier that costs more
//! or is served first and yet gets less, a small model that gets less than a large one, and limits
//! too small to be divided. Only warnings: an operator may mean them.

use std::collections::BTreeMap;

use crate::policy::diagnostic::Place;
use crate::policy::limits::Limits;
use crate::policy::report::Report;
use crate::policy::shape::Text;
use crate::policy::tier::Parts;
use crate::policy::value::Quantity;
use crate::policy::{Grant, ModelPolicy};
use crate::unit::{Dimension, Limit};
use crate::wire::{Pinned, Product};

/// Smaller ones are not divided among nodes without granting much more, or nothing.
const DIVISIBLE: u64 = 4;

/// The limits of one of many, by whom they limit.
type OfOne = fn(&Parts) -> &Option<Limits>;
const LIMITS: [(&str, OfOne); 2] =
    [("key", |parts| &parts.key_limits), ("account", |parts| &parts.account_limits)];

/// One model and how its tiers were written.
pub struct Written<'a> {
    pub name: &'a Text,
    pub tiers: Vec<(&'a str, Parts)>,
    pub policy: ModelPolicy,
}

/// Compares the tiers of one model: by recharge those that have one, the others by priority.
pub fn tiers(model: &Written, product: &Product, report: &mut Report) {
    ceilings(model, report);
    let rank = |name: &str| -> Option<(bool, u64)> {
        let recharge = product.recharge.get(name);
        let priority = model.policy.tiers.get(name).map(|grant| grant.priority);
        // A smaller number is served first.
        let served = priority.map(|priority| u64::from(u32::MAX - priority));
        Some((recharge.is_some(), recharge.copied().or(served)?))
    };
    let mut ranked: Vec<((bool, u64), &str, &Parts)> =
        model.tiers.iter().filter_map(|(name, parts)| Some((rank(name)?, *name, parts))).collect();
    ranked.sort_by_key(|(rank, ..)| *rank);
    for (at, (high, name, parts)) in ranked.iter().enumerate() {
        let below = ranked.iter().take(at).filter(|(low, ..)| low.0 == high.0 && low.1 < high.1);
        for (_, worse, others) in below {
            for (noun, of) in LIMITS {
                for (limit, other) in less(of(parts), of(others)) {
                    let message =
                        format!("one {noun} of tier `{name}` has less than one of `{worse}`, a lower tier");
                    let help = format!("raise it to `{}` or more, unless it is meant so", other.text());
                    report.warning(limit, message, help);
                }
            }
        }
    }
}

/// Compares models of one file: the smaller has no lower limit than the larger.
pub fn sizes(models: &[Written], report: &mut Report) {
    let sized = models.iter().filter_map(|model| Some((model.policy.size?, model)));
    let mut sized: Vec<(u64, &Written)> = sized.collect();
    sized.sort_by_key(|(size, _)| *size);
    // Each against its next larger neighbours only: an order along a line is one along all of it.
    for pair in sized.windows(2) {
        let [(small_size, small), (large_size, large)] = pair else { continue };
        if small_size == large_size {
            continue;
        }
        for (tier, grant) in &small.policy.tiers {
            let Some(other) = large.policy.tiers.get(tier) else { continue };
            if let Some(what) = lower(grant, other) {
                let message = format!(
                    "tier `{tier}` has a lower {what} on `{}` than on `{}`, which is larger",
                    small.name.value, large.name.value
                );
                let help = "clients are told that smaller models have higher limits: raise it, unless it is meant so";
                report.warning(&small.name.place, message, help);
            }
        }
    }
}

/// Limits that nodes cannot divide among them, where requests are not said to be pinned.
pub fn divisible(model: &Written, product: &Product, report: &mut Report) {
    let pinned = |noun| match product.pinned {
        Pinned::Nothing => false,
        Pinned::Keys => noun == "key",
        Pinned::Accounts => true,
    };
    for (_, parts) in &model.tiers {
        for (noun, of) in LIMITS.into_iter().filter(|(noun, _)| !pinned(*noun)) {
            for limit in of(parts).iter().flat_map(|limits| &limits.value) {
                let Quantity::Amount(1..DIVISIBLE, _) = limit.value else { continue };
                let stated = limit.place.text();
                let message = format!("`{stated}` of one {noun} is too small to be divided among nodes");
                let help = format!(
                    "send each {noun}'s requests to one node by hash, and write `pinned: {noun}s`; with one node \
                     write that too"
                );
                report.warning(&limit.place, message, help);
            }
        }
    }
}

/// The pairs of limits in which `of` has less than `than`, each with its place.
fn less<'a>(of: &'a Option<Limits>, than: &'a Option<Limits>) -> Vec<(&'a Place, &'a Place)> {
    let all = |limits: &'a Option<Limits>| limits.iter().flat_map(|limits| &limits.value);
    let mut found = Vec::new();
    for limit in all(of) {
        let same = all(than).find(|other| other.value.unit() == limit.value.unit());
        // What only one of the two states says nothing about the other.
        if let Some(other) = same.filter(|other| other.value.limit() > limit.value.limit()) {
            found.push((&limit.place, &other.place));
        }
    }
    found
}

/// What the smaller model has less of, of what both state.
fn lower(small: &Grant, large: &Grant) -> Option<&'static str> {
    let limits = |small: &BTreeMap<Dimension, Limit>, large: &BTreeMap<Dimension, Limit>| {
        small.iter().any(|(dimension, limit)| large.get(dimension).is_some_and(|other| limit < other))
    };
    [
        (small.ceiling < large.ceiling, "`ceiling`"),
        (small.guarantee < large.guarantee, "`guarantee`"),
        (small.weight < large.weight, "`weight`"),
        (limits(&small.key_limits, &large.key_limits), "limit of one key"),
        (limits(&small.account_limits, &large.account_limits), "limit of one account"),
        (limits(&small.tier_limits, &large.tier_limits), "limit of all keys"),
    ]
    .into_iter()
    .find_map(|(lower, what)| lower.then_some(what))
}

/// A tier that is served first but may get less than one that gives way is most likely a slip.
fn ceilings(model: &Written, report: &mut Report) {
    let mut order: Vec<(u32, Limit, &str, Option<Place>)> = Vec::with_capacity(model.tiers.len());
    for (name, parts) in &model.tiers {
        if let Some(grant) = model.policy.tiers.get(*name) {
            let place = parts.ceiling.as_ref().map(|ceiling| ceiling.place.clone());
            order.push((grant.priority, grant.ceiling, name, place));
        }
    }
    order.sort_by_key(|(priority, ceiling, ..)| (std::cmp::Reverse(*priority), *ceiling));
    let mut highest: Option<(Limit, &str)> = None;
    let mut level: Option<(u32, Limit, &str)> = None;
    for (priority, ceiling, name, place) in order {
        if level.is_some_and(|(last, ..)| last != priority)
            && let Some((_, limit, name)) = level.take()
            && highest.is_none_or(|(most, _)| limit > most)
        {
            highest = Some((limit, name));
        }
        if let (Some((most, worse)), Some(place)) = (&highest, place)
            && ceiling < *most
        {
            let message = format!("tier `{name}` has a lower ceiling than `{worse}`, which gives way to it");
            report.warning(&place, message, "raise it, or exchange the priorities, unless it is meant so");
        }
        // Within one priority the last is the largest.
        level = Some((priority, ceiling, name));
    }
}
