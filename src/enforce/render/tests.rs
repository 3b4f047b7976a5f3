//! Bytes: the documents of the four vendors, the presets, and what no name or number may break.

use super::*;
use crate::unit::MAX_FINITE;
use crate::wire::dialect::{Answer, RetryAfter, Template};

/// 2026-02-05T15:32:35.6Z
const NOW: Moment = Moment { unix: Duration::from_millis(1_770_305_555_600), jitter: 0.0 };

fn preset(name: &str) -> Dialect {
    Dialect::preset(name).unwrap()
}

fn over(dimension: Dimension, limit: u64, active: u64) -> Over {
    let meter = Meter::Minute(dimension);
    Over { meter, scope: Scope::Key, bound: Bound::Static, limit, remaining: 0, active, asked: 1 }
}

fn facts(kind: Kind, wait: Option<Duration>, over: Option<Over>) -> Facts<'static> {
    Facts { kind, model: "minimax-m2.7", tier: "Free", wait, over, minimum: 1_000_000 }
}

fn standing(dimension: Dimension, limit: u64, remaining: u64, reset: Duration) -> Standing {
    let ceiling = Limit::Finite(limit * 2);
    Standing { dimension, scope: Scope::Key, bound: Bound::Static, limit, ceiling, remaining, reset }
}

fn body(response: &Response<Bytes>) -> &str {
    std::str::from_utf8(response.body()).unwrap()
}

fn shown(dialect: &Dialect, standings: &[Standing], status: u16, moment: Moment) -> Vec<(String, String)> {
    let mut headers = HeaderMap::new();
    headers.insert("retry-after", 7.into());
    let status = StatusCode::from_u16(status).unwrap();
    mark(dialect, standings, None, status, moment, &mut headers);
    headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect()
}

const TPM: Dimension = Dimension::TokensPerMinute;
const RPM: Dimension = Dimension::RequestsPerMinute;

#[test]
fn s0_4_and_s0_5_the_body_and_retry_after_of_the_document_are_equal_to_the_byte() {
    let mut kimchi = preset("kimchi");
    kimchi.retry_after.spread = false;
    let wait = Some(Duration::from_millis(4_200));
    let response = refusal(&kimchi, &facts(Kind::Rate, wait, Some(over(TPM, 1_000, 0))), NOW);
    assert_eq!(response.status(), 429);
    assert_eq!(
        body(&response),
        r#"{"error": "minimax-m2.7 model is rate limited until 2026-02-05T15:32:41Z"}"#
    );
    assert_eq!(response.headers()["retry-after"], "5");
    assert_eq!(response.headers()["content-type"], "application/json");
    assert_eq!(response.headers().len(), 2);
}

#[test]
fn s0_6_until_is_never_earlier_than_now_and_retry_after_and_less_than_a_second_later() {
    let kimchi = preset("kimchi");
    for truth in [0_u64, 1, 999, 1_000, 1_001, 2_500, 59_999, 86_400_000] {
        for fraction in [0_u64, 1, 400, 600, 999] {
            for jitter in [0.0, 0.3, 0.999] {
                let unix = Duration::from_millis(1_770_305_555_000 + fraction);
                let moment = Moment { unix, jitter };
                let wait = Wait::of(Duration::from_millis(truth), true, moment);
                let stated = unix.as_millis() as u64 + wait.seconds * 1_000;
                assert!(wait.until_unix * 1_000 >= stated, "{truth} {fraction} {jitter}");
                assert!(wait.until_unix * 1_000 < stated + 1_000, "{truth} {fraction} {jitter}");
                let known = facts(Kind::Capacity, Some(Duration::from_millis(truth)), None);
                let response = refusal(&kimchi, &known, moment);
                assert!(body(&response).contains(&rfc3339(wait.until_unix)));
                assert_eq!(response.headers()["retry-after"], wait.seconds.to_string());
            }
        }
    }
}

