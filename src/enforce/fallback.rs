//! A model with several providers: the next one is asked when one refuses, before the client hears
//! anything.
//!
//! One body, one ticket: whatever is tried, the client is charged once, and each provider sees the
//! request at most once. Once a byte of a success is on its way nothing is tried again, and a
//! request that is itself at fault is at fault everywhere.

use http::Response;

use crate::bounds::PROVIDER_ERROR_BYTES_MAX;
use crate::bounds::PROVIDER_ERROR_WAIT;
use crate::enforce::allowance::{Allowance, Portion};
use crate::enforce::answer::full;
use crate::enforce::client::read_body;
use crate::enforce::forward::{Errand, Sent, bad_gateway, too_late};
use crate::enforce::gateway::Gate;
use crate::enforce::headers::{remove_quotas, strip};
use crate::enforce::meters::Amounts;
use crate::enforce::provider::{
    Answer, Attempt, Class, Closed, Lesson, Providers, Readiness, learn, refuses,
};
use crate::enforce::stream::{Body, Guard};
use crate::enforce::ticket::{Refusal, Scope, Settlement};
use crate::enforce::upstream::Route;
use crate::unit::{Instant, ModelId, ProviderId, unix_now};
use crate::wire::Hold;

/// What the client hears if nobody serves it.
struct Last {
    end: Settlement,
    response: Response<Body>,
}

/// One request for one provider.
#[derive(Clone, Copy)]
struct Asked<'a> {
    provider: &'a ProviderId,
    model: &'a str,
    limits: &'a [Allowance],
    amounts: &'a Amounts,
}

// === impl Gate ===

impl Gate {
    /// # Errors
    /// Every provider refuses or is known to.
    pub(super) async fn fall_back(
        &self,
        errand: Errand<'_>,
        route: &Route,
        mut guard: Guard,
        deadline: Instant,
    ) -> Result<Response<Body>, Refusal> {
        let (mut closed, mut last) = (Closed::default(), None::<Last>);
        // Sent and refused, and not counted yet: the last one is counted by the settlement.
        let mut refused = false;
        let amounts = guard.amounts();
        let order = self.shared.with_providers(|providers, now| order(providers, now, &errand.model, route));
        for at in order {
            let Some((provider, upstream)) = route.providers.get(at) else { continue };
            let begun = self.begin(provider, &errand.model, &amounts, &mut closed);
            let Some((begun, attempt)) = begun else { continue };
            guard.attempt(attempt);
            if std::mem::take(&mut refused) {
                guard.attempt_failed();
            }
            if begun >= deadline {
                guard.attempt_over(Settlement::NotSent);
                last = Some(Last { end: Settlement::UpstreamError, response: too_late() });
                break;
            }
            let sent = match self.attempt(&errand, upstream, &mut guard, deadline).await {
                Ok(sent) => sent,
                Err(failed) => {
                    guard.attempt_over(failed.end);
                    refused = !matches!(failed.end, Settlement::NotSent);
                    last = Some(Last { end: failed.end, response: failed.response });
                    let at_fault = failed.at_fault;
                    let lesson = Lesson { class: Class::Failure, wait: None, readings: Vec::new() };
                    if !at_fault {
                        self.remember(begun, provider, &errand.model, &lesson);
                    }
                    // A job may have been created before the silence.
                    if at_fault || refused && errand.creates_a_job() {
                        break;
                    }
                    continue;
                }
            };
            if !refuses(sent.response.status()) {
                let lesson = lesson(&sent.response, b"");
                self.remember(begun, provider, &errand.model, &lesson);
                return Ok(self.pass_on(sent, errand, guard));
            }
            refused = true;
            guard.attempt_over(Settlement::UpstreamError);
            let (class, response) = self.refusal(sent, begun, provider, &errand.model).await;
            match class {
                Class::Failure => last = Some(Last { end: Settlement::UpstreamError, response }),
                _ => self.shared.with_providers(|providers, now| {
                    if let Readiness::Held { until, why } =
                        providers.readiness(now, provider, errand.model.as_str())
                    {
                        closed.add(until, why);
                    }
                }),
            }
        }
        // Something broke: that is told as it is. Where all merely refuse, it is a refusal of ours.
        if let Some(Last { end, response }) = last {
            guard.settle(end);
            return Ok(response);
        }
        if refused {
            guard.attempt_failed();
        }
        guard.settle(Settlement::NotSent);
        match closed.refusal(self.shared.cell.now()) {
            Some(refusal) => Err(refusal),
            None => Ok(bad_gateway("the model has no upstream")),
        }
    }

