//! The fields of a policy file: which there are, which must be there, and of what kind.
//!
//! Everything wrong in a file is reported, so a field that is missing or of the wrong kind is
//! `None` here and `check` goes on with the rest.

use std::collections::BTreeMap;

use crate::bounds::NAME_BYTES_MAX;
use crate::bounds::POLICY_LIST_MAX;
use crate::policy::diagnostic::{Place, Placed};
use crate::policy::file::{Kind, Node};
use crate::policy::origin::{AUTHORIZATION_FIELDS, BASIC_AUTH_FIELDS, TLS_FIELDS};
use crate::policy::report::{Report, listed, nearest};

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
    pub pools: Vec<Named<PoolShape>>,
    pub models: Vec<Named<ModelShape>>,
    pub tiers: Vec<Named<TierShape>>,
}

#[derive(Debug)]
pub struct PoolShape {
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
}

/// The policy language that this version reads; a file that says nothing is written in it.
pub const SCHEMA: u64 = 1;

/// The fields of one mapping, taken one by one; what nobody took is unknown.
struct Fields<'a> {
    entries: Vec<(Text, Option<Node>)>,
    /// Names the mapping in messages.
    what: String,
    place: Place,
    report: &'a mut Report,
}

const FILE_FIELDS: [&str; 6] = ["schema", "product", "interval", "pools", "models", "tiers"];
const POOL_FIELDS: [&str; 14] = [
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
const MODEL_FIELDS: [&str; 2] = ["pool", "tiers"];
const TIER_FIELDS: [&str; 7] =
    ["priority", "weight", "guarantee", "safe", "ceiling", "tier_limits", "key_limits"];

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
    let pools = fields.entries("pools", "pool", true);
    let models = fields.entries("models", "model", true);
    let tiers = fields.entries("tiers", "tier", true);
    fields.close(&FILE_FIELDS);
    let pools = shapes(pools, report, pool);
    let models = shapes(models, report, model);
    let tiers = shapes(tiers, report, |name, node, report| tier(name, node, true, report));
    Some(PolicyFile { place, product, interval, pools, models, tiers })
}

fn shapes<T>(
    entries: Vec<Named<Node>>,
    report: &mut Report,
    mut shape: impl FnMut(&Text, Node, &mut Report) -> Option<T>,
) -> Vec<Named<T>> {
    let shaped = |(name, node)| shape(&name, node, report).map(|shape| (name, shape));
    entries.into_iter().filter_map(shaped).collect()
}

fn pool(name: &Text, node: Node, report: &mut Report) -> Option<PoolShape> {
    let what = format!("pool `{}`", name.value);
    let mut fields = Fields::open(node, what, name.place.clone(), &POOL_FIELDS, report)?;
    let shape = PoolShape {
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
        slo: fields.required_text("slo", "state the time to first token that the pool promises: `slo: 1s`"),
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
    let tiers = fields.entries("tiers", "tier", false);
    fields.close(&MODEL_FIELDS);
    let tiers = shapes(tiers, report, |name, node, report| tier(name, node, false, report));
    Some(ModelShape { pool, tiers })
}

fn tier(name: &Text, node: Node, whole: bool, report: &mut Report) -> Option<TierShape> {
    let what = format!("tier `{}`", name.value);
    let mut fields = Fields::open(node, what, name.place.clone(), &TIER_FIELDS, report)?;
    let mut text = |field, help| if whole { fields.required_text(field, help) } else { fields.text(field) };
    let priority = text("priority", "write `priority: 1` for the tier that is served first, 2 for the next");
    let weight = text("weight", "write its share of what is left above the guarantees: `weight: 1`");
    let guarantee = text("guarantee", "write what it gets before anyone gets more: `guarantee: 0 tpm`");
    let ceiling = text("ceiling", "write the most it ever gets: `ceiling: 2M tpm` or `ceiling: unlimited`");
    let key_limits = fields.texts("key_limits");
    if whole && key_limits.is_none() && !fields.has("key_limits") {
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
    };
    fields.close(&TIER_FIELDS);
    Some(shape)
}

/// A name may be any text that can be shown on one line and fits into a limit table.
fn check_name(name: &Text, report: &mut Report) {
    let bytes = name.value.len();
    if name.value.trim() != name.value || bytes == 0 {
        report.error(
            &name.place,
            "a name is empty or begins or ends with a space",
            "names are compared verbatim",
        );
    } else if bytes > NAME_BYTES_MAX {
        let message = format!("a name of {bytes} bytes");
        report.error(&name.place, message, format!("names have at most {NAME_BYTES_MAX} bytes"));
    } else if name.value.chars().any(char::is_control) {
        report.error(&name.place, "a name with a control character in it", "remove it");
    }
}

fn found(kind: &Kind) -> &'static str {
    match kind {
        Kind::Null => "nothing",
        Kind::Text(_) => "a value",
        Kind::List(_) => "a list",
        Kind::Map(_) => "a mapping",
    }
}

