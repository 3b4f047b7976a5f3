//! Answers of every provider, with the headers and texts as they document them.

use super::*;

/// 2025-01-12T23:11:00Z.
const NOW: u64 = 1_736_723_460_000;

fn lesson(status: u16, headers: &[(&str, &str)], body: &str) -> Lesson {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let name: http::HeaderName = name.parse().unwrap();
        map.append(name, value.parse().unwrap());
    }
    let status = StatusCode::from_u16(status).unwrap();
    learn(&Answer { status, headers: &map, body: body.as_bytes(), unix_ms: NOW })
}

fn ms(wait: u64) -> Option<Duration> {
    Some(Duration::from_millis(wait))
}

/// Quantity, window, limit, remaining, reset in milliseconds.
type Told = (Quantity, LimitWindow, Option<u64>, Option<u64>, Option<u64>);

fn told(lesson: &Lesson) -> Vec<Told> {
    let mut all: Vec<Told> = lesson
        .readings
        .iter()
        .map(|r| (r.quantity, r.window, r.limit, r.remaining, r.reset.map(|reset| reset.as_millis() as u64)))
        .collect();
    all.sort();
    all
}

use LimitWindow::{Day, Minute, Month, Second};
use Quantity::*;

#[test]
fn openai_go_durations_and_thousands() {
    let headers = [
        ("x-ratelimit-limit-requests", "60"),
        ("x-ratelimit-limit-tokens", "150,000"),
        ("x-ratelimit-remaining-requests", "59"),
        ("x-ratelimit-remaining-tokens", "149984"),
        ("x-ratelimit-reset-requests", "1s"),
        ("x-ratelimit-reset-tokens", "6m0s"),
        ("x-ratelimit-limit-project-tokens", "30,000"),
        ("x-ratelimit-remaining-project-tokens", "12"),
        ("x-ratelimit-reset-project-tokens", "12ms"),
    ];
    let served = lesson(200, &headers, "");
    assert_eq!((served.class, served.wait), (Class::Served, None));
    let expected = [
        (Requests, Minute, Some(60), Some(59), Some(1_000)),
        (Tokens, Minute, Some(150_000), Some(149_984), Some(360_000)),
        (ProjectTokens, Minute, Some(30_000), Some(12), Some(12)),
    ];
    assert_eq!(told(&served), expected);
    // One more request fits long before the bucket is full again.
    let empty = lesson(
        200,
        &[
            ("x-ratelimit-limit-requests", "60"),
            ("x-ratelimit-remaining-requests", "0"),
            ("x-ratelimit-reset-requests", "1m0s"),
        ],
        "",
    );
    assert_eq!(empty.wait, ms(1_000));
}

#[test]
fn openai_zero_and_negative_limits_are_unknown() {
    for odd in ["-1", "0"] {
        let headers = [
            ("x-ratelimit-limit-tokens", odd),
            ("x-ratelimit-remaining-tokens", odd),
            ("x-ratelimit-limit-requests", "500"),
            ("x-ratelimit-remaining-requests", "499"),
        ];
        let served = lesson(200, &headers, "");
        assert_eq!(told(&served), [(Requests, Minute, Some(500), Some(499), None)], "{odd}");
        assert_eq!(served.wait, None);
        let refused = lesson(429, &[&headers[..], &[("retry-after", "3")]].concat(), "");
        assert_eq!((refused.class, refused.wait), (Class::Quota, ms(3_000)));
    }
}

#[test]
fn what_is_said_to_wait_wins_in_this_order() {
    let reset = ("x-ratelimit-reset-requests", "40s");
    let empty = [("x-ratelimit-limit-requests", "60"), ("x-ratelimit-remaining-requests", "0")];
    let seconds = ("retry-after", "20");
    let text = r#"{"error":{"message":"Rate limit reached. Please try again in 30s.","code":"rate_limit_exceeded"}}"#;
    let all = [&empty[..], &[reset, seconds, ("retry-after-ms", "1500")]].concat();
    assert_eq!(lesson(429, &all, text).wait, ms(1_500));
    assert_eq!(lesson(429, &[&empty[..], &[reset, seconds]].concat(), text).wait, ms(20_000));
    assert_eq!(lesson(429, &[&empty[..], &[reset]].concat(), text).wait, ms(40_000));
    assert_eq!(lesson(429, &[], text).wait, ms(30_000));
    assert_eq!(lesson(429, &[("retry-after", "Sun, 12 Jan 2025 23:11:09 GMT")], "").wait, ms(9_000));
    // By the provider's own clock, where it tells it.
    let skewed =
        [("date", "Sun, 12 Jan 2025 23:11:05 GMT"), ("retry-after", "Sun, 12 Jan 2025 23:11:09 GMT")];
    assert_eq!(lesson(429, &skewed, "").wait, ms(4_000));
    assert_eq!(lesson(429, &[], "").wait, None);
}

