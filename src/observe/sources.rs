//! Every pool's sources, read side by side: one slow source delays nobody but itself.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::bounds::LARGE_PAGES_MAX;
use crate::bounds::SCRAPES_MAX;
use crate::bounds::SOURCE_WAIT_MAX;
use crate::observe::access::{Door, system_roots};
use crate::observe::backoff::Backoff;
use crate::observe::discover::Discovery;
use crate::observe::fetch::Fetcher;
use crate::observe::pair::{Said, together};
use crate::observe::prometheus::PrometheusSource;
use crate::observe::scrape::{Manner, Target, scrape};
use crate::observe::select::Selectors;
use crate::observe::{Outcome, PoolRound, Reading};
use crate::policy::source::Access;
use crate::policy::{Policy, PoolPolicy, SourcePolicy};
use crate::unit::{Clock, PoolId, ReplicaId};

/// The sources of one policy, and what they remember from round to round.
pub struct Sources {
    clock: Arc<dyn Clock>,
    slots: Arc<Semaphore>,
    roots: Arc<RootCertStore>,
    deadline: Duration,
    wanted: BTreeMap<PoolId, PoolPolicy>,
    pools: BTreeMap<PoolId, Pool>,
}

/// What every pool's reading needs.
#[derive(Clone)]
struct Means {
    clock: Arc<dyn Clock>,
    slots: Arc<Semaphore>,
    deadline: Duration,
}

struct Pool {
    policy: PoolPolicy,
    door: Door,
    source: Source,
    /// Targets that an edit took away: said to be gone until somebody else answers, or they would
    /// count as replicas that happen to be silent.
    left: BTreeSet<ReplicaId>,
}

enum Source {
    Prometheus(Vec<PrometheusSource>),
    Direct(Box<Direct>),
    /// The policy names something that cannot be asked; said every round.
    Broken(String),
}

struct Direct {
    discovery: Discovery,
    selectors: Arc<Selectors>,
    backoffs: BTreeMap<ReplicaId, Backoff>,
    /// For large pages.
    room: Arc<Semaphore>,
}

// === impl Sources ===

impl Sources {
    /// # Errors
    /// None today; kept so that a client that cannot be set up has a place to say so.
    pub fn new(clock: Arc<dyn Clock>, policy: &Policy) -> Result<Sources, String> {
        let mut sources = Sources {
            clock,
            slots: Arc::new(Semaphore::new(SCRAPES_MAX)),
            roots: system_roots(),
            deadline: SOURCE_WAIT_MAX,
            wanted: BTreeMap::new(),
            pools: BTreeMap::new(),
        };
        sources.set_policy(policy);
        Ok(sources)
    }

    /// Follows a policy; pools whose source stays keep what they remember.
    pub fn set_policy(&mut self, policy: &Policy) {
        self.deadline = SOURCE_WAIT_MAX.min(policy.interval / 2);
        let mut before = std::mem::take(&mut self.pools);
        self.wanted = policy.pools.clone();
        // Nobody is asked about a pool of fixed capacity.
        self.wanted.retain(|_, pool| !pool.is_fixed());
        for (id, wanted) in &self.wanted {
            let pool = match before.remove(id) {
                Some(old) if old.policy.source == wanted.source && old.policy.signals == wanted.signals => {
                    old
                }
                old => {
                    let mut pool = Pool::new(wanted, &self.roots);
                    pool.left = old.map(|old| old.without(&pool.source)).unwrap_or_default();
                    pool
                }
            };
            self.pools.insert(id.clone(), pool);
        }
    }

