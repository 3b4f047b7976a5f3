//! The controller's own metrics: what is counted as it happens, and the last turn, from which
//! [`families`](crate::control::families) draws the rest of the page.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use crate::bounds::METRIC_NODES_MAX;
use crate::control::Tick;
use crate::control::credentials::Credential;
use crate::control::families;
use crate::control::granted;
use crate::control::latest::Latest;
use crate::metrics::Page;
use crate::metrics::PageOptions;
use crate::metrics::Sheet;
use crate::observe::Outcome;
use crate::observe::Round;
use crate::supervise::panics;
use crate::unit::{Instant, NodeId, PoolId};
use crate::wire::Stamp;

/// A node that did not report for this many intervals is silent: its demand counts no more.
const NODE_SILENT_INTERVALS: u32 = 5;
/// A silent node is forgotten after this long, seconds.
const NODE_FORGOTTEN_AFTER: f64 = 600.0;
/// Of a turn's length, seconds: sources have one, the disk has the rest.
const TURN_BUCKETS: [f64; 8] = [0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 5.0, 10.0];

/// Parts of a full table above which an alarm is on, and their labels.
pub const TABLE_ALARMS: [(f64, &str); 2] = [(0.5, "0.5"), (0.8, "0.8")];

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
    options: PageOptions,
    page: Arc<Page>,
    latest: Arc<Mutex<Latest>>,
    registry: Registry,
    ticks: IntCounter,
    turn: Histogram,
    panics: IntCounter,
    epoch: IntGauge,
    version: IntGauge,
    tick: IntGauge,
    table_bytes: IntGauge,
    durable: IntGauge,
    lag: Gauge,
    publish_failures: IntCounterVec,
    quarantined: IntGauge,
    reloads: Reloads,
    turns_failed: IntCounter,
    table_alarm: IntGaugeVec,
}

/// How reading the policy goes.
#[derive(Clone, Debug)]
struct Reloads {
    successful: IntGauge,
    failures: IntCounter,
    held: IntGauge,
    credentials: IntGaugeVec,
    credential_failures: IntCounterVec,
    certificate: IntGaugeVec,
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
    pub fn new(options: PageOptions) -> Result<Metrics, prometheus::Error> {
        let registry = Registry::new();
        let r = &registry;
        let failures =
            Opts::new("tidegate_publish_failures_total", "Tables that could not be handed to a channel.");
        let publish_failures = IntCounterVec::new(failures, &["channel"])?;
        r.register(Box::new(publish_failures.clone()))?;
        for channel in [Channel::Journal, Channel::File, Channel::Validate] {
            publish_failures.with_label_values(&[channel.name()]);
        }
        let filled =
            "1 while the table fills more than this part of what nodes take (bytes, rows or shares).";
        let table_alarm = IntGaugeVec::new(Opts::new("tidegate_publish_table_alarm", filled), &["above"])?;
        r.register(Box::new(table_alarm.clone()))?;
        let turn = HistogramOpts::new(
            "tidegate_control_turn_duration_seconds",
            "Length of a turn: sources read, decided, on disk, announced.",
        );
        let turn = Histogram::with_opts(turn.buckets(TURN_BUCKETS.to_vec()))?;
        r.register(Box::new(turn.clone()))?;
        Ok(Metrics {
            options,
            page: Arc::new(Page::new(options.max_age)),
            latest: Arc::default(),
            panics: counter(r, "tidegate_control_panics_total", "Panics, whatever they ended.")?,
            ticks: counter(r, "tidegate_control_ticks_total", "Turns of the control loop.")?,
            turn,
            epoch: gauge(r, "tidegate_publish_epoch", "Epoch of the table in force.")?,
            version: gauge(r, "tidegate_publish_version", "Version of the table in force.")?,
            tick: gauge(r, "tidegate_publish_tick", "Tick of the table in force.")?,
            table_bytes: gauge(r, "tidegate_publish_table_bytes", "Size of the encoded table.")?,
            durable: gauge(
                r,
                "tidegate_publish_last_write_successful",
                "0 while the state directory cannot be written: a restart will not know the tables of \
                 this time.",
            )?,
            lag: real(
                r,
                "tidegate_publish_lag_seconds",
                "From sealing a table to having it stored; grows while the state directory does not answer.",
            )?,
            publish_failures,
            quarantined: gauge(
                r,
                "tidegate_control_policy_quarantined",
                "1 while the last good policy is in force because runs under a later one ended badly.",
            )?,
            reloads: Reloads::new(r)?,
            turns_failed: counter(
                r,
                "tidegate_control_turns_failed_total",
                "Turns that made no table: the policy could not be stepped.",
            )?,
            table_alarm,
            registry,
        })
    }

