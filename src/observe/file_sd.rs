//! Prometheus's `file_sd` format: a list of groups, each with `targets` and perhaps `labels`.
//!
//! Of the labels only `__scheme__` and `__metrics_path__` say where a page is; the rest is for
//! whoever stores series. A file with anything wrong in it is refused as a whole: half a list
//! would look like a fleet that shrank.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::bounds::TARGETS_MAX;
use crate::policy::file::{Kind, Node, read};
use crate::policy::report::Report;

/// One group of a file.
#[derive(Debug, Default, Deserialize)]
struct Group {
    #[serde(default)]
    targets: Vec<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

/// Where each target of a file has its page, as URLs or `host:port`.
///
/// # Errors
/// What is wrong with the file, and where.
pub fn targets(name: &str, bytes: &[u8]) -> Result<Vec<String>, String> {
    let groups: Vec<Group> = if name.ends_with(".json") {
        serde_json::from_slice(bytes).map_err(|error| error.to_string())?
    } else {
        yaml(name, bytes)?
    };
    let mut targets = Vec::new();
    for group in groups {
        let scheme = group.labels.get("__scheme__").map(String::as_str);
        let path = group.labels.get("__metrics_path__").map(String::as_str);
        for target in group.targets {
            let bare = !target.is_empty() && !target.contains(['/', '@', '?', '#', ' ']);
            let ported = target.rsplit_once(':').is_some_and(|(host, port)| {
                !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
            });
            if !bare || !ported {
                return Err("a target is not `host:port`".to_owned());
            }
            if targets.len() >= TARGETS_MAX {
                return Err(format!("more than {TARGETS_MAX} targets"));
            }
            targets.push(match (scheme, path) {
                (None, None) => target,
                (scheme, path) => format!("{}://{target}{}", scheme.unwrap_or("http"), path.unwrap_or("/")),
            });
        }
    }
    Ok(targets)
}

fn yaml(name: &str, bytes: &[u8]) -> Result<Vec<Group>, String> {
    let mut report = Report::default();
    let root = read(name, bytes, &mut report);
    if let Some(found) = report.finish().into_iter().find(|found| found.is_error()) {
        return Err(format!("line {}: {}", found.line, found.message));
    }
    let Some(Node { kind: Kind::List(groups), .. }) = root else {
        return Err("not a list of groups: `- targets: [HOST:PORT]`".to_owned());
    };
    groups.into_iter().map(group).collect()
}

fn group(node: Node) -> Result<Group, String> {
    let line = node.place.line_column().0;
    let fail = || format!("line {line}: a group has `targets`, a list, and perhaps `labels`");
    let Kind::Map(fields) = node.kind else { return Err(fail()) };
    let mut group = Group::default();
    for (name, node) in fields {
        match (name.value.as_str(), node.kind) {
            ("targets", Kind::List(items)) => {
                group.targets = items.into_iter().map(text).collect::<Option<_>>().ok_or_else(fail)?;
            }
            ("labels", Kind::Map(labels)) => {
                for (label, node) in labels {
                    group.labels.insert(label.value, text(node).ok_or_else(fail)?);
                }
            }
            ("labels", Kind::Null) => {}
            _ => return Err(fail()),
        }
    }
    Ok(group)
}

fn text(node: Node) -> Option<String> {
    match node.kind {
        Kind::Text(text) => Some(text),
        Kind::Null | Kind::List(_) | Kind::Map(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YAML: &str = "# written by hand\n- targets:\n  - 10.0.0.1:8000\n  - '[fd00::1]:8000'\n  labels:\n    env: prod\n\
        - targets: ['gpu-3:443']\n  labels: {__scheme__: https, __metrics_path__: /engines/0}\n- targets: []\n";
    const JSON: &str = r#"[{"targets":["10.0.0.1:8000","[fd00::1]:8000"],"labels":{"env":"prod"}},
        {"targets":["gpu-3:443"],"labels":{"__scheme__":"https","__metrics_path__":"/engines/0"}},{"targets":[]}]"#;

    #[test]
    fn both_forms_say_the_same() {
        let wanted = ["10.0.0.1:8000", "[fd00::1]:8000", "https://gpu-3:443/engines/0"];
        assert_eq!(targets("a.yml", YAML.as_bytes()).unwrap(), wanted);
        assert_eq!(targets("a.json", JSON.as_bytes()).unwrap(), wanted);
        assert_eq!(targets("a.json", b"[]").unwrap(), [""; 0]);
    }

    #[test]
    fn anything_wrong_is_refused_as_a_whole() {
        let bad = [
            ("a.json", "{}"),
            ("a.json", "[{\"targets\":[\"a:1\"]}"),
            ("a.json", "[{\"targets\":[\"a:1\", 7]}]"),
            ("a.json", "[{\"targets\":[\"http://a:1/\"]}]"),
            ("a.yml", ""),
            ("a.yml", "targets: [a:1]"),
            ("a.yml", "- targets: a:1"),
            ("a.yml", "- [a:1]"),
            ("a.yml", "- targets: [a]"),
            ("a.yml", "- targets: ['u:secret@a:1']"),
            ("a.yml", "- targets: ['a:0']"),
            ("a.yml", "- targets: ['a:1'\n"),
        ];
        for (name, text) in bad {
            let told = targets(name, text.as_bytes()).unwrap_err();
            assert!(!told.is_empty() && !told.contains("secret"), "{text}: {told}");
        }
    }

    #[test]
    fn cut_json_is_refused_and_cut_yaml_says_less_which_is_why_a_file_is_read_twice() {
        for (name, text) in [("a.yml", YAML), ("a.json", JSON)] {
            let all = targets(name, text.as_bytes()).unwrap();
            for end in 0..text.len() {
                if let Ok(some) = targets(name, &text.as_bytes()[..end]) {
                    // The last target may have lost digits of its port.
                    assert!(some.iter().rev().skip(1).all(|target| all.contains(target)), "{end}");
                    assert!(name == "a.yml" || some == all);
                }
            }
        }
    }
}
