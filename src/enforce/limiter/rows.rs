//! What is counted, by name, and what the table in force says about it.
//!
//! States outlive tables: a row that leaves a table and returns finds its counters as they were.

use std::collections::BTreeMap;

use crate::bounds::ROW_NAMES_MAX;
use crate::enforce::allowance::Portion;
use crate::enforce::bucket::Bucket;
use crate::enforce::ticket::{Costs, RATES, RefusalReason, Request, Scope};
use crate::planted::bug;
use crate::unit::{Dimension, Instant, Limit, MAX_FINITE, ModelId, NodeId, PoolId, TierId, WorkUnit};
use crate::wire::Yields;
use crate::wire::{Entry, Held, LimitTable, PoolEntry, PoolUsage, Row, TableError, Work};

use super::{Worst, test_count, test_rates};

/// Output tokens assumed before any request of a row was settled.
pub const OUTPUT_UNKNOWN: u64 = 256;

#[derive(Debug, Default)]
pub struct Rows {
    models: BTreeMap<ModelId, Model>,
    rows: Vec<RowState>,
    pool_names: BTreeMap<PoolId, usize>,
    pools: Vec<PoolState>,
}

#[derive(Debug)]
struct Model {
    index: usize,
    tiers: BTreeMap<TierId, usize>,
}

/// One model and tier.
#[derive(Debug)]
pub struct RowState {
    pub model: ModelId,
    pub model_index: usize,
    pub tier: TierId,
    /// What the table in force says; none when it has no such row.
    pub rules: Option<Rules>,
    pub buckets: [Bucket; 3],
    pub in_flight: u64,
    /// Learned output tokens of a request.
    pub output: Option<f64>,
    pub counted: Counted,
    /// Work of requests that have ended; unlike what is admitted it never falls.
    pub settled_work: u64,
}

/// A row of the table, flattened for the request path.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub pool: usize,
    pub yields: Yields,
    pub portion: Portion,
    pub unit: WorkUnit,
    pub output_cost_milli: u64,
    /// In the order of [`RATES`].
    pub limits: [Option<Entry>; 3],
    pub concurrency: Option<Entry>,
}

#[derive(Debug)]
pub struct PoolState {
    pub rules: Option<PoolRules>,
    pub in_flight: u64,
    pub waiting: u64,
    pub upstream_requests: u64,
    pub upstream_errors: u64,
}

#[derive(Clone, Copy, Debug)]
pub struct PoolRules {
    pub portion: Portion,
    pub waiting_work: Limit,
    pub in_flight: Limit,
}

/// Cumulative, as reported.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counted {
    pub offered: Work,
    pub admitted: Work,
    pub refused_limit: Work,
    pub refused_capacity: Work,
}

// === impl Rows ===

impl Rows {
    /// Puts a valid table's rules in force; counters stay.
    pub fn apply(&mut self, table: &LimitTable, node: &NodeId) -> Result<(), TableError> {
        if self.rows.len() + table.rows.len() > ROW_NAMES_MAX
            && self.unknown(table) + self.rows.len() > ROW_NAMES_MAX
        {
            let what = "more names of models and tiers than this node can count; restart it".to_owned();
            return Err(TableError::TooLarge(what, ROW_NAMES_MAX));
        }
        for pool in &mut self.pools {
            pool.rules = None;
        }
        for row in &mut self.rows {
            if bug("refill-on-swap") {
                row.buckets = Default::default();
            }
            row.rules = None;
        }
        for (name, entry) in &table.pools {
            let at = self.pool_at(name);
            if let Some(state) = self.pools.get_mut(at) {
                state.rules = Some(PoolRules::of(entry, node));
            }
        }
        for row in &table.rows {
            if let (Some(pool), Some(entry)) = (self.pool_names.get(&row.pool), table.pools.get(&row.pool)) {
                let rules = Rules::of(row, *pool, entry, node);
                let at = self.row_at(&row.model, &row.tier);
                if let Some(state) = self.rows.get_mut(at) {
                    state.rules = Some(rules);
                }
            }
        }
        Ok(())
    }

    pub fn find(&self, model: &str, tier: &str) -> Result<usize, RefusalReason> {
        let model = self.models.get(model).ok_or(RefusalReason::UnknownModel)?;
        let live = |at: &usize| self.rows.get(*at).is_some_and(|row| row.rules.is_some());
        match model.tiers.get(tier).copied().filter(|at| live(at)) {
            Some(at) => Ok(at),
            None if model.tiers.values().any(live) => Err(RefusalReason::UnknownTier),
            None => Err(RefusalReason::UnknownModel),
        }
    }

    /// A row and its pool.
    pub fn pair(&mut self, row: usize) -> Option<(&mut RowState, &mut PoolState)> {
        let row = self.rows.get_mut(row)?;
        let pool = self.pools.get_mut(row.rules.as_ref()?.pool)?;
        Some((row, pool))
    }

    pub fn get(&self, row: usize) -> Option<&RowState> {
        self.rows.get(row)
    }

    pub fn get_mut(&mut self, row: usize) -> Option<&mut RowState> {
        self.rows.get_mut(row)
    }

