//! A mistake in a policy, with its place, reason and remedy, drawn the way rustc draws one.
//!
//! The text is public interface: tests compare it byte for byte. Source lines are quoted, so
//! credentials inside URLs are masked wherever they appear.

use crate::bounds::QUOTED_LINE_BYTES_MAX;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{Annotation, AnnotationKind, Group, Level, Origin, Renderer, Snippet};

/// Width of a drawing when nobody says otherwise.
const WIDTH: usize = 120;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The policy is not taken.
    Error,
    /// The policy is taken, and somebody should look.
    Warning,
}

/// One policy file as it was read.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    pub name: String,
    pub text: String,
    /// Byte at which each line begins.
    lines: Vec<usize>,
}

/// Bytes of a source that a value came from.
#[derive(Clone, PartialEq, Eq)]
pub struct Place {
    pub source: Arc<Source>,
    pub span: Range<usize>,
}

/// A value and where it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed<T> {
    pub value: T,
    pub place: Place,
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    pub severity: Severity,
    /// File (or directory) the mistake is in.
    pub file: String,
    /// From 1; 0 when the mistake is not in a line (an unreadable file).
    pub line: usize,
    /// From 1, in characters; 0 when `line` is.
    pub column: usize,
    pub message: String,
    /// Why it is refused and what to write instead.
    pub help: String,
    place: Option<Place>,
    /// A second place that belongs to the mistake, with its label.
    pub(super) also: Option<(Place, String)>,
}

/// Every diagnostic drawn, and a last line that counts them.
pub fn render(diagnostics: &[Diagnostic], colour: bool) -> String {
    let mut text = String::new();
    for diagnostic in diagnostics {
        text.push_str(&diagnostic.render(colour));
        text.push_str("\n\n");
    }
    let count = |severity| diagnostics.iter().filter(|found| found.severity == severity).count();
    let plural = |count: usize, noun| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
    let counted: Vec<String> = [(Severity::Error, "error"), (Severity::Warning, "warning")]
        .into_iter()
        .filter(|(severity, _)| count(*severity) > 0)
        .map(|(severity, noun)| plural(count(severity), noun))
        .collect();
    if !counted.is_empty() {
        text.push_str(&counted.join(", "));
        text.push('\n');
    }
    text
}

// === impl Source ===

impl Source {
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        let text = text.into();
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let lines = std::iter::once(0).chain(breaks.map(|(at, _)| at + 1)).collect();
        Self { name: name.into(), text, lines }
    }

    /// Number from 1 of the line that holds a byte, where it begins, and the line.
    fn line(&self, at: usize) -> (usize, usize, &str) {
        let number = self.lines.partition_point(|start| *start <= at);
        let start = self.lines.get(number.saturating_sub(1)).copied().unwrap_or(0);
        let end = self.lines.get(number).map_or(self.text.len(), |next| next - 1);
        let line = self.text.get(start..end).unwrap_or_default();
        (number, start, line.strip_suffix('\r').unwrap_or(line))
    }
}

// === impl Place ===

impl Place {
    /// The text there.
    pub fn text(&self) -> &str {
        self.source.text.get(self.span.clone()).unwrap_or_default()
    }

    /// Line and column, both from 1.
    pub fn line_column(&self) -> (usize, usize) {
        let (number, start, line) = self.source.line(self.span.start);
        let before = line.get(..self.span.start.saturating_sub(start)).unwrap_or(line);
        (number, before.chars().count() + 1)
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (line, column) = self.line_column();
        write!(f, "{}:{line}:{column}", self.source.name)
    }
}

impl<T> Placed<T> {
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Placed<U> {
        Placed { value: change(self.value), place: self.place }
    }
}

// === impl Diagnostic ===

impl Diagnostic {
    pub(super) fn new(severity: Severity, place: Place, message: String, help: String) -> Self {
        let (line, column) = place.line_column();
        let file = place.source.name.clone();
        Self { severity, file, line, column, message, help, place: Some(place), also: None }
    }

    /// A mistake that is in no line: a file that cannot be read, a directory that is empty.
    pub fn of_file(file: &str, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            file: file.to_owned(),
            line: 0,
            column: 0,
            message: message.into(),
            help: help.into(),
            place: None,
            also: None,
        }
    }

    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// With caret and help; no trailing newline.
    pub fn render(&self, colour: bool) -> String {
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let also = self.also.as_ref();
        let quoted = self.place.as_ref().and_then(|place| Quoted::of(place, "", AnnotationKind::Primary));
        let second = also.and_then(|(place, label)| Quoted::of(place, label, AnnotationKind::Context));
        let mut group = Group::with_title(level.primary_title(one_line(&self.message)));
        let together = second.as_ref().filter(|second| {
            quoted.as_ref().is_some_and(|first| (first.file, first.line) == (second.file, second.line))
        });
        group = match &quoted {
            Some(quoted) => {
                group.element(quoted.snippet().annotations(together.map(|second| second.annotation())))
            }
            None if self.line == 0 => group.element(Origin::path(self.file.as_str())),
            None => group.element(Origin::path(self.file.as_str()).line(self.line).char_column(self.column)),
        };
        if let (Some(second), None) = (&second, together) {
            group = group.element(second.snippet());
        }
        let group = group.element(Level::HELP.message(one_line(&self.help)));
        renderer.decor_style(DecorStyle::Ascii).term_width(WIDTH).render(&[group])
    }
}

