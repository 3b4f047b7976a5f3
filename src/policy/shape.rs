//! The fields of a policy file: which there are, which must be there, and of what kind.
//!
//! Everything wrong in a file is reported, so a field that is missing or of the wrong kind is
//! `None` here and `check` goes on with the rest.

use std::collections::BTreeMap;

use crate::policy::diagnostic::{Place, Placed};
use crate::policy::fields::Fields;
use crate::policy::file::{Kind, Node};
use crate::policy::origin::{AUTHORIZATION_FIELDS, BASIC_AUTH_FIELDS, TLS_FIELDS};
use crate::policy::report::Report;

/// A text from a policy file.
pub type Text = Placed<String>;
/// A name and what stands under it.
pub type Named<T> = (Text, T);
/// A mapping of plain values, at the place of its name.
pub type Group = Placed<BTreeMap<String, Text>>;

#[derive(Debug)]
pub struct PolicyFile {
    /// Where the file begins, for what it lacks.
    pub place: Place,
    pub product: Option<Text>,
    pub interval: Option<Text>,
    pub window: Option<Text>,
    pub span: Option<Text>,
    pub cached_input: Option<Text>,
    pub pinned: Option<Text>,
    pub streams: Option<Text>,
    pub time_zone: Option<Text>,
    pub jobs: Option<JobsShape>,
    pub answers: Option<Named<Node>>,
    pub pools: Vec<Named<PoolShape>>,
    pub providers: Vec<Named<ProviderShape>>,
    pub models: Vec<Named<ModelShape>>,
    pub tiers: Vec<Named<TierShape>>,
}

#[derive(Debug)]
pub struct JobsShape {
    pub place: Place,
    pub create: Option<Placed<Vec<Text>>>,
    pub poll: Option<Text>,
    pub cancel: Option<Text>,
    pub id: Option<Text>,
    pub status: Option<Text>,
    pub ended: Option<Placed<Vec<Text>>>,
    pub lease: Option<Text>,
    pub polls: Option<Text>,
    pub webhook: Option<Text>,
}

#[derive(Debug)]
pub struct ProviderShape {
    pub limits: Option<Placed<Vec<Text>>>,
}

#[derive(Debug)]
pub struct PoolShape {
    /// Where each field is that was stated, by name.
    pub stated: BTreeMap<String, Place>,
    pub capacity: Option<Text>,
    pub preset: Option<Text>,
    pub targets: Option<Placed<Vec<Text>>>,
    pub file_sd: Option<Placed<Vec<Text>>>,
    pub dns: Option<Placed<Vec<Text>>>,
    pub dns_refresh: Option<Text>,
    pub prometheus: Option<Placed<Vec<Text>>>,
    pub authorization: Option<Group>,
    pub basic_auth: Option<Group>,
    pub tls: Option<Group>,
    pub selector: Option<Text>,
    pub slo: Option<Text>,
    pub output_token_cost: Option<Text>,
    pub unit: Option<Text>,
    pub signals: Vec<Named<Placed<Vec<Text>>>>,
}

#[derive(Debug)]
pub struct ModelShape {
    pub pool: Option<Text>,
    pub size: Option<Text>,
    pub limits: Option<Placed<Vec<Text>>>,
    pub price: Option<Group>,
    pub output_max: Option<Text>,
    pub providers: Option<Placed<Vec<Text>>>,
    /// What differs from the tiers of the file.
    pub tiers: Vec<Named<TierShape>>,
}

#[derive(Debug)]
pub struct TierShape {
    pub priority: Option<Text>,
    pub weight: Option<Text>,
    pub guarantee: Option<Text>,
    pub safe: Option<Text>,
    pub ceiling: Option<Text>,
    pub tier_limits: Option<Placed<Vec<Text>>>,
    pub key_limits: Option<Placed<Vec<Text>>>,
    pub account_limits: Option<Placed<Vec<Text>>>,
    pub credit: Option<Text>,
    pub recharge: Option<Text>,
}

const FILE_FIELDS: [&str; 15] = [
    "schema",
    "product",
    "interval",
    "window",
    "span",
    "cached_input",
    "pinned",
    "streams",
    "time_zone",
    "jobs",
    "answers",
    "pools",
    "providers",
    "models",
    "tiers",
];
const JOBS_FIELDS: [&str; 9] =
    ["create", "poll", "cancel", "id", "status", "ended", "lease", "polls", "webhook"];
