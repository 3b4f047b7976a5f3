//! How the node asks a provider: what it learns from answers, and when it holds back.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::enforce::provider::{self, Providers, Readiness};
use crate::sim::law::{Answer, Ask, End, Law, Seen, Terms};
use crate::unit::{Instant, ModelId, ProviderId};

const MODEL: &str = "model";
const PROVIDER: &str = "partner";

/// One memory of providers a node, as nodes have it.
#[derive(Debug)]
pub struct Partner {
    provider: ProviderId,
    model: ModelId,
    nodes: Vec<Providers>,
}

// === impl Partner ===

impl Partner {
    pub fn new(terms: &Terms) -> Partner {
        let nodes = (0..terms.nodes).map(|_| Providers::default()).collect();
        Partner { provider: ProviderId::new(PROVIDER), model: ModelId::new(MODEL), nodes }
    }
}

impl Law for Partner {
    fn tick(&mut self, _: Instant, _: &Seen<'_>) {}

    fn admit(&mut self, now: Instant, node: usize, _: &Ask) -> bool {
        let Some(providers) = self.nodes.get_mut(node) else { return false };
        let ready = !matches!(providers.readiness(now, &self.provider, MODEL), Readiness::Held { .. });
        if ready {
            providers.begin(now, &self.provider, MODEL, &[], &Default::default());
        }
        ready
    }

    fn answered(&mut self, now: Instant, node: usize, _: &Ask, answer: &Answer) {
        let Some(providers) = self.nodes.get_mut(node) else { return };
        let status = if answer.refused { StatusCode::TOO_MANY_REQUESTS } else { StatusCode::OK };
        let mut headers = HeaderMap::new();
        if let Some((limit, remaining)) = answer.limit.zip(answer.remaining) {
            // OpenAI's names and formats; a bucket's reset is when it would be full again.
            let reset = (limit - remaining).max(0.0) / limit.max(1.0) * 60.0;
            for (name, value) in [
                (HeaderName::from_static("x-ratelimit-limit-requests"), format!("{limit:.0}")),
                (HeaderName::from_static("x-ratelimit-remaining-requests"), format!("{remaining:.0}")),
                (HeaderName::from_static("x-ratelimit-reset-requests"), format!("{:.0}ms", reset * 1e3)),
            ] {
                headers.extend(HeaderValue::try_from(value).ok().map(|value| (name, value)));
            }
        }
        let lesson = provider::learn(&provider::Answer { status, headers: &headers, body: b"", unix_ms: 0 });
        providers.learn(now, now, &self.provider, &self.model, &lesson);
    }

    fn first_token(&mut self, _: Instant, _: usize, _: u64, _: Duration) {}

    fn done(&mut self, _: Instant, _: usize, _: &Ask, _: &End) {}

    fn budget(&self) -> Option<f64> {
        None
    }
}
