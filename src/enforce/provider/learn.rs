//! One answer of a provider, and what it teaches: whether it served, why not, until when, and how
//! its limits stand.
//!
//! Only a refusal's body is looked into, never that of a request fault (4xx): those repeat what the
//! client wrote, and a client must not be able to talk a provider away from everybody.

use std::time::Duration;

use http::{HeaderMap, StatusCode};

use crate::enforce::provider::error::Words;
use crate::enforce::provider::fields::{self, Reading};
use crate::enforce::provider::reset;
use crate::wire::usage::{LimitWindow, Quantity};

/// What came back. `body` is what was read of it, at least its beginning.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    pub status: StatusCode,
    pub headers: &'a HeaderMap,
    pub body: &'a [u8],
    /// Milliseconds since 1970, for a provider that does not tell its own time.
    pub unix_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lesson {
    pub class: Class,
    /// Until when, where that was said.
    pub wait: Option<Duration>,
    pub readings: Vec<Reading>,
}

/// What the answer says of the provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    Served,
    /// Our own limit at the provider, of a short window.
    Quota,
    /// Our own limit of a day or longer, for this model.
    Period,
    /// No money: whatever the model.
    Money,
    /// The provider has no room for anybody.
    Overload,
    /// It broke.
    Failure,
    /// The request is at fault: says nothing of the provider.
    Fault,
}

const MONEY_CODES: [&str; 11] = [
    "insufficient_quota",
    "credit_balance_exhausted",
    "enforced_spend_limit_reached",
    "billing_hard_limit_reached",
    "billing_not_active",
    "exceeded_current_quota_error",
    "insufficient_balance",
    "insufficient_credits",
    "insufficient_user_quota",
    "spend_limit_exceeded",
    "payment_required",
];
const MONEY_TEXTS: [&str; 6] = [
    "insufficient_quota",
    "insufficient balance",
    "insufficient credit",
    "credit balance",
    "spend limit",
    "spending limit",
];
const OVERLOAD_CODES: [&str; 6] = [
    "overloaded_error",
    "engine_overloaded_error",
    "capacity_exceeded",
    "model_overloaded",
    "server_overloaded",
    "modelnotreadyexception",
];
/// Moonshot, Azure, Vertex (whose shared quota has no number), and the words all use.
const OVERLOAD_TEXTS: [&str; 5] = [
    "overloaded",
    "high demand",
    "resource exhausted, please try again",
    "at capacity",
    "model is not ready",
];
const LONG_TEXTS: [&str; 4] = ["per day", "per month", "daily", "monthly"];
const LONG_WORDS: [&str; 3] = ["rpd", "tpd", "asd"];

/// What an answer teaches.
pub fn learn(answer: &Answer<'_>) -> Lesson {
    let header = |name: &str| answer.headers.get(name).and_then(|value| value.to_str().ok());
    // Absolute times are the provider's own; its clock may be another than ours.
    let unix_ms = header("date").and_then(reset::http_date).unwrap_or(answer.unix_ms);
    let readings = fields::readings(answer.headers, unix_ms);
    let mut words = Words::default();
    if refuses(answer.status) {
        words = Words::read(answer.body);
        // Bedrock: `ThrottlingException:http://internal.amazon.com/...`
        let named = header("x-amzn-errortype").and_then(|name| name.split([':', '#']).next());
        words.codes.extend(named.map(str::to_ascii_lowercase));
    }
    let class = classify(answer.status, &words, &readings);
    let stated = header("retry-after-ms")
        .and_then(|value| value.trim().parse().ok())
        .map(Duration::from_millis)
        .or_else(|| header("retry-after").and_then(|value| reset::wait(value, unix_ms)))
        .map(|wait| wait.min(crate::bounds::PROVIDER_WAIT_MAX));
    let wait = match class {
        Class::Served => pause(&readings),
        Class::Fault => None,
        // What Google says of a day's quota is when to repeat the request, not when the day ends.
        Class::Period if !words.quotas.is_empty() => {
            Some(stated.or(words.retry).unwrap_or_default().max(crate::bounds::PROVIDER_PARK))
        }
        _ => stated.or(words.retry).or_else(|| over(class, &readings, &words, unix_ms)),
    };
    Lesson { class, wait, readings }
}

/// Statuses whose body is the provider's own text.
pub fn refuses(status: StatusCode) -> bool {
    matches!(status.as_u16(), 402 | 408 | 429 | 498) || status.is_server_error()
}

fn classify(status: StatusCode, words: &Words, readings: &[Reading]) -> Class {
    match status.as_u16() {
        402 => Class::Money,
        429 => limited(words, readings),
        498 | 503 | 529 => Class::Overload,
        408 | 500.. => Class::Failure,
        400.. => Class::Fault,
        _ => Class::Served,
    }
}

/// Which of the many things that a 429 means.
fn limited(words: &Words, readings: &[Reading]) -> Class {
    // Google says exactly which; its text speaks of billing in every case.
    if !words.quotas.is_empty() {
        let long = words.quotas.iter().any(|quota| quota.contains("perday") || quota.contains("permonth"));
        return if long { Class::Period } else { Class::Quota };
    }
    if words.has_code(&MONEY_CODES) || words.says(&MONEY_TEXTS) {
        return Class::Money;
    }
    if words.has_code(&OVERLOAD_CODES) || words.says(&OVERLOAD_TEXTS) {
        return Class::Overload;
    }
    let exhausted = |long: bool| readings.iter().any(|r| r.is_exhausted() && r.is_long() == long);
    if words.says(&LONG_TEXTS) || words.names(&LONG_WORDS) || (exhausted(true) && !exhausted(false)) {
        return Class::Period;
    }
    Class::Quota
}

/// When a refusal is over, by what is said beside Retry-After.
fn over(class: Class, readings: &[Reading], words: &Words, unix_ms: u64) -> Option<Duration> {
    if matches!(class, Class::Overload | Class::Failure) {
        return words.wait(unix_ms);
    }
    let long = matches!(class, Class::Period | Class::Money);
    let resets = |exhausted: bool| {
        let counted =
            readings.iter().filter(move |r| (!exhausted || r.is_exhausted()) && r.is_long() == long);
        counted.filter_map(|r| r.reset)
    };
    resets(true)
        .max()
        .or_else(|| words.wait(unix_ms))
        .or_else(|| resets(false).filter(|reset| !reset.is_zero()).min())
}

/// How long a provider that served had better not be asked again: nothing remains. A bucket has
/// room for one more request long before it is full again, which is what `reset` tells.
fn pause(readings: &[Reading]) -> Option<Duration> {
    let short = readings.iter().filter(|r| r.is_exhausted()).filter_map(|r| {
        let window = match r.window {
            LimitWindow::Second => 1,
            LimitWindow::Minute => 60,
            LimitWindow::Hour => 3_600,
            LimitWindow::Day => 86_400,
            LimitWindow::Month => 30 * 86_400,
        };
        let one = match (r.quantity, r.limit) {
            (Quantity::Requests | Quantity::Images, Some(limit)) => window as f64 / limit as f64,
            _ => 1.0,
        };
        Some(r.reset?.min(Duration::try_from_secs_f64(one).ok()?))
    });
    short.max()
}

#[cfg(test)]
mod tests;