#[test]
fn openai_money_is_not_a_rate() {
    let body = r#"{"error":{"message":"You exceeded your current quota, please check your plan and billing details.","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}"#;
    assert_eq!(lesson(429, &[], body).class, Class::Money);
    assert_eq!(lesson(402, &[("retry-after", "600")], "").class, Class::Money);
    assert_eq!(lesson(402, &[("retry-after", "600")], "").wait, ms(600_000));
    let spend = r#"{"type":"error","error":{"type":"enforced_spend_limit_reached","message":"..."}}"#;
    assert_eq!(lesson(429, &[], spend).class, Class::Money);
    let credit = r#"{"error":{"code":"credit_balance_exhausted"}}"#;
    assert_eq!(lesson(429, &[], credit).class, Class::Money);
}

#[test]
fn azure_integer_seconds_and_four_kinds_of_429() {
    let headers = [
        ("x-ratelimit-limit-tokens", "120000"),
        ("x-ratelimit-remaining-tokens", "0"),
        ("x-ratelimit-reset-tokens", "26"),
    ];
    let text = r#"{"error":{"code":"429","message":"Requests to the ChatCompletions_Create Operation have exceeded token rate limit. Please retry after 6 seconds."}}"#;
    let refused =
        lesson(429, &[&headers[..], &[("retry-after", "6"), ("retry-after-ms", "5214")]].concat(), text);
    assert_eq!((refused.class, refused.wait), (Class::Quota, ms(5_214)));
    assert_eq!(told(&refused), [(Tokens, Minute, Some(120_000), Some(0), Some(26_000))]);
    assert_eq!(lesson(429, &[], text).wait, ms(6_000));
    let busy = r#"{"error":{"message":"The system is experiencing high demand, please try again later."}}"#;
    assert_eq!(lesson(429, &[], busy).class, Class::Overload);
    for own in ["temporary rate limit adjustment", "token budget exceeded"] {
        assert_eq!(lesson(429, &[], own).class, Class::Quota, "{own}");
    }
}

#[test]
fn anthropic_rfc_3339_and_overload_that_is_no_quota() {
    let headers = [
        ("anthropic-ratelimit-requests-limit", "50"),
        ("anthropic-ratelimit-requests-remaining", "49"),
        ("anthropic-ratelimit-requests-reset", "2025-01-12T23:11:59Z"),
        ("anthropic-ratelimit-input-tokens-limit", "40000"),
        ("anthropic-ratelimit-input-tokens-remaining", "0"),
        ("anthropic-ratelimit-input-tokens-reset", "2025-01-12T23:11:30Z"),
        ("anthropic-ratelimit-output-tokens-limit", "8000"),
        ("anthropic-ratelimit-tokens-limit", "48000"),
        ("anthropic-priority-input-tokens-limit", "10000"),
        ("anthropic-priority-input-tokens-remaining", "0"),
    ];
    let body = r#"{"type":"error","error":{"type":"rate_limit_error","message":"This request would exceed your rate limit."}}"#;
    let refused = lesson(429, &headers, body);
    assert_eq!((refused.class, refused.wait), (Class::Quota, ms(30_000)));
    let expected = [
        (Requests, Minute, Some(50), Some(49), Some(59_000)),
        (Tokens, Minute, Some(48_000), None, None),
        (InputTokens, Minute, Some(40_000), Some(0), Some(30_000)),
        (OutputTokens, Minute, Some(8_000), None, None),
        (PriorityInputTokens, Minute, Some(10_000), Some(0), None),
    ];
    assert_eq!(told(&refused), expected);
    // Beyond reserved capacity requests are served all the same.
    assert_eq!(lesson(200, &headers[8..], "").wait, None);
    let overloaded = r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#;
    assert_eq!(lesson(529, &[], overloaded).class, Class::Overload);
}

