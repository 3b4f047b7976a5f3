//! What a node counts, as Prometheus text. Label values come from the table only.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, Registry};

use crate::bounds::POOLS_SHOWN_MAX;
use crate::enforce::allowance::Portion;
use crate::enforce::ledger_page;
use crate::enforce::shared::Shared;
use crate::enforce::ticket::{Cap, RefusalReason, Scope};
use crate::metrics::Detail;
use crate::metrics::Family;
use crate::metrics::Folding;
use crate::metrics::RowName;
use crate::metrics::Sheet;
use crate::supervise::panics;
use crate::unit::{Dimension, Instant, NodeId, PPM};
use crate::wire::Held;
use crate::wire::PoolUsage;

macro_rules! counts {
    ($($name:ident: $help:literal),+ $(,)?) => {
        /// Events outside the limiter.
        #[derive(Debug, Default)]
        pub struct Counts { pub refusals: Refusals, $($name: AtomicU64,)+ }

        impl Counts {
            $(pub fn $name(&self) {
                self.$name.fetch_add(1, Ordering::Relaxed);
            })+

            fn all(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$((stringify!($name), $help, self.$name.load(Ordering::Relaxed)),)+]
            }
        }
    };
}

counts! {
    unauthorized: "Requests without one valid key.",
    bad_requests: "Requests answered 400, 408 or 413.",
    bodies_refused: "Requests answered 503 because all bodies together were too much.",
    unknown_models: "Requests for a model that has no row or no upstream.",
    connect_errors: "Replicas that could not be connected to.",
    tables_applied: "Tables whose entries were put in force.",
    tables_renewed: "Ticks that renewed the table in force.",
    tables_stale: "Tables not newer than the one in force.",
    table_errors: "Tables that did not come, could not be read or were not valid.",
    tables_refused: "Tables that came and could not be taken; the usage report says why.",
    usages_clamped: "Reported usage that was not believed as it was.",
    streams_ended: "Streams ended because their key or account had run past a hard budget.",
    store_errors: "Tables that could not be kept on disk.",
    report_errors: "Usage reports not delivered.",
    reload_errors: "Key files or configurations that were not taken.",
    reloads: "Key files and configurations taken.",
}

/// Refusals by what refused them.
#[derive(Debug, Default)]
pub struct Refusals([AtomicU64; REFUSALS.len()]);

/// As labels; [`Refusals::place`] says which is which.
const REFUSALS: [&str; 17] = [
    "tier_requests",
    "tier_tokens",
    "tier_images",
    "tier_concurrent",
    "key_requests",
    "key_tokens",
    "key_images",
    "key_concurrent",
    "waiting_work",
    "in_flight",
    "unknown_model",
    "unknown_tier",
    "no_table",
    "key_budget",
    "account_budget",
    "credit",
    "ledger",
];

const PANICS: Family<0> =
    Family::counter("tidegate_enforce_panics_total", "Panics, whatever they ended.", []);
const NODE: Family<1> =
    Family::gauge("tidegate_enforce_node_info", "The name that shares are given to.", ["node"]);
const REQUESTS: Family<4> = Family::counter(
    "tidegate_enforce_requests_total",
    "Requests by verdict: admitted, refused_limit (429), refused_capacity (503, or as the dialect has it).",
    ["pool", "model", "tier", "verdict"],
);
const WORK: Family<4> = Family::counter(
    "tidegate_enforce_work_total",
    "Work by verdict, in the pool's unit: admitted is counted when it is settled, refused as estimated.",
    ["pool", "model", "tier", "verdict"],
);
const REFUSED: Family<1> = Family::counter(
    "tidegate_enforce_refusals_total",
    "Refusals by what refused: a limit of tier or key, the pool's room, budgets, credit, or nothing to obey.",
    ["reason"],
);
const RATE: Family<4> = Family::gauge(
    "tidegate_enforce_limit_per_second",
    "The tier limit in force, all nodes together, in requests, tokens of work or images.",
    ["pool", "model", "tier", "dimension"],
);
const COUNT: Family<3> = Family::gauge(
    "tidegate_enforce_limit_concurrent_requests",
    "The tier limit of requests in flight, all nodes together.",
    ["pool", "model", "tier"],
);
const IN_FLIGHT: Family<1> =
    Family::gauge("tidegate_enforce_in_flight_requests", "Requests at the upstream now.", ["pool"]);