impl fmt::Display for Diagnostic {
    /// One line, for logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        let word = if self.is_error() { "error" } else { "warning" };
        write!(f, ": {word}: {} ({})", one_line(&self.message), one_line(&self.help))
    }
}

/// A source line as it may be shown.
struct Quoted<'a> {
    text: String,
    span: Range<usize>,
    line: usize,
    file: &'a str,
    label: &'a str,
    kind: AnnotationKind,
}

// === impl Quoted ===

impl<'a> Quoted<'a> {
    fn of(place: &'a Place, label: &'a str, kind: AnnotationKind) -> Option<Self> {
        let (number, start, line) = place.source.line(place.span.start);
        if line.len() > QUOTED_LINE_BYTES_MAX {
            return None;
        }
        let from = place.span.start.checked_sub(start)?.min(line.len());
        let to = place.span.end.checked_sub(start)?.clamp(from, line.len());
        Some(Self { text: masked(line), span: from..to, line: number, file: &place.source.name, label, kind })
    }

    fn snippet(&self) -> Snippet<'_, Annotation<'_>> {
        let source = Snippet::source(self.text.as_str()).line_start(self.line).path(self.file);
        source.annotation(self.annotation())
    }

    fn annotation(&self) -> Annotation<'_> {
        let annotation = self.kind.span(self.span.clone());
        if self.label.is_empty() { annotation } else { annotation.label(self.label) }
    }
}

/// Fields that hold a secret elsewhere; written into a policy, their value is not repeated.
const SECRET_FIELDS: [&str; 7] =
    ["password", "credentials", "bearer_token", "token", "secret", "client_secret", "api_key"];

/// The line with secrets starred out, byte for byte.
fn masked(line: &str) -> String {
    let field = |end: usize| {
        let name = line.get(..end).unwrap_or_default().trim_end_matches([' ', '\t', '"', '\'']);
        let begin = name.rfind(|c: char| !(c.is_alphanumeric() || c == '_')).map_or(0, |at| at + 1);
        name.get(begin..).is_some_and(|name| SECRET_FIELDS.contains(&name.to_ascii_lowercase().as_str()))
    };
    let colon = line.match_indices(':').map(|(at, _)| at).find(|at| field(*at));
    let (open, secret) = line.split_at(colon.map_or(line.len(), |at| at + 1));
    let star = |c: char| if c == ' ' { 1 } else { c.len_utf8() };
    let hidden: String =
        secret.chars().flat_map(|c| std::iter::repeat_n(if c == ' ' { ' ' } else { '*' }, star(c))).collect();
    masked_urls(open) + &hidden
}

/// The text with what stands between `://` and `@` starred out.
fn masked_urls(line: &str) -> String {
    let mut shown = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        shown.push_str(before);
        // Also behind a slash: whoever mistypes a password into a URL mistypes the URL too.
        let url = after.split([' ', '\t', '"', '\'']).next().unwrap_or_default();
        let secret = url.rfind('@').unwrap_or(0);
        shown.extend(std::iter::repeat_n('*', secret));
        rest = after.get(secret..).unwrap_or_default();
    }
    shown.push_str(rest);
    shown
}

/// Names come verbatim from files; a line break in one must not forge another line.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str, span: Range<usize>) -> Place {
        Place { source: Arc::new(Source::new("a.yaml", text)), span }
    }

    #[test]
    fn a_caret_stands_under_the_characters_meant_also_behind_wide_ones() {
        let place = place("a: 1\nÄé: x\n", 11..12);
        let found = [Diagnostic::new(Severity::Error, place, "no `x`".to_owned(), "write 1".to_owned())];
        assert_eq!((found[0].line, found[0].column), (2, 5));
        assert_eq!(
            found[0].render(false),
            "error: no `x`\n --> a.yaml:2:5\n  |\n2 | Äé: x\n  |     ^\n  |\n  = help: write 1"
        );
        assert_eq!(found[0].to_string(), "a.yaml:2:5: error: no `x` (write 1)");
    }

    #[test]
    fn credentials_in_a_quoted_line_are_masked_wherever_they_stand() {
        for text in [
            "u: [http://a:hunter2@h/x, http://hunter2@i]",
            "u: 'http://p/q:hunter2@h/x'",
            "http://é:hunter2@",
        ] {
            let shown = masked(text);
            assert_eq!(shown.len(), text.len());
            assert!(!shown.contains("hunter2"), "{shown}");
        }
        assert_eq!(masked("u: [http://h:1/x, https://i] # a@b"), "u: [http://h:1/x, https://i] # a@b");
        for text in [
            "  password: hunter2",
            "basic_auth: {username: a, \"Password\" : 'é, hunter2', x: hunter2}",
            "authorization: {credentials: http://a:hunter2@b}",
        ] {
            let shown = masked(text);
            assert_eq!(shown.len(), text.len());
            assert!(!shown.contains("hunter2"), "{shown}");
        }
        assert_eq!(masked("tls: {password_file: /run/p}"), "tls: {password_file: /run/p}");
    }

    #[test]
    fn a_name_cannot_forge_a_line() {
        let found = Diagnostic::of_file("a.yaml", "bad\nerror: forged", "-");
        assert_eq!(found.render(false).lines().filter(|line| line.starts_with("error")).count(), 1);
    }
}
