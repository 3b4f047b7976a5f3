//! What each of the providers' header names says: which limit, over what time, which number of it.

use std::collections::BTreeMap;
use std::time::Duration;

use http::HeaderMap;

use crate::bounds::PROVIDER_LIMITS_MAX;
use crate::enforce::provider::reset;
use crate::wire::usage::{LimitWindow, Quantity};

/// One limit as an answer states it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    pub quantity: Quantity,
    pub window: LimitWindow,
    /// None: not told, or told as zero or less, which providers do instead of not telling.
    pub limit: Option<u64>,
    pub remaining: Option<u64>,
    pub reset: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    Limit,
    Remaining,
    Reset,
}

/// What one name says; the window only where the name does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Said {
    quantity: Quantity,
    window: Option<LimitWindow>,
    number: Number,
    /// The limit in force now, above or below the one of the contract.
    dynamic: bool,
}

#[derive(Clone, Copy, Default)]
struct Numbers {
    limit: Option<u64>,
    remaining: Option<u64>,
    reset: Option<Duration>,
}

const WINDOWS: [(&str, LimitWindow); 5] = [
    ("second", LimitWindow::Second),
    ("minute", LimitWindow::Minute),
    ("hour", LimitWindow::Hour),
    ("day", LimitWindow::Day),
    ("month", LimitWindow::Month),
];

/// What is left of a name without its prefix, number and window.
const QUANTITIES: [(&str, Quantity); 14] = [
    ("", Quantity::Requests),
    ("requests", Quantity::Requests),
    ("req", Quantity::Requests),
    ("tokens", Quantity::Tokens),
    ("project-tokens", Quantity::ProjectTokens),
    ("tokens_usage_based", Quantity::UsedTokens),
    ("tokens-usage-based", Quantity::UsedTokens),
    ("input-tokens", Quantity::InputTokens),
    ("tokens-prompt", Quantity::InputTokens),
    ("tokens-cache-adjusted-prompt", Quantity::UncachedInputTokens),
    ("output-tokens", Quantity::OutputTokens),
    ("tokens-generated", Quantity::OutputTokens),
    ("images", Quantity::Images),
    ("image", Quantity::Images),
];

/// Every limit that the headers state; at most [`PROVIDER_LIMITS_MAX`].
pub fn readings(headers: &HeaderMap, unix_ms: u64) -> Vec<Reading> {
    // Together's names are those of others, its time is not.
    let together = ["x-tokenlimit-limit", "x-ratelimit-limit-dynamic"];
    let per_second = together.iter().any(|name| headers.contains_key(*name));
    // Groq's requests are per day under the names of others.
    let per_day = headers.contains_key("x-groq-region");
    let mut found: BTreeMap<(Quantity, Option<LimitWindow>), Numbers> = BTreeMap::new();
    for dynamic in [false, true] {
        for (name, value) in headers {
            let Some(said) = said(name.as_str()).filter(|said| said.dynamic == dynamic) else { continue };
            let Ok(value) = value.to_str() else { continue };
            let key = (said.quantity, said.window);
            if found.len() >= PROVIDER_LIMITS_MAX && !found.contains_key(&key) {
                continue;
            }
            let numbers = found.entry(key).or_default();
            match said.number {
                Number::Limit => numbers.limit = reset::amount(value).filter(|limit| *limit > 0),
                Number::Remaining => numbers.remaining = reset::amount(value),
                Number::Reset => numbers.reset = reset::wait(value, unix_ms),
            }
        }
    }
    let known = found.into_iter().filter_map(|((quantity, window), mut numbers)| {
        // Nothing remains of a limit that is not known: that says nothing.
        if numbers.remaining == Some(0) && numbers.limit.is_none() {
            numbers.remaining = None;
        }
        let window = window.unwrap_or_else(|| match quantity {
            _ if per_second => LimitWindow::Second,
            Quantity::Requests if per_day => LimitWindow::Day,
            _ => numbers.window(),
        });
        let Numbers { limit, remaining, reset } = numbers;
        let says = limit.is_some() || remaining.is_some() || reset.is_some();
        says.then_some(Reading { quantity, window, limit, remaining, reset })
    });
    known.collect()
}

