//! What nodes were asked, read back from their metrics: reports as they might have been.
//!
//! Metrics say by whom a request was refused only as far as limit or room: what was refused for a
//! limit counts as refused for the tier's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::observe::matrix::{Labels, Matrix, Window};
use crate::observe::promql::PART;
use crate::unit::{ModelId, NodeId, PoolId, TierId};
use crate::wire::table::SCHEMA;
use crate::wire::{PoolUsage, UsageReport, UsageRow, Work};

pub const WORK: &str = "tidegate_enforce_work_total";
pub const REQUESTS: &str = "tidegate_enforce_requests_total";
pub const INFO: &str = "tidegate_enforce_node_info";
pub const IN_FLIGHT: &str = "tidegate_enforce_in_flight_requests";
pub const WAITING: &str = "tidegate_enforce_waiting_work";
pub const SENT: &str = "tidegate_enforce_upstream_requests_total";
pub const FAILED: &str = "tidegate_enforce_upstream_errors_total";

/// A node's clock stands at this when the replay begins: before it there was a node.
const UPTIME: Duration = Duration::from_secs(3_600);

/// Nodes by the instance that Prometheus scrapes.
#[derive(Default)]
pub struct Nodes(BTreeMap<String, Node>);

#[derive(Default)]
struct Node {
    name: Option<NodeId>,
    /// Processes so far: counters that fell are those of another one.
    process: u64,
    /// Counters before the replay began.
    base: Rows,
    last: Rows,
}

type Rows = BTreeMap<(ModelId, TierId), [Work; 3]>;

/// One instance at one step.
#[derive(Default)]
struct Seen {
    /// Time of the sample, seconds since 1970.
    stamp: Option<f64>,
    name: Option<NodeId>,
    rows: Rows,
    pools: BTreeMap<PoolId, PoolUsage>,
}

/// What was asked of Prometheus about nodes, by name of the metric.
pub type Matrices = BTreeMap<&'static str, Matrix>;

/// What a step's series say, instance by instance.
type Step = BTreeMap<String, Seen>;

const VERDICTS: [&str; 3] = ["admitted", "refused_limit", "refused_capacity"];

// === impl Nodes ===

impl Nodes {
    /// The reports of each step of a window, and which instances were seen at it.
    pub fn reports(
        &mut self,
        matrices: &Matrices,
        window: Window,
        from: Duration,
    ) -> Vec<Vec<(String, UsageReport)>> {
        let steps = steps(matrices, window);
        steps.into_iter().map(|step| self.step(step, from)).collect()
    }

    fn step(&mut self, step: Step, from: Duration) -> Vec<(String, UsageReport)> {
        let mut reports = Vec::new();
        for (instance, seen) in step {
            let Some(stamp) = seen.stamp else { continue };
            let node = self.0.entry(instance.clone()).or_default();
            let name = seen.name.or_else(|| node.name.clone());
            let name = node.name.insert(name.unwrap_or_else(|| NodeId::new(&instance))).clone();
            node.take(seen.rows);
            let uptime = stamp - from.as_secs_f64() + UPTIME.as_secs_f64();
            let report = UsageReport {
                schema: SCHEMA,
                node: name,
                instance: node.process,
                uptime_ms: (uptime.max(0.0) * 1e3).round() as u64,
                applied: None,
                nack: None,
                rows: node.rows(),
                pools: seen.pools,
                providers: BTreeMap::new(),
            };
            reports.push((instance, report));
        }
        reports
    }
}

// === impl Node ===

impl Node {
    /// Counts from the first look on; after a restart from zero, as the node does.
    fn take(&mut self, rows: Rows) {
        let sum = |rows: &Rows| rows.values().flatten().fold(Work::default(), |sum, work| sum.plus(*work));
        if self.process == 0 {
            (self.process, self.base) = (1, rows.clone());
        } else if sum(&rows).requests < sum(&self.last).requests {
            (self.process, self.base) = (self.process + 1, Rows::new());
        }
        self.last = rows;
    }

