//! What the node itself answers that concerns no limit, in the shape OpenAI's clients understand.
//! What concerns one is a dialect's to say, see [`voice`](crate::enforce::voice).

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use serde::Serialize;

use crate::enforce::stream::Body;

/// An answer that is not an upstream's.
pub fn error(status: StatusCode, kind: &str, code: &str, message: &str) -> Response<Body> {
    let error = serde_json::json!({
        "error": { "message": message, "type": kind, "param": null, "code": code }
    });
    let mut response = Response::new(full(Bytes::from(error.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

pub fn invalid(status: StatusCode, message: &str) -> Response<Body> {
    error(status, "invalid_request_error", "invalid_request", message)
}

pub fn unknown_path() -> Response<Body> {
    error(
        StatusCode::NOT_FOUND,
        "invalid_request_error",
        "path_not_found",
        "this path is not served here; paths other than /v1/ need a route in the node's configuration",
    )
}

/// In the shape of OpenAI's list of models.
pub fn models<'a>(names: impl Iterator<Item = &'a str>) -> Response<Body> {
    let model =
        |name| serde_json::json!({"id": name, "object": "model", "created": 0, "owned_by": "tidegate"});
    json(&serde_json::json!({"object": "list", "data": names.map(model).collect::<Vec<_>>()}))
}

pub fn json(shown: &impl Serialize) -> Response<Body> {
    let Ok(bytes) = serde_json::to_vec(shown) else {
        return error(StatusCode::INTERNAL_SERVER_ERROR, "server_error", "internal", "cannot be shown");
    };
    let mut response = Response::new(full(Bytes::from(bytes)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The node itself is full.
pub fn no_memory() -> Response<Body> {
    let message = "too many request bodies at once; your own limit is not used up";
    let mut response = error(StatusCode::SERVICE_UNAVAILABLE, "capacity_error", "capacity", message);
    response.headers_mut().insert(RETRY_AFTER, 1.into());
    response
}

/// Nothing to obey yet, and nobody to ask how to say so.
pub fn no_limits() -> Response<Body> {
    let message = "this node has no limits to apply yet";
    let mut response = error(StatusCode::SERVICE_UNAVAILABLE, "capacity_error", "no_limits", message);
    response.headers_mut().insert(RETRY_AFTER, 1.into());
    response
}

/// For answers given before the body was read: what follows on the connection is not a request.
pub fn closing(mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

pub fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}
