//! A client's own webhook, called on its behalf: the upstream was given the node's address in its
//! place, with the client's in the signed token.
//!
//! One call of the upstream is one call of the client, answered with its status: whether to try again
//! is the upstream's business, as it is without a node in between. Nothing is queued or remembered.

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Uri, header};
use http_body_util::Full;

use crate::bounds::WEBHOOK_RELAY_WAIT;
use crate::enforce::answer::full;
use crate::enforce::follow_http::chain;
use crate::enforce::forward::{bad_gateway, too_late};
use crate::enforce::gateway::Gate;
use crate::enforce::headers::strip;
use crate::enforce::stream::Body;

// === impl Gate ===

impl Gate {
    /// What the client answers: its status, and nothing else of it.
    pub(super) async fn relay(&self, to: Uri, mut headers: HeaderMap, body: Bytes) -> Response<Body> {
        strip(&mut headers);
        // What was said to the node is not said to the client.
        for name in
            [header::HOST, header::CONTENT_LENGTH, header::EXPECT, header::AUTHORIZATION, header::COOKIE]
        {
            headers.remove(name);
        }
        let mut outgoing = Request::post(to).body(Full::new(body)).unwrap_or_default();
        *outgoing.headers_mut() = headers;
        match tokio::time::timeout(WEBHOOK_RELAY_WAIT, self.client.request(outgoing)).await {
            Ok(Ok(answer)) => {
                let mut response = Response::new(full(Bytes::new()));
                *response.status_mut() = answer.status();
                response
            }
            Ok(Err(error)) => {
                // Without the address, which may hold a secret of the client's.
                tracing::debug!(error = %chain(&error), "a client's webhook cannot be called");
                bad_gateway("the client's webhook cannot be called")
            }
            Err(_) => too_late(),
        }
    }
}

/// An address that a client may name: with a host, and without a user or password in it.
pub fn address(text: &str) -> Option<Uri> {
    let uri = text.parse::<Uri>().ok()?;
    let web = matches!(uri.scheme_str(), Some("http" | "https"));
    let plain = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    (web && plain).then_some(uri)
}

/// What a webhook is answered with where no client waits for it.
pub fn thanks() -> Response<Body> {
    let mut response = Response::new(full(Bytes::from_static(b"{}")));
    *response.status_mut() = StatusCode::OK;
    let json = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}