const WAITING: Family<1> =
    Family::gauge("tidegate_enforce_waiting_work", "Admitted work that waits for its first token.", ["pool"]);
const UPSTREAM: Family<1> =
    Family::counter("tidegate_enforce_upstream_requests_total", "Requests sent upstream.", ["pool"]);
const UPSTREAM_ERRORS: Family<1> = Family::counter(
    "tidegate_enforce_upstream_errors_total",
    "Of those, failed by the upstream: refused or broken connections, 5xx.",
    ["pool"],
);
const ATTEMPTS: Family<2> = Family::counter(
    "tidegate_enforce_provider_attempts_total",
    "Requests sent to a provider by what came of them, and those that passed it over while it was held.",
    ["provider", "outcome"],
);
const PROVIDER_HELD: Family<1> = Family::gauge(
    "tidegate_enforce_provider_held_seconds",
    "Longest that a model of the provider is still not asked for.",
    ["provider"],
);
const JOBS: Family<0> = Family::gauge("tidegate_enforce_jobs", "Jobs whose end has not been seen.", []);
const JOBS_OVER: Family<1> = Family::counter(
    "tidegate_enforce_jobs_over_total",
    "Jobs by how they were over: their end was seen, or their lease expired.",
    ["how"],
);
const SHARE: Family<1> =
    Family::gauge("tidegate_enforce_share_ratio", "Part of every limit that this node may use.", ["pool"]);
const KEYS: Family<0> = Family::gauge("tidegate_enforce_keys", "States of keys in memory.", []);
const EPOCH: Family<0> = Family::gauge("tidegate_enforce_table_epoch", "Epoch of the table in force.", []);
const VERSION: Family<0> =
    Family::gauge("tidegate_enforce_table_version", "Version of the table in force.", []);
const TICK: Family<0> = Family::gauge("tidegate_enforce_table_tick", "Tick of the table in force.", []);
const AGE: Family<0> =
    Family::gauge("tidegate_enforce_table_age_seconds", "Since the table was last renewed.", []);
const EXPIRED: Family<0> = Family::gauge(
    "tidegate_enforce_table_expired_intervals",
    "Intervals past the table's validity: above zero, limits steer toward safe.",
    [],
);

/// One page, drawn now.
///
/// # Errors
/// The library refuses a family; a mistake in this file.
pub fn page(shared: &Shared, detail: Detail) -> Result<Vec<u8>, prometheus::Error> {
    let mut sheet = Sheet::default();
    sheet.gathered(shared.count.gather()?);
    sheet.add(&NODE, [([shared.node.as_str()], 1.0)]);
    sheet.add(&REFUSED, shared.count.refusals.all().map(|(reason, count)| ([reason], count as f64)));
    let held = shared.cell.held();
    usage(&mut sheet, shared, detail);
    providers(&mut sheet, shared);
    sheet.one(&JOBS, shared.desk.running() as f64);
    let over = [("seen", &shared.desk.ended), ("expired", &shared.desk.expired)];
    sheet.add(&JOBS_OVER, over.map(|(how, count)| ([how], count.load(Ordering::Relaxed) as f64)));
    ledger_page::add(&mut sheet, &shared.ledger);
    if let Some(held) = held {
        table(&mut sheet, &held, shared.cell.now(), &shared.node, detail);
    }
    sheet.add(&PANICS, [([], panics() as f64)]);
    sheet.encode()
}

