//! What a client hears, over HTTP: each product in its own dialect, whoever made the answer.

use std::time::{Duration, SystemTime};

use crate::support::node::*;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tidegate::enforce::config::{KeySource, RouteConfig};
use tidegate::unit::{Dimension, Limit};
use tidegate::wire::{Dialect, Entry, LimitTable, Product, Span};

const RPM: Dimension = Dimension::RequestsPerMinute;
const TPM: Dimension = Dimension::TokensPerMinute;
const IPM: Dimension = Dimension::ImagesPerMinute;

/// The table of [`table`] as a product whose answers are a preset's.
pub fn product(preset: &str, span: Span, limits: &[(Dimension, Entry)]) -> LimitTable {
    let mut table = table(1, limits);
    let answers = Dialect::preset(preset).unwrap();
    table.products.insert("p".into(), Product { span, answers, ..Product::default() });
    table.rows.iter_mut().for_each(|row| row.product = Some("p".into()));
    table
}

fn unix() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

fn number(headers: &HeaderMap, name: &str) -> u64 {
    headers[name].to_str().unwrap().parse().unwrap()
}

/// Asks until one is refused.
async fn refused(rig: &Rig) -> (StatusCode, HeaderMap, String) {
    loop {
        let answer = rig.answer(rig.chat("", false)).await;
        if answer.0 != StatusCode::OK {
            return answer;
        }
    }
}

fn get(rig: &Rig, path: &str) -> Request<Full<bytes::Bytes>> {
    let mut request = rig.post(path, &Value::Null);
    *request.method_mut() = http::Method::GET;
    *request.body_mut() = Full::default();
    request
}

/// Decided: a 401 shows no standing, because nobody is known whose it would be.
#[tokio::test]
async fn s2_6_and_s2_7_every_response_to_a_known_key_carries_the_headers_and_only_a_429_retry_after() {
    let rig = Rig::start(&product("predictions", Span::Product, &[(RPM, key_limit(60))])).await;
    let unknown_model = json!({"model": "none", "messages": []});
    let cut = Request::post(format!("http://{}/v1/completions", rig.node.proxy))
        .header("authorization", "Bearer canary-key")
        .body(Full::from("{\"model\""))
        .unwrap();
    let requests = [
        (rig.chat("", false), 200),
        (rig.chat("", true), 200),
        (rig.chat("400", false), 400),
        (rig.chat("500", false), 500),
        (rig.post("/v1/chat/completions", &unknown_model), 404),
        (rig.post("/metrics", &unknown_model), 404),
        (cut, 400),
        (get(&rig, "/v1/models"), 200),
        (get(&rig, "/v1/limits"), 200),
    ];
    for (at, (request, expected)) in requests.into_iter().enumerate() {
        let began = unix();
        let (status, headers, body) = rig.answer(request).await;
        assert_eq!(status.as_u16(), expected, "{at}: {body}");
        assert_eq!(headers["x-ratelimit-limit"], "60", "{at}");
        assert!((50..60).contains(&number(&headers, "x-ratelimit-remaining")), "{at}: {headers:?}");
        assert!((began..=unix() + 61).contains(&number(&headers, "x-ratelimit-reset")), "{at}: {headers:?}");
        assert!(!headers.contains_key("retry-after"), "{at}");
    }
    let (status, headers, body) = refused(&rig).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{body}");
    assert_eq!((number(&headers, "x-ratelimit-limit"), number(&headers, "x-ratelimit-remaining")), (60, 0));
    assert!(number(&headers, "retry-after") >= 1);
    assert!(!headers.contains_key("retry-after-ms"), "not in their document");
    // S2-9: the body of this case is not shown; it follows the shape of the one that is.
    let error: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(error["error"]["code"], "RATE_LIMIT_EXCEEDED");
    assert_eq!(error["error"]["details"], json!({"limit": 60, "remaining": 0}));
    let mut nobody = rig.chat("", false);
    nobody.headers_mut().remove("authorization");
    let (status, headers, body) = rig.answer(nobody).await;
    assert_eq!((status, body.contains("INVALID_API_KEY")), (StatusCode::UNAUTHORIZED, true));
    assert!(!headers.keys().any(|name| name.as_str().starts_with("x-ratelimit")), "{headers:?}");
}

