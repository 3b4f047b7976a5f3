//! The whole step: stamps, versions, edits, restarts, shares.

mod shaken;

use std::time::Duration;

use super::*;
use crate::observe::{Outcome, Reading, Signals};
use crate::policy::{Grant, ModelPolicy, OutputCost, SignalMap, SourcePolicy};
use crate::unit::{Dimension, Limit, NodeId, ReplicaId};
use crate::wire::{UsageReport, UsageRow, Work};

const TPM: Dimension = Dimension::TokensPerMinute;

fn grant(priority: u32, guarantee: u64, ceiling: Limit) -> Grant {
    let weight = f64::from(4 / priority);
    let key_limits = [(Dimension::RequestsPerMinute, Limit::Finite(600))].into();
    let tier_limits = [(Dimension::RequestsPerMinute, Limit::Finite(6000))].into();
    Grant {
        priority,
        weight,
        guarantee,
        safe: guarantee,
        ceiling,
        tier_limits,
        key_limits,
        ..Grant::default()
    }
}

fn policy(digest: &str, starter: Limit) -> Arc<Policy> {
    let tiers = [
        (TierId::new("enterprise"), grant(1, 60_000, Limit::Unlimited)),
        (TierId::new("starter"), grant(2, 6_000, starter)),
    ];
    let pool = PoolPolicy {
        product: "p".into(),
        unit: WorkUnit::Tokens,
        output_cost: OutputCost::Stated(1.0),
        slo: Duration::from_secs(1),
        source: SourcePolicy::targets(Vec::new()),
        signals: SignalMap::default(),
    };
    Arc::new(Policy {
        digest: digest.into(),
        interval: Duration::from_secs(2),
        pools: [(PoolId::new("pool"), pool)].into(),
        models: [(ModelId::new("m"), ModelPolicy::new(PoolId::new("pool"), tiers.into()))].into(),
        ..Policy::default()
    })
}

/// A controller under a constant load: two busy replicas of 2000 work a second each, two nodes.
struct Run {
    controller: Controller,
    tick: u64,
}

impl Run {
    fn new(state: State) -> Run {
        Run { controller: Controller::new(policy("a", Limit::Finite(240_000)), state), tick: 0 }
    }

    fn step(&mut self) -> Tick {
        self.tick += 1;
        self.at(Instant::ZERO + Duration::from_secs(2) * self.tick as u32)
    }

    fn at(&mut self, now: Instant) -> Tick {
        let replica = |name: &str| Reading {
            replica: ReplicaId::new(name),
            at: now,
            outcome: Outcome::Up(Signals {
                running: Some(8.0),
                waiting: Some(6.0),
                work_done: Some(4000.0 * self.tick as f64),
                ..Signals::default()
            }),
        };
        let pool = PoolRound { replicas: vec![replica("a"), replica("b")], ..PoolRound::default() };
        let usage = vec![self.report("n1", 3), self.report("n2", 1)];
        let round = Round { pools: [(PoolId::new("pool"), pool)].into(), usage };
        self.controller.tick(now, &round)
    }

    /// A tick on which nodes say what they said last, and nothing waits.
    fn idle(&mut self, last: &[UsageReport]) -> Tick {
        self.tick += 1;
        let now = Instant::ZERO + Duration::from_secs(2) * self.tick as u32;
        let replica = |name: &str| {
            let signals = Signals { running: Some(0.0), waiting: Some(0.0), ..Signals::default() };
            Reading { replica: ReplicaId::new(name), at: now, outcome: Outcome::Up(signals) }
        };
        let pool = PoolRound { replicas: vec![replica("a"), replica("b")], ..PoolRound::default() };
        let report = |last: &UsageReport| UsageReport { uptime_ms: 2000 * self.tick, ..last.clone() };
        let usage = last.iter().map(report).collect();
        self.controller.tick(now, &Round { pools: [(PoolId::new("pool"), pool)].into(), usage })
    }

    /// A node that is offered `part` thousand work a second of each tier.
    fn report(&self, node: &str, part: u64) -> UsageReport {
        let row = |tier: &str| {
            let work = Work { requests: 80 * part * self.tick, work: 2000 * part * self.tick };
            let refused = Work { requests: self.tick, work: 100 * self.tick };
            UsageRow {
                model: ModelId::new("m"),
                tier: TierId::new(tier),
                offered: work,
                admitted: work,
                refused_limit: refused,
                refused_capacity: Work::default(),
                refused_share: Work::default(),
                refused_tier: Work::default(),
            }
        };
        UsageReport {
            schema: 1,
            node: NodeId::new(node),
            instance: 1,
            uptime_ms: 2000 * self.tick,
            applied: None,
            nack: None,
            rows: vec![row("enterprise"), row("starter")],
            pools: BTreeMap::new(),
            providers: BTreeMap::new(),
        }
    }

