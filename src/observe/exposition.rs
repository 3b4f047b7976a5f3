//! Prometheus text format 0.0.4 and OpenMetrics text, page to samples, copying nothing.
//!
//! Our own, because the readers there are drop every name with a colon in it, and inference
//! servers put one in all of theirs. A page is hostile input: it is bounded, and a page that is
//! wrong anywhere is refused as a whole, with line and column, instead of being half believed.

use crate::bounds::LABELS_MAX;
use crate::bounds::PAGE_BYTES_MAX;
use crate::bounds::PAGE_SAMPLES_MAX;
use std::borrow::Cow;

/// Which grammar a page is written in; its content type says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Timestamps in milliseconds, every other comment ignored.
    #[default]
    Text,
    /// Timestamps in seconds, exemplars, and a final `# EOF` that proves the page is whole.
    OpenMetrics,
}

/// One line of a page.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample<'a> {
    pub name: &'a str,
    pub labels: Labels<'a>,
    pub value: f64,
    /// Seconds since the Unix epoch, where the page states one.
    pub timestamp: Option<f64>,
}

/// The labels of a sample, as written between the braces; checked when the sample was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Labels<'a>(&'a str);

/// The samples of a page. After an error nothing more comes.
#[derive(Clone, Debug)]
pub struct Samples<'a> {
    rest: &'a str,
    format: Format,
    line: usize,
    count: usize,
    end: End,
}

/// Why a page is not believed, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {reason}")]
pub struct SyntaxError {
    pub line: usize,
    /// In bytes, from 1.
    pub column: usize,
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    No,
    /// `# EOF` was read.
    Marked,
    Done,
}

/// A place in one line; errors are a remainder and a reason until the column is known.
type Step<'a, T> = Result<(T, &'a str), (&'a str, String)>;

// === impl Format ===

impl Format {
    pub fn of_content_type(content_type: Option<&str>) -> Format {
        let kind = content_type.and_then(|value| value.split(';').next()).map(str::trim);
        match kind {
            Some(kind) if kind.eq_ignore_ascii_case("application/openmetrics-text") => Format::OpenMetrics,
            _ => Format::Text,
        }
    }
}

// === impl Labels ===

impl<'a> Labels<'a> {
    /// Names and unescaped values, in the order of the page.
    pub fn iter(self) -> impl Iterator<Item = (&'a str, Cow<'a, str>)> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let (label, after) = label(skip_blank(rest)).ok()?;
            let after = skip_blank(after);
            rest = after.strip_prefix(',').unwrap_or(after);
            Some((label.0, unescape(label.1)))
        })
    }

    pub fn get(self, name: &str) -> Option<Cow<'a, str>> {
        self.iter().find(|(found, _)| *found == name).map(|(_, value)| value)
    }
}

// === impl Samples ===

impl<'a> Samples<'a> {
    /// # Errors
    /// A page that is too large or not UTF-8. Everything else comes from the iterator.
    pub fn new(page: &'a [u8], format: Format) -> Result<Samples<'a>, SyntaxError> {
        if page.len() > PAGE_BYTES_MAX {
            let reason = format!("the page has {} bytes, allowed are {PAGE_BYTES_MAX}", page.len());
            return Err(SyntaxError { line: 1, column: 1, reason });
        }
        let rest = std::str::from_utf8(page).map_err(|error| {
            let good = page.get(..error.valid_up_to()).unwrap_or_default();
            let line = 1 + good.iter().filter(|byte| **byte == b'\n').count();
            let column = 1 + good.iter().rev().take_while(|byte| **byte != b'\n').count();
            SyntaxError { line, column, reason: "not UTF-8".to_owned() }
        })?;
        Ok(Samples { rest, format, line: 0, count: 0, end: End::No })
    }

    fn fail(&mut self, column: usize, reason: impl Into<String>) -> SyntaxError {
        self.end = End::Done;
        SyntaxError { line: self.line.max(1), column, reason: reason.into() }
    }

    /// The next line without its line feed; none at the end of the page.
    fn line(&mut self) -> Option<Result<&'a str, SyntaxError>> {
        if self.rest.is_empty() {
            return None;
        }
        self.line += 1;
        let end = memchr::memchr(b'\n', self.rest.as_bytes());
        match end.and_then(|end| self.rest.split_at_checked(end)) {
            Some((line, rest)) => {
                self.rest = rest.get(1..).unwrap_or_default();
                Some(Ok(line))
            }
            None => {
                let column = self.rest.len() + 1;
                Some(Err(self.fail(column, "the page ends inside a line: it was cut off")))
            }
        }
    }

    fn at_end(&mut self) -> Option<SyntaxError> {
        let cut = self.format == Format::OpenMetrics && self.end == End::No;
        self.end = End::Done;
        cut.then(|| self.fail(1, "the page ends without `# EOF`: it was cut off"))
    }

    /// The next line that must be a sample, whole and without the blanks before it; unread.
    pub(super) fn content(&mut self) -> Option<Result<(&'a str, &'a str), SyntaxError>> {
        if self.end == End::Done {
            return None;
        }
        loop {
            let line = match self.line() {
                None => return self.at_end().map(Err),
                Some(Err(error)) => return Some(Err(error)),
                Some(Ok(line)) => line,
            };
            if self.end == End::Marked {
                return Some(Err(self.fail(1, "nothing may follow `# EOF`")));
            }
            let content = skip_blank(line);
            if content.starts_with('#') || content.is_empty() {
                if self.format == Format::OpenMetrics && line == "# EOF" {
                    self.end = End::Marked;
                }
                continue;
            }
            self.count += 1;
            if self.count > PAGE_SAMPLES_MAX {
                return Some(Err(self.fail(1, format!("more than {PAGE_SAMPLES_MAX} samples"))));
            }
            return Some(Ok((line, content)));
        }
    }

