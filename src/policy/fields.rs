//! The fields of one mapping of a policy file, taken one by one: which is missing, of the wrong
//! kind or unknown is said here, for every mapping the same way.

use std::collections::BTreeMap;

use crate::bounds::NAME_BYTES_MAX;
use crate::bounds::POLICY_LIST_MAX;
use crate::policy::diagnostic::{Place, Placed};
use crate::policy::file::{Kind, Node};
use crate::policy::report::{Report, listed, nearest};
use crate::policy::shape::Group;
pub(crate) use crate::policy::shape::{Named, Text};

/// The policy language that this version reads; a file that says nothing is written in it.
const SCHEMA: u64 = 1;

/// The fields of one mapping, taken one by one; what nobody took is unknown.
pub(crate) struct Fields<'a> {
    entries: Vec<(Text, Option<Node>)>,
    /// Names the mapping in messages.
    what: String,
    place: Place,
    pub(crate) report: &'a mut Report,
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
    pub(crate) fn open(
        node: Node,
        what: String,
        place: Place,
        known: &[&str],
        report: &'a mut Report,
    ) -> Option<Self> {
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

    pub(crate) fn has(&self, field: &str) -> bool {
        self.entries.iter().any(|(name, _)| name.value == field)
    }

    /// Where each field is.
    pub(crate) fn places(&self) -> BTreeMap<String, Place> {
        self.entries.iter().map(|(name, _)| (name.value.clone(), name.place.clone())).collect()
    }

    /// Takes a field. One that is there without a value is reported: silence is no value.
    pub(crate) fn take(&mut self, field: &str) -> Option<(Text, Node)> {
        let (name, node) = self.entries.iter_mut().find(|(name, _)| name.value == field)?;
        let node = node.take()?;
        if matches!(node.kind, Kind::Null) {
            let message = format!("`{field}` of {} has no value", self.what);
            self.report.error(&name.place, message, "write one, or remove the field where it is optional");
            return None;
        }
        Some((name.clone(), node))
    }

    pub(crate) fn missing(&mut self, field: &str, help: &str) {
        self.report.error(&self.place, format!("{} has no `{field}`", self.what), help);
    }

    /// Of the mapping as a whole.
    pub(crate) fn complain(&mut self, message: &str, help: &str) {
        self.report.error(&self.place, message, help);
    }

    pub(crate) fn text(&mut self, field: &str) -> Option<Text> {
        let (_, node) = self.take(field)?;
        self.leaf(field, node, "one value")
    }

    pub(crate) fn required_text(&mut self, field: &str, help: &str) -> Option<Text> {
        if !self.has(field) {
            self.missing(field, help);
        }
        self.text(field)
    }

    /// Whether the file is written in a language that is read here. What a newer one adds is no
    /// mistake of its own, so nothing else of such a file is looked at.
    pub(crate) fn schema(&mut self) -> bool {
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

    pub(crate) fn leaf(&mut self, field: &str, node: Node, wanted: &str) -> Option<Text> {
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
    pub(crate) fn texts(&mut self, field: &str) -> Option<Placed<Vec<Text>>> {
        let (name, node) = self.take(field)?;
        self.list(field, &name, node)
    }

    pub(crate) fn list(&mut self, field: &str, name: &Text, node: Node) -> Option<Placed<Vec<Text>>> {
        let place = name.place.clone();
        let Kind::List(items) = node.kind else {
            let value = vec![self.leaf(field, node, "one value or a list of them")?];
            return Some(Placed { value, place });
        };
        if items.is_empty() || items.len() > POLICY_LIST_MAX {
            let message = format!("`{field}` of {} is a list of {} values", self.what, items.len());
            let help = match field {
                "key_limits" | "tier_limits" | "account_limits" | "limits" => {
                    "an empty list is no limit by accident; write `unlimited`"
                }
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
    pub(crate) fn group(&mut self, field: &str, known: &[&str]) -> Option<Group> {
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
    pub(crate) fn entries(&mut self, field: &str, noun: &str, required: bool) -> Vec<Named<Node>> {
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

    pub(crate) fn signals(&mut self) -> Vec<Named<Placed<Vec<Text>>>> {
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
    pub(crate) fn close(self, known: &[&str]) {
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