// === impl Fields ===

impl<'a> Fields<'a> {
    fn open(node: Node, what: String, place: Place, known: &[&str], report: &'a mut Report) -> Option<Self> {
        match node.kind {
            Kind::Map(entries) => {
                let entries = entries.into_iter().map(|(name, node)| (name, Some(node))).collect();
                Some(Self { entries, what, place, report })
            }
            kind => {
                let at = if matches!(kind, Kind::Null) { &place } else { &node.place };
                let message = format!("{what} is {}, not a mapping of fields", found(&kind));
                report.error(at, message, format!("its fields are {}", listed(known)));
                None
            }
        }
    }

    fn has(&self, field: &str) -> bool {
        self.entries.iter().any(|(name, _)| name.value == field)
    }

    /// Takes a field. One that is there without a value is reported: silence is no value.
    fn take(&mut self, field: &str) -> Option<(Text, Node)> {
        let (name, node) = self.entries.iter_mut().find(|(name, _)| name.value == field)?;
        let node = node.take()?;
        if matches!(node.kind, Kind::Null) {
            let message = format!("`{field}` of {} has no value", self.what);
            self.report.error(&name.place, message, "write one, or remove the field where it is optional");
            return None;
        }
        Some((name.clone(), node))
    }

    fn missing(&mut self, field: &str, help: &str) {
        self.report.error(&self.place, format!("{} has no `{field}`", self.what), help);
    }

    fn text(&mut self, field: &str) -> Option<Text> {
        let (_, node) = self.take(field)?;
        self.leaf(field, node, "one value")
    }

    fn required_text(&mut self, field: &str, help: &str) -> Option<Text> {
        if !self.has(field) {
            self.missing(field, help);
        }
        self.text(field)
    }

    /// Whether the file is written in a language that is read here. What a newer one adds is no
    /// mistake of its own, so nothing else of such a file is looked at.
    fn schema(&mut self) -> bool {
        let Some(schema) = self.text("schema") else { return true };
        let number = schema.value.parse::<u64>().ok().filter(|number| number.to_string() == schema.value);
        match number {
            Some(SCHEMA) => return true,
            Some(newer) if newer > SCHEMA => {
                let message = format!("`schema` is {newer}, this tidegate reads {SCHEMA}");
                let help = format!("run a tidegate that reads {newer}; until then the policy in force stays");
                self.report.error(&schema.place, message, help);
            }
            _ => {
                let message = format!("`schema` is `{}`, not a schema of the policy language", schema.value);
                self.report.error(&schema.place, message, format!("write `schema: {SCHEMA}`, or nothing"));
            }
        }
        false
    }

    fn leaf(&mut self, field: &str, node: Node, wanted: &str) -> Option<Text> {
        match node.kind {
            Kind::Text(value) => Some(Placed { value, place: node.place }),
            kind => {
                let message = format!("`{field}` of {} is {}", self.what, found(&kind));
                self.report.error(&node.place, message, format!("write {wanted}"));
                None
            }
        }
    }

