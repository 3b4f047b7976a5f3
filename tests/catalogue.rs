//! The catalogue of faults, counted: every row in `tests/catalogue.tsv` has a test named after it
//! or a reason why not, and the output says which.
//!
//! A test names its rows at the front of its name (`fn f01_f02_...`), so that the list cannot go
//! stale on one side alone. Ignored tests do not count.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a broken promise ends the test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::path::PathBuf;

/// Letter of a row, the name of its group, and the highest number the whole catalogue has there.
const GROUPS: &[(char, &str, u32)] = &[
    ('A', "sources", 12),
    ('B', "time", 8),
    ('C', "policy files", 15),
    ('D', "publish, disk, process", 16),
    ('E', "leadership", 9),
    ('F', "distribution and nodes", 10),
    ('G', "shared counters", 10),
    ('H', "requests", 18),
    ('I', "abuse and security", 14),
    ('J', "durable counters", 6),
];

/// How many rows of each group are due. A row that is dropped from the list is missed.
const DUE: &[(char, usize)] =
    &[('A', 12), ('B', 7), ('C', 14), ('D', 15), ('F', 8), ('H', 17), ('I', 10), ('J', 6)];

struct Entry {
    id: String,
    title: String,
    state: State,
    note: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Tested,
    Partly,
    LeftOut,
    InWork,
}

/// Tests by row, from their names.
type Tests = BTreeMap<String, Vec<String>>;

// === impl Entry ===

impl Entry {
    fn parse(line: &str) -> Entry {
        let mut fields = line.split('\t');
        let mut next = || fields.next().unwrap_or_default().trim().to_owned();
        let (id, title, state, note) = (next(), next(), next(), next());
        let state = match state.as_str() {
            "tested" => State::Tested,
            "partly" => State::Partly,
            "left-out" => State::LeftOut,
            "in-work" => State::InWork,
            other => panic!("tests/catalogue.tsv: {id}: `{other}` is no state"),
        };
        Entry { id, title, state, note }
    }

    /// What is wrong with it, given the tests named after it.
    fn wrong(&self, tests: usize) -> Option<&'static str> {
        match (self.state, tests, self.note.is_empty()) {
            (State::Tested | State::Partly, 0, _) => Some("is said to be tested; no test is named after it"),
            (State::Tested, _, false) => Some("is tested and has a note: is it tested partly?"),
            (State::Partly | State::LeftOut, _, true) => Some("lacks the reason"),
            (State::LeftOut, 1.., _) => Some("is said to be left out; a test is named after it"),
            _ => None,
        }
    }
}

fn entries() -> Vec<Entry> {
    let text = fs::read_to_string(root().join("tests/catalogue.tsv")).unwrap();
    text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(Entry::parse).collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The name of a function that is a test: its attributes stand on the lines right above it.
fn tests_in(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let (mut is_test, mut ignored) = (false, false);
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[") {
            is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
            ignored |= line.starts_with("#[ignore");
            continue;
        }
        let function = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
        if let (Some(function), true, false) = (function, is_test, ignored) {
            found.extend(function.split(['(', '<']).next());
        }
        // A comment or the rest of an attribute over several lines does not part them.
        if function.is_some() || line.is_empty() || line == "}" {
            (is_test, ignored) = (false, false);
        }
    }
    found
}

/// The rows at the front of a test's name. Only the catalogue's own numbers: `f64_...` is no row.
fn rows_of(name: &str) -> Vec<String> {
    let row = |part: &str| {
        let (letter, number) = part.split_at_checked(1)?;
        let letter = letter.chars().next()?.to_ascii_uppercase();
        let highest = GROUPS.iter().find(|group| group.0 == letter)?.2;
        let known = number.len() == 2 && number.parse().is_ok_and(|at: u32| (1..=highest).contains(&at));
        known.then(|| format!("{letter}{number}"))
    };
    name.split('_').map_while(row).collect()
}

fn named_tests() -> Tests {
    let mut files = Vec::new();
    for dir in ["src", "tests"] {
        sources(&root().join(dir), &mut files);
    }
    files.sort();
    let mut tests = Tests::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for name in tests_in(&text) {
            for row in rows_of(name) {
                tests.entry(row).or_default().push(name.to_owned());
            }
        }
    }
    tests
}

fn say(what: &str, entries: &[Entry], state: State) {
    for entry in entries.iter().filter(|entry| entry.state == state) {
        println!("  {what} {} {}: {}", entry.id, entry.title, entry.note);
    }
}

