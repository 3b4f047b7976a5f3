//! The loop as metrics, room by room in the order of its flow: signals, estimate, decision; what is
//! made of a decision stands in [`granted`](crate::control::granted). Labels are names of the policy
//! and of nodes, each set bounded.
//!
//! Work is counted in the pool's own unit (`tidegate_decide_pool_info` names it), rates are per
//! second. A state of several is one series each, 1 for the one that holds.

use serde::Serialize;

use crate::bounds::POOLS_SHOWN_MAX;
use crate::control::PoolTick;
use crate::control::Tick;
use crate::control::latest::KINDS;
use crate::control::latest::Latest;
use crate::decide::Motion;
use crate::decide::Reason;
use crate::estimate::Freshness;
use crate::metrics::Family;
use crate::metrics::Sheet;
use crate::unit::{PoolId, WorkUnit};

pub(super) type PoolFamily = Family<1>;

pub(super) const fn pool(name: &'static str, help: &'static str) -> PoolFamily {
    Family::gauge(name, help, ["pool"])
}

// === signals ===

const REPLICAS: Family<2> = Family::gauge(
    "tidegate_observe_replicas",
    "Replicas in the last round: up (reported), down (refused), silent (said nothing usable).",
    ["pool", "state"],
);
const FAILURES: Family<2> = Family::counter(
    "tidegate_observe_failures_total",
    "Readings that failed: down, timeout, oversize, status, unreadable, or source (all of it).",
    ["pool", "kind"],
);
const SOURCE_UP: PoolFamily =
    pool("tidegate_observe_source_up", "0 while the pool's source as a whole cannot be read.");
const AGE: PoolFamily = pool("tidegate_observe_age_seconds", "Age of the newest reading.");
const RUNNING: PoolFamily = pool("tidegate_observe_running_requests", "Requests being served.");
const WAITING: PoolFamily =
    pool("tidegate_observe_waiting_requests", "Requests that wait for capacity at the replicas.");
const DELIVERED: PoolFamily =
    pool("tidegate_observe_work_per_second", "Work that the replicas say they deliver.");
const LATENCY: PoolFamily =
    pool("tidegate_observe_latency_seconds", "Time to first token as the replicas say; never steered by.");

pub(super) fn observe(sheet: &mut Sheet, latest: &Latest) {
    let signals = || latest.signals.iter().take(POOLS_SHOWN_MAX);
    let states = signals().flat_map(|(pool, signals)| {
        let states = [("up", signals.up), ("down", signals.down), ("silent", signals.silent)];
        states.map(|(state, count)| ([pool.as_str(), state], count as f64))
    });
    sheet.add(&REPLICAS, states);
    let failures = signals().flat_map(|(pool, signals)| {
        let kinds = KINDS.into_iter().zip(signals.failures);
        kinds.map(move |(kind, count)| ([pool.as_str(), kind], count as f64))
    });
    sheet.add(&FAILURES, failures);
    sheet.add(&SOURCE_UP, signals().map(|(pool, of)| ([pool.as_str()], truth(of.source_up))));
    let since = latest.since_round();
    sheet.add(&AGE, signals().filter_map(|(pool, of)| Some(([pool.as_str()], of.age? + since))));
    let Some(tick) = &latest.tick else { return };
    each(sheet, &RUNNING, tick, |pool| Some(pool.estimate.running));
    each(sheet, &WAITING, tick, |pool| Some(pool.estimate.waiting));
    each(sheet, &DELIVERED, tick, |pool| pool.estimate.delivered);
    each(sheet, &LATENCY, tick, |pool| pool.estimate.latency);
}

// === estimate ===

