//! What a provider's refusal says in its body: codes, a text, and at some when to come again.

use std::time::Duration;

use serde_json::Value;

use crate::bounds::PROVIDER_TEXT_MAX;
use crate::enforce::provider::reset;

/// Of a body that need not be JSON. All of it in small letters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Words {
    /// Types, codes, statuses and reasons.
    pub codes: Vec<String>,
    pub text: String,
    /// Google's names of the quotas that were violated.
    pub quotas: Vec<String>,
    /// Google's `RetryInfo`.
    pub retry: Option<Duration>,
}

/// Where an error's words are, at the top of the body and in its `error`.
const CODES: [&str; 7] = ["code", "type", "status", "error_type", "__type", "reason", "title"];
const TEXTS: [&str; 4] = ["message", "error", "detail", "error_description"];

// === impl Words ===

impl Words {
    pub fn read(body: &[u8]) -> Words {
        let mut words = Words::default();
        match serde_json::from_slice::<Value>(body) {
            // Google's streams begin with an array.
            Ok(Value::Array(list)) => list.first().into_iter().for_each(|first| words.take(first)),
            Ok(value) => words.take(&value),
            Err(_) => words.say(&String::from_utf8_lossy(body)),
        }
        words
    }

    pub fn has_code(&self, codes: &[&str]) -> bool {
        self.codes.iter().any(|code| codes.contains(&code.as_str()))
    }

    pub fn says(&self, phrases: &[&str]) -> bool {
        phrases.iter().any(|phrase| self.text.contains(phrase))
    }

    /// As a word of its own, whatever surrounds it.
    pub fn names(&self, words: &[&str]) -> bool {
        self.text.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| words.contains(&word))
    }

    /// "Please try again in 7.66s", "Please retry after 6 seconds."
    pub fn wait(&self, unix_ms: u64) -> Option<Duration> {
        let after = ["try again in ", "retry after ", "retry in "];
        let rest = after.iter().find_map(|phrase| self.text.split_once(phrase)).map(|(_, rest)| rest)?;
        let mut words = rest.split_whitespace();
        let first = words.next()?.trim_end_matches(['.', ',', ';', ')']);
        let found = reset::wait(first, unix_ms)?;
        let counted = first.bytes().all(|byte| byte.is_ascii_digit());
        let factor = match words.next() {
            Some(unit) if counted && unit.starts_with("minute") => 60,
            Some(unit) if counted && unit.starts_with("hour") => 3_600,
            _ => 1,
        };
        Some(found.saturating_mul(factor))
    }

    fn take(&mut self, body: &Value) {
        for place in [Some(body), body.get("error")].into_iter().flatten() {
            for code in CODES.iter().filter_map(|name| place.get(name)?.as_str()) {
                self.codes.push(code.to_ascii_lowercase());
            }
            for text in TEXTS.iter().filter_map(|name| place.get(name)?.as_str()) {
                self.say(text);
            }
            let details = place.get("details").and_then(Value::as_array);
            details.into_iter().flatten().for_each(|detail| self.detail(detail));
        }
    }

    /// One of Google's error details.
    fn detail(&mut self, detail: &Value) {
        if let Some(reason) = detail.get("reason").and_then(Value::as_str) {
            self.codes.push(reason.to_ascii_lowercase());
        }
        if let Some(delay) = detail.get("retryDelay").and_then(Value::as_str) {
            // A duration as protobuf writes it; no time is meant.
            self.retry = self.retry.max(reset::wait(delay, 0));
        }
        let violations = detail.get("violations").and_then(Value::as_array);
        for quota in
            violations.into_iter().flatten().filter_map(|violation| violation.get("quotaId")?.as_str())
        {
            self.quotas.push(quota.to_ascii_lowercase());
        }
    }

    fn say(&mut self, text: &str) {
        if !self.text.is_empty() {
            self.text.push(' ');
        }
        let room = PROVIDER_TEXT_MAX.saturating_sub(self.text.len());
        self.text.extend(text.chars().take(room).map(|c| c.to_ascii_lowercase()));
    }
}
