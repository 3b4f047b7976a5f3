//! The loop as metrics, room by room in the order of its flow: signals, estimate, decision,
//! allocation, publication. Labels are names of the policy and of nodes, each set bounded.
//!
//! Work is counted in the pool's own unit (`tidegate_decide_pool_info` names it), rates are per
//! second. A state of several is one series each, 1 for the one that holds.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::allocate::Bound;
use crate::bounds::POOLS_SHOWN_MAX;
use crate::bounds::SHARES_SHOWN_MAX;
use crate::control::PoolTick;
use crate::control::Tick;
use crate::control::latest::KINDS;
use crate::control::latest::Latest;
use crate::decide::Motion;
use crate::decide::Reason;
use crate::estimate::Freshness;
use crate::metrics::Detail;
use crate::metrics::Family;
use crate::metrics::Folding;
use crate::metrics::RowName;
use crate::metrics::Sheet;
use crate::unit::{Dimension, Limit, PPM, PoolId, WorkUnit};
use crate::wire::Entry;

type PoolFamily = Family<1>;
type RowFamily = Family<3>;

const fn pool(name: &'static str, help: &'static str) -> PoolFamily {
    Family::gauge(name, help, ["pool"])
}

const fn row(name: &'static str, help: &'static str) -> RowFamily {
    Family::gauge(name, help, ["pool", "model", "tier"])
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
const REASONS: [Reason; 13] = [
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

// === allocation ===

const LEVEL: PoolFamily = pool(
    "tidegate_allocate_level_work_per_second",
    "What one unit of weight gets above guarantees; absent while every demand fits.",
);
const LIMIT: RowFamily = row(
    "tidegate_allocate_limit_work_per_second",
    "What a tier may use of a model, before rounding and ramps.",
);
const DEMAND: RowFamily =
    row("tidegate_allocate_demand_work_per_second", "What a tier was offered of a model, smoothed.");
const GUARANTEE: RowFamily =
    row("tidegate_allocate_guarantee_work_per_second", "Granted before anyone gets more.");
const SAFE: RowFamily =
    row("tidegate_allocate_safe_work_per_second", "Where nodes steer to without a controller.");
const CEILING: RowFamily = row("tidegate_allocate_ceiling_work_per_second", "The most ever granted.");
const BOUND: Family<4> = Family::gauge(
    "tidegate_allocate_bound",
    "Rows whose limit is set by this bound: uncontended, fair_share, guarantee, ceiling or priority.",
    ["pool", "model", "tier", "bound"],
);

const BOUNDS: [(Bound, &str); 5] = [
    (Bound::Uncontended, "uncontended"),
    (Bound::FairShare, "fair_share"),
    (Bound::Guarantee, "guarantee"),
    (Bound::Ceiling, "ceiling"),
    (Bound::Priority, "priority"),
];

/// What is known of one row, or of several together.
#[derive(Debug, Default)]
struct Sums {
    limit: f64,
    demand: f64,
    guarantee: f64,
    safe: f64,
    ceiling: f64,
    bounds: [u32; BOUNDS.len()],
    published: BTreeMap<Dimension, f64>,
}

/// Allocation and what was published of it, row by row.
pub(super) fn rows(sheet: &mut Sheet, tick: &Tick, detail: Detail) {
    each(sheet, &LEVEL, tick, |pool| pool.level);
    let rows = sums(tick, detail);
    let mut by_row = |family: &RowFamily, pick: fn(&Sums) -> f64| {
        sheet.add(family, rows.iter().map(|(name, sums)| (name.labels(), pick(sums))));
    };
    by_row(&LIMIT, |sums| sums.limit);
    by_row(&DEMAND, |sums| sums.demand);
    by_row(&GUARANTEE, |sums| sums.guarantee);
    by_row(&SAFE, |sums| sums.safe);
    by_row(&CEILING, |sums| sums.ceiling);
    let bounds = rows.iter().flat_map(|(name, sums)| {
        let [pool, model, tier] = name.labels();
        let counts = BOUNDS.iter().zip(sums.bounds);
        counts.map(move |((_, bound), count)| ([pool, model, tier, *bound], f64::from(count)))
    });
    sheet.add(&BOUND, bounds);
    let rates = rows.iter().flat_map(|(name, sums)| {
        let [pool, model, tier] = name.labels();
        let rates =
            sums.published.iter().filter_map(|(dimension, limit)| Some((counted(*dimension)?, limit)));
        rates.map(move |(what, limit)| ([pool, model, tier, what], limit / 60.0))
    });
    sheet.add(&PUBLISHED_RATE, rates);
    let counts = rows
        .iter()
        .filter_map(|(name, sums)| Some((name.labels(), *sums.published.get(&Dimension::Concurrency)?)));
    sheet.add(&PUBLISHED_COUNT, counts);
}

fn sums(tick: &Tick, detail: Detail) -> BTreeMap<RowName, Sums> {
    let mut folding = Folding::new(detail);
    let mut rows: BTreeMap<RowName, Sums> = BTreeMap::new();
    for (id, pool) in &tick.pools {
        let controlled = tick.table.pools.get(id).map(|entry| entry.unit.dimension());
        for row in &pool.rows {
            let Some(name) = folding.name(id, &row.model, &row.tier) else { return rows };
            let sums = rows.entry(name).or_default();
            sums.limit += row.limit;
            sums.demand += row.demand.offered;
            sums.guarantee += row.guarantee;
            let at = BOUNDS.iter().position(|(bound, _)| *bound == row.bound);
            if let Some(count) = at.and_then(|at| sums.bounds.get_mut(at)) {
                *count += 1;
            }
            let Some(published) = tick.table.row(row.model.as_str(), row.tier.as_str()) else { continue };
            if let Some(entry) = controlled.and_then(|controlled| published.limits.get(&controlled)) {
                sums.safe += per_second(entry.safe);
                sums.ceiling += per_second(entry.ceiling);
            }
            for (dimension, Entry { tier_limit, .. }) in &published.limits {
                *sums.published.entry(*dimension).or_default() += tier_limit.as_f64();
            }
        }
    }
    rows
}

// === publication ===

const PUBLISHED_RATE: Family<4> = Family::gauge(
    "tidegate_publish_limit_per_second",
    "The tier limit in the table, all nodes together, in requests, tokens of work or images.",
    ["pool", "model", "tier", "dimension"],
);
const PUBLISHED_COUNT: RowFamily = row(
    "tidegate_publish_limit_concurrent_requests",
    "The tier limit of requests in flight in the table, all nodes together.",
);
const POLICY_INFO: Family<1> =
    Family::gauge("tidegate_policy_info", "Digest of the policy of the last tick.", ["digest"]);
const TURN_AGE: Family<0> =
    Family::gauge("tidegate_control_turn_age_seconds", "Since the last turn of the loop.", []);
const TABLE_AGE: Family<0> =
    Family::gauge("tidegate_publish_age_seconds", "Since the last table was announced.", []);
const NODES: Family<1> = Family::gauge(
    "tidegate_publish_nodes",
    "Nodes by state: current (has the version of a turn ago or a later one), behind, silent.",
    ["state"],
);
const SHARE: Family<2> = Family::gauge(
    "tidegate_publish_node_share_ratio",
    "Part of every limit of the pool that a node may use.",
    ["pool", "node"],
);

pub(super) fn publish(sheet: &mut Sheet, latest: &Latest) {
    sheet.add(&NODES, latest.nodes.map(|(state, count)| ([state], count as f64)));
    if let Some(age) = latest.since_announced() {
        sheet.one(&TABLE_AGE, age);
    }
    let Some(tick) = &latest.tick else { return };
    sheet.one(&TURN_AGE, latest.since_round());
    sheet.add(&POLICY_INFO, [([tick.table.policy.as_str()], 1.0)]);
    let all = tick.table.pools.iter().take(POOLS_SHOWN_MAX);
    let shares =
        all.flat_map(|(pool, entry)| entry.shares.iter().map(move |(node, share)| (pool, node, *share)));
    let mut shown: BTreeMap<[&str; 2], f64> = BTreeMap::new();
    for (at, (pool, node, share)) in shares.enumerate() {
        let node = if at < SHARES_SHOWN_MAX { node.as_str() } else { "other" };
        *shown.entry([pool.as_str(), node]).or_default() += f64::from(share) / f64::from(PPM);
    }
    sheet.add(&SHARE, shown);
}

// === common ===

/// One number a pool.
fn each(sheet: &mut Sheet, family: &PoolFamily, tick: &Tick, pick: fn(&PoolTick) -> Option<f64>) {
    let pools = tick.pools.iter().take(POOLS_SHOWN_MAX);
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

fn per_second(limit: Limit) -> f64 {
    limit.as_f64() / 60.0
}

/// What a rate counts; none for what is no rate.
fn counted(dimension: Dimension) -> Option<&'static str> {
    match dimension {
        Dimension::RequestsPerMinute => Some("requests"),
        Dimension::TokensPerMinute => Some("tokens"),
        Dimension::ImagesPerMinute => Some("images"),
        Dimension::Concurrency => None,
    }
}
