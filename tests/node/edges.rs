//! The proxy at its edges: clients that leave at any point, odd framings and paths, bodies nobody
//! wants, answers that cannot be read.

use std::time::Duration;

use crate::support::node::*;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tidegate::enforce::config::RouteConfig;
use tidegate::unit::{Dimension, Limit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const RPM: Dimension = Dimension::RequestsPerMinute;
const TPM: Dimension = Dimension::TokensPerMinute;

/// The head and body of a chat request as bytes.
fn raw(behave: &str, stream: bool) -> Vec<u8> {
    let body = json!({
        "model": "m", "user": behave, "stream": stream, "max_tokens": 100,
        "messages": [{"role": "user", "content": "Hi, how are you today?"}],
    });
    let body = body.to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer canary-key\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head, body].concat().into_bytes()
}

/// Sends the bytes and reads until the other side closes.
async fn converse(rig: &Rig, bytes: &[u8]) -> String {
    let mut socket = TcpStream::connect(rig.node.proxy).await.unwrap();
    socket.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    timed(socket.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn h01_a_client_that_leaves_at_the_last_event_pays_what_it_used() {
    let rig = Rig::start(&table(1, &[(TPM, key_limit(1_000_000))])).await;
    let mut open = rig.send(rig.chat("open", true)).await.into_body();
    let mut text = Vec::new();
    while !text.ends_with(b"[DONE]\n\n") {
        text.extend_from_slice(&timed(open.frame()).await.unwrap().unwrap().into_data().unwrap());
    }
    assert_eq!(rig.report().pools["p"].in_flight, 1, "the connection's end has not come");
    drop(open);
    assert_eq!(rig.settled().await, (1, INPUT + OUTPUT));
}

#[tokio::test]
async fn h01_clients_that_leave_anywhere_leave_nothing_behind() {
    let mut limits = table(1, &[(Dimension::Concurrency, key_limit(3)), (TPM, key_limit(100_000_000))]);
    limits.pools.values_mut().for_each(|pool| pool.in_flight = Limit::Finite(3));
    let rig = Rig::start(&limits).await;
    let mut admitted = 0;
    for behave in ["", "slow", "hang", "die", "open", "500"] {
        for stream in [true, false] {
            let whole = raw(behave, stream);
            for sent in [1, 40, whole.len() - 30, whole.len() - 1, whole.len()] {
                for (read, reset) in [(0, true), (0, false), (1, true), (200, false)] {
                    let mut socket = TcpStream::connect(rig.node.proxy).await.unwrap();
                    socket.write_all(&whole[..sent]).await.unwrap();
                    let answered = sent == whole.len() && !(behave == "hang" || read == 0);
                    if answered {
                        let mut some = vec![0; read];
                        timed(socket.read(&mut some)).await.unwrap();
                    }
                    if reset {
                        // As a client that crashes: RST instead of FIN.
                        socket2_linger(&socket);
                    }
                    drop(socket);
                    admitted += u64::from(answered);
                }
            }
            rig.settled().await;
        }
    }
    let (requests, _) = rig.settled().await;
    assert!(requests >= admitted / 2 && admitted > 0, "{requests} of {admitted}");
    // Every slot is free again.
    let three = [rig.chat("slow", true), rig.chat("slow", true), rig.chat("slow", true)];
    let mut open = Vec::new();
    for request in three {
        let response = rig.send(request).await;
        assert_eq!(response.status(), StatusCode::OK);
        open.push(response);
    }
    assert_eq!(rig.answer(rig.chat("", true)).await.0, StatusCode::TOO_MANY_REQUESTS);
}

/// One step of the stream after the other: usage comes in the last but one.
#[tokio::test]
async fn h01_a_client_that_leaves_after_any_event_frees_its_slot_and_pays_for_what_it_saw() {
    let mut limits = table(1, &[(TPM, key_limit(100_000_000))]);
    limits.pools.values_mut().for_each(|pool| pool.output_cost_milli = 1_000);
    let rig = Rig::start(&limits).await;
    let whole = raw("steps", true);
    let (mut took, mut before) = (Vec::new(), 0);
    for events in 0..=OUTPUT as usize + 1 {
        for reset in [false, true] {
            let mut socket = TcpStream::connect(rig.node.proxy).await.unwrap();
            socket.write_all(&whole).await.unwrap();
            if events == 0 {
                let sent = rig.upstream.requests();
                until("the request to be in flight", || rig.report().pools["p"].in_flight == 1).await;
                until("the upstream to have it", || rig.upstream.requests() >= sent.max(1)).await;
            }
            let mut seen = Vec::new();
            while seen.windows(6).filter(|window| window == b"data: ").count() < events {
                let mut some = [0; 512];
                let read = timed(socket.read(&mut some)).await.unwrap();
                assert!(read > 0, "the stream ended early");
                seen.extend_from_slice(&some[..read]);
            }
            if reset {
                socket2_linger(&socket);
            }
            drop(socket);
            let left = tokio::time::Instant::now();
            let (_, work) = rig.settled().await;
            took.push(left.elapsed());
            // Eleven tokens in, and either the usage or what was reserved.
            assert!(work - before >= INPUT, "{events} events, reset {reset}: {} work", work - before);
            before = work;
        }
    }
    took.sort_unstable();
    // The middle one: the machine may pause in any single case.
    assert!(took[took.len() / 2] <= Duration::from_secs(1), "{took:?}");
}

#[expect(deprecated, reason = "zero seconds never block, which is what the deprecation is about")]
pub fn socket2_linger(socket: &TcpStream) {
    socket.set_linger(Some(Duration::ZERO)).unwrap();
}

#[tokio::test]
async fn h14_usage_in_an_encoded_stream_cannot_be_read_so_the_reservation_stays() {
    let rig = Rig::start(&table(1, &[(TPM, key_limit(1_000_000))])).await;
    let response = rig.send(rig.chat("gzip", true)).await;
    assert_eq!(response.headers()["content-encoding"], "gzip");
    let body = timed(response.into_body().collect()).await.unwrap().to_bytes();
    assert!(body.starts_with(b"\x1f\x8b"), "passed on as it came");
    assert_eq!(rig.settled().await, (1, 106));
}

#[tokio::test]
async fn i05_odd_targets_reach_no_other_host() {
    let rig = Rig::start(&table(1, &[])).await;
    let body = json!({"model": "m"}).to_string();
    let request = |line: &str| {
        format!(
            "{line} HTTP/1.1\r\nhost: elsewhere:1\r\nx-api-key: canary-key\r\nconnection: close\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    for (line, status, path) in [
        ("OPTIONS *", "400", ""),
        ("POST http://elsewhere:1/v1/x?q=1", "200", "/v1/x?q=1"),
        ("POST //elsewhere:1/v1/x", "404", ""),
        ("POST /@elsewhere:1/", "404", ""),
        ("POST http://elsewhere:1", "404", ""),
    ] {
        let answer = converse(&rig, request(line).as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{line}: {answer}");
        if status == "200" {
            let (seen, headers, _) = rig.upstream.seen.lock().unwrap().last().unwrap().clone();
            assert_eq!(seen, path);
            assert_eq!(headers["host"], rig.upstream.address.to_string());
        }
    }
    assert_eq!(rig.upstream.requests(), 1);
}

#[tokio::test]
async fn reading_costs_a_request_and_no_work_and_models_are_listed_unless_routed() {
    let limits =
        [(RPM, key_limit(100)), (TPM, key_limit(10_000)), (Dimension::ImagesPerMinute, key_limit(9))];
    let rig = Rig::with(&table(1, &limits), |config| {
        config.routing.routes.push(RouteConfig { prefix: "/v1/videos".to_owned(), model: "m".into() });
    })
    .await;
    let ask = |method: Method, path: &str| {
        let mut request = rig.post(path, &Value::Null);
        *request.method_mut() = method;
        *request.body_mut() = Default::default();
        request
    };
    let (status, _, body) = rig.answer(ask(Method::GET, "/v1/models")).await;
    let list: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &list["data"][0]["id"], rig.upstream.requests()), (StatusCode::OK, &json!("m"), 0));
    assert_eq!(list["data"].as_array().unwrap().len(), 1);
    let mut nobody = ask(Method::GET, "/v1/models");
    nobody.headers_mut().remove("authorization");
    assert_eq!(rig.answer(nobody).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(rig.answer(ask(Method::GET, "/v1/other")).await.0, StatusCode::NOT_FOUND);
    for method in [Method::GET, Method::HEAD, Method::GET] {
        assert_eq!(rig.answer(ask(method, "/v1/videos/7?x=1")).await.0, StatusCode::OK);
    }
    // What the upstream says it used counts, here for the two that have a body.
    assert_eq!(rig.settled().await, (3, 2 * (INPUT + OUTPUT)));
    let (status, headers, _) = rig.answer(ask(Method::POST, "/v1/videos")).await;
    assert_eq!((status, &headers["x-ratelimit-remaining-images"]), (StatusCode::OK, &"8".parse().unwrap()));
    assert_eq!(rig.upstream.seen.lock().unwrap()[0].0, "/v1/videos/7?x=1");
}

#[tokio::test]
async fn h10_bodies_announced_and_not_sent_hold_no_room_and_full_is_503() {
    let rig = Rig::with(&table(1, &[]), |config| {
        (config.caps.body_bytes, config.caps.bodies_bytes) = (1 << 20, 1 << 20);
    })
    .await;
    let head = "POST /v1/completions HTTP/1.1\r\nhost: a\r\nx-api-key: canary-key\r\ncontent-length: 1000000\r\n\r\n";
    let mut idle = Vec::new();
    for _ in 0..5 {
        let mut socket = TcpStream::connect(rig.node.proxy).await.unwrap();
        socket.write_all(head.as_bytes()).await.unwrap();
        idle.push(socket);
    }
    assert_eq!(timed(rig.answer(rig.chat("", true))).await.0, StatusCode::OK);
    // One that sends nearly all of it holds it until it is through.
    idle[0].write_all(&vec![b' '; 999_000]).await.unwrap();
    let large = json!({"model": "m", "prompt": "x".repeat(900_000)});
    let answer = tokio::time::timeout(Duration::from_millis(500), idle[0].read_u8()).await;
    assert!(answer.is_err(), "the rest of its body is waited for");
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let (headers, body) = loop {
        let (status, headers, body) = rig.answer(rig.post("/v1/completions", &large)).await;
        if status != StatusCode::OK {
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
            break (headers, body);
        }
        assert!(tokio::time::Instant::now() < deadline, "never full");
    };
    assert_eq!(headers["retry-after"], "1");
    assert!(body.contains("\"capacity\""), "{body}");
    drop(idle);
    while rig.answer(rig.post("/v1/completions", &large)).await.0 != StatusCode::OK {
        assert!(tokio::time::Instant::now() < deadline, "never free again");
    }
}

#[tokio::test]
async fn a_sender_without_a_key_hears_so_and_keeps_its_connection() {
    let rig = Rig::start(&table(1, &[])).await;
    let mut socket = TcpStream::connect(rig.node.proxy).await.unwrap();
    for _ in 0..3 {
        let head = "POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 200000\r\n\r\n";
        socket.write_all(head.as_bytes()).await.unwrap();
        socket.write_all(&vec![b'x'; 200_000]).await.unwrap();
        let mut answer = vec![0; 4_096];
        let read = timed(socket.read(&mut answer)).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
        assert!(answer.starts_with("HTTP/1.1 401") && !answer.contains("connection: close"), "{answer}");
    }
    // Only so much is read for that.
    let head = "POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 3000000\r\n\r\n";
    assert!(converse(&rig, head.as_bytes()).await.contains("connection: close"));
}

#[tokio::test]
async fn a_refused_stream_is_plain_json_and_its_headers_show_the_limit_that_refused() {
    let tier = entry(Limit::Finite(60), Limit::Finite(30));
    let rig = Rig::start(&table(1, &[(RPM, tier)])).await;
    // Two seconds' worth of the tier's limit, which is wider than the key's.
    let mut last = rig.answer(rig.chat("", true)).await;
    assert_eq!(last.1["x-ratelimit-limit-requests"], "30");
    while last.0 == StatusCode::OK {
        last = rig.answer(rig.chat("", true)).await;
    }
    let (status, headers, body) = last;
    assert_eq!(
        (status, &headers["content-type"]),
        (StatusCode::TOO_MANY_REQUESTS, &"application/json".parse().unwrap())
    );
    let error: Value = serde_json::from_str(&body).unwrap();
    assert!(error["error"]["message"].as_str().unwrap().contains("tier"), "{error}");
    assert_eq!(headers["x-ratelimit-limit-requests"], "60");
    assert_eq!(headers["x-ratelimit-remaining-requests"], "0");
}
