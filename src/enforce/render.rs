//! From a dialect and what is known to the bytes a client gets. Pure: the time and the chance of
//! one answer are arguments, and every answer that concerns a limit is made here.
//!
//! What is said twice is computed once: the header Retry-After, the seconds in a body and the
//! instant `until` are one rounded number.

mod format;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};

use crate::bounds::NAME_BYTES_MAX;
use crate::enforce::render::format::{dollars, go_duration};
use crate::enforce::ticket::Scope;
use crate::unit::{Dimension, Limit};
use crate::wire::Budget;
use crate::wire::dialect::{Dialect, Escape, Fact, Header, Kind, Of, RetrySent, Round, Sent};

pub use format::{rfc3339, whole_seconds};

const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
/// Structured fields hold integers of at most 15 digits (RFC 9651); nobody needs a larger limit.
const SHOWN_MOST: u64 = 999_999_999_999_999;

/// Between two readings of the wall clock that mean the same instant.
const CLOCKS_APART: Duration = Duration::from_millis(5);

/// What is known of one refusal. What its kind does not know stays at zero or nothing.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub kind: Kind,
    /// As the client named it.
    pub model: &'a str,
    pub tier: &'a str,
    /// After this time the same request passes, without other use and under no lower table.
    pub wait: Option<Duration>,
    pub over: Option<Over>,
    /// Micro-dollars.
    pub minimum: u64,
}

/// The limit that a request is over.
#[derive(Clone, Copy, Debug)]
pub struct Over {
    pub meter: Meter,
    pub scope: Scope,
    pub bound: Bound,
    /// In the meter's unit; of money, micro-dollars.
    pub limit: u64,
    pub remaining: u64,
    /// Of counts: what is held now.
    pub active: u64,
    pub asked: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meter {
    Minute(Dimension),
    Period(Budget),
}

/// Why a limit is what it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// The most its policy allows.
    Ceiling,
    /// What it has whatever happens.
    Guarantee,
    /// What the load leaves.
    Load,
    /// A number of the policy that no load moves.
    Static,
    /// A number of the key's or account's own.
    Override,
}

/// How a key stands in one dimension.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    pub dimension: Dimension,
    pub scope: Scope,
    pub bound: Bound,
    pub limit: u64,
    pub ceiling: Limit,
    /// Never above `limit`.
    pub remaining: u64,
    /// Until `remaining` is whole again; zero for counts.
    pub reset: Duration,
}

/// When an answer is made, and by which chance.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Wall time since 1970.
    pub unix: Duration,
    /// From 0 to 1.
    pub jitter: f64,
}

/// The one number behind all that says when to come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wait {
    seconds: u64,
    millis: u64,
    until_unix: u64,
}

/// One refusal, without the headers that show a standing.
pub fn refusal(dialect: &Dialect, facts: &Facts<'_>, moment: Moment) -> Response<Bytes> {
    let answer = dialect.answer(facts.kind);
    let wait = facts.wait.map(|truth| Wait::of(truth, dialect.retry_after.spread, moment));
    let mut body = String::new();
    answer.body.render(answer.escape(), &mut body, |fact, into| facts.write(fact, wait, into));
    let mut response = Response::new(Bytes::from(body));
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, value(&answer.content_type));
    let sent = match dialect.retry_after.sent {
        RetrySent::Never => false,
        RetrySent::TooMany => status == StatusCode::TOO_MANY_REQUESTS,
        RetrySent::Refusals => true,
    };
    if let Some(wait) = wait.filter(|_| sent) {
        headers.insert(RETRY_AFTER, wait.seconds.into());
        if dialect.retry_after.milliseconds {
            headers.insert(RETRY_AFTER_MS, wait.millis.into());
        }
    }
    response
}