    /// One round over all pools; takes one deadline at most, plus the queue for a slot.
    pub async fn observe_round(&mut self) -> BTreeMap<PoolId, PoolRound> {
        let means =
            Means { clock: Arc::clone(&self.clock), slots: Arc::clone(&self.slots), deadline: self.deadline };
        let mut reading = JoinSet::new();
        let mut round = BTreeMap::new();
        for (id, wanted) in &self.wanted {
            // A pool whose reading ended early is begun anew.
            let pool = self.pools.remove(id).unwrap_or_else(|| Pool::new(wanted, &self.roots));
            let ended =
                PoolRound { failed: Some("its reading ended early".to_owned()), ..PoolRound::default() };
            round.insert(id.clone(), ended);
            let (id, means) = (id.clone(), means.clone());
            reading.spawn(async move {
                let mut pool = pool;
                let read = pool.read(&id, &means).await;
                (id, pool, read)
            });
        }
        while let Some(joined) = reading.join_next().await {
            let Ok((id, pool, mut read)) = joined else { continue };
            // Completion order is chance; a decision may not depend on it.
            read.replicas.sort_by(|a, b| a.replica.cmp(&b.replica));
            round.insert(id.clone(), read);
            self.pools.insert(id, pool);
        }
        round
    }
}

// === impl Pool ===

impl Pool {
    fn new(policy: &PoolPolicy, roots: &Arc<RootCertStore>) -> Pool {
        let access = match &policy.source {
            SourcePolicy::Prometheus { access, .. } | SourcePolicy::Direct { access, .. } => access.clone(),
            SourcePolicy::Fixed => Access::default(),
        };
        Pool {
            policy: policy.clone(),
            door: Door::new(access, Arc::clone(roots)),
            source: Source::new(policy),
            left: BTreeSet::new(),
        }
    }

    async fn read(&mut self, id: &PoolId, means: &Means) -> PoolRound {
        let begun = means.clock.now();
        let failed = |reason| PoolRound { failed: Some(reason), ..PoolRound::default() };
        let (fetcher, trouble) = match self.door.open(means.deadline).await {
            Ok(open) => open,
            Err(reason) => return failed(reason),
        };
        let mut round = match &mut self.source {
            Source::Broken(reason) => failed(reason.clone()),
            Source::Prometheus(servers) => {
                let left = means.deadline.saturating_sub(means.clock.now().since(begun));
                match read_servers(servers, &fetcher, id, means, left).await {
                    Some(round) => round,
                    None => {
                        self.source = Source::new(&self.policy);
                        failed("its reading ended early".to_owned())
                    }
                }
            }
            Source::Direct(direct) => {
                let patience = means.deadline / 2;
                let found = direct.discovery.refresh(begun, patience).await;
                self.left.extend(found.left);
                // Who came back has not left.
                self.left.retain(|replica| !found.targets.iter().any(|target| target.replica == *replica));
                let left = means.deadline.saturating_sub(means.clock.now().since(begun));
                let replicas = direct.scrape(&fetcher, found.targets, means, left).await;
                let nobody = replicas.is_empty().then(|| match found.warnings.first() {
                    Some(warning) => warning.clone(),
                    None => "discovery names no target".to_owned(),
                });
                PoolRound { replicas, failed: nobody, warnings: found.warnings }
            }
        };
        round.warnings.extend(trouble);
        self.say_who_left(&mut round, means);
        round
    }

    fn say_who_left(&mut self, round: &mut PoolRound, means: &Means) {
        if self.left.is_empty() {
            return;
        }
        let now = means.clock.now();
        let answered = round.replicas.iter().any(|reading| matches!(reading.outcome, Outcome::Up(_)));
        round.replicas.extend(self.left.iter().map(|replica| Reading {
            replica: replica.clone(),
            at: now,
            outcome: Outcome::Down("it is not a target any more".to_owned()),
        }));
        if answered {
            self.left.clear();
        }
    }

    /// Its targets that are none of `next`'s.
    fn without(self, next: &Source) -> BTreeSet<ReplicaId> {
        let Source::Direct(next) = next else { return BTreeSet::new() };
        // What files and names will say is not known yet: nobody is said to be gone for that.
        if next.discovery.asks() {
            return BTreeSet::new();
        }
        let next = next.discovery.known().targets;
        let mut left = self.left;
        if let Source::Direct(direct) = self.source {
            left.extend(direct.discovery.known().targets.into_iter().map(|target| target.replica));
        }
        left.retain(|replica| !next.iter().any(|target| target.replica == *replica));
        left
    }
}

