//! What is believed of a pool, reading by reading.

use std::time::Duration;

use super::*;
use crate::observe::{Outcome, Reading, Signals};
use crate::policy::{OutputCost, SignalMap, SourcePolicy};
use crate::unit::{ModelId, NodeId, PoolId, ReplicaId, TierId, WorkUnit};
use crate::wire::{PoolUsage, Stamp, UsageReport, UsageRow, Work};

mod sources;

const INTERVAL: f64 = 2.0;

fn at(tick: u64) -> Instant {
    Instant::ZERO + Duration::from_secs(2) * tick as u32
}

fn policy(output_cost: OutputCost) -> PoolPolicy {
    PoolPolicy {
        product: "p".into(),
        unit: WorkUnit::Tokens,
        output_cost,
        slo: Duration::from_secs(1),
        source: SourcePolicy::targets(Vec::new()),
        signals: SignalMap::default(),
    }
}

fn up(name: &str, tick: u64, input: f64, output: f64, waiting: f64) -> Reading {
    let signals = Signals {
        running: Some(8.0),
        waiting: Some(waiting),
        work_done: Some(input),
        work_done_output: Some(output),
        ..Signals::default()
    };
    Reading { replica: ReplicaId::new(name), at: at(tick), outcome: Outcome::Up(signals) }
}

fn failed(name: &str, tick: u64, outcome: Outcome) -> Reading {
    Reading { replica: ReplicaId::new(name), at: at(tick), outcome }
}

fn down(name: &str, tick: u64) -> Reading {
    failed(name, tick, Outcome::Down("connection refused".into()))
}

fn silent(name: &str, tick: u64) -> Reading {
    failed(name, tick, Outcome::Silent("timeout".into()))
}

/// A pool that is told readings tick by tick.
#[derive(Default)]
struct Told {
    pool: Pool,
    tick: u64,
    /// Nodes were answered meanwhile.
    served: bool,
}

impl Told {
    fn witness(&self, errors: bool) -> Witness {
        Witness { errors, served: self.served }
    }

    fn round(&mut self, errors: bool, readings: impl Fn(u64) -> Vec<Reading>) -> Estimate {
        self.tick += 1;
        let round = PoolRound { replicas: readings(self.tick), ..PoolRound::default() };
        self.pool.update(
            at(self.tick),
            INTERVAL,
            &policy(OutputCost::Stated(4.0)),
            &round,
            self.witness(errors),
        )
    }

    /// Replicas `0..count`, each busy at 500 input and 100 output tokens a second.
    fn busy(&mut self, count: usize) -> Estimate {
        self.round(false, |tick| busy(count, tick))
    }
}

fn busy(count: usize, tick: u64) -> Vec<Reading> {
    let replica = |name: usize| up(&format!("r{name}"), tick, 1000.0 * tick as f64, 200.0 * tick as f64, 5.0);
    (0..count).map(replica).collect()
}

fn names(count: usize, tick: u64, reading: fn(&str, u64) -> Reading) -> Vec<Reading> {
    (0..count).map(|name| reading(&format!("r{name}"), tick)).collect()
}

#[test]
fn capacity_is_what_busy_replicas_deliver() {
    let mut told = Told::default();
    let first = told.busy(4);
    assert_eq!((first.ready, first.capacity), (4.0, None), "one reading shows no rate");
    for _ in 0..3 {
        told.busy(4);
    }
    let estimate = told.busy(4);
    assert_eq!(estimate.per_replica, Some(500.0 + 4.0 * 100.0));
    assert_eq!((estimate.capacity, estimate.delivered), (Some(3600.0), Some(3600.0)));
    assert!(estimate.backlogged);
    assert_eq!(estimate.running_saturated, Some(8.0));
}