/// Counts of one row, or of several together.
#[derive(Debug, Default)]
struct Sums([(u64, u64); 3]);

const VERDICTS: [&str; 3] = ["admitted", "refused_limit", "refused_capacity"];

fn usage(sheet: &mut Sheet, shared: &Shared, detail: Detail) {
    let (counts, pools, keys) =
        shared.cell.with(|limiter, _| (limiter.row_counts(), limiter.pool_counts(), limiter.keys_held()));
    let mut folding = Folding::new(detail);
    let mut rows: BTreeMap<RowName, Sums> = BTreeMap::new();
    for row in &counts {
        let Some(name) = folding.name(&row.pool, &row.model, &row.tier) else { break };
        let refused = row.refused_limit.requests.saturating_add(row.refused_capacity.requests);
        // Not what is left of them: a request that was never sent is taken back later, and a
        // counter must not fall.
        let admitted = row.offered.requests.saturating_sub(refused);
        let seen = [
            (admitted, row.settled_work),
            (row.refused_limit.requests, row.refused_limit.work),
            (row.refused_capacity.requests, row.refused_capacity.work),
        ];
        let sums = &mut rows.entry(name).or_default().0;
        for (sum, (requests, work)) in sums.iter_mut().zip(seen) {
            *sum = (sum.0.saturating_add(requests), sum.1.saturating_add(work));
        }
    }
    let by_verdict = |pick: fn(&(u64, u64)) -> u64| {
        rows.iter().flat_map(move |(name, sums)| {
            let [pool, model, tier] = name.labels();
            let verdicts = VERDICTS.iter().zip(&sums.0);
            verdicts.map(move |(verdict, sum)| ([pool, model, tier, *verdict], pick(sum) as f64))
        })
    };
    sheet.add(&REQUESTS, by_verdict(|sum| sum.0));
    sheet.add(&WORK, by_verdict(|sum| sum.1));
    let mut by_pool = |family: &Family<1>, pick: fn(&PoolUsage) -> u64| {
        let shown = pools.iter().take(POOLS_SHOWN_MAX);
        sheet.add(family, shown.map(|(name, pool)| ([name.as_str()], pick(pool) as f64)));
    };
    by_pool(&IN_FLIGHT, |pool| pool.in_flight);
    by_pool(&WAITING, |pool| pool.waiting_work);
    by_pool(&UPSTREAM, |pool| pool.upstream_requests);
    by_pool(&UPSTREAM_ERRORS, |pool| pool.upstream_errors);
    sheet.one(&KEYS, keys as f64);
}

fn providers(sheet: &mut Sheet, shared: &Shared) {
    let all = shared.with_providers(|providers, now| providers.usage(now));
    let outcomes = all.iter().flat_map(|(name, provider)| {
        let outcomes = [
            ("served", provider.served),
            ("limited", provider.limited),
            ("exhausted", provider.exhausted),
            ("overloaded", provider.overloaded),
            ("failed", provider.failed),
            ("rejected", provider.rejected),
            ("skipped", provider.skipped),
        ];
        outcomes.map(|(outcome, count)| ([name.as_str(), outcome], count as f64))
    });
    sheet.add(&ATTEMPTS, outcomes);
    let held = all.iter().map(|(name, provider)| ([name.as_str()], provider.held_ms as f64 / 1_000.0));
    sheet.add(&PROVIDER_HELD, held);
}

