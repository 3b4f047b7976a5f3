//! From the bytes of one file to a tree in which every leaf knows its place.
//!
//! The tree keeps what was written, not what YAML makes of it: `010`, `1e3` and `no` stay text,
//! and the grammar of [`super::value`] alone says what a value means. The YAML crate is named
//! here and nowhere else in the policy.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::budget::BudgetBreach;
use serde_saphyr::options::DuplicateKeyPolicy;
use serde_saphyr::{Error, Location, MergeKeyPolicy, NonFiniteFloatPolicy, Options, Spanned};

use crate::bounds::POLICY_DEPTH_MAX;
use crate::bounds::POLICY_FILE_BYTES_MAX;
use crate::bounds::POLICY_NODES_MAX;
use crate::policy::diagnostic::{Diagnostic, Place, Placed, Source};
use crate::policy::report::Report;

/// A YAML node with its place.
#[derive(Clone, Debug)]
pub struct Node {
    pub place: Place,
    pub kind: Kind,
}

#[derive(Clone, Debug)]
pub enum Kind {
    /// Nothing, `~` or `null`.
    Null,
    /// A scalar, as it was written; quotes removed.
    Text(String),
    List(Vec<Node>),
    /// In the order of the file; a key that comes twice is reported and kept once.
    Map(Vec<(Placed<String>, Node)>),
}

/// Reads one file; `None` when it is no YAML at all. What is wrong goes into `report`.
pub fn read(name: &str, bytes: &[u8], report: &mut Report) -> Option<Node> {
    if bytes.len() > POLICY_FILE_BYTES_MAX {
        report.push(too_large(name));
        return None;
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let good = String::from_utf8_lossy(bytes.get(..error.valid_up_to()).unwrap_or_default());
            let end = good.len();
            let source = Arc::new(Source::new(name, good));
            let help = "a policy is UTF-8 text; save the file in that encoding";
            report.error(&Place { source, span: end..end }, "a byte that is not UTF-8", help);
            return None;
        }
    };
    let source = Arc::new(Source::new(name, text));
    if text.starts_with('\u{feff}') {
        let help = "save the file as UTF-8 without a BOM";
        report.error(&Place { source, span: 0..0 }, "the file begins with a byte order mark", help);
        return None;
    }
    match serde_saphyr::from_str_with_options::<Spanned<Raw>>(text, options()) {
        Ok(raw) => Some(place(raw, &source, report)),
        Err(error) => {
            let (message, help) = explain(&error);
            let at = error.location().map_or(0..0, |location| span(&location, &source.text));
            report.error(&Place { source, span: at }, message, help);
            None
        }
    }
}

/// Said before a byte of the file is read.
pub fn too_large(name: &str) -> Diagnostic {
    Diagnostic::of_file(
        name,
        format!("the file is larger than {POLICY_FILE_BYTES_MAX} bytes"),
        "it was not parsed; split the policy into several files, each naming its own `product`",
    )
}

fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: POLICY_DEPTH_MAX,
            flow_nesting_limit: POLICY_DEPTH_MAX,
            max_aliases: 0,
            max_anchors: 0,
            max_documents: 1,
            max_nodes: POLICY_NODES_MAX,
            max_events: 3 * POLICY_NODES_MAX,
            max_total_scalar_bytes: POLICY_FILE_BYTES_MAX,
            max_recorded_anchor_events: 0,
            max_recorded_anchor_bytes: 0,
            max_inclusion_depth: 0,
        },
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        merge_keys: MergeKeyPolicy::Error,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        reject_unsupported_tags: true,
        with_snippet: false,
    }
}