#[test]
fn groq_days_and_minutes_under_the_same_names() {
    let headers = [
        ("x-ratelimit-limit-requests", "14400"),
        ("x-ratelimit-limit-tokens", "18000"),
        ("x-ratelimit-remaining-requests", "14370"),
        ("x-ratelimit-remaining-tokens", "17997"),
        ("x-ratelimit-reset-requests", "2m59.56s"),
        ("x-ratelimit-reset-tokens", "7.66s"),
    ];
    let expected = [
        (Requests, Day, Some(14_400), Some(14_370), Some(179_560)),
        (Tokens, Minute, Some(18_000), Some(17_997), Some(7_660)),
    ];
    assert_eq!(told(&lesson(200, &headers, "")), expected);
    assert_eq!(told(&lesson(200, &[("x-groq-region", "us"), headers[0]], ""))[0].1, Day);
    // The day is used up; the minute is not.
    let mut spent = headers;
    (spent[2].1, spent[4].1) = ("0", "5h0m0s");
    let refused = lesson(429, &spent, "");
    assert_eq!((refused.class, refused.wait), (Class::Period, ms(18_000_000)));
    let text = r#"{"error":{"message":"Rate limit reached for model `m` in organization `o` on requests per day (RPD): Limit 1000, Used 1000, Requested 1. Please try again in 1m26.4s.","type":"requests","code":"rate_limit_exceeded"}}"#;
    let refused = lesson(429, &[], text);
    assert_eq!((refused.class, refused.wait), (Class::Period, ms(86_400)));
    let full = r#"{"error":{"code":"capacity_exceeded"}}"#;
    assert_eq!(lesson(498, &[], full).class, Class::Overload);
}

