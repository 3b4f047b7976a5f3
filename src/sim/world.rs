//! The world: an event queue, its own `now`, and everything that happens in it.

mod alone;
mod control;
mod faults;
mod node;
mod requests;

pub use alone::{Survived, alone};

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher;
use std::sync::Arc;
use std::time::Duration;

use crate::control::{Controller, State};
use crate::enforce::Ticket;
use crate::estimate::Freshness;
use crate::policy::Policy;
use crate::sim::Chance;
use crate::sim::check::{Broken, Promise, Publications};
use crate::sim::health::Health;
use crate::sim::plant::Plant;
use crate::sim::scenario::{Fault, Scenario};
use crate::sim::sources::Sources;
use crate::sim::world::node::Node;
use crate::unit::{Instant, PoolId, TierId};
use crate::wire::{LimitTable, UsageReport};

const REPORT_EVERY: Duration = Duration::from_secs(1);
/// After the last arrival everything must have drained within this.
const DRAIN: Duration = Duration::from_secs(120);
/// Tables kept to be replayed.
const PAST_TABLES: usize = 8;
const MODEL: &str = "model";
const POOL: &str = "pool";

/// One run of one scenario.
pub struct World {
    scenario: Scenario,
    chance: Chance,
    now: Instant,
    queue: BTreeMap<(Instant, u64), Event>,
    sequence: u64,
    plant: Plant,
    policy: Arc<Policy>,
    controller: Option<Controller>,
    /// As the journal would hold it.
    journal: Option<State>,
    inbox: Vec<UsageReport>,
    nodes: Vec<Node>,
    flights: BTreeMap<u64, Flight>,
    floods: Vec<f64>,
    past: Vec<LimitTable>,
    publications: Publications,
    sources: Sources,
    /// The controller stands still; or it has just begun to move again.
    paused: bool,
    resumed: bool,
    health: Health,
    outcome: Outcome,
    restarted: Option<f64>,
    /// From here on a controller that lost its state has heard every node.
    learned: Instant,
    tables: DefaultHasher,
}

/// What a run came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    pub broken: Vec<Broken>,
    /// Hash over every published table, in order.
    pub tables: u64,
    pub events: u64,
    pub offered: u64,
    pub admitted: u64,
    pub refused_limit: u64,
    pub refused_capacity: u64,
    /// What the controller made of it, tick by tick.
    pub seen: Vec<Seen>,
    /// The last table.
    pub table: Option<Arc<LimitTable>>,
}

/// One tick, for whoever wants to look at a run as a whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    /// Seconds.
    pub at: f64,
    /// Work per second.
    pub budget: f64,
    pub capacity: Option<f64>,
    pub ready: f64,
    pub freshness: Freshness,
    pub safe: f64,
}

#[derive(Debug)]
enum Event {
    Arrive { tenant: usize },
    Tick { generation: u64 },
    Report { node: usize },
    Deliver { node: usize, table: Arc<LimitTable> },
    Hear { report: Box<UsageReport> },
    HangUp { flight: u64 },
    Begin { keep_state: bool },
    Resume { generation: u64 },
    Fault { fault: Fault },
    End,
}

struct Flight {
    node: usize,
    instance: u64,
    ticket: Ticket,
    tier: TierId,
    replica: usize,
    input: u64,
    output: u64,
    seen: u64,
    arrived: Instant,
}

// === impl World ===

