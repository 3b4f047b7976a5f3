//! From the shapes of all files to one policy, or to everything that is wrong with them.
//!
//! A file with mistakes does not hide those of the others: each step reports what it can see
//! and goes on, and only a directory without an error becomes a [`Policy`].

use std::collections::BTreeMap;
use std::time::Duration;

use crate::bounds::TABLE_BYTES_MAX;
use crate::bounds::TABLE_ENTRIES_MAX;
use crate::policy::diagnostic::{Place, Placed};
use crate::policy::model;
use crate::policy::order::{self, Written};
use crate::policy::pool::{self, Pool, accept, unknown, within};
use crate::policy::product;
use crate::policy::report::Report;
use crate::policy::shape::{ModelShape, Named, PolicyFile, Text};
use crate::policy::tier::{self, Granted, Parts, Served};
use crate::policy::value;
use crate::policy::{INTERVAL, ModelPolicy, Policy};
use crate::unit::{Dimension, Limit, ModelId, PoolId, ProductId, ProviderId};
use crate::wire;

const INTERVALS: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(60)];
/// Upper estimate of one row in a limit table, besides its names: four dimensions, all digits.
const ROW_BYTES: usize = 640;

/// What a file adds up to, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Product {
    pub name: String,
    pub file: String,
    pub pools: usize,
    pub models: usize,
    pub tiers: usize,
}

/// Names that may be used once in a directory, and where they were.
#[derive(Default)]
struct Taken<'a> {
    products: BTreeMap<&'a str, &'a Place>,
    pools: BTreeMap<&'a str, &'a Place>,
    models: BTreeMap<&'a str, &'a Place>,
    providers: BTreeMap<&'a str, (&'a Place, BTreeMap<Dimension, Limit>)>,
}

/// Merges files. `None`: `report` has at least one error.
pub fn check(files: &[PolicyFile], digest: String, report: &mut Report) -> Option<(Policy, Vec<Product>)> {
    let mut taken = Taken::default();
    let mut policy = Policy { digest, interval: interval(files, report), ..Policy::default() };
    let mut products = Vec::with_capacity(files.len());
    let mut rows = Size::default();
    for file in files {
        taken.file(file, report);
        taken.providers(file, report);
        let product = file.product.as_ref().map_or("", |product| product.value.as_str());
        add(file, product, &mut policy, &mut rows, report);
        products.push(Product {
            name: product.to_owned(),
            file: file.place.source.name.clone(),
            pools: file.pools.len(),
            models: file.models.len(),
            tiers: file.tiers.len(),
        });
    }
    let of =
        |(name, (_, limits)): (&str, (&Place, BTreeMap<Dimension, Limit>))| (ProviderId::new(name), limits);
    policy.providers = taken.providers.into_iter().map(of).collect();
    (!report.has_errors() && !policy.models.is_empty()).then_some((policy, products))
}

/// Stated nowhere it is the default; stated more than once it must be the same.
fn interval(files: &[PolicyFile], report: &mut Report) -> Duration {
    let mut agreed: Option<Placed<Duration>> = None;
    for text in files.iter().filter_map(|file| file.interval.as_ref()) {
        let parsed = accept(text, value::duration(&text.value), report)
            .and_then(|parsed| within(text, parsed, INTERVALS, "an interval is from 500ms to 60s", report));
        let Some(parsed) = parsed else { continue };
        match &agreed {
            Some(first) if first.value != parsed => {
                let help = "one controller has one interval: write the same in every file, or in one only";
                let also = (&first.place, "the first");
                report.error_and(&text.place, also, "files differ in `interval`", help);
            }
            Some(_) => {}
            None => agreed = Some(Placed { value: parsed, place: text.place.clone() }),
        }
    }
    agreed.map_or(INTERVAL, |agreed| agreed.value)
}

/// One file's pools, tiers and models.
fn add(file: &PolicyFile, product: &str, policy: &mut Policy, rows: &mut Size, report: &mut Report) {
    let meaning = |(name, shape): &Named<_>, report: &mut Report| -> Named<Pool> {
        (name.clone(), pool::pool(product, name, shape, report))
    };
    let pools: Vec<Named<Pool>> = file.pools.iter().map(|entry| meaning(entry, report)).collect();
    let tiers: Vec<Named<Parts>> =
        file.tiers.iter().map(|(name, shape)| (name.clone(), tier::parts(shape, report))).collect();
    let meant = product::product(file, report);
    let mut written = Vec::with_capacity(file.models.len());
    for (name, shape) in &file.models {
        let overrides = overrides(file, shape, report);
        let (entry, size) = (model::entry(file, shape, report), model::size(shape, report));
        let Some(pool) = shape.pool.as_ref().and_then(|pool| pool_of(pool, file, &pools, report)) else {
            continue;
        };
        if !rows.grow(file, name, report) {
            return;
        }
        let Some(unit) = pool.unit else { continue };
        let merged = tier::merged(&tiers, &overrides);
        model::priced(name, shape, &merged, report);
        let Granted { grants, complete } = tier::grants(&merged, Served { unit, fixed: pool.fixed }, report);
        if let (Some(pool), true) = (&shape.pool, complete) {
            let model = ModelPolicy { pool: PoolId::new(&pool.value), tiers: grants, size, entry };
            written.push(Written { name, tiers: merged, policy: model });
        }
    }
    idle(file, pools, policy, report);
    compared(written, &meant, policy, report);
    policy.products.insert(ProductId::new(product), meant);
}

