//! Policy files: taken or refused, always for the same reasons and at a place.

use tidegate::observe::Round;
use tidegate::observe::select::Selectors;
use tidegate::policy::SourcePolicy;
use tidegate::policy::diagnostic::{Diagnostic, render};
use tidegate::policy::load::{Loaded, digest, load_bytes};

use super::loops::Loop;

/// Between the files of one directory: a byte that no text has.
const SEPARATOR: u8 = 0xff;
const FILES_MAX: usize = 4;

pub fn check(data: &[u8]) {
    let parts = data.splitn(FILES_MAX, |byte| *byte == SEPARATOR).enumerate();
    let files: Vec<(String, Vec<u8>)> =
        parts.map(|(at, bytes)| (format!("{at}.yaml"), bytes.to_vec())).collect();
    match (load_bytes(files.clone()), load_bytes(files.clone())) {
        (Ok(first), Ok(again)) => {
            assert_eq!(first.policy, again.policy);
            assert_eq!(first.warnings, again.warnings);
            assert!(first.warnings.iter().all(|warning| !warning.is_error()));
            assert_eq!(first.policy.digest, digest(&files));
            placed(&first.warnings, &files);
            good(first);
        }
        (Err(first), Err(again)) => {
            assert_eq!(first, again);
            assert!(first.iter().any(Diagnostic::is_error), "refused for no reason");
            placed(&first, &files);
        }
        _ => panic!("taken once and refused once"),
    }
}

/// Every mistake has a place that exists, a reason and a remedy, and prints nothing that a
/// terminal would obey.
fn placed(found: &[Diagnostic], files: &[(String, Vec<u8>)]) {
    for diagnostic in found {
        let (_, bytes) = files.iter().find(|(name, _)| *name == diagnostic.file).expect("a file that exists");
        let lines = 1 + bytes.iter().filter(|byte| **byte == b'\n').count();
        assert!(diagnostic.line <= lines, "line {} of {lines}", diagnostic.line);
        assert_eq!(diagnostic.line == 0, diagnostic.column == 0, "{diagnostic}");
        let line = bytes.split(|byte| *byte == b'\n').nth(diagnostic.line.saturating_sub(1));
        assert!(diagnostic.column <= line.expect("the line").len() + 1, "{diagnostic}");
        assert!(!diagnostic.message.trim().is_empty() && !diagnostic.help.trim().is_empty(), "{diagnostic}");
        assert!(!diagnostic.to_string().contains(char::is_control), "{:?}", diagnostic.to_string());
    }
    let text = render(found, false);
    let obeyed = text.chars().find(|c| c.is_control() && *c != '\n');
    assert_eq!(obeyed, None, "{text:?}");
    let errors = found.iter().filter(|found| found.is_error()).count();
    let drawn = text.lines().filter(|line| line.starts_with("error: ")).count();
    assert_eq!(errors, drawn, "{text}");
}

/// A policy that was taken is one that the loop can run.
fn good(loaded: Loaded) {
    let policy = loaded.policy;
    assert!(!policy.interval.is_zero() && !policy.pools.is_empty() && !policy.models.is_empty());
    for pool in policy.pools.values() {
        assert!(!pool.slo.is_zero());
        if matches!(pool.source, SourcePolicy::Direct { .. }) {
            Selectors::new(&pool.signals).expect("signals of a page are selectors");
        }
    }
    for model in policy.models.values() {
        assert!(policy.pools.contains_key(&model.pool) && !model.tiers.is_empty());
        for grant in model.tiers.values() {
            assert!(grant.weight.is_finite() && grant.weight > 0.0 && grant.priority > 0);
            let ceiling = grant.ceiling.as_f64();
            assert!(grant.guarantee as f64 <= ceiling && grant.safe as f64 <= ceiling);
        }
    }
    let rows: usize = policy.models.values().map(|model| model.tiers.len()).sum();
    let mut control = Loop::new(policy);
    for _ in 0..2 {
        assert_eq!(control.tick(&Round::default()).rows.len(), rows);
    }
}