#[test]
fn s2_8_the_three_headers_of_the_document_are_equal_to_the_byte() {
    let predictions = preset("predictions");
    // 2024-01-15T09:59:12.345Z, in a minute that ends at 10:00:00.
    let moment = Moment { unix: Duration::from_millis(1_705_312_752_345), jitter: 0.0 };
    let expected = |rest: &[(&str, &str)]| -> Vec<(String, String)> {
        let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        rest.iter().map(pair).collect()
    };
    let three =
        [("x-ratelimit-limit", "60"), ("x-ratelimit-remaining", "45"), ("x-ratelimit-reset", "1705312800")];
    // The two clocks are a millisecond apart, either way.
    for millis in [47_654, 47_655, 47_656] {
        let rpm = standing(RPM, 60, 45, Duration::from_millis(millis));
        // s2_7: Retry-After only on a 429, an upstream's own included.
        for status in [200, 201, 400, 404, 500, 503] {
            assert_eq!(shown(&predictions, &[rpm], status, moment), expected(&three), "{status} {millis}");
        }
        let mut limited = shown(&predictions, &[rpm], 429, moment);
        assert_eq!(limited.remove(0), ("retry-after".to_owned(), "7".to_owned()));
        assert_eq!(limited, expected(&three));
    }
    assert_eq!(
        predictions.headers.iter().map(|header| header.name.as_str()).collect::<Vec<_>>(),
        ["X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"]
    );
}

#[test]
fn s2_11_and_s2_12_the_body_of_the_document_is_equal_to_the_byte_and_its_integers_agree() {
    let predictions = preset("predictions");
    let wait = Some(Duration::from_secs(1));
    for (limit, active) in [(5, 5), (7, 9), (0, 0)] {
        let known = facts(Kind::Jobs, wait, Some(over(Dimension::Jobs, limit, active)));
        let response = refusal(&predictions, &known, NOW);
        let read: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        let error = &read["error"];
        assert_eq!(
            (error["details"]["limit"].as_u64(), error["details"]["active"].as_u64()),
            (Some(limit), Some(active))
        );
        let message = format!("Concurrent prediction limit exceeded. {active}/{limit} predictions running.");
        assert_eq!(error["message"], message);
        if limit == 5 {
            assert_eq!(response.status(), 429);
            let document = r#"{"error":{"type":"rate_limit_error","message":"Concurrent prediction limit exceeded. 5/5 predictions running.","code":"CONCURRENT_LIMIT_EXCEEDED","details":{"limit":5,"active":5}}}"#;
            assert_eq!(body(&response), document);
        }
    }
}

#[test]
fn x_1_every_kind_of_every_preset_is_the_json_it_claims_whatever_the_names_and_numbers() {
    for preset in crate::wire::dialect::PRESETS {
        let dialect = Dialect::preset(preset.name).unwrap();
        for kind in Kind::ALL {
            let mut over = over(TPM, MAX_FINITE, u64::MAX);
            over.meter = if *kind == Kind::Period { Meter::Period(Budget::SpendPerDay) } else { over.meter };
            let known = Facts {
                model: "a \"quoted\"\\ model\u{0}\n{limit} é",
                tier: "\"",
                ..facts(*kind, Some(Duration::from_secs(3)), Some(over))
            };
            let response = refusal(&dialect, &known, NOW);
            let read: serde_json::Value = serde_json::from_slice(response.body()).unwrap_or_else(|error| {
                panic!("{} {}: {error}: {}", preset.name, kind.word(), body(&response))
            });
            assert!(read.is_object());
            assert!(!body(&response).contains("{retry_after}"));
        }
    }
}

#[test]
fn x_4_retry_after_is_sent_where_a_wait_helps_and_nowhere_else() {
    let wait = Some(Duration::from_secs(3));
    for preset in crate::wire::dialect::PRESETS {
        let dialect = Dialect::preset(preset.name).unwrap();
        let sent = |kind, wait| {
            let response = refusal(&dialect, &facts(kind, wait, Some(over(RPM, 1, 0))), NOW);
            response.headers().contains_key("retry-after")
        };
        for kind in [Kind::Rate, Kind::Concurrency, Kind::Jobs, Kind::Capacity] {
            assert!(sent(kind, wait), "{} {}", preset.name, kind.word());
        }
        for kind in [Kind::Credit, Kind::Recharge, Kind::TooLarge, Kind::UnknownModel, Kind::Unauthorized] {
            assert!(!sent(kind, None), "{} {}", preset.name, kind.word());
        }
    }
}