    pub fn pool_mut(&mut self, pool: usize) -> Option<&mut PoolState> {
        self.pools.get_mut(pool)
    }

    /// Sorted by model, then tier.
    pub fn iter(&self) -> impl Iterator<Item = &RowState> {
        let order = self.models.values().flat_map(|model| model.tiers.values());
        order.filter_map(|at| self.rows.get(*at))
    }

    pub fn pool_places(&self) -> impl Iterator<Item = (usize, &PoolId)> {
        self.pool_names.iter().map(|(name, at)| (*at, name))
    }

    pub fn pools(&self) -> impl Iterator<Item = (&PoolId, &PoolState)> {
        self.pool_names.iter().filter_map(|(name, at)| self.pools.get(*at).map(|pool| (name, pool)))
    }

    fn unknown(&self, table: &LimitTable) -> usize {
        let known =
            |row: &&Row| self.models.get(&row.model).is_some_and(|model| model.tiers.contains_key(&row.tier));
        table.rows.iter().filter(|row| !known(row)).count()
    }

    fn pool_at(&mut self, name: &PoolId) -> usize {
        if let Some(at) = self.pool_names.get(name) {
            return *at;
        }
        self.pools.push(PoolState {
            rules: None,
            in_flight: 0,
            waiting: 0,
            upstream_requests: 0,
            upstream_errors: 0,
        });
        self.pool_names.insert(name.clone(), self.pools.len() - 1);
        self.pools.len() - 1
    }

    fn row_at(&mut self, model: &ModelId, tier: &TierId) -> usize {
        if !self.models.contains_key(model) {
            let index = self.models.len();
            self.models.insert(model.clone(), Model { index, tiers: BTreeMap::new() });
        }
        let next = self.rows.len();
        let Some(entry) = self.models.get_mut(model) else { return next };
        if let Some(at) = entry.tiers.get(tier) {
            return *at;
        }
        entry.tiers.insert(tier.clone(), next);
        self.rows.push(RowState {
            model: model.clone(),
            model_index: entry.index,
            tier: tier.clone(),
            rules: None,
            buckets: [Bucket::default(); 3],
            in_flight: 0,
            output: None,
            counted: Counted::default(),
            settled_work: 0,
        });
        next
    }
}

// === impl RowState ===

impl RowState {
    pub(super) fn test_tier(
        &mut self,
        rules: &Rules,
        held: &Held,
        now: Instant,
        costs: &Costs,
        worst: &mut Worst,
    ) {
        test_rates(&mut self.buckets, Scope::Tier, rules, held, now, costs, worst);
        test_count(self.in_flight, Scope::Tier, rules, held, now, worst);
    }

    /// The estimate at arrival.
    pub fn costs(&self, rules: &Rules, request: &Request<'_>) -> Costs {
        let bound = request.output_max.unwrap_or(MAX_FINITE);
        let output = match self.output {
            Some(learned) => bound.min(learned.ceil() as u64),
            None => bound.min(request.output_max.map_or(OUTPUT_UNKNOWN, |max| max.min(OUTPUT_UNKNOWN))),
        };
        rules.costs(request.input_tokens, output, request.images)
    }
}

// === impl Rules ===

impl Rules {
    fn of(row: &Row, pool: usize, entry: &PoolEntry, node: &NodeId) -> Rules {
        Rules {
            pool,
            yields: row.yields,
            portion: Portion::of(entry, node),
            unit: entry.unit,
            output_cost_milli: entry.output_cost_milli,
            limits: RATES.map(|dimension| row.limits.get(&dimension).copied()),
            concurrency: row.limits.get(&Dimension::Concurrency).copied(),
        }
    }

    /// Keys need counters only where something of theirs is limited.
    pub fn counts_keys(&self) -> bool {
        let finite = |entry: &Entry| entry.key_limit != Limit::Unlimited;
        self.limits.iter().flatten().any(finite) || self.concurrency.as_ref().is_some_and(finite)
    }

    pub fn costs(&self, input: u64, output: u64, images: u64) -> Costs {
        let output = u128::from(output) * u128::from(self.output_cost_milli);
        let output = u64::try_from(output.div_ceil(1_000)).unwrap_or(u64::MAX);
        let tokens = input.saturating_add(output).min(MAX_FINITE);
        let images = images.min(MAX_FINITE);
        let work = match self.unit {
            WorkUnit::Tokens => tokens,
            WorkUnit::Requests => 1,
            WorkUnit::Images => images,
        };
        Costs { requests: 1, tokens, images, work }
    }
}

// === impl PoolRules ===

impl PoolRules {
    fn of(entry: &PoolEntry, node: &NodeId) -> PoolRules {
        PoolRules {
            portion: Portion::of(entry, node),
            waiting_work: entry.waiting_work,
            in_flight: entry.in_flight,
        }
    }
}

// === impl PoolState ===

impl PoolState {
    pub fn usage(&self) -> PoolUsage {
        PoolUsage {
            in_flight: self.in_flight,
            waiting_work: self.waiting,
            upstream_requests: self.upstream_requests,
            upstream_errors: self.upstream_errors,
        }
    }
}