const PROVIDER_FIELDS: [&str; 1] = ["limits"];
pub const POOL_FIELDS: [&str; 15] = [
    "capacity",
    "preset",
    "targets",
    "file_sd",
    "dns",
    "dns_refresh",
    "prometheus",
    "selector",
    "authorization",
    "basic_auth",
    "tls",
    "slo",
    "output_token_cost",
    "unit",
    "signals",
];
const MODEL_FIELDS: [&str; 7] = ["pool", "size", "limits", "price", "output_max", "providers", "tiers"];
/// What is paid for; each for one, but tokens for a million.
pub const PRICE_FIELDS: [&str; 5] = ["input", "cached_input", "output", "image", "request"];
const TIER_FIELDS: [&str; 10] = [
    "priority",
    "weight",
    "guarantee",
    "safe",
    "ceiling",
    "tier_limits",
    "key_limits",
    "account_limits",
    "credit",
    "recharge",
];

/// The shape of a whole file. `None` when it is no mapping at all.
pub fn shape(root: Node, report: &mut Report) -> Option<PolicyFile> {
    let place = Place { span: 0..0, ..root.place.clone() };
    if matches!(root.kind, Kind::Null) {
        let help = "a policy has `product`, `pools`, `models` and `tiers`; see policies/default.yaml";
        report.error(&place, "the file is empty", help);
        return None;
    }
    let mut fields = Fields::open(root, "the file".to_owned(), place.clone(), &FILE_FIELDS, report)?;
    if !fields.schema() {
        return None;
    }
    let product = fields.required_text("product", "write `product: NAME`, a name of its own for each file");
    let interval = fields.text("interval");
    let window = fields.text("window");
    let span = fields.text("span");
    let cached_input = fields.text("cached_input");
    let pinned = fields.text("pinned");
    let streams = fields.text("streams");
    let time_zone = fields.text("time_zone");
    let jobs = fields.take("jobs").and_then(|(name, node)| self::jobs(&name, node, fields.report));
    let answers = fields.take("answers");
    let pools = fields.entries("pools", "pool", true);
    let providers = fields.entries("providers", "provider", false);
    let models = fields.entries("models", "model", true);
    let tiers = fields.entries("tiers", "tier", true);
    fields.close(&FILE_FIELDS);
    let pools = shapes(pools, report, pool);
    let providers = shapes(providers, report, provider);
    let models = shapes(models, report, model);
    // Where nothing is measured nothing is shared: no turn and no part has to be stated.
    let fixed = !pools.is_empty() && pools.iter().all(|(_, pool)| pool.capacity.is_some());
    let part = if fixed { Part::Fixed } else { Part::Whole };
    let tiers = shapes(tiers, report, |name, node, report| tier(name, node, part, report));
    Some(PolicyFile {
        place,
        product,
        interval,
        window,
        span,
        cached_input,
        pinned,
        streams,
        time_zone,
        jobs,
        answers,
        pools,
        providers,
        models,
        tiers,
    })
}

fn shapes<T>(
    entries: Vec<Named<Node>>,
    report: &mut Report,
    mut shape: impl FnMut(&Text, Node, &mut Report) -> Option<T>,
) -> Vec<Named<T>> {
    let shaped = |(name, node)| shape(&name, node, report).map(|shape| (name, shape));
    entries.into_iter().filter_map(shaped).collect()
}

fn jobs(name: &Text, node: Node, report: &mut Report) -> Option<JobsShape> {
    let mut fields = Fields::open(node, "`jobs`".to_owned(), name.place.clone(), &JOBS_FIELDS, report)?;
    let create = fields.texts("create");
    if create.is_none() && !fields.has("create") {
        fields.missing("create", "write where a job is created by POST: `create: /v1/predictions`");
    }
    let ended = fields.texts("ended");
    if ended.is_none() && !fields.has("ended") {
        fields.missing(
            "ended",
            "write the states of a job that is over: `ended: [succeeded, failed, canceled]`",
        );
    }
    let poll = "write where a job is looked at: `poll: /v1/predictions/{id}`";
    let lease = "write how long a job counts of which nothing is heard: `lease: 30m`";
    let shape = JobsShape {
        place: name.place.clone(),
        create,
        poll: fields.required_text("poll", poll),
        cancel: fields.text("cancel"),
        id: fields.text("id"),
        status: fields.text("status"),
        ended,
        lease: fields.required_text("lease", lease),
        polls: fields.text("polls"),
        webhook: fields.text("webhook"),
    };
    fields.close(&JOBS_FIELDS);
    Some(shape)
}

