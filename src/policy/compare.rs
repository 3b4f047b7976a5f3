//! What an edit gives that nobody had before. A field that is dropped may widen a limit, by its
//! default or by what it overrode: that is never silent.

use std::collections::BTreeMap;

use crate::bounds::WIDENED_SHOWN_MAX;
use crate::policy::{Grant, Policy};
use crate::unit::{Dimension, Limit};
use crate::wire::{BudgetEntry, CachedInput, Credit, Pinned, Span, Streams};

/// One line for every limit that is wider in `new` than in `old`, and for every row that is new.
pub fn widened(old: &Policy, new: &Policy) -> Vec<String> {
    let mut found = Vec::new();
    let mut more = 0_usize;
    let mut lines = shared(old, new);
    for (model, policy) in &new.models {
        let former = old.models.get(model);
        if let Some(former) = former {
            let wider = limits("limits", &former.entry.limits, &policy.entry.limits);
            lines.extend(wider.into_iter().map(|line| format!("{model}: {line}")));
        }
        for (tier, grant) in &policy.tiers {
            lines.extend(match former.and_then(|model| model.tiers.get(tier)) {
                None => vec![format!("{model} / {tier} is new")],
                Some(former) => {
                    let wider = grants(former, grant);
                    wider.into_iter().map(|line| format!("{model} / {tier}: {line}")).collect()
                }
            });
        }
        // At most one model's lines beyond what is shown.
        more += lines.len().saturating_sub(WIDENED_SHOWN_MAX - found.len());
        found.extend(lines.drain(..).take(WIDENED_SHOWN_MAX - found.len()));
    }
    if more > 0 {
        found.push(format!("and {more} more"));
    }
    found
}

/// What holds for a whole product or provider.
fn shared(old: &Policy, new: &Policy) -> Vec<String> {
    let mut found = Vec::new();
    for (name, product) in &new.products {
        let Some(former) = old.products.get(name) else { continue };
        let wider = [
            (former.span == Span::Product && product.span == Span::Model, "span is `model`"),
            (
                product.cached_input == CachedInput::Free && former.cached_input != product.cached_input,
                "cached input is free",
            ),
            (
                product.pinned != former.pinned && product.pinned != Pinned::Nothing,
                "nodes do not divide what is pinned",
            ),
            (
                former.streams == Streams::EndPastBudget && product.streams == Streams::Finish,
                "streams run past their budget",
            ),
        ];
        found
            .extend(wider.into_iter().filter(|(wider, _)| *wider).map(|(_, line)| format!("{name}: {line}")));
        for (tier, amount) in &product.recharge {
            if former.recharge.get(tier).is_some_and(|before| amount < before) {
                found.push(format!("{name}: tier {tier} needs less recharge"));
            }
        }
    }
    for (name, former) in &old.providers {
        let unlimited = BTreeMap::new();
        let wider = limits("limits", former, new.providers.get(name).unwrap_or(&unlimited));
        found.extend(wider.into_iter().map(|line| format!("provider {name}: {line}")));
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
        ("account_limits", &old.account_limits, &new.account_limits),
    ] {
        found.extend(limits(field, old, new));
    }
    for (budget, former) in &old.budgets {
        let now = new.budgets.get(budget).copied();
        let now = now.unwrap_or(BudgetEntry { key: Limit::Unlimited, account: Limit::Unlimited });
        for (noun, old, new) in [("key", former.key, now.key), ("account", former.account, now.account)] {
            if new > old {
                found.push(format!("one {noun}'s {budget:?} {old} -> {new}"));
            }
        }
    }
    if old.credit == Credit::Required && new.credit == Credit::Ignored {
        found.push("credit is not required".to_owned());
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
