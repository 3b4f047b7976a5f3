//! The demo: a whole cluster in one process, over real sockets, to watch limits follow load.
//!
//! The plant knows its capacity and tells nobody; tenants want more than it has and keep their own
//! ledger; controller and nodes are the daemon's, and see only metrics and requests. What the
//! demo promises is judged from the plant's and the ledger's numbers alone.

pub mod cluster;
pub mod dialect;
mod engine;
pub mod ledger;
pub mod page;
pub mod plant;
pub mod prompt;
mod replica;
pub mod tenants;
pub mod verdict;
mod view;
mod watch;
mod wire;

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use self::cluster::{Cluster, SLO};
use self::dialect::Dialect;
use self::ledger::{Ledger, TIERS};
use self::plant::{LATE_MAX, Plant};
use self::verdict::{Kept, Record, Second};
use self::view::View;
use self::watch::Watch;
use crate::sim::batch::Shape;
use crate::unit::{Clock, Instant, SystemClock};

const REPLICAS: usize = 4;
/// Offered work over the plant's full capacity, by tier: 1.4 times of it in all.
const DEMAND: [f64; TIERS.len()] = [0.22, 0.50, 0.68];
/// A second is shown this long after its end: refusals of its last requests have come by then.
const SHOWN_AFTER: Duration = Duration::from_millis(300);
/// Requests in flight, however many descriptors there are.
const IN_FLIGHT_MAX: usize = 4000;

#[derive(Clone, Debug)]
pub struct Options {
    pub seconds: u64,
    pub seed: u64,
    pub json: bool,
    /// Whose metrics the replicas speak.
    pub engine: Dialect,
    /// Without them, tenants talk to the replicas directly.
    pub limits: bool,
    /// A directory to make: policy and state stay in it when the demo has ended.
    pub keep: Option<PathBuf>,
}

/// How a demo that ran to its end ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Kept,
    /// A promise was broken, with limits in force.
    Broken,
    /// Nobody reads what is shown any more.
    Unseen,
}

#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error("machine too slow: the plant was {} ms late, {} ms are allowed; run it with less beside it, or built with --release", .0.as_millis(), LATE_MAX.as_millis())]
    TooSlow(Duration),
    #[error("cannot make the demo's directory: {0}")]
    Directory(io::Error),
    #[error("cannot start the demo's replicas: {0}")]
    Plant(io::Error),
    #[error("{0}")]
    Start(String),
    #[error("cannot write the output: {0}")]
    Output(io::Error),
}

struct Demo<W> {
    options: Options,
    plant: Plant,
    record: Record,
    ledger: Arc<Ledger>,
    watch: Watch,
    clock: Arc<SystemClock>,
    view: View<W>,
}

/// Runs the demo to its end.
///
/// # Errors
/// What kept it from starting, or [`DemoError::TooSlow`].
pub async fn run<W: Write>(options: Options, out: W) -> Result<Ending, DemoError> {
    match play(options, out).await {
        Err(DemoError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Ending::Unseen),
        ended => ended,
    }
}

async fn play<W: Write>(options: Options, out: W) -> Result<Ending, DemoError> {
    let plant = Plant::speaking(options.engine, REPLICAS, Shape::default()).map_err(DemoError::Plant)?;
    let replicas = plant.replica_urls();
    let cluster = match options.limits {
        true => Some(Cluster::obeying(options.engine, &replicas, options.keep.as_deref()).await?),
        false => None,
    };
    let mut view = View::new(out, options.json);
    view.opening(&replicas, cluster.as_ref()).map_err(DemoError::Output)?;

    // Aborted when the demo ends, however it ends.
    let mut background = JoinSet::new();
    let watch = Watch::default();
    if let Some(cluster) = &cluster {
        background.spawn(watch.clone().follow(cluster.controller.clone()));
    }
    let targets = match &cluster {
        Some(cluster) => cluster.nodes.iter().map(|node| node.proxy.clone()).collect(),
        None => replicas,
    };
    let load = tenants::Load {
        seed: options.seed,
        seconds: options.seconds,
        targets,
        demand: DEMAND.map(|part| part * plant.capacity()),
        in_flight_max: in_flight_max(&std::fs::read_to_string("/proc/self/limits").unwrap_or_default()),
    };
    let ledger = Arc::new(Ledger::new(options.seconds as usize, SLO));
    let clock = Arc::new(SystemClock::starting_at(Instant::ZERO));
    let tenants = background.spawn(tenants::run(load, Arc::clone(&ledger), Arc::clone(&clock)));
    let record = Record {
        seconds: Vec::with_capacity(options.seconds as usize),
        halved: (options.seconds / 3) as usize,
        returned: (options.seconds * 2 / 3) as usize,
        slo: SLO,
        cost_max: tenants::COST_MAX,
    };
    let demo = Demo { options, plant, record, ledger, watch, clock, view };
    let ending = demo.conduct(tenants).await;
    background.abort_all();
    if let Some(cluster) = cluster {
        cluster.shutdown().await;
    }
    ending
}

