//! What one turn of the control loop costs: 1,000 models, 10 tiers, 4 dimensions, 10,000 replicas.
//!
//! `cargo bench --bench tick`. Sixteen nodes report, each on the 250 models it serves: as many rows
//! as one report may hold. All demands move from tick to tick and every fourth pool is overloaded,
//! so limits move too. Times are those of the processor, so that a busy machine counts as a quiet one.
//! Exits with 1 where the median of a shape is above 10 ms.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::indexing_slicing, reason = "a benchmark")]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use tidegate::control::{Controller, State};
use tidegate::observe::{Outcome, PoolRound, Reading, Round, Signals};
use tidegate::policy::{Grant, ModelPolicy, OutputCost, Policy, PoolPolicy, SignalMap, SourcePolicy};
use tidegate::unit::{Dimension, Instant, Limit, ModelId, NodeId, PoolId, ReplicaId, TierId, WorkUnit};
use tidegate::wire::{PoolUsage, UsageReport, UsageRow, Work};

const MODELS: usize = 1_000;
const TIERS: usize = 10;
const REPLICAS: usize = 10_000;
const NODES: usize = 16;
/// Of the models, what one node serves.
const SERVED: usize = 250;
const INTERVAL: Duration = Duration::from_secs(2);
const WARM: u64 = 10;
const TICKS: u64 = 60;
const MEDIAN_MAX: Duration = Duration::from_millis(10);
/// What one busy replica does in a second.
const REPLICA_WORK: u64 = 20_000;

/// A fleet that goes on, tick by tick.
struct Fleet {
    pools: usize,
    tick: u64,
    reports: Vec<UsageReport>,
    readings: Vec<Vec<Reading>>,
    seed: u64,
}

/// Time of the processor that this thread has had.
fn spent() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn pool_id(at: usize) -> PoolId {
    PoolId::new(format!("pool-{at:04}"))
}

fn model_id(at: usize) -> ModelId {
    ModelId::new(format!("vendor/model-{at:04}"))
}

fn tier_id(at: usize) -> TierId {
    TierId::new(format!("tier-{at}"))
}

fn policy(pools: usize) -> Policy {
    let limits = |scale: u64| {
        BTreeMap::from([
            (Dimension::RequestsPerMinute, Limit::Finite(600 * scale)),
            (Dimension::InputTokensPerMinute, Limit::Finite(400_000 * scale)),
            (Dimension::Concurrency, Limit::Finite(20 * scale)),
        ])
    };
    let grant = |at: usize| Grant {
        priority: 1 + at as u32 / 2,
        weight: (TIERS - at) as f64,
        guarantee: 60_000,
        safe: 60_000,
        ceiling: Limit::Finite(100_000_000),
        tier_limits: limits(10),
        key_limits: limits(1),
        ..Grant::default()
    };
    let pool = || PoolPolicy {
        product: "chat".to_owned(),
        unit: WorkUnit::Tokens,
        output_cost: OutputCost::Stated(4.0),
        slo: Duration::from_secs(2),
        source: SourcePolicy::targets(Vec::new()),
        signals: SignalMap::default(),
    };
    let tiers = || (0..TIERS).map(|at| (tier_id(at), grant(at))).collect();
    Policy {
        digest: "0".to_owned(),
        interval: INTERVAL,
        pools: (0..pools).map(|at| (pool_id(at), pool())).collect(),
        models: (0..MODELS)
            .map(|at| (model_id(at), ModelPolicy::new(pool_id(at % pools), tiers())))
            .collect(),
        ..Policy::default()
    }
}

impl Fleet {
    fn new(pools: usize) -> Fleet {
        let row = |model: usize, tier: usize| UsageRow {
            model: model_id(model),
            tier: tier_id(tier),
            offered: Work::default(),
            admitted: Work::default(),
            refused_limit: Work::default(),
            refused_capacity: Work::default(),
            refused_share: Work::default(),
            refused_tier: Work::default(),
        };
        let served = |node: usize| {
            (0..MODELS).filter(move |model| model % (MODELS / SERVED) == node % (MODELS / SERVED))
        };
        let report = |node: usize| UsageReport {
            schema: 1,
            node: NodeId::new(format!("node-{node:02}")),
            instance: 1,
            uptime_ms: 0,
            applied: None,
            nack: None,
            rows: served(node).flat_map(|model| (0..TIERS).map(move |tier| row(model, tier))).collect(),
            pools: served(node).map(|model| (pool_id(model % pools), PoolUsage::default())).collect(),
            providers: BTreeMap::new(),
        };
        let readings = |pool: usize| {
            let replica = |at: usize| Reading {
                replica: ReplicaId::new(format!("10.{}.{}.{}:8000", pool / 250, pool % 250, at)),
                at: Instant::ZERO,
                outcome: Outcome::Up(Signals::default()),
            };
            (0..REPLICAS / pools).map(replica).collect()
        };
        let readings = (0..pools).map(readings).collect();
        Fleet { pools, tick: 0, reports: (0..NODES).map(report).collect(), readings, seed: 7 }
    }

