//! From tables to rules: names get places that never change, so that tickets can point to them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::bounds::ROW_NAMES_MAX;
use crate::enforce::allowance::{Allowance, Portion};
use crate::enforce::meters::Meters;
use crate::enforce::ticket::Scope;
use crate::planted::bug;
use crate::unit::{Instant, ModelId, NodeId, PoolId, ProductId, TierId};
use crate::wire::{CachedInput, Held, LimitTable, Row, Span, TableError, Window};

use super::cells::{PoolCell, PoolState, RowCell};
use super::rules::{
    ModelRules, PoolLimits, PoolRules, RowRules, Rules, flows, guarantee_of, limits_of, share_of,
};
use super::sync::{Mutex, lock};

/// All names so far; only whoever brings a table or asks for a report looks at it.
#[derive(Debug, Default)]
pub struct Registry {
    pub held: Option<Held>,
    pub rules: Arc<Rules>,
    models: BTreeMap<ModelId, Model>,
    pools: BTreeMap<PoolId, u32>,
    spans: BTreeMap<SpanName, u32>,
}

#[derive(Debug)]
struct Model {
    at: u32,
    tiers: BTreeMap<TierId, u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum SpanName {
    Model(ModelId),
    Product(ProductId),
}

// === impl Registry ===

impl Registry {
    /// A valid table's rules, in force from `now` on; nothing changes until they are put in force.
    pub fn compile(&mut self, table: &LimitTable, node: &NodeId, now: Instant) -> Result<Rules, TableError> {
        self.check_names(table)?;
        let before = Arc::clone(&self.rules);
        let mut rows: Vec<RowRules> =
            before.rows.iter().map(|row| RowRules { live: false, ..row.clone() }).collect();
        let mut areas = before.flows.clone();
        let mut models = before.models.clone();
        let mut pools: Vec<PoolRules> =
            before.pools.iter().map(|pool| PoolRules { limits: None, ..pool.clone() }).collect();
        models.iter_mut().for_each(|model| model.limits = Box::default());
        for (name, entry) in &table.pools {
            let at = self.pool_at(name, &mut pools);
            if let Some(pool) = pools.get_mut(at as usize) {
                let (waiting_work, in_flight) = (entry.waiting_work, entry.in_flight);
                let (portion, slo) = (Portion::of(entry, node), Duration::from_millis(entry.slo_ms));
                pool.limits = Some(PoolLimits { portion, waiting_work, slo, in_flight });
            }
        }
        for row in &table.rows {
            let Some((rules, at)) = self.row(row, table, node, &rows, &mut models) else { continue };
            if bug("refill-on-swap") {
                *lock(&rules.cell.meters) = Meters::default();
            }
            let area = flows(areas.get(at), &rules, now);
            put(&mut areas, at, area);
            put(&mut rows, at, rules);
        }
        Ok(Rules::new(rows, areas, models, pools))
    }

    /// Sorted by model, then tier.
    pub fn rows(&self) -> impl Iterator<Item = &RowRules> {
        let order = self.models.values().flat_map(|model| model.tiers.values());
        order.filter_map(|at| self.rules.row(*at))
    }

    /// Sorted by name.
    pub fn pools(&self) -> impl Iterator<Item = &PoolRules> {
        self.pools.values().filter_map(|at| self.rules.pool(*at))
    }

    fn check_names(&self, table: &LimitTable) -> Result<(), TableError> {
        let counted = self.rules.rows.len().max(self.spans.len());
        if counted + table.rows.len() <= ROW_NAMES_MAX {
            return Ok(());
        }
        let known =
            |row: &&Row| self.models.get(&row.model).is_some_and(|model| model.tiers.contains_key(&row.tier));
        let unknown = table.rows.iter().filter(|row| !known(row)).count();
        if unknown + counted > ROW_NAMES_MAX {
            let what = "more names of models and tiers than this node can count; restart it".to_owned();
            return Err(TableError::TooLarge(what, ROW_NAMES_MAX));
        }
        Ok(())
    }

    /// A row's rules, and its place.
    fn row(
        &mut self,
        row: &Row,
        table: &LimitTable,
        node: &NodeId,
        rows: &[RowRules],
        models: &mut Vec<ModelRules>,
    ) -> Option<(RowRules, usize)> {
        let pool = table.pools.get(&row.pool)?;
        let product = row.product.as_ref().and_then(|name| table.products.get(name));
        let pinned = product.map(|product| product.pinned).unwrap_or_default();
        let portion = Portion::of(pool, node).pinned(pinned);
        let entry = table.models.get(&row.model);
        let model = self.model_at(&row.model, models);
        if let Some(limits) = entry.map(|entry| &entry.limits)
            && let Some(rules) = models.get_mut(model as usize)
        {
            rules.limits = Allowance::all(limits, Scope::Model, portion);
        }
        let at = self.row_at(row, rows.len());
        let cell = rows.get(at as usize).map(|known| Arc::clone(&known.cell));
        let span = match (&row.product, product.map(|product| product.span)) {
            (Some(name), Some(Span::Product)) => SpanName::Product(name.clone()),
            _ => SpanName::Model(row.model.clone()),
        };
        let key = limits_of(row, Scope::Key, portion);
        let rules = RowRules {
            cell: cell.unwrap_or_else(|| Arc::new(RowCell::new(row.model.clone(), row.tier.clone()))),
            live: true,
            pool: self.pools.get(&row.pool).copied()?,
            model,
            span: self.span_at(span),
            yields: row.yields,
            portion,
            unit: pool.unit,
            output_cost_milli: pool.output_cost_milli,
            output_max: entry.and_then(|entry| entry.output_max),
            window: product.map_or(Window::Rolling, |product| product.window),
            cached: product.map_or(CachedInput::default(), |product| product.cached_input),
            tier: limits_of(row, Scope::Tier, portion),
            entries: row.limits.iter().map(|(dimension, entry)| (*dimension, *entry)).collect(),
            share: share_of(row, pool.unit, &key, portion),
            guarantee: guarantee_of(row, pool.unit, portion),
            key,
            account: limits_of(row, Scope::Account, portion),
        };
        Some((rules, at as usize))
    }

    fn pool_at(&mut self, name: &PoolId, pools: &mut Vec<PoolRules>) -> u32 {
        if let Some(at) = self.pools.get(name) {
            return *at;
        }
        let at = place(pools.len());
        let cell = PoolCell { name: name.clone(), state: Mutex::new(PoolState::default()) };
        pools.push(PoolRules { cell: Arc::new(cell), limits: None });
        self.pools.insert(name.clone(), at);
        at
    }

    fn model_at(&mut self, name: &ModelId, models: &mut Vec<ModelRules>) -> u32 {
        if let Some(model) = self.models.get(name) {
            return model.at;
        }
        let at = place(models.len());
        models.push(ModelRules { state: Arc::new(Mutex::new(Meters::default())), limits: Box::default() });
        self.models.insert(name.clone(), Model { at, tiers: BTreeMap::new() });
        at
    }

    fn row_at(&mut self, row: &Row, next: usize) -> u32 {
        let next = place(next);
        let Some(model) = self.models.get_mut(&row.model) else { return next };
        *model.tiers.entry(row.tier.clone()).or_insert(next)
    }

    fn span_at(&mut self, name: SpanName) -> u32 {
        let next = place(self.spans.len());
        *self.spans.entry(name).or_insert(next)
    }
}

fn place(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

/// Into its place, or at the end.
fn put<T>(list: &mut Vec<T>, at: usize, value: T) {
    match list.get_mut(at) {
        Some(known) => *known = value,
        None => list.push(value),
    }
}
