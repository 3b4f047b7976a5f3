//! One request through the node: who asks, for what, whether now, and where to.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::{Body as HttpBody, Incoming};
use tokio::sync::Semaphore;

use crate::bounds::MODELS_LISTED_MAX;
use crate::bounds::USAGE_TOKENS_MAX;
use crate::enforce::accounts::{Accounts, Holder, NoTier};
use crate::enforce::affair::Affair;
use crate::enforce::answer::{self, closing};
use crate::enforce::ask::Ask;
use crate::enforce::client::{HttpClient, jitter};
use crate::enforce::config::Caps;
use crate::enforce::forward::Errand;
use crate::enforce::intake::{self, Refused};
use crate::enforce::jobs::{HOOKS, Watch};
use crate::enforce::limiter::Quotas;
use crate::enforce::limits;
use crate::enforce::purse::{Expected, Hold, Purse};
use crate::enforce::render::Moment;
use crate::enforce::room::Room;
use crate::enforce::serve::Source;
use crate::enforce::shared::Shared;
use crate::enforce::strangers::Strangers;
use crate::enforce::stream::{Body, Guard};
use crate::enforce::ticket::{self, Costs, Refusal, RefusalReason, Ticket};
use crate::enforce::upstream::{Route, Routing};
use crate::enforce::voice::Voice;
use crate::unit::ModelId;
use crate::unit::unix_now;
use crate::wire::dialect::Kind;
use crate::wire::{LimitTable, Row};

/// What the proxy needs besides the limiter.
pub struct Gate {
    pub shared: Arc<Shared>,
    pub routing: ArcSwap<Routing>,
    pub accounts: ArcSwap<Accounts>,
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
/// Where a tenant asks how it stands.
const LIMITS: &str = "/v1/limits";

// === impl Gate ===

impl Gate {
    pub async fn handle(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let unread = !request.body().is_end_stream();
        if request.method() == Method::CONNECT || request.headers().contains_key(header::UPGRADE) {
            self.shared.count.bad_requests();
            return closing(answer::invalid(StatusCode::BAD_REQUEST, "tunnels and upgrades are not served"));
        }
        if request.uri().path().starts_with(HOOKS) {
            return self.webhook(request).await;
        }
        let Some(holder) = self.accounts.load().identify(request.headers()) else {
            self.shared.count.unauthorized();
            let response = self.unauthorized();
            let through =
                self.puts_up_with(&request) && (!unread || intake::discard(request.into_body()).await);
            return if through { response } else { closing(response) };
        };
        match self.proceed(request, &holder).await {
            Ok(response) => response,
            // Answered before its model was known: what is known of the key is shown all the same.
            Err(response) => self.marked(response, &holder),
        }
    }

    /// The same bytes for every way of not being known.
    fn unauthorized(&self) -> Response<Body> {
        let held = self.shared.cell.held();
        let voice = Voice::of_nobody(held.as_ref().map(|held| &*held.table));
        let mut response = voice.say(Kind::Unauthorized, "", moment());
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        response
    }

    fn marked(&self, mut response: Response<Body>, holder: &Holder) -> Response<Body> {
        let (held, moment) = (self.shared.cell.held(), moment());
        let voice = Voice::of_holder(held.as_ref().map(|held| &*held.table), holder);
        let quotas = voice.row.map_or_else(Quotas::default, |row| {
            self.quotas(&limits::request(holder, row.model.as_str(), &row.tier))
        });
        voice.mark(&mut response, &quotas, None, moment);
        response
    }

    fn quotas(&self, wanted: &ticket::Request<'_>) -> Quotas {
        self.shared.cell.with(|limiter, now| limiter.quotas(now, wanted, None))
    }

    /// How the holder stands with every model.
    async fn limits(&self, holder: &Holder) -> Response<Body> {
        let Some(held) = self.shared.cell.held() else { return answer::no_limits() };
        let ledger = &self.shared.ledger;
        // The same two records for all models; without them there is no usage to show.
        let read = Purse::pin(holder, ledger).await;
        let periods = |row: &Row| {
            let purse = read.is_ok().then(|| Purse::of(&held.table, row, holder)).flatten();
            purse.and_then(|purse| purse.usage(ledger).ok()).unwrap_or_default()
        };
        let quotas = |wanted: &ticket::Request<'_>| self.quotas(wanted);
        let standings = limits::standings(&held.table, holder, moment(), quotas, periods);
        answer::json(&standings)
    }

