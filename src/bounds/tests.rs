//! The page of all bounds is the list, and no bound is none.

use std::fmt::Write;
use std::path::Path;

use super::*;

/// The page as it has to be.
fn page() -> String {
    let mut page = String::from(
        "# Bounds\n\nEverything that grows is bounded, and all bounds stand in `src/bounds.rs`, from which a \
         test makes this page\n(`TIDEGATE_REGENERATE=1 cargo test --lib bounds`).\n",
    );
    let headings = [
        (Whose::Policy, "Policy files"),
        (Whose::Sources, "Sources of signals"),
        (Whose::Wire, "Tables and usage reports"),
        (Whose::Controller, "Controller"),
        (Whose::Server, "The controller's server"),
        (Whose::Node, "Node"),
        (Whose::Ledger, "Ledger"),
        (Whose::Pages, "Metrics pages"),
        (Whose::Simulator, "Simulator"),
        (Whose::Process, "Processes"),
    ];
    for (whose, heading) in headings {
        write!(page, "\n## {heading}\n\n| Bound | Amount | Of | Beyond it |\n|---|---|---|---|\n").unwrap();
        for bound in BOUNDS.iter().filter(|bound| bound.of == whose) {
            let Bound { name, what, amount, beyond, .. } = bound;
            let what = what.trim().trim_end_matches('.');
            writeln!(page, "| `{name}` | {amount} | {what} | {beyond} |").unwrap();
        }
    }
    page
}

#[test]
fn the_page_lists_every_bound() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/bounds.md");
    if std::env::var_os("TIDEGATE_REGENERATE").is_some() {
        std::fs::write(&path, page()).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap();
    assert!(found == page(), "docs/bounds.md is old: TIDEGATE_REGENERATE=1 cargo test --lib bounds");
}

#[test]
fn no_bound_is_zero_and_none_is_said_twice() {
    let mut names: Vec<&str> = BOUNDS.iter().map(|bound| bound.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), BOUNDS.len());
    for bound in BOUNDS {
        let zero = match bound.amount {
            Amount::Bytes(amount) | Amount::Count(amount) => amount == 0,
            Amount::Time(time) => time.is_zero(),
        };
        assert!(!zero && !bound.beyond.is_empty(), "{}", bound.name);
    }
}
