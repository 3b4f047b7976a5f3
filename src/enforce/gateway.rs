//! One request through the node: who asks, for what, whether now, and where to.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body as HttpBody, Incoming};
use tokio::sync::Semaphore;

use crate::bounds::MODELS_LISTED_MAX;
use crate::enforce::answer::{self, closing};
use crate::enforce::ask::{self, Ask};
use crate::enforce::client::{HttpClient, jitter};
use crate::enforce::config::Caps;
use crate::enforce::follow_http::chain;
use crate::enforce::headers::{prepare, remove_prefixed, strip};
use crate::enforce::intake::{self, Refused};
use crate::enforce::keyring::{Holder, Keyring};
use crate::enforce::limiter::Quotas;
use crate::enforce::meter::Meter;
use crate::enforce::room::Room;
use crate::enforce::serve::Source;
use crate::enforce::shared::Shared;
use crate::enforce::strangers::Strangers;
use crate::enforce::stream::{Body, Estimate, Guard, Metered};
use crate::enforce::ticket::{self, Refusal, RefusalReason, Settlement, Verdict};
use crate::enforce::upstream::{Outstanding, Routing, Upstream};

/// What the proxy needs besides the limiter.
pub struct Gate {
    pub shared: Arc<Shared>,
    pub routing: ArcSwap<Routing>,
    pub keyring: ArcSwap<Keyring>,
    pub client: HttpClient,
    pub caps: Caps,
    /// Room for the bodies of all requests together, see [`intake`].
    pub bodies: Semaphore,
    /// Room for the answers that are looked into for usage, all together.
    pub answers: Arc<Room>,
    pub strangers: Mutex<Strangers>,
}

/// Where OpenAI's clients ask which models there are.
/// What is passed on without a route: an upstream has other paths too (metrics, sleep, profiling),
/// and a model's name in a body is no key to them.
const API: &str = "/v1/";
const MODELS: &str = "/v1/models";

/// An upstream's response, and what has to outlive its headers.
struct Sent {
    response: Response<Incoming>,
    outstanding: Outstanding,
}

// === impl Gate ===

impl Gate {
    pub async fn handle(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let unread = !request.body().is_end_stream();
        if request.method() == Method::CONNECT || request.headers().contains_key(header::UPGRADE) {
            self.shared.count.bad_requests();
            return closing(answer::invalid(StatusCode::BAD_REQUEST, "tunnels and upgrades are not served"));
        }
        let Some(holder) = self.keyring.load().identify(request.headers()).cloned() else {
            self.shared.count.unauthorized();
            let response = answer::unauthorized();
            let through =
                self.puts_up_with(&request) && (!unread || intake::discard(request.into_body()).await);
            return if through { response } else { closing(response) };
        };
        // An asterisk or nothing would end up in the authority of the upstream's URL.
        if !request.uri().path().starts_with('/') {
            self.shared.count.bad_requests();
            return closing(answer::invalid(StatusCode::BAD_REQUEST, "the path must start with a slash"));
        }
        let (parts, body) = request.into_parts();
        // The room is held for as long as the body is.
        let (body, _room) = match intake::read(body, &self.bodies, &self.caps).await {
            Ok(read) => read,
            Err(refused) => {
                match refused {
                    Refused::NoRoom => self.shared.count.bodies_refused(),
                    _ => self.shared.count.bad_requests(),
                }
                return closing(refused.answer(&self.caps));
            }
        };
        let ask = match understand(&parts, &body) {
            Ok(ask) => ask,
            Err(message) => {
                self.shared.count.bad_requests();
                return answer::invalid(StatusCode::BAD_REQUEST, &message);
            }
        };
        self.decide(Request::from_parts(parts, body), &ask, &holder).await
    }

    /// Whether the source of a request without a valid key may keep its connection.
    fn puts_up_with(&self, request: &Request<Incoming>) -> bool {
        let Some(Source(source)) = request.extensions().get().copied() else { return false };
        let mut strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        strangers.attempt(source, self.shared.cell.now())
    }

    async fn decide(&self, request: Request<Bytes>, ask: &Ask, holder: &Holder) -> Response<Body> {
        let routing = self.routing.load_full();
        let routed = routing.model_of(request.uri().path()).map(|model| model.as_str());
        if routed.is_none() && request.method() == Method::GET && request.uri().path() == MODELS {
            return self.models(&routing, holder);
        }
        let path = request.uri().path();
        if climbs(path) || routed.is_none() && !path.starts_with(API) {
            self.shared.count.bad_requests();
            return answer::unknown_path();
        }
        let found = ask.model.as_deref().or(routed);
        let Some((model, upstream)) = found.and_then(|model| Some((model, routing.upstream(model)?))) else {
            self.shared.count.unknown_models();
            return answer::unknown_model();
        };
        let wanted = ticket::Request {
            input_tokens: ask.input_tokens,
            output_max: ask.output_max,
            images: ask.images,
            streamed: ask.streamed,
            ..ticket::Request::new(model, holder.tier.as_str(), holder.counters)
        };
        let (verdict, quotas) = self.shared.cell.with(|limiter, now| {
            let verdict = limiter.admit(now, &wanted);
            let refused = match &verdict {
                Verdict::Refused(Refusal {
                    reason: RefusalReason::Limit { scope, dimension, .. }, ..
                }) => Some((*scope, *dimension)),
                _ => None,
            };
            (verdict, limiter.quotas(now, &wanted, refused))
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

    /// What the holder may ask for, in the shape of OpenAI's list; routes may map the path instead.
    fn models(&self, routing: &Routing, holder: &Holder) -> Response<Body> {
        let held = self.shared.cell.held();
        let rows = held.iter().flat_map(|held| &held.table.rows);
        let mine =
            rows.filter(|row| row.tier == holder.tier && routing.upstream(row.model.as_str()).is_some());
        answer::models(mine.take(MODELS_LISTED_MAX).map(|row| row.model.as_str()))
    }

    fn refuse(&self, refusal: &Refusal, quotas: &Quotas) -> Response<Body> {
        self.shared.count.refusals.count(&refusal.reason);
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

/// Does an upstream that resolves dots read another path than the one looked at here?
fn climbs(path: &str) -> bool {
    path.split('/').any(|part| {
        let part = part.to_ascii_lowercase().replace("%2e", ".");
        part == ".." || part == "." || ["%2f", "%5c", "\\"].iter().any(|slash| part.contains(slash))
    })
}

/// Only JSON is looked into; other bodies get their model from the route. What looks like an
/// object is one whatever it is called: `curl -d` calls everything a form.
fn understand(parts: &http::request::Parts, body: &Bytes) -> Result<Ask, String> {
    if parts.method.is_safe() && body.is_empty() {
        return Ok(Ask::reading());
    }
    let content_type = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let json = content_type.is_none_or(|kind| kind.to_ascii_lowercase().contains("json"));
    let object = body.trim_ascii_start().starts_with(b"{");
    if object || json && !body.is_empty() {
        return Ask::parse(body);
    }
    Ok(Ask::opaque(body.len()))
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
