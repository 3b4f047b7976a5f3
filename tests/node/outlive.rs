//! Jobs outlive what made them: the provider that refused first, a process that is killed, and
//! the address that its client wanted to be called at.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tidegate::enforce::config::{RouteConfig, RoutingConfig, UpstreamConfig};
use tidegate::unit::Limit;
use tidegate::wire::ModelEntry;

use crate::cli::{Process, addresses, enforce};
use crate::jobs::{Predictions, create, full, get, hook, jobs, limited, rig_of};
use crate::support::node::*;

#[tokio::test]
async fn a_poll_goes_to_the_provider_that_created_the_job_also_after_a_restart() {
    let (first, second) = (Predictions::start().await, Predictions::start().await);
    let mut table = limited(1, key_limit(5), jobs(600_000, Limit::Unlimited));
    let providers = vec!["first".into(), "second".into()];
    table.models.insert("m".into(), ModelEntry { providers, ..ModelEntry::default() });
    let upstream = |of: &Predictions| UpstreamConfig {
        urls: vec![of.url.clone()],
        models: vec!["none".to_owned() + &of.url],
        ..UpstreamConfig::default()
    };
    let upstreams =
        BTreeMap::from([("first".to_owned(), upstream(&first)), ("second".to_owned(), upstream(&second))]);
    let routes = vec![RouteConfig { prefix: "/v1/predictions".to_owned(), model: "m".into() }];
    let state = tempfile::TempDir::new().unwrap();
    let start = || {
        let (path, upstreams, routes) = (state.path().to_owned(), upstreams.clone(), routes.clone());
        rig_of(&table, &first, |config| {
            config.state = Some(path);
            config.routing = RoutingConfig { upstreams, routes };
        })
    };
    let rig = start().await;
    // The second provider's p-1, while the first one is busy; then the first one's of that number is
    // somebody else's.
    first.set("busy", "yes");
    assert_eq!(create(&rig, json!({})).await.0, StatusCode::CREATED);
    assert_eq!((first.created.lock().unwrap().len(), second.created.lock().unwrap().len()), (0, 1));
    first.set("p-1", "somebody else's");
    second.set("p-1", "processing");
    let (status, _, body) = rig.answer(get(&rig, "p-1")).await;
    assert!(status == StatusCode::OK && body.contains("processing"), "{body}");
    let Rig { node, .. } = rig;
    node.shutdown().await;
    let rig = start().await;
    for state in ["still processing", "succeeded"] {
        second.set("p-1", state);
        let (status, _, body) = rig.answer(get(&rig, "p-1")).await;
        assert!(status == StatusCode::OK && body.contains(state), "{body}");
    }
}

#[tokio::test]
async fn s2_10_a_kill_forgets_no_job_that_its_client_knows_of() {
    let upstream = Predictions::start().await;
    let dir = tempfile::TempDir::new().unwrap();
    let lives = 6;
    let table = limited(1, key_limit(2 * lives), jobs(600_000, Limit::Unlimited));
    write_table(&dir.path().join("table.json"), &table);
    std::fs::write(dir.path().join("keys.jsonl"), keys()).unwrap();
    let text = format!(
        "node: n\nkeys: keys.jsonl\nstate: state\nupstreams:\n  main: {{urls: [\"{}\"]}}\n\
         routes:\n  - {{prefix: /v1/predictions, model: m}}\n",
        upstream.url
    );
    std::fs::write(dir.path().join("node.yaml"), text).unwrap();
    let rig = rig_of(&table, &upstream, |_| {}).await;
    for life in 0..=lives {
        let arguments = ["--config", "node.yaml", "--table", "table.json", "--listen", "127.0.0.1:0"];
        let mut command = enforce(dir.path(), &arguments);
        let mut process = Process(command.args(["--admin", "127.0.0.1:0"]).spawn().unwrap());
        let (proxy, admin, _lines) = addresses(&mut process);
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while rig.get(admin.parse().unwrap(), "/-/ready").await.0 != StatusCode::OK {
            assert!(tokio::time::Instant::now() < deadline, "never ready");
        }
        let at = |mut request: Request<Full<bytes::Bytes>>| {
            let path = request.uri().path().to_owned();
            *request.uri_mut() = format!("http://{proxy}{path}").parse().unwrap();
            request
        };
        if life == lives {
            // As many run as may, and each is known by its name.
            let post = at(rig.post("/v1/predictions", &json!({})));
            assert_eq!(rig.answer(post).await.0, StatusCode::TOO_MANY_REQUESTS);
            for at_number in 1..=2 * lives {
                upstream.set(&format!("p-{at_number}"), "succeeded");
                assert_eq!(rig.answer(at(get(&rig, &format!("p-{at_number}")))).await.0, StatusCode::OK);
            }
            let (_, _, page) = rig.get(admin.parse().unwrap(), "/metrics").await;
            assert!(page.contains("tidegate_enforce_jobs 0\n"), "{page}");
            return;
        }
        let post = || rig.answer(at(rig.post("/v1/predictions", &json!({}))));
        for (status, _, body) in <[_; 2]>::from(tokio::join!(post(), post())) {
            assert_eq!(status, StatusCode::CREATED, "{body}");
        }
        process.signal("-KILL");
        assert_eq!(process.code().await, None);
    }
}