/// Puts the dialect's headers on an answer, whoever made it, and takes off what it promises not to
/// send. `refused` is the dimension of a rate that just refused.
pub fn mark(
    dialect: &Dialect,
    standings: &[Standing],
    refused: Option<Dimension>,
    status: StatusCode,
    moment: Moment,
    headers: &mut HeaderMap,
) {
    let too_many = status == StatusCode::TOO_MANY_REQUESTS;
    let only_then = dialect.retry_after.sent == RetrySent::TooMany;
    if dialect.retry_after.sent == RetrySent::Never || only_then && !too_many {
        headers.remove(RETRY_AFTER);
        headers.remove(RETRY_AFTER_MS);
    }
    for header in &dialect.headers {
        headers.remove(header.name.as_str());
    }
    for header in &dialect.headers {
        let sent = match header.sent {
            Sent::Always => true,
            Sent::Success => status.is_success(),
            Sent::TooMany => too_many,
        };
        let Ok(name) = HeaderName::from_bytes(header.name.as_bytes()) else { continue };
        let shown = header.shown(standings, refused, moment);
        if sent && !shown.is_empty() {
            headers.append(name, value(&shown));
        }
    }
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

// === impl Wait ===

impl Wait {
    /// Never less than the truth, and more by at most the larger of one second and a tenth, but no
    /// more than a minute: the next day is not put off to the afternoon.
    fn of(truth: Duration, spread: bool, moment: Moment) -> Wait {
        let jitter = if spread { moment.jitter.clamp(0.0, 0.999) } else { 0.0 };
        let slack = (truth / 10).clamp(Duration::from_secs(1), Duration::from_secs(60));
        let spread = truth.saturating_add(slack.mul_f64(jitter));
        let millis = u64::try_from(spread.as_micros().div_ceil(1_000)).unwrap_or(u64::MAX);
        let seconds = spread.as_secs().max(whole_seconds(truth, Round::Up));
        let until = moment.unix.saturating_add(Duration::from_secs(seconds));
        Wait { seconds, millis, until_unix: whole_seconds(until, Round::Up) }
    }
}

// === impl Facts ===

impl Facts<'_> {
    fn write(&self, fact: Fact, wait: Option<Wait>, into: &mut String) {
        let number = |number: Option<u64>, into: &mut String| {
            let _ = write!(into, "{}", number.unwrap_or(0));
        };
        match fact {
            Fact::Model => into.push_str(short(self.model)),
            Fact::Tier => into.push_str(self.tier),
            Fact::Until => into.push_str(&rfc3339(wait.map_or(0, |wait| wait.until_unix))),
            Fact::UntilUnix => number(wait.map(|wait| wait.until_unix), into),
            Fact::RetryAfter => number(wait.map(|wait| wait.seconds), into),
            Fact::RetryAfterMs => number(wait.map(|wait| wait.millis), into),
            Fact::Minimum => into.push_str(&dollars(self.minimum)),
            Fact::Active => number(self.over.map(|over| over.active), into),
            _ => {
                let Some(over) = self.over else { return number(None, into) };
                match fact {
                    Fact::Limit => over.meter.write(over.limit, into),
                    Fact::Remaining => over.meter.write(over.remaining, into),
                    Fact::Asked => over.meter.write(over.asked, into),
                    Fact::Dimension => into.push_str(over.meter.word()),
                    Fact::DimensionText => into.push_str(over.meter.text()),
                    Fact::Scope => into.push_str(scope_word(over.scope)),
                    Fact::ScopeText => into.push_str(scope_text(over.scope)),
                    Fact::Bound => into.push_str(over.bound.word()),
                    _ => {}
                }
            }
        }
    }
}

/// A client may name a model as long as a body.
fn short(name: &str) -> &str {
    let end = (0..=NAME_BYTES_MAX).rev().find(|at| name.is_char_boundary(*at));
    if name.len() <= NAME_BYTES_MAX { name } else { name.get(..end.unwrap_or(0)).unwrap_or_default() }
}

pub fn scope_word(scope: Scope) -> &'static str {
    match scope {
        Scope::Key => "key",
        Scope::Account => "account",
        Scope::Model => "model",
        Scope::Provider => "provider",
        Scope::Tier => "tier",
    }
}

fn scope_text(scope: Scope) -> &'static str {
    match scope {
        Scope::Key => "your key",
        Scope::Account => "all keys of your account together",
        Scope::Tier => "all keys of your tier together",
        Scope::Model => "all users of this model together",
        Scope::Provider => "this node",
    }
}

// === impl Bound ===

impl Bound {
    pub fn word(self) -> &'static str {
        match self {
            Bound::Ceiling => "ceiling",
            Bound::Guarantee => "guarantee",
            Bound::Load => "load",
            Bound::Static => "static",
            Bound::Override => "override",
        }
    }
}

// === impl Meter ===

impl Meter {
    fn write(self, amount: u64, into: &mut String) {
        match self {
            Meter::Period(Budget::SpendPerDay | Budget::SpendPerMonth) => into.push_str(&dollars(amount)),
            Meter::Period(Budget::TokensPerDay) | Meter::Minute(_) => {
                let _ = write!(into, "{amount}");
            }
        }
    }