// === impl Demo ===

impl<W: Write> Demo<W> {
    async fn conduct(mut self, tenants: tokio::task::AbortHandle) -> Result<Ending, DemoError> {
        let mut delivered = self.plant.delivered();
        for at in 0..self.options.seconds as usize {
            let end = Duration::from_secs(at as u64 + 1);
            self.sleep_until(end).await;
            let sight = self.watch.take();
            let before = std::mem::replace(&mut delivered, self.plant.delivered());
            self.record.seconds.push(Second {
                capacity: self.plant.capacity(),
                load: (delivered - before) as f64,
                budget: sight.budget,
                tick: sight.stamp.map(|stamp| stamp.tick),
                tiers: sight.tiers,
                seen: ledger::Seen::default(),
            });
            let event = self.step(at + 1)?;
            self.sleep_until(end + SHOWN_AFTER).await;
            self.read_ledger(at);
            self.view.second(&self.record, at, sight.stamp).map_err(DemoError::Output)?;
            if let Some(event) = event {
                self.view.event(event).map_err(DemoError::Output)?;
            }
            if self.plant.late() > LATE_MAX {
                return Err(DemoError::TooSlow(self.plant.late()));
            }
        }
        while !tenants.is_finished() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Outcomes that came later than their second was shown.
        (0..self.record.seconds.len()).for_each(|at| self.read_ledger(at));
        let late = self.plant.late().as_secs_f64();
        self.view.summary(&self.options, &self.record, late).map_err(DemoError::Output)?;
        let broken = self.record.verdicts().iter().any(|verdict| verdict.outcome == Kept::Broken);
        Ok(if broken && self.options.limits { Ending::Broken } else { Ending::Kept })
    }

    /// What happens to the plant when second `at` begins.
    fn step(&mut self, at: usize) -> Result<Option<&'static str>, DemoError> {
        if at == self.record.halved {
            self.plant.kill_half();
            return Ok(Some("half of the replicas died"));
        }
        if at == self.record.returned {
            self.plant.revive().map_err(DemoError::Plant)?;
            return Ok(Some("they came back"));
        }
        Ok(None)
    }

    fn read_ledger(&mut self, at: usize) {
        if let Some(second) = self.record.seconds.get_mut(at) {
            second.seen = self.ledger.second(at);
        }
    }

    async fn sleep_until(&self, at: Duration) {
        tokio::time::sleep((Instant::ZERO + at).since(self.clock.now())).await;
    }
}

/// Requests that fit into this process's descriptors: client, node (two) and replica hold one each.
fn in_flight_max(limits: &str) -> usize {
    let descriptors: Option<usize> = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next()?.parse().ok());
    match descriptors {
        Some(descriptors) => (descriptors.saturating_sub(200) / 4).clamp(50, IN_FLIGHT_MAX),
        None => IN_FLIGHT_MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_in_flight_fit_into_the_descriptors() {
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024                 524288               files\n";
        assert_eq!(in_flight_max(limits), 206);
        assert_eq!(in_flight_max("Max open files            unlimited  unlimited files"), IN_FLIGHT_MAX);
        assert_eq!(in_flight_max(""), IN_FLIGHT_MAX);
    }
}