#[tokio::test]
async fn s0_4_s0_5_and_s0_6_the_model_is_limited_until_now_and_retry_after() {
    let rig = Rig::start(&product("kimchi", Span::Model, &[(RPM, key_limit(3))])).await;
    let began = unix();
    let (status, headers, body) = refused(&rig).await;
    let ended = unix();
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    let wait = number(&headers, "retry-after");
    let until = body
        .strip_prefix("{\"error\": \"m model is rate limited until ")
        .and_then(|rest| rest.strip_suffix("\"}"))
        .unwrap_or_else(|| panic!("{body}"));
    let until: jiff::Timestamp = until.parse().unwrap();
    let until = u64::try_from(until.as_second()).unwrap();
    assert!((began + wait..=ended + wait + 1).contains(&until), "{began} + {wait} and {until}");
    // S0-18: no header set is promised, and none is sent.
    assert!(!headers.keys().any(|name| name.as_str().contains("ratelimit")), "{headers:?}");
}

/// Decided: X-RateLimit of the tightest rate, reset in Unix seconds, and an object with a type.
#[tokio::test]
async fn s1_12_the_headers_show_the_tightest_rate_and_the_body_names_what_was_reached() {
    let limits = [(RPM, key_limit(1_000)), (TPM, key_limit(300))];
    let rig = Rig::start(&product("kimi", Span::Product, &limits)).await;
    let (_, headers, _) = rig.answer(rig.chat("", false)).await;
    assert_eq!(headers["x-ratelimit-limit"], "300");
    let (status, headers, body) = refused(&rig).await;
    assert_eq!(
        (status, &headers["x-ratelimit-limit"]),
        (StatusCode::TOO_MANY_REQUESTS, &"300".parse().unwrap())
    );
    let error: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(error["error"]["type"], "rate_limit_reached_error");
    let message = error["error"]["message"].as_str().unwrap();
    let wait = number(&headers, "retry-after");
    assert_eq!(message, format!("request reached tpm limit: 300, please try again after {wait} seconds"));
}

/// Decided: all or nothing, and what no wait makes possible is 400.
#[tokio::test]
async fn s3_6_and_s3_9_images_are_all_or_nothing_and_more_than_the_limit_itself_is_400() {
    let rig = Rig::with(&product("media", Span::Model, &[(IPM, key_limit(10))]), |config| {
        config.routing.routes.push(RouteConfig { prefix: "/v1/images".to_owned(), model: "m".into() });
    })
    .await;
    let images = |n: u64| rig.post("/v1/images/generations", &json!({"prompt": "a tide gate", "n": n}));
    let (status, headers, body) = rig.answer(images(11)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
    assert!(!headers.contains_key("retry-after"), "no wait helps");
    assert!(body.contains("asks for 11, more than the limit of 10 images per minute for m"), "{body}");
    assert_eq!(rig.upstream.requests(), 0);
    assert_eq!(rig.answer(images(8)).await.0, StatusCode::OK);
    let (status, headers, body) = rig.answer(images(3)).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "two are left, and none of them is given: {body}");
    assert!(number(&headers, "retry-after") >= 1);
    assert!(body.contains("The rate limit has been exceeded"), "{body}");
    assert_eq!(rig.answer(images(2)).await.0, StatusCode::OK, "the two are still there");
    assert_eq!(rig.upstream.requests(), 2);
}