fn table(sheet: &mut Sheet, held: &Held, now: Instant, node: &NodeId, detail: Detail) {
    let stamp = held.stamp();
    sheet.one(&EPOCH, stamp.epoch as f64);
    sheet.one(&VERSION, stamp.version as f64);
    sheet.one(&TICK, stamp.tick as f64);
    sheet.one(&AGE, held.age(now).as_secs_f64());
    sheet.one(&EXPIRED, f64::from(held.intervals_expired(now)));
    let pools = held.table.pools.iter().take(POOLS_SHOWN_MAX);
    let share = |pool| f64::from(Portion::of(pool, node).ppm()) / f64::from(PPM);
    sheet.add(&SHARE, pools.map(|(name, pool)| ([name.as_str()], share(pool))));
    let mut folding = Folding::new(detail);
    let mut rates: BTreeMap<(RowName, &str), f64> = BTreeMap::new();
    let mut counts: BTreeMap<RowName, f64> = BTreeMap::new();
    for row in &held.table.rows {
        let Some(name) = folding.name(&row.pool, &row.model, &row.tier) else { break };
        for (dimension, entry) in &row.limits {
            let limit = held.tier_limit(entry, now).as_f64();
            match counted(*dimension) {
                Some(what) => *rates.entry((name.clone(), what)).or_default() += limit / 60.0,
                None => *counts.entry(name.clone()).or_default() += limit,
            }
        }
    }
    let by_dimension = rates.iter().map(|((name, dimension), limit)| {
        let [pool, model, tier] = name.labels();
        ([pool, model, tier, *dimension], *limit)
    });
    sheet.add(&RATE, by_dimension);
    sheet.add(&COUNT, counts.iter().map(|(name, limit)| (name.labels(), *limit)));
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

// === impl Counts ===

impl Counts {
    /// The families of everything counted above.
    fn gather(&self) -> Result<Vec<MetricFamily>, prometheus::Error> {
        let registry = Registry::new();
        for (name, help, value) in self.all() {
            let counter = IntCounter::new(format!("tidegate_enforce_{name}_total"), help)?;
            counter.inc_by(value);
            registry.register(Box::new(counter))?;
        }
        Ok(registry.gather())
    }
}

// === impl Refusals ===

impl Refusals {
    pub fn count(&self, reason: &RefusalReason) {
        if let Some(count) = self.0.get(Refusals::place(reason)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn place(reason: &RefusalReason) -> usize {
        match reason {
            RefusalReason::Limit { scope, dimension, .. } => {
                let dimension = match dimension {
                    Dimension::RequestsPerMinute => 0,
                    Dimension::TokensPerMinute
                    | Dimension::InputTokensPerMinute
                    | Dimension::OutputTokensPerMinute => 1,
                    Dimension::ImagesPerMinute => 2,
                    Dimension::Concurrency | Dimension::Jobs => 3,
                };
                dimension + if *scope == Scope::Key { 4 } else { 0 }
            }
            RefusalReason::Capacity { cap: Cap::WaitingWork } => 8,
            RefusalReason::Capacity { cap: Cap::InFlight } => 9,
            RefusalReason::UnknownModel => 10,
            RefusalReason::UnknownTier => 11,
            RefusalReason::NoTable => 12,
            RefusalReason::Budget { scope: Scope::Key, .. } => 13,
            RefusalReason::Budget { .. } => 14,
            RefusalReason::Credit => 15,
            RefusalReason::Ledger => 16,
        }
    }

    fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
        REFUSALS.into_iter().zip(self.0.iter().map(|count| count.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unit::Limit;

    #[test]
    fn a_refusal_is_counted_under_its_own_name() {
        let refusals = Refusals::default();
        let limit = |scope, dimension| RefusalReason::Limit { scope, dimension, limit: Limit::Finite(1) };
        let each = [
            (limit(Scope::Tier, Dimension::TokensPerMinute), "tier_tokens"),
            (limit(Scope::Key, Dimension::RequestsPerMinute), "key_requests"),
            (limit(Scope::Key, Dimension::Concurrency), "key_concurrent"),
            (RefusalReason::Capacity { cap: Cap::InFlight }, "in_flight"),
            (RefusalReason::NoTable, "no_table"),
        ];
        for (reason, _) in &each {
            refusals.count(reason);
        }
        let counted: Vec<&str> =
            refusals.all().filter(|(_, count)| *count == 1).map(|(name, _)| name).collect();
        assert_eq!(counted, each.map(|(_, name)| name));
    }
}