    fn rows(&self) -> Vec<UsageRow> {
        let row = |((model, tier), now): (&(ModelId, TierId), &[Work; 3])| {
            let base = self.base.get(&(model.clone(), tier.clone())).copied().unwrap_or_default();
            let [admitted, limit, capacity] = std::array::from_fn(|at| {
                let (now, base) = (now.get(at), base.get(at));
                super::asked::less(now.copied().unwrap_or_default(), base.copied().unwrap_or_default())
            });
            UsageRow {
                model: model.clone(),
                tier: tier.clone(),
                offered: admitted.plus(limit).plus(capacity),
                admitted,
                refused_limit: limit,
                refused_capacity: capacity,
                refused_share: Work::default(),
                refused_tier: limit,
            }
        };
        self.last.iter().map(row).collect()
    }
}

fn steps(matrices: &Matrices, window: Window) -> Vec<Step> {
    let mut steps: Vec<Step> = (0..window.steps).map(|_| Step::new()).collect();
    for (name, matrix) in matrices {
        for (step, values) in steps.iter_mut().zip(matrix.by_step(window)) {
            for (labels, value) in values {
                let instance = labels.get("instance").cloned().unwrap_or_default();
                step.entry(instance).or_default().take(name, labels, value);
            }
        }
    }
    steps
}

// === impl Seen ===

impl Seen {
    fn take(&mut self, metric: &str, labels: &Labels, value: f64) {
        let label = |name: &str| labels.get(name).map(String::as_str).unwrap_or_default();
        let count = value.max(0.0) as u64;
        if label(PART) == "at" {
            // Two jobs that scrape a node see the same counters; the later look counts.
            self.stamp = Some(self.stamp.map_or(value, |known| known.max(value)));
            return;
        }
        match metric {
            INFO => self.name = Some(NodeId::new(label("node"))),
            WORK | REQUESTS => {
                let Some(at) = VERDICTS.iter().position(|verdict| *verdict == label("verdict")) else {
                    return;
                };
                let row = self.rows.entry((label("model").into(), label("tier").into())).or_default();
                if let Some(work) = row.get_mut(at) {
                    let known = if metric == WORK { &mut work.work } else { &mut work.requests };
                    *known = count.max(*known);
                }
            }
            _ => {
                let pool = self.pools.entry(label("pool").into()).or_default();
                let known = match metric {
                    IN_FLIGHT => &mut pool.in_flight,
                    WAITING => &mut pool.waiting_work,
                    SENT => &mut pool.upstream_requests,
                    FAILED => &mut pool.upstream_errors,
                    _ => return,
                };
                *known = count.max(*known);
            }
        }
    }
}

/// Reports by node, as a controller remembers them.
pub type Known = BTreeMap<NodeId, Arc<UsageReport>>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::matrix::Series;

    fn series(pairs: &[(&str, &str)], values: &[f64]) -> Series {
        let labels = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let at = |(step, value): (usize, &f64)| (100.0 + step as f64, *value);
        Series { labels, values: values.iter().enumerate().map(at).collect() }
    }

    #[test]
    fn counters_count_from_the_first_look_and_a_restart_is_another_process() {
        let row = [("instance", "i"), ("model", "m"), ("tier", "t"), ("verdict", "refused_limit")];
        let at = series(&[("instance", "i"), (PART, "at")], &[100.0, 101.0, 101.0, 103.0]);
        let info = series(&[("instance", "i"), ("node", "n1")], &[1.0; 4]);
        let work = Matrix(vec![series(&row, &[500.0, 900.0, 900.0, 70.0]), at]);
        let requests = Matrix(vec![series(&row, &[5.0, 9.0, 9.0, 1.0])]);
        let matrices = [(WORK, work), (REQUESTS, requests), (INFO, Matrix(vec![info]))].into();
        let second = Duration::from_secs(1);
        let window = Window { start: 100 * second, step: second, steps: 4 };
        let steps = Nodes::default().reports(&matrices, window, window.start);
        let reports: Vec<&UsageReport> = steps.iter().map(|step| &step[0].1).collect();
        let said: Vec<(u64, u64, Work)> = reports
            .iter()
            .map(|report| (report.instance, report.uptime_ms, report.rows[0].refused_tier))
            .collect();
        let work = |requests, work| Work { requests, work };
        assert_eq!(
            said,
            [
                (1, 3_600_000, work(0, 0)),
                (1, 3_601_000, work(4, 400)),
                (1, 3_601_000, work(4, 400)),
                (2, 3_603_000, work(1, 70)),
            ]
        );
        assert!(reports.iter().all(|report| report.node.as_str() == "n1"));
        assert_eq!(reports[1].rows[0].offered, work(4, 400));
    }
}