    /// `Err`: an answer that still has to show how the key stands.
    async fn proceed(
        &self,
        request: Request<Incoming>,
        holder: &Holder,
    ) -> Result<Response<Body>, Response<Body>> {
        // An asterisk or nothing would end up in the authority of the upstream's URL.
        if !request.uri().path().starts_with('/') {
            self.shared.count.bad_requests();
            let response = answer::invalid(StatusCode::BAD_REQUEST, "the path must start with a slash");
            return Err(closing(response));
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
                return Err(closing(refused.answer(&self.caps)));
            }
        };
        let ask = understand(&parts, &body).map_err(|message| {
            self.shared.count.bad_requests();
            answer::invalid(StatusCode::BAD_REQUEST, &message)
        })?;
        self.decide(Request::from_parts(parts, body), &ask, holder).await
    }

    /// Whether the source of a request without a valid key may keep its connection.
    fn puts_up_with(&self, request: &Request<Incoming>) -> bool {
        let Some(Source(source)) = request.extensions().get().copied() else { return false };
        let mut strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        strangers.attempt(source, self.shared.cell.now())
    }

    async fn decide(
        &self,
        mut request: Request<Bytes>,
        ask: &Ask,
        holder: &Holder,
    ) -> Result<Response<Body>, Response<Body>> {
        let routing = self.routing.load_full();
        let routed = routing.model_of(request.uri().path()).map(|model| model.as_str());
        if let Some(page) = self.page(&request, &routing, routed, holder).await {
            return Err(page);
        }
        let (held, moment) = (self.shared.cell.held(), moment());
        let table = held.as_ref().map(|held| &*held.table);
        let unknown = |model| {
            self.shared.count.unknown_models();
            Voice::of_holder(table, holder).say(Kind::UnknownModel, model, moment)
        };
        let affair = self.affair(table, &request, ask.model.as_deref().or(routed));
        let known = affair.as_ref().and_then(Affair::model);
        let found = ask.model.as_deref().or(known).or(routed);
        let route = |model: &str| route(&routing, table, affair.as_ref(), model);
        let Some((model, route)) = found.and_then(|model| Some((model, route(model)?))) else {
            return Err(unknown(found.unwrap_or_default()));
        };
        let product = table.and_then(|table| table.product_of(model));
        let tier = holder.tier(product).map_err(|none| match none {
            NoTier::BelowMinimum => Voice::of_product(table, product).say(Kind::Recharge, model, moment),
            NoTier::Unknown => unknown(model),
        })?;
        let wanted = ticket::Request {
            input_tokens: ask.input_tokens,
            output_max: ask.output_max,
            images: ask.images,
            streamed: ask.streamed,
            job: affair.as_ref().is_some_and(Affair::creates),
            ..limits::request(holder, model, tier)
        };
        let voice = Voice::of(table, model, tier.as_str()).with(wanted.overrides);
        let purse = table.zip(voice.row).and_then(|(table, row)| Purse::of(table, row, holder));
        let admitted = self.admit(affair.as_ref(), &wanted, ask, purse.as_ref()).await;
        let refused = match &admitted {
            Err(Refusal { reason: RefusalReason::Limit { scope, dimension, .. }, .. }) => {
                Some((*scope, *dimension))
            }
            _ => None,
        };
        let quotas = self.shared.cell.with(|limiter, now| limiter.quotas(now, &wanted, refused));
        let (mut ticket, hold, watch) = match admitted {
            Ok(admitted) => admitted,
            Err(refusal) => {
                self.count(&refusal);
                return voice.refuse(&refusal, &wanted, &quotas, moment).ok_or_else(answer::no_limits);
            }
        };
        let job = affair.as_ref().zip(watch.as_ref()).and_then(|(affair, watch)| {
            let job = self.draft(affair, &wanted, watch, &mut ticket)?;
            if let Some(body) = self.with_address(affair, &job, request.body()) {
                *request.body_mut() = body;
            }
            Some(job)
        });
        let most = output_most(table, model, ask);
        let guard = Guard::new(Arc::clone(&self.shared), ticket, hold, job, most);
        let errand = Errand { request, ask, model: ModelId::new(model), watch };
        match self.forward(errand, &route, guard).await {
            Ok(mut response) => {
                voice.mark(&mut response, &quotas, None, moment);
                Ok(response)
            }
            Err(refusal) => {
                self.count(&refusal);
                // Asking took its time: when to come again counts from now on.
                voice.refuse(&refusal, &wanted, &quotas, self::moment()).ok_or_else(answer::no_limits)
            }
        }
    }