fn provider(name: &Text, node: Node, report: &mut Report) -> Option<ProviderShape> {
    let what = format!("provider `{}`", name.value);
    let mut fields = Fields::open(node, what, name.place.clone(), &PROVIDER_FIELDS, report)?;
    if !fields.has("limits") {
        fields.missing("limits", "write what it may be asked: `limits: [600 rpm, 1M tpm]`, or `unlimited`");
    }
    let limits = fields.texts("limits");
    fields.close(&PROVIDER_FIELDS);
    Some(ProviderShape { limits })
}

fn pool(name: &Text, node: Node, report: &mut Report) -> Option<PoolShape> {
    let what = format!("pool `{}`", name.value);
    let mut fields = Fields::open(node, what, name.place.clone(), &POOL_FIELDS, report)?;
    let stated = fields.places();
    let slo = match fields.has("capacity") {
        true => fields.text("slo"),
        false => {
            fields.required_text("slo", "state the time to first token that the pool promises: `slo: 1s`")
        }
    };
    let shape = PoolShape {
        stated,
        capacity: fields.text("capacity"),
        preset: fields.text("preset"),
        targets: fields.texts("targets"),
        file_sd: fields.texts("file_sd"),
        dns: fields.texts("dns"),
        dns_refresh: fields.text("dns_refresh"),
        prometheus: fields.texts("prometheus"),
        authorization: fields.group("authorization", &AUTHORIZATION_FIELDS),
        basic_auth: fields.group("basic_auth", &BASIC_AUTH_FIELDS),
        tls: fields.group("tls", &TLS_FIELDS),
        selector: fields.text("selector"),
        slo,
        output_token_cost: fields.text("output_token_cost"),
        unit: fields.text("unit"),
        signals: fields.signals(),
    };
    fields.close(&POOL_FIELDS);
    Some(shape)
}

fn model(name: &Text, node: Node, report: &mut Report) -> Option<ModelShape> {
    let what = format!("model `{}`", name.value);
    let mut fields = Fields::open(node, what, name.place.clone(), &MODEL_FIELDS, report)?;
    let pool = fields.required_text("pool", "name the pool that serves it: `{pool: NAME}`");
    let size = fields.text("size");
    let limits = fields.texts("limits");
    let price = fields.group("price", &PRICE_FIELDS);
    let output_max = fields.text("output_max");
    let providers = fields.texts("providers");
    let tiers = fields.entries("tiers", "tier", false);
    fields.close(&MODEL_FIELDS);
    let tiers = shapes(tiers, report, |name, node, report| tier(name, node, Part::Override, report));
    Some(ModelShape { pool, size, limits, price, output_max, providers, tiers })
}

/// How much of a tier has to be stated.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Whole,
    /// Nothing of it is shared: every pool of the file is fixed.
    Fixed,
    /// What differs for one model.
    Override,
}

fn tier(name: &Text, node: Node, part: Part, report: &mut Report) -> Option<TierShape> {
    let what = format!("tier `{}`", name.value);
    let mut fields = Fields::open(node, what, name.place.clone(), &TIER_FIELDS, report)?;
    let mut text = |field, needed, help| match needed {
        true => fields.required_text(field, help),
        false => fields.text(field),
    };
    let (shared, all) = (part == Part::Whole, part != Part::Override);
    let help = "write `priority: 1` for the tier that is served first, 2 for the next";
    let priority = text("priority", shared, help);
    let help = "write its share of what is left above the guarantees: `weight: 1`";
    let weight = text("weight", shared, help);
    let help = "write what it gets before anyone gets more: `guarantee: 0 tpm`";
    let guarantee = text("guarantee", shared, help);
    let help = "write the most it ever gets: `ceiling: 2M tpm` or `ceiling: unlimited`";
    let ceiling = text("ceiling", all, help);
    let key_limits = fields.texts("key_limits");
    if all && key_limits.is_none() && !fields.has("key_limits") {
        fields.missing("key_limits", "limit one key: `key_limits: [60 rpm, 5 concurrent]`, or `unlimited`");
    }
    let shape = TierShape {
        priority,
        weight,
        guarantee,
        safe: fields.text("safe"),
        ceiling,
        tier_limits: fields.texts("tier_limits"),
        key_limits,
        account_limits: fields.texts("account_limits"),
        credit: fields.text("credit"),
        recharge: fields.text("recharge"),
    };
    if let (Part::Override, Some(recharge)) = (part, &shape.recharge) {
        let help = "write it at the file's `tiers`: an account has one tier, whichever model it asks";
        fields.report.error(&recharge.place, "`recharge` of a tier under a model", help);
    }
    fields.close(&TIER_FIELDS);
    Some(shape)
}
