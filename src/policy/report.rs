//! Everything that is wrong with a directory, collected in one place and bounded.

use crate::bounds::CANDIDATES_MAX;
use crate::bounds::DIAGNOSTICS_MAX;
use crate::policy::diagnostic::{Diagnostic, Place, Severity};

/// Collects mistakes until a whole directory is read.
#[derive(Debug, Default)]
pub struct Report {
    found: Vec<Diagnostic>,
    dropped: usize,
}

/// The candidate that `name` was most likely meant to be.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if name.len() > 256 {
        return None;
    }
    let lower = name.to_lowercase();
    candidates
        .into_iter()
        .take(CANDIDATES_MAX)
        .filter(|candidate| candidate.len() <= 256)
        .map(|candidate| (strsim::damerau_levenshtein(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= 1.max(candidate.chars().count().min(lower.len()) / 3))
        .min()
        .map(|(_, candidate)| candidate)
}

/// "`a`, `b` and `c`".
pub fn listed(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
        None => String::new(),
    }
}

// === impl Report ===

impl Report {
    pub fn error(&mut self, place: &Place, message: impl Into<String>, help: impl Into<String>) {
        if !self.is_full() {
            self.push(Diagnostic::new(Severity::Error, place.clone(), message.into(), help.into()));
        } else {
            self.dropped += 1;
        }
    }

    pub fn warning(&mut self, place: &Place, message: impl Into<String>, help: impl Into<String>) {
        self.push(Diagnostic::new(Severity::Warning, place.clone(), message.into(), help.into()));
    }

    /// An error that takes two places to see, like a name that is used twice.
    pub fn error_and(
        &mut self,
        place: &Place,
        also: (&Place, &str),
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        let mut found = Diagnostic::new(Severity::Error, place.clone(), message.into(), help.into());
        found.also = Some((also.0.clone(), also.1.to_owned()));
        self.push(found);
    }

    pub fn push(&mut self, diagnostic: Diagnostic) {
        if self.found.len() < DIAGNOSTICS_MAX {
            self.found.push(diagnostic);
        } else if diagnostic.is_error() {
            self.dropped += 1;
        }
    }

    /// Further mistakes are only counted: no need to look for what they were meant to be.
    pub fn is_full(&self) -> bool {
        self.found.len() >= DIAGNOSTICS_MAX
    }

    pub fn has_errors(&self) -> bool {
        self.dropped > 0 || self.found.iter().any(Diagnostic::is_error)
    }

    /// By file and place, each mistake once.
    pub fn finish(mut self) -> Vec<Diagnostic> {
        let key = |found: &Diagnostic| {
            (found.file.clone(), found.line, found.column, found.severity, found.message.clone())
        };
        self.found.sort_by_cached_key(key);
        self.found.dedup_by(|a, b| key(a) == key(b));
        if self.dropped > 0 {
            self.found.push(Diagnostic::of_file(
                self.found.last().map_or("", |last| last.file.as_str()).to_owned().as_str(),
                format!("{} more mistakes are not shown", self.dropped),
                "correct the ones above and check again",
            ));
        }
        self.found
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::policy::diagnostic::Source;

    #[test]
    fn what_is_dropped_is_counted_and_still_an_error() {
        let place = Place { source: Arc::new(Source::new("a.yaml", "a: 1\n")), span: 0..1 };
        let mut report = Report::default();
        for at in 0..DIAGNOSTICS_MAX {
            report.warning(&place, format!("{at}"), "-");
        }
        assert!(!report.has_errors());
        report.error(&place, "late", "-");
        assert!(report.has_errors());
        assert!(report.finish().last().is_some_and(|last| last.message.starts_with("1 more")));
    }

    #[test]
    fn a_hint_is_near_or_absent() {
        assert_eq!(nearest("wieght", ["weight", "priority"]), Some("weight"));
        assert_eq!(nearest("VLLM", ["vllm"]), Some("vllm"));
        assert_eq!(nearest("banana", ["weight", "priority"]), None);
    }
}