/// Whether a header is a provider's rate limit, which is no business of the node's client.
pub fn is_quota(name: &str) -> bool {
    let plain = name.strip_prefix("x-").unwrap_or(name);
    ["ratelimit", "tokenlimit", "anthropic-ratelimit-", "anthropic-priority-"]
        .iter()
        .any(|prefix| plain.starts_with(prefix))
}

fn said(name: &str) -> Option<Said> {
    let plain = name.strip_prefix("x-").unwrap_or(name);
    let after = |prefix| plain.strip_prefix(prefix);
    let (rest, bare, priority) = None
        .or_else(|| after("ratelimitbysize-").map(|rest| (rest, Quantity::Tokens, false)))
        .or_else(|| after("tokenlimit-").map(|rest| (rest, Quantity::Tokens, false)))
        .or_else(|| after("anthropic-ratelimit-").map(|rest| (rest, Quantity::Requests, false)))
        .or_else(|| after("anthropic-priority-").map(|rest| (rest, Quantity::Requests, true)))
        .or_else(|| after("ratelimit-").map(|rest| (rest, Quantity::Requests, false)))?;
    let (number, rest) = number(rest)?;
    let dynamic = rest == "dynamic";
    let rest = if dynamic { "" } else { rest };
    let (rest, window) = match WINDOWS.iter().find(|(window, _)| rest.ends_with(window)) {
        Some((word, window)) => (rest.strip_suffix(word)?.trim_end_matches('-'), Some(*window)),
        None => (rest, None),
    };
    let (_, quantity) = QUANTITIES.iter().find(|(known, _)| *known == rest)?;
    let quantity = match quantity {
        Quantity::Requests if rest.is_empty() => bare,
        Quantity::InputTokens if priority => Quantity::PriorityInputTokens,
        Quantity::OutputTokens if priority => Quantity::PriorityOutputTokens,
        quantity => *quantity,
    };
    Some(Said { quantity, window, number, dynamic })
}

/// The number's name stands first (`limit-requests`) or last (`requests-limit`).
fn number(rest: &str) -> Option<(Number, &str)> {
    let numbers = [("limit", Number::Limit), ("remaining", Number::Remaining), ("reset", Number::Reset)];
    numbers.into_iter().find_map(|(word, number)| {
        let first = rest.strip_prefix(word).filter(|rest| rest.is_empty() || rest.starts_with('-'));
        let last = || rest.strip_suffix(word).filter(|rest| rest.ends_with('-'));
        first.or_else(last).map(|rest| (number, rest.trim_matches('-')))
    })
}

// === impl Numbers ===

impl Numbers {
    /// A minute, unless the numbers say otherwise: what is used of a limit drains in its reset, so
    /// all of it drains in the window.
    fn window(&self) -> LimitWindow {
        let (Some(limit), Some(remaining), Some(reset)) = (self.limit, self.remaining, self.reset) else {
            return LimitWindow::Minute;
        };
        let used = limit.saturating_sub(remaining);
        let whole = reset.as_secs_f64() * limit as f64 / used.max(1) as f64;
        let day = 86_400.0;
        if reset > Duration::from_secs(3_600) || (used > 0 && (0.8 * day..1.25 * day).contains(&whole)) {
            return LimitWindow::Day;
        }
        LimitWindow::Minute
    }
}

impl Reading {
    /// Nothing remains of it, and it is one that refuses.
    pub fn is_exhausted(&self) -> bool {
        let refuses =
            !matches!(self.quantity, Quantity::PriorityInputTokens | Quantity::PriorityOutputTokens);
        refuses && self.remaining == Some(0)
    }

    pub fn is_long(&self) -> bool {
        matches!(self.window, LimitWindow::Day | LimitWindow::Month)
    }
}