/// Warns of what is most likely a slip, and takes the models.
fn compared(written: Vec<Written<'_>>, product: &wire::Product, policy: &mut Policy, report: &mut Report) {
    for model in &written {
        order::tiers(model, product, report);
        order::divisible(model, product, report);
    }
    order::sizes(&written, report);
    policy.models.extend(written.into_iter().map(|model| (ModelId::new(&model.name.value), model.policy)));
}

/// Takes a file's pools, and warns of those that serve nothing.
fn idle(file: &PolicyFile, pools: Vec<Named<Pool>>, policy: &mut Policy, report: &mut Report) {
    let used: std::collections::BTreeSet<&str> = file
        .models
        .iter()
        .filter_map(|(_, model)| model.pool.as_ref())
        .map(|pool| pool.value.as_str())
        .collect();
    // A mistyped pool was reported; the one that was meant is not idle.
    let known = !used.is_empty() && used.iter().all(|name| pool::find(&pools, name).is_some());
    for (name, pool) in pools {
        if !used.contains(name.value.as_str()) && known {
            let message = format!("no model is served by pool `{}`", name.value);
            report.warning(&name.place, message, "remove it, or name it at a model: `{pool: NAME}`");
        }
        if let Some(pool) = pool.policy {
            policy.pools.insert(PoolId::new(&name.value), pool);
        }
    }
}

fn pool_of<'a>(
    name: &Text,
    file: &PolicyFile,
    pools: &'a [Named<Pool>],
    report: &mut Report,
) -> Option<&'a Pool> {
    let found = pool::find(pools, &name.value);
    // A file without any pool was told so already.
    if found.is_none() && !file.pools.is_empty() {
        let names: Vec<&str> = pools.iter().map(|(name, _)| name.value.as_str()).collect();
        unknown(name, "pool", &names, report);
    }
    found
}

fn overrides(file: &PolicyFile, model: &ModelShape, report: &mut Report) -> Vec<Named<Parts>> {
    let mut overrides = Vec::with_capacity(model.tiers.len());
    for (name, shape) in &model.tiers {
        if file.tiers.iter().any(|(tier, _)| tier.value == name.value) {
            overrides.push((name.clone(), tier::parts(shape, report)));
        } else if !file.tiers.is_empty() {
            let names: Vec<&str> = file.tiers.iter().map(|(name, _)| name.value.as_str()).collect();
            unknown(name, "tier", &names, report);
        }
    }
    overrides
}

// === impl Taken ===

impl<'a> Taken<'a> {
    fn file(&mut self, file: &'a PolicyFile, report: &mut Report) {
        if let Some(product) = &file.product {
            if product.value.trim().is_empty() || product.value.chars().any(char::is_control) {
                let help = "write a name that can be shown on one line";
                report.error(&product.place, "`product` is not a name", help);
            }
            let help = "each file is complete: merge the two, or name another product";
            once(&mut self.products, product, "product", help, report);
        }
        for (name, _) in &file.pools {
            let help = "pool names are unique in the directory: metrics and tables go by them";
            once(&mut self.pools, name, "pool", help, report);
        }
        for (name, _) in &file.models {
            let help = "a node tells models by name: one model has one set of limits";
            once(&mut self.models, name, "model", help, report);
        }
    }

    /// A provider may serve models of several files: it is one all the same.
    fn providers(&mut self, file: &'a PolicyFile, report: &mut Report) {
        for (name, limits) in model::declared(file, report) {
            match self.providers.get(name.value.as_str()) {
                Some((first, before)) if *before != limits => {
                    let message = format!("files differ in the limits of provider `{}`", name.value);
                    let help = "it is one upstream of the nodes: write the same limits in every file";
                    report.error_and(&name.place, (first, "first declared here"), message, help);
                }
                Some(_) => {}
                None => drop(self.providers.insert(&name.value, (&name.place, limits))),
            }
        }
    }
}

fn once<'a>(
    taken: &mut BTreeMap<&'a str, &'a Place>,
    name: &'a Text,
    noun: &str,
    help: &str,
    report: &mut Report,
) {
    match taken.get(name.value.as_str()) {
        Some(first) => {
            let message = format!(
                "{noun} `{}` is in both `{}` and `{}`",
                name.value, first.source.name, name.place.source.name
            );
            report.error_and(&name.place, (first, "first named here"), message, help);
        }
        None => {
            taken.insert(&name.value, &name.place);
        }
    }
}

/// Rows and bytes that the limit table of the policy will have.
#[derive(Default)]
struct Size {
    rows: usize,
    bytes: usize,
    refused: bool,
}

// === impl Size ===

impl Size {
    /// A policy whose table no node would take must not get as far as a controller.
    fn grow(&mut self, file: &PolicyFile, model: &Text, report: &mut Report) -> bool {
        let tiers = &file.tiers;
        let names: usize = tiers.iter().map(|(name, _)| name.value.len()).sum();
        self.rows += tiers.len();
        self.bytes += names + tiers.len() * (model.value.len() + ROW_BYTES);
        let fits = self.rows <= TABLE_ENTRIES_MAX && self.bytes <= TABLE_BYTES_MAX;
        if !fits && !self.refused {
            self.refused = true;
            let message = format!("the limit table would be too large at model `{}`", model.value);
            let help = "a directory has room for about 12000 pairs of model and tier; split it";
            report.error(&model.place, message, help);
        }
        fits
    }
}