#[test]
fn together_per_second_dynamic_and_whose_fault_it_is() {
    let headers = [
        ("x-ratelimit-limit", "10"),
        ("x-ratelimit-remaining", "0"),
        ("x-ratelimit-reset", "1"),
        ("x-tokenlimit-limit", "3000"),
        ("x-tokenlimit-remaining", "2000"),
        ("x-ratelimit-limit-dynamic", "20"),
        ("x-ratelimit-remaining-dynamic", "7"),
    ];
    let served = lesson(200, &headers, "");
    let expected = [
        (Requests, Second, Some(20), Some(7), Some(1_000)),
        (Tokens, Second, Some(3_000), Some(2_000), None),
    ];
    assert_eq!(told(&served), expected, "the dynamic limit is the one in force");
    for kind in ["dynamic_request_limited", "dynamic_token_limited"] {
        let body = format!(r#"{{"error":{{"message":"...","error_type":"{kind}"}}}}"#);
        assert_eq!(lesson(429, &[], &body).class, Class::Quota, "above the dynamic rate");
        assert_eq!(lesson(503, &[], &body).class, Class::Overload, "below it: the platform's fault");
    }
}

#[test]
fn fireworks_adaptive_limits_without_a_reset() {
    let headers = [
        ("x-ratelimit-limit-requests", "6000"),
        ("x-ratelimit-limit-tokens-prompt", "60000"),
        ("x-ratelimit-remaining-tokens-prompt", "0"),
        ("x-ratelimit-limit-tokens-cache-adjusted-prompt", "15000"),
        ("x-ratelimit-limit-tokens-generated", "600"),
        ("x-ratelimit-remaining-tokens-generated", "600"),
        ("x-ratelimit-over-limit", "yes"),
    ];
    let served = lesson(200, &headers, "");
    assert_eq!(served.wait, None, "served at a lower priority, without a time");
    let expected = [
        (Requests, Minute, Some(6_000), None, None),
        (InputTokens, Minute, Some(60_000), Some(0), None),
        (UncachedInputTokens, Minute, Some(15_000), None, None),
        (OutputTokens, Minute, Some(600), Some(600), None),
    ];
    assert_eq!(told(&served), expected);
    assert_eq!(lesson(429, &headers, "").class, Class::Quota);
    assert_eq!(lesson(503, &headers, "").class, Class::Overload);
}

#[test]
fn mistral_old_and_new_names() {
    let new = [
        ("x-ratelimit-limit-tokens-minute", "500000"),
        ("x-ratelimit-remaining-tokens-minute", "499000"),
        ("x-ratelimit-limit-req-minute", "300"),
    ];
    let expected =
        [(Requests, Minute, Some(300), None, None), (Tokens, Minute, Some(500_000), Some(499_000), None)];
    assert_eq!(told(&lesson(200, &new, "")), expected);
    let old = [
        ("x-ratelimitbysize-limit-minute", "500000"),
        ("x-ratelimitbysize-remaining-minute", "0"),
        ("x-ratelimitbysize-limit-month", "1000000000"),
        ("ratelimitbysize-reset", "40"),
        ("ratelimitbysize-limit", "500000"),
        ("ratelimitbysize-remaining", "0"),
        ("ratelimitbysize-query-cost", "32007"),
    ];
    let refused = lesson(429, &old, r#"{"message":"Requests rate limit exceeded"}"#);
    assert_eq!((refused.class, refused.wait), (Class::Quota, ms(40_000)));
    assert!(told(&refused).contains(&(Tokens, Month, Some(1_000_000_000), None, None)));
}

#[test]
fn cerebras_float_seconds_and_two_windows() {
    let headers = [
        ("x-ratelimit-limit-requests-day", "14400"),
        ("x-ratelimit-limit-tokens-minute", "60000"),
        ("x-ratelimit-remaining-requests-day", "0"),
        ("x-ratelimit-remaining-tokens-minute", "59000"),
        ("x-ratelimit-reset-requests-day", "33011.382867"),
        ("x-ratelimit-reset-tokens-minute", "26.5"),
        ("x-ratelimit-limit-tokens-day", "1000000"),
    ];
    let refused = lesson(429, &headers, "");
    assert_eq!(refused.class, Class::Period);
    assert_eq!(refused.wait.map(|wait| wait.as_secs()), Some(33_011));
    let expected = [
        (Requests, Day, Some(14_400), Some(0), Some(33_011_382)),
        (Tokens, Minute, Some(60_000), Some(59_000), Some(26_500)),
        (Tokens, Day, Some(1_000_000), None, None),
    ];
    assert_eq!(told(&refused), expected);
}

fn gemini(quota: &str, delay: &str) -> String {
    format!(
        r#"{{"error":{{"code":429,"message":"You exceeded your current quota, please check your plan and billing details.","status":"RESOURCE_EXHAUSTED","details":[
        {{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[{{"quotaMetric":"m","quotaId":"{quota}","quotaValue":"15"}}]}},
        {{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"{delay}"}}]}}}}"#
    )
}

#[test]
fn gemini_details_tell_day_and_minute_apart() {
    let minute = lesson(429, &[], &gemini("GenerateRequestsPerMinutePerProjectPerModel-FreeTier", "37s"));
    assert_eq!((minute.class, minute.wait), (Class::Quota, ms(37_000)));
    let day = lesson(429, &[], &gemini("GenerateRequestsPerDayPerProjectPerModel-FreeTier", "1.5s"));
    assert_eq!((day.class, day.wait), (Class::Period, ms(300_000)), "no end of a day");
    let streamed = format!("[{}]", gemini("GenerateRequestsPerDayPerProjectPerModel", "2s"));
    assert_eq!(lesson(429, &[], &streamed).class, Class::Period);
    let busy = r#"{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}"#;
    assert_eq!(lesson(503, &[], busy).class, Class::Overload);
}

#[test]
fn vertex_shared_quota_has_no_number() {
    let shared = r#"{"error":{"code":429,"message":"Resource exhausted, please try again later.","status":"RESOURCE_EXHAUSTED"}}"#;
    assert_eq!(lesson(429, &[], shared).class, Class::Overload);
    let own = r#"{"error":{"code":429,"message":"Too many requests. Exceeded the Provisioned Throughput.","status":"RESOURCE_EXHAUSTED"}}"#;
    assert_eq!(lesson(429, &[], own).class, Class::Quota);
}

