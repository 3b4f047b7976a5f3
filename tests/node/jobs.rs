//! Jobs over HTTP: a slot from creation to completion, however that is seen, and however the
//! requests about it end.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::node::*;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tidegate::enforce::config::{NodeConfig, RouteConfig, Secret};
use tidegate::enforce::jobs::Hook;
use tidegate::unit::{Dimension, Limit};
use tidegate::wire::{Entry, Jobs, LimitTable, Product};

const JOBS: Dimension = Dimension::Jobs;

/// Serves predictions: `starting` until a test says otherwise.
pub struct Predictions {
    pub url: String,
    states: Arc<Mutex<BTreeMap<String, String>>>,
    /// Bodies of creations.
    pub created: Arc<Mutex<Vec<Value>>>,
    task: tokio::task::JoinHandle<()>,
}

type States = Arc<Mutex<BTreeMap<String, String>>>;
type Created = Arc<Mutex<Vec<Value>>>;

impl Predictions {
    pub async fn start() -> Predictions {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (states, created): (States, Created) = Default::default();
        let (theirs, record) = (Arc::clone(&states), Arc::clone(&created));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let Ok((socket, _)) = listener.accept().await else { continue };
                let (states, created) = (Arc::clone(&theirs), Arc::clone(&record));
                let service =
                    service_fn(move |request| predict(request, Arc::clone(&states), Arc::clone(&created)));
                connections.spawn(async move {
                    let builder = hyper::server::conn::http1::Builder::new();
                    let _ = builder.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        Predictions { url, states, created, task }
    }

    pub fn set(&self, id: &str, state: &str) {
        self.states.lock().unwrap().insert(id.to_owned(), state.to_owned());
    }

    /// The path of the address that the last creation was given.
    pub fn address(&self) -> String {
        let created = self.created.lock().unwrap();
        let address = created.last().unwrap()["webhook"].as_str().unwrap().to_owned();
        address.split_once("//edge").unwrap().1.to_owned()
    }
}

impl Drop for Predictions {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn predict(
    request: Request<Incoming>,
    states: States,
    created: Created,
) -> Result<Response<Boxed>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let path: Vec<String> = parts.uri.path().split('/').skip(3).map(str::to_owned).collect();
    let busy = states.lock().unwrap().contains_key("busy");
    let (status, answer) = match (&parts.method, path.as_slice()) {
        (&Method::POST, []) if busy => (503, json!({"detail": "busy"})),
        (&Method::POST, []) => {
            let ask: Value = serde_json::from_slice(&body).unwrap();
            let mut created = created.lock().unwrap();
            created.push(ask.clone());
            let id = format!("p-{}", created.len());
            if ask["bad"] == json!(true) {
                (422, json!({"detail": "no"}))
            } else {
                let state = ask["state"].as_str().unwrap_or("starting");
                states.lock().unwrap().insert(id.clone(), state.to_owned());
                (201, json!({"id": id, "status": state}))
            }
        }
        (&Method::POST, [id, cancel]) if cancel == "cancel" => {
            states.lock().unwrap().insert(id.clone(), "canceled".to_owned());
            (200, json!({"id": id, "status": "canceled"}))
        }
        (&Method::GET, [id]) => match states.lock().unwrap().get(id) {
            Some(state) => (200, json!({"id": id, "status": state})),
            None => (404, json!({"detail": "no such"})),
        },
        _ => (405, json!({})),
    };
    if parts.headers.contains_key("x-slow") {
        std::future::pending::<()>().await;
    }
    let body = Full::new(Bytes::from(answer.to_string())).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response.headers_mut().insert("content-type", "application/json".parse().unwrap());
    Ok(response)
}

pub fn jobs(lease_ms: u64, polls: Limit) -> Jobs {
    let set = |all: &[&str]| all.iter().map(|text| (*text).to_owned()).collect();
    Jobs {
        create: set(&["/v1/predictions"]),
        poll: "/v1/predictions/{id}".to_owned(),
        cancel: Some("/v1/predictions/{id}/cancel".to_owned()),
        id: "/id".to_owned(),
        status: "/status".to_owned(),
        ended: set(&["succeeded", "failed", "canceled"]),
        lease_ms,
        polls,
        webhook: Some("webhook".to_owned()),
    }
}

pub fn limited(version: u64, limit: Entry, jobs: Jobs) -> LimitTable {
    let mut table = table(version, &[(JOBS, limit)]);
    table.products.insert("predictions".into(), Product { jobs: Some(jobs), ..Product::default() });
    table.rows[0].product = Some("predictions".into());
    table
}

pub async fn rig_of(table: &LimitTable, upstream: &Predictions, change: impl FnOnce(&mut NodeConfig)) -> Rig {
    let url = upstream.url.clone();
    Rig::with(table, |config| {
        config.routing.upstreams.get_mut("main").unwrap().urls = vec![url];
        config.routing.routes.push(RouteConfig { prefix: "/v1/predictions".to_owned(), model: "m".into() });
        config.hook =
            Some(Hook { url: "http://edge".to_owned(), secret: Secret::new("canary-hook"), relay: true });
        config.admin_token = Some(Secret::new("canary-operator-token"));
        change(config);
    })
    .await
}

async fn rig(upstream: &Predictions) -> Rig {
    rig_of(&limited(1, key_limit(5), jobs(600_000, Limit::Unlimited)), upstream, |_| {}).await
}

pub async fn create(rig: &Rig, body: Value) -> (StatusCode, String) {
    let (status, _, body) = rig.answer(rig.post("/v1/predictions", &body)).await;
    (status, body)
}

pub fn get(rig: &Rig, id: &str) -> Request<Full<Bytes>> {
    let mut request = rig.post(&format!("/v1/predictions/{id}"), &Value::Null);
    (*request.method_mut(), *request.body_mut()) = (Method::GET, Full::default());
    request
}

/// Five run: a sixth is not admitted.
async fn fill(rig: &Rig) {
    for _ in 0..5 {
        assert_eq!(create(rig, json!({})).await.0, StatusCode::CREATED);
    }
    full(rig).await;
}

pub async fn full(rig: &Rig) {
    let (status, body) = create(rig, json!({})).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{body}");
}

/// One more is admitted, and only one.
async fn one_free(rig: &Rig) {
    assert_eq!(create(rig, json!({})).await.0, StatusCode::CREATED);
    full(rig).await;
}

pub async fn hook(rig: &Rig, path: &str, body: Value) -> StatusCode {
    let request =
        Request::post(format!("http://{}{path}", rig.node.proxy)).body(Full::from(body.to_string()));
    rig.answer(request.unwrap()).await.0
}

#[tokio::test]
async fn s2_3_s2_13_five_run_a_sixth_waits_for_the_end_of_one() {
    let upstream = Predictions::start().await;
    let rig = rig(&upstream).await;
    fill(&rig).await;
    assert_eq!(upstream.created.lock().unwrap().len(), 5, "what is refused is not created");
    // A poll that says it runs frees nothing.
    rig.answer(get(&rig, "p-1")).await;
    full(&rig).await;
    for ended in ["succeeded", "failed", "canceled"] {
        let id = {
            let running = upstream.states.lock().unwrap();
            running.iter().find(|(_, state)| *state == "starting").unwrap().0.clone()
        };
        upstream.set(&id, ended);
        let (status, _, body) = rig.answer(get(&rig, &id)).await;
        assert!(status == StatusCode::OK && body.contains(ended), "{body}");
        one_free(&rig).await;
        // Seen again, it frees nothing more.
        rig.answer(get(&rig, &id)).await;
        full(&rig).await;
    }
}

#[tokio::test]
async fn s2_10_a_creation_that_is_refused_or_over_at_once_holds_no_slot() {
    let upstream = Predictions::start().await;
    let rig = rig(&upstream).await;
    for _ in 0..12 {
        assert_eq!(create(&rig, json!({"bad": true})).await.0, StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(create(&rig, json!({"state": "succeeded"})).await.0, StatusCode::CREATED);
    }
    fill(&rig).await;
}

#[tokio::test]
async fn s2_10_a_cancel_and_a_release_end_a_job() {
    let upstream = Predictions::start().await;
    let rig = rig(&upstream).await;
    fill(&rig).await;
    assert_eq!(rig.answer(rig.post("/v1/predictions/p-2/cancel", &json!({}))).await.0, StatusCode::OK);
    one_free(&rig).await;
    let release = |token: Option<&str>, id: &str| {
        let mut request = Request::delete(format!("http://{}/v1/jobs/{id}", rig.node.admin));
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        rig.answer(request.body(Full::default()).unwrap())
    };
    assert_eq!(release(None, "p-3").await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(release(Some("canary-wrong-token"), "p-3").await.0, StatusCode::UNAUTHORIZED);
    full(&rig).await;
    let operator = Some("canary-operator-token");
    assert_eq!(release(operator, "p-3").await.0, StatusCode::OK);
    assert_eq!(release(operator, "p-3").await.0, StatusCode::NOT_FOUND);
    one_free(&rig).await;
}

#[tokio::test]
async fn s2_16_a_webhook_ends_a_job_and_forged_and_replayed_ones_change_nothing() {
    let upstream = Predictions::start().await;
    let rig = rig(&upstream).await;
    let first = {
        create(&rig, json!({})).await;
        upstream.address()
    };
    for _ in 0..4 {
        create(&rig, json!({})).await;
    }
    let last = upstream.address();
    full(&rig).await;
    // Forged: another token, one altered, none, another method.
    let mut altered = first.clone().into_bytes();
    let at = "/-/jobs/".len();
    altered[at] = if altered[at] == b'0' { b'1' } else { b'0' };
    let ended = |id: &str| json!({"id": id, "status": "succeeded"});
    for forged in
        [String::from_utf8(altered).unwrap(), "/-/jobs/".to_owned(), format!("/-/jobs/{}", "0".repeat(96))]
    {
        assert_eq!(hook(&rig, &forged, ended("p-1")).await, StatusCode::NOT_FOUND, "{forged}");
    }
    // True, and about another job, or still running, or no JSON at all.
    for body in [ended("p-2"), json!({"id": "p-1", "status": "processing"}), json!("x"), json!({})] {
        assert_eq!(hook(&rig, &first, body).await, StatusCode::OK);
    }
    full(&rig).await;
    assert_eq!(hook(&rig, &first, ended("p-1")).await, StatusCode::OK);
    one_free(&rig).await;
    for _ in 0..20 {
        assert_eq!(hook(&rig, &first, ended("p-1")).await, StatusCode::OK, "a replay");
    }
    full(&rig).await;
    assert_eq!(hook(&rig, &last, json!({"id": "p-5", "status": "failed"})).await, StatusCode::OK);
    one_free(&rig).await;
}

#[tokio::test]
async fn s2_16_a_clients_own_webhook_stays_its_own_unless_it_is_relayed() {
    let upstream = Predictions::start().await;
    let table = limited(1, key_limit(5), jobs(600_000, Limit::Unlimited));
    let rig = rig_of(&table, &upstream, |config| config.hook.as_mut().unwrap().relay = false).await;
    create(&rig, json!({"webhook": "https://client.example/x"})).await;
    assert_eq!(upstream.created.lock().unwrap()[0]["webhook"], "https://client.example/x");
}

#[tokio::test]
async fn s2_10_a_lease_frees_what_nobody_asks_for_and_a_sign_of_life_renews_it() {
    let upstream = Predictions::start().await;
    let table = limited(1, key_limit(2), jobs(1_500, Limit::Unlimited));
    let rig = rig_of(&table, &upstream, |_| {}).await;
    let begun = tokio::time::Instant::now();
    create(&rig, json!({})).await;
    create(&rig, json!({})).await;
    full(&rig).await;
    // The first is asked for all the time: two seconds on it still holds its slot.
    while begun.elapsed() < Duration::from_millis(2_500) {
        rig.answer(get(&rig, "p-1")).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    one_free(&rig).await;
    let (_, _, page) = rig.get(rig.node.admin, "/metrics").await;
    assert!(page.contains(r#"tidegate_enforce_jobs_over_total{how="expired"} 1"#), "{page}");
}

#[tokio::test]
async fn s2_14_a_job_is_asked_for_once_a_second_and_no_more() {
    let upstream = Predictions::start().await;
    let table = limited(1, key_limit(5), jobs(600_000, Limit::Finite(60)));
    let rig = rig_of(&table, &upstream, |_| {}).await;
    create(&rig, json!({})).await;
    create(&rig, json!({})).await;
    assert_eq!(rig.answer(get(&rig, "p-1")).await.0, StatusCode::OK);
    let asked = tokio::time::Instant::now();
    let (status, headers, _) = rig.answer(get(&rig, "p-1")).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
    let after: u64 = headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=2).contains(&after), "{after}");
    assert_eq!(rig.answer(get(&rig, "p-2")).await.0, StatusCode::OK, "each job has its own");
    // Asking too early does not put it off.
    while rig.answer(get(&rig, "p-1")).await.0 != StatusCode::OK {
        assert!(asked.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let waited = asked.elapsed();
    assert!(waited >= Duration::from_millis(950), "{waited:?}");
    // A job that is over is not asked for any more; nothing limits looking at it but the key's own.
    upstream.set("p-2", "succeeded");
    until("the end to be seen", || true).await;
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    for _ in 0..3 {
        assert_eq!(rig.answer(get(&rig, "p-2")).await.0, StatusCode::OK);
    }
}

#[tokio::test]
async fn h16_a_limit_lowered_below_what_runs_ends_nothing_and_admits_nothing() {
    let upstream = Predictions::start().await;
    let rig = rig(&upstream).await;
    fill(&rig).await;
    write_table(&rig.table_path(), &limited(2, key_limit(2), jobs(600_000, Limit::Unlimited)));
    until("the lower limit", || rig.node.cell().held().unwrap().stamp().version == 2).await;
    for id in ["p-1", "p-2", "p-3"] {
        full(&rig).await;
        assert_eq!(rig.answer(get(&rig, id)).await.0, StatusCode::OK, "{id} runs on");
        upstream.set(id, "succeeded");
        rig.answer(get(&rig, id)).await;
    }
    full(&rig).await;
    upstream.set("p-4", "succeeded");
    rig.answer(get(&rig, "p-4")).await;
    one_free(&rig).await;
}

#[tokio::test]
async fn i09_an_accounts_keys_share_its_jobs() {
    let upstream = Predictions::start().await;
    let limit = Entry { account_limit: Limit::Finite(3), ..key_limit(2) };
    let rig = rig_of(&limited(1, limit, jobs(600_000, Limit::Unlimited)), &upstream, |config| {
        let lines: Vec<String> =
            (0..4).map(|at| key_line(&format!("canary-key-{at}"), Some("acme"))).collect();
        config.keys = tidegate::enforce::config::KeySource::Inline(lines.join("\n"));
    })
    .await;
    let mut admitted = 0;
    for at in 0..4 {
        for _ in 0..3 {
            let mut request = rig.post("/v1/predictions", &json!({}));
            let key = format!("Bearer canary-key-{at}").parse().unwrap();
            request.headers_mut().insert("authorization", key);
            admitted += u64::from(rig.answer(request).await.0 == StatusCode::CREATED);
        }
    }
    assert_eq!(admitted, 3);
}

/// Whoever leaves before the answer would else have a job more for every time.
#[tokio::test]
async fn s2_10_a_client_that_leaves_early_gets_no_slot_back_before_the_lease_is_over() {
    let upstream = Predictions::start().await;
    let table = limited(1, key_limit(2), jobs(1_000, Limit::Unlimited));
    let rig = rig_of(&table, &upstream, |_| {}).await;
    for sent in 1..=2 {
        let mut request = rig.post("/v1/predictions", &json!({}));
        request.headers_mut().insert("x-slow", "1".parse().unwrap());
        let http = client();
        let asking = tokio::spawn(http.request(request));
        until("the upstream to have it", || upstream.created.lock().unwrap().len() == sent).await;
        asking.abort();
        let _ = asking.await;
    }
    until("both to have left", || rig.report().pools["p"].in_flight == 0).await;
    full(&rig).await;
    let freed = tokio::time::Instant::now();
    while create(&rig, json!({})).await.0 != StatusCode::CREATED {
        assert!(freed.elapsed() < PATIENCE, "leaked");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn s2_10_a_restart_forgets_no_job_and_holds_none_beyond_its_lease() {
    let upstream = Predictions::start().await;
    let table = limited(1, key_limit(5), jobs(600_000, Limit::Unlimited));
    let state = tempfile::TempDir::new().unwrap();
    let path = state.path().to_owned();
    let first = rig_of(&table, &upstream, |config| config.state = Some(path.clone())).await;
    fill(&first).await;
    let address = upstream.address();
    let Rig { node, .. } = first;
    node.shutdown().await;
    let second = rig_of(&table, &upstream, |config| config.state = Some(path)).await;
    full(&second).await;
    upstream.set("p-3", "succeeded");
    assert_eq!(second.answer(get(&second, "p-3")).await.0, StatusCode::OK);
    one_free(&second).await;
    // Addresses given out before are good after.
    assert_eq!(hook(&second, &address, json!({"id": "p-5", "status": "succeeded"})).await, StatusCode::OK);
    one_free(&second).await;
}

#[tokio::test]
async fn a_damaged_file_of_jobs_is_said_and_passed_over() {
    let upstream = Predictions::start().await;
    let table = limited(1, key_limit(5), jobs(600_000, Limit::Unlimited));
    let state = tempfile::TempDir::new().unwrap();
    std::fs::write(state.path().join("jobs.json"), b"{\"version\":1,\"jobs\":[{").unwrap();
    let path = state.path().to_owned();
    let rig = rig_of(&table, &upstream, |config| config.state = Some(path)).await;
    fill(&rig).await;
    let (_, _, page) = rig.get(rig.node.admin, "/metrics").await;
    assert!(page.contains("tidegate_enforce_store_errors_total 1"), "{page}");
}