#[test]
fn an_idle_pool_teaches_nothing_unless_it_delivers_more() {
    let mut told = Told::default();
    for _ in 0..5 {
        told.busy(2);
    }
    let idle = |rate: f64| {
        move |tick: u64| {
            let done = 1000.0 * 5.0 + rate * INTERVAL * (tick - 5) as f64;
            (0..2).map(|name| up(&format!("r{name}"), tick, done, 1000.0, 0.0)).collect::<Vec<_>>()
        }
    };
    for _ in 0..5 {
        let estimate = told.round(false, idle(10.0));
        assert_eq!(estimate.per_replica, Some(900.0), "the samples of an idle pool cannot lower it");
    }
    let tick = told.tick;
    let fast = move |now: u64| {
        let done =
            1000.0 * 5.0 + 10.0 * INTERVAL * (tick - 5) as f64 + 2000.0 * INTERVAL * (now - tick) as f64;
        (0..2).map(|name| up(&format!("r{name}"), now, done, 1000.0, 0.0)).collect::<Vec<_>>()
    };
    let estimate = told.round(false, fast);
    assert!(estimate.per_replica.is_some_and(|rate| rate > 950.0), "{:?}", estimate.per_replica);
}

/// Each of some replicas: what it has done so far, and how many requests it runs.
fn doing(count: usize, tick: u64, input: f64, running: f64) -> Vec<Reading> {
    let replica = |name: usize| {
        let mut reading = up(&format!("r{name}"), tick, input, 200.0 * tick as f64, 5.0);
        if let Outcome::Up(signals) = &mut reading.outcome {
            signals.running = Some(running);
        }
        reading
    };
    (0..count).map(replica).collect()
}

#[test]
fn between_two_batches_a_replica_says_little_of_what_it_can_do() {
    let mut told = Told::default();
    for _ in 0..5 {
        told.busy(2);
    }
    // A quarter of the batch, and half of the work.
    let estimate = told.round(false, |tick| doing(2, tick, 1000.0 * 5.0, 2.0));
    let known = estimate.per_replica.unwrap();
    assert!((800.0..900.0).contains(&known), "{known} was 900");
}

#[test]
fn while_the_fleet_changes_its_rates_teach_nothing() {
    let mut told = Told::default();
    for _ in 0..5 {
        told.busy(4);
    }
    // One is gone; what the others did meanwhile was not done by three.
    for (since, known) in [(1.0, 900.0), (2.0, 900.0)] {
        let estimate = told.round(true, |tick| {
            let mut readings = doing(3, tick, 1000.0 * 5.0 + 4000.0 * since, 8.0);
            readings.push(down("r3", tick));
            readings
        });
        assert_eq!((estimate.ready, estimate.per_replica), (3.0, Some(known)));
    }
}

#[test]
fn a05_a_counter_that_was_reset_shows_no_rate() {
    let mut told = Told::default();
    for _ in 0..4 {
        told.busy(1);
    }
    let reset = told.round(false, |tick| vec![up("r0", tick, 3.0, 1.0, 5.0)]);
    assert_eq!((reset.delivered, reset.per_replica), (None, Some(900.0)));
}

#[test]
fn a07_one_lying_replica_of_three_moves_nothing() {
    let mut told = Told::default();
    for _ in 0..5 {
        told.busy(3);
    }
    for _ in 0..5 {
        let estimate = told.round(false, |tick| {
            let mut readings = busy(3, tick);
            readings[0] = up("r0", tick, 1e9 * tick as f64, 200.0 * tick as f64, 5.0);
            readings
        });
        assert_eq!(estimate.per_replica, Some(900.0));
    }
}

#[test]
fn half_a_pool_gone_counts_at_once_with_two_signs_and_in_steps_with_one() {
    let half = |tick: u64| {
        let mut readings = busy(4, tick);
        readings[0] = down("r0", tick);
        readings[1] = down("r1", tick);
        readings
    };
    for (errors, steps) in [(true, vec![2.0, 2.0]), (false, vec![2.8, 2.0])] {
        let mut told = Told::default();
        for _ in 0..3 {
            told.busy(4);
        }
        let shown: Vec<f64> = (0..2).map(|_| told.round(errors, half).ready).collect();
        let close = shown.iter().zip(&steps).all(|(a, b)| (a - b).abs() < 1e-9);
        assert!(close, "errors {errors}: {shown:?}, expected {steps:?}");
    }
}