#[test]
fn bedrock_names_its_exceptions_in_a_header() {
    let throttled = [("x-amzn-errortype", "ThrottlingException:http://internal.amazon.com/")];
    assert_eq!(lesson(429, &throttled, r#"{"message":"Too many tokens"}"#).class, Class::Quota);
    let cold = [("x-amzn-errortype", "ModelNotReadyException")];
    assert_eq!(lesson(429, &cold, r#"{"message":"Try your request again"}"#).class, Class::Overload);
    assert_eq!(
        lesson(503, &[("x-amzn-errortype", "ServiceUnavailableException")], "").class,
        Class::Overload
    );
}

#[test]
fn moonshot_texts_tell_the_engine_from_the_account() {
    let engine = r#"{"error":{"message":"The engine is currently overloaded, please try again later","type":"engine_overloaded_error"}}"#;
    assert_eq!(lesson(429, &[], engine).class, Class::Overload);
    let headers =
        [("x-ratelimit-limit", "3"), ("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "1736723500")];
    let own = r#"{"error":{"message":"Your account reached max request: 3, please try again after 1 seconds","type":"rate_limit_reached_error"}}"#;
    let refused = lesson(429, &headers, own);
    assert_eq!((refused.class, refused.wait), (Class::Quota, ms(40_000)));
    let broke = r#"{"error":{"message":"Your account is suspended, check your plan","type":"exceeded_current_quota_error"}}"#;
    assert_eq!(lesson(429, &[], broke).class, Class::Money);
    let day = r#"{"error":{"message":"Your account reached organization TPD rate limit, current: 1, limit: 1","type":"rate_limit_reached_error"}}"#;
    assert_eq!(lesson(429, &[], day).class, Class::Period);
}

#[test]
fn predictions_unix_seconds_and_their_code() {
    let headers =
        [("x-ratelimit-limit", "60"), ("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "1736723520")];
    let refused = lesson(429, &[&headers[..], &[("retry-after", "17")]].concat(), "");
    assert_eq!((refused.class, refused.wait), (Class::Quota, ms(17_000)));
    assert_eq!(told(&refused), [(Requests, Minute, Some(60), Some(0), Some(60_000))]);
    let jobs = r#"{"error":{"type":"rate_limit_error","message":"Concurrent prediction limit exceeded. 5/5 predictions running.","code":"CONCURRENT_LIMIT_EXCEEDED","details":{"limit":5,"active":5}}}"#;
    assert_eq!(lesson(429, &[], jobs).class, Class::Quota);
}

#[test]
fn statuses_mean_what_they_mean() {
    for (status, class) in [
        (200, Class::Served),
        (302, Class::Served),
        (400, Class::Fault),
        (401, Class::Fault),
        (403, Class::Fault),
        (404, Class::Fault),
        (413, Class::Fault),
        (422, Class::Fault),
        (408, Class::Failure),
        (500, Class::Failure),
        (502, Class::Failure),
        (504, Class::Failure),
        (503, Class::Overload),
        (529, Class::Overload),
    ] {
        assert_eq!(lesson(status, &[], "").class, class, "{status}");
    }
}

#[test]
fn a_request_fault_teaches_nothing_whatever_it_quotes() {
    let quoted =
        r#"{"error":{"code":"insufficient_quota","message":"no such field: credit balance, overloaded"}}"#;
    for status in [400, 404, 422] {
        let fault = lesson(status, &[("retry-after", "86400")], quoted);
        assert_eq!((fault.class, fault.wait), (Class::Fault, None));
    }
}

#[test]
fn bodies_of_any_kind_are_survived() {
    let deep = "[".repeat(60_000);
    let long = format!("{{\"message\":\"{}\"}}", "x".repeat(60_000));
    for body in
        ["", "null", "[]", "{\"error\":7}", "\u{0}\u{1}", deep.as_str(), long.as_str(), "<html>429</html>"]
    {
        assert_eq!(lesson(429, &[], body).class, Class::Quota);
    }
    let headers: Vec<(String, String)> =
        (0..90).map(|n| (format!("x-ratelimit-limit-{n}"), n.to_string())).collect();
    let headers: Vec<(&str, &str)> = headers.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    assert!(lesson(429, &headers, "").readings.is_empty());
}