    /// What the node answers itself.
    async fn page(
        &self,
        request: &Request<Bytes>,
        routing: &Routing,
        routed: Option<&str>,
        holder: &Holder,
    ) -> Option<Response<Body>> {
        let path = request.uri().path();
        match path {
            MODELS if routed.is_none() && request.method() == Method::GET => {
                Some(self.models(routing, holder))
            }
            LIMITS if routed.is_none() && request.method() == Method::GET => Some(self.limits(holder).await),
            _ if climbs(path) || routed.is_none() && !path.starts_with(API) => {
                self.shared.count.bad_requests();
                Some(answer::unknown_path())
            }
            _ => None,
        }
    }

    /// One decision over rates, jobs, budgets and credit: all of them take the request, or none does.
    async fn admit(
        &self,
        affair: Option<&Affair<'_>>,
        wanted: &ticket::Request<'_>,
        ask: &Ask,
        purse: Option<&Purse>,
    ) -> Result<(Ticket, Option<Hold>, Option<Watch>), Refusal> {
        let watch = affair.map_or(Ok(None), |affair| self.take_part(affair, wanted))?;
        let (cell, ledger) = (&self.shared.cell, &self.shared.ledger);
        let admitted = match purse {
            None => cell.with(|limiter, now| limiter.admit_with(now, wanted, |_| Ok(None))),
            Some(purse) => {
                let pinned = purse.open(ledger).await?;
                let reserve =
                    |costs: &Costs| purse.reserve(ledger, pinned, Expected::of(ask, costs)).map(Some);
                cell.with(|limiter, now| limiter.admit_with(now, wanted, reserve))
            }
        };
        admitted.map(|(ticket, hold)| (ticket, hold, watch))
    }

    /// What the holder may ask for, in the shape of OpenAI's list; routes may map the path instead.
    fn models(&self, routing: &Routing, holder: &Holder) -> Response<Body> {
        let held = self.shared.cell.held();
        let Some(held) = held.as_ref() else { return answer::models(std::iter::empty()) };
        let has = |row: &&Row| {
            let product = row.product.as_ref().and_then(|product| held.table.products.get(product));
            let entry = held.table.models.get(&row.model);
            holder.tier(product) == Ok(&row.tier) && routing.serves(row.model.as_str(), entry)
        };
        let mine = held.table.rows.iter().filter(has);
        answer::models(mine.take(MODELS_LISTED_MAX).map(|row| row.model.as_str()))
    }

    fn count(&self, refusal: &Refusal) {
        self.shared.count.refusals.count(&refusal.reason);
        if matches!(refusal.reason, RefusalReason::UnknownModel | RefusalReason::UnknownTier) {
            self.shared.count.unknown_models();
        }
    }
}

/// Read once for one answer, so that all it says of time is of one instant.
pub(super) fn moment() -> Moment {
    Moment { unix: unix_now(), jitter: jitter() }
}

/// Whom to ask for a model; about a job that is known, who created it.
fn route(
    routing: &Routing,
    table: Option<&LimitTable>,
    affair: Option<&Affair<'_>>,
    model: &str,
) -> Option<Route> {
    let route = routing.route(model, table.and_then(|table| table.models.get(model)))?;
    Some(route.only(affair.and_then(Affair::provider)))
}

/// Most output tokens that all choices of an answer can have together.
fn output_most(table: Option<&LimitTable>, model: &str, ask: &Ask) -> u64 {
    let each = table.and_then(|table| table.models.get(model)?.output_max).unwrap_or(USAGE_TOKENS_MAX);
    each.saturating_mul(ask.images.max(1)).min(USAGE_TOKENS_MAX)
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
