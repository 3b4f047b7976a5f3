//! Which replica gets a request: the least busy of those that can be connected to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use http::{HeaderValue, Uri};

use crate::bounds::UPSTREAM_SKIP;
use crate::enforce::config::RoutingConfig;
use crate::unit::{Instant, ModelId, ProviderId};
use crate::wire::ModelEntry;

/// Models to upstreams, and paths to models.
#[derive(Debug, Default)]
pub struct Routing {
    by_name: BTreeMap<ProviderId, Arc<Upstream>>,
    by_model: BTreeMap<String, Arc<Upstream>>,
    /// For models that no upstream names.
    any: Option<Arc<Upstream>>,
    /// Longest prefix first.
    routes: Vec<(String, ModelId)>,
}

/// Who may be asked for a model.
#[derive(Clone, Debug)]
pub struct Route {
    /// In the order in which they are asked.
    pub providers: Vec<(ProviderId, Arc<Upstream>)>,
    /// The policy lists them: one that refuses gives way to the next, and that is remembered.
    /// Otherwise what the only one answers is passed on as it is.
    pub listed: bool,
}

#[derive(Debug)]
pub struct Upstream {
    name: ProviderId,
    replicas: Vec<Arc<Replica>>,
    turn: AtomicUsize,
    pub credential: Option<HeaderValue>,
    pub forward_authorization: bool,
    pub ask_usage: bool,
}

#[derive(Debug)]
pub struct Replica {
    base: String,
    outstanding: AtomicUsize,
    /// Nanoseconds of the instant until which it is passed over.
    skipped_until: AtomicU64,
}

/// One request on one replica; counts as outstanding until dropped.
#[derive(Debug)]
pub struct Outstanding(Arc<Replica>);

// === impl Routing ===

impl Routing {
    /// # Errors
    /// Names the upstream or route, and what is wrong with it.
    pub fn new(config: &RoutingConfig) -> Result<Routing, String> {
        let mut routing = Routing::default();
        for (name, entry) in &config.upstreams {
            if entry.urls.is_empty() {
                return Err(format!("upstreams.{name}.urls is empty; name at least one"));
            }
            let mut replicas = Vec::new();
            for url in &entry.urls {
                let parsed: Uri = url.parse().map_err(|error| format!("upstreams.{name}: {url}: {error}"))?;
                let scheme = parsed.scheme_str();
                if parsed.host().is_none()
                    || !matches!(scheme, Some("http" | "https"))
                    || parsed.query().is_some()
                {
                    return Err(format!("upstreams.{name}: {url} must look like http://host:port"));
                }
                if parsed.authority().is_some_and(|authority| authority.as_str().contains('@')) {
                    return Err(format!("upstreams.{name}: a URL holds a credential; use `credential_file`"));
                }
                replicas.push(Arc::new(Replica {
                    base: url.trim_end_matches('/').to_owned(),
                    outstanding: AtomicUsize::new(0),
                    skipped_until: AtomicU64::new(0),
                }));
            }
            let upstream = Arc::new(Upstream {
                name: ProviderId::new(name),
                replicas,
                turn: AtomicUsize::new(0),
                credential: entry.credential.as_ref().and_then(super::config::Secret::bearer),
                forward_authorization: entry.forward_authorization,
                ask_usage: entry.ask_usage,
            });
            routing.by_name.insert(upstream.name.clone(), Arc::clone(&upstream));
            if entry.models.is_empty() && routing.any.replace(Arc::clone(&upstream)).is_some() {
                return Err(format!("upstreams.{name}: a second upstream without `models`; name them"));
            }
            for model in &entry.models {
                if routing.by_model.insert(model.clone(), Arc::clone(&upstream)).is_some() {
                    return Err(format!(
                        "upstreams.{name}: model {model} belongs to another upstream already"
                    ));
                }
            }
        }
        for route in &config.routes {
            if !route.prefix.starts_with('/') {
                return Err(format!("routes: prefix {} must start with a slash", route.prefix));
            }
            routing.routes.push((route.prefix.clone(), route.model.clone()));
        }
        routing.routes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        Ok(routing)
    }

    /// Those that the policy lists, as far as this node has them; else the upstream that names
    /// the model.
    pub fn route(&self, model: &str, entry: Option<&ModelEntry>) -> Option<Route> {
        let listed = entry.map(|entry| entry.providers.as_slice()).unwrap_or_default();
        if listed.is_empty() {
            let upstream = self.by_model.get(model).or(self.any.as_ref())?;
            return Some(Route {
                providers: vec![(upstream.name.clone(), Arc::clone(upstream))],
                listed: false,
            });
        }
        let here = |name: &ProviderId| Some((name.clone(), Arc::clone(self.by_name.get(name)?)));
        let providers: Vec<_> = listed.iter().filter_map(here).collect();
        (!providers.is_empty()).then_some(Route { providers, listed: true })
    }

    pub fn serves(&self, model: &str, entry: Option<&ModelEntry>) -> bool {
        match entry.map(|entry| entry.providers.as_slice()) {
            None | Some([]) => self.any.is_some() || self.by_model.contains_key(model),
            Some(listed) => listed.iter().any(|name| self.by_name.contains_key(name)),
        }
    }

    pub fn has(&self, provider: &ProviderId) -> bool {
        self.by_name.contains_key(provider)
    }

    /// The model of a path, whole segments only.
    pub fn model_of(&self, path: &str) -> Option<&ModelId> {
        let matches = |prefix: &str| {
            path.strip_prefix(prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || prefix.ends_with('/'))
        };
        self.routes.iter().find(|(prefix, _)| matches(prefix)).map(|(_, model)| model)
    }
}

// === impl Route ===

impl Route {
    /// To this provider alone, where it is still listed.
    #[must_use]
    pub fn only(mut self, provider: Option<&ProviderId>) -> Route {
        if let Some(provider) = provider
            && self.providers.iter().any(|(name, _)| name == provider)
        {
            self.providers.retain(|(name, _)| name == provider);
        }
        self
    }
}

// === impl Upstream ===

impl Upstream {
    /// Every replica worth trying, the least busy first; those just found dead only when there is
    /// no other.
    pub fn candidates(&self, now: Instant) -> Vec<Arc<Replica>> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.replicas.len().max(1);
        let rotated = self.replicas.iter().skip(turn).chain(self.replicas.iter().take(turn));
        let mut all: Vec<_> = rotated.cloned().collect();
        all.sort_by_key(|replica| replica.outstanding.load(Ordering::Relaxed));
        let alive = |replica: &&Arc<Replica>| replica.skipped_until.load(Ordering::Relaxed) <= now.0;
        let living: Vec<_> = all.iter().filter(alive).cloned().collect();
        if living.is_empty() { all } else { living }
    }
}

// === impl Replica ===

impl Replica {
    pub fn begin(self: &Arc<Replica>) -> Outstanding {
        self.outstanding.fetch_add(1, Ordering::Relaxed);
        Outstanding(Arc::clone(self))
    }

    /// Whether that is news: it was not passed over already.
    pub fn skip(&self, now: Instant) -> bool {
        self.skipped_until.swap((now + UPSTREAM_SKIP).0, Ordering::Relaxed) <= now.0
    }

    /// # Errors
    /// The path and the base do not make a URL.
    pub fn url(&self, path_and_query: &str) -> Result<Uri, String> {
        super::client::join(&self.base, path_and_query)
    }

    pub fn base(&self) -> &str {
        &self.base
    }
}

// === impl Outstanding ===

impl Drop for Outstanding {
    fn drop(&mut self) {
        self.0.outstanding.fetch_sub(1, Ordering::Relaxed);
    }
}
