//! Everything the node itself answers, in the shape OpenAI's clients understand.
//!
//! [`refusal`] is the one place where a refusal becomes a status code.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, HeaderMap, HeaderName, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt, Full};

use crate::enforce::limiter::Quotas;
use crate::enforce::stream::Body;
use crate::enforce::ticket::{Refusal, RefusalReason, Scope};
use crate::unit::{Dimension, Limit};

/// An answer that is not an upstream's.
pub fn error(status: StatusCode, kind: &str, code: &str, message: &str) -> Response<Body> {
    let error = serde_json::json!({
        "error": { "message": message, "type": kind, "param": null, "code": code }
    });
    let mut response = Response::new(full(Bytes::from(error.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

pub fn invalid(status: StatusCode, message: &str) -> Response<Body> {
    error(status, "invalid_request_error", "invalid_request", message)
}

/// One answer for every way of not being known.
pub fn unauthorized() -> Response<Body> {
    let mut response = error(
        StatusCode::UNAUTHORIZED,
        "authentication_error",
        "invalid_api_key",
        "no valid API key; send exactly one, as `Authorization: Bearer KEY` or `X-API-Key: KEY`",
    );
    response.headers_mut().insert(http::header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

pub fn unknown_model() -> Response<Body> {
    error(
        StatusCode::NOT_FOUND,
        "invalid_request_error",
        "model_not_found",
        "the model does not exist or is not served here",
    )
}

pub fn unknown_path() -> Response<Body> {
    error(
        StatusCode::NOT_FOUND,
        "invalid_request_error",
        "path_not_found",
        "this path is not served here; paths other than /v1/ need a route in the node's configuration",
    )
}

/// In the shape of OpenAI's list of models.
pub fn models<'a>(names: impl Iterator<Item = &'a str>) -> Response<Body> {
    let model =
        |name| serde_json::json!({"id": name, "object": "model", "created": 0, "owned_by": "tidegate"});
    let list = serde_json::json!({"object": "list", "data": names.map(model).collect::<Vec<_>>()});
    let mut response = Response::new(full(Bytes::from(list.to_string())));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The node itself is full.
pub fn no_memory() -> Response<Body> {
    let message = "too many request bodies at once; your own limit is not used up";
    let mut response = error(StatusCode::SERVICE_UNAVAILABLE, "capacity_error", "capacity", message);
    response.headers_mut().insert(RETRY_AFTER, 1.into());
    response
}

/// For answers given before the body was read: what follows on the connection is not a request.
pub fn closing(mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// What a refused client hears. `jitter` lies between 0 and 1.
pub fn refusal(refusal: &Refusal, jitter: f64) -> Response<Body> {
    let mut response = match &refusal.reason {
        RefusalReason::Limit { scope, dimension, limit } => error(
            StatusCode::TOO_MANY_REQUESTS,
            "rate_limit_error",
            "rate_limit_exceeded",
            &over(*scope, *dimension, *limit),
        ),
        RefusalReason::Capacity { .. } => error(
            StatusCode::SERVICE_UNAVAILABLE,
            "capacity_error",
            "capacity",
            "no capacity for this model right now; your own limit is not used up",
        ),
        RefusalReason::NoTable => error(
            StatusCode::SERVICE_UNAVAILABLE,
            "capacity_error",
            "no_limits",
            "this node has no limits to apply yet",
        ),
        RefusalReason::UnknownModel | RefusalReason::UnknownTier => return unknown_model(),
    };
    let (seconds, millis) = retry_after(refusal.retry_after, jitter);
    response.headers_mut().insert(RETRY_AFTER, seconds.into());
    response.headers_mut().insert("retry-after-ms", millis.into());
    response
}

/// Whole seconds and milliseconds to wait: never less than the truth, and more by at most the
/// larger of one second and a tenth.
fn retry_after(truth: Duration, jitter: f64) -> (u64, u64) {
    let slack = (truth / 10).max(Duration::from_secs(1));
    let spread = truth.saturating_add(slack.mul_f64(jitter.clamp(0.0, 0.999)));
    let millis = u64::try_from(spread.as_micros().div_ceil(1_000)).unwrap_or(u64::MAX);
    let least = u64::try_from(truth.as_nanos().div_ceil(1_000_000_000)).unwrap_or(u64::MAX);
    (spread.as_secs().max(least), millis)
}

fn over(scope: Scope, dimension: Dimension, limit: Limit) -> String {
    let whose = match scope {
        Scope::Key | Scope::Account => "your account",
        Scope::Tier => "all keys of your tier together",
        Scope::Model => "all users of this model together",
        Scope::Provider => "this node",
    };
    let what = match dimension {
        Dimension::RequestsPerMinute => "requests per minute",
        Dimension::TokensPerMinute => "tokens per minute",
        Dimension::InputTokensPerMinute => "input tokens per minute",
        Dimension::OutputTokensPerMinute => "output tokens per minute",
        Dimension::ImagesPerMinute => "images per minute",
        Dimension::Concurrency => "requests at once",
        Dimension::Jobs => "jobs at once",
    };
    format!("rate limit reached: {whose} may use {limit} {what}")
}

/// `x-ratelimit-*` for every rate the row limits.
pub fn quota_headers(headers: &mut HeaderMap, quotas: &Quotas) {
    for quota in quotas.iter().flatten() {
        let names: [&'static str; 3] = match quota.dimension {
            Dimension::RequestsPerMinute => {
                ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"]
            }
            Dimension::TokensPerMinute => {
                ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"]
            }
            Dimension::ImagesPerMinute => {
                ["x-ratelimit-limit-images", "x-ratelimit-remaining-images", "x-ratelimit-reset-images"]
            }
            _ => continue,
        };
        let millis = quota.reset.as_nanos().div_ceil(1_000_000);
        let reset = format!("{}.{:03}s", millis / 1_000, millis % 1_000);
        let values = [quota.limit.into(), quota.remaining.into(), header(&reset)];
        for (name, value) in names.into_iter().zip(values) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}

fn header(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("0s"))
}

pub fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a5_retry_after_is_never_early_and_at_most_a_second_or_a_tenth_late() {
        for truth_ms in [0_u64, 1, 999, 1_000, 1_001, 2_500, 59_999, 123_456, 10_000_000] {
            for jitter in [0.0, 0.3, 0.7, 1.0, 7.0] {
                let (seconds, millis) = retry_after(Duration::from_millis(truth_ms), jitter);
                let most = truth_ms + 1_000.max(truth_ms / 10);
                assert!(
                    seconds * 1_000 >= truth_ms && seconds * 1_000 <= most,
                    "{truth_ms} {jitter}: {seconds}"
                );
                assert!(millis >= truth_ms && millis <= most, "{truth_ms} {jitter}: {millis}");
                assert!((seconds * 1_000).abs_diff(millis) <= 1_000);
            }
        }
        let (seconds, _) = retry_after(Duration::from_nanos(1_000_000_001), 0.0);
        assert_eq!(seconds, 2);
    }
}
