//! An admitted request on its way: sent to an upstream, and the answer made fit for the client.

use std::time::Duration;

use bytes::Bytes;
use http::header;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;

use crate::enforce::answer;
use crate::enforce::ask::{self, Ask};
use crate::enforce::follow_http::chain;
use crate::enforce::gateway::Gate;
use crate::enforce::headers::{prepare, remove_prefixed, strip};
use crate::enforce::meter::Meter;
use crate::enforce::stream::{Body, Estimate, Guard, Metered};
use crate::enforce::ticket::Settlement;
use crate::enforce::upstream::{Outstanding, Upstream};

/// An upstream's response, and what has to outlive its headers.
struct Sent {
    response: Response<Incoming>,
    outstanding: Outstanding,
}

// === impl Gate ===

impl Gate {
    pub(super) async fn forward(
        &self,
        mut request: Request<Bytes>,
        ask: &Ask,
        upstream: &Upstream,
        mut guard: Guard,
    ) -> Response<Body> {
        let asked_usage = ask_for_usage(&mut request, ask, upstream);
        prepare(request.headers_mut(), upstream);
        let patience = match ask.streamed {
            true => Duration::from_secs(self.caps.first_byte_seconds),
            false => Duration::from_secs(self.caps.answer_seconds),
        };
        let sent = self.send(&request, upstream, &mut guard, patience).await;
        let Sent { response, outstanding } = match sent {
            Ok(sent) => sent,
            Err(response) => return response,
        };
        let (mut parts, body) = response.into_parts();
        if parts.status.is_server_error() {
            guard.settle(Settlement::UpstreamError);
        } else if parts.status.is_client_error() {
            guard.settle(Settlement::Rejected);
        } else {
            guard.on_drop(Settlement::Broken { output_seen: 0 });
        }
        strip(&mut parts.headers);
        remove_prefixed(&mut parts.headers, "x-ratelimit-");
        let content_type = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let encoded = parts.headers.get(header::CONTENT_ENCODING).is_some_and(|value| value != "identity");
        let meter = Meter::new(content_type, encoded, asked_usage, self.answers.part());
        if asked_usage && meter.is_events() {
            parts.headers.remove(header::CONTENT_LENGTH);
        }
        let estimate = Estimate { input_tokens: ask.input_tokens, images: ask.images };
        let idle = Duration::from_secs(self.caps.idle_seconds);
        let body = Metered::new(body, meter, guard, outstanding, estimate, idle);
        Response::from_parts(parts, body.boxed_unsync())
    }

    /// Sends to the least busy replica; only where nothing was sent is another one tried.
    async fn send(
        &self,
        request: &Request<Bytes>,
        upstream: &Upstream,
        guard: &mut Guard,
        patience: Duration,
    ) -> Result<Sent, Response<Body>> {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        for replica in upstream.candidates(self.shared.cell.now()) {
            let Ok(url) = replica.url(path) else {
                return Err(answer::invalid(StatusCode::BAD_REQUEST, "the path is not valid"));
            };
            let outstanding = replica.begin();
            let mut outgoing = Request::new(Full::new(request.body().clone()));
            *outgoing.method_mut() = request.method().clone();
            *outgoing.uri_mut() = url;
            *outgoing.headers_mut() = request.headers().clone();
            guard.on_drop(Settlement::Broken { output_seen: 0 });
            match tokio::time::timeout(patience, self.client.request(outgoing)).await {
                Ok(Ok(response)) => return Ok(Sent { response, outstanding }),
                Ok(Err(error)) if error.is_connect() => {
                    guard.on_drop(Settlement::NotSent);
                    guard.attempt_failed();
                    self.shared.count.connect_errors();
                    if replica.skip(self.shared.cell.now()) {
                        tracing::warn!(upstream = replica.base(), error = %chain(&error), "replica not reachable");
                    }
                }
                Ok(Err(error)) => {
                    guard.settle(Settlement::UpstreamError);
                    tracing::debug!(upstream = replica.base(), error = %chain(&error), "upstream broke off");
                    return Err(bad_gateway("the upstream broke off before it answered"));
                }
                Err(_) => {
                    guard.settle(Settlement::Died { output_seen: 0 });
                    tracing::debug!(upstream = replica.base(), "no first byte in time");
                    let message = "the upstream did not answer in time";
                    return Err(answer::error(
                        StatusCode::GATEWAY_TIMEOUT,
                        "upstream_error",
                        "upstream_timeout",
                        message,
                    ));
                }
            }
        }
        Err(bad_gateway("no replica can be reached"))
    }
}

fn bad_gateway(message: &str) -> Response<Body> {
    answer::error(StatusCode::BAD_GATEWAY, "upstream_error", "upstream_unavailable", message)
}

/// Adds the option that makes OpenAI-compatible streams report usage, where it is known to be
/// understood and the client has set no option of its own.
fn ask_for_usage(request: &mut Request<Bytes>, ask: &Ask, upstream: &Upstream) -> bool {
    let path = request.uri().path();
    let understood = path.ends_with("/chat/completions") || path.ends_with("/completions");
    if !(understood && upstream.ask_usage && ask.streamed && ask.options_free) {
        return false;
    }
    let Some(changed) = ask::with_usage(request.body()) else {
        return false;
    };
    *request.body_mut() = changed;
    true
}
