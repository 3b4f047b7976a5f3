//! Several providers of one model: who is asked, who is left alone and for how long, and that the
//! client and every provider are charged once.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::node::*;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tidegate::enforce::config::{RoutingConfig, Secret, UpstreamConfig};
use tidegate::unit::{Dimension, Limit};
use tidegate::wire::{Hold, LimitTable, ModelEntry, Quantity};

const RPM: Dimension = Dimension::RequestsPerMinute;
const TPM: Dimension = Dimension::TokensPerMinute;

/// What a provider does with its request of that number.
type Script = dyn Fn(usize) -> Does + Send + Sync;

#[derive(Clone)]
enum Does {
    Serve,
    /// Answers like that.
    Say(u16, Vec<(&'static str, &'static str)>, &'static str),
    /// Takes the request and closes the connection.
    Hang,
    /// Begins a stream and breaks off.
    Break,
}

struct Provider {
    url: String,
    seen: Arc<Mutex<Vec<(HeaderMap, Bytes)>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Provider {
    async fn start(script: impl Fn(usize) -> Does + Send + Sync + 'static) -> Provider {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (seen, script): (Arc<Mutex<Vec<_>>>, Arc<Script>) = (Arc::default(), Arc::new(script));
        let record = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let Ok((socket, _)) = listener.accept().await else { continue };
                let (record, script) = (Arc::clone(&record), Arc::clone(&script));
                let service = service_fn(move |request| {
                    let (record, script) = (Arc::clone(&record), Arc::clone(&script));
                    serve(request, record, script)
                });
                connections.spawn(async move {
                    let builder = hyper::server::conn::http1::Builder::new();
                    let _ = builder.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        Provider { url, seen, task }
    }

    fn requests(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    request: Request<Incoming>,
    record: Arc<Mutex<Vec<(HeaderMap, Bytes)>>>,
    script: Arc<Script>,
) -> Result<Response<Boxed>, std::io::Error> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let number = {
        let mut seen = record.lock().unwrap();
        seen.push((parts.headers, body.clone()));
        seen.len() - 1
    };
    let ask: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let whole = |status: u16, text: String| {
        let body = Full::new(Bytes::from(text)).map_err(|never: Infallible| match never {}).boxed_unsync();
        let mut response = Response::new(body);
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        response.headers_mut().insert("content-type", "application/json".parse().unwrap());
        response
    };
    match script(number) {
        Does::Hang => Err(std::io::Error::other("gone")),
        Does::Say(status, headers, text) => {
            let mut response = whole(status, text.to_owned());
            for (name, value) in headers {
                response.headers_mut().insert(name, value.parse().unwrap());
            }
            Ok(response)
        }
        Does::Break => {
            let begun =
                stream::once(async { Ok(Frame::data(Bytes::from_static(b"data: {\"choices\":[{}]}\n\n"))) });
            let cut = stream::once(async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                Err(std::io::Error::other("dies"))
            });
            let mut response = Response::new(StreamBody::new(begun.chain(cut)).boxed_unsync());
            response.headers_mut().insert("content-type", "text/event-stream".parse().unwrap());
            Ok(response)
        }
        Does::Serve => {
            let usage = json!({"prompt_tokens": INPUT, "completion_tokens": OUTPUT});
            let mut response = match ask["stream"] == json!(true) {
                true => {
                    let text = format!("data: {{\"choices\":[],\"usage\":{usage}}}\n\ndata: [DONE]\n\n");
                    let mut response = whole(200, text);
                    response.headers_mut().insert("content-type", "text/event-stream".parse().unwrap());
                    response
                }
                false => whole(200, json!({"choices": [{}], "usage": usage}).to_string()),
            };
            // A provider's limits are between it and the node.
            for (name, value) in [
                ("x-ratelimit-limit-requests", "4,000"),
                ("x-ratelimit-remaining-requests", "3999"),
                ("x-ratelimitbysize-limit-minute", "7"),
                ("anthropic-ratelimit-tokens-limit", "48000"),
                ("ratelimit", "\"default\";r=50;t=30"),
                ("x-tokenlimit-limit", "9"),
                ("retry-after", "9"),
                ("x-kept", "yes"),
            ] {
                response.headers_mut().insert(name, value.parse().unwrap());
            }
            Ok(response)
        }
    }
}

/// The tests' model has these providers, in this order.
fn listed(limits: &[(Dimension, tidegate::wire::Entry)], names: &[&str]) -> LimitTable {
    let mut table = table(1, limits);
    let providers = names.iter().map(|name| (*name).into()).collect();
    table.models.insert("m".into(), ModelEntry { providers, ..ModelEntry::default() });
    table
}

fn upstreams(providers: &[(&str, &Provider)]) -> RoutingConfig {
    let upstream = |name: &str, provider: &Provider| UpstreamConfig {
        urls: vec![provider.url.clone()],
        // A model belongs to one upstream by name; a policy's list needs no name here.
        models: vec![format!("none of {name}")],
        credential: Some(Secret::new(format!("canary-of-{name}"))),
        ask_usage: true,
        ..UpstreamConfig::default()
    };
    let upstreams: BTreeMap<_, _> =
        providers.iter().map(|(name, provider)| ((*name).to_owned(), upstream(name, provider))).collect();
    RoutingConfig { upstreams, routes: Vec::new() }
}

async fn rig(limits: &[(Dimension, tidegate::wire::Entry)], providers: &[(&str, &Provider)]) -> Rig {
    let names: Vec<&str> = providers.iter().map(|(name, _)| *name).collect();
    let routing = upstreams(providers);
    Rig::with(&listed(limits, &names), |config| config.routing = routing).await
}

fn say(status: u16, headers: &[(&'static str, &'static str)], text: &'static str) -> Does {
    Does::Say(status, headers.to_vec(), text)
}

/// The whole report, with what was learned.
async fn reported(rig: &Rig) -> BTreeMap<String, tidegate::wire::ProviderUsage> {
    let providers = rig.node.report().providers;
    providers.into_iter().map(|(name, usage)| (name.to_string(), usage)).collect()
}

/// Show 4: the first is out of quota, the second fails, the third is well.
#[tokio::test]
async fn s0_7_a_thousand_requests_fall_back_and_each_is_charged_once() {
    let first = Provider::start(|_| {
        say(
            429,
            &[("retry-after", "60")],
            r#"{"error":{"message":"Rate limit reached","code":"rate_limit_exceeded"}}"#,
        )
    })
    .await;
    let second = Provider::start(|_| say(500, &[], r#"{"error":"broken"}"#)).await;
    let third = Provider::start(|_| Does::Serve).await;
    let limits = [(RPM, key_limit(100_000)), (TPM, key_limit(1_000_000_000))];
    let rig = rig(&limits, &[("first", &first), ("second", &second), ("third", &third)]).await;
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let requests: Vec<_> = (0..63).map(|at| (at, rig.chat("", at % 2 == 0))).collect();
        let http = rig.http.clone();
        clients.spawn(async move {
            let mut statuses = Vec::new();
            for (at, request) in requests {
                let (parts, body) = timed(http.request(request)).await.unwrap().into_parts();
                let body = timed(body.collect()).await.unwrap().to_bytes();
                let told = body.windows(5).any(|window| window == b"usage");
                assert_eq!(told, at % 2 == 1, "usage of a stream was not asked for");
                assert_eq!(parts.headers["x-kept"], "yes");
                statuses.push(parts.status);
            }
            statuses
        });
    }
    let statuses: Vec<StatusCode> = clients.join_all().await.concat();
    assert_eq!(statuses.len(), 1_008);
    assert!(statuses.iter().all(|status| *status == StatusCode::OK), "{statuses:?}");
    // The client: each request once, as used.
    assert_eq!(rig.settled().await, (1_008, 1_008 * (INPUT + OUTPUT)));
    // The providers: each attempt once, and what they saw is what was reported.
    assert_eq!(third.requests(), 1_008);
    assert!((1..=16).contains(&first.requests()), "held after its first refusal: {}", first.requests());
    assert!((3..100).contains(&second.requests()), "left alone after three failures: {}", second.requests());
    let learned = reported(&rig).await;
    for (name, provider) in [("first", &first), ("second", &second), ("third", &third)] {
        assert_eq!(learned[name].attempts, provider.requests() as u64, "{name}");
        assert_eq!(learned[name].attempts + learned[name].skipped, 1_008, "{name}");
    }
    assert_eq!(
        (learned["first"].limited, learned["first"].hold),
        (learned["first"].attempts, Some(Hold::Limited))
    );
    assert!(learned["first"].held_ms > 50_000, "{}", learned["first"].held_ms);
    assert_eq!(learned["second"].failed, learned["second"].attempts);
    assert_eq!((learned["third"].served, learned["third"].held_ms), (1_008, 0));
    let limit = learned["third"].limits.iter().find(|limit| limit.quantity == Quantity::Requests).unwrap();
    assert_eq!((limit.limit, limit.remaining), (Some(4_000), Some(3_999)));
    let pool = rig.report().pools["p"];
    let refused = (first.requests() + second.requests()) as u64;
    assert_eq!((pool.upstream_requests, pool.upstream_errors), (1_008 + refused, refused));
    let (_, _, page) = rig.get(rig.node.admin, "/metrics").await;
    let served = r#"tidegate_enforce_provider_attempts_total{provider="third",outcome="served"} 1008"#;
    assert!(page.contains(served), "{page}");
    assert!(page.contains(r#"tidegate_enforce_provider_held_seconds{provider="first"} 5"#), "{page}");
}

#[tokio::test]
async fn h13_when_all_are_limited_the_earliest_time_is_told_and_nobody_is_charged() {
    let minute = Provider::start(|_| say(429, &[("retry-after", "40")], "{}")).await;
    let day = Provider::start(|_| say(402, &[("retry-after", "86400")], "{}")).await;
    let soon = Provider::start(|_| say(429, &[("retry-after-ms", "20500")], "{}")).await;
    let rig = rig(&[(RPM, key_limit(60))], &[("minute", &minute), ("day", &day), ("soon", &soon)]).await;
    for asked in 0..50 {
        let (status, headers, body) = rig.answer(rig.chat("", asked % 2 == 0)).await;
        assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{body}");
        let after: u64 = headers["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((15..=23).contains(&after), "{after}");
    }
    let seen = [&minute, &day, &soon].map(Provider::requests);
    assert_eq!(seen, [1, 1, 1], "each was asked once, and then left alone");
    let (requests, work) = rig.settled().await;
    assert_eq!((requests, work), (0, 0), "a refusal is free");
    let learned = reported(&rig).await;
    assert_eq!((learned["day"].exhausted, learned["day"].hold), (1, Some(Hold::Exhausted)));
    assert!(learned["day"].held_ms > 86_000_000);
}

#[tokio::test]
async fn h13_overload_of_the_last_one_is_capacity_and_not_a_limit() {
    let limited = Provider::start(|_| say(429, &[("retry-after", "40")], "{}")).await;
    let full = Provider::start(|_| say(529, &[], r#"{"error":{"type":"overloaded_error"}}"#)).await;
    let rig = rig(&[], &[("limited", &limited), ("full", &full)]).await;
    let (status, headers, _) = rig.answer(rig.chat("", false)).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(["1", "2"].contains(&headers["retry-after"].to_str().unwrap()));
}

#[tokio::test]
async fn s0_7_a_request_at_fault_is_at_fault_everywhere() {
    for status in [400, 401, 403, 404, 413, 422] {
        let first = Provider::start(move |_| {
            say(status, &[("retry-after", "7")], r#"{"error":{"code":"insufficient_quota"}}"#)
        })
        .await;
        let second = Provider::start(|_| Does::Serve).await;
        let rig = rig(&[], &[("first", &first), ("second", &second)]).await;
        for _ in 0..5 {
            let (got, _, body) = rig.answer(rig.chat("", false)).await;
            assert_eq!((got.as_u16(), body.contains("insufficient_quota")), (status, true));
        }
        assert_eq!((first.requests(), second.requests()), (5, 0), "{status}: not held, not passed over");
    }
}

#[tokio::test]
async fn a_provider_that_breaks_off_or_is_away_gives_way_and_the_last_failure_is_told() {
    let gone = Provider::start(|_| Does::Hang).await;
    let well = Provider::start(|_| Does::Serve).await;
    let (status, _, _) = {
        let rig = rig(&[], &[("gone", &gone), ("well", &well)]).await;
        rig.answer(rig.chat("", false)).await
    };
    assert_eq!((status, gone.requests(), well.requests()), (StatusCode::OK, 1, 1));
    // Nothing listens there any more.
    let away = Provider::start(|_| Does::Serve).await;
    away.task.abort();
    until("the port to be closed", || std::net::TcpStream::connect(&away.url[7..]).is_err()).await;
    let rig1 = rig(&[], &[("away", &away), ("well", &well)]).await;
    assert_eq!(rig1.answer(rig1.chat("", true)).await.0, StatusCode::OK);
    assert_eq!(rig1.settled().await.0, 1);
    // The last failure is told as it is, and counts as one request of no work.
    let broken = Provider::start(|_| say(500, &[("x-ratelimit-limit", "3")], r#"{"error":"told"}"#)).await;
    let rig2 = rig(&[(RPM, key_limit(60))], &[("gone", &gone), ("broken", &broken)]).await;
    let (status, headers, body) = rig2.answer(rig2.chat("", false)).await;
    assert_eq!((status.as_u16(), body.as_str()), (500, r#"{"error":"told"}"#));
    assert!(!headers.contains_key("x-ratelimit-limit"));
    assert_eq!(rig2.settled().await, (1, 0));
}

#[tokio::test]
async fn a_stream_that_broke_after_its_first_byte_is_not_sent_again() {
    let breaks = Provider::start(|_| Does::Break).await;
    let well = Provider::start(|_| Does::Serve).await;
    let rig = rig(&[(TPM, key_limit(1_000_000))], &[("breaks", &breaks), ("well", &well)]).await;
    let response = rig.send(rig.chat("", true)).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(timed(response.into_body().collect()).await.is_err(), "it broke off");
    rig.settled().await;
    assert_eq!((breaks.requests(), well.requests()), (1, 0));
}

#[tokio::test]
async fn each_provider_gets_its_own_credential_and_the_same_body() {
    let limited = Provider::start(|_| say(429, &[], "{}")).await;
    let well = Provider::start(|_| Does::Serve).await;
    let rig = rig(&[], &[("limited", &limited), ("well", &well)]).await;
    let (_, headers, _) = rig.answer(rig.chat("", false)).await;
    for name in headers.keys() {
        let theirs = ["retry-after", "ratelimit", "x-tokenlimit-limit", "x-ratelimitbysize-limit-minute"];
        assert!(!theirs.contains(&name.as_str()) && !name.as_str().starts_with("anthropic"), "{name}");
    }
    let [(one, sent), (other, again)] =
        [&limited, &well].map(|provider| provider.seen.lock().unwrap()[0].clone());
    assert_eq!(one["authorization"], "Bearer canary-of-limited");
    assert_eq!(other["authorization"], "Bearer canary-of-well");
    assert_eq!(sent, again);
    assert!(one["host"] != other["host"]);
}

#[tokio::test]
async fn a_refusal_larger_than_the_bound_or_that_never_ends_is_learned_from_its_status() {
    let long: &'static str = Box::leak("x".repeat(200_000).into_boxed_str());
    let wide = Provider::start(move |_| say(429, &[("retry-after", "60")], long)).await;
    let well = Provider::start(|_| Does::Serve).await;
    let rig = rig(&[], &[("wide", &wide), ("well", &well)]).await;
    for _ in 0..3 {
        assert_eq!(rig.answer(rig.chat("", false)).await.0, StatusCode::OK);
    }
    assert_eq!((wide.requests(), well.requests()), (1, 3));
}

/// A provider whose hold is over is found out about by one request; it then serves again.
#[tokio::test]
async fn a_provider_comes_back_when_it_said() {
    let first = Provider::start(|at| match at {
        0 => say(429, &[("retry-after-ms", "300")], "{}"),
        _ => Does::Serve,
    })
    .await;
    let second = Provider::start(|_| Does::Serve).await;
    let rig = rig(&[], &[("first", &first), ("second", &second)]).await;
    let asked = tokio::time::Instant::now();
    while first.requests() < 3 {
        assert_eq!(rig.answer(rig.chat("", false)).await.0, StatusCode::OK);
        assert!(asked.elapsed() < PATIENCE, "never asked again");
    }
    assert!(asked.elapsed() >= Duration::from_millis(300));
    assert!(second.requests() >= 1);
}

#[tokio::test]
async fn a_model_whose_providers_are_none_of_the_nodes_upstreams_is_not_served() {
    let well = Provider::start(|_| Does::Serve).await;
    let routing = upstreams(&[("well", &well)]);
    let rig = Rig::with(&listed(&[], &["elsewhere"]), |config| config.routing = routing).await;
    assert_eq!(rig.answer(rig.chat("", false)).await.0, StatusCode::NOT_FOUND);
    assert_eq!(well.requests(), 0);
}

#[tokio::test]
async fn limits_of_a_key_bind_before_any_provider_is_asked() {
    let well = Provider::start(|_| Does::Serve).await;
    let rig = rig(&[(Dimension::ImagesPerMinute, entry(M, Limit::Finite(0)))], &[("well", &well)]).await;
    assert_eq!(rig.answer(rig.chat("", false)).await.0, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(well.requests(), 0);
}

/// The policy's own limit of a provider, before it is asked; of all of them, the first that has room
/// again says when to come back.
#[tokio::test]
async fn s0_7_a_limit_of_a_provider_in_the_policy_binds_before_it_is_asked() {
    let (first, second) = (Provider::start(|_| Does::Serve).await, Provider::start(|_| Does::Serve).await);
    let mut table = listed(&[], &["first", "second"]);
    let rpm = |limit| BTreeMap::from([(RPM, Limit::Finite(limit))]);
    table.providers = [("first".into(), rpm(3)), ("second".into(), rpm(2))].into();
    let routing = upstreams(&[("first", &first), ("second", &second)]);
    let rig = Rig::with(&table, |config| config.routing = routing).await;
    for _ in 0..5 {
        assert_eq!(rig.answer(rig.chat("", false)).await.0, StatusCode::OK);
    }
    let (status, headers, _) = rig.answer(rig.chat("", false)).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    let wait: u64 = headers["retry-after"].to_str().unwrap().parse().unwrap();
    // Three a minute come back sooner than two.
    assert!((1..=22).contains(&wait), "{wait}");
    assert_eq!((first.requests(), second.requests()), (3, 2));
    let reported = reported(&rig).await;
    assert_eq!((reported["first"].skipped, reported["second"].skipped), (3, 1));
}

/// Reserved are 100 tokens of output, used are 15 in all: a limit of 250 a minute has room for many.
/// A refused or failed attempt counts as a request and no tokens, at the provider that was asked.
#[tokio::test]
async fn s0_7_a_limit_of_a_provider_counts_what_was_used_once_for_each_attempt() {
    let does = |at: usize| match at {
        3 => say(503, &[], "{}"),
        5 => Does::Hang,
        _ => Does::Serve,
    };
    let (first, second) = (Provider::start(does).await, Provider::start(|_| Does::Serve).await);
    let mut table = listed(&[], &["first", "second"]);
    let limits = BTreeMap::from([(TPM, Limit::Finite(250)), (RPM, Limit::Finite(9))]);
    table.providers = [("first".into(), limits)].into();
    let routing = upstreams(&[("first", &first), ("second", &second)]);
    let rig = Rig::with(&table, |config| config.routing = routing).await;
    let mut asked = 0;
    // A provider that refuses is left alone for a second.
    while first.requests() < 9 && asked < 2_000 {
        asked += 1;
        assert_eq!(rig.answer(rig.chat("", false)).await.0, StatusCode::OK);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(first.requests(), 9, "7 * 15 tokens were used of 250");
    let before = second.requests();
    assert_eq!(rig.answer(rig.chat("", false)).await.0, StatusCode::OK);
    assert_eq!((first.requests(), second.requests()), (9, before + 1), "nine requests of nine");
}
