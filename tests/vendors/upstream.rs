//! Whoever serves what a node admits: each upstream of a policy, one process's worth of states.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

/// What all upstreams of one node share.
#[derive(Default)]
pub struct World {
    /// Status and body that an upstream refuses with, by its name; the others serve.
    pub refuses: Mutex<BTreeMap<String, (u16, &'static str)>>,
    /// Requests that each was asked.
    pub asked: Mutex<BTreeMap<String, u64>>,
    /// Predictions, and how they are: `starting` until a test says otherwise.
    pub predictions: Mutex<BTreeMap<String, String>>,
    /// What the last of them was asked for with.
    pub created: Mutex<Value>,
}

/// Serves until the task is dropped.
pub async fn start(name: &str, world: &Arc<World>) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (name, world): (Arc<str>, _) = (name.into(), Arc::clone(world));
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let Ok((socket, _)) = listener.accept().await else { continue };
            let (name, world) = (Arc::clone(&name), Arc::clone(&world));
            connections.spawn(async move {
                let service = service_fn(|request| serve(request, &name, &world));
                let builder = hyper::server::conn::http1::Builder::new();
                let _ = builder.serve_connection(TokioIo::new(socket), service).await;
            });
        }
    });
    (address, task)
}

async fn serve(
    request: Request<Incoming>,
    name: &str,
    world: &World,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let ask: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    *world.asked.lock().unwrap().entry(name.to_owned()).or_default() += 1;
    let refuses = world.refuses.lock().unwrap().get(name).copied();
    let (status, answer) = if let Some((status, text)) = refuses {
        (status, text.to_owned())
    } else if let Some(path) = parts.uri.path().strip_prefix("/v1/predictions") {
        let (status, answer) = world.predict(&parts.method, path, ask);
        (status, answer.to_string())
    } else {
        if ask["user"] == "hang" {
            std::future::pending::<()>().await;
        }
        (200, completion(&ask).to_string())
    };
    let mut response = Response::new(Full::new(Bytes::from(answer)));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response.headers_mut().insert("content-type", "application/json".parse().unwrap());
    Ok(response)
}

/// `user` says how many tokens that used: all together, or `INPUT+OUTPUT`.
fn completion(ask: &Value) -> Value {
    let user = ask["user"].as_str().unwrap_or_default();
    let (input, output) = match user.split_once('+') {
        Some((input, output)) => (input.parse().unwrap(), output.parse().unwrap()),
        None => (user.parse::<u64>().unwrap_or(2).saturating_sub(1), 1),
    };
    json!({
        "id": "1", "object": "chat.completion", "created": 1, "model": ask["model"],
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "H"}}],
        "usage": {"prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output},
    })
}

// === impl World ===

impl World {
    /// `path` behind that of predictions.
    fn predict(&self, method: &Method, path: &str, ask: Value) -> (u16, Value) {
        let mut predictions = self.predictions.lock().unwrap();
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        match (method, parts.as_slice()) {
            (&Method::POST, []) => {
                let id = format!("p-{}", predictions.len() + 1);
                predictions.insert(id.clone(), "starting".to_owned());
                *self.created.lock().unwrap() = ask;
                (201, json!({"id": id, "status": "starting"}))
            }
            (&Method::POST, [id, "cancel"]) => {
                predictions.insert((*id).to_owned(), "canceled".to_owned());
                (200, json!({"id": id, "status": "canceled"}))
            }
            (_, [id]) => match predictions.get(*id) {
                Some(state) => (200, json!({"id": id, "status": state})),
                None => (404, json!({"detail": "no such"})),
            },
            _ => (405, json!({})),
        }
    }
}