/// Reason and remedy of what the YAML reader refuses.
fn explain(error: &Error) -> (String, &'static str) {
    let said = error.to_string();
    let reason = said.split(" at line ").next().unwrap_or(&said).trim_end_matches(':');
    let too_deep = || (format!("nested deeper than {POLICY_DEPTH_MAX} levels"), "a policy needs 7");
    let aliases = || {
        let reason = "anchors and aliases are not part of the policy language";
        (reason.to_owned(), "write the value out where it is used")
    };
    let documents = || ("more than one document in the file".to_owned(), "one file is one product; split it");
    match error {
        Error::Budget { breach, .. } => match breach {
            BudgetBreach::Depth { .. } => too_deep(),
            BudgetBreach::Documents { .. } => documents(),
            BudgetBreach::Nodes { .. } | BudgetBreach::Events { .. } => {
                (format!("more than {POLICY_NODES_MAX} values in the file"), "split it into several products")
            }
            BudgetBreach::Anchors { .. } | BudgetBreach::Aliases { .. } => aliases(),
            _ if reason.contains("nchor") => aliases(),
            _ => (format!("not a policy: {reason}"), "split the file into several products"),
        },
        Error::UnknownAnchor { .. } => aliases(),
        Error::MultipleDocuments { .. } => documents(),
        Error::MergeKeyNotAllowed { .. } => (
            "merge keys are not part of the policy language".to_owned(),
            "write the fields out where they are used",
        ),
        Error::Eof { .. } => {
            ("the file is empty".to_owned(), "a policy has `product`, `pools`, `models` and `tiers`")
        }
        Error::NullIntoString { .. } => ("a key is empty".to_owned(), "write the name before the `:`"),
        _ if reason.contains("recursion limit") => too_deep(),
        _ if reason.contains("tag") => (reason.to_owned(), "remove it: a value means what its field says"),
        _ => (
            format!("not YAML: {reason}"),
            "look here and before: an open bracket or quote, or text with `: ` in it that needs quotes",
        ),
    }
}