#[test]
fn every_row_has_a_test_or_a_reason() {
    let (entries, tests) = (entries(), named_tests());
    let count = |id: &str| tests.get(id).map_or(0, Vec::len);
    for (letter, name, _) in GROUPS {
        let rows: Vec<&Entry> = entries.iter().filter(|entry| entry.id.starts_with(*letter)).collect();
        let tested = rows.iter().filter(|entry| count(&entry.id) > 0).count();
        let named: usize = rows.iter().map(|entry| count(&entry.id)).sum();
        let due = DUE.iter().find(|due| due.0 == *letter).map_or(0, |due| due.1);
        assert_eq!(rows.len(), due, "{letter}: rows in tests/catalogue.tsv");
        if due > 0 {
            println!("{letter} {name}: {tested} of {due} rows, {named} tests");
        }
    }
    let tested = entries.iter().filter(|entry| count(&entry.id) > 0).count();
    println!("catalogue: {tested} of {} rows have a test", entries.len());
    say("in part:", &entries, State::Partly);
    say("left out:", &entries, State::LeftOut);
    say("in work:", &entries, State::InWork);
    let beyond: Vec<&str> = tests
        .keys()
        .map(String::as_str)
        .filter(|row| !entries.iter().any(|entry| entry.id == *row))
        .collect();
    println!("  beyond the list: {}", beyond.join(", "));
    let wrong: Vec<String> = entries
        .iter()
        .filter_map(|entry| Some(format!("{} {}", entry.id, entry.wrong(count(&entry.id))?)))
        .collect();
    assert!(wrong.is_empty(), "tests/catalogue.tsv:\n{}", wrong.join("\n"));
}

/// Prefix of a vendor's rows, the vendor, and how many its document has.
const VENDORS: [(&str, &str, usize); 5] = [
    ("S0", "kimchi", 18),
    ("S1", "kimi", 12),
    ("S2", "predictions", 17),
    ("S3", "media", 10),
    ("X", "across the four", 4),
];

/// The vendors' rows at the front of a test's name, behind those of the catalogue of faults.
fn vendor_rows_of(name: &str) -> Vec<String> {
    let fault = |part: &&str| !rows_of(part).is_empty();
    let parts: Vec<&str> = name.split('_').skip_while(fault).collect();
    let mut rows = Vec::new();
    for pair in parts.chunks(2) {
        let [vendor, number] = pair else { break };
        let known = VENDORS.iter().find(|known| known.0.eq_ignore_ascii_case(vendor));
        let (Some(known), Ok(number)) = (known, number.parse::<usize>()) else { break };
        rows.push(format!("{}-{number}", known.0));
    }
    rows
}

#[test]
fn every_row_of_a_vendor_has_a_test_or_a_feature_that_meets_it() {
    let mut files = Vec::new();
    ["src", "tests"].into_iter().for_each(|dir| sources(&root().join(dir), &mut files));
    let texts: Vec<String> = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    let tested: std::collections::BTreeSet<String> =
        texts.iter().flat_map(|text| tests_in(text)).flat_map(vendor_rows_of).collect();
    let list = fs::read_to_string(root().join("tests/vendors.tsv")).unwrap();
    let rows: Vec<Vec<&str>> =
        list.lines().filter(|line| !line.starts_with('#')).map(|line| line.split('\t').collect()).collect();
    let mut wrong = Vec::new();
    for (prefix, vendor, due) in VENDORS {
        let mut met = 0;
        for row in (1..=due).map(|number| format!("{prefix}-{number}")) {
            let found = rows.iter().find(|found| found.first() == Some(&row.as_str()));
            match found.map(Vec::as_slice) {
                Some([_, "tested"]) if tested.contains(&row) => met += 1,
                Some([_, "partly", note]) if tested.contains(&row) && !note.is_empty() => {
                    println!("  partly: {row}: {note}");
                }
                Some([_, "feature", note]) if !note.is_empty() => println!("  without a test: {row}: {note}"),
                _ => wrong.push(row),
            }
        }
        println!("{vendor}: {met} of {due} rows");
    }
    assert!(wrong.is_empty(), "tests/vendors.tsv: {wrong:?}");
    assert_eq!(vendor_rows_of("h18_s0_16_x_3_at_once"), ["S0-16", "X-3"]);
}

#[test]
fn a_row_is_read_from_a_name_only_where_it_is_one() {
    assert_eq!(rows_of("f01_f02_a_node_follows"), ["F01", "F02"]);
    assert_eq!(rows_of("f64_is_a_number"), Vec::<String>::new());
    assert_eq!(rows_of("a_row_c03_in_the_middle"), Vec::<String>::new());
    let text = "#[test]\nfn a01_yes() {}\n\n#[test]\n#[ignore = \"long\"]\nfn a02_no() {}\n\
        fn a03_no() {}\n#[tokio::test(\n    flavor = \"x\"\n)]\nasync fn a04_yes() {}\n";
    assert_eq!(tests_in(text), ["a01_yes", "a04_yes"]);
    let untested = Entry::parse("A01\tdown\ttested");
    assert!(untested.wrong(0).is_some() && untested.wrong(1).is_none());
    let unreasoned = Entry::parse("A01\tdown\tleft-out\t");
    assert!(unreasoned.wrong(0).is_some());
}
