//! What a node counts, as Prometheus text. Label values come from the table only.

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus::{Encoder, GaugeVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder};

use crate::enforce::shared::Shared;
use crate::unit::Limit;

macro_rules! counts {
    ($($name:ident: $help:literal),+ $(,)?) => {
        /// Events outside the limiter.
        #[derive(Debug, Default)]
        pub struct Counts { $($name: AtomicU64,)+ }

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
    store_errors: "Tables that could not be kept on disk.",
    report_errors: "Usage reports not delivered.",
    reload_errors: "Key files or configurations that were not taken.",
    reloads: "Key files and configurations taken.",
}

/// One page.
///
/// # Errors
/// The registry refuses a metric; a mistake in this file.
pub fn page(shared: &Shared) -> Result<Vec<u8>, prometheus::Error> {
    let registry = Registry::new();
    for (name, help, value) in shared.count.all() {
        let counter = IntCounter::new(format!("tidegate_enforce_{name}_total"), help)?;
        counter.inc_by(value);
        registry.register(Box::new(counter))?;
    }
    usage(shared, &registry)?;
    table(shared, &registry)?;
    let mut text = Vec::new();
    TextEncoder::new().encode(&registry.gather(), &mut text)?;
    Ok(text)
}

fn usage(shared: &Shared, registry: &Registry) -> Result<(), prometheus::Error> {
    let names = ["model", "tier", "verdict"];
    let requests = IntCounterVec::new(opts("requests_total", "Requests by verdict."), &names)?;
    let work = IntGaugeVec::new(
        opts("work", "Work by verdict since the start; admitted work is corrected when it is settled."),
        &names,
    )?;
    let pools = IntGaugeVec::new(opts("pool", "State and counts of a pool."), &["pool", "of"])?;
    let report = shared.report();
    for row in &report.rows {
        // Not what is left of them: a request that was never sent is taken back later, and a
        // counter must not fall.
        let refused = row.refused_limit.requests.saturating_add(row.refused_capacity.requests);
        let admitted = row.offered.requests.saturating_sub(refused);
        let verdicts = [
            ("admitted", admitted, row.admitted.work),
            ("refused_limit", row.refused_limit.requests, row.refused_limit.work),
            ("refused_capacity", row.refused_capacity.requests, row.refused_capacity.work),
        ];
        for (verdict, count, worked) in verdicts {
            let labels = [row.model.as_str(), row.tier.as_str(), verdict];
            requests.with_label_values(&labels).inc_by(count);
            work.with_label_values(&labels).set(signed(worked));
        }
    }
    for (name, pool) in &report.pools {
        let values = [
            ("in_flight", pool.in_flight),
            ("waiting_work", pool.waiting_work),
            ("upstream_requests", pool.upstream_requests),
            ("upstream_errors", pool.upstream_errors),
        ];
        for (of, value) in values {
            pools.with_label_values(&[name.as_str(), of]).set(signed(value));
        }
    }
    registry.register(Box::new(requests))?;
    registry.register(Box::new(work))?;
    registry.register(Box::new(pools))
}

fn table(shared: &Shared, registry: &Registry) -> Result<(), prometheus::Error> {
    let stamp = IntGaugeVec::new(opts("table", "The table in force."), &["of"])?;
    let age = GaugeVec::new(opts("table_age_seconds", "Since the last renewal."), &[])?;
    let limits = GaugeVec::new(
        opts("tier_limit", "The tier limit in force, all nodes together; +Inf is unlimited."),
        &["model", "tier", "dimension"],
    )?;
    if let Some(held) = shared.cell.held() {
        let now = shared.cell.now();
        let of = held.stamp();
        for (name, value) in [("epoch", of.epoch), ("version", of.version), ("tick", of.tick)] {
            stamp.with_label_values(&[name]).set(signed(value));
        }
        age.with_label_values::<&str>(&[]).set(held.age(now).as_secs_f64());
        for row in &held.table.rows {
            for (dimension, entry) in &row.limits {
                let labels = [row.model.as_str(), row.tier.as_str(), dimension.short()];
                limits.with_label_values(&labels).set(Limit::as_f64(held.tier_limit(entry, now)));
            }
        }
    }
    registry.register(Box::new(stamp))?;
    registry.register(Box::new(age))?;
    registry.register(Box::new(limits))
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("tidegate_enforce_{name}"), help)
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