/// Inside one's limit but without room: the dialect's status, and a count of its own either way.
#[tokio::test]
async fn x_1_no_room_has_the_status_of_the_dialect_and_is_counted_apart() {
    for (preset, expected, says) in [
        ("kimchi", 429, "m model is rate limited until 2"),
        ("kimi", 429, "engine_overloaded_error"),
        ("predictions", 429, "CAPACITY_EXCEEDED"),
        ("media", 429, "NO_CAPACITY"),
        ("openai", 503, "\"capacity\""),
        ("anthropic", 529, "overloaded_error"),
        ("ietf", 503, "\"capacity\""),
    ] {
        let mut full = product(preset, Span::Model, &[(RPM, key_limit(600))]);
        full.pools.values_mut().for_each(|pool| pool.in_flight = Limit::Finite(1));
        let rig = Rig::start(&full).await;
        let mut open = rig.send(rig.chat("slow", true)).await.into_body();
        timed(open.frame()).await.unwrap().unwrap();
        let (status, headers, body) = rig.answer(rig.chat("", false)).await;
        assert_eq!(status.as_u16(), expected, "{preset}: {body}");
        assert!(body.contains(says) && headers.contains_key("retry-after"), "{preset}: {body} {headers:?}");
        let report = rig.report();
        let refused = [report.rows[0].refused_capacity.requests, report.rows[0].refused_limit.requests];
        assert_eq!(refused, [1, 0], "{preset}");
        let page = rig.get(rig.node.admin, "/metrics").await.2;
        let counted = page
            .lines()
            .find(|line| line.contains("requests_total") && line.contains("\"refused_capacity\""))
            .unwrap_or_else(|| panic!("{page}"));
        assert!(counted.ends_with(" 1"), "{counted}");
    }
}

#[tokio::test]
async fn s0_17_and_s3_10_a_tenant_sees_its_limits_what_remains_and_which_bound_is_active() {
    let tier = Entry {
        tier_limit: Limit::Finite(50_000),
        ceiling: Limit::Finite(90_000),
        guarantee: Limit::Finite(10_000),
        safe: Limit::Finite(10_000),
        key_limit: Limit::Finite(90_000),
        account_limit: Limit::Finite(90_000),
        key_share: Limit::Unlimited,
    };
    let mut table =
        product("openai", Span::Model, &[(RPM, key_limit(60)), (TPM, tier), (IPM, Entry::default())]);
    let mut other = table.rows[0].clone();
    other.tier = "u".into();
    table.rows.push(other);
    let mut second = table.rows[0].clone();
    second.model = "n".into();
    second.limits.insert(Dimension::Concurrency, key_limit(5));
    second.limits.insert(TPM, Entry { tier_limit: Limit::Finite(10_000), ..tier });
    table.rows.push(second);
    let rig = Rig::start(&table).await;
    rig.answer(rig.chat("", false)).await;
    rig.settled().await;
    let before = rig.report().rows.iter().map(|row| row.admitted.requests).sum::<u64>();
    let (status, _, body) = rig.answer(get(&rig, "/v1/limits")).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let shown: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&shown["object"], &shown["truncated"]), (&json!("limits"), &json!(false)));
    let models = shown["models"].as_array().unwrap();
    let names: Vec<_> = models.iter().map(|model| (model["model"].clone(), model["tier"].clone())).collect();
    assert_eq!(names, [(json!("m"), json!("t")), (json!("n"), json!("t"))], "nothing of tier u");
    let limit = |model: &Value, dimension: &str| -> Value {
        let limits = model["limits"].as_array().unwrap();
        limits
            .iter()
            .find(|limit| limit["dimension"] == dimension)
            .cloned()
            .unwrap_or_else(|| panic!("{body}"))
    };
    let rpm = limit(&models[0], "rpm");
    assert_eq!(
        [&rpm["limit"], &rpm["remaining"], &rpm["scope"], &rpm["bound"]],
        [&json!(60), &json!(59), &json!("key"), &json!("static")]
    );
    assert!((0..=60).contains(&rpm["reset"].as_u64().unwrap()));
    let tpm = limit(&models[0], "tpm");
    assert_eq!(
        [&tpm["limit"], &tpm["scope"], &tpm["bound"]],
        [&json!(50_000), &json!("tier"), &json!("load")]
    );
    assert_eq!(limit(&models[1], "tpm")["bound"], "guarantee");
    assert_eq!(limit(&models[0], "ipm"), json!({"dimension": "ipm", "limit": "unlimited"}));
    // Looking is free.
    let after = rig.report().rows.iter().map(|row| row.admitted.requests).sum::<u64>();
    assert_eq!(after, before);
    let mut nobody = get(&rig, "/v1/limits");
    nobody.headers_mut().remove("authorization");
    assert_eq!(rig.answer(nobody).await.0, StatusCode::UNAUTHORIZED);
}

