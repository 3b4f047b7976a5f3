//! Text with named placeholders, parsed once: what is not a known placeholder is never in one.
//!
//! `{word}` is a placeholder, every other brace is text, so that JSON is written as it is read.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::bounds::ANSWER_TEMPLATE_BYTES_MAX;

/// A body or a header's value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Template {
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Fact(Fact),
}

/// Why a text is no template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("there is no placeholder `{{{0}}}`")]
    Unknown(String),
    #[error("it has {0} bytes, allowed are {ANSWER_TEMPLATE_BYTES_MAX}")]
    TooLong(usize),
}

macro_rules! facts {
    ($($(#[$doc:meta])* $name:ident = $word:literal, $sample:literal;)*) => {
        /// What a placeholder stands for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Fact {$($(#[$doc])* $name,)*}

        impl Fact {
            pub const ALL: &[Fact] = &[$(Fact::$name,)*];

            /// As templates write it, without its braces.
            pub fn word(self) -> &'static str {
                match self {$(Fact::$name => $word,)*}
            }

            /// A value it may have: what a template is tried with before anyone depends on it.
            pub fn sample(self) -> &'static str {
                match self {$(Fact::$name => $sample,)*}
            }
        }
    };
}

facts! {
    /// As the client named it.
    Model = "model", "a \"model\"";
    Tier = "tier", "a \"tier\"";
    /// When to come back, RFC 3339, UTC, whole seconds.
    Until = "until", "2026-02-05T15:32:41Z";
    /// The same in seconds since 1970.
    UntilUnix = "until_unix", "1770305561";
    /// Whole seconds, as in the header.
    RetryAfter = "retry_after", "5";
    RetryAfterMs = "retry_after_ms", "4500";
    /// A number; of a budget in money, dollars.
    Limit = "limit", "5";
    /// What `limit` may become at most.
    Ceiling = "ceiling", "5";
    /// Requests or jobs that count now.
    Active = "active", "5";
    Remaining = "remaining", "0";
    /// What a request takes that is larger than the limit itself.
    Asked = "asked", "7";
    /// `rpm`, `tpm`, ..
    Dimension = "dimension", "rpm";
    /// `requests per minute`, ..
    DimensionText = "dimension_text", "requests per minute";
    /// The quota unit of RateLimit-Policy; of tokens and images a prefixed one, as none is registered.
    QuotaUnit = "quota_unit", "requests";
    /// `key`, `account`, `tier`, ..
    Scope = "scope", "key";
    /// Whose limit it is, in words.
    ScopeText = "scope_text", "your key";
    /// Which bound of a dynamic limit is active: `ceiling`, `guarantee`, `load`; or `static`, `override`.
    Bound = "bound", "load";
    /// Least cumulative recharge, dollars.
    Minimum = "minimum", "1.00";
    /// Until the limit is whole again, seconds.
    ResetSeconds = "reset_seconds", "15";
    /// The instant of that, seconds since 1970.
    ResetUnix = "reset_unix", "1705312800";
    /// The time until then as Go writes a duration: `6m0s`, `250ms`.
    ResetGo = "reset_go", "15s";
    /// The instant in RFC 3339.
    ResetRfc3339 = "reset_rfc3339", "2026-02-05T15:32:41Z";
}

/// How a value is put between a template's own text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Escape {
    Nothing,
    /// Inside a JSON string, or a number where there are no quotes.
    Json,
}

// === impl Template ===