    /// What [`Samples::content`] gave, read.
    pub(super) fn read(&mut self, line: &str, content: &'a str) -> Result<Sample<'a>, SyntaxError> {
        sample(content, self.format).map_err(|(rest, reason)| {
            let column = line.len() - rest.len() + 1;
            self.fail(column, reason)
        })
    }
}

impl<'a> Iterator for Samples<'a> {
    type Item = Result<Sample<'a>, SyntaxError>;

    fn next(&mut self) -> Option<Self::Item> {
        let content = self.content()?;
        Some(content.and_then(|(line, content)| self.read(line, content)))
    }
}

fn sample(line: &str, format: Format) -> Result<Sample<'_>, (&str, String)> {
    let (name, rest) = name(line, true)?;
    let rest = skip_blank(rest);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inside) => labels(inside)?,
        None => (Labels::default(), rest),
    };
    let (value, rest) = number(skip_blank(rest), "a value")?;
    let rest = skip_blank(rest);
    let (timestamp, rest) = if rest.is_empty() || rest.starts_with('#') {
        (None, rest)
    } else {
        let (stated, rest) = number(rest, "a timestamp")?;
        let seconds = if format == Format::Text { stated / 1000.0 } else { stated };
        (Some(seconds), skip_blank(rest))
    };
    // An exemplar says nothing that is steered by.
    let exemplar = format == Format::OpenMetrics && rest.starts_with('#');
    if !rest.is_empty() && !exemplar {
        return Err((rest, "expected the end of the line".to_owned()));
    }
    Ok(Sample { name, labels, value, timestamp })
}

/// Everything up to the closing brace, checked label by label.
fn labels(inside: &str) -> Step<'_, Labels<'_>> {
    let mut rest = skip_blank(inside);
    let mut count = 0;
    loop {
        if let Some(after) = rest.strip_prefix('}') {
            let text = inside.get(..inside.len() - rest.len()).unwrap_or_default();
            return Ok((Labels(text), after));
        }
        count += 1;
        if count > LABELS_MAX {
            return Err((rest, format!("more than {LABELS_MAX} labels")));
        }
        let (_, after) = label(rest)?;
        rest = skip_blank(after);
        match rest.strip_prefix(',') {
            Some(after) => rest = skip_blank(after),
            None if rest.starts_with('}') => {}
            None => return Err((rest, "expected `,` or `}` after a label".to_owned())),
        }
    }
}

/// `name="value"`, the value still escaped.
fn label(text: &str) -> Step<'_, (&str, &str)> {
    let (name, rest) = name(text, false)?;
    let rest = skip_blank(rest);
    let Some(after) = rest.strip_prefix('=') else {
        return Err((rest, "expected `=` after a label name".to_owned()));
    };
    let after = skip_blank(after);
    let Some(body) = after.strip_prefix('"') else {
        return Err((after, "expected `\"` before a label value".to_owned()));
    };
    let mut escaped = false;
    for (at, byte) in body.bytes().enumerate() {
        match byte {
            _ if escaped => {
                if !matches!(byte, b'\\' | b'"' | b'n') {
                    let place = body.get(at..).unwrap_or_default();
                    return Err((place, "unknown escape; known are \\\\, \\\" and \\n".to_owned()));
                }
                escaped = false;
            }
            b'\\' => escaped = true,
            b'"' => {
                let (value, rest) = body.split_at_checked(at).unwrap_or_default();
                return Ok(((name, value), rest.get(1..).unwrap_or_default()));
            }
            _ => {}
        }
    }
    Err((after, "the label value has no closing `\"`".to_owned()))
}

/// A metric name (colons allowed) or a label name.
fn name(text: &str, colons: bool) -> Step<'_, &str> {
    let other = |byte: u8| !(byte.is_ascii_alphanumeric() || byte == b'_' || (colons && byte == b':'));
    let end = text.bytes().position(other).unwrap_or(text.len());
    let (name, rest) = text.split_at_checked(end).unwrap_or((text, ""));
    if name.is_empty() || name.starts_with(|first: char| first.is_ascii_digit()) {
        let what = if colons { "a metric name" } else { "a label name" };
        return Err((text, format!("expected {what}")));
    }
    Ok((name, rest))
}

fn number<'a>(text: &'a str, what: &str) -> Step<'a, f64> {
    let end = text.bytes().position(|byte| matches!(byte, b' ' | b'\t')).unwrap_or(text.len());
    let (word, rest) = text.split_at_checked(end).unwrap_or((text, ""));
    match fast_float2::parse(word) {
        Ok(value) => Ok((value, rest)),
        Err(_) if word.is_empty() => Err((text, format!("expected {what}"))),
        Err(_) => {
            let shown: String = word.chars().take(40).collect();
            Err((text, format!("expected {what}, found `{shown}`")))
        }
    }
}

fn skip_blank(text: &str) -> &str {
    text.trim_start_matches([' ', '\t'])
}

/// The value a label stands for.
fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains('\\') {
        return Cow::Borrowed(text);
    }
    let mut value = String::with_capacity(text.len());
    let mut escaped = false;
    for c in text.chars() {
        match (escaped, c) {
            (false, '\\') => escaped = true,
            (true, 'n') => {
                value.push('\n');
                escaped = false;
            }
            _ => {
                value.push(c);
                escaped = false;
            }
        }
    }
    Cow::Owned(value)
}

#[cfg(test)]
#[path = "exposition_tests.rs"]
mod tests;