/// Two populations of times are told apart by at most a twentieth of their spread.
#[tokio::test]
async fn i03_unknown_revoked_and_malformed_keys_look_and_time_alike() {
    use std::io::{Read, Write};
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("keys.jsonl");
    let revoked = key_line("revoked-key-012345678", None);
    write(&path, format!("{}\n{revoked}\n", keys()).as_bytes());
    let rig = Rig::with(&product("predictions", Span::Product, &[]), |config| {
        config.keys = KeySource::File(path.clone());
    })
    .await;
    let mut request = get(&rig, "/v1/limits");
    request.headers_mut().insert("authorization", "Bearer revoked-key-012345678".parse().unwrap());
    assert_eq!(rig.answer(request).await.0, StatusCode::OK);
    write(&path, keys().as_bytes());
    rig.node.reload().await.unwrap();
    let at = rig.node.proxy;
    let long = std::env::var_os("TIDEGATE_LONG").is_some();
    let rounds = if long { 100_000 } else { 1_500 };
    let kinds =
        ["Bearer unknown-key-012345678", "Bearer revoked-key-012345678", "Basic  \"{malformed\" 01234567"];
    let measured = tokio::task::spawn_blocking(move || {
        let mut times: [Vec<f64>; 3] = Default::default();
        let mut seen: [Option<String>; 3] = Default::default();
        for round in 0..rounds * 3 {
            // In turns, each first as often as the others.
            let kind = (round + round / 3) % 3;
            let head = format!(
                "GET /v1/limits HTTP/1.1\r\nhost: a\r\nauthorization: {}\r\nconnection: close\r\n\r\n",
                kinds[kind]
            );
            let mut socket = std::net::TcpStream::connect(at).unwrap();
            socket.set_nodelay(true).unwrap();
            let began = std::time::Instant::now();
            socket.write_all(head.as_bytes()).unwrap();
            let mut answer = Vec::new();
            socket.read_to_end(&mut answer).unwrap();
            times[kind].push(began.elapsed().as_secs_f64());
            let text = String::from_utf8(answer).unwrap();
            let text: Vec<&str> = text.lines().filter(|line| !line.starts_with("date:")).collect();
            let text = text.join("\n");
            assert!(text.starts_with("HTTP/1.1 401"), "{text}");
            assert_eq!(seen[kind].get_or_insert_with(|| text.clone()), &text);
        }
        (times, seen)
    });
    let (times, seen) = tokio::time::timeout(Duration::from_secs(600), measured).await.unwrap().unwrap();
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{seen:?}");
    let distance = |a: &[f64], b: &[f64]| {
        // Of a machine that does other things: without the slowest tenth.
        let trim = |times: &[f64]| {
            let mut times = times.to_vec();
            times.sort_by(f64::total_cmp);
            times.truncate(times.len() * 9 / 10);
            let mean = times.iter().sum::<f64>() / times.len() as f64;
            let spread = times.iter().map(|time| (time - mean).powi(2)).sum::<f64>() / times.len() as f64;
            (mean, spread)
        };
        let ((mean_a, spread_a), (mean_b, spread_b)) = (trim(a), trim(b));
        (mean_a - mean_b).abs() / ((spread_a + spread_b) / 2.0).sqrt()
    };
    let most = if long { 0.05 } else { 0.3 };
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        let distance = distance(&times[a], &times[b]);
        println!("{} and {}: Cohen's d {distance:.4} of {} each", kinds[a], kinds[b], times[a].len());
        assert!(distance < most, "{} and {}: {distance}", kinds[a], kinds[b]);
    }
}
