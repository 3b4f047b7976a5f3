//! The same overloaded fleet in three servers' metrics: what is decided from each.
//!
//! Under the simulated clock: the plant's batches, the demo's pages read by the presets, the
//! daemon's controller and a node's limiter, each dialect in a loop of its own. Half of the fleet
//! dies and returns.
#![cfg(feature = "daemon")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a broken promise ends the test"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tidegate::control::{Controller, State};
use tidegate::demo::dialect::Dialect;
use tidegate::demo::page::{MODEL, Page};
use tidegate::enforce::limiter::Limiter;
use tidegate::enforce::{Request, Settlement, Ticket, Verdict};
use tidegate::observe::exposition::Format;
use tidegate::observe::select::Selectors;
use tidegate::observe::{Outcome, PoolRound, Reading, Round};
use tidegate::policy::load::load_bytes;
use tidegate::sim::Chance;
use tidegate::sim::batch::{Batch, Shape};
use tidegate::unit::{Dimension, Instant, PoolId, ReplicaId};
use tidegate::wire::UsageReport;

const REPLICAS: usize = 4;
const TIERS: [&str; 3] = ["enterprise", "starter", "free"];
/// Offered work over the whole fleet's capacity.
const OFFERED: [f64; 3] = [0.22, 0.50, 0.68];
/// Seconds of simulated time: half of the fleet is dead from the second to the third.
const PHASES: [usize; 3] = [60, 120, 180];
/// At the end of each phase decisions are compared, as means over this many seconds.
const COMPARED: usize = 30;
const SLICE: Duration = Duration::from_millis(5);
const TICK: u64 = 400;
const REPORT: u64 = 200;
/// How far a budget may lie from what vLLM's numbers make of the same fleet. SGLang tells its
/// output tokens every forty steps, llama.cpp as a slot is released.
const AGREE: [(Dialect, f64); 2] = [(Dialect::Sglang, 0.10), (Dialect::Llamacpp, 0.15)];

struct Replica {
    batch: Batch,
    page: Page,
    alive: bool,
}

struct Flight {
    ticket: Ticket,
    replica: usize,
    input: u32,
    output: u32,
}

/// One fleet, its controller and its node.
struct World {
    dialect: Dialect,
    replicas: Vec<Replica>,
    selectors: Selectors,
    controller: Controller,
    limiter: Limiter,
    flights: BTreeMap<u64, Flight>,
    chance: Chance,
    arrivals: [f64; 3],
    next_id: u64,
    reports: Vec<UsageReport>,
    decided: Vec<Decided>,
}

/// What was published at one tick, work a second.
#[derive(Clone, Copy, Debug)]
struct Decided {
    at: f64,
    budget: f64,
    tiers: [f64; 3],
}

