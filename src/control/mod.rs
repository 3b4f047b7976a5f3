//! The controller: one pure step that estimates, decides, allocates and seals a table.
//!
//! [`Controller::tick`] is the only decision in the daemon; the daemon's loop, the simulator and the
//! replay of a record are its only callers. It takes no lock, reads no clock and logs nothing: it returns a
//! [`Tick`], which the shell journals, publishes and counts.

#[cfg(feature = "daemon")]
pub mod credentials;
#[cfg(feature = "daemon")]
mod disk;
#[cfg(feature = "daemon")]
pub mod entry;
#[cfg(feature = "daemon")]
mod families;
#[cfg(feature = "daemon")]
mod fence;
mod fixed;
#[cfg(feature = "daemon")]
mod granted;
#[cfg(feature = "daemon")]
mod history;
#[cfg(feature = "daemon")]
mod latest;
#[cfg(feature = "daemon")]
pub mod metrics;
mod order;
#[cfg(feature = "daemon")]
mod outlet;
#[cfg(feature = "daemon")]
pub mod reload;
#[cfg(feature = "daemon")]
mod resume;
#[cfg(feature = "daemon")]
pub mod run;
#[cfg(feature = "daemon")]
mod runs;
mod seal;
#[cfg(feature = "daemon")]
pub mod settle;
#[cfg(feature = "daemon")]
pub mod standing;
#[cfg(feature = "daemon")]
mod turn;
#[cfg(feature = "daemon")]
mod unfit;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::allocate::Allocation;
use crate::allocate::Bound;
use crate::allocate::Claim;
use crate::allocate::KeyShare;
use crate::allocate::Outcomes;
use crate::allocate::allocate;
use crate::decide::Context;
use crate::decide::Decision;
use crate::decide::Law;
use crate::estimate::Demand;
use crate::estimate::Estimate;
use crate::estimate::Key;
use crate::estimate::Nodes;
use crate::estimate::Pool;
use crate::estimate::PoolDemand;
use crate::estimate::Witness;
use crate::observe::PoolRound;
use crate::observe::Round;
use crate::planted::without;
use crate::policy::Grant;
use crate::policy::Policy;
use crate::policy::PoolPolicy;
use crate::unit::{Instant, ModelId, PoolId, TierId, WorkUnit};
use crate::wire::{LimitTable, Stamp};

/// A pool that was contended counts as such for this many ticks more: caps may not flap.
const CONTENDED_TICKS: u32 = 5;

/// A running control loop: the policy in force and all that is remembered between ticks.
#[derive(Clone, Debug)]
pub struct Controller {
    policy: Arc<Policy>,
    state: State,
    /// Ticks since it was put together.
    turns: u64,
}

/// Everything remembered between ticks; the journal stores it, a restart continues from it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// The stamp of the last sealed table. The next one is above it.
    pub stamp: Stamp,
    pub table: Option<Arc<LimitTable>>,
    nodes: Nodes,
    pools: BTreeMap<PoolId, PoolState>,
    /// A policy edit is on its way: limits steer until they arrive.
    steering: bool,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct PoolState {
    estimate: Pool,
    law: Law,
    contended_ticks: u32,
    #[serde(default)]
    shares: BTreeMap<ModelId, BTreeMap<TierId, KeyShare>>,
}

/// One turn of the loop, nothing thrown away: `GET /v1/status` is the last one as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tick {
    pub now: Instant,
    pub table: Arc<LimitTable>,
    /// The table's version is new.
    pub changed: bool,
    pub pools: BTreeMap<PoolId, PoolTick>,
}

/// One pool's turn: estimate, decision with its reason, allocation. Work per second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PoolTick {
    pub estimate: Estimate,
    pub demand: PoolDemand,
    pub decision: Decision,
    /// Work per second and unit of weight; none while every demand fits.
    pub level: Option<f64>,
    pub contended: bool,
    pub rows: Vec<RowTick>,
}

/// One row's part of the allocation, work per second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RowTick {
    pub model: ModelId,
    pub tier: TierId,
    pub priority: u32,
    pub demand: Demand,
    pub guarantee: f64,
    /// Before rounding and steering; the table has what is in force.
    pub limit: f64,
    pub bound: Bound,
    /// A key's fair part of the limit; none while no key is in another's way.
    #[serde(default)]
    pub key_share: Option<f64>,
}

/// The rows of one pool, and in the same order what the policy states of them.
#[derive(Default)]
struct PoolRows<'p> {
    ticks: Vec<RowTick>,
    stated: Vec<Stated<'p>>,
}