#[test]
fn a12_everybody_refusing_without_a_failed_request_is_no_loss() {
    let mut told = Told::default();
    for _ in 0..3 {
        told.busy(4);
    }
    let estimate = told.round(false, |tick| names(4, tick, down));
    assert_eq!((estimate.ready, estimate.freshness), (4.0, Freshness::Fresh));
    let lost = told.round(true, |tick| names(4, tick, down));
    assert_eq!((lost.ready, lost.freshness), (0.0, Freshness::Fresh), "with failed requests it is");
}

#[test]
fn a_replica_that_returns_counts_from_its_second_scrape() {
    let mut told = Told::default();
    for _ in 0..3 {
        told.busy(2);
    }
    told.round(true, |tick| vec![busy(2, tick).remove(0), down("r1", tick)]);
    assert_eq!(told.busy(2).ready, 1.0);
    assert_eq!(told.busy(2).ready, 2.0);
}

#[test]
fn a_replica_that_a_well_source_names_no_more_is_gone_after_the_hold() {
    let mut told = Told::default();
    for _ in 0..3 {
        told.busy(4);
    }
    let ready: Vec<f64> = (0..7).map(|_| told.round(true, |tick| busy(2, tick)).ready).collect();
    assert_eq!((ready[0], *ready.last().unwrap()), (4.0, 2.0), "{ready:?}");
}

#[test]
fn a_page_without_running_says_nothing_of_a_full_batch() {
    let mut told = Told::default();
    for _ in 0..5 {
        let estimate = told.round(false, |tick| {
            let mut readings = busy(2, tick);
            for reading in &mut readings {
                if let Outcome::Up(signals) = &mut reading.outcome {
                    signals.running = None;
                }
            }
            readings
        });
        assert_eq!(estimate.running_saturated, None);
    }
}

#[test]
fn a01_silence_is_used_then_held_then_stale_and_never_a_loss_at_once() {
    let mut told = Told::default();
    for _ in 0..3 {
        told.busy(4);
    }
    let ladder: Vec<(Freshness, f64)> = (0..6)
        .map(|_| {
            let estimate = told.round(false, |tick| names(4, tick, silent));
            (estimate.freshness, estimate.ready)
        })
        .collect();
    use Freshness::{Fresh, Held, Stale};
    assert_eq!(ladder[..5], [(Fresh, 4.0), (Fresh, 4.0), (Held, 4.0), (Held, 4.0), (Held, 4.0)]);
    assert_eq!(ladder[5].0, Stale);
    assert!(ladder[5].1 >= 2.0, "the scraper may be what died");
}

#[test]
fn the_cost_of_an_output_token_is_learned_from_a_mix_that_varies() {
    let mut pool = Pool::default();
    let (mut input, mut output) = (0.0, 0.0);
    for tick in 1..200u64 {
        // One busy replica-second is 2000 input tokens or 250 output tokens: an output costs 8.
        let part = 0.2 + 0.6 * ((tick % 7) as f64 / 6.0);
        input += INTERVAL * 2000.0 * part;
        output += INTERVAL * 250.0 * (1.0 - part);
        let round = PoolRound { replicas: vec![up("r0", tick, input, output, 5.0)], ..PoolRound::default() };
        pool.update(at(tick), INTERVAL, &policy(OutputCost::Learned), &round, Witness::default());
    }
    let learned = pool.capacity.output_cost(OutputCost::Learned);
    assert!((7.0..9.0).contains(&learned), "{learned}");
}

