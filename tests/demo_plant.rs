//! A simulated replica over real sockets: what an OpenAI client, a scraper and a fault would see.
#![cfg(feature = "daemon")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tidegate::demo::plant::Plant;
use tidegate::demo::prompt::Size;
use tidegate::sim::batch::Shape;

type Http = Client<HttpConnector, Full<Bytes>>;

const PATIENCE: Duration = Duration::from_secs(10);

fn http() -> Http {
    Client::builder(TokioExecutor::new()).build_http()
}

fn request(url: &str, body: &str) -> Request<Full<Bytes>> {
    let body = Full::new(Bytes::from(body.to_owned()));
    Request::post(format!("{url}/v1/chat/completions")).body(body).unwrap()
}

fn body(prompt: &str, max_tokens: u32, stream: bool) -> String {
    format!(
        r#"{{"model":"demo-model","messages":[{{"role":"user","content":"{prompt}"}}],"max_tokens":{max_tokens},"stream":{stream}}}"#
    )
}

async fn text(http: &Http, request: Request<Full<Bytes>>) -> (StatusCode, String) {
    let work = async {
        let reply = http.request(request).await.unwrap();
        let status = reply.status();
        (status, String::from_utf8(reply.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
    };
    tokio::time::timeout(PATIENCE, work).await.unwrap()
}

async fn metrics(http: &Http, url: &str) -> String {
    let request = Request::get(format!("{url}/metrics")).body(Full::default()).unwrap();
    text(http, request).await.1
}

fn sample(page: &str, name: &str) -> f64 {
    let line = page.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_answers_streamed_and_whole_and_counts_what_it_did() {
    let plant = Plant::start(1, Shape::default()).unwrap();
    let (http, url) = (http(), plant.replica_urls().remove(0));
    let prompt = "the moon pulls the sea";
    let size = Size::of(prompt, Some(30));

    let (status, streamed) = text(&http, request(&url, &body(prompt, 30, true))).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(streamed.matches("tide ").count(), size.output as usize);
    assert!(streamed.ends_with("data: [DONE]\n\n"), "{streamed}");
    assert!(streamed.contains(&format!("\"completion_tokens\":{}", size.output)), "{streamed}");

    let page = metrics(&http, &url).await;
    let done = sample(&page, "vllm:generation_tokens_total{");
    assert_eq!(done, f64::from(size.output));
    assert_eq!(sample(&page, "vllm:prompt_tokens_total{"), f64::from(size.prompt));

    let (status, whole) = text(&http, request(&url, &body(prompt, 30, false))).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(whole.matches("tide ").count(), size.output as usize);

    let page = metrics(&http, &url).await;
    assert_eq!(sample(&page, "vllm:generation_tokens_total{"), 2.0 * done);
    assert_eq!(sample(&page, "vllm:time_to_first_token_seconds_count"), 2.0);
    assert_eq!(sample(&page, "vllm:num_requests_running{"), 0.0);
    assert!(page.contains(
        r#"vllm:num_requests_waiting_by_reason{engine="0",model_name="demo-model",reason="capacity"} 0"#
    ));
    assert_eq!(plant.delivered(), 2 * size.work(4));

    let (status, _) = text(&http, request(&url, "{")).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_frees_its_slot() {
    let plant = Plant::start(1, Shape { slots: 1, step_min: Duration::from_millis(100), ..Shape::default() });
    let plant = plant.unwrap();
    let (http, url) = (http(), plant.replica_urls().remove(0));
    for stream in [true, false] {
        let leaving = tokio::spawn({
            let (http, request) = (http.clone(), request(&url, &body("a long story", 200, stream)));
            async move { http.request(request).await.unwrap().into_body().collect().await.map(drop) }
        });
        let running = wait_running(&http, &url, 1.0);
        tokio::time::timeout(PATIENCE, running).await.unwrap();
        leaving.abort();
        let gone = wait_running(&http, &url, 0.0);
        tokio::time::timeout(PATIENCE, gone).await.unwrap();
    }
    let page = metrics(&http, &url).await;
    assert_eq!(
        sample(&page, r#"vllm:request_success_total{engine="0",finished_reason="abort""#),
        2.0,
        "{page}"
    );
}

async fn wait_running(http: &Http, url: &str, count: f64) {
    while sample(&metrics(http, url).await, "vllm:num_requests_running{") != count {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_dies_with_what_it_was_doing_and_returns_empty_at_the_same_port() {
    let slow = Shape { step_min: Duration::from_millis(100), ..Shape::default() };
    let mut plant = Plant::start(2, slow).unwrap();
    let (http, urls) = (http(), plant.replica_urls());
    let url = urls[1].clone();
    assert_eq!(plant.capacity(), 16_000.0);
    let mut reply = http.request(request(&url, &body("a long story", 200, true))).await.unwrap().into_body();
    tokio::time::timeout(PATIENCE, reply.frame()).await.unwrap().unwrap().unwrap();

    plant.kill_half();
    assert_eq!(plant.capacity(), 8000.0);
    let rest = tokio::time::timeout(PATIENCE, reply.collect()).await.unwrap();
    assert!(rest.is_err(), "the stream ended as if it were whole");
    let refused = tokio::time::timeout(PATIENCE, http.request(request(&url, &body("x", 1, false))));
    assert!(refused.await.unwrap().unwrap_err().is_connect());
    let (status, _) = text(&http, request(&urls[0], &body("x", 1, false))).await;
    assert_eq!(status, StatusCode::OK);

    plant.revive().unwrap();
    assert_eq!(plant.replica_urls(), urls);
    let page = metrics(&http, &url).await;
    assert_eq!(sample(&page, "vllm:prompt_tokens_total{"), 0.0);
    let (status, _) = text(&http, request(&url, &body("x", 1, false))).await;
    assert_eq!(status, StatusCode::OK);
}
