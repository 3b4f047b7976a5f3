//! `docs/law.md`, kept true: its terms are those of the code, in the files and with the defaults that
//! it names, and none is there without a reason. That each named test fails without its term is for
//! `tests/planted.sh` to run.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a broken promise ends the test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const SCENARIOS: &str = "tests/scenarios";

/// Terms that have a purpose and a test, but no scenario that is measurably worse without them and no
/// property: who proves one, or removes it, takes it from here.
const UNPROVEN: [&str; 3] = ["cubic", "full-batch", "settled-only"];

/// A row of either table.
struct Term {
    name: String,
    default: String,
    file: String,
    /// Of a planted bug, there is no figure.
    measured: Option<String>,
    kept: String,
    test: String,
}

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(root(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn bare(cell: &str) -> String {
    cell.trim().trim_matches('`').to_owned()
}

/// The terms that can be left out, and those whose absence is a planted bug.
fn document() -> [Vec<Term>; 2] {
    let text = read("docs/law.md");
    let (terms, bugs) = text.split_once("<!-- terms end -->").unwrap();
    let row = |line: &str| -> Option<Term> {
        let cells: Vec<&str> = line.strip_prefix("| `").map(|_| line.split('|').collect())?;
        let (name, default, file, measured, kept, test) = match cells.as_slice() {
            [_, name, default, file, _, measured, kept, test, _] => {
                (name, default, file, Some(measured), kept, test)
            }
            [_, name, default, file, _, kept, test, _] => (name, default, file, None, kept, test),
            _ => panic!("not the cells of a term: {line}"),
        };
        Some(Term {
            name: bare(name),
            default: default.trim().to_owned(),
            file: bare(file),
            measured: measured.map(|cell| cell.trim().to_owned()),
            kept: bare(kept),
            test: bare(test),
        })
    };
    [terms, bugs].map(|part| part.lines().filter_map(row).collect())
}

/// What the code calls `asks` with, and in which files.
fn asked(asks: &str) -> BTreeSet<(String, String)> {
    fn walk(directory: &Path, visit: &mut impl FnMut(&Path)) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, visit) } else { visit(&path) }
        }
    }
    let mut found = BTreeSet::new();
    walk(&root("src"), &mut |path| {
        let file = path.strip_prefix(root("")).unwrap().display().to_string();
        for rest in fs::read_to_string(path).unwrap().split(asks).skip(1) {
            found.insert((rest.split('"').next().unwrap().to_owned(), file.clone()));
        }
    });
    found
}

fn names(rows: &[Term]) -> BTreeSet<&str> {
    let names: BTreeSet<&str> = rows.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names.len(), rows.len(), "a term is listed twice");
    names
}

#[test]
fn the_terms_are_those_of_the_code() {
    let [terms, bugs] = document();
    let (left_out, planted) = (asked("without(\""), asked("bug(\""));
    let of = |asked: &BTreeSet<(String, String)>| -> BTreeSet<String> {
        asked.iter().map(|(name, _)| name.clone()).collect()
    };
    let listed = names(&terms);
    assert_eq!(of(&left_out), listed.iter().map(|name| (*name).to_owned()).collect());
    let planted = of(&planted);
    let unknown: Vec<&str> = names(&bugs).into_iter().filter(|name| !planted.contains(*name)).collect();
    assert!(unknown.is_empty(), "{unknown:?} is planted nowhere");
    let elsewhere = |row: &&Term| {
        let is_it = |(name, file): &(String, String)| *name == row.name && *file == row.file;
        !left_out.iter().any(is_it)
    };
    let elsewhere: Vec<&str> = terms.iter().filter(elsewhere).map(|row| row.name.as_str()).collect();
    assert!(elsewhere.is_empty(), "{elsewhere:?} is not asked for in the file that is named");
}

