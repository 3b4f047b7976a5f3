//! Every pool's sources, read side by side: one slow source delays nobody but itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::bounds::SCRAPES_MAX;
use crate::bounds::SOURCE_WAIT_MAX;
use crate::observe::fetch::Fetcher;
use crate::observe::prometheus::PrometheusSource;
use crate::observe::scrape::{Target, scrape};
use crate::observe::select::Selectors;
use crate::observe::{Outcome, PoolRound, Reading};
use crate::policy::source::Targets;
use crate::policy::{Policy, PoolPolicy, SourcePolicy};
use crate::unit::{Clock, PoolId, ReplicaId};

/// The sources of one policy, and what they remember from round to round.
pub struct Sources {
    fetcher: Fetcher,
    clock: Arc<dyn Clock>,
    slots: Arc<Semaphore>,
    deadline: Duration,
    pools: BTreeMap<PoolId, Pool>,
}

struct Pool {
    policy: PoolPolicy,
    source: Source,
    /// Targets that an edit took away: said to be gone until somebody else answers, or they would
    /// count as replicas that happen to be silent.
    left: BTreeSet<ReplicaId>,
}

enum Source {
    Prometheus(PrometheusSource),
    Direct {
        targets: Vec<Target>,
        selectors: Arc<Selectors>,
    },
    /// The policy names something that cannot be asked; said every round.
    Broken(String),
}

// === impl Sources ===

impl Sources {
    /// # Errors
    /// When no HTTP client can be made.
    pub fn new(clock: Arc<dyn Clock>, policy: &Policy) -> Result<Sources, String> {
        let mut sources = Sources {
            fetcher: Fetcher::new()?,
            clock,
            slots: Arc::new(Semaphore::new(SCRAPES_MAX)),
            deadline: SOURCE_WAIT_MAX,
            pools: BTreeMap::new(),
        };
        sources.set_policy(policy);
        Ok(sources)
    }

    /// Follows a policy; pools whose source stays keep what they remember.
    pub fn set_policy(&mut self, policy: &Policy) {
        self.deadline = SOURCE_WAIT_MAX.min(policy.interval / 2);
        let mut before = std::mem::take(&mut self.pools);
        for (id, wanted) in &policy.pools {
            let pool = match before.remove(id) {
                Some(old) if old.policy.source == wanted.source && old.policy.signals == wanted.signals => {
                    old
                }
                old => {
                    let mut pool = Pool::new(wanted);
                    pool.left = old.map(|old| old.without(&pool.source)).unwrap_or_default();
                    pool
                }
            };
            self.pools.insert(id.clone(), pool);
        }
    }

    /// One round over all pools; takes one deadline at most, plus the queue for a slot.
    pub async fn observe_round(&mut self) -> BTreeMap<PoolId, PoolRound> {
        let mut direct = JoinSet::new();
        let mut servers = JoinSet::new();
        let mut round = BTreeMap::new();
        for (id, pool) in std::mem::take(&mut self.pools) {
            round.insert(id.clone(), PoolRound::default());
            match &pool.source {
                Source::Prometheus(_) => {
                    let (fetcher, clock, deadline) =
                        (self.fetcher.clone(), Arc::clone(&self.clock), self.deadline);
                    // Stays in place should the task end without giving the pool back.
                    let spare = Pool::new(&pool.policy);
                    servers.spawn(read_server(fetcher, clock, deadline, id.clone(), pool));
                    self.pools.insert(id, spare);
                    continue;
                }
                Source::Direct { targets, selectors } => {
                    for target in targets {
                        direct.spawn(self.read_target(id.clone(), target.clone(), Arc::clone(selectors)));
                    }
                }
                Source::Broken(reason) => {
                    round
                        .insert(id.clone(), PoolRound { replicas: Vec::new(), failed: Some(reason.clone()) });
                }
            }
            self.pools.insert(id, pool);
        }
        while let Some(joined) = direct.join_next().await {
            let Ok((id, reading)) = joined else { continue };
            round.entry(id).or_default().replicas.push(reading);
        }
        self.say_who_left(&mut round);
        while let Some(joined) = servers.join_next().await {
            let Ok((id, pool, read)) = joined else { continue };
            round.insert(id.clone(), read);
            self.pools.insert(id, pool);
        }
        for pool in round.values_mut() {
            // Completion order is chance; a decision may not depend on it.
            pool.replicas.sort_by(|a, b| a.replica.cmp(&b.replica));
        }
        round
    }

