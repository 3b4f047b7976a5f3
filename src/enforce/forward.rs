//! An admitted request on its way: sent to an upstream, and the answer made fit for the client.
//!
//! Which upstream is asked next when one refuses is `fallback.rs`.

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
use crate::enforce::headers::{prepare, remove_quotas, strip};
use crate::enforce::jobs::Watch;
use crate::enforce::meter::Meter;
use crate::enforce::stream::{Body, Estimate, Guard, Metered};
use crate::enforce::ticket::{Refusal, Settlement};
use crate::enforce::upstream::{Outstanding, Route, Upstream};
use crate::unit::{Instant, ModelId};

/// What is to be sent, whoever gets it.
pub(super) struct Errand<'a> {
    pub request: Request<Bytes>,
    pub ask: &'a Ask,
    pub model: ModelId,
    /// The job that the answer will tell of.
    pub watch: Option<Watch>,
}

impl Errand<'_> {
    /// Sent twice it may be done twice.
    pub fn creates_a_job(&self) -> bool {
        self.watch.as_ref().is_some_and(Watch::is_of_a_creation)
    }
}

/// An upstream's response, and what has to outlive its headers.
pub(super) struct Sent {
    pub response: Response<Incoming>,
    outstanding: Outstanding,
    /// Usage was asked for on behalf of the node, and is kept from the client.
    asked_usage: bool,
}

/// No response came.
pub(super) struct Failed {
    /// What the request has come to if nobody else is asked.
    pub end: Settlement,
    pub response: Response<Body>,
    /// No other upstream would take the request either.
    pub at_fault: bool,
}

// === impl Gate ===

impl Gate {
    /// # Errors
    /// Nobody may be asked for the model now.
    pub(super) async fn forward(
        &self,
        errand: Errand<'_>,
        route: &Route,
        mut guard: Guard,
    ) -> Result<Response<Body>, Refusal> {
        let patience = match errand.ask.streamed {
            true => Duration::from_secs(self.caps.first_byte_seconds),
            false => Duration::from_secs(self.caps.answer_seconds),
        };
        let deadline = self.shared.cell.now() + patience;
        if route.listed {
            return self.fall_back(errand, route, guard, deadline).await;
        }
        let Some((_, upstream)) = route.providers.first() else {
            return Ok(bad_gateway("the model has no upstream"));
        };
        match self.attempt(&errand, upstream, &mut guard, deadline).await {
            Ok(sent) => Ok(self.pass_on(sent, errand, guard)),
            Err(failed) => {
                guard.settle(failed.end);
                Ok(failed.response)
            }
        }
    }

    /// Makes a response the client's, whatever its status.
    pub(super) fn pass_on(&self, sent: Sent, errand: Errand<'_>, mut guard: Guard) -> Response<Body> {
        let Errand { ask, watch, .. } = errand;
        let Sent { response, outstanding, asked_usage } = sent;
        let (mut parts, body) = response.into_parts();
        if parts.status.is_server_error() {
            guard.settle(Settlement::UpstreamError);
        } else if parts.status.is_client_error() {
            guard.settle(Settlement::Rejected);
        } else {
            guard.on_drop(Settlement::Broken { output_seen: 0 });
            guard.created();
        }
        let watch = watch.and_then(|watch| watch.on(parts.status));
        strip(&mut parts.headers);
        remove_quotas(&mut parts.headers, parts.status);
        let content_type = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let encoded = parts.headers.get(header::CONTENT_ENCODING).is_some_and(|value| value != "identity");
        let meter = Meter::new(content_type, encoded, asked_usage, self.answers.part());
        if meter.is_events() && (asked_usage || guard.may_end()) {
            parts.headers.remove(header::CONTENT_LENGTH);
        }
        let estimate = Estimate { input_tokens: ask.input_tokens, images: ask.images };
        let idle = Duration::from_secs(self.caps.idle_seconds);
        let body = Metered::new(body, meter, guard, watch, outstanding, estimate, idle);
        Response::from_parts(parts, body.boxed_unsync())
    }

    /// Sends to the least busy replica; only where nothing was sent is another one tried.
    ///
    /// # Errors
    /// No response came before `deadline`; the guard is not settled.
    pub(super) async fn attempt(
        &self,
        errand: &Errand<'_>,
        upstream: &Upstream,
        guard: &mut Guard,
        deadline: Instant,
    ) -> Result<Sent, Failed> {
        let Errand { request, ask, .. } = errand;
        let with_usage = ask_for_usage(request, ask, upstream);
        let mut headers = request.headers().clone();
        prepare(&mut headers, upstream);
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        for replica in upstream.candidates(self.shared.cell.now()) {
            let Ok(url) = replica.url(path) else {
                let response = answer::invalid(StatusCode::BAD_REQUEST, "the path is not valid");
                return Err(Failed { end: Settlement::NotSent, response, at_fault: true });
            };
            let outstanding = replica.begin();
            let body = with_usage.as_ref().unwrap_or(request.body());
            let mut outgoing = Request::new(Full::new(body.clone()));
            *outgoing.method_mut() = request.method().clone();
            *outgoing.uri_mut() = url;
            *outgoing.headers_mut() = headers.clone();
            guard.on_drop(Settlement::Broken { output_seen: 0 });
            let left = deadline.since(self.shared.cell.now());
            match tokio::time::timeout(left, self.client.request(outgoing)).await {
                Ok(Ok(response)) => {
                    return Ok(Sent { response, outstanding, asked_usage: with_usage.is_some() });
                }
                Ok(Err(error)) if error.is_connect() => {
                    guard.on_drop(Settlement::NotSent);
                    guard.attempt_failed();
                    self.shared.count.connect_errors();
                    if replica.skip(self.shared.cell.now()) {
                        tracing::warn!(upstream = replica.base(), error = %chain(&error), "replica not reachable");
                    }
                }
                Ok(Err(error)) => {
                    tracing::debug!(upstream = replica.base(), error = %chain(&error), "upstream broke off");
                    let response = bad_gateway("the upstream broke off before it answered");
                    return Err(Failed { end: Settlement::UpstreamError, response, at_fault: false });
                }
                Err(_) => {
                    tracing::debug!(upstream = replica.base(), "no first byte in time");
                    let (end, response) = (Settlement::Died { output_seen: 0 }, too_late());
                    return Err(Failed { end, response, at_fault: false });
                }
            }
        }
        let response = bad_gateway("no replica can be reached");
        Err(Failed { end: Settlement::NotSent, response, at_fault: false })
    }
}

pub(super) fn bad_gateway(message: &str) -> Response<Body> {
    answer::error(StatusCode::BAD_GATEWAY, "upstream_error", "upstream_unavailable", message)
}

pub(super) fn too_late() -> Response<Body> {
    let message = "the upstream did not answer in time";
    answer::error(StatusCode::GATEWAY_TIMEOUT, "upstream_error", "upstream_timeout", message)
}

/// The body with the option that makes OpenAI-compatible streams report usage, where it is known
/// to be understood and the client has set no option of its own.
fn ask_for_usage(request: &Request<Bytes>, ask: &Ask, upstream: &Upstream) -> Option<Bytes> {
    let path = request.uri().path();
    let understood = path.ends_with("/chat/completions") || path.ends_with("/completions");
    if !(understood && upstream.ask_usage && ask.streamed && ask.options_free) {
        return None;
    }
    ask::with_usage(request.body())
}
