//! The controller's endpoints: tables and reasons out, usage reports and reloads in.
//!
//! Every error is JSON with a reason and a remedy; every body and every wait is bounded.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, ORIGIN, RETRY_AFTER,
    WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;

use crate::bounds::RELOAD_WAIT;
use crate::bounds::REPORT_BYTES_MAX;
use crate::bounds::SERVER_BODY_WAIT;
use crate::bounds::WATCH_WAIT_MAX;
use crate::publish::board::{Announced, Board, Reloaded, RollbackRequest};
use crate::publish::inbox::Refused;
use crate::wire::{Nack, Stamp, UsageReport};

pub type Answer = Response<Full<Bytes>>;

// === routes ===

/// Answers one request.
pub async fn answer(board: Arc<Board>, request: Request<Incoming>) -> Answer {
    let head = request.method() == Method::HEAD;
    let (path, method) = (request.uri().path().to_owned(), request.method().clone());
    let reads = matches!(method, Method::GET | Method::HEAD);
    let answer = match path.as_str() {
        "/-/healthy" if reads => text("ok\n"),
        "/-/ready" if reads => ready(&board),
        "/v1/table" | "/v1/status" | "/metrics" if reads => {
            if board.reads_need_token && !admitted(&board, request.headers()) {
                unauthorized()
            } else {
                read(&board, &path, &request).await
            }
        }
        "/v1/usage" | "/-/reload" | "/-/rollback" if method == Method::POST => {
            if cross_site(request.headers()) {
                forbidden()
            } else if !admitted(&board, request.headers()) {
                unauthorized()
            } else {
                write(&board, &path, request).await
            }
        }
        "/-/healthy" | "/-/ready" | "/v1/table" | "/v1/status" | "/metrics" => not_allowed("GET, HEAD"),
        "/v1/usage" | "/-/reload" | "/-/rollback" => not_allowed("POST"),
        _ => refuse(
            StatusCode::NOT_FOUND,
            "there is nothing at this path",
            "ask /v1/table, /v1/status, /v1/usage, /metrics, /-/healthy, /-/ready, /-/reload or /-/rollback",
        ),
    };
    if head { answer.map(|_| Full::default()) } else { answer }
}

async fn read(board: &Board, path: &str, request: &Request<Incoming>) -> Answer {
    match path {
        "/v1/table" => table(board, request).await,
        "/v1/status" => match board.status() {
            Some(status) => sized(Response::new(Full::new(status)), "application/json"),
            None => not_yet(),
        },
        _ => {
            let page = Full::new((board.metrics)());
            sized(Response::new(page), "text/plain; version=0.0.4; charset=utf-8")
        }
    }
}

async fn write(board: &Board, path: &str, request: Request<Incoming>) -> Answer {
    match path {
        "/-/reload" => reload(board).await,
        "/-/rollback" => rollback(board, request.uri().query()).await,
        _ => usage(board, request).await,
    }
}

fn ready(board: &Board) -> Answer {
    if *board.closing().borrow() {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "the controller is stopping", "ask another one");
    }
    if board.latest().is_none() { not_yet() } else { text("ready\n") }
}

// === the table ===