    /// When it was asked, where it may be.
    fn begin(
        &self,
        provider: &ProviderId,
        model: &ModelId,
        amounts: &Amounts,
        closed: &mut Closed,
    ) -> Option<(Instant, Attempt)> {
        let limits = self.limits_of(provider, model);
        let asked = Asked { provider, model: model.as_str(), limits: &limits, amounts };
        self.shared.with_providers(|providers, now| Some((now, begin(providers, now, &asked, closed)?)))
    }

    /// What this node may ask of a provider by the policy: its part of the pool's share.
    fn limits_of(&self, provider: &ProviderId, model: &ModelId) -> Box<[Allowance]> {
        let held = self.shared.cell.held();
        let limits = held.as_ref().and_then(|held| {
            let table = &held.table;
            let limits = table.providers.get(provider)?;
            let row = table.row_of(model.as_str())?;
            let portion = Portion::of(table.pools.get(&row.pool)?, &self.shared.node);
            Some(Allowance::all(limits, Scope::Provider, portion))
        });
        limits.unwrap_or_default()
    }

    /// Reads what a provider refuses with, and remembers it; the response as a client may see it.
    async fn refusal(
        &self,
        sent: Sent,
        begun: Instant,
        provider: &ProviderId,
        model: &ModelId,
    ) -> (Class, Response<Body>) {
        let (mut parts, body) = sent.response.into_parts();
        let read = read_body(body, PROVIDER_ERROR_BYTES_MAX, PROVIDER_ERROR_WAIT, PROVIDER_ERROR_WAIT).await;
        let bytes = read.as_ref().map(AsRef::as_ref).unwrap_or_default();
        let lesson = lesson(&Response::from_parts(parts.clone(), ()), bytes);
        tracing::debug!(%provider, %model, status = %parts.status, class = ?lesson.class, "provider refuses");
        self.remember(begun, provider, model, &lesson);
        strip(&mut parts.headers);
        remove_quotas(&mut parts.headers, parts.status);
        let response = match read {
            Ok(bytes) => Response::from_parts(parts, full(bytes)),
            Err(_) => bad_gateway("the upstream refused, and broke off"),
        };
        (lesson.class, response)
    }

    fn remember(&self, begun: Instant, provider: &ProviderId, model: &ModelId, lesson: &Lesson) {
        self.shared.with_providers(|providers, now| providers.learn(now, begun, provider, model, lesson));
    }
}

/// In the order of the list; those that another request finds out about come last.
fn order(providers: &Providers, now: Instant, model: &ModelId, route: &Route) -> Vec<usize> {
    let on_trial = |at: &usize| {
        let provider = route.providers.get(*at).map(|(provider, _)| provider);
        provider.map(|name| providers.readiness(now, name, model.as_str())) == Some(Readiness::OnTrial)
    };
    let mut order: Vec<usize> = (0..route.providers.len()).collect();
    order.sort_by_key(on_trial);
    order
}

/// Whether it may be asked; then it is as good as asked.
fn begin(providers: &mut Providers, now: Instant, asked: &Asked<'_>, closed: &mut Closed) -> Option<Attempt> {
    let Asked { provider, model, limits, amounts } = *asked;
    let held = match providers.readiness(now, provider, model) {
        Readiness::Held { until, why } => Some((until, why)),
        _ => providers.over(now, provider, limits, amounts).map(|over| (now + over.wait, Hold::Limited)),
    };
    if let Some((until, why)) = held {
        providers.skipped(provider);
        closed.add(until, why);
        return None;
    }
    Some(providers.begin(now, provider, model, limits, amounts))
}

fn lesson<B>(response: &Response<B>, body: &[u8]) -> Lesson {
    let unix_ms = u64::try_from(unix_now().as_millis()).unwrap_or(u64::MAX);
    learn(&Answer { status: response.status(), headers: response.headers(), body, unix_ms })
}