type Called = Arc<Mutex<Vec<(String, HeaderMap, Value)>>>;

/// A client's own server: refuses the first call, as one that is being restarted does.
async fn client_server() -> (String, Called) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let called = Called::default();
    let record = Arc::clone(&called);
    tokio::spawn(async move {
        loop {
            let Ok((socket, _)) = listener.accept().await else { continue };
            let record = Arc::clone(&record);
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                let record = Arc::clone(&record);
                async move {
                    let (parts, body) = request.into_parts();
                    let body = body.collect().await.unwrap().to_bytes();
                    let mut called = record.lock().unwrap();
                    let body = serde_json::from_slice(&body).unwrap();
                    called.push((parts.uri.to_string(), parts.headers, body));
                    let mut response = Response::new(Full::new(bytes::Bytes::from("secret of the client")));
                    *response.status_mut() =
                        if called.len() == 1 { StatusCode::BAD_GATEWAY } else { StatusCode::ACCEPTED };
                    Ok::<_, Infallible>(response)
                }
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service),
            );
        }
    });
    (url, called)
}

#[tokio::test]
async fn s2_16_a_clients_own_webhook_is_called_by_the_node_that_hears_of_the_end() {
    let upstream = Predictions::start().await;
    let table = limited(1, key_limit(1), jobs(600_000, Limit::Unlimited));
    let rig = rig_of(&table, &upstream, |_| {}).await;
    let (url, called) = client_server().await;
    assert_eq!(create(&rig, json!({"webhook": format!("{url}/done?for=7")})).await.0, StatusCode::CREATED);
    full(&rig).await;
    let address = upstream.address();
    assert!(address.starts_with("/-/jobs/") && !address.contains("done"), "{address}");
    let ended = json!({"id": "p-1", "status": "succeeded", "output": "x"});
    let mut request = Request::post(format!("http://{}{address}", rig.node.proxy))
        .header("content-type", "application/json")
        .header("webhook-id", "7")
        .header("authorization", "Bearer canary-of-the-upstream");
    let headers = request.headers_mut().unwrap();
    headers.insert("connection", "x-hop".parse().unwrap());
    headers.insert("x-hop", "1".parse().unwrap());
    let (status, _, body) = rig.answer(request.body(Full::from(ended.to_string())).unwrap()).await;
    // The client's status, so that the upstream tries again; nothing else of its answer.
    assert_eq!((status, body.as_str()), (StatusCode::BAD_GATEWAY, ""));
    // The job is over all the same, and gone; the next try is the client's all the same.
    assert_eq!(create(&rig, json!({})).await.0, StatusCode::CREATED);
    assert_eq!(hook(&rig, &address, ended.clone()).await, StatusCode::ACCEPTED);
    let calls = called.lock().unwrap().clone();
    let [(path, headers, said), (_, _, again)] = &calls[..] else { panic!("{called:?}") };
    assert_eq!((path.as_str(), said, again), ("/done?for=7", &ended, &ended));
    assert!(headers["webhook-id"] == "7" && headers["content-type"] == "application/json", "{headers:?}");
    assert!(!headers.contains_key("authorization") && !headers.contains_key("x-hop"), "{headers:?}");
    // Nobody else makes the node call an address.
    let (token, client) = address.rsplit_once('/').unwrap();
    let elsewhere: String = format!("{url}/other").bytes().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hook(&rig, &format!("{token}/{elsewhere}"), ended.clone()).await, StatusCode::NOT_FOUND);
    assert_eq!(hook(&rig, &format!("/-/jobs/{client}"), ended).await, StatusCode::NOT_FOUND);
    assert_eq!(called.lock().unwrap().len(), 2);
}
