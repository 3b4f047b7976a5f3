//! What a tick concluded, as metrics: one series a pool and one a row, labels from the policy only.

use prometheus::{GaugeVec, IntGaugeVec, Registry};

use crate::control::Tick;
use crate::control::metrics::{gauges, reals};
use crate::unit::Limit;

/// What one tick concluded, pool by pool and row by row.
#[derive(Clone, Debug)]
pub struct Conclusions {
    budget: GaugeVec,
    degraded: IntGaugeVec,
    ready: GaugeVec,
    capacity: GaugeVec,
    running: GaugeVec,
    waiting: GaugeVec,
    reason: IntGaugeVec,
    limit: GaugeVec,
    demand: GaugeVec,
}

// === impl Conclusions ===

impl Conclusions {
    pub fn new(r: &Registry) -> Result<Conclusions, prometheus::Error> {
        let pool = &["pool"];
        let row = &["model", "tier"];
        let conclusions = Conclusions {
            budget: reals(
                r,
                "tidegate_decide_budget",
                "What the pool can admit, work per minute; absent where it is unlimited.",
                pool,
            )?,
            degraded: gauges(
                r,
                "tidegate_decide_degraded",
                "1 while limits follow held or drifting signals.",
                pool,
            )?,
            ready: reals(r, "tidegate_estimate_ready_replicas", "Replicas believed ready.", pool)?,
            capacity: reals(
                r,
                "tidegate_estimate_capacity",
                "What the ready replicas can do, work per minute; absent before the first backlog.",
                pool,
            )?,
            running: reals(r, "tidegate_estimate_running_requests", "Requests being served.", pool)?,
            waiting: reals(
                r,
                "tidegate_estimate_waiting_requests",
                "Requests that wait for capacity.",
                pool,
            )?,
            reason: gauges(
                r,
                "tidegate_decide_reason",
                "1 for the reason of the last decision, and whether it followed, steered or held.",
                &["pool", "motion", "reason"],
            )?,
            limit: reals(
                r,
                "tidegate_allocate_limit",
                "What a tier may use of a model, work per minute, before rounding and ramps.",
                row,
            )?,
            demand: reals(
                r,
                "tidegate_allocate_demand",
                "What a tier was offered of a model, work per minute, smoothed.",
                row,
            )?,
        };
        Ok(conclusions)
    }

    pub fn reset(&self) {
        for gauges in [&self.ready, &self.capacity, &self.running, &self.waiting, &self.limit, &self.demand] {
            gauges.reset();
        }
        self.budget.reset();
        self.degraded.reset();
        self.reason.reset();
    }

    pub fn observe(&self, tick: &Tick) {
        self.reason.reset();
        for (id, pool) in &tick.table.pools {
            let label = &[id.as_str()];
            self.degraded.with_label_values(label).set(i64::from(pool.degraded));
            match pool.budget {
                Limit::Finite(budget) => self.budget.with_label_values(label).set(budget as f64),
                Limit::Unlimited => drop(self.budget.remove_label_values(label)),
            }
        }
        for (id, pool) in &tick.pools {
            let label = &[id.as_str()];
            self.ready.with_label_values(label).set(pool.estimate.ready);
            self.running.with_label_values(label).set(pool.estimate.running);
            self.waiting.with_label_values(label).set(pool.estimate.waiting);
            if let Some(capacity) = pool.estimate.capacity {
                self.capacity.with_label_values(label).set(capacity * 60.0);
            }
            let (motion, reason) = (word(&pool.decision.motion), word(&pool.decision.reason));
            self.reason.with_label_values(&[id.as_str(), &motion, &reason]).set(1);
            for row in &pool.rows {
                let label = &[row.model.as_str(), row.tier.as_str()];
                self.limit.with_label_values(label).set(row.limit * 60.0);
                self.demand.with_label_values(label).set(row.demand.offered * 60.0);
            }
        }
    }
}

/// A unit variant as `GET /v1/status` writes it.
fn word(variant: &impl serde::Serialize) -> String {
    let value = serde_json::to_value(variant).unwrap_or_default();
    value.as_str().unwrap_or("unknown").to_owned()
}