async fn table(board: &Board, request: &Request<Incoming>) -> Answer {
    let wait = match wait(request.uri().query()) {
        Ok(wait) => wait,
        Err(reason) => return refuse(StatusCode::BAD_REQUEST, &reason, "write `?wait=30s`, at most 60s"),
    };
    let held = Held::of(request.headers());
    let (mut announced, mut closing) = (board.watch(), board.closing());
    if !wait.is_zero() {
        let newer = announced.wait_for(|latest| latest.as_ref().is_some_and(|latest| held.lets(latest)));
        // Whatever ends the wait, the latest table is looked at once more below.
        tokio::select! {
            _ = newer => {}
            () = tokio::time::sleep(wait) => {}
            _ = closing.wait_for(|closing| *closing) => {}
        }
    }
    let Some(latest) = board.latest() else {
        return not_yet();
    };
    let mut answer = if held.is(&latest) {
        let mut unchanged = Response::new(Full::default());
        *unchanged.status_mut() = StatusCode::NOT_MODIFIED;
        unchanged
    } else {
        sized(Response::new(Full::new(latest.table.clone())), "application/json")
    };
    let headers = answer.headers_mut();
    if let Ok(etag) = HeaderValue::try_from(etag(latest.stamp)) {
        headers.insert(ETAG, etag);
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    answer
}

/// The entity tag of a table: `"epoch.version.tick"`.
pub fn etag(stamp: Stamp) -> String {
    format!("\"{}.{}.{}\"", stamp.epoch, stamp.version, stamp.tick)
}

/// What a client says it holds.
enum Held {
    Nothing,
    Anything,
    Tables(Vec<Stamp>),
}

impl Held {
    fn of(headers: &HeaderMap) -> Held {
        let mut stamps = Vec::new();
        for value in headers.get_all(IF_NONE_MATCH) {
            let Ok(text) = value.to_str() else { continue };
            if text.trim() == "*" {
                return Held::Anything;
            }
            // A tag of somebody else is a table that is not held.
            stamps.extend(text.split(',').take(16).filter_map(stamp));
        }
        if stamps.is_empty() { Held::Nothing } else { Held::Tables(stamps) }
    }

    fn is(&self, latest: &Announced) -> bool {
        match self {
            Held::Nothing => false,
            Held::Anything => true,
            Held::Tables(stamps) => stamps.contains(&latest.stamp),
        }
    }

    /// Whether `latest` ends a wait: newer than all that is held. A client that holds a table of
    /// a later stamp has nothing to gain here and must not spin.
    fn lets(&self, latest: &Announced) -> bool {
        match self {
            Held::Nothing => true,
            Held::Anything => false,
            Held::Tables(stamps) => stamps.iter().all(|stamp| *stamp < latest.stamp),
        }
    }
}

fn stamp(tag: &str) -> Option<Stamp> {
    let tag = tag.trim();
    let tag = tag.strip_prefix("W/").unwrap_or(tag);
    let mut parts = tag.strip_prefix('"')?.strip_suffix('"')?.split('.').map(str::parse::<u64>);
    let (epoch, version, tick) = (parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?);
    parts.next().is_none().then_some(Stamp { epoch, version, tick })
}

fn wait(query: Option<&str>) -> Result<Duration, String> {
    let mut wait = Duration::ZERO;
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let Some(value) = pair.strip_prefix("wait=") else {
            let shown: String = pair.chars().take(40).collect();
            return Err(format!("unknown parameter `{shown}`"));
        };
        let (digits, unit) = match (value.strip_suffix("ms"), value.strip_suffix('s')) {
            (Some(digits), _) => (digits, 1),
            (None, Some(digits)) => (digits, 1000),
            (None, None) => return Err("`wait` has no unit".to_owned()),
        };
        let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let number: u64 = if plain {
            digits.parse().unwrap_or(u64::MAX)
        } else {
            return Err("`wait` is not a duration".to_owned());
        };
        wait = Duration::from_millis(number.saturating_mul(unit)).min(WATCH_WAIT_MAX);
    }
    Ok(wait)
}

// === what comes in ===

async fn usage(board: &Board, request: Request<Incoming>) -> Answer {
    let body = Limited::new(request.into_body(), REPORT_BYTES_MAX).collect();
    let body = match tokio::time::timeout(SERVER_BODY_WAIT, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.downcast_ref::<LengthLimitError>().is_some() => {
            let reason = format!("the report has more than {REPORT_BYTES_MAX} bytes");
            return closing(refuse(StatusCode::PAYLOAD_TOO_LARGE, &reason, "report fewer rows"));
        }
        Ok(Err(_)) => {
            return closing(refuse(StatusCode::BAD_REQUEST, "the report broke off", "send it whole"));
        }
        Err(_) => {
            let reason = format!("the report did not arrive within {SERVER_BODY_WAIT:?}");
            return closing(refuse(StatusCode::REQUEST_TIMEOUT, &reason, "send it again"));
        }
    };
    let report = match UsageReport::decode(&body) {
        Ok(report) => report,
        Err(error) => {
            let remedy = "run a node and a controller of the same version";
            return refuse(StatusCode::BAD_REQUEST, &error.to_string(), remedy);
        }
    };
    let node = report.node.clone();
    match board.inbox.offer(report, body.len()) {
        Ok(nack) => {
            if let Some(Nack { stamp, reason }) = nack {
                tracing::warn!(%node, ?stamp, ?reason, "a node refuses the table and goes on with its last one");
            }
            let mut taken = Response::new(Full::default());
            *taken.status_mut() = StatusCode::NO_CONTENT;
            taken
        }
        Err(taken @ Refused::NameTaken { first }) => {
            if first {
                tracing::warn!(%node, "two nodes report under one name and both use its share; name them apart");
            }
            let remedy = "give every node a name of its own: `node:` in its configuration";
            refuse(StatusCode::CONFLICT, &taken.to_string(), remedy)
        }
        Err(full @ Refused::Full) => later(refuse(
            StatusCode::SERVICE_UNAVAILABLE,
            &full.to_string(),
            "report again after the next tick; counters are cumulative",
        )),
    }
}

async fn reload(board: &Board) -> Answer {
    let (respond, response) = tokio::sync::oneshot::channel();
    let asked = async {
        board.reloads.send(respond).await.ok()?;
        response.await.ok()
    };
    let remedy = "correct the files and reload; the last good policy stays in force";
    ordered(tokio::time::timeout(RELOAD_WAIT, asked).await.ok().flatten(), remedy)
}