const READY: PoolFamily = pool(
    "tidegate_estimate_ready_replicas",
    "Replicas believed ready; a fraction while a loss is taken in steps.",
);
const PER_REPLICA: PoolFamily = pool(
    "tidegate_estimate_replica_work_per_second",
    "What one busy replica delivers; absent before the first backlog.",
);
const CAPACITY: PoolFamily = pool(
    "tidegate_estimate_capacity_work_per_second",
    "What the ready replicas can do; absent before the first backlog.",
);
const OUTPUT_COST: PoolFamily =
    pool("tidegate_estimate_output_token_cost_ratio", "Work of one output token over an input token.");
const BACKLOGGED: PoolFamily =
    pool("tidegate_estimate_backlogged", "1 while enough requests wait to measure capacity.");
const OFFERED: PoolFamily =
    pool("tidegate_estimate_offered_work_per_second", "Work that nodes were offered, smoothed.");
const ADMITTED: PoolFamily =
    pool("tidegate_estimate_admitted_work_per_second", "Work that nodes admitted in the last interval.");
const UPSTREAM_ERRORS: PoolFamily = pool(
    "tidegate_estimate_upstream_errors_significant",
    "1 while nodes see more upstream errors than a healthy pool has.",
);
const REJECTED: PoolFamily = pool(
    "tidegate_estimate_rejected_readings",
    "Readings of the last round with impossible numbers, or from the future.",
);
const FROZEN: PoolFamily = pool(
    "tidegate_estimate_frozen_replicas",
    "Replicas whose page says the same again and again although nodes are served.",
);
const FRESHNESS: Family<2> = Family::gauge(
    "tidegate_estimate_freshness",
    "How far readings are trusted: fresh, held (nothing rises), stale (steers to safe).",
    ["pool", "state"],
);

pub(super) fn estimate(sheet: &mut Sheet, tick: &Tick) {
    each(sheet, &READY, tick, |pool| Some(pool.estimate.ready));
    each(sheet, &PER_REPLICA, tick, |pool| pool.estimate.per_replica);
    each(sheet, &CAPACITY, tick, |pool| pool.estimate.capacity);
    each(sheet, &OUTPUT_COST, tick, |pool| Some(pool.estimate.output_cost));
    each(sheet, &BACKLOGGED, tick, |pool| Some(truth(pool.estimate.backlogged)));
    each(sheet, &OFFERED, tick, |pool| Some(pool.demand.offered));
    each(sheet, &ADMITTED, tick, |pool| Some(pool.demand.admitted.work));
    each(sheet, &UPSTREAM_ERRORS, tick, |pool| Some(truth(pool.demand.errors_significant)));
    each(sheet, &REJECTED, tick, |pool| Some(pool.estimate.rejected as f64));
    each(sheet, &FROZEN, tick, |pool| Some(pool.estimate.frozen as f64));
    states(sheet, &FRESHNESS, tick, &[Freshness::Fresh, Freshness::Held, Freshness::Stale], |pool| {
        pool.estimate.freshness
    });
}

// === decision ===

const POOL_INFO: Family<2> = Family::gauge(
    "tidegate_decide_pool_info",
    "What the pool's work is counted in: tokens, requests or images.",
    ["pool", "unit"],
);
const BUDGET: PoolFamily = pool("tidegate_decide_budget_work_per_second", "Work that the pool may admit.");
const MOTION: Family<2> = Family::gauge(
    "tidegate_decide_motion",
    "Whether the last decision followed what was measured, steered, or held.",
    ["pool", "motion"],
);
const REASON: Family<2> = Family::gauge(
    "tidegate_decide_reason",
    "Why the budget is what it is; the README says what each reason does.",
    ["pool", "reason"],
);
const DEGRADED: PoolFamily =
    pool("tidegate_decide_degraded", "1 while limits follow held or drifting signals.");
const BINDING: PoolFamily =
    pool("tidegate_decide_binding", "1 while some request was over a limit that a higher budget raises.");
const CONTENDED: PoolFamily =
    pool("tidegate_decide_contended", "1 while lower tiers leave more room to those above them.");
const THRESHOLD: PoolFamily =
    pool("tidegate_decide_overload_threshold_requests", "Waiting requests beyond which it is overload.");
