//! What is made of a decision, as metrics: allocation and publication.

use std::collections::BTreeMap;

use crate::allocate::Bound;
use crate::bounds::POOLS_SHOWN_MAX;
use crate::bounds::SHARES_SHOWN_MAX;
use crate::control::Tick;
use crate::control::families::PoolFamily;
use crate::control::families::each;
use crate::control::families::pool;
use crate::control::latest::Latest;
use crate::metrics::Detail;
use crate::metrics::Family;
use crate::metrics::Folding;
use crate::metrics::RowName;
use crate::metrics::Sheet;
use crate::unit::{Dimension, Limit, PPM};
use crate::wire::Entry;

type RowFamily = Family<3>;

const fn row(name: &'static str, help: &'static str) -> RowFamily {
    Family::gauge(name, help, ["pool", "model", "tier"])
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

fn per_second(limit: Limit) -> f64 {
    limit.as_f64() / 60.0
}

/// What a rate counts; none for what is no rate.
fn counted(dimension: Dimension) -> Option<&'static str> {
    match dimension {
        Dimension::RequestsPerMinute => Some("requests"),
        Dimension::TokensPerMinute => Some("tokens"),
        Dimension::InputTokensPerMinute => Some("input_tokens"),
        Dimension::OutputTokensPerMinute => Some("output_tokens"),
        Dimension::ImagesPerMinute => Some("images"),
        Dimension::Concurrency | Dimension::Jobs => None,
    }
}