    fn say_who_left(&mut self, round: &mut BTreeMap<PoolId, PoolRound>) {
        let now = self.clock.now();
        for (id, pool) in &mut self.pools {
            let Some(round) = round.get_mut(id).filter(|_| !pool.left.is_empty()) else { continue };
            let answered = round.replicas.iter().any(|reading| matches!(reading.outcome, Outcome::Up(_)));
            round.replicas.extend(pool.left.iter().map(|replica| Reading {
                replica: replica.clone(),
                at: now,
                outcome: Outcome::Down("it is not a target any more".to_owned()),
            }));
            if answered {
                pool.left.clear();
            }
        }
    }

    fn read_target(
        &self,
        id: PoolId,
        target: Target,
        selectors: Arc<Selectors>,
    ) -> impl Future<Output = (PoolId, Reading)> + Send + 'static {
        let (fetcher, clock, slots) =
            (self.fetcher.clone(), Arc::clone(&self.clock), Arc::clone(&self.slots));
        let deadline = self.deadline;
        async move {
            let slot = slots.acquire().await;
            let outcome = match slot {
                Ok(_) => scrape(&fetcher, &target, &selectors, deadline).await,
                Err(error) => Outcome::Silent(error.to_string()),
            };
            (id, Reading { replica: target.replica, at: clock.now(), outcome })
        }
    }
}

async fn read_server(
    fetcher: Fetcher,
    clock: Arc<dyn Clock>,
    deadline: Duration,
    id: PoolId,
    mut pool: Pool,
) -> (PoolId, Pool, PoolRound) {
    let read = match &mut pool.source {
        Source::Prometheus(source) => source.read(&fetcher, &id, || clock.now(), deadline).await,
        Source::Direct { .. } | Source::Broken(_) => PoolRound::default(),
    };
    (id, pool, read)
}

// === impl Pool ===

impl Pool {
    fn new(policy: &PoolPolicy) -> Pool {
        Pool { policy: policy.clone(), source: Source::new(policy), left: BTreeSet::new() }
    }

    /// Its targets that are none of `next`'s.
    fn without(self, next: &Source) -> BTreeSet<ReplicaId> {
        let Source::Direct { targets: next, .. } = next else { return BTreeSet::new() };
        let mut left = self.left;
        if let Source::Direct { targets, .. } = self.source {
            left.extend(targets.into_iter().map(|target| target.replica));
        }
        left.retain(|replica| !next.iter().any(|target| target.replica == *replica));
        left
    }
}

// === impl Source ===

impl Source {
    fn new(policy: &PoolPolicy) -> Source {
        match &policy.source {
            SourcePolicy::Prometheus { servers, .. } => {
                let url = servers.first().map_or("", String::as_str);
                Source::Prometheus(PrometheusSource::new(url, &policy.signals))
            }
            SourcePolicy::Direct { targets, .. } => {
                Source::direct(policy, targets).unwrap_or_else(Source::Broken)
            }
        }
    }

    fn direct(policy: &PoolPolicy, wanted: &Targets) -> Result<Source, String> {
        let selectors = Selectors::new(&policy.signals).map_err(|error| error.to_string())?;
        let mut targets: Vec<Target> = Vec::new();
        for text in &wanted.fixed {
            let target = Target::parse(text, &wanted.path)?;
            // A replica listed twice is still one replica.
            if !targets.iter().any(|known| known.replica == target.replica) {
                targets.push(target);
            }
        }
        Ok(Source::Direct { targets, selectors: Arc::new(selectors) })
    }
}