/// What the policy states of one row.
#[derive(Clone, Copy)]
struct Stated<'p> {
    grant: &'p Grant,
    /// The model's.
    size: Option<u64>,
}

// === impl Controller ===

impl Controller {
    /// Begins, or continues from `state`. A controller that lost its state passes a default one:
    /// the first tick then begins above the highest (epoch, version) that nodes report.
    pub fn new(policy: Arc<Policy>, mut state: State) -> Controller {
        if let Some(table) = state.table.clone() {
            // A policy edited while nobody was here steers like any other edit.
            state.steering |= table.policy != policy.digest;
            for (id, entry) in &table.pools {
                let pool = state.pools.entry(id.clone()).or_default();
                pool.law.resume(entry.budget.finite().map(|budget| budget as f64 / 60.0));
                pool.estimate.fleet.resume();
            }
        }
        state.pools.retain(|pool, _| policy.pools.contains_key(pool));
        Controller { policy, state, turns: 0 }
    }

    /// The controller that had this state at the end of a tick, as if it had never stopped; under
    /// another policy than the state's, as if that had been in force: nothing steers to it.
    pub fn recorded(policy: Arc<Policy>, mut state: State) -> Controller {
        state.steering &= state.table.as_ref().is_some_and(|table| table.policy == policy.digest);
        state.pools.retain(|pool, _| policy.pools.contains_key(pool));
        Controller { policy, state, turns: 0 }
    }

    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    /// Seals the next tables under this epoch, unless they are above it already; says whether
    /// that changes anything.
    pub fn raise_epoch(&mut self, epoch: u64) -> bool {
        let raises = self.state.stamp.epoch < epoch;
        self.state.stamp.epoch = self.state.stamp.epoch.max(epoch);
        raises
    }

    /// Puts another policy in force from the next tick on; limits steer to it.
    pub fn set_policy(&mut self, policy: Arc<Policy>) {
        self.state.steering |= policy.digest != self.policy.digest;
        self.state.pools.retain(|pool, _| policy.pools.contains_key(pool));
        self.policy = policy;
    }

    /// One step: what arrived since the last one in, the next table and its reasons out.
    pub fn tick(&mut self, now: Instant, round: &Round) -> Tick {
        self.turns = self.turns.saturating_add(1);
        let policy = Arc::clone(&self.policy);
        let interval = policy.interval.as_secs_f64();
        let pool_of = |model: &ModelId| policy.models.get(model).map(|model| model.pool.clone());
        self.state.nodes.update(now, interval, &round.usage, pool_of);
        let mut rows = self.rows(now, &policy);
        let asked = policy.pools.keys().map(|id| {
            let rows = rows.get(id).map_or(&[][..], |rows| &rows.ticks);
            (id, rows.iter().map(|row| &row.demand))
        });
        let demands = self.state.nodes.pools(now, interval, asked);
        let mut pools = BTreeMap::new();
        for ((id, pool), demand) in policy.pools.iter().zip(demands) {
            let absent = PoolRound::default();
            let round = round.pools.get(id).unwrap_or(&absent);
            let rows = rows.remove(id).unwrap_or_default();
            pools.insert(id.clone(), self.tick_pool(now, (id, pool), round, rows, demand));
        }
        let (table, changed) = self.seal(&pools);
        Tick { now, table, changed, pools }
    }

    fn tick_pool(
        &mut self,
        now: Instant,
        (id, pool): (&PoolId, &PoolPolicy),
        round: &PoolRound,
        rows: PoolRows<'_>,
        demand: PoolDemand,
    ) -> PoolTick {
        let PoolRows { ticks: mut rows, stated } = rows;
        let interval = self.policy.interval;
        if pool.is_fixed() {
            return fixed::tick(&self.policy, demand, rows);
        }
        let state = self.state.pools.entry(id.clone()).or_default();
        let witness = Witness { errors: demand.errors_significant, served: demand.served };
        let estimate = state.estimate.update(now, interval.as_secs_f64(), pool, round, witness);
        let safe = safe_sum(&stated).max(initial_per_replica(pool.unit) * estimate.ready);
        let context = Context { now, interval, slo: pool.slo, safe };
        let decision = state.law.step(&context, &estimate, &demand);
        let Allocation { level, grants } = allocate(decision.budget, &claims(&stated, &rows));
        for (row, grant) in rows.iter_mut().zip(grants) {
            row.limit = grant.limit;
            row.bound = grant.bound;
        }
        order::raise_smaller(&stated, &mut rows);
        state.share(&mut rows);
        let contended = level.is_some() || estimate.waiting > decision.waiting_threshold / 2.0;
        let held = if without("contended-hold") { 1 } else { CONTENDED_TICKS };
        state.contended_ticks = if contended { held } else { state.contended_ticks.saturating_sub(1) };
        PoolTick { estimate, demand, decision, level, contended: state.contended_ticks > 0, rows }
    }