    /// One value or a list of them.
    fn texts(&mut self, field: &str) -> Option<Placed<Vec<Text>>> {
        let (name, node) = self.take(field)?;
        self.list(field, &name, node)
    }

    fn list(&mut self, field: &str, name: &Text, node: Node) -> Option<Placed<Vec<Text>>> {
        let place = name.place.clone();
        let Kind::List(items) = node.kind else {
            let value = vec![self.leaf(field, node, "one value or a list of them")?];
            return Some(Placed { value, place });
        };
        if items.is_empty() || items.len() > POLICY_LIST_MAX {
            let message = format!("`{field}` of {} is a list of {} values", self.what, items.len());
            let help = match field {
                "key_limits" | "tier_limits" => "an empty list is no limit by accident; write `unlimited`",
                _ => "write at least one value and at most 1024",
            };
            self.report.error(&place, message, help);
            return None;
        }
        let value: Vec<Text> = items
            .into_iter()
            .filter_map(|item| self.leaf(field, item, "plain values into the list"))
            .collect();
        Some(Placed { value, place })
    }

    /// A mapping of plain values with fields of its own.
    fn group(&mut self, field: &str, known: &[&str]) -> Option<Group> {
        let (name, node) = self.take(field)?;
        let place = name.place;
        let what = format!("`{field}` of {}", self.what);
        let mut fields = Fields::open(node, what, place.clone(), known, self.report)?;
        let value =
            known.iter().filter_map(|field| Some(((*field).to_owned(), fields.text(field)?))).collect();
        fields.close(known);
        Some(Placed { value, place })
    }

    /// A mapping from names to whatever stands under them.
    fn entries(&mut self, field: &str, noun: &str, required: bool) -> Vec<Named<Node>> {
        if required && !self.has(field) {
            let help = format!("a policy has at least one {noun}; see policies/default.yaml");
            self.missing(field, &help);
        }
        let Some((name, node)) = self.take(field) else { return Vec::new() };
        match node.kind {
            Kind::Map(entries) if !entries.is_empty() => {
                entries.iter().for_each(|(name, _)| check_name(name, self.report));
                entries
            }
            kind => {
                let is = if matches!(kind, Kind::Map(_)) { "empty" } else { found(&kind) };
                let message = format!("`{field}` of {} is {is}", self.what);
                let help = format!("write at least one {noun} as `NAME: {{..}}`");
                self.report.error(&name.place, message, help);
                Vec::new()
            }
        }
    }

    fn signals(&mut self) -> Vec<Named<Placed<Vec<Text>>>> {
        let entries = self.entries("signals", "signal", false);
        let mut signals = Vec::with_capacity(entries.len());
        for (name, node) in entries {
            if matches!(node.kind, Kind::Null) {
                let message = format!("signal `{}` of {} has no value", name.value, self.what);
                self.report.error(&name.place, message, "write a metric, or remove the signal");
            } else if let Some(alternatives) = self.list(&name.value.clone(), &name, node) {
                signals.push((name, alternatives));
            }
        }
        signals
    }

    /// Reports what nobody took.
    fn close(self, known: &[&str]) {
        for (name, node) in &self.entries {
            if node.is_some() && !known.contains(&name.value.as_str()) {
                let message = format!("{} has no field `{}`", self.what, name.value);
                let candidates = known.iter().copied().filter(|_| !self.report.is_full());
                let help = match nearest(&name.value, candidates) {
                    // Before "did you mean": a secret is to be moved, not renamed.
                    _ if known.iter().any(|known| known.strip_suffix("_file") == Some(&name.value)) => {
                        format!(
                            "policy files are shown and copied: put it into a file and write `{}_file: PATH`",
                            name.value
                        )
                    }
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("its fields are {}", listed(known)),
                };
                self.report.error(&name.place, message, help);
            }
        }
    }
}