#[test]
fn openai_headers_are_go_durations_and_only_of_what_is_limited() {
    let standings = [
        standing(RPM, 60, 45, Duration::from_millis(15_000)),
        standing(Dimension::Concurrency, 5, 3, Duration::ZERO),
    ];
    let headers = shown(&preset("openai"), &standings, 503, NOW);
    let pairs: Vec<(&str, &str)> = headers.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    assert_eq!(
        pairs,
        [
            ("retry-after", "7"),
            ("x-ratelimit-limit-requests", "60"),
            ("x-ratelimit-remaining-requests", "45"),
            ("x-ratelimit-reset-requests", "15s"),
        ]
    );
}

#[test]
fn anthropic_headers_are_rfc_3339_with_remaining_tokens_to_the_nearest_thousand() {
    let standings = [
        standing(TPM, 40_000, 39_512, Duration::from_millis(4_400)),
        standing(Dimension::OutputTokensPerMinute, 800, 700, Duration::from_millis(4_500)),
    ];
    let headers = shown(&preset("anthropic"), &standings, 200, NOW);
    let value = |name: &str| headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str());
    assert_eq!(value("anthropic-ratelimit-tokens-limit"), Some("40000"));
    assert_eq!(value("anthropic-ratelimit-tokens-remaining"), Some("40000"));
    assert_eq!(value("anthropic-ratelimit-tokens-reset"), Some("2026-02-05T15:32:40Z"));
    // Never above the limit itself.
    assert_eq!(value("anthropic-ratelimit-output-tokens-remaining"), Some("800"));
    assert_eq!(value("anthropic-ratelimit-output-tokens-reset"), Some("2026-02-05T15:32:41Z"));
    assert_eq!(value("anthropic-ratelimit-requests-limit"), None);
}

