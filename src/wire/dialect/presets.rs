//! The dialects that come with tidegate, as one reads them.
//!
//! The four vendors' stand on their documents; what those leave open is decided here, with the
//! reason beside it, and a policy overrides any part.

use crate::unit::Dimension;
use crate::wire::dialect::{Answer, Dialect, Header, Kind, Of, RetryAfter, RetrySent, Round, Sent, Template};

/// One dialect in the form in which it is read best.
pub struct Preset {
    pub name: &'static str,
    /// Of every kind: status and body.
    answers: [(Kind, u16, &'static str); 10],
    headers: &'static [Line],
    retry_after: RetryAfter,
}

/// Name, whose standing, value, when it is sent, and the step of `remaining`.
type Line = (&'static str, Of, &'static str, Sent, u64);

pub const PRESETS: &[Preset] = &[KIMCHI, KIMI, PREDICTIONS, MEDIA, OPENAI, ANTHROPIC, IETF];

const RPM: Of = Of::Only(Dimension::RequestsPerMinute);
const TPM: Of = Of::Only(Dimension::TokensPerMinute);
const ITPM: Of = Of::Only(Dimension::InputTokensPerMinute);
const OTPM: Of = Of::Only(Dimension::OutputTokensPerMinute);
const IPM: Of = Of::Only(Dimension::ImagesPerMinute);
const CONCURRENT: Of = Of::Only(Dimension::Concurrency);

/// Seconds with every refusal that has a time, or with a 429 only, as their documents say.
const REFUSALS: RetryAfter = RetryAfter { sent: RetrySent::Refusals, milliseconds: false, spread: true };
const TOO_MANY: RetryAfter = RetryAfter { sent: RetrySent::TooMany, milliseconds: false, spread: true };

/// A flat object with one string, one sentence for everything that is over when `until` has come.
/// Decided: exhausted credit is 402, no wait helps; no header set, as none is promised.
const KIMCHI: Preset = Preset {
    name: "kimchi",
    answers: [
        (Kind::Rate, 429, KIMCHI_LIMITED),
        (Kind::Concurrency, 429, KIMCHI_LIMITED),
        (Kind::Jobs, 429, KIMCHI_LIMITED),
        (Kind::Capacity, 429, KIMCHI_LIMITED),
        (Kind::Period, 429, KIMCHI_LIMITED),
        (Kind::Credit, 402, r#"{"error": "credits are used up; add credits or upgrade the plan"}"#),
        (Kind::Recharge, 402, r#"{"error": "add credits of at least ${minimum} to begin"}"#),
        (
            Kind::TooLarge,
            400,
            r#"{"error": "{model} request is larger than the limit of {limit} {dimension_text}"}"#,
        ),
        (Kind::UnknownModel, 404, r#"{"error": "the model does not exist or is not served here"}"#),
        (Kind::Unauthorized, 401, r#"{"error": "no valid API key"}"#),
    ],
    headers: &[],
    retry_after: TOO_MANY,
};
const KIMCHI_LIMITED: &str = r#"{"error": "{model} model is rate limited until {until}"}"#;

/// The document shows no body and no header. Decided: an object that `openai` clients read, with
/// the kinds of error told apart by `type`; X-RateLimit of the tightest rate, reset in Unix seconds.
const KIMI: Preset = Preset {
    name: "kimi",
    answers: [
        (Kind::Rate, 429, KIMI_LIMITED),
        (
            Kind::Concurrency,
            429,
            r#"{"error":{"message":"request reached max concurrency: {limit}, please try again after {retry_after} seconds","type":"rate_limit_reached_error"}}"#,
        ),
        (
            Kind::Jobs,
            429,
            r#"{"error":{"message":"request reached max jobs: {limit}, please try again after {retry_after} seconds","type":"rate_limit_reached_error"}}"#,
        ),
        (
            Kind::Capacity,
            429,
            r#"{"error":{"message":"the engine is currently overloaded, please try again later","type":"engine_overloaded_error"}}"#,
        ),
        (Kind::Period, 429, KIMI_LIMITED),
        (
            Kind::Credit,
            429,
            r#"{"error":{"message":"the account has no balance left, please check your plan and billing details","type":"exceeded_current_quota_error"}}"#,
        ),
        (
            Kind::Recharge,
            403,
            r#"{"error":{"message":"recharge at least ${minimum} to start using the API","type":"permission_denied_error"}}"#,
        ),
        (
            Kind::TooLarge,
            400,
            r#"{"error":{"message":"request of {asked} exceeds the limit of {limit} {dimension_text} itself","type":"invalid_request_error"}}"#,
        ),
        (
            Kind::UnknownModel,
            404,
            r#"{"error":{"message":"the model does not exist or is not served here","type":"resource_not_found_error"}}"#,
        ),
        (
            Kind::Unauthorized,
            401,
            r#"{"error":{"message":"Invalid Authentication","type":"invalid_authentication_error"}}"#,
        ),
    ],
    headers: &[
        ("X-RateLimit-Limit", Of::Tightest, "{limit}", Sent::Always, 1),
        ("X-RateLimit-Remaining", Of::Tightest, "{remaining}", Sent::Always, 1),
        ("X-RateLimit-Reset", Of::Tightest, "{reset_unix}", Sent::Always, 1),
    ],
    retry_after: TOO_MANY,
};
const KIMI_LIMITED: &str = r#"{"error":{"message":"request reached {dimension} limit: {limit}, please try again after {retry_after} seconds","type":"rate_limit_reached_error"}}"#;

/// The one body shown is that of running predictions; the others follow its shape. Decided: a
/// spend limit is 402, because the sample client repeats a 429 within seconds, and says when it
/// ends; on a 429 of predictions the headers go on showing the requests of the minute.
const PREDICTIONS: Preset = Preset {
    name: "predictions",
    answers: [
        (
            Kind::Rate,
            429,
            r#"{"error":{"type":"rate_limit_error","message":"Rate limit exceeded. Limit is {limit} {dimension_text}.","code":"RATE_LIMIT_EXCEEDED","details":{"limit":{limit},"remaining":{remaining}}}}"#,
        ),
        (
            Kind::Concurrency,
            429,
            r#"{"error":{"type":"rate_limit_error","message":"Concurrent request limit exceeded. {active}/{limit} requests running.","code":"CONCURRENT_LIMIT_EXCEEDED","details":{"limit":{limit},"active":{active}}}}"#,
        ),
        (
            Kind::Jobs,
            429,
            r#"{"error":{"type":"rate_limit_error","message":"Concurrent prediction limit exceeded. {active}/{limit} predictions running.","code":"CONCURRENT_LIMIT_EXCEEDED","details":{"limit":{limit},"active":{active}}}}"#,
        ),
        (
            Kind::Capacity,
            429,
            r#"{"error":{"type":"rate_limit_error","message":"No capacity for this model right now. Your own limit is not used up.","code":"CAPACITY_EXCEEDED","details":{}}}"#,
        ),
        (
            Kind::Period,
            402,
            r#"{"error":{"type":"spend_limit_error","message":"Limit of {limit} {dimension_text} reached.","code":"SPEND_LIMIT_EXCEEDED","details":{"limit":{limit},"until":"{until}"}}}"#,
        ),
        (
            Kind::Credit,
            402,
            r#"{"error":{"type":"billing_error","message":"No credit left.","code":"CREDIT_EXHAUSTED","details":{}}}"#,
        ),
        (
            Kind::Recharge,
            402,
            r#"{"error":{"type":"billing_error","message":"Add credit of at least {minimum} dollars to begin.","code":"CREDIT_REQUIRED","details":{"minimum":{minimum}}}}"#,
        ),
        (
            Kind::TooLarge,
            400,
            r#"{"error":{"type":"invalid_request_error","message":"The request asks for {asked}, the limit is {limit} {dimension_text}.","code":"REQUEST_TOO_LARGE","details":{"limit":{limit},"asked":{asked}}}}"#,
        ),
        (
            Kind::UnknownModel,
            404,
            r#"{"error":{"type":"invalid_request_error","message":"The model does not exist or is not served here.","code":"MODEL_NOT_FOUND","details":{}}}"#,
        ),
        (
            Kind::Unauthorized,
            401,
            r#"{"error":{"type":"authentication_error","message":"No valid API key.","code":"INVALID_API_KEY","details":{}}}"#,
        ),
    ],
    headers: &[
        ("X-RateLimit-Limit", RPM, "{limit}", Sent::Always, 1),
        ("X-RateLimit-Remaining", RPM, "{remaining}", Sent::Always, 1),
        ("X-RateLimit-Reset", RPM, "{reset_unix}", Sent::Always, 1),
    ],
    retry_after: TOO_MANY,
};

/// "A message indicating that the rate limit has been exceeded", no header promised. Decided: an
/// object with the message; Retry-After as HTTP has it; more images than the limit itself is 400.
const MEDIA: Preset = Preset {
    name: "media",
    answers: [
        (Kind::Rate, 429, MEDIA_LIMITED),
        (Kind::Concurrency, 429, MEDIA_LIMITED),
        (Kind::Jobs, 429, MEDIA_LIMITED),
        (
            Kind::Capacity,
            429,
            r#"{"code":429,"reason":"NO_CAPACITY","message":"The rate limit has been exceeded: no capacity for {model} right now."}"#,
        ),
        (Kind::Period, 429, MEDIA_LIMITED),
        (Kind::Credit, 402, r#"{"code":402,"reason":"NOT_ENOUGH_BALANCE","message":"No balance left."}"#),
        (
            Kind::Recharge,
            402,
            r#"{"code":402,"reason":"NOT_ENOUGH_BALANCE","message":"Recharge at least {minimum} dollars to begin."}"#,
        ),
        (
            Kind::TooLarge,
            400,
            r#"{"code":400,"reason":"REQUEST_TOO_LARGE","message":"The request asks for {asked}, more than the limit of {limit} {dimension_text} for {model}."}"#,
        ),
        (
            Kind::UnknownModel,
            404,
            r#"{"code":404,"reason":"MODEL_NOT_FOUND","message":"The model does not exist or is not served here."}"#,
        ),
        (Kind::Unauthorized, 401, r#"{"code":401,"reason":"INVALID_API_KEY","message":"No valid API key."}"#),
    ],
    headers: &[],
    retry_after: TOO_MANY,
};
const MEDIA_LIMITED: &str = r#"{"code":429,"reason":"RATE_LIMIT_EXCEEDED","message":"The rate limit has been exceeded: {limit} {dimension_text} for {model}."}"#;

/// What OpenAI's clients read. The default.
pub(super) const OPENAI: Preset = Preset {
    name: "openai",
    answers: OPENAI_ANSWERS,
    headers: &[
        ("x-ratelimit-limit-requests", RPM, "{limit}", Sent::Always, 1),
        ("x-ratelimit-remaining-requests", RPM, "{remaining}", Sent::Always, 1),
        ("x-ratelimit-reset-requests", RPM, "{reset_go}", Sent::Always, 1),
        ("x-ratelimit-limit-tokens", TPM, "{limit}", Sent::Always, 1),
        ("x-ratelimit-remaining-tokens", TPM, "{remaining}", Sent::Always, 1),
        ("x-ratelimit-reset-tokens", TPM, "{reset_go}", Sent::Always, 1),
        ("x-ratelimit-limit-images", IPM, "{limit}", Sent::Always, 1),
        ("x-ratelimit-remaining-images", IPM, "{remaining}", Sent::Always, 1),
        ("x-ratelimit-reset-images", IPM, "{reset_go}", Sent::Always, 1),
    ],
    retry_after: RetryAfter { milliseconds: true, ..REFUSALS },
};
const OPENAI_ANSWERS: [(Kind, u16, &str); 10] = [
    (Kind::Rate, 429, OPENAI_LIMITED),
    (Kind::Concurrency, 429, OPENAI_LIMITED),
    (Kind::Jobs, 429, OPENAI_LIMITED),
    (
        Kind::Capacity,
        503,
        r#"{"error":{"message":"no capacity for this model right now; your own limit is not used up","type":"capacity_error","param":null,"code":"capacity"}}"#,
    ),
    (
        Kind::Period,
        429,
        r#"{"error":{"message":"{scope_text} may use {limit} {dimension_text}; more from {until} on","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}"#,
    ),
    (
        Kind::Credit,
        429,
        r#"{"error":{"message":"no credit is left; check the plan and billing details","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}"#,
    ),
    (
        Kind::Recharge,
        403,
        r#"{"error":{"message":"recharge at least {minimum} dollars to begin","type":"insufficient_quota","param":null,"code":"account_below_minimum"}}"#,
    ),
    (
        Kind::TooLarge,
        429,
        r#"{"error":{"message":"the request asks for {asked}, but {scope_text} may use {limit} {dimension_text}; send a smaller one","type":"rate_limit_error","param":null,"code":"rate_limit_exceeded"}}"#,
    ),
    (
        Kind::UnknownModel,
        404,
        r#"{"error":{"message":"the model does not exist or is not served here","type":"invalid_request_error","param":null,"code":"model_not_found"}}"#,
    ),
    (
        Kind::Unauthorized,
        401,
        r#"{"error":{"message":"no valid API key; send exactly one, as `Authorization: Bearer KEY` or `X-API-Key: KEY`","type":"authentication_error","param":null,"code":"invalid_api_key"}}"#,
    ),
];
const OPENAI_LIMITED: &str = r#"{"error":{"message":"rate limit reached: {scope_text} may use {limit} {dimension_text}","type":"rate_limit_error","param":null,"code":"rate_limit_exceeded"}}"#;

/// What Anthropic's clients read; 529 says that the fault is not theirs. Remaining tokens to the
/// nearest thousand, as there.
const ANTHROPIC: Preset = Preset {
    name: "anthropic",
    answers: [
        (Kind::Rate, 429, ANTHROPIC_LIMITED),
        (Kind::Concurrency, 429, ANTHROPIC_LIMITED),
        (Kind::Jobs, 429, ANTHROPIC_LIMITED),
        (
            Kind::Capacity,
            529,
            r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded; your own limit is not used up"}}"#,
        ),
        (
            Kind::Period,
            429,
            r#"{"type":"error","error":{"type":"rate_limit_error","message":"{scope_text} may use {limit} {dimension_text}; more from {until} on"}}"#,
        ),
        (
            Kind::Credit,
            402,
            r#"{"type":"error","error":{"type":"billing_error","message":"the credit balance is used up"}}"#,
        ),
        (
            Kind::Recharge,
            402,
            r#"{"type":"error","error":{"type":"billing_error","message":"add credit of at least {minimum} dollars to begin"}}"#,
        ),
        (
            Kind::TooLarge,
            400,
            r#"{"type":"error","error":{"type":"invalid_request_error","message":"the request asks for {asked}, but {scope_text} may use {limit} {dimension_text}"}}"#,
        ),
        (
            Kind::UnknownModel,
            404,
            r#"{"type":"error","error":{"type":"not_found_error","message":"the model does not exist or is not served here"}}"#,
        ),
        (
            Kind::Unauthorized,
            401,
            r#"{"type":"error","error":{"type":"authentication_error","message":"no valid API key"}}"#,
        ),
    ],
    headers: &[
        ("anthropic-ratelimit-requests-limit", RPM, "{limit}", Sent::Always, 1),
        ("anthropic-ratelimit-requests-remaining", RPM, "{remaining}", Sent::Always, 1),
        ("anthropic-ratelimit-requests-reset", RPM, "{reset_rfc3339}", Sent::Always, 1),
        ("anthropic-ratelimit-tokens-limit", TPM, "{limit}", Sent::Always, 1),
        ("anthropic-ratelimit-tokens-remaining", TPM, "{remaining}", Sent::Always, 1_000),
        ("anthropic-ratelimit-tokens-reset", TPM, "{reset_rfc3339}", Sent::Always, 1),
        ("anthropic-ratelimit-input-tokens-limit", ITPM, "{limit}", Sent::Always, 1),
        ("anthropic-ratelimit-input-tokens-remaining", ITPM, "{remaining}", Sent::Always, 1_000),
        ("anthropic-ratelimit-input-tokens-reset", ITPM, "{reset_rfc3339}", Sent::Always, 1),
        ("anthropic-ratelimit-output-tokens-limit", OTPM, "{limit}", Sent::Always, 1),
        ("anthropic-ratelimit-output-tokens-remaining", OTPM, "{remaining}", Sent::Always, 1_000),
        ("anthropic-ratelimit-output-tokens-reset", OTPM, "{reset_rfc3339}", Sent::Always, 1),
    ],
    retry_after: REFUSALS,
};
const ANTHROPIC_LIMITED: &str = r#"{"type":"error","error":{"type":"rate_limit_error","message":"rate limit reached: {scope_text} may use {limit} {dimension_text}"}}"#;

/// draft-ietf-httpapi-ratelimit-headers-11. The policy line carries the ceiling, which stays; what
/// is left of a limit that moves is in RateLimit. No unit of tokens is registered: a prefixed one.
const IETF: Preset = Preset {
    name: "ietf",
    answers: OPENAI_ANSWERS,
    headers: &[
        (
            "RateLimit-Policy",
            Of::Each,
            r#""{dimension}";q={ceiling};w=60;qu="{quota_unit}""#,
            Sent::Always,
            1,
        ),
        ("RateLimit-Policy", CONCURRENT, r#""{dimension}";q={ceiling};qu="{quota_unit}""#, Sent::Always, 1),
        ("RateLimit", Of::Each, r#""{dimension}";r={remaining};t={reset_seconds}"#, Sent::Always, 1),
        ("RateLimit", CONCURRENT, r#""{dimension}";r={remaining}"#, Sent::Always, 1),
    ],
    retry_after: REFUSALS,
};

/// A preset's text, parsed; a test shows that every text is a template.
pub(super) fn build(preset: &Preset) -> Dialect {
    let answer = |(kind, status, body): &(Kind, u16, &str)| {
        let content_type = "application/json".to_owned();
        let body = Template::parse(body).unwrap_or_default();
        (*kind, Answer { status: *status, content_type, body })
    };
    let header = |(name, of, value, sent, step): &Line| Header {
        name: (*name).to_owned(),
        of: *of,
        value: Template::parse(value).unwrap_or_default(),
        sent: *sent,
        round: Round::Up,
        step: *step,
    };
    Dialect {
        answers: preset.answers.iter().map(answer).collect(),
        headers: preset.headers.iter().map(header).collect(),
        retry_after: preset.retry_after,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_complete_and_survives_the_wire() {
        for preset in PRESETS {
            let dialect = Dialect::preset(preset.name).unwrap();
            dialect.validate().unwrap_or_else(|error| panic!("{}: {error}", preset.name));
            assert_eq!(dialect.answers.len(), Kind::ALL.len(), "{}", preset.name);
            for (kind, _, body) in &preset.answers {
                assert_eq!(dialect.answer(*kind).body.to_string(), *body);
            }
            for ((_, _, value, ..), header) in preset.headers.iter().zip(&dialect.headers) {
                assert_eq!(header.value.to_string(), *value);
            }
            let wire = serde_json::to_string(&dialect).unwrap();
            assert_eq!(serde_json::from_str::<Dialect>(&wire).unwrap(), dialect);
        }
        assert_eq!(Dialect::preset("openai"), Some(Dialect::default()));
        assert_eq!(Dialect::preset("x"), None);
    }

    /// All four promise 429; only the vendors' own products say so for a platform without room.
    #[test]
    fn x_4_the_vendors_refuse_with_429_and_three_of_seven_tell_capacity_apart_by_status() {
        let capacity = |name: &str| Dialect::preset(name).unwrap().answer(Kind::Capacity).status;
        for vendor in ["kimchi", "kimi", "predictions", "media"] {
            let dialect = Dialect::preset(vendor).unwrap();
            for kind in [Kind::Rate, Kind::Concurrency, Kind::Jobs, Kind::Capacity] {
                assert_eq!(dialect.answer(kind).status, 429, "{vendor} {}", kind.word());
            }
        }
        assert_eq!([capacity("openai"), capacity("ietf"), capacity("anthropic")], [503, 503, 529]);
    }
}