/// None: the reading of one ended early, and what it remembers went with it.
async fn read_servers(
    servers: &mut Vec<PrometheusSource>,
    fetcher: &Fetcher,
    id: &PoolId,
    means: &Means,
    deadline: Duration,
) -> Option<PoolRound> {
    let mut reading = JoinSet::new();
    let count = servers.len();
    for (order, mut server) in servers.drain(..).enumerate() {
        let (fetcher, id, clock) = (fetcher.clone(), id.clone(), Arc::clone(&means.clock));
        reading.spawn(async move {
            let round = server.read(&fetcher, &id, clock.as_ref(), deadline, jitter()).await;
            let said = Said { server: server.server().to_owned(), round, known: server.known(&id) };
            (order, server, said)
        });
    }
    let mut read = Vec::new();
    while let Some(joined) = reading.join_next().await {
        read.extend(joined.ok());
    }
    read.sort_by_key(|(order, ..)| *order);
    let mut said = Vec::with_capacity(read.len());
    for (_, server, one) in read {
        servers.push(server);
        said.push(one);
    }
    (said.len() == count).then(|| together(said, means.clock.now()))
}

// === impl Direct ===

impl Direct {
    async fn scrape(
        &mut self,
        fetcher: &Fetcher,
        targets: Vec<Target>,
        means: &Means,
        deadline: Duration,
    ) -> Vec<Reading> {
        let now = means.clock.now();
        self.backoffs.retain(|replica, _| targets.iter().any(|target| target.replica == *replica));
        let mut readings = Vec::with_capacity(targets.len());
        let mut scrapes = JoinSet::new();
        for target in targets {
            if let Some(pause) = self.backoffs.get(&target.replica).and_then(|backoff| backoff.pause(now)) {
                let outcome =
                    Outcome::Silent(format!("it refused; asked again in {} s", pause.as_secs() + 1));
                readings.push(Reading { replica: target.replica, at: now, outcome });
                continue;
            }
            let (fetcher, selectors, means) = (fetcher.clone(), Arc::clone(&self.selectors), means.clone());
            let room = Arc::clone(&self.room);
            scrapes.spawn(async move {
                let slot = means.slots.acquire().await;
                let scraped = match slot {
                    Ok(_) => Ok(scrape(&fetcher, &target, &selectors, deadline, &room).await),
                    Err(error) => Err(error.to_string()),
                };
                (target.replica, means.clock.now(), scraped)
            });
        }
        while let Some(joined) = scrapes.join_next().await {
            let Ok((replica, at, scraped)) = joined else { continue };
            let outcome = match scraped {
                Err(reason) => Outcome::Silent(reason),
                Ok(scraped) => {
                    match scraped.manner {
                        Manner::Answered | Manner::Absent => {
                            self.backoffs.remove(&replica);
                        }
                        Manner::Refused(retry_after) => {
                            let backoff = self.backoffs.entry(replica.clone()).or_default();
                            backoff.refused(at, retry_after, jitter());
                        }
                    }
                    scraped.outcome
                }
            };
            readings.push(Reading { replica, at, outcome });
        }
        readings
    }
}

/// Between 0 and 1, unpredictable; for pauses, never for a decision.
fn jitter() -> f64 {
    let drawn = std::hash::RandomState::new().build_hasher().finish();
    (drawn >> 11) as f64 / (1_u64 << 53) as f64
}

// === impl Source ===

impl Source {
    fn new(policy: &PoolPolicy) -> Source {
        match &policy.source {
            SourcePolicy::Prometheus { servers, .. } => {
                let source = |url: &String| PrometheusSource::new(url, &policy.signals);
                Source::Prometheus(servers.iter().map(source).collect())
            }
            SourcePolicy::Fixed => Source::Broken("nothing is measured".to_owned()),
            SourcePolicy::Direct { targets, .. } => {
                let selectors = Selectors::new(&policy.signals).map_err(|error| error.to_string());
                let direct = selectors.and_then(|selectors| {
                    let discovery = Discovery::new(targets)?;
                    let room = Arc::new(Semaphore::new(LARGE_PAGES_MAX));
                    let (selectors, backoffs) = (Arc::new(selectors), BTreeMap::new());
                    Ok(Direct { discovery, selectors, backoffs, room })
                });
                direct.map_or_else(Source::Broken, |direct| Source::Direct(Box::new(direct)))
            }
        }
    }
}
