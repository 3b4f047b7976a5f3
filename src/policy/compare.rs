//! What an edit gives that nobody had before. A field that is dropped may widen a limit, by its
//! default or by what it overrode: that is never silent.

use std::collections::BTreeMap;

use crate::bounds::WIDENED_SHOWN_MAX;
use crate::policy::{Grant, Policy};
use crate::unit::{Dimension, Limit};

/// One line for every limit that is wider in `new` than in `old`, and for every row that is new.
pub fn widened(old: &Policy, new: &Policy) -> Vec<String> {
    let mut found = Vec::new();
    let mut more = 0_usize;
    for (model, policy) in &new.models {
        let former = old.models.get(model);
        for (tier, grant) in &policy.tiers {
            let lines = match former.and_then(|model| model.tiers.get(tier)) {
                None => vec![format!("{model} / {tier} is new")],
                Some(former) => {
                    let wider = grants(former, grant);
                    wider.into_iter().map(|line| format!("{model} / {tier}: {line}")).collect()
                }
            };
            for line in lines {
                if found.len() < WIDENED_SHOWN_MAX {
                    found.push(line);
                } else {
                    more += 1;
                }
            }
        }
    }
    if more > 0 {
        found.push(format!("and {more} more"));
    }
    found
}

fn grants(old: &Grant, new: &Grant) -> Vec<String> {
    let plain = [
        ("guarantee", Limit::Finite(old.guarantee), Limit::Finite(new.guarantee)),
        ("safe", Limit::Finite(old.safe), Limit::Finite(new.safe)),
        ("ceiling", old.ceiling, new.ceiling),
    ];
    let plain = plain.into_iter().filter(|(_, old, new)| new > old);
    let mut found: Vec<String> = plain.map(|(field, old, new)| format!("{field} {old} -> {new}")).collect();
    for (field, old, new) in [
        ("tier_limits", &old.tier_limits, &new.tier_limits),
        ("key_limits", &old.key_limits, &new.key_limits),
    ] {
        found.extend(limits(field, old, new));
    }
    found
}

/// A dimension without a limit is not limited.
fn limits(field: &str, old: &BTreeMap<Dimension, Limit>, new: &BTreeMap<Dimension, Limit>) -> Vec<String> {
    let of = |limits: &BTreeMap<Dimension, Limit>, dimension| {
        limits.get(dimension).copied().unwrap_or(Limit::Unlimited)
    };
    let wider = old.keys().filter(|dimension| of(new, dimension) > of(old, dimension));
    wider
        .map(|dimension| {
            let short = dimension.short();
            format!("{field} {short} {} -> {}", of(old, dimension), of(new, dimension))
        })
        .collect()
}