    /// The rows of each pool, sorted by model and tier, with what was asked of each.
    fn rows<'p>(&self, now: Instant, policy: &'p Policy) -> BTreeMap<&'p PoolId, PoolRows<'p>> {
        let interval = policy.interval.as_secs_f64();
        let rows = || {
            policy
                .models
                .iter()
                .flat_map(|(model, stated)| stated.tiers.keys().map(move |tier| (model, tier)))
        };
        let keys: Vec<Key<'_>> = rows().collect();
        let mut demands = self.state.nodes.rows(now, interval, &keys).into_iter();
        let mut pools: BTreeMap<&PoolId, PoolRows<'_>> = BTreeMap::new();
        for (model, stated) in &policy.models {
            let pool = pools.entry(&stated.pool).or_default();
            for ((tier, grant), demand) in stated.tiers.iter().zip(&mut demands) {
                pool.ticks.push(RowTick {
                    model: model.clone(),
                    tier: tier.clone(),
                    priority: grant.priority,
                    demand,
                    guarantee: if without("guarantees") { 0.0 } else { grant.guarantee as f64 / 60.0 },
                    limit: 0.0,
                    bound: Bound::Uncontended,
                    key_share: None,
                });
                pool.stated.push(Stated { grant, size: stated.size });
            }
        }
        pools
    }
}

// === impl PoolState ===

impl PoolState {
    /// What each row's keys are cut to alike. Rows that left the policy are forgotten.
    fn share(&mut self, rows: &mut [RowTick]) {
        let (mut models, mut left) = (0, false);
        for rows in rows.chunk_by_mut(|a, b| a.model == b.model) {
            let Some(model) = rows.first().map(|row| &row.model) else { continue };
            if !self.shares.contains_key(model) {
                self.shares.insert(model.clone(), BTreeMap::new());
            }
            let Some(tiers) = self.shares.get_mut(model) else { continue };
            for row in rows.iter_mut() {
                let outcomes = outcomes(&row.demand);
                if let Some(share) = tiers.get_mut(&row.tier) {
                    row.key_share = share.step(row.limit, &outcomes);
                } else {
                    let mut share = KeyShare::default();
                    row.key_share = share.step(row.limit, &outcomes);
                    tiers.insert(row.tier.clone(), share);
                }
            }
            models += 1;
            left |= tiers.len() > rows.len();
        }
        if left || self.shares.len() > models {
            self.shares.retain(|model, tiers| {
                let is = |tier: &TierId| rows.iter().any(|row| row.model == *model && row.tier == *tier);
                tiers.retain(|tier, _| is(tier));
                !tiers.is_empty()
            });
        }
    }
}

fn outcomes(demand: &Demand) -> Outcomes {
    Outcomes {
        admitted: demand.admitted.work,
        refused_share: demand.refused_share.work,
        refused_room: demand.refused_tier.work + demand.refused_capacity.work,
    }
}

fn claims(stated: &[Stated<'_>], rows: &[RowTick]) -> Vec<Claim> {
    let claim = |(Stated { grant, .. }, row): (&Stated<'_>, &RowTick)| Claim {
        priority: grant.priority,
        weight: grant.weight,
        guarantee: row.guarantee,
        ceiling: grant.ceiling.as_f64() / 60.0,
        demand: row.demand.offered,
    };
    stated.iter().zip(rows).map(claim).collect()
}

/// Sum of what is safe on a pool, work per second.
fn safe_sum(stated: &[Stated<'_>]) -> f64 {
    stated.iter().map(|stated| stated.grant.safe as f64 / 60.0).sum()
}

/// What one replica of anything can surely do: where a pool begins that guarantees nothing, work
/// per second.
fn initial_per_replica(unit: WorkUnit) -> f64 {
    match unit {
        WorkUnit::Tokens => 500.0,
        WorkUnit::Requests => 0.5,
        WorkUnit::Images => 0.1,
    }
}

#[cfg(test)]
mod tests;
