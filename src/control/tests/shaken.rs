//! The step as a whole, to the byte: a change of how it is computed may change nothing of what is
//! published, said and kept.

use super::*;

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
        (2_704_187_479, 2_716_814_285),
        "what is published, and what is said and kept of it"
    );
}