    fn draw(&mut self) -> f64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 11) as f64 / (1u64 << 53) as f64
    }

    /// What arrives before the next tick. Every string is a new one, as from a socket.
    fn round(&mut self) -> (Instant, Vec<u8>, Round) {
        self.tick += 1;
        let now = Instant::ZERO + INTERVAL * self.tick as u32;
        // Work of one row on one node in one interval, at a load of one.
        let even = (REPLICAS as u64 * REPLICA_WORK * 2) as f64 / (NODES * SERVED * TIERS) as f64;
        let mut reports = std::mem::take(&mut self.reports);
        for report in &mut reports {
            report.uptime_ms = 2_000 * self.tick;
            for at in 0..report.rows.len() {
                let load = if (at / TIERS).is_multiple_of(4) { 1.4 } else { 0.7 };
                let offered = (even * load * (0.6 + 0.8 * self.draw())) as u64;
                let row = &mut report.rows[at];
                let add = |to: &mut Work, work: u64| *to = to.plus(Work { requests: work / 900 + 1, work });
                add(&mut row.offered, offered);
                add(&mut row.admitted, offered.min(even as u64));
                if offered > even as u64 {
                    add(&mut row.refused_limit, offered - even as u64);
                    add(&mut row.refused_tier, offered - even as u64);
                }
            }
            for usage in report.pools.values_mut() {
                usage.upstream_requests += 500;
            }
        }
        let usage: Vec<UsageReport> = reports
            .iter()
            .map(|report| UsageReport::decode(&serde_json::to_vec(report).unwrap()).unwrap())
            .collect();
        let largest = serde_json::to_vec(&reports[0]).unwrap();
        self.reports = reports;
        let mut pools = BTreeMap::new();
        for pool in 0..self.pools {
            let busy = pool % 4 == 0;
            let mut readings = std::mem::take(&mut self.readings[pool]);
            for reading in &mut readings {
                let work = self.tick as f64 * 2.0 * REPLICA_WORK as f64 * (0.99 + 0.01 * self.draw());
                reading.replica = ReplicaId::new(reading.replica.as_str());
                reading.at = now;
                reading.outcome = Outcome::Up(Signals {
                    running: Some(24.0),
                    waiting: Some(if busy { 8.0 + (4.0 * self.draw()).floor() } else { 0.0 }),
                    work_done: Some((work / 2.0).floor()),
                    work_done_output: Some((work / 8.0).floor()),
                    ..Signals::default()
                });
            }
            let round = PoolRound { replicas: readings.clone(), ..PoolRound::default() };
            self.readings[pool] = readings;
            pools.insert(pool_id(pool), round);
        }
        (now, largest, Round { pools, usage })
    }
}

fn shown(mut times: Vec<Duration>) -> (Duration, String) {
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    (
        at(0.5),
        format!("median {:>7.2?}, p10 {:.2?}, p90 {:.2?}, most {:.2?}", at(0.5), at(0.1), at(0.9), at(1.0)),
    )
}

fn measure(pools: usize) -> Duration {
    let mut fleet = Fleet::new(pools);
    let mut controller = Controller::new(Arc::new(policy(pools)), State::default());
    let (mut ticks, mut validations, mut encodings) = (Vec::new(), Vec::new(), Vec::new());
    let (mut rows, mut bytes, mut report_bytes, mut moved) = (0, 0, 0, 0);
    for turn in 0..WARM + TICKS {
        let (now, report, round) = fleet.round();
        let before = controller.state().table.clone();
        let begun = spent();
        let tick = controller.tick(now, &round);
        let took = spent() - begun;
        let begun = spent();
        tick.table.validate().unwrap();
        let validated = spent() - begun;
        let begun = spent();
        let encoded = tick.table.encode().unwrap();
        let written = spent() - begun;
        if turn < WARM {
            continue;
        }
        ticks.push(took);
        validations.push(validated);
        encodings.push(written);
        (rows, bytes, report_bytes) = (tick.table.rows.len(), encoded.len(), report.len());
        let old = before.unwrap();
        moved += old.rows.iter().zip(&tick.table.rows).filter(|(old, new)| old != new).count();
    }
    let (median, tick) = shown(ticks);
    println!(
        "{MODELS} models, {TIERS} tiers, 4 dimensions, {REPLICAS} replicas in {pools} pools, {NODES} nodes: \
         {rows} rows, {} move in a tick; a report has {} KB, the table {} KB",
        moved / TICKS as usize,
        report_bytes / 1_000,
        bytes / 1_000
    );
    println!("  tick, sealed     {tick}");
    println!("  table validated  {}", shown(validations).1);
    println!("  table encoded    {}", shown(encodings).1);
    median
}

fn main() -> ExitCode {
    let mut failed = false;
    for pools in [10, 1_000] {
        let median = measure(pools);
        if median > MEDIAN_MAX {
            println!("above {MEDIAN_MAX:?}");
            failed = true;
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