    /// As policies write it.
    pub fn word(self) -> &'static str {
        match self {
            Meter::Minute(dimension) => dimension.short(),
            Meter::Period(Budget::TokensPerDay) => "tpd",
            Meter::Period(Budget::SpendPerDay) => "spend_per_day",
            Meter::Period(Budget::SpendPerMonth) => "spend_per_month",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Meter::Minute(Dimension::RequestsPerMinute) => "requests per minute",
            Meter::Minute(Dimension::TokensPerMinute) => "tokens per minute",
            Meter::Minute(Dimension::InputTokensPerMinute) => "input tokens per minute",
            Meter::Minute(Dimension::OutputTokensPerMinute) => "output tokens per minute",
            Meter::Minute(Dimension::ImagesPerMinute) => "images per minute",
            Meter::Minute(Dimension::Concurrency) => "requests at once",
            Meter::Minute(Dimension::Jobs) => "jobs at once",
            Meter::Period(Budget::TokensPerDay) => "tokens per day",
            Meter::Period(Budget::SpendPerDay) => "dollars per day",
            Meter::Period(Budget::SpendPerMonth) => "dollars per month",
        }
    }
}

// === impl Standing ===

impl Standing {
    /// A rate, which a window makes whole again; counts are not.
    pub fn is_rate(&self) -> bool {
        !matches!(self.dimension, Dimension::Concurrency | Dimension::Jobs)
    }

    fn write(&self, header: &Header, fact: Fact, moment: Moment, into: &mut String) {
        // The limiter's wall clock and the answer's are read apart, each to a millisecond: a window
        // that ends on a second is not shown to end on the next one.
        let at = || moment.unix.saturating_add(self.reset).saturating_sub(CLOCKS_APART);
        let number = |number: u64, into: &mut String| {
            let _ = write!(into, "{}", number.min(SHOWN_MOST));
        };
        match fact {
            Fact::Limit => number(self.limit, into),
            Fact::Ceiling => number(self.ceiling.finite().unwrap_or(self.limit), into),
            Fact::Remaining => {
                let step = header.step.max(1);
                let nearest = self.remaining.saturating_add(step / 2) / step * step;
                number(nearest.min(self.limit), into);
            }
            Fact::Dimension => into.push_str(self.dimension.short()),
            Fact::QuotaUnit => into.push_str(quota_unit(self.dimension)),
            Fact::Scope => into.push_str(scope_word(self.scope)),
            Fact::Bound => into.push_str(self.bound.word()),
            Fact::ResetSeconds => number(whole_seconds(self.reset, header.round), into),
            Fact::ResetUnix => number(whole_seconds(at(), header.round), into),
            Fact::ResetGo => into.push_str(&go_duration(self.reset)),
            Fact::ResetRfc3339 => into.push_str(&rfc3339(whole_seconds(at(), header.round))),
            _ => {}
        }
    }
}

fn quota_unit(dimension: Dimension) -> &'static str {
    match dimension {
        Dimension::RequestsPerMinute => "requests",
        Dimension::TokensPerMinute => "tidegate-tokens",
        Dimension::InputTokensPerMinute => "tidegate-input-tokens",
        Dimension::OutputTokensPerMinute => "tidegate-output-tokens",
        Dimension::ImagesPerMinute => "tidegate-images",
        Dimension::Concurrency => "concurrent-requests",
        Dimension::Jobs => "tidegate-jobs",
    }
}

// === impl Header ===

impl Header {
    /// Empty where nothing of it is limited.
    fn shown(&self, standings: &[Standing], refused: Option<Dimension>, moment: Moment) -> String {
        let mut shown = String::new();
        let show = |standing: &Standing| {
            if !shown.is_empty() {
                shown.push_str(", ");
            }
            let write = |fact, into: &mut String| standing.write(self, fact, moment, into);
            self.value.render(Escape::Nothing, &mut shown, write);
        };
        let rates = standings.iter().filter(|standing| standing.is_rate());
        match self.of {
            Of::Each => rates.for_each(show),
            Of::Only(dimension) => {
                standings.iter().filter(|standing| standing.dimension == dimension).for_each(show);
            }
            Of::Tightest => {
                let used_up = |standing: &&Standing| Some(standing.dimension) == refused;
                let part = |a: &&Standing, b: &&Standing| {
                    let (a, b) = (*a, *b);
                    let left = u128::from(a.remaining) * u128::from(b.limit);
                    left.cmp(&(u128::from(b.remaining) * u128::from(a.limit)))
                };
                let found = rates.clone().find(used_up).or_else(|| rates.min_by(part));
                found.into_iter().for_each(show);
            }
        }
        shown
    }
}