impl Template {
    /// # Errors
    /// A word in braces that is no placeholder, or too many bytes.
    pub fn parse(text: &str) -> Result<Template, TemplateError> {
        if text.len() > ANSWER_TEMPLATE_BYTES_MAX {
            return Err(TemplateError::TooLong(text.len()));
        }
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            literal.push_str(before);
            rest = after;
            let Some(word) = word(after) else {
                literal.push('{');
                continue;
            };
            let fact = Fact::ALL.iter().find(|fact| fact.word() == word);
            let fact = fact.ok_or_else(|| TemplateError::Unknown(word.to_owned()))?;
            if !literal.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut literal)));
            }
            pieces.push(Piece::Fact(*fact));
            rest = after.get(word.len() + 1..).unwrap_or_default();
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(Piece::Text(literal));
        }
        Ok(Template { pieces })
    }

    /// What its placeholders stand for, in order.
    pub fn facts(&self) -> impl Iterator<Item = Fact> + '_ {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Fact(fact) => Some(*fact),
            Piece::Text(_) => None,
        })
    }

    /// The text between its placeholders.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Text(text) => Some(text.as_str()),
            Piece::Fact(_) => None,
        })
    }

    /// Appends the text, with `value` asked for each placeholder.
    pub fn render(&self, escape: Escape, into: &mut String, mut value: impl FnMut(Fact, &mut String)) {
        for piece in &self.pieces {
            match (piece, escape) {
                (Piece::Text(text), _) => into.push_str(text),
                (Piece::Fact(fact), Escape::Nothing) => value(*fact, into),
                (Piece::Fact(fact), Escape::Json) => {
                    let mut plain = String::new();
                    value(*fact, &mut plain);
                    let quoted = serde_json::Value::String(plain).to_string();
                    into.push_str(quoted.get(1..quoted.len() - 1).unwrap_or_default());
                }
            }
        }
    }
}

/// The word that a closing brace follows.
fn word(text: &str) -> Option<&str> {
    let (word, _) = text.split_once('}')?;
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    (!word.is_empty() && word.bytes().all(plain)).then_some(word)
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pieces.iter().try_for_each(|piece| match piece {
            Piece::Text(text) => f.write_str(text),
            Piece::Fact(fact) => write!(f, "{{{}}}", fact.word()),
        })
    }
}

impl TryFrom<String> for Template {
    type Error = TemplateError;
    fn try_from(text: String) -> Result<Template, TemplateError> {
        Template::parse(&text)
    }
}

impl From<Template> for String {
    fn from(template: Template) -> String {
        template.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_of_json_are_text_and_words_in_braces_are_placeholders() {
        let text = r#"{"a":{"b":{limit},"m":"{model}"},"c":{}} {} { x } {A} {"#;
        let template = Template::parse(text).unwrap();
        assert_eq!(template.facts().collect::<Vec<_>>(), [Fact::Limit, Fact::Model]);
        assert_eq!(template.to_string(), text);
        let mut shown = String::new();
        template.render(Escape::Json, &mut shown, |fact, into| into.push_str(fact.sample()));
        assert_eq!(shown, r#"{"a":{"b":5,"m":"a \"model\""},"c":{}} {} { x } {A} {"#);
        let wire = serde_json::to_string(&template).unwrap();
        assert_eq!(serde_json::from_str::<Template>(&wire).unwrap(), template);
    }

    #[test]
    fn an_unknown_word_and_a_text_too_long_are_refused() {
        let unknown = Template::parse("wait {seconds} s").unwrap_err();
        assert_eq!(unknown.to_string(), "there is no placeholder `{seconds}`");
        let long = Template::parse(&"x".repeat(ANSWER_TEMPLATE_BYTES_MAX + 1)).unwrap_err();
        assert_eq!(long, TemplateError::TooLong(ANSWER_TEMPLATE_BYTES_MAX + 1));
        assert!(Template::parse(&"x".repeat(ANSWER_TEMPLATE_BYTES_MAX)).is_ok());
        // Each is found once.
        for (at, fact) in Fact::ALL.iter().enumerate() {
            assert_eq!(Fact::ALL.iter().position(|other| other.word() == fact.word()), Some(at));
            assert_eq!(Template::parse(&format!("{{{}}}", fact.word())).unwrap().facts().next(), Some(*fact));
        }
    }
}
