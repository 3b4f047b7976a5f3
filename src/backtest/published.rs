//! What was published, read back from the controller's metrics: the tables of a record that has
//! none.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::observe::matrix::{Labels, Matrix, Window};
use crate::policy::Policy;
use crate::unit::{Dimension, Limit, ModelId, NodeId, PPM, PoolId, TierId, WorkUnit};
use crate::wire::table::SCHEMA;
use crate::wire::{Credit, Entry, LimitTable, PoolEntry, Row, Stamp, Yields};

pub const LIMITS: &str = "tidegate_publish_limit_per_second";
pub const SHARES: &str = "tidegate_publish_node_share_ratio";
pub const GUARANTEES: &str = "tidegate_allocate_guarantee_work_per_second";
pub const POLICY: &str = "tidegate_policy_info";

type Name = (ModelId, TierId);

/// The last table that can be told from metrics; what a step does not say stays.
pub struct Published {
    units: BTreeMap<PoolId, WorkUnit>,
    interval_ms: u64,
    limits: BTreeMap<(Name, Dimension), (PoolId, Limit)>,
    guarantees: BTreeMap<Name, u64>,
    shares: BTreeMap<PoolId, BTreeMap<NodeId, u32>>,
    policy: String,
    tick: u64,
}

// === impl Published ===

impl Published {
    /// Before anything was read; `policy` says what pools count.
    pub fn new(policy: &Policy) -> Published {
        Published {
            units: policy.pools.iter().map(|(id, pool)| (id.clone(), pool.unit)).collect(),
            interval_ms: u64::try_from(policy.interval.as_millis()).unwrap_or(u64::MAX),
            limits: BTreeMap::new(),
            guarantees: BTreeMap::new(),
            shares: BTreeMap::new(),
            policy: "unknown".to_owned(),
            tick: 0,
        }
    }

    /// The tables of a window, and the digests of their policies.
    pub fn tables(
        &mut self,
        matrices: &BTreeMap<&'static str, Matrix>,
        window: Window,
    ) -> Vec<(Arc<LimitTable>, String)> {
        let mut steps: Vec<Vec<(&str, &Labels, f64)>> = (0..window.steps).map(|_| Vec::new()).collect();
        for (name, matrix) in matrices {
            for (step, values) in steps.iter_mut().zip(matrix.by_step(window)) {
                step.extend(values.into_iter().map(|(labels, value)| (*name, labels, value)));
            }
        }
        steps.into_iter().map(|step| self.step(&step)).collect()
    }

    fn step(&mut self, values: &[(&str, &Labels, f64)]) -> (Arc<LimitTable>, String) {
        if values.iter().any(|(name, ..)| *name == SHARES) {
            self.shares.clear();
        }
        for (name, labels, value) in values {
            self.take(name, labels, *value);
        }
        self.tick += 1;
        (Arc::new(self.table()), self.policy.clone())
    }

    fn take(&mut self, name: &str, labels: &Labels, value: f64) {
        let label = |name: &str| labels.get(name).map(String::as_str).unwrap_or_default();
        let row = || (ModelId::new(label("model")), TierId::new(label("tier")));
        let per_minute = (value * 60.0).round();
        match name {
            LIMITS => {
                let dimension = match label("dimension") {
                    "tokens" => Dimension::TokensPerMinute,
                    "requests" => Dimension::RequestsPerMinute,
                    "images" => Dimension::ImagesPerMinute,
                    _ => return,
                };
                let limit = if value.is_infinite() { Limit::Unlimited } else { Limit::from_f64(per_minute) };
                self.limits.insert((row(), dimension), (label("pool").into(), limit));
            }
            SHARES => {
                let share = (value * f64::from(PPM)).round().clamp(0.0, f64::from(PPM)) as u32;
                self.shares.entry(label("pool").into()).or_default().insert(label("node").into(), share);
            }
            GUARANTEES => {
                self.guarantees.insert(row(), per_minute.max(0.0) as u64);
            }
            // As Prometheus saw it: no table of it can be compared to the byte.
            POLICY if value > 0.0 => self.policy = format!("{} (as scraped)", label("digest")),
            _ => {}
        }
    }

    fn table(&self) -> LimitTable {
        let mut rows = Vec::new();
        for (((model, tier), dimension), (pool, limit)) in &self.limits {
            let unit = self.units.get(pool).copied().unwrap_or_default();
            if *dimension != unit.dimension() {
                continue;
            }
            let guarantee = self.guarantees.get(&(model.clone(), tier.clone())).copied().unwrap_or(0);
            let entry = Entry {
                tier_limit: *limit,
                safe: *limit,
                guarantee: Limit::Finite(guarantee),
                ..Entry::default()
            };
            rows.push(Row {
                model: model.clone(),
                tier: tier.clone(),
                pool: pool.clone(),
                yields: Yields::default(),
                limits: [(*dimension, entry)].into(),
                product: None,
                budgets: BTreeMap::new(),
                credit: Credit::default(),
            });
        }
        let pool = |(id, unit): (&PoolId, &WorkUnit)| {
            let entry = PoolEntry {
                unit: *unit,
                output_cost_milli: 1_000,
                budget: Limit::Unlimited,
                waiting_work: Limit::Unlimited,
                slo_ms: 0,
                in_flight: Limit::Unlimited,
                degraded: false,
                shares: self.shares.get(id).cloned().unwrap_or_default(),
                unlisted_share: PPM / 100,
            };
            (id.clone(), entry)
        };
        LimitTable {
            schema: SCHEMA,
            stamp: Stamp { epoch: 1, version: self.tick, tick: self.tick },
            policy: self.policy.clone(),
            interval_ms: self.interval_ms,
            valid_for_ms: self.interval_ms,
            pools: self.units.iter().map(pool).collect(),
            rows,
            products: BTreeMap::new(),
            models: BTreeMap::new(),
            providers: BTreeMap::new(),
        }
    }
}
