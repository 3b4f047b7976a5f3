//! The proxy over real sockets: who gets in, what is answered, and that everything is settled once.

use std::time::Duration;

use crate::support::node::*;
use http::StatusCode;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tidegate::enforce::config::{RouteConfig, Secret};
use tidegate::unit::{Dimension, Limit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const RPM: Dimension = Dimension::RequestsPerMinute;
const TPM: Dimension = Dimension::TokensPerMinute;

#[tokio::test]
async fn plain_and_streamed_requests_settle_on_the_reported_usage() {
    let rig = Rig::start(&table(1, &[(TPM, key_limit(10_000))])).await;
    let (status, headers, body) = rig.answer(rig.chat("", false)).await;
    assert_eq!(status, StatusCode::OK);
    assert!(body.contains("Hello there"));
    assert_eq!(headers["x-ratelimit-limit-tokens"], "10000");
    assert!(headers.contains_key("x-ratelimit-remaining-tokens"));
    assert!(headers.contains_key("x-ratelimit-reset-tokens"));
    assert_eq!(rig.settled().await, (1, INPUT + OUTPUT));
    let (status, _, body) = rig.answer(rig.chat("", true)).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(body.matches("Hi ").count() as u64, OUTPUT);
    assert!(body.ends_with("data: [DONE]\n\n"));
    assert!(!body.contains("usage"), "the client did not ask for usage: {body}");
    assert_eq!(rig.settled().await, (2, 2 * (INPUT + OUTPUT)));
    // A client that asks for usage gets it, and its body is not touched.
    let body =
        json!({"model": "m", "stream": true, "messages": [], "stream_options": {"include_usage": true}});
    let (_, _, answer) = rig.answer(rig.post("/v1/chat/completions", &body)).await;
    assert!(answer.contains("completion_tokens"));
    assert_eq!(rig.upstream.seen.lock().unwrap()[2].2, body.to_string());
    assert_eq!(rig.settled().await, (3, 3 * (INPUT + OUTPUT)));
    // Without any usage the events are counted.
    let before = rig.settled().await.1;
    rig.answer(rig.chat("nousage", true)).await;
    assert_eq!(rig.settled().await.1 - before, 6 + OUTPUT);
}

#[tokio::test]
async fn a_json_body_is_read_whatever_a_client_calls_it() {
    let rig = Rig::start(&table(1, &[(TPM, key_limit(10_000))])).await;
    let mut request = rig.chat("", false);
    let form = "application/x-www-form-urlencoded".parse().unwrap();
    request.headers_mut().insert(http::header::CONTENT_TYPE, form);
    let (status, _, body) = rig.answer(request).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!(rig.settled().await, (1, INPUT + OUTPUT));
}

#[tokio::test]
async fn a_key_opens_the_api_and_not_whatever_else_the_upstream_serves() {
    let rig = Rig::start(&table(1, &[])).await;
    for path in ["/metrics", "/sleep", "/v1/../sleep", "/v1/%2e%2E/sleep", "/v1/..%2fsleep", "/v1"] {
        let body = json!({"model": "m", "messages": []});
        let (status, _, answer) = rig.answer(rig.post(path, &body)).await;
        assert_eq!((status, answer.contains("path_not_found")), (StatusCode::NOT_FOUND, true), "{path}");
    }
    assert_eq!(rig.upstream.requests(), 0);
}

#[tokio::test]
async fn s5_every_way_of_not_being_known_is_the_same_answer() {
    let rig = Rig::start(&table(1, &[])).await;
    let mut answers = Vec::new();
    for headers in [
        vec![],
        vec![("authorization", "Bearer wrong")],
        vec![("authorization", "Basic a2V5")],
        vec![("authorization", "Bearer canary-key"), ("authorization", "Bearer canary-key")],
        vec![("authorization", "Bearer canary-key"), ("x-api-key", "canary-key")],
    ] {
        let mut request = rig.chat("", false);
        request.headers_mut().remove("authorization");
        for (name, value) in headers {
            request.headers_mut().append(name, value.parse().unwrap());
        }
        let (status, mut headers, body) = rig.answer(request).await;
        headers.remove("date");
        answers.push((status, headers, body));
    }
    assert_eq!(answers[0].0, StatusCode::UNAUTHORIZED);
    assert!(answers[0].2.contains("invalid_api_key"));
    assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "{answers:#?}");
    assert_eq!(rig.upstream.requests(), 0);
    let mut request = rig.chat("", false);
    request.headers_mut().remove("authorization");
    request.headers_mut().insert("x-api-key", "other".parse().unwrap());
    assert_eq!(rig.answer(request).await.0, StatusCode::OK);
}