    /// The page at `/metrics`.
    pub fn page(&self) -> Bytes {
        self.panics.inc_by(panics().saturating_sub(self.panics.get()));
        let page = self.page.get(|| {
            let mut sheet = Sheet::default();
            sheet.gathered(self.registry.gather());
            self.look(|latest| {
                families::observe(&mut sheet, latest);
                if let Some(tick) = &latest.tick {
                    families::estimate(&mut sheet, tick);
                    families::decide(&mut sheet, tick);
                    granted::rows(&mut sheet, tick, self.options.detail);
                }
                granted::publish(&mut sheet, latest);
            });
            sheet.encode()
        });
        page.unwrap_or_else(|error| {
            tracing::error!(%error, "the metrics page could not be written");
            Bytes::new()
        })
    }

    fn look<T>(&self, look: impl FnOnce(&mut Latest) -> T) -> T {
        look(&mut self.latest.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn observe_round(&self, seen: &mut Seen, now: Instant, round: &Round) {
        for (id, pool) in &round.pools {
            let newest = pool.replicas.iter().filter_map(|reading| match reading.outcome {
                Outcome::Up(_) => Some(reading.at),
                _ => None,
            });
            if let Some(at) = seen.newest.get(id).copied().max(newest.max()) {
                seen.newest.insert(id.clone(), at);
            }
        }
        seen.newest.retain(|pool, _| round.pools.contains_key(pool));
        for report in &round.usage {
            if seen.nodes.len() < METRIC_NODES_MAX || seen.nodes.contains_key(&report.node) {
                seen.nodes.insert(report.node.clone(), (now, report.applied));
            }
        }
        seen.nodes.retain(|_, (at, _)| now.seconds_since(*at) < NODE_FORGOTTEN_AFTER);
        self.look(|latest| {
            latest.observe_round(&round.pools, |id| seen.newest.get(id).map(|at| now.seconds_since(*at)));
        });
    }

    /// What the controller concluded.
    pub fn observe_tick(&self, tick: &Tick) {
        self.ticks.inc();
        self.look(|latest| latest.tick = Some(tick.clone()));
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
        let version = |stamp: Stamp| (stamp.epoch, stamp.version);
        self.look(|latest| {
            // Nobody can have what is announced only now; what was announced a turn ago, everybody.
            let had = latest.announce(stamp);
            let known = version(had)..=version(stamp);
            let (mut current, mut behind, mut silent) = (0, 0, 0);
            for (at, applied) in seen.nodes.values() {
                if now.since(*at) > interval * NODE_SILENT_INTERVALS {
                    silent += 1;
                } else if applied.is_some_and(|applied| known.contains(&version(applied))) {
                    current += 1;
                } else {
                    behind += 1;
                }
            }
            latest.nodes = [("current", current), ("behind", behind), ("silent", silent)];
        });
    }

    /// A turn has ended, whatever came of it.
    pub fn turned(&self, took: Duration) {
        self.turn.observe(took.as_secs_f64());
    }

    /// How much of what a consumer takes the table fills.
    pub fn table_filled(&self, part: f64) {
        for (above, label) in TABLE_ALARMS {
            self.table_alarm.with_label_values(&[label]).set(i64::from(part > above));
        }
    }

    /// A former policy is held in force by an operator, or is no longer.
    pub fn held(&self, held: bool) {
        self.reloads.held.set(i64::from(held));
        if held {
            self.reloads.successful.set(0);
        }
    }

    /// A certificate or token was read: it is in force, or the last good one stays.
    pub fn credential_read(&self, credential: Credential, successful: bool) {
        let label = &[credential.name()];
        self.reloads.credentials.with_label_values(label).set(i64::from(successful));
        self.reloads.credential_failures.with_label_values(label).inc_by(u64::from(!successful));
    }

    /// When the certificate in force expires, seconds since 1970.
    pub fn certificate(&self, not_after: u64) {
        let label = &[Credential::Certificate.name()];
        self.reloads.certificate.with_label_values(label).set(int(not_after));
    }

    /// A turn made no table.
    pub fn turn_failed(&self) {
        self.turns_failed.inc();
    }

    pub fn durable(&self, durable: bool) {
        self.durable.set(i64::from(durable));
    }

    pub fn lag(&self, lag: Duration) {
        self.lag.set(lag.as_secs_f64());
    }

    pub fn quarantined(&self, quarantined: bool) {
        self.quarantined.set(i64::from(quarantined));
    }

    pub fn publish_failed(&self, channel: Channel) {
        self.publish_failures.with_label_values(&[channel.name()]).inc();
    }

    pub fn reloaded(&self, successful: bool) {
        self.reloads.successful.set(i64::from(successful));
        if successful {
            self.reloads.held.set(0);
        } else {
            self.reloads.failures.inc();
        }
    }
}

// === impl Reloads ===

impl Reloads {
    fn new(r: &Registry) -> Result<Reloads, prometheus::Error> {
        Ok(Reloads {
            successful: gauge(
                r,
                "tidegate_policy_last_reload_successful",
                "0 while the policy files are not the policy in force.",
            )?,
            failures: counter(r, "tidegate_policy_reload_failures_total", "Policy edits that were refused.")?,
            held: gauge(
                r,
                "tidegate_policy_held",
                "1 while an operator's rollback holds a former policy in force.",
            )?,
            credentials: gauges(
                r,
                "tidegate_publish_credential_last_reload_successful",
                "0 while the files of the listener's certificate, or its token, are not what is in force.",
            )?,
            credential_failures: credential_failures(r)?,
            certificate: gauges(
                r,
                "tidegate_publish_certificate_not_after_timestamp_seconds",
                "When the listener's certificate, or one of its chain, expires; absent without TLS.",
            )?,
        })
    }
}

fn credential_failures(r: &Registry) -> Result<IntCounterVec, prometheus::Error> {
    let failures = Opts::new(
        "tidegate_publish_credential_reload_failures_total",
        "Certificates or tokens that were refused.",
    );
    let failures = IntCounterVec::new(failures, &["credential"])?;
    r.register(Box::new(failures.clone()))?;
    Ok(failures)
}

fn gauges(r: &Registry, name: &str, help: &str) -> Result<IntGaugeVec, prometheus::Error> {
    let gauges = IntGaugeVec::new(Opts::new(name, help), &["credential"])?;
    r.register(Box::new(gauges.clone()))?;
    Ok(gauges)
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

fn real(registry: &Registry, name: &str, help: &str) -> Result<Gauge, prometheus::Error> {
    let gauge = Gauge::new(name, help)?;
    registry.register(Box::new(gauge.clone()))?;
    Ok(gauge)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::UsageReport;

    #[test]
    fn a_node_is_silent_after_five_intervals_whatever_an_interval_is() {
        let metrics = Metrics::new(PageOptions::fresh()).unwrap();
        let mut seen = Seen::default();
        let stamp = Stamp { epoch: 1, version: 2, tick: 3 };
        let at = |seconds: u64| Instant(seconds * 1_000_000_000);
        let report = UsageReport {
            schema: 1,
            node: "n1".into(),
            instance: 1,
            uptime_ms: 5,
            applied: Some(stamp),
            nack: None,
            rows: Vec::new(),
            pools: BTreeMap::new(),
            providers: BTreeMap::new(),
        };
        metrics.observe_round(&mut seen, at(100), &Round { pools: BTreeMap::new(), usage: vec![report] });
        let state = |now: Instant, interval: u64, name: &str| {
            metrics.observe_published(&seen, now, Duration::from_secs(interval), stamp, 1);
            metrics.look(|latest| latest.nodes.into_iter().find(|(state, _)| *state == name).unwrap().1)
        };
        assert_eq!((state(at(109), 2, "current"), state(at(111), 2, "silent")), (1, 1));
        assert_eq!((state(at(160), 30, "current"), state(at(251), 30, "silent")), (1, 1));
    }

    #[test]
    fn a_node_is_behind_when_it_missed_the_version_of_a_turn_ago() {
        let metrics = Metrics::new(PageOptions::fresh()).unwrap();
        let mut seen = Seen::default();
        let stamp = |version: u64| Stamp { epoch: 1, version, tick: version };
        seen.nodes.insert("n1".into(), (Instant::ZERO, Some(stamp(4))));
        let behind = |version: u64| {
            let interval = Duration::from_secs(2);
            metrics.observe_published(&seen, Instant::ZERO, interval, stamp(version), 1);
            metrics.look(|latest| latest.nodes[1])
        };
        assert_eq!(behind(4), ("behind", 0));
        assert_eq!(behind(5), ("behind", 0), "announced this moment");
        assert_eq!(behind(6), ("behind", 1));
    }
}
