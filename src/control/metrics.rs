//! The controller's own metrics. Names carry the room they come from; labels carry nothing that a
//! client chooses.

use std::collections::BTreeMap;
use std::time::Duration;

use prometheus::{
    Encoder, GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::bounds::METRIC_NODES_MAX;
use crate::control::Tick;
use crate::control::conclusions::Conclusions;
use crate::observe::Outcome;
use crate::observe::Round;
use crate::unit::{Instant, NodeId, PoolId};
use crate::wire::Stamp;

/// The commit of this build, where whoever built it said so in the environment:
/// `TIDEGATE_REVISION=$(git rev-parse --short=12 HEAD) cargo build`.
pub const REVISION: Option<&str> = option_env!("TIDEGATE_REVISION");

/// A node that did not report for this many intervals is silent: its demand counts no more.
const NODE_SILENT_INTERVALS: u32 = 5;
/// A silent node is forgotten after this long, seconds.
const NODE_FORGOTTEN_AFTER: f64 = 600.0;

/// How a table is handed on; the label of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    Journal,
    File,
    /// The table did not pass the validator: no channel saw it.
    Validate,
}

#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    ticks: IntCounter,
    up: IntGaugeVec,
    replicas: IntGaugeVec,
    source_failed: IntGaugeVec,
    age: GaugeVec,
    epoch: IntGauge,
    version: IntGauge,
    tick: IntGauge,
    table_bytes: IntGauge,
    durable: IntGauge,
    publish_failures: IntCounterVec,
    reload_successful: IntGauge,
    reload_failures: IntCounter,
    nodes: IntGaugeVec,
    conclusions: Conclusions,
}

/// What rounds have said so far, for the gauges that look back.
#[derive(Debug, Default)]
pub struct Seen {
    newest: BTreeMap<PoolId, Instant>,
    nodes: BTreeMap<NodeId, (Instant, Option<Stamp>)>,
}

// === impl Metrics ===

impl Metrics {
    /// # Errors
    /// Never with these names; the library wants it said.
    pub fn new() -> Result<Metrics, prometheus::Error> {
        let registry = Registry::new();
        let r = &registry;
        let info = gauges(
            r,
            "tidegate_build_info",
            "Version and revision of this build.",
            &["version", "revision"],
        )?;
        let revision = REVISION.unwrap_or("unknown");
        info.with_label_values(&[env!("CARGO_PKG_VERSION"), revision]).set(1);
        let failures =
            Opts::new("tidegate_publish_failures_total", "Tables that could not be handed to a channel.");
        let publish_failures = IntCounterVec::new(failures, &["channel"])?;
        r.register(Box::new(publish_failures.clone()))?;
        for channel in [Channel::Journal, Channel::File, Channel::Validate] {
            publish_failures.with_label_values(&[channel.name()]);
        }
        let pool = &["pool"];
        Ok(Metrics {
            ticks: counter(r, "tidegate_control_ticks_total", "Turns of the control loop.")?,
            up: gauges(r, "tidegate_observe_up", "Replicas that reported in the last round.", pool)?,
            replicas: gauges(r, "tidegate_observe_replicas", "Replicas known to the source.", pool)?,
            source_failed: gauges(
                r,
                "tidegate_observe_source_failed",
                "1 while the pool's source as a whole cannot be read.",
                pool,
            )?,
            age: reals(r, "tidegate_observe_age_seconds", "Age of the newest reading.", pool)?,
            epoch: gauge(r, "tidegate_publish_epoch", "Epoch of the table in force.")?,
            version: gauge(r, "tidegate_publish_version", "Version of the table in force.")?,
            tick: gauge(r, "tidegate_publish_tick", "Tick of the table in force.")?,
            table_bytes: gauge(r, "tidegate_publish_table_bytes", "Size of the encoded table.")?,
            durable: gauge(
                r,
                "tidegate_publish_last_write_successful",
                "0 while the state directory cannot be written and the last good table is served.",
            )?,
            publish_failures,
            reload_successful: gauge(
                r,
                "tidegate_policy_last_reload_successful",
                "0 while the policy files are not the policy in force.",
            )?,
            reload_failures: counter(
                r,
                "tidegate_policy_reload_failures_total",
                "Policy edits that were refused.",
            )?,
            nodes: gauges(
                r,
                "tidegate_nodes",
                "Nodes by state: current (reports, has the version in force), behind (reports, has an \
                 earlier one), silent.",
                &["state"],
            )?,
            conclusions: Conclusions::new(r)?,
            registry,
        })
    }