    fn settle(&mut self) -> Tick {
        (0..60).map(|_| self.step()).last().unwrap()
    }
}

fn limit(tick: &Tick, tier: &str) -> u64 {
    tick.table.row("m", tier).unwrap().limits[&TPM].tier_limit.finite().unwrap()
}

#[test]
fn the_version_rises_only_when_an_entry_changes_and_every_tick_renews() {
    let mut run = Run::new(State::default());
    let settled = run.settle();
    let next = run.step();
    assert!(!next.changed && next.table.same_entries(&settled.table));
    assert_eq!(next.table.stamp.version, settled.table.stamp.version);
    assert_eq!(next.table.stamp.tick, settled.table.stamp.tick + 1);
    assert_eq!(next.table.stamp.epoch, 1);
    next.table.validate().unwrap();
}

#[test]
fn limits_follow_measured_capacity_and_guarantees_hold() {
    let settled = Run::new(State::default()).settle();
    let pool = &settled.pools[&PoolId::new("pool")];
    assert_eq!(pool.estimate.capacity, Some(4000.0));
    let budget = pool.decision.budget;
    assert!((0.97 * 4000.0..=1.05 * 4000.0).contains(&budget), "{budget}");
    // Both ask 4000 a second; enterprise weighs 4, starter 2.
    let (enterprise, starter) = (limit(&settled, "enterprise"), limit(&settled, "starter"));
    assert!((enterprise as f64 / starter as f64 - 2.0).abs() < 0.05, "{enterprise} and {starter}");
    assert!((enterprise + starter) as f64 <= 1.05 * 60.0 * 4000.0);
    assert!(enterprise >= 60_000);
}

#[test]
fn shares_follow_demand_and_leave_room_for_a_node_nobody_heard_of() {
    let first = Run::new(State::default()).step();
    let shares = |tick: &Tick| tick.table.pools[&PoolId::new("pool")].shares.clone();
    let settled = Run::new(State::default()).settle();
    let n1 = shares(&settled)[&NodeId::new("n1")];
    // Three quarters of the demand, a tenth of the share split evenly: 0.725 of 0.99.
    assert!(n1.abs_diff(717_000) <= 20_000, "{n1}");
    for tick in [first, settled] {
        let listed: u32 = shares(&tick).values().sum();
        assert!(listed <= 990_000, "{listed}");
    }
}

#[test]
fn an_edit_moves_a_limit_at_most_30_percent_an_interval_and_arrives() {
    let mut run = Run::new(State::default());
    let mut before = limit(&run.settle(), "starter");
    run.controller.set_policy(policy("b", Limit::Finite(20_000)));
    let mut steps = 0;
    let mut ceiling = 240_000;
    while before > 20_000 || ceiling > 20_000 {
        let tick = run.step();
        let now = limit(&tick, "starter");
        assert!(now as f64 >= 0.7 * before as f64 && now <= before, "{before} to {now}");
        let capped = tick.table.row("m", "starter").unwrap().limits[&TPM].ceiling.finite().unwrap();
        assert!(capped as f64 >= 0.7 * ceiling as f64 && capped >= now, "{ceiling} to {capped}");
        (before, ceiling, steps) = (now, capped, steps + 1);
        assert!(steps < 20, "the edit does not arrive");
    }
    let arrived = run.step();
    let entry = arrived.table.row("m", "starter").unwrap().limits[&TPM];
    assert_eq!((entry.tier_limit, entry.ceiling), (Limit::Finite(20_000), Limit::Finite(20_000)));
    assert_eq!(arrived.table.policy, "b");
}

#[test]
fn a_restart_with_state_goes_on_where_it_stopped() {
    let mut run = Run::new(State::default());
    let last = run.settle();
    let stored = serde_json::to_vec(run.controller.state()).unwrap();
    let state: State = serde_json::from_slice(&stored).unwrap();
    run.controller = Controller::new(policy("a", Limit::Finite(240_000)), state);
    let next = run.step();
    assert!(next.table.same_entries(&last.table), "nothing changed, so nothing may");
    assert_eq!(next.table.stamp.version, last.table.stamp.version);
    assert_eq!(next.table.stamp.tick, last.table.stamp.tick + 1);
}