async fn rollback(board: &Board, query: Option<&str>) -> Answer {
    let remedy = "write `?to=VERSION`, or nothing for the policy before this one; `reload.kept` of \
                  /v1/status has what is kept";
    let to = match query.filter(|query| !query.is_empty()) {
        None => None,
        Some(query) => match query.strip_prefix("to=").map(str::parse::<u64>) {
            Some(Ok(version)) => Some(version),
            _ => return refuse(StatusCode::BAD_REQUEST, "not a version to go back to", remedy),
        },
    };
    let (respond, response) = tokio::sync::oneshot::channel();
    let asked = async {
        board.rollbacks.as_ref()?.send(RollbackRequest { to, respond }).await.ok()?;
        response.await.ok()
    };
    ordered(tokio::time::timeout(RELOAD_WAIT, asked).await.ok().flatten(), remedy)
}

/// What came of an operator's order.
fn ordered(outcome: Option<Reloaded>, remedy: &str) -> Answer {
    match outcome {
        Some(Ok(line)) => text(&format!("{line}\n")),
        Some(Err(reason)) => refuse(StatusCode::BAD_REQUEST, &reason, remedy),
        None => later(refuse(
            StatusCode::SERVICE_UNAVAILABLE,
            "the policy was not read in time",
            "look at the log, then try again",
        )),
    }
}

// === answers ===

fn admitted(board: &Board, headers: &HeaderMap) -> bool {
    let mut given = headers.get_all(AUTHORIZATION).iter();
    let first = given.next().map(HeaderValue::as_bytes);
    given.next().is_none() && board.token.load().admits(first)
}

/// Sent by a browser for some page: nodes and operators' tools send neither header, and no page has
/// an order to give.
fn cross_site(headers: &HeaderMap) -> bool {
    let fetch = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    headers.contains_key(ORIGIN) || fetch.is_some_and(|site| site != b"none")
}

fn forbidden() -> Answer {
    let remedy = "send it with a program: without `Origin` and `Sec-Fetch-Site`";
    closing(refuse(StatusCode::FORBIDDEN, "this endpoint takes no orders from web pages", remedy))
}

fn unauthorized() -> Answer {
    let mut answer = refuse(
        StatusCode::UNAUTHORIZED,
        "this endpoint needs the controller's token",
        "send `Authorization: Bearer TOKEN`; the token is in the file `token` of the state directory",
    );
    answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    // The body was not read; the connection cannot be used again.
    closing(answer)
}

fn not_allowed(allowed: &'static str) -> Answer {
    let remedy = format!("use {allowed}");
    let mut answer = refuse(StatusCode::METHOD_NOT_ALLOWED, "this path does not take that method", &remedy);
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    closing(answer)
}

fn not_yet() -> Answer {
    later(refuse(
        StatusCode::SERVICE_UNAVAILABLE,
        "no table has been published yet",
        "wait for the first interval, or look at the log",
    ))
}

fn later(mut answer: Answer) -> Answer {
    answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    answer
}

fn closing(mut answer: Answer) -> Answer {
    answer.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("close"));
    answer
}

fn text(body: &str) -> Answer {
    sized(Response::new(Full::new(Bytes::from(body.to_owned()))), "text/plain; charset=utf-8")
}

fn sized(mut answer: Answer, content_type: &'static str) -> Answer {
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

fn refuse(status: StatusCode, reason: &str, remedy: &str) -> Answer {
    let body = serde_json::json!({ "error": { "reason": reason, "remedy": remedy } });
    let mut answer = Response::new(Full::new(Bytes::from(format!("{body}\n"))));
    *answer.status_mut() = status;
    sized(answer, "application/json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_durations_and_bounded() {
        assert_eq!(wait(None), Ok(Duration::ZERO));
        assert_eq!(wait(Some("wait=30s")), Ok(Duration::from_secs(30)));
        assert_eq!(wait(Some("wait=250ms")), Ok(Duration::from_millis(250)));
        assert_eq!(wait(Some("wait=99999999999999999999s")), Ok(WATCH_WAIT_MAX));
        for bad in ["wait=30", "wait=", "wait=s", "wait=-1s", "wait=1e3s", "wiat=3s"] {
            assert!(wait(Some(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn tags_are_stamps() {
        let known = Stamp { epoch: 3, version: 14, tick: 15 };
        assert_eq!(stamp(&etag(known)), Some(known));
        assert_eq!(stamp(" W/\"3.14.15\""), Some(known));
        for bad in ["3.14.15", "\"3.14\"", "\"3.14.15.9\"", "\"a.b.c\"", ""] {
            assert_eq!(stamp(bad), None, "{bad}");
        }
    }
}