fn report(uptime: u64, instance: u64, offered: u64, errors: u64) -> UsageReport {
    let work = Work { requests: offered / 100, work: offered };
    UsageReport {
        schema: 1,
        node: NodeId::new("n"),
        instance,
        uptime_ms: uptime * 1000,
        applied: Some(Stamp { epoch: 1, version: 2, tick: 3 }),
        nack: None,
        rows: vec![UsageRow {
            model: ModelId::new("m"),
            tier: TierId::new("t"),
            offered: work,
            admitted: work,
            refused_limit: Work::default(),
            refused_capacity: Work::default(),
            refused_share: Work::default(),
            refused_tier: Work::default(),
        }],
        pools: [(
            PoolId::new("p"),
            PoolUsage { upstream_requests: offered / 100, upstream_errors: errors, ..PoolUsage::default() },
        )]
        .into(),
        providers: Default::default(),
    }
}

fn hear(nodes: &mut Nodes, tick: u64, reports: &[UsageReport]) -> (Demand, PoolDemand) {
    nodes.update(at(tick), INTERVAL, reports, |_| Some(PoolId::new("p")));
    let row = nodes.rows(at(tick), INTERVAL, &[(&ModelId::new("m"), &TierId::new("t"))]).remove(0);
    let id = PoolId::new("p");
    let pool = nodes.pools(at(tick), INTERVAL, [(&id, [&row].into_iter())].into_iter()).remove(0);
    (row, pool)
}

#[test]
fn demand_is_the_difference_of_two_reports_on_the_nodes_own_clock() {
    let mut nodes = Nodes::default();
    hear(&mut nodes, 1, &[report(2, 7, 2000, 0)]);
    // Two reports in one interval: the last one says it all, over the two seconds between.
    let (row, pool) = hear(&mut nodes, 2, &[report(3, 7, 5000, 0), report(4, 7, 8000, 0)]);
    assert_eq!(row.admitted.work, 3000.0);
    assert_eq!(pool.nodes.len(), 1);
    let (again, _) = hear(&mut nodes, 3, &[report(4, 7, 8000, 0)]);
    assert_eq!(again.admitted.work, 3000.0, "a replayed report says nothing new");
    let (restarted, _) = hear(&mut nodes, 4, &[report(1, 8, 500, 0)]);
    assert_eq!(restarted.admitted.work, 500.0, "a new process counts from zero");
}

#[test]
fn what_is_offered_is_smoothed_so_that_one_interval_moves_no_tier() {
    let mut nodes = Nodes::default();
    let mut offered = 0;
    for tick in 1..=20 {
        offered += 2000;
        hear(&mut nodes, tick, &[report(2 * tick, 7, offered, 0)]);
    }
    let (row, pool) = hear(&mut nodes, 21, &[report(42, 7, offered + 20_000, 0)]);
    assert!((3000.0..6000.0).contains(&row.offered), "{} of 1,000 and once 10,000", row.offered);
    assert!((3000.0..6000.0).contains(&pool.nodes[0].offered), "{}", pool.nodes[0].offered);
}

#[test]
fn upstream_errors_are_a_sign_only_when_significant() {
    for (errors, significant) in [(0, false), (1, false), (2, true), (20, true)] {
        let mut nodes = Nodes::default();
        hear(&mut nodes, 1, &[report(2, 7, 0, 0)]);
        let (_, pool) = hear(&mut nodes, 2, &[report(4, 7, 1000, errors)]);
        assert_eq!(pool.errors_significant, significant, "{errors} errors of 10");
    }
}

#[test]
fn a_silent_node_is_remembered_for_its_share_and_then_forgotten() {
    let mut nodes = Nodes::default();
    hear(&mut nodes, 1, &[report(2, 7, 2000, 0)]);
    let (_, pool) = (2..=8).map(|tick| hear(&mut nodes, tick, &[])).last().unwrap();
    assert!(pool.nodes.len() == 1 && pool.nodes[0].silent);
    assert_eq!(nodes.highest_applied(), Some(Stamp { epoch: 1, version: 2, tick: 3 }));
    let (_, pool) = (9..=20).map(|tick| hear(&mut nodes, tick, &[])).last().unwrap();
    assert!(pool.nodes.is_empty());
}
