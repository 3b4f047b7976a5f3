//! One request through the node: who asks, for what, whether now, and where to.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body as HttpBody, Incoming};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::enforce::answer::{self, closing};
use crate::enforce::ask::{self, Ask};
use crate::enforce::client::{HttpClient, jitter};
use crate::enforce::config::Caps;
use crate::enforce::follow_http::chain;
use crate::enforce::keyring::{Holder, Keyring};
use crate::enforce::limiter::Quota;
use crate::enforce::meter::Meter;
use crate::enforce::node::Shared;
use crate::enforce::stream::{Body, Estimate, Guard, Metered};
use crate::enforce::ticket::{Refusal, RefusalReason, Settlement, Verdict};
use crate::enforce::upstream::{Outstanding, Routing, Upstream};

/// What the proxy needs besides the limiter.
pub struct Gate {
    pub shared: Arc<Shared>,
    pub routing: ArcSwap<Routing>,
    pub keyring: ArcSwap<Keyring>,
    pub client: HttpClient,
    pub caps: Caps,
    /// Room for the bodies of all requests together, in [`BODY_GRAIN`]s.
    pub bodies: Semaphore,
}

/// Bodies are accounted for in steps of this many bytes.
const BODY_GRAIN: usize = 4 << 10;

/// An upstream's response, and what has to outlive its headers.
struct Sent {
    response: Response<Incoming>,
    outstanding: Outstanding,
}

/// Meant for one connection, never passed on.
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

// === impl Gate ===

impl Gate {
    /// Room for all bodies together; at least one of the largest kind fits.
    pub fn body_room(caps: &Caps) -> Semaphore {
        let grains = caps.bodies_bytes.max(caps.body_bytes).div_ceil(BODY_GRAIN);
        Semaphore::new(grains.min(Semaphore::MAX_PERMITS))
    }

    pub async fn handle(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let unread = !request.body().is_end_stream();
        if request.method() == Method::CONNECT || request.headers().contains_key(header::UPGRADE) {
            self.shared.count.bad_requests();
            return closing(answer::invalid(StatusCode::BAD_REQUEST, "tunnels and upgrades are not served"));
        }
        let Some(holder) = self.keyring.load().identify(request.headers()).cloned() else {
            self.shared.count.unauthorized();
            let response = answer::unauthorized();
            return if unread { closing(response) } else { response };
        };
        let (parts, body) = request.into_parts();
        let Some(mut room) = self.room_for(&body).await else {
            return closing(answer::invalid(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many request bodies at once; try again",
            ));
        };
        let body = match self.read(body).await {
            Ok(body) => body,
            Err(response) => {
                self.shared.count.bad_requests();
                return closing(response);
            }
        };
        // What a body of unknown length did not need is free again.
        let spare = room.num_permits().saturating_sub(body.len().div_ceil(BODY_GRAIN));
        drop(room.split(spare));
        let ask = match understand(&parts.headers, &body) {
            Ok(ask) => ask,
            Err(message) => {
                self.shared.count.bad_requests();
                return answer::invalid(StatusCode::BAD_REQUEST, &message);
            }
        };
        self.decide(Request::from_parts(parts, body), &ask, &holder).await
    }

