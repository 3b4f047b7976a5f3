//! Exposition pages: read as a slow reader reads them, or refused at a place; and whatever a
//! page says, the loop behind it stays sane.

use std::collections::BTreeMap;

use tidegate::observe::exposition::{Format, Sample, Samples, SyntaxError};
use tidegate::observe::select::Selectors;
use tidegate::observe::{Outcome, PoolRound, Reading, Round};
use tidegate::policy::preset;
use tidegate::unit::ReplicaId;

use super::loops::Loop;

/// Between the pages of one input.
const SEPARATOR: u8 = 0xff;
const PAGES_MAX: usize = 6;

type Plain = (String, Vec<(String, String)>, f64, Option<f64>);

/// The first byte says in which format the pages are, and which preset reads them.
pub fn check(data: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    let format = if first % 2 == 0 { Format::Text } else { Format::OpenMetrics };
    let name = preset::NAMES[usize::from(first / 2) % preset::NAMES.len()];
    let Some(known) = preset::direct(name) else { return };
    let selectors = Selectors::new(&known.signals).expect("a preset is selectors");
    let mut control = Loop::small();
    let pools: Vec<_> = control.controller.policy().pools.keys().cloned().collect();
    for (at, page) in rest.splitn(PAGES_MAX, |byte| *byte == SEPARATOR).enumerate() {
        read(page, format);
        let outcome = selectors.apply(page, format);
        if let Outcome::Up(signals) = &outcome {
            let stored = serde_json::to_string(signals).expect("signals");
            assert_eq!(serde_json::from_str(&stored).ok(), Some(*signals), "not finite: {signals:?}");
        }
        let reading = Reading { replica: ReplicaId::new(format!("r{}", at % 2)), at: control.now, outcome };
        let round = PoolRound { replicas: vec![reading], ..PoolRound::default() };
        let pools: BTreeMap<_, _> = pools.iter().map(|pool| (pool.clone(), round.clone())).collect();
        control.tick(&Round { pools, usage: Vec::new() });
    }
}

fn read(page: &[u8], format: Format) {
    let samples: Result<Vec<Sample<'_>>, SyntaxError> =
        Samples::new(page, format).and_then(|samples| samples.collect());
    let text = match samples {
        Err(error) => {
            let line = page.split(|byte| *byte == b'\n').nth(error.line - 1).expect("a line that exists");
            assert!((1..=line.len() + 1).contains(&error.column), "{error}");
            assert!(!error.reason.is_empty());
            return;
        }
        Ok(samples) => {
            let text = std::str::from_utf8(page).expect("a page that was taken is text");
            assert!(text.is_empty() || text.ends_with('\n'), "a page that was cut off was taken");
            let slow: Vec<Plain> = text.lines_of().filter_map(|line| plain(line, format)).collect();
            assert_eq!(slow.len(), samples.len());
            for (slow, sample) in slow.iter().zip(samples) {
                let labels: Vec<(String, String)> =
                    sample.labels.iter().map(|(name, value)| (name.to_owned(), value.into_owned())).collect();
                assert_eq!((slow.0.as_str(), &slow.1), (sample.name, &labels));
                assert_eq!(slow.2.to_bits(), sample.value.to_bits());
                assert_eq!(slow.3.map(f64::to_bits), sample.timestamp.map(f64::to_bits));
            }
            text
        }
    };
    // A page stays what it is when somebody appends a comment, and is refused when it is cut.
    if format == Format::Text && !text.is_empty() {
        let cut = text.strip_suffix('\n').unwrap_or(text);
        if !cut.is_empty() && !cut.ends_with('\n') {
            assert!(Samples::new(cut.as_bytes(), format).unwrap().any(|sample| sample.is_err()));
        }
    }
}

/// Lines by their line feeds alone: `str::lines` takes carriage returns away.
trait Lines {
    fn lines_of(&self) -> impl Iterator<Item = &str>;
}

// === impl Lines ===

impl Lines for str {
    fn lines_of(&self) -> impl Iterator<Item = &str> {
        self.split('\n')
    }
}

/// One line, character by character, believing that it is right. None: it is no sample.
fn plain(line: &str, format: Format) -> Option<Plain> {
    let mut rest: Vec<char> = line.chars().rev().collect();
    blank(&mut rest);
    if rest.last().is_none_or(|first| *first == '#') {
        return None;
    }
    let name = word(&mut rest, |c| c.is_ascii_alphanumeric() || c == '_' || c == ':');
    blank(&mut rest);
    let mut labels = Vec::new();
    if rest.last() == Some(&'{') {
        rest.pop();
        loop {
            blank(&mut rest);
            match rest.last().expect("a closing brace") {
                '}' => break,
                ',' => drop(rest.pop()),
                _ => labels.push(label(&mut rest)),
            }
        }
        rest.pop();
    }
    blank(&mut rest);
    let value = word(&mut rest, |c| c != ' ' && c != '\t').parse().expect("a value");
    blank(&mut rest);
    let stamp = match rest.last() {
        None | Some('#') => None,
        Some(_) => {
            let stated: f64 = word(&mut rest, |c| c != ' ' && c != '\t').parse().expect("a timestamp");
            Some(if format == Format::Text { stated / 1000.0 } else { stated })
        }
    };
    Some((name, labels, value, stamp))
}

fn label(rest: &mut Vec<char>) -> (String, String) {
    let name = word(rest, |c| c.is_ascii_alphanumeric() || c == '_');
    blank(rest);
    assert_eq!(rest.pop(), Some('='));
    blank(rest);
    assert_eq!(rest.pop(), Some('"'));
    let mut value = String::new();
    loop {
        match rest.pop().expect("a closing quote") {
            '"' => return (name, value),
            '\\' => match rest.pop().expect("an escape") {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
}

fn word(rest: &mut Vec<char>, part: impl Fn(char) -> bool) -> String {
    let mut word = String::new();
    while let Some(c) = rest.pop_if(|c| part(*c)) {
        word.push(c);
    }
    assert!(!word.is_empty(), "an empty word was taken");
    word
}

fn blank(rest: &mut Vec<char>) {
    while rest.pop_if(|c| *c == ' ' || *c == '\t').is_some() {}
}
