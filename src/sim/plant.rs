//! Replicas under the simulated clock: continuous batches behind the metrics a scrape would show.

use std::time::Duration;

use crate::observe::{PoolRound, Signals};
use crate::sim::batch::{Batch, Shape, Token};
use crate::sim::page::{Page, Untrue};
use crate::sim::scenario::{OUTPUT_COST, Scenario};
use crate::unit::{Instant, ReplicaId};

#[derive(Debug)]
pub struct Plant {
    replicas: Vec<Replica>,
}

#[derive(Debug)]
struct Replica {
    id: ReplicaId,
    batch: Batch,
    alive: bool,
    page: Page,
    prompt_tokens: u64,
    output_tokens: u64,
}

// === impl Plant ===

impl Plant {
    pub fn new(scenario: &Scenario) -> Plant {
        let replica = |at: usize| Replica {
            id: ReplicaId::new(format!("replica-{at}")),
            batch: Batch::new(shape(scenario, 1.0)),
            alive: true,
            page: Page::default(),
            prompt_tokens: 0,
            output_tokens: 0,
        };
        Plant { replicas: (0..scenario.replicas).map(replica).collect() }
    }

    pub fn alive(&self) -> usize {
        self.replicas.iter().filter(|replica| replica.alive).count()
    }

    /// The living replica with the fewest requests; none when all are dead.
    pub fn least_loaded(&self) -> Option<usize> {
        let load = |replica: &Replica| replica.batch.running() + replica.batch.waiting();
        let living = self.replicas.iter().enumerate().filter(|(_, replica)| replica.alive);
        living.min_by_key(|(_, replica)| load(replica)).map(|(at, _)| at)
    }

    pub fn submit(&mut self, now: Instant, at: usize, id: u64, prompt: u64, output: u64) -> bool {
        let small = |tokens: u64| u32::try_from(tokens).unwrap_or(u32::MAX);
        self.replicas.get_mut(at).is_some_and(|replica| {
            replica.alive && replica.batch.submit(now, id, small(prompt), small(output)).is_ok()
        })
    }

    pub fn abort(&mut self, at: usize, id: u64) {
        if let Some(replica) = self.replicas.get_mut(at) {
            replica.batch.abort(id);
        }
    }

    /// When the next step of any replica ends.
    pub fn next_wake(&self) -> Option<Instant> {
        self.replicas.iter().filter_map(|replica| replica.batch.next_wake()).min()
    }

    pub fn step(&mut self, now: Instant) -> Vec<Token> {
        let mut tokens = Vec::new();
        for replica in &mut self.replicas {
            let delivered = replica.batch.step(now);
            replica.prompt_tokens += delivered.prompt_tokens;
            replica.output_tokens += delivered.output_tokens;
            tokens.extend(delivered.tokens);
        }
        tokens
    }

    /// A process that dies takes its sequences with it and starts its counters anew.
    pub fn die(&mut self, at: usize, scenario: &Scenario) {
        if let Some(replica) = self.replicas.get_mut(at) {
            replica.alive = false;
            replica.batch = Batch::new(shape(scenario, 1.0));
            (replica.prompt_tokens, replica.output_tokens) = (0, 0);
            replica.page.restarted();
        }
    }

    pub fn revive(&mut self, at: usize) {
        if let Some(replica) = self.replicas.get_mut(at) {
            replica.alive = true;
        }
    }

    /// From now on its page shows this instead of the truth.
    pub fn show(&mut self, at: usize, untrue: Option<Untrue>) {
        if let Some(replica) = self.replicas.get_mut(at) {
            replica.page.set(untrue);
        }
    }

    pub fn reset_counters(&mut self, at: usize) {
        if let Some(replica) = self.replicas.get_mut(at) {
            let truth = replica.signals();
            replica.page.reset_counters(&truth);
        }
    }

    /// What each page shows instead of the truth.
    pub fn untrue(&self) -> Vec<Option<Untrue>> {
        self.replicas.iter().map(|replica| replica.page.untrue()).collect()
    }

    pub fn slow(&mut self, at: usize, part: f64, scenario: &Scenario) {
        if let Some(replica) = self.replicas.get_mut(at) {
            replica.batch.reshape(shape(scenario, part));
        }
    }

    pub fn count(&self) -> usize {
        self.replicas.len()
    }

    pub fn queued(&self) -> usize {
        self.replicas.iter().map(|replica| replica.batch.waiting()).sum()
    }

    pub fn in_service(&self) -> usize {
        self.replicas.iter().map(|replica| replica.batch.waiting() + replica.batch.running()).sum()
    }

    /// What a scrape of every replica shows.
    pub fn scrape(&mut self, now: Instant) -> PoolRound {
        let reading = |replica: &mut Replica| {
            let truth = replica.alive.then(|| replica.signals());
            replica.page.show(now, &replica.id, truth)
        };
        PoolRound { replicas: self.replicas.iter_mut().map(reading).collect(), ..PoolRound::default() }
    }
}

// === impl Replica ===

impl Replica {
    fn signals(&self) -> Signals {
        Signals {
            running: Some(self.batch.running() as f64),
            waiting: Some(self.batch.waiting() as f64),
            work_done: Some(self.prompt_tokens as f64),
            work_done_output: Some(self.output_tokens as f64),
            latency: None,
            errors: None,
        }
    }
}

fn shape(scenario: &Scenario, part: f64) -> Shape {
    Shape {
        rate: (scenario.replica_rate * part) as u32,
        slots: scenario.slots,
        output_cost: OUTPUT_COST as u32,
        // A step of a real engine lasts about a tenth of a second at most.
        prefill_per_step: (scenario.replica_rate / 10.0) as u32,
        step_min: Duration::from_millis(5),
        queue_max: 10_000,
    }
}