    /// Held while the body is in memory; a body of unknown length may be as large as any.
    async fn room_for(&self, body: &Incoming) -> Option<SemaphorePermit<'_>> {
        let most = self.caps.body_bytes;
        let bytes = body.size_hint().exact().and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(most);
        let grains = u32::try_from(bytes.min(most).div_ceil(BODY_GRAIN)).unwrap_or(u32::MAX);
        let deadline = Duration::from_secs(self.caps.body_seconds);
        tokio::time::timeout(deadline, self.bodies.acquire_many(grains)).await.ok()?.ok()
    }

    /// The whole body: its model decides before anything is sent on.
    async fn read(&self, body: Incoming) -> Result<Bytes, Response<Body>> {
        let whole = Limited::new(body, self.caps.body_bytes).collect();
        let deadline = Duration::from_secs(self.caps.body_seconds);
        match tokio::time::timeout(deadline, whole).await {
            Ok(Ok(whole)) => Ok(whole.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(answer::invalid(
                StatusCode::PAYLOAD_TOO_LARGE,
                &format!("the body is larger than {} bytes", self.caps.body_bytes),
            )),
            Ok(Err(_)) => Err(answer::invalid(StatusCode::BAD_REQUEST, "the body broke off")),
            Err(_) => Err(answer::invalid(
                StatusCode::REQUEST_TIMEOUT,
                &format!("the body took longer than {} s", self.caps.body_seconds),
            )),
        }
    }

    async fn decide(&self, request: Request<Bytes>, ask: &Ask, holder: &Holder) -> Response<Body> {
        let routing = self.routing.load_full();
        let routed = routing.model_of(request.uri().path()).map(|model| model.as_str());
        let found = ask.model.as_deref().or(routed);
        let Some((model, upstream)) = found.and_then(|model| Some((model, routing.upstream(model)?))) else {
            self.shared.count.unknown_models();
            return answer::unknown_model();
        };
        let wanted = crate::enforce::ticket::Request {
            model,
            tier: holder.tier.as_str(),
            key: holder.counters,
            input_tokens: ask.input_tokens,
            output_max: ask.output_max,
            images: ask.images,
            streamed: ask.streamed,
        };
        let (verdict, quotas) = self.shared.cell.with(|limiter, now| {
            let verdict = limiter.admit(now, &wanted);
            (verdict, limiter.quotas(now, wanted.model, wanted.tier, wanted.key))
        });
        let ticket = match verdict {
            Verdict::Admitted(ticket) => ticket,
            Verdict::Refused(refusal) => return self.refuse(&refusal, &quotas),
        };
        let guard = Guard::new(Arc::clone(&self.shared.cell), ticket);
        let mut response = self.forward(request, ask, upstream, guard).await;
        answer::quota_headers(response.headers_mut(), &quotas);
        response
    }

    fn refuse(&self, refusal: &Refusal, quotas: &[Option<Quota>; 3]) -> Response<Body> {
        if matches!(refusal.reason, RefusalReason::UnknownModel | RefusalReason::UnknownTier) {
            self.shared.count.unknown_models();
        }
        let mut response = answer::refusal(refusal, jitter());
        answer::quota_headers(response.headers_mut(), quotas);
        response
    }

    async fn forward(
        &self,
        mut request: Request<Bytes>,
        ask: &Ask,
        upstream: &Upstream,
        mut guard: Guard,
    ) -> Response<Body> {
        let asked_usage = ask_for_usage(&mut request, ask, upstream);
        prepare(request.headers_mut(), upstream);
        let Sent { response, outstanding } = match self.send(&request, upstream, &mut guard).await {
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
        let meter = Meter::new(content_type, asked_usage);
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
    ) -> Result<Sent, Response<Body>> {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let first_byte = Duration::from_secs(self.caps.first_byte_seconds);
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
            match tokio::time::timeout(first_byte, self.client.request(outgoing)).await {
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

/// Only JSON is looked into; other bodies get their model from the route.
fn understand(headers: &HeaderMap, body: &Bytes) -> Result<Ask, String> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let json = content_type.is_none_or(|kind| kind.to_ascii_lowercase().contains("json"));
    if json && !body.is_empty() { Ask::parse(body) } else { Ok(Ask::opaque(body.len())) }
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

/// What an upstream may see of the client's headers.
fn prepare(headers: &mut HeaderMap, upstream: &Upstream) {
    strip(headers);
    if !upstream.forward_authorization {
        headers.remove(header::AUTHORIZATION);
        headers.remove("x-api-key");
    }
    let framing = [header::HOST, header::CONTENT_LENGTH, header::EXPECT, header::ACCEPT_ENCODING];
    for name in framing.iter().map(HeaderName::as_str).chain(["x-tier", "x-forwarded-for", "forwarded"]) {
        headers.remove(name);
    }
    remove_prefixed(headers, "x-ratelimit-");
    remove_prefixed(headers, "x-envoy-");
    if let Some(credential) = &upstream.credential {
        headers.insert(header::AUTHORIZATION, credential.clone());
    }
}

/// Removes what belongs to one connection, named by the standard or by the message itself.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

fn remove_prefixed(headers: &mut HeaderMap, prefix: &str) {
    let names: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with(prefix)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}