fn policy(dialect: Dialect) -> String {
    format!(
        "product: test
pools:
  llm: {{preset: {dialect}, targets: [http://127.0.0.1:1], slo: 1s, output_token_cost: 4}}
models:
  {MODEL}: {{pool: llm}}
tiers:
  enterprise: {{priority: 1, weight: 4, guarantee: 600k tpm, ceiling: unlimited, key_limits: unlimited}}
  starter: {{priority: 2, weight: 2, guarantee: 150k tpm, ceiling: 1500k tpm, key_limits: unlimited}}
  free: {{priority: 3, weight: 1, guarantee: 30k tpm, ceiling: 1500k tpm, key_limits: unlimited}}
"
    )
}

fn replica(dialect: Dialect) -> Replica {
    Replica { batch: Batch::new(Shape::default()), page: Page::new(dialect).unwrap(), alive: true }
}

// === impl World ===

impl World {
    fn new(dialect: Dialect) -> World {
        let files = vec![("p.yaml".to_owned(), policy(dialect).into_bytes())];
        let policy = load_bytes(files).expect("a good policy").policy;
        let selectors = Selectors::new(&policy.pools[&PoolId::new("llm")].signals).unwrap();
        World {
            dialect,
            replicas: (0..REPLICAS).map(|_| replica(dialect)).collect(),
            selectors,
            controller: Controller::new(Arc::new(policy), State::default()),
            limiter: Limiter::new("n1".into(), 16),
            flights: BTreeMap::new(),
            chance: Chance::seeded(11),
            arrivals: [0.0; 3],
            next_id: 0,
            reports: Vec::new(),
            decided: Vec::new(),
        }
    }

    fn run(mut self) -> Vec<Decided> {
        let mut now = Instant::ZERO;
        let slices = PHASES[2] as u64 * 200;
        for slice in 1..=slices {
            now = now + SLICE;
            let second = slice as usize / 200;
            for at in 0..REPLICAS / 2 {
                let dead = (PHASES[0]..PHASES[1]).contains(&second);
                if dead && self.replicas[at].alive {
                    self.replicas[at].alive = false;
                    self.lose(now, at);
                } else if !dead && !self.replicas[at].alive {
                    self.replicas[at] = replica(self.dialect);
                }
            }
            (0..REPLICAS).for_each(|at| self.step(now, at));
            self.arrive(now);
            if slice % REPORT == 0 {
                self.reports.push(self.limiter.report(now, Instant::ZERO, 1));
            }
            if slice % TICK == 0 {
                self.tick(now);
            }
        }
        self.decided
    }

    fn lose(&mut self, now: Instant, at: usize) {
        let lost: Vec<u64> =
            self.flights.iter().filter(|(_, flight)| flight.replica == at).map(|(id, _)| *id).collect();
        for id in lost {
            let flight = self.flights.remove(&id).unwrap();
            self.limiter.settle(now, flight.ticket, Settlement::Died { output_seen: 0 });
        }
    }

    fn step(&mut self, now: Instant, at: usize) {
        let replica = &mut self.replicas[at];
        if !replica.alive || replica.batch.next_wake().is_none_or(|wake| wake > now) {
            return;
        }
        let delivered = replica.batch.step(now);
        replica.page.stepped(&delivered, &replica.batch);
        for token in delivered.tokens {
            if token.first {
                self.limiter.first_token(now, &mut self.flights.get_mut(&token.id).unwrap().ticket);
            }
            if token.last {
                replica.page.finished(token.id, "stop");
                let Flight { ticket, input, output, .. } = self.flights.remove(&token.id).unwrap();
                let (input_tokens, output_tokens) = (u64::from(input), u64::from(output));
                self.limiter.settle(
                    now,
                    ticket,
                    Settlement::Used { input_tokens, cached_tokens: 0, output_tokens, images: 0 },
                );
            }
        }
    }

    fn arrive(&mut self, now: Instant) {
        let capacity = REPLICAS as f64 * f64::from(Shape::default().rate);
        for (tier, name) in TIERS.into_iter().enumerate() {
            while self.arrivals[tier] <= now.seconds_since(Instant::ZERO) {
                let input = self.chance.size(200.0, 0.5, 20, 1000) as u32;
                let output = self.chance.size(60.0, 0.5, 5, 200) as u32;
                // The mean of what is drawn above: a log-normal's lies above its median.
                let cost = 1.13 * (200.0 + 4.0 * 60.0);
                self.arrivals[tier] += self.chance.wait(OFFERED[tier] * capacity / cost);
                let request = Request {
                    input_tokens: u64::from(input),
                    output_max: Some(u64::from(output)),
                    images: 1,
                    streamed: true,
                    ..Request::new(MODEL, name, [tier as u8; 32])
                };
                if let Verdict::Admitted(ticket) = self.limiter.admit(now, &request) {
                    self.submit(now, ticket, input, output);
                }
            }
        }
    }

    fn submit(&mut self, now: Instant, ticket: Ticket, input: u32, output: u32) {
        let load = |replica: &Replica| replica.batch.running() + replica.batch.waiting();
        let living = (0..REPLICAS).filter(|at| self.replicas[*at].alive);
        let at = living.min_by_key(|at| load(&self.replicas[*at])).unwrap();
        self.next_id += 1;
        let replica = &mut self.replicas[at];
        replica.batch.submit(now, self.next_id, input, output).unwrap();
        replica.page.submitted(self.next_id, input);
        self.flights.insert(self.next_id, Flight { ticket, replica: at, input, output });
    }

    fn tick(&mut self, now: Instant) {
        let read = |(at, replica): (usize, &Replica)| {
            let outcome = match replica.alive {
                true => self.selectors.apply(&replica.page.text(&replica.batch).unwrap(), Format::Text),
                false => Outcome::Down("connection refused".to_owned()),
            };
            Reading { replica: ReplicaId::new(format!("r{at}")), at: now, outcome }
        };
        let replicas = self.replicas.iter().enumerate().map(read).collect();
        let pool = PoolRound { replicas, ..PoolRound::default() };
        let usage = std::mem::take(&mut self.reports);
        let tick = self.controller.tick(now, &Round { pools: [(PoolId::new("llm"), pool)].into(), usage });
        let a_second = |tier: &str| {
            tick.table.row(MODEL, tier).unwrap().limits[&Dimension::TokensPerMinute].tier_limit.as_f64()
                / 60.0
        };
        self.decided.push(Decided {
            at: now.seconds_since(Instant::ZERO),
            budget: tick.pools[&PoolId::new("llm")].decision.budget,
            tiers: TIERS.map(a_second),
        });
        self.limiter.offer((*tick.table).clone(), now).unwrap();
    }
}

type Of = fn(&Decided) -> f64;

/// Mean over the last seconds of a phase.
fn mean(decided: &[Decided], end: usize, of: impl Fn(&Decided) -> f64) -> f64 {
    let window = (end - COMPARED) as f64..=end as f64;
    let values: Vec<f64> = decided.iter().filter(|one| window.contains(&one.at)).map(of).collect();
    values.iter().sum::<f64>() / values.len() as f64
}

/// The first tick after the loss from which on nothing above the half that is left is allowed.
fn followed(decided: &[Decided]) -> f64 {
    let half = 1.15 * REPLICAS as f64 / 2.0 * f64::from(Shape::default().rate);
    let found = decided.iter().find(|one| one.at > PHASES[0] as f64 && one.budget <= half);
    found.expect("the loss is followed").at - PHASES[0] as f64
}

#[test]
fn sglang_and_llamacpp_get_the_decisions_of_vllm_within_what_they_can_say() {
    let all: BTreeMap<Dialect, Vec<Decided>> =
        Dialect::ALL.into_iter().map(|dialect| (dialect, World::new(dialect).run())).collect();
    let truth = f64::from(Shape::default().rate) * REPLICAS as f64;
    for (dialect, decided) in &all {
        for (end, part) in PHASES.into_iter().zip([1.0, 0.5, 1.0]) {
            let budget = mean(decided, end, |one| one.budget);
            let tiers = [0, 1, 2].map(|tier| mean(decided, end, |one| one.tiers[tier]).round());
            println!("{dialect} {end} s: budget {:.3} of capacity, tiers {tiers:?}", budget / (part * truth));
        }
        println!("{dialect}: the loss is followed after {} s", followed(decided));
    }
    let vllm = &all[&Dialect::Vllm];
    for (dialect, agree) in AGREE {
        let decided = &all[&dialect];
        for end in PHASES {
            let of: [(&str, Of); 3] = [
                ("budget", |one| one.budget),
                ("starter's limit", |one| one.tiers[1]),
                ("free's limit", |one| one.tiers[2]),
            ];
            for (what, of) in of {
                let (mine, theirs) = (mean(decided, end, of), mean(vllm, end, of));
                // A small limit next to large ones takes what rounding leaves: as part of the whole.
                let off = (mine - theirs).abs() / mean(vllm, end, |one| one.budget);
                assert!(
                    off <= agree,
                    "{dialect}, {end} s: {what} {mine:.0}, from vLLM's numbers {theirs:.0}"
                );
            }
        }
        let late = followed(decided) - followed(vllm);
        assert!(late <= 4.0, "{dialect} follows a loss {late} s after vLLM");
    }
}