#[test]
fn counters_that_ran_on_while_it_was_down_are_no_rate() {
    let mut run = Run::new(State::default());
    run.settle();
    let stored = serde_json::to_vec(run.controller.state()).unwrap();
    run.controller =
        Controller::new(policy("a", Limit::Finite(240_000)), serde_json::from_slice(&stored).unwrap());
    // The clock stood still for as long as a tick takes five times.
    let resumed = Instant::ZERO + Duration::from_secs(2) * run.tick as u32;
    run.tick += 5;
    let tick = run.at(resumed + Duration::from_secs(2));
    let pool = &tick.pools[&PoolId::new("pool")];
    assert_eq!((pool.estimate.delivered, pool.estimate.capacity), (None, Some(4000.0)));
}

#[test]
fn a_policy_edited_while_it_was_down_steers_too() {
    let mut run = Run::new(State::default());
    let before = limit(&run.settle(), "starter");
    let stored = serde_json::to_vec(run.controller.state()).unwrap();
    run.controller =
        Controller::new(policy("b", Limit::Finite(6_000)), serde_json::from_slice(&stored).unwrap());
    let after = limit(&run.step(), "starter");
    assert_eq!(after, (before as f64 * 0.7).ceil() as u64);
}

#[test]
fn with_the_table_alone_the_budget_goes_on_from_it() {
    let mut run = Run::new(State::default());
    let last = run.settle();
    let state = State { stamp: last.table.stamp, table: Some(Arc::clone(&last.table)), ..State::default() };
    run.controller = Controller::new(policy("a", Limit::Finite(240_000)), state);
    let next = run.step();
    let budget = |tick: &Tick| tick.table.pools[&PoolId::new("pool")].budget.as_f64();
    // Its capacity is unknown again: at most one step of slow start.
    let step = budget(&next) / budget(&last);
    assert!((0.99..=1.26).contains(&step), "{} to {}", budget(&last), budget(&next));
    assert_eq!(next.table.stamp.epoch, 1);
}

#[test]
fn reports_of_absurd_size_neither_crash_nor_steer_it() {
    let mut run = Run::new(State::default());
    let honest = run.settle();
    let mut liar = run.report("liar", 1);
    liar.rows[0].offered.work = u64::MAX;
    liar.rows[0].admitted.work = u64::MAX;
    liar.applied = Some(Stamp { epoch: 1, version: u64::MAX, tick: 1 });
    let pools =
        [(PoolId::new("pool"), crate::wire::PoolUsage { upstream_requests: u64::MAX, ..Default::default() })];
    liar.pools = pools.into();
    let mut second = liar.clone();
    second.node = NodeId::new("liar2");
    let now = Instant::ZERO + Duration::from_secs(2) * (run.tick as u32 + 1);
    let round = Round { usage: vec![liar, second], ..Round::default() };
    let tick = run.controller.tick(now, &round);
    tick.table.validate().unwrap();
    assert!(tick.table.stamp.version <= honest.table.stamp.version + 1);
}

#[test]
fn without_state_it_begins_above_what_nodes_report_however_late_they_do() {
    let mut run = Run::new(State::default());
    let first = run.step();
    assert_eq!(first.table.stamp.epoch, 1);
    let mut report = run.report("n3", 1);
    report.applied = Some(Stamp { epoch: 4, version: 90, tick: 400 });
    let round = Round { usage: vec![report], ..Round::default() };
    let above = run.controller.tick(Instant::ZERO + Duration::from_secs(4), &round);
    assert_eq!(above.table.stamp, Stamp { epoch: 5, version: 91, tick: 401 });
}

#[test]
fn an_absurd_epoch_in_a_report_is_not_believed() {
    let mut run = Run::new(State::default());
    let mut report = run.report("n3", 1);
    report.applied = Some(Stamp { epoch: u64::MAX, version: 1, tick: 1 });
    let round = Round { usage: vec![report], ..Round::default() };
    let tick = run.controller.tick(Instant::ZERO + Duration::from_secs(2), &round);
    assert_eq!(tick.table.stamp.epoch, 1);
}

#[test]
fn b01_b05_when_a_clock_began_changes_no_limit() {
    let tables = |began: Duration| {
        let mut run = Run::new(State::default());
        let mut tables = Vec::new();
        for tick in 1..=60 {
            run.tick = tick;
            let now = Instant::ZERO + began + Duration::from_secs(2) * tick as u32;
            tables.push(run.at(now).table.encode().unwrap());
        }
        tables
    };
    let (month, leap) = (Duration::from_secs(30 * 86_400), Duration::from_secs(1));
    let expected = tables(Duration::ZERO);
    for began in [Duration::from_secs(3600), month, month + leap] {
        assert!(tables(began) == expected, "a clock {began:?} ahead gives other tables");
    }
}