#[test]
fn ietf_the_policy_line_carries_the_ceiling_and_what_is_left_moves() {
    let mut standings = vec![
        standing(RPM, 50, 40, Duration::from_millis(29_100)),
        standing(TPM, MAX_FINITE / 2, 7, Duration::from_secs(60)),
        standing(Dimension::Concurrency, 5, 3, Duration::ZERO),
    ];
    let headers = shown(&preset("ietf"), &standings, 200, NOW);
    let values = |name: &str| -> Vec<String> {
        headers.iter().filter(|(found, _)| found == name).map(|(_, value)| value.clone()).collect()
    };
    assert_eq!(
        values("ratelimit-policy"),
        [
            r#""rpm";q=100;w=60;qu="requests", "tpm";q=999999999999999;w=60;qu="tidegate-tokens""#,
            r#""concurrent";q=10;qu="concurrent-requests""#,
        ]
    );
    assert_eq!(values("ratelimit"), [r#""rpm";r=40;t=30, "tpm";r=7;t=60"#, r#""concurrent";r=3"#]);
    // The limit falls with the load: the policy line does not.
    let policy = values("ratelimit-policy");
    standings[0].limit = 45;
    let later = shown(&preset("ietf"), &standings, 200, NOW);
    assert!(later.iter().filter(|(name, _)| name == "ratelimit-policy").map(|(_, value)| value).eq(&policy));
    // Nothing limited, nothing said.
    assert!(shown(&preset("ietf"), &[], 200, NOW).iter().all(|(name, _)| name == "retry-after"));
}

#[test]
fn the_tightest_limit_is_the_one_that_refused_or_has_the_least_part_left() {
    let kimi = preset("kimi");
    let standings = [
        standing(RPM, 200, 20, Duration::from_secs(5)),
        standing(TPM, 1_000, 900, Duration::from_secs(9)),
        standing(Dimension::Concurrency, 1, 0, Duration::ZERO),
    ];
    let shown = |refused| {
        let mut headers = HeaderMap::new();
        mark(&kimi, &standings, refused, StatusCode::TOO_MANY_REQUESTS, NOW, &mut headers);
        headers["x-ratelimit-limit"].to_str().unwrap().to_owned()
    };
    assert_eq!(shown(None), "200");
    assert_eq!(shown(Some(TPM)), "1000");
    // A count has no window: the rates are shown.
    assert_eq!(shown(Some(Dimension::Concurrency)), "200");
}

#[test]
fn a5_retry_after_is_never_early_and_at_most_a_second_or_a_tenth_late() {
    for truth_ms in [0_u64, 1, 999, 1_000, 1_001, 2_500, 59_999, 123_456, 10_000_000] {
        for jitter in [0.0, 0.3, 0.7, 1.0, 7.0] {
            for spread in [false, true] {
                let truth = Duration::from_millis(truth_ms);
                let Wait { seconds, millis, .. } = Wait::of(truth, spread, Moment { jitter, ..NOW });
                let most = truth_ms + if spread { (truth_ms / 10).clamp(1_000, 60_000) } else { 999 };
                assert!(seconds * 1_000 >= truth_ms && seconds * 1_000 <= most, "{truth_ms} {jitter}");
                assert!(millis >= truth_ms && millis <= most, "{truth_ms} {jitter}: {millis}");
                assert!((seconds * 1_000).abs_diff(millis) <= 1_000);
            }
        }
    }
    assert_eq!(Wait::of(Duration::from_nanos(1_000_000_001), false, NOW).seconds, 2);
}

/// Two nodes whose wall clocks are ten minutes apart: what is a duration is the same at both, and
/// each names the instant by its own clock.
#[test]
fn b04_nodes_of_skewed_clocks_answer_the_same_retry_after() {
    for preset in crate::wire::dialect::PRESETS {
        let dialect = Dialect::preset(preset.name).unwrap();
        let skew = Duration::from_secs(300);
        let [early, late] = [NOW.unix - skew, NOW.unix + skew].map(|unix| {
            let moment = Moment { unix, ..NOW };
            let known = facts(Kind::Rate, Some(Duration::from_millis(4_200)), Some(over(RPM, 60, 0)));
            refusal(&dialect, &known, moment)
        });
        assert_eq!(early.headers(), late.headers(), "{}", preset.name);
        assert_eq!(early.headers()["retry-after"], "5");
    }
    let until = |unix| Wait::of(Duration::from_millis(4_200), false, Moment { unix, ..NOW }).until_unix;
    let skew = Duration::from_secs(300);
    assert_eq!(until(NOW.unix + skew) - until(NOW.unix - skew), 600);
}

#[test]
fn a_dialect_of_ones_own_says_what_it_says_when_it_says_so() {
    let text = |status, content_type: &str, body| Answer {
        status,
        content_type: content_type.to_owned(),
        body: Template::parse(body).unwrap(),
    };
    let mut own = preset("openai");
    own.answers.insert(
        Kind::Rate,
        text(420, "text/plain", "{model}: {limit} {dimension} ({scope}, {bound}), {retry_after_ms} ms"),
    );
    own.retry_after = RetryAfter { sent: RetrySent::Never, milliseconds: true, spread: false };
    own.headers = vec![Header {
        name: "X-Left".to_owned(),
        of: Of::Only(RPM),
        value: Template::parse("{remaining} of {limit}, whole at {reset_unix}").unwrap(),
        sent: Sent::Success,
        round: Round::Down,
        step: 1,
    }];
    own.validate().unwrap();
    let known = facts(Kind::Rate, Some(Duration::from_millis(1_500)), Some(over(RPM, 9, 0)));
    let response = refusal(&own, &known, NOW);
    assert_eq!(
        (response.status().as_u16(), body(&response)),
        (420, "minimax-m2.7: 9 rpm (key, static), 1500 ms")
    );
    assert!(!response.headers().contains_key("retry-after"));
    let rpm = [standing(RPM, 9, 4, Duration::from_secs(1))];
    assert_eq!(shown(&own, &rpm, 500, NOW), []);
    let left = "4 of 9, whole at 1770305556";
    assert_eq!(shown(&own, &rpm, 200, NOW), [("x-left".to_owned(), left.to_owned())]);
}
