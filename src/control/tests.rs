//! The whole step: stamps, versions, edits, restarts, shares.

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

/// A small fleet whose nodes and sources send what they may: rows in any order, twice, of models and
/// tiers that nobody has; processes that begin again; replicas that come, go and say nothing.
struct Shaken(u64);

impl Shaken {
    fn draw(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }

    fn policy() -> Arc<Policy> {
        let tiers = || {
            ["a", "b", "c"]
                .into_iter()
                .zip(1..)
                .map(|(tier, priority)| (tier, grant(priority, 6_000, Limit::Finite(900_000))))
        };
        let model = |at: usize| {
            let tiers = tiers().map(|(tier, grant)| (TierId::new(tier), grant)).collect();
            let mut model = ModelPolicy::new(PoolId::new(format!("pool-{}", at % 3)), tiers);
            model.size = (!at.is_multiple_of(4)).then_some(at as u64 % 5);
            (ModelId::new(format!("m-{at:02}")), model)
        };
        let one = policy("a", Limit::Unlimited);
        let pool = |at: usize| (PoolId::new(format!("pool-{at}")), one.pools[&PoolId::new("pool")].clone());
        Arc::new(Policy {
            pools: (0..3).map(pool).collect(),
            models: (0..24).map(model).collect(),
            ..(*one).clone()
        })
    }

    fn report(&mut self, before: &mut UsageReport) -> UsageReport {
        if self.draw(40) == 0 {
            before.instance += 1;
            before.uptime_ms = 0;
            before.rows.clear();
        }
        before.uptime_ms += 1_900 + self.draw(200);
        for _ in 0..self.draw(20) {
            let (model, tier) = (self.draw(26), ["a", "b", "c", "d"][self.draw(4) as usize]);
            before.rows.push(UsageRow {
                model: ModelId::new(format!("m-{model:02}")),
                tier: TierId::new(tier),
                offered: Work::default(),
                admitted: Work::default(),
                refused_limit: Work::default(),
                refused_capacity: Work::default(),
                refused_share: Work::default(),
                refused_tier: Work::default(),
            });
        }
        if self.draw(8) == 0 {
            // In order and each but once, as a node of ours sends them.
            before.rows.sort_by(|a, b| (&a.model, &a.tier).cmp(&(&b.model, &b.tier)));
            before.rows.dedup_by(|a, b| (&a.model, &a.tier) == (&b.model, &b.tier));
        }
        for at in 0..before.rows.len() {
            let work = self.draw(3) * self.draw(4_000);
            let row = &mut before.rows[at];
            let add = |to: &mut Work, work: u64| *to = to.plus(Work { requests: work / 50, work });
            add(&mut row.offered, work);
            add(&mut row.admitted, work / 2);
            add(&mut row.refused_limit, work / 4);
            add(&mut row.refused_tier, work / 5);
            add(&mut row.refused_share, work / 20);
            add(&mut row.refused_capacity, work / 4);
        }
        let pool = before.pools.entry(PoolId::new(format!("pool-{}", self.draw(4)))).or_default();
        pool.upstream_requests += 50;
        pool.upstream_errors += self.draw(3);
        before.clone()
    }

    fn replicas(&mut self, now: Instant, tick: u64) -> PoolRound {
        let mut replicas = Vec::new();
        for at in 0..6 {
            let at = if self.draw(12) == 0 { self.draw(9) } else { at };
            let outcome = match self.draw(20) {
                0 => Outcome::Silent("slow".to_owned()),
                1 => Outcome::Down("refused".to_owned()),
                _ => Outcome::Up(Signals {
                    running: Some(8.0),
                    waiting: Some(self.draw(16) as f64),
                    work_done: Some((4_000 * tick + self.draw(300)) as f64),
                    ..Signals::default()
                }),
            };
            let at_time = Instant(now.0.saturating_sub(self.draw(4) * 1_000_000_000));
            replicas.push(Reading { replica: ReplicaId::new(format!("r{at}")), at: at_time, outcome });
        }
        PoolRound { replicas, ..PoolRound::default() }
    }
}

#[test]
fn the_tables_of_a_shaken_fleet_are_those_of_the_first_writing_to_the_byte() {
    let mut shaken = Shaken(11);
    let mut controller = Controller::new(Shaken::policy(), State::default());
    let empty = |node: u64| UsageReport {
        node: NodeId::new(format!("n{node}")),
        rows: Vec::new(),
        ..Run::new(State::default()).report("n", 0)
    };
    let mut reports: Vec<UsageReport> = (0..5).map(empty).collect();
    let (mut sum, mut state, mut moved) = (0, 0, 0);
    for tick in 1..=300 {
        let now = Instant::ZERO + Duration::from_secs(2) * tick as u32;
        let mut usage = Vec::new();
        for report in &mut reports {
            let next = shaken.report(report);
            if shaken.draw(6) > 0 {
                usage.push(next);
            }
        }
        let pools =
            (0..3).map(|at| (PoolId::new(format!("pool-{at}")), shaken.replicas(now, tick))).collect();
        let tick = controller.tick(now, &Round { pools, usage });
        moved += u32::from(tick.changed);
        sum = crc32fast::hash(&[&u32::to_be_bytes(sum)[..], &tick.table.encode().unwrap()].concat());
        let said = [serde_json::to_vec(&tick).unwrap(), serde_json::to_vec(controller.state()).unwrap()];
        state = crc32fast::hash(&[&u32::to_be_bytes(state)[..], &said.concat()].concat());
    }
    assert!(moved > 200, "{moved}");
    assert_eq!(
        (sum, state),
        (2_463_672_114, 508_342_766),
        "what is published, and what is said and kept of it"
    );
}
