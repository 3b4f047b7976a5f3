//! What a model states beside its tiers: limits of all of them together, prices, providers, size.

use std::collections::{BTreeMap, BTreeSet};

use crate::policy::limits::{rates, shared};
use crate::policy::money;
use crate::policy::pool::{accept, unknown};
use crate::policy::report::Report;
use crate::policy::shape::{Group, ModelShape, PolicyFile, Text};
use crate::policy::tier::Parts;
use crate::policy::value::{self, Quantity};
use crate::unit::{Dimension, Limit, ProviderId};
use crate::wire::{Credit, ModelEntry, Price};

/// What is wrong is in the report and missing in the entry.
pub fn entry(file: &PolicyFile, shape: &ModelShape, report: &mut Report) -> ModelEntry {
    let limits = shape.limits.as_ref().and_then(|texts| shared("limits", texts, report));
    ModelEntry {
        limits: limits.map(|limits| rates(&limits)).unwrap_or_default(),
        price: shape.price.as_ref().and_then(|stated| price(stated, report)),
        output_max: shape
            .output_max
            .as_ref()
            .and_then(|text| accept(text, value::tokens(&text.value), report)),
        providers: providers(file, shape, report),
    }
}

pub fn size(shape: &ModelShape, report: &mut Report) -> Option<u64> {
    shape.size.as_ref().and_then(|text| accept(text, value::size(&text.value), report))
}

/// What nothing is paid for cannot be limited in money.
pub fn priced(name: &Text, shape: &ModelShape, tiers: &[(&str, Parts)], report: &mut Report) {
    if shape.price.is_some() {
        return;
    }
    for (tier, parts) in tiers {
        let help =
            "write what it costs: `price: {input: $0.60/M, output: $2.50/M}`, or `image`, or `request`";
        if let Some(limit) = parts.spend() {
            let message = format!("model `{}` has no `price`, and tier `{tier}` limits spend", name.value);
            report.error_and(&name.place, (&limit.place, "the limit"), message, help);
        } else if let Some(credit) = parts.credit.as_ref().filter(|credit| credit.value == Credit::Required) {
            let message = format!("model `{}` has no `price`, and tier `{tier}` requires credit", name.value);
            report.error_and(&name.place, (&credit.place, "required here"), message, help);
        }
    }
}

fn price(stated: &Group, report: &mut Report) -> Option<Price> {
    if stated.value.is_empty() {
        report.error(&stated.place, "a `price` of nothing", "write one, as in `price: {input: $0.60/M}`");
        return None;
    }
    let mut amounts: BTreeMap<&str, u64> = BTreeMap::new();
    for (field, text) in &stated.value {
        let parsed = match field.as_str() {
            "image" | "request" => money::each(&text.value),
            _ => money::per_million(&text.value),
        };
        if let Some(amount) = accept(text, parsed, report) {
            amounts.insert(field, amount);
        }
    }
    let of = |field| amounts.get(field).copied();
    let input = of("input").unwrap_or_default();
    Some(Price {
        input,
        cached_input: of("cached_input").unwrap_or(input),
        output: of("output").unwrap_or_default(),
        image: of("image").unwrap_or_default(),
        request: of("request").unwrap_or_default(),
    })
}

fn providers(file: &PolicyFile, shape: &ModelShape, report: &mut Report) -> Vec<ProviderId> {
    let mut list: Vec<ProviderId> = Vec::new();
    for text in shape.providers.iter().flat_map(|list| &list.value) {
        let provider = ProviderId::new(&text.value);
        if list.contains(&provider) {
            let help = "keep one: each is asked once for a request";
            report.error(&text.place, format!("provider `{}` is named twice", text.value), help);
        } else if file.providers.is_empty() {
            let help = format!(
                "declare it in this file: `providers: {{{}: {{limits: unlimited}}}}`; it is an upstream of the nodes",
                text.value
            );
            report.error(&text.place, format!("there is no provider `{}`", text.value), help);
        } else if !file.providers.iter().any(|(name, _)| name.value == text.value) {
            let names: Vec<&str> = file.providers.iter().map(|(name, _)| name.value.as_str()).collect();
            unknown(text, "provider", &names, report);
        } else {
            list.push(provider);
        }
    }
    list
}

/// What a file's providers may be asked, each with where it stands.
pub fn declared<'a>(
    file: &'a PolicyFile,
    report: &mut Report,
) -> Vec<(&'a Text, BTreeMap<Dimension, Limit>)> {
    let listed: BTreeSet<&str> = file
        .models
        .iter()
        .flat_map(|(_, model)| model.providers.iter().flat_map(|list| &list.value))
        .map(|text| text.value.as_str())
        .collect();
    // A mistyped name was reported where it stands; the one that was meant is not idle.
    let known = listed.iter().all(|name| file.providers.iter().any(|(found, _)| found.value == *name));
    let mut declared = Vec::with_capacity(file.providers.len());
    for (name, shape) in &file.providers {
        if !listed.contains(name.value.as_str()) && known {
            let message = format!("no model is served by provider `{}`", name.value);
            report.warning(&name.place, message, "remove it, or name it at a model: `providers: [NAME]`");
        }
        let limits = shape.limits.as_ref().and_then(|texts| shared("limits", texts, report));
        for limit in limits.iter().flat_map(|limits| &limits.value) {
            if let Quantity::Amount(_, dimension @ (Dimension::Concurrency | Dimension::Jobs)) = limit.value {
                let message = format!("a limit in `{}` of a provider", dimension.short());
                let help = "what is under way there is not counted: limit its rates, as in `600 rpm`";
                report.error(&limit.place, message, help);
            }
        }
        declared.push((name, limits.map(|limits| rates(&limits)).unwrap_or_default()));
    }
    declared
}