    /// The page at `/metrics`.
    pub fn page(&self) -> Vec<u8> {
        let mut page = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut page) {
            tracing::error!(%error, "the metrics page could not be written");
        }
        page
    }

    /// A pool that left the policy leaves the page.
    pub fn forget_pools(&self) {
        for gauges in [&self.up, &self.replicas, &self.source_failed] {
            gauges.reset();
        }
        self.age.reset();
        self.conclusions.reset();
    }

    pub fn observe_round(&self, seen: &mut Seen, now: Instant, round: &Round) {
        seen.newest.retain(|pool, _| round.pools.contains_key(pool));
        for (id, pool) in &round.pools {
            let label = &[id.as_str()];
            let up = pool.replicas.iter().filter(|reading| matches!(reading.outcome, Outcome::Up(_)));
            let newest = up.clone().map(|reading| reading.at).max();
            self.up.with_label_values(label).set(int(up.count()));
            self.replicas.with_label_values(label).set(int(pool.replicas.len()));
            self.source_failed.with_label_values(label).set(i64::from(pool.failed.is_some()));
            let known = seen.newest.get(id).copied().max(newest);
            if let Some(at) = known {
                seen.newest.insert(id.clone(), at);
                self.age.with_label_values(label).set(now.seconds_since(at));
            }
        }
        for report in &round.usage {
            if seen.nodes.len() < METRIC_NODES_MAX || seen.nodes.contains_key(&report.node) {
                seen.nodes.insert(report.node.clone(), (now, report.applied));
            }
        }
        seen.nodes.retain(|_, (at, _)| now.seconds_since(*at) < NODE_FORGOTTEN_AFTER);
    }

    /// What the controller concluded.
    pub fn observe_tick(&self, tick: &Tick) {
        self.ticks.inc();
        self.conclusions.observe(tick);
    }

    /// A table was announced.
    pub fn observe_published(
        &self,
        seen: &Seen,
        now: Instant,
        interval: Duration,
        stamp: Stamp,
        bytes: usize,
    ) {
        self.epoch.set(int(stamp.epoch));
        self.version.set(int(stamp.version));
        self.tick.set(int(stamp.tick));
        self.table_bytes.set(int(bytes));
        let (mut current, mut behind, mut silent) = (0, 0, 0);
        for (at, applied) in seen.nodes.values() {
            let same = |applied: Stamp| (applied.epoch, applied.version) == (stamp.epoch, stamp.version);
            if now.since(*at) > interval * NODE_SILENT_INTERVALS {
                silent += 1;
            } else if applied.is_some_and(same) {
                current += 1;
            } else {
                behind += 1;
            }
        }
        for (state, count) in [("current", current), ("behind", behind), ("silent", silent)] {
            self.nodes.with_label_values(&[state]).set(count);
        }
    }

    pub fn durable(&self, durable: bool) {
        self.durable.set(i64::from(durable));
    }

    pub fn publish_failed(&self, channel: Channel) {
        self.publish_failures.with_label_values(&[channel.name()]).inc();
    }

    pub fn reloaded(&self, successful: bool) {
        self.reload_successful.set(i64::from(successful));
        if !successful {
            self.reload_failures.inc();
        }
    }
}

// === impl Channel ===

impl Channel {
    fn name(self) -> &'static str {
        match self {
            Channel::Journal => "journal",
            Channel::File => "file",
            Channel::Validate => "validate",
        }
    }
}

fn int(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

fn counter(registry: &Registry, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
    let counter = IntCounter::new(name, help)?;
    registry.register(Box::new(counter.clone()))?;
    Ok(counter)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
    let gauge = IntGauge::new(name, help)?;
    registry.register(Box::new(gauge.clone()))?;
    Ok(gauge)
}

pub(super) fn gauges(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntGaugeVec, prometheus::Error> {
    let gauges = IntGaugeVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(gauges.clone()))?;
    Ok(gauges)
}

pub(super) fn reals(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<GaugeVec, prometheus::Error> {
    let gauges = GaugeVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(gauges.clone()))?;
    Ok(gauges)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::UsageReport;

    #[test]
    fn a_node_is_silent_after_five_intervals_whatever_an_interval_is() {
        let metrics = Metrics::new().unwrap();
        let mut seen = Seen::default();
        let stamp = Stamp { epoch: 1, version: 2, tick: 3 };
        let at = |seconds: u64| Instant(seconds * 1_000_000_000);
        let report = UsageReport {
            schema: 1,
            node: "n1".into(),
            instance: 1,
            uptime_ms: 5,
            applied: Some(stamp),
            rows: Vec::new(),
            pools: BTreeMap::new(),
        };
        metrics.observe_round(&mut seen, at(100), &Round { pools: BTreeMap::new(), usage: vec![report] });
        let state = |now: Instant, interval: u64, name: &str| {
            metrics.observe_published(&seen, now, Duration::from_secs(interval), stamp, 1);
            metrics.nodes.with_label_values(&[name]).get()
        };
        assert_eq!((state(at(109), 2, "current"), state(at(111), 2, "silent")), (1, 1));
        assert_eq!((state(at(160), 30, "current"), state(at(251), 30, "silent")), (1, 1));
    }
}