/// A number as the code or the document writes it.
fn number(text: &str) -> Option<f64> {
    let text = text.trim();
    let inside = |before: &str| text.strip_prefix(before)?.strip_suffix(')')?.replace('_', "").parse().ok();
    if let Some(seconds) = inside("Duration::from_secs(") {
        return Some(seconds);
    }
    if let Some(milliseconds) = inside("Duration::from_millis(") {
        return Some(milliseconds / 1e3);
    }
    if let Some(part) = text.strip_prefix("PPM / ") {
        return Some(1.0 / part.replace('_', "").parse::<f64>().ok()?);
    }
    text.replace('_', "").parse().ok()
}

/// What the code says of a constant: in the term's file, else wherever it is, if that agrees.
fn constant(name: &str, file: &str) -> Option<f64> {
    let before = format!("const {name}:");
    let mut files: Vec<String> = asked(&before).into_iter().map(|(_, file)| file).collect();
    files.sort_by_key(|declared| declared != file);
    files.dedup();
    let value = |file: &String| {
        let text = read(file);
        let line = text.lines().find(|line| line.contains(&before))?;
        number(line.split_once('=')?.1.trim_end_matches(';'))
    };
    let first = value(files.first()?)?;
    let agrees = files.first().is_some_and(|declared| declared == file)
        || files.iter().all(|file| value(file) == Some(first));
    agrees.then_some(first)
}

#[test]
fn defaults_are_those_of_the_code() {
    let [terms, bugs] = document();
    let mut compared = 0;
    for row in terms.iter().chain(&bugs) {
        let spans: Vec<&str> = row.default.split('`').collect();
        for pair in spans.chunks(2).map(|pair| pair.get(1)).zip(spans.chunks(2).skip(1)) {
            let (Some(name), Some(after)) = (pair.0, pair.1.first()) else { continue };
            let said = after.split_whitespace().next().and_then(|word| number(word.trim_matches([',', ';'])));
            let file = &row.file;
            assert!(said.is_some(), "{}: say what {name} is", row.name);
            assert_eq!(constant(name, file), said, "{}: `{name}` in {file}", row.name);
            compared += 1;
        }
    }
    assert!(compared > 30, "{compared}");
}

#[test]
fn every_term_has_a_reason_and_a_test() {
    let [terms, bugs] = document();
    let promises = read("tests/planted.rs");
    for row in terms.iter().chain(&bugs) {
        let Term { name, kept, test, .. } = row;
        let function = test.rsplit("::").next().unwrap();
        let file = asked(&format!("fn {function}()"));
        assert_eq!(file.len(), 1, "{name}: there is no test {test}");
        let measured = row.measured.as_deref().unwrap_or("-");
        if measured == "-" {
            let proven = kept != "-";
            assert!(
                proven != UNPROVEN.contains(&name.as_str()),
                "{name}: no scenario and no property needs it"
            );
            continue;
        }
        assert!(!UNPROVEN.contains(&name.as_str()), "{name} is proven by {measured}");
        let scenario = measured.strip_prefix('`').and_then(|cell| cell.split('`').next());
        let file = scenario.map(|scenario| root(SCENARIOS).join(format!("{scenario}.yaml")));
        assert!(file.is_some_and(|file| file.exists()), "{name}: {measured:?} names no scenario");
    }
    for Term { name, kept, .. } in &bugs {
        assert!(promises.contains(&format!("(\"{name}\", Promise::{kept})")), "{name} breaks no {kept}");
    }
}

/// The README shows some of the table, as it is.
#[test]
fn the_readme_shows_what_the_table_says() {
    let [terms, _] = document();
    let readme = read("README.md");
    let (_, after) = readme.split_once("<!-- ablation -->").unwrap();
    let (shown, _) = after.split_once("<!-- ablation end -->").unwrap();
    let rows: Vec<&str> = shown.lines().filter(|line| line.starts_with("| `")).collect();
    assert!(rows.len() >= 5);
    for line in rows {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, name, measured, _] = cells.as_slice() else { panic!("not two cells: {line}") };
        let row = terms.iter().find(|row| row.name == bare(name));
        assert_eq!(row.and_then(|row| row.measured.as_deref()), Some(*measured), "{name}");
    }
}