/// A node before its place is known, as the YAML reader hands it over.
enum Raw {
    Null,
    /// A scalar that YAML takes for a number or a truth value; its text is in the file.
    Verbatim,
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

/// Bytes of a location; from line and column where the reader gives no bytes.
fn span(location: &Location, text: &str) -> Range<usize> {
    let in_text = |at: u64| usize::try_from(at).ok().filter(|at| text.is_char_boundary(*at));
    let start = location.span().byte_offset().and_then(in_text).unwrap_or_else(|| {
        let before = |count: u64| usize::try_from(count.saturating_sub(1)).unwrap_or(usize::MAX);
        let line: usize = text.split_inclusive('\n').take(before(location.line())).map(str::len).sum();
        let rest = text.get(line..).unwrap_or_default().lines().next().unwrap_or_default();
        line + rest.chars().take(before(location.column())).map(char::len_utf8).sum::<usize>()
    });
    let len = location.span().byte_len().unwrap_or(0);
    let end = in_text((start as u64).saturating_add(len)).unwrap_or(start);
    start..end.max(start)
}

fn place(raw: Spanned<Raw>, source: &Arc<Source>, report: &mut Report) -> Node {
    let place_of = |location: &Location| Place { source: source.clone(), span: span(location, &source.text) };
    let here = place_of(&raw.referenced);
    let kind = match raw.value {
        Raw::Null => Kind::Null,
        Raw::Verbatim => Kind::Text(here.text().trim().to_owned()),
        Raw::Text(text) => Kind::Text(text),
        Raw::List(items) => Kind::List(items.into_iter().map(|item| place(item, source, report)).collect()),
        Raw::Map(entries) => {
            let mut first = std::collections::BTreeMap::new();
            let mut kept = Vec::with_capacity(entries.len());
            for (key, value) in entries {
                let at = place_of(&key.referenced);
                let value = place(value, source, report);
                if let Some(earlier) = first.get(&key.value) {
                    let message = format!("`{}` is written twice", key.value);
                    let help = "keep one of them; neither wins over the other";
                    report.error_and(&at, (earlier, "first written here"), message, help);
                    continue;
                }
                first.insert(key.value.clone(), at.clone());
                kept.push((Placed { value: key.value, place: at }, value));
            }
            Kind::Map(kept)
        }
    };
    Node { place: here, kind }
}

// === impl Raw ===

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Raw;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping, a list or a value")
            }
            fn visit_unit<E>(self) -> Result<Raw, E> {
                Ok(Raw::Null)
            }
            fn visit_none<E>(self) -> Result<Raw, E> {
                Ok(Raw::Null)
            }
            fn visit_bool<E>(self, _: bool) -> Result<Raw, E> {
                Ok(Raw::Verbatim)
            }
            fn visit_i64<E>(self, _: i64) -> Result<Raw, E> {
                Ok(Raw::Verbatim)
            }
            fn visit_u64<E>(self, _: u64) -> Result<Raw, E> {
                Ok(Raw::Verbatim)
            }
            fn visit_i128<E>(self, _: i128) -> Result<Raw, E> {
                Ok(Raw::Verbatim)
            }
            fn visit_u128<E>(self, _: u128) -> Result<Raw, E> {
                Ok(Raw::Verbatim)
            }
            fn visit_f64<E>(self, _: f64) -> Result<Raw, E> {
                Ok(Raw::Verbatim)
            }
            fn visit_str<E>(self, text: &str) -> Result<Raw, E> {
                Ok(Raw::Text(text.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Raw::List(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Raw::Map(entries))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(text: &[u8]) -> Vec<String> {
        let mut report = Report::default();
        read("a.yaml", text, &mut report);
        report.finish().iter().map(ToString::to_string).collect()
    }

    fn good(text: &str) -> Node {
        let mut report = Report::default();
        let node = read("a.yaml", text.as_bytes(), &mut report).expect("parses");
        assert!(!report.has_errors());
        node
    }

    #[test]
    fn a_scalar_stays_what_was_written() {
        for text in
            ["010", "1e3", "0x10", "no", ".inf", "1_000", "-1", "18446744073709551616", "1.50", "600k tpm"]
        {
            for yaml in [format!("a: {text}"), format!("a: '{text}' # c"), format!("é: {text}  \nb: 1")] {
                let Kind::Map(entries) = good(&yaml).kind else { panic!("a map") };
                let Kind::Text(kept) = &entries[0].1.kind else { panic!("{yaml}: text") };
                assert_eq!(kept, text, "{yaml}");
                assert_eq!(entries[0].1.place.text().trim_matches('\''), text, "{yaml}");
            }
        }
    }

    #[test]
    fn nothing_is_null_however_it_is_written() {
        for text in ["a:", "a: ~", "a: null", "a: # c", "{a: }"] {
            let Kind::Map(entries) = good(text).kind else { panic!("a map") };
            assert!(matches!(entries[0].1.kind, Kind::Null), "{text}");
        }
    }

    #[test]
    fn hostile_files_are_refused_quickly() {
        let deep = "[".repeat(10_000);
        let deep_block: String = (0..200).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
        let wide = "a: 1\n".repeat(150_000);
        let bomb = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n".to_owned();
        let big = "#".repeat(POLICY_FILE_BYTES_MAX + 1);
        for text in [deep, deep_block, wide, bomb, big, "a: *b".to_owned(), "a: &b 1".to_owned()] {
            let found = errors(text.as_bytes());
            assert_eq!(found.len(), 1, "{}: {found:?}", text.get(..20).unwrap_or(&text));
        }
    }

    #[test]
    fn every_duplicate_is_reported() {
        let found = errors(b"a: 1\nb: 2\na: 3\nc: {d: 1, d: 2}\nb: 4\n");
        assert_eq!(found.len(), 3, "{found:?}");
    }

    #[test]
    fn no_bytes_panic() {
        let seeds: [&[u8]; 6] = [
            b"a: \"\\u00",
            b"\xef\xbb\xbfa: 1",
            b"\xff\xfe",
            b"%YAML 9.9\n---\n",
            b"? [a]\n: b",
            b"a: |\n  x\n y",
        ];
        for seed in seeds {
            for end in 0..=seed.len() {
                errors(&seed[..end]);
            }
        }
    }
}