#[tokio::test]
async fn unknown_models_bad_bodies_and_tunnels_never_reach_the_upstream() {
    let rig = Rig::with(&table(1, &[]), |config| config.caps.body_bytes = 1_000).await;
    let send = |path: &str, body: Value| rig.answer(rig.post(path, &body));
    let (status, _, body) = send("/v1/chat/completions", json!({"model": "x"})).await;
    assert_eq!((status, body.contains("model_not_found")), (StatusCode::NOT_FOUND, true));
    assert_eq!(send("/v1/models", json!({})).await.0, StatusCode::NOT_FOUND);
    let (status, _, body) = send("/v1/chat/completions", json!({"model": "m", "max_tokens": -1})).await;
    assert_eq!((status, body.contains("max_tokens")), (StatusCode::BAD_REQUEST, true));
    let large = json!({"model": "m", "prompt": "x".repeat(2_000)});
    let (status, headers, _) = send("/v1/completions", large).await;
    assert_eq!((status, &headers["connection"]), (StatusCode::PAYLOAD_TOO_LARGE, &"close".parse().unwrap()));
    for head in [
        "CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 5\r\n\r\nabc",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nbad header : x\r\n\r\n",
    ] {
        let mut socket = tokio::net::TcpStream::connect(rig.node.proxy).await.unwrap();
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        timed(socket.read_to_end(&mut answer)).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 400"), "{head}: {}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(rig.upstream.requests(), 0);
    assert_eq!(rig.settled().await, (0, 0));
}

#[tokio::test]
async fn a_route_names_the_model_of_a_body_without_one() {
    let rig = Rig::with(&table(1, &[(Dimension::ImagesPerMinute, key_limit(3))]), |config| {
        config.routing.routes.push(RouteConfig { prefix: "/v1/images".to_owned(), model: "m".into() });
    })
    .await;
    let body = json!({"prompt": "a tide gate", "n": 2});
    assert_eq!(rig.answer(rig.post("/v1/images/generations", &body)).await.0, StatusCode::OK);
    let (status, headers, _) = rig.answer(rig.post("/v1/images/generations", &body)).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(headers["x-ratelimit-remaining-images"], "1");
    assert_eq!(rig.answer(rig.post("/v1/imagesx", &body)).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn i04_identity_and_hop_by_hop_headers_stay_here() {
    let rig = Rig::with(&table(1, &[]), |config| {
        let upstream = config.routing.upstreams.get_mut("main").unwrap();
        upstream.credential = Some(Secret::new("canary-upstream"));
    })
    .await;
    let mut request = rig.chat("", false);
    for (name, value) in [
        ("x-tier", "enterprise"),
        ("x-ratelimit-limit-requests", "1"),
        ("x-forwarded-for", "1.2.3.4"),
        ("connection", "x-drop-me, keep-alive"),
        ("x-drop-me", "1"),
        ("te", "trailers"),
        ("accept-encoding", "gzip"),
        ("x-keep", "1"),
    ] {
        request.headers_mut().append(name, value.parse().unwrap());
    }
    assert_eq!(rig.answer(request).await.0, StatusCode::OK);
    let (path, headers, _) = rig.upstream.seen.lock().unwrap()[0].clone();
    let mut names: Vec<_> = headers.keys().map(|name| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["authorization", "content-length", "content-type", "host", "x-keep"]);
    assert_eq!(headers["authorization"], "Bearer canary-upstream");
    assert_eq!(path, "/v1/chat/completions");
}

#[tokio::test]
async fn a5_a_429_says_when_and_waiting_that_long_is_enough() {
    // One request a second; both keys of the account share it.
    let rig = Rig::start(&table(1, &[(RPM, key_limit(60))])).await;
    for _ in 0..60 {
        assert_eq!(rig.answer(rig.chat("", false)).await.0, StatusCode::OK);
    }
    let mut last = rig.answer(rig.chat("", false)).await;
    // The minute's worth drains while it is used, so a few more may pass.
    while last.0 == StatusCode::OK {
        last = rig.answer(rig.chat("", false)).await;
    }
    let (status, headers, body) = last;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    let error: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(error["error"]["type"], "rate_limit_error");
    assert_eq!(error["error"]["code"], "rate_limit_exceeded");
    let number = |name: &str| headers[name].to_str().unwrap().parse::<u64>().unwrap();
    let seconds = number("retry-after");
    assert!((1..=2).contains(&seconds), "{seconds}");
    assert!(number("retry-after-ms").abs_diff(seconds * 1_000) <= 1_000);
    assert_eq!(headers["x-ratelimit-limit-requests"], "60");
    assert_eq!(headers["x-ratelimit-remaining-requests"], "0");
    assert!(!headers.contains_key("x-ratelimit-limit-tokens"), "tokens are not limited here");
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    assert_eq!(rig.answer(rig.chat("", false)).await.0, StatusCode::OK);
    let report = rig.report();
    assert!(report.rows[0].refused_limit.requests >= 1);
    assert_eq!(report.rows[0].admitted.requests as usize, rig.upstream.requests());
}

#[tokio::test]
async fn no_room_in_the_pool_is_503_and_no_table_is_503() {
    let mut full = table(1, &[]);
    full.pools.values_mut().for_each(|pool| pool.in_flight = Limit::Finite(1));
    let rig = Rig::start(&full).await;
    let mut open = rig.send(rig.chat("slow", true)).await.into_body();
    timed(open.frame()).await.unwrap().unwrap();
    let (status, headers, body) = rig.answer(rig.chat("", false)).await;
    assert_eq!((status, &headers["retry-after"] != "0"), (StatusCode::SERVICE_UNAVAILABLE, true));
    assert!(body.contains("\"capacity\""), "{body}");
    drop(open);
    rig.settled().await;
    assert_eq!(rig.answer(rig.chat("", false)).await.0, StatusCode::OK);

    let dir = tempfile::TempDir::new().unwrap();
    let bare = config(dir.path(), &[rig.upstream.url()]);
    let node = tidegate::enforce::node::Node::start(bare, None).await.unwrap();
    let mut request = rig.chat("", false);
    *request.uri_mut() = format!("http://{}/v1/chat/completions", node.proxy).parse().unwrap();
    let (status, headers, body) = rig.answer(request).await;
    assert_eq!((status, headers.contains_key("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, true));
    assert!(body.contains("no_limits"), "{body}");
    assert_eq!(rig.get(node.admin, "/-/ready").await.0, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn h01_h03_a_disconnect_and_an_upstreams_death_settle_too() {
    let rig = Rig::start(&table(1, &[(TPM, key_limit(1_000_000))])).await;
    // 6 input tokens estimated, 100 output tokens reserved.
    let mut open = rig.send(rig.chat("slow", true)).await.into_body();
    timed(open.frame()).await.unwrap().unwrap();
    assert_eq!(rig.report().pools["p"].in_flight, 1);
    assert_eq!(rig.report().pools["p"].waiting_work, 0, "its first token is out");
    drop(open);
    assert_eq!(rig.settled().await, (1, 106), "never below the estimate");

    let body = rig.send(rig.chat("die", true)).await.into_body();
    assert!(timed(body.collect()).await.is_err(), "the client sees the stream break");
    assert_eq!(rig.settled().await, (2, 212));
    assert_eq!(rig.report().pools["p"].upstream_errors, 1);

    // A client that leaves before the first byte.
    let hanging = rig.http.request(rig.chat("hang", true));
    assert!(tokio::time::timeout(Duration::from_millis(200), hanging).await.is_err());
    assert_eq!(rig.settled().await, (3, 318));

    let (status, _, _) = rig.answer(rig.chat("500", false)).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(rig.settled().await, (4, 318), "no work was done");
    assert_eq!(rig.report().pools["p"].upstream_errors, 2);
    assert_eq!(rig.answer(rig.chat("400", false)).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(rig.settled().await, (5, 318));
    assert_eq!(rig.report().pools["p"].upstream_errors, 2);
    assert_eq!(rig.report().pools["p"].upstream_requests, 5);
}

#[tokio::test]
async fn h10_half_a_head_and_half_a_body_are_not_waited_for() {
    let rig = Rig::with(&table(1, &[]), |config| {
        (config.caps.header_seconds, config.caps.body_seconds) = (1, 1);
    })
    .await;
    for (text, expected) in [
        ("GET / HTTP/1.1\r\nhost:", ""),
        (
            "POST / HTTP/1.1\r\nhost: a\r\nx-api-key: canary-key\r\ncontent-length: 9\r\n\r\nabc",
            "HTTP/1.1 408",
        ),
    ] {
        let mut socket = tokio::net::TcpStream::connect(rig.node.proxy).await.unwrap();
        socket.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timed(socket.read_to_string(&mut answer)).await.unwrap();
        assert!(answer.starts_with(expected), "{answer}");
    }
}

#[tokio::test]
async fn bodies_of_unknown_length_do_not_use_up_the_room() {
    let rig = Rig::with(&table(1, &[]), |config| config.caps.bodies_bytes = 8 << 20).await;
    // One body of unknown length takes all room while it is read, and gives it back.
    let http: hyper_util::client::legacy::Client<_, Boxed> =
        hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build_http();
    let mut open = Vec::new();
    for _ in 0..3 {
        let (parts, body) = rig.chat("slow", true).into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let frames = futures_util::stream::iter([Ok(hyper::body::Frame::data(bytes))]);
        let body = http_body_util::StreamBody::new(frames).boxed_unsync();
        let mut response = timed(http.request(http::Request::from_parts(parts, body))).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        timed(response.body_mut().frame()).await.unwrap().unwrap();
        open.push(response);
    }
    assert_eq!(rig.report().pools["p"].in_flight, 3);
}

#[tokio::test]
async fn h02_an_upstream_that_never_answers_is_given_up() {
    let rig = Rig::with(&table(1, &[]), |config| {
        (config.caps.first_byte_seconds, config.caps.answer_seconds) = (1, 2);
    })
    .await;
    for (streamed, least) in [(true, 1), (false, 2)] {
        let began = tokio::time::Instant::now();
        let (status, _, body) = rig.answer(rig.chat("hang", streamed)).await;
        assert_eq!(status, StatusCode::GATEWAY_TIMEOUT, "{body}");
        // An answer in one piece begins when all of it is made.
        assert_eq!(began.elapsed().as_secs(), least);
    }
    assert_eq!(rig.settled().await.0, 2);
}

/// A listener whose queue is full: connecting to it takes forever.
fn full_listener() -> (std::net::SocketAddr, Vec<Box<dyn std::any::Any>>) {
    let listener = tokio::net::TcpSocket::new_v4().unwrap();
    listener.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let mut held: Vec<Box<dyn std::any::Any>> = vec![Box::new(listener.listen(1).unwrap())];
    loop {
        let timeout = Duration::from_millis(200);
        match std::net::TcpStream::connect_timeout(&address, timeout) {
            Ok(socket) => held.push(Box::new(socket)),
            Err(_) => return (address, held),
        }
    }
}

#[tokio::test]
async fn h02_an_upstream_that_hangs_while_connecting_or_between_chunks_is_given_up() {
    let (address, _held) = full_listener();
    let rig = Rig::with(&table(1, &[(TPM, key_limit(1_000_000))]), |config| {
        config.caps.connect_seconds = 1;
        config.routing.upstreams.get_mut("main").unwrap().urls = vec![format!("http://{address}")];
    })
    .await;
    let (status, _, body) = rig.answer(rig.chat("", true)).await;
    assert_eq!(status, StatusCode::BAD_GATEWAY, "{body}");
    assert_eq!(rig.settled().await, (0, 0), "nothing was sent, so nothing is owed");

    let rig =
        Rig::with(&table(1, &[(TPM, key_limit(1_000_000))]), |config| config.caps.idle_seconds = 1).await;
    let mut body = rig.send(rig.chat("pause", true)).await.into_body();
    let mut pieces = 0;
    let end = loop {
        match timed(body.frame()).await {
            Some(Ok(_)) => pieces += 1,
            other => break other,
        }
    };
    assert!(pieces > 0 && end.is_some_and(|frame| frame.is_err()), "cut off, not ended as if complete");
    // What was reserved stays: nobody knows what the upstream has done since.
    assert_eq!(rig.settled().await, (1, 106));
    assert_eq!(rig.report().pools["p"].upstream_errors, 1);
}

#[tokio::test]
async fn h05_absurd_bounds_are_400_and_the_largest_sane_one_is_reserved() {
    let rig = Rig::start(&table(1, &[(TPM, key_limit(1_000_000))])).await;
    for field in ["max_tokens", "max_completion_tokens", "n", "best_of"] {
        for bad in ["-1", "2147483648", "9223372036854775808", "1e18", "\"7\"", "[1]", "1.5"] {
            let text = format!("{{\"model\":\"m\",\"{field}\":{bad}}}");
            let mut request = rig.chat("", false);
            *request.body_mut() = http_body_util::Full::from(text);
            let (status, _, body) = rig.answer(request).await;
            assert_eq!(
                (status, body.contains(field)),
                (StatusCode::BAD_REQUEST, true),
                "{field} {bad}: {body}"
            );
        }
    }
    assert_eq!((rig.upstream.requests(), rig.settled().await), (0, (0, 0)));
    let body = json!({"model": "m", "max_tokens": 0, "user": "nousage", "messages": []});
    assert_eq!(rig.answer(rig.post("/v1/chat/completions", &body)).await.0, StatusCode::OK);
    assert_eq!(rig.settled().await.0, 1);
}

#[tokio::test]
async fn a_dead_replica_is_passed_over_and_a_dead_pool_releases_everything() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dead = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let rig = Rig::with(&table(1, &[(TPM, key_limit(1_000_000))]), |config| {
        let upstream = config.routing.upstreams.get_mut("main").unwrap();
        upstream.urls.insert(0, dead.clone());
    })
    .await;
    for _ in 0..20 {
        assert_eq!(rig.answer(rig.chat("", false)).await.0, StatusCode::OK);
    }
    assert_eq!(rig.upstream.requests(), 20);
    assert_eq!(rig.settled().await, (20, 20 * (INPUT + OUTPUT)));
    let errors = rig.report().pools["p"].upstream_errors;
    assert!((1..=3).contains(&errors), "tried about every two seconds, not {errors} times");

    let rig = Rig::with(&table(1, &[]), |config| {
        config.routing.upstreams.get_mut("main").unwrap().urls = vec![dead];
    })
    .await;
    assert_eq!(rig.answer(rig.chat("", true)).await.0, StatusCode::BAD_GATEWAY);
    assert_eq!(rig.settled().await, (0, 0), "nothing was sent");
}

#[tokio::test]
async fn the_admin_listener_shows_what_is_in_force() {
    let rig = Rig::with(&table(7, &[(RPM, key_limit(60))]), |config| {
        config.admin_token = Some(Secret::new("canary-operator"));
    })
    .await;
    rig.answer(rig.chat("", false)).await;
    let admin = rig.node.admin;
    assert_eq!(rig.get(admin, "/-/healthy").await.0, StatusCode::OK);
    assert_eq!(rig.get(admin, "/-/ready").await.0, StatusCode::OK);
    let shown: Value = serde_json::from_str(&rig.get(admin, "/v1/table").await.2).unwrap();
    assert_eq!(
        (&shown["version"], &shown["node"], &shown["intervals_expired"]),
        (&json!(7), &json!("n"), &json!(0))
    );
    assert_eq!(shown["effective"][0]["key_limit"], json!(60.0));
    let (status, _, page) = rig.get(admin, "/metrics").await;
    assert_eq!(status, StatusCode::OK);
    assert!(
        page.contains(
            "tidegate_enforce_requests_total{pool=\"p\",model=\"m\",tier=\"t\",verdict=\"admitted\"} 1"
        ),
        "{page}"
    );
    assert!(page.contains("tidegate_enforce_table_version 7"), "{page}");
    let mut reload = rig.post("/-/reload", &json!({}));
    *reload.uri_mut() = format!("http://{admin}/-/reload").parse().unwrap();
    let mut granted = reload.clone();
    assert_eq!(rig.answer(reload).await.0, StatusCode::UNAUTHORIZED);
    granted.headers_mut().insert("authorization", "Bearer canary-operator".parse().unwrap());
    assert_eq!(rig.answer(granted).await.0, StatusCode::OK);

    let mut exposed = config(rig.dir.path(), &[rig.upstream.url()]);
    exposed.admin = "0.0.0.0:0".parse().unwrap();
    let error = tidegate::enforce::node::Node::start(exposed, None).await.err().unwrap().to_string();
    assert!(error.contains("loopback"), "{error}");
}