const WAITING_CAP: PoolFamily =
    pool("tidegate_decide_waiting_work_limit", "Admitted work that may wait for its first token.");
const IN_FLIGHT_CAP: PoolFamily = pool(
    "tidegate_decide_in_flight_limit_requests",
    "Requests that may be in flight; absent before the pool was measured.",
);

const MOTIONS: [Motion; 3] = [Motion::Follow, Motion::Steer, Motion::Hold];
const REASONS: [Reason; 14] = [
    Reason::Started,
    Reason::CapacityLost,
    Reason::CapacityGained,
    Reason::CapacityMeasured,
    Reason::Overload,
    Reason::Backlogged,
    Reason::Recovered,
    Reason::Probing,
    Reason::SlowStart,
    Reason::Cooling,
    Reason::NotBinding,
    Reason::SignalsHeld,
    Reason::SignalsStale,
    Reason::Fixed,
];

pub(super) fn decide(sheet: &mut Sheet, tick: &Tick) {
    let units = tick.table.pools.iter().take(POOLS_SHOWN_MAX).map(|(pool, entry)| {
        let unit = match entry.unit {
            WorkUnit::Tokens => "tokens",
            WorkUnit::Requests => "requests",
            WorkUnit::Images => "images",
        };
        ([pool.as_str(), unit], 1.0)
    });
    sheet.add(&POOL_INFO, units);
    each(sheet, &BUDGET, tick, |pool| Some(pool.decision.budget));
    states(sheet, &MOTION, tick, &MOTIONS, |pool| pool.decision.motion);
    states(sheet, &REASON, tick, &REASONS, |pool| pool.decision.reason);
    each(sheet, &DEGRADED, tick, |pool| Some(truth(pool.estimate.freshness != Freshness::Fresh)));
    each(sheet, &BINDING, tick, |pool| Some(truth(pool.demand.binding)));
    each(sheet, &CONTENDED, tick, |pool| Some(truth(pool.contended)));
    each(sheet, &THRESHOLD, tick, |pool| Some(pool.decision.waiting_threshold));
    each(sheet, &WAITING_CAP, tick, |pool| Some(pool.decision.waiting_work));
    each(sheet, &IN_FLIGHT_CAP, tick, |pool| pool.decision.in_flight);
}

// === common ===

/// One number a pool; of one that nobody measures there is none.
pub(super) fn each(sheet: &mut Sheet, family: &PoolFamily, tick: &Tick, pick: fn(&PoolTick) -> Option<f64>) {
    let measured = |(_, pool): &(&PoolId, &PoolTick)| pool.decision.reason != Reason::Fixed;
    let pools = tick.pools.iter().filter(measured).take(POOLS_SHOWN_MAX);
    sheet.add(family, pools.filter_map(|(id, pool)| Some(([id.as_str()], pick(pool)?))));
}

/// Every state there is, 1 for the one that holds.
fn states<S: Copy + PartialEq + Serialize>(
    sheet: &mut Sheet,
    family: &Family<2>,
    tick: &Tick,
    all: &[S],
    pick: fn(&PoolTick) -> S,
) {
    let named: Vec<(S, String)> = all.iter().map(|state| (*state, word(state))).collect();
    let pools = tick.pools.iter().take(POOLS_SHOWN_MAX);
    let samples = pools.flat_map(|(id, pool): (&PoolId, &PoolTick)| {
        let holds = pick(pool);
        named.iter().map(move |(state, name)| ([id.as_str(), name.as_str()], truth(*state == holds)))
    });
    sheet.add(family, samples);
}

/// A unit variant as `GET /v1/status` writes it.
fn word(variant: &impl Serialize) -> String {
    let value = serde_json::to_value(variant).unwrap_or_default();
    value.as_str().unwrap_or("unknown").to_owned()
}

fn truth(holds: bool) -> f64 {
    f64::from(u8::from(holds))
}
