//! The operator's listener: metrics, health, the table in force, reload. Loopback only.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, ORIGIN};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde::Serialize;
use subtle::ConstantTimeEq;

use crate::enforce::allowance::{Allowance, Portion};
use crate::enforce::answer::{self, full};
use crate::enforce::config::Secret;
use crate::enforce::gateway::Gate;
use crate::enforce::meters::place;
use crate::enforce::metrics;
use crate::enforce::node::Reload;
use crate::enforce::shared::Shared;
use crate::enforce::stream::Body;
use crate::enforce::ticket::Scope;
use crate::metrics::Detail;
use crate::metrics::Page;
use crate::unit::{Dimension, NodeId, TierId};
use crate::wire::LimitTable;
use crate::wire::jobs::decoded;

/// Before the id of a job.
const JOBS: &str = "/v1/jobs/";

pub struct Admin {
    pub gate: Arc<Gate>,
    pub token: Option<Secret>,
    pub reload: Reload,
    pub page: Page,
    pub detail: Detail,
}

/// The table as published, and what this node makes of it.
#[derive(Serialize)]
struct InForce<'a> {
    #[serde(flatten)]
    table: &'a LimitTable,
    node: &'a NodeId,
    age_ms: u64,
    /// Intervals past the table's validity: above zero, limits steer toward `safe`.
    intervals_expired: u32,
    effective: Vec<Effective<'a>>,
}

/// What one row allows at this node now; per minute, or a count.
#[derive(Serialize)]
struct Effective<'a> {
    model: &'a crate::unit::ModelId,
    tier: &'a TierId,
    share_ppm: u32,
    dimension: Dimension,
    tier_limit: Option<f64>,
    key_limit: Option<f64>,
}

// === impl Admin ===

impl Admin {
    pub async fn handle(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let shared = &self.gate.shared;
        if is_of_a_page(request.headers()) {
            return plain(StatusCode::FORBIDDEN, "not for pages of a browser\n");
        }
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/metrics") => match self.page.get(|| metrics::page(shared, self.detail)) {
                Ok(text) => typed("text/plain; version=0.0.4", text),
                Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
            },
            (&Method::GET, "/-/healthy") => plain(StatusCode::OK, "healthy\n"),
            (&Method::GET, "/-/ready") if shared.cell.held().is_some() => plain(StatusCode::OK, "ready\n"),
            (&Method::GET, "/-/ready") => plain(StatusCode::SERVICE_UNAVAILABLE, "no table yet\n"),
            (&Method::GET, "/v1/table") => in_force(shared),
            (&Method::POST, "/-/reload") => self.reload(request.headers()).await,
            (&Method::DELETE, path) if path.starts_with(JOBS) => self.release(request.headers(), path),
            (_, "/metrics" | "/-/healthy" | "/-/ready" | "/v1/table" | "/-/reload") => {
                plain(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n")
            }
            _ => plain(StatusCode::NOT_FOUND, "not found\n"),
        }
    }

    /// Ends a job of which the node will not hear.
    fn release(&self, headers: &HeaderMap, path: &str) -> Response<Body> {
        if let Some(refused) = self.refuses(headers) {
            return refused;
        }
        let id = decoded(path.strip_prefix(JOBS).unwrap_or_default());
        match self.gate.shared.desk.release(&id) {
            0 => plain(StatusCode::NOT_FOUND, "no such job runs\n"),
            _ => plain(StatusCode::OK, "released\n"),
        }
    }

    /// What whoever has not the operator's token hears.
    fn refuses(&self, headers: &HeaderMap) -> Option<Response<Body>> {
        let Some(token) = &self.token else {
            let text = "set `admin_token_file` to do this over HTTP; SIGHUP reloads without it\n";
            return Some(plain(StatusCode::FORBIDDEN, text));
        };
        let mut all = headers.get_all(AUTHORIZATION).iter();
        let only = all.next().filter(|_| all.next().is_none());
        let sent = only.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        let known = sent.is_some_and(|sent| sent.ct_eq(token.expose().as_bytes()).into());
        (!known).then(|| plain(StatusCode::UNAUTHORIZED, "not the admin token\n"))
    }

    async fn reload(&self, headers: &HeaderMap) -> Response<Body> {
        if let Some(refused) = self.refuses(headers) {
            return refused;
        }
        match self.reload.now(&self.gate).await {
            Ok(()) => plain(StatusCode::OK, "reloaded\n"),
            Err(reason) => plain(StatusCode::UNPROCESSABLE_ENTITY, &format!("{reason}\n")),
        }
    }
}

/// Sent by a page in a browser, which may be anyone's: loopback is no border to it.
fn is_of_a_page(headers: &HeaderMap) -> bool {
    headers.contains_key(ORIGIN) || headers.get("sec-fetch-site").is_some_and(|site| site != "none")
}

fn in_force(shared: &Shared) -> Response<Body> {
    let Some(held) = shared.cell.held() else {
        return answer::error(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "no_table", "no table yet");
    };
    let now = shared.cell.now();
    let mut effective = Vec::new();
    for row in &held.table.rows {
        let Some(pool) = held.table.pools.get(&row.pool) else { continue };
        let portion = Portion::of(pool, &shared.node);
        for (dimension, entry) in &row.limits {
            let part = |scope, limit| {
                let allowance = Allowance::of(*dimension, limit, scope, portion)?;
                Some(match place(*dimension) {
                    Some(_) => allowance.rate as f64 / f64::from(crate::unit::PPM),
                    None => allowance.count as f64,
                })
            };
            effective.push(Effective {
                model: &row.model,
                tier: &row.tier,
                share_ppm: portion.ppm(),
                dimension: *dimension,
                tier_limit: part(Scope::Tier, portion.tier_limit(&held, entry, now)),
                key_limit: part(Scope::Key, entry.key_limit),
            });
        }
    }
    let shown = InForce {
        table: &held.table,
        node: &shared.node,
        age_ms: u64::try_from(held.age(now).as_millis()).unwrap_or(u64::MAX),
        intervals_expired: held.intervals_expired(now),
        effective,
    };
    match serde_json::to_vec(&shown) {
        Ok(json) => typed("application/json", json),
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn plain(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = typed("text/plain", text.as_bytes().to_vec());
    *response.status_mut() = status;
    response
}

fn typed(kind: &'static str, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(bytes.into()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