impl World {
    pub fn new(scenario: Scenario) -> World {
        let mut chance = Chance::seeded(scenario.seed ^ 0x7469_6465);
        let node = |at: usize| Node::new(at, Instant::ZERO, 1);
        let policy = Arc::new(scenario.policy.clone());
        let mut world = World {
            now: Instant::ZERO,
            queue: BTreeMap::new(),
            sequence: 0,
            plant: Plant::new(&scenario),
            controller: Some(Controller::new(Arc::clone(&policy), State::default())),
            policy,
            journal: None,
            inbox: Vec::new(),
            nodes: (0..scenario.nodes).map(node).collect(),
            flights: BTreeMap::new(),
            floods: vec![1.0; scenario.tenants.len()],
            past: Vec::new(),
            publications: Publications::default(),
            sources: Sources::default(),
            paused: false,
            resumed: false,
            health: Health::new(&scenario),
            outcome: Outcome::default(),
            restarted: None,
            learned: Instant::ZERO,
            tables: DefaultHasher::new(),
            chance: Chance::seeded(0),
            scenario,
        };
        for tenant in 0..world.scenario.tenants.len() {
            world.at(chance.between(0.0, 1.0), Event::Arrive { tenant });
        }
        for node in 0..world.nodes.len() {
            world.at(chance.between(0.0, 0.5), Event::Report { node });
        }
        for (at, fault) in std::mem::take(&mut world.scenario.faults) {
            world.at(at, Event::Fault { fault });
        }
        world.chance = chance;
        world.at(2.0, Event::Tick { generation: 0 });
        world.at(world.scenario.seconds, Event::End);
        world
    }

    /// Runs to the end; every broken promise is in the outcome.
    pub fn run(mut self) -> Outcome {
        let end = seconds(self.scenario.seconds) + DRAIN;
        while let Some(at) = self.next_event() {
            if at > end {
                break;
            }
            self.now = at;
            self.outcome.events += 1;
            for token in self.plant.step(at) {
                self.token(token);
            }
            if let Some(entry) = self.queue.first_entry()
                && entry.key().0 <= at
            {
                let event = entry.remove();
                self.happen(event);
            }
            if self.outcome.broken.len() >= 20 {
                break;
            }
        }
        self.at_rest();
        self.outcome.tables = self.tables.finish();
        self.outcome
    }

    fn next_event(&self) -> Option<Instant> {
        let queued = self.queue.keys().next().map(|(at, _)| *at);
        match (queued, self.plant.next_wake()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive { tenant } => self.arrive(tenant),
            Event::Tick { generation } => self.tick(generation),
            Event::Report { node } => self.report(node),
            Event::Deliver { node, table } => self.deliver(node, &table),
            Event::Hear { report } => {
                if self.controller.is_some() && !self.paused {
                    self.inbox.push(*report);
                }
            }
            Event::HangUp { flight } => self.hang_up(flight),
            Event::Begin { keep_state } => self.begin(keep_state),
            Event::Resume { generation } => self.resume(generation),
            Event::Fault { fault } => self.fault(fault),
            Event::End => self.floods.fill(0.0),
        }
    }

    fn at(&mut self, at: f64, event: Event) {
        self.after_instant(seconds(at), event);
    }

    fn after(&mut self, delay: f64, event: Event) {
        self.after_instant(self.now + Duration::from_secs_f64(delay), event);
    }

    fn after_instant(&mut self, at: Instant, event: Event) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), event);
    }

    fn break_promise(&mut self, promise: Promise, detail: impl Into<String>) {
        let (seed, at) = (self.scenario.seed, self.now);
        self.outcome.broken.push(Broken { seed, at, promise, detail: detail.into() });
    }

    fn at_rest(&mut self) {
        if !self.outcome.broken.is_empty() {
            return;
        }
        let left = self.plant.in_service();
        if left > 0 || !self.flights.is_empty() {
            self.break_promise(Promise::Recovers, format!("{left} sequences left at rest"));
        }
        for at in 0..self.nodes.len() {
            let counted = self.nodes.get(at).map(|node| node.usage(self.now));
            let pool = counted.and_then(|usage| usage.pools.get(&PoolId::new(POOL)).copied());
            if let Some(pool) = pool.filter(|pool| pool.in_flight > 0 || pool.waiting_work > 0) {
                self.break_promise(Promise::SlotsBalance, format!("at rest {pool:?}"));
            }
        }
        for detail in self.health.report() {
            self.break_promise(Promise::Recovers, detail);
        }
    }
}

fn seconds(at: f64) -> Instant {
    Instant((at * 1e9) as u64)
}