#[test]
fn b03_ten_minutes_of_pause_are_one_tick_on_which_nothing_rises() {
    let mut run = Run::new(State::default());
    let before = run.settle();
    let now = Instant::ZERO + Duration::from_secs(2) * run.tick as u32 + Duration::from_secs(600);
    // Counters ran on, nodes could not report: their shares are theirs still.
    run.tick += 300;
    let pool = PoolRound {
        replicas: ["a", "b"]
            .map(|name| Reading {
                replica: ReplicaId::new(name),
                at: now,
                outcome: Outcome::Up(Signals {
                    running: Some(8.0),
                    waiting: Some(0.0),
                    work_done: Some(4000.0 * run.tick as f64),
                    ..Signals::default()
                }),
            })
            .into(),
        ..PoolRound::default()
    };
    let round = Round { pools: [(PoolId::new("pool"), pool)].into(), usage: Vec::new() };
    let after = run.controller.tick(now, &round);
    assert_eq!(after.table.stamp.tick, before.table.stamp.tick + 1);
    let id = PoolId::new("pool");
    assert!(after.table.pools[&id].budget <= before.table.pools[&id].budget);
    assert!(after.pools[&id].decision.budget <= before.pools[&id].decision.budget);
    assert_eq!(after.table.pools[&id].shares, before.table.pools[&id].shares);
    assert_eq!(after.pools[&id].estimate.capacity, Some(4000.0));
}

#[test]
fn b05_a_second_that_comes_twice_is_a_tick_like_any_other() {
    let mut run = Run::new(State::default());
    let settled = run.settle();
    let now = Instant::ZERO + Duration::from_secs(2) * run.tick as u32;
    // 23:59:59, then the same second again, then one before it.
    for now in [now, now, Instant(now.0 - 1_000_000_000)] {
        let tick = run.at(now);
        tick.table.validate().unwrap();
        assert!(tick.table.stamp > settled.table.stamp);
        assert!(tick.table.same_entries(&settled.table), "{now:?}");
    }
}

#[test]
fn constant_limits_stand_in_the_table_as_the_policy_has_them() {
    let tick = Run::new(State::default()).step();
    let entry = tick.table.row("m", "starter").unwrap().limits[&Dimension::RequestsPerMinute];
    assert_eq!((entry.tier_limit, entry.key_limit), (Limit::Finite(6000), Limit::Finite(600)));
    assert_eq!((entry.safe, entry.ceiling), (Limit::Finite(6000), Limit::Finite(6000)));
}

#[test]
fn lower_priorities_leave_room_in_the_pools_caps() {
    let tick = Run::new(State::default()).settle();
    let yields = |tier: &str| tick.table.row("m", tier).unwrap().yields;
    assert_eq!(yields("enterprise").waiting, 0);
    assert_eq!(yields("starter").waiting, 520_000);
    assert!(yields("starter").in_flight < 500_000, "a full batch is not given up");
}

#[test]
fn a_pool_that_was_contended_counts_as_such_for_some_ticks_more() {
    let mut run = Run::new(State::default());
    run.settle();
    let contended = |tick: &Tick| {
        let pool = &tick.pools[&PoolId::new("pool")];
        (pool.level.is_some(), pool.contended)
    };
    let last = [run.report("n1", 3), run.report("n2", 1)];
    let calm = (0..10).map(|_| contended(&run.idle(&last))).find(|(level, _)| !level).unwrap();
    assert_eq!(calm, (false, true), "the first tick on which all demands fit");
    let later = (0..10).map(|_| contended(&run.idle(&last))).last().unwrap();
    assert_eq!(later, (false, false));
}

#[test]
fn a_guarantee_is_what_the_table_says_when_the_level_is_below_it() {
    let mut guaranteed = Policy::clone(&policy("a", Limit::Unlimited));
    let model = guaranteed.models.get_mut(&ModelId::new("m")).unwrap();
    // 2,500 a second of 4,000; by weight starter would get a third.
    model.tiers.insert(TierId::new("starter"), grant(2, 150_000, Limit::Unlimited));
    let mut run = Run { controller: Controller::new(Arc::new(guaranteed), State::default()), tick: 0 };
    assert_eq!(limit(&run.settle(), "starter"), 150_000);
}

#[test]
fn the_last_priority_leaves_more_room_than_the_second() {
    let mut three = Policy::clone(&policy("a", Limit::Unlimited));
    let model = three.models.get_mut(&ModelId::new("m")).unwrap();
    model.tiers.insert(TierId::new("free"), grant(3, 600, Limit::Unlimited));
    let mut run = Run { controller: Controller::new(Arc::new(three), State::default()), tick: 0 };
    let tick = run.settle();
    let waiting = |tier: &str| tick.table.row("m", tier).unwrap().yields.waiting;
    assert!(waiting("free") > waiting("starter") && waiting("starter") > 0, "{}", waiting("free"));
}
