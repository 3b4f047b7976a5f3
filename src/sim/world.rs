//! The world: an event queue, its own `now`, and everything that happens in it.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use crate::control::{Controller, State, Tick};
use crate::enforce::{Limiter, Request, Settlement, Ticket, Verdict};
use crate::observe::Round;
use crate::policy::Policy;
use crate::sim::Chance;
use crate::sim::batch::Token;
use crate::sim::check::{Account, Broken, Promise, Publications};
use crate::sim::health::Health;
use crate::sim::plant::Plant;
use crate::sim::scenario::{Fault, OUTPUT_COST, Scenario};
use crate::unit::{Instant, NodeId, PoolId, TierId};
use crate::wire::{Held, LimitTable, Offer, UsageReport};

const REPORT_EVERY: Duration = Duration::from_secs(1);
/// After the last arrival everything must have drained within this.
const DRAIN: Duration = Duration::from_secs(120);
/// Tables kept to be replayed.
const PAST_TABLES: usize = 8;
pub(super) const MODEL: &str = "model";
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
    health: Health,
    outcome: Outcome,
    restarted: Option<f64>,
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
    Fault { fault: Fault },
    End,
}

struct Node {
    id: NodeId,
    limiter: Limiter,
    started: Instant,
    instance: u64,
    reachable: bool,
    disk: Option<LimitTable>,
    /// The last table that came from the controller, and when: the oracle's own copy.
    renewed: Option<(Arc<LimitTable>, Instant)>,
    accounts: BTreeMap<TierId, Account>,
    in_flight: u64,
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
    generation: u64,
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
            health: Health::new(&scenario),
            outcome: Outcome::default(),
            restarted: None,
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
                if self.controller.is_some() {
                    self.inbox.push(*report);
                }
            }
            Event::HangUp { flight } => self.hang_up(flight),
            Event::Begin { keep_state } => self.begin(keep_state),
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

    fn elapsed(&self) -> f64 {
        self.now.seconds_since(Instant::ZERO)
    }

    // --- requests ---

    fn arrive(&mut self, tenant: usize) {
        let Some(traffic) = self.scenario.tenants.get(tenant).cloned() else { return };
        let flood = self.floods.get(tenant).copied().unwrap_or(0.0);
        if flood <= 0.0 {
            return;
        }
        let wait = self.chance.wait(traffic.arrivals * flood);
        self.after(wait, Event::Arrive { tenant });
        let input = self.chance.size(180.0, 0.5, 20, 1500);
        let output = self.chance.size(50.0, 0.6, 5, 400);
        let at = self.chance.below(self.nodes.len());
        let key = u8::try_from(tenant * 16 + self.chance.below(traffic.keys)).unwrap_or(0);
        let request = Request {
            model: MODEL,
            tier: traffic.tier.as_str(),
            key: [key; 32],
            input_tokens: input,
            output_max: Some(400),
            images: 0,
            streamed: true,
        };
        let work = input as f64 + OUTPUT_COST * output as f64;
        let now = self.now;
        self.outcome.offered += 1;
        self.health.offered(now, &traffic.tier, work);
        let Some(node) = self.nodes.get_mut(at) else { return };
        let before = node.counters(now);
        match node.limiter.admit(now, &request) {
            Verdict::Admitted(ticket) => {
                self.outcome.admitted += 1;
                self.health.admitted(now, &traffic.tier, work);
                self.admitted(at, ticket, traffic.tier, input, output);
            }
            Verdict::Refused(refusal) => {
                match refusal.reason {
                    crate::enforce::RefusalReason::Capacity { .. } => self.outcome.refused_capacity += 1,
                    _ => self.outcome.refused_limit += 1,
                }
                if node.counters(now) != before {
                    let detail = format!("{:?} changed counters", refusal.reason);
                    self.break_promise(Promise::RefusalChangesNothing, detail);
                }
            }
        }
    }

    fn admitted(&mut self, at: usize, ticket: Ticket, tier: TierId, input: u64, output: u64) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(at) else { return };
        node.in_flight += 1;
        let reserved = ticket.reserved_work() as f64;
        let rate = node.rate(&tier, now);
        if let Some(rate) = rate
            && let Err(detail) = node.accounts.entry(tier.clone()).or_default().admit(now, rate, reserved)
        {
            let detail = format!("{} {tier} at {rate}/s: {detail}", node.id);
            self.break_promise(Promise::AdmittedInsideLimit, detail);
        }
        self.sequence += 1;
        let id = self.sequence;
        let instance = self.nodes.get(at).map_or(0, |node| node.instance);
        let replica = self.plant.least_loaded();
        let sent = replica.is_some_and(|replica| self.plant.submit(now, replica, id, input, output));
        let flight = Flight {
            node: at,
            instance,
            ticket,
            tier,
            replica: replica.unwrap_or(0),
            input,
            output,
            seen: 0,
            arrived: now,
            generation: 0,
        };
        if !sent {
            self.settle(flight, Settlement::Died { output_seen: 0 });
            return;
        }
        if self.chance.happens(self.scenario.hang_ups) {
            let delay = self.chance.between(0.0, 6.0);
            self.after(delay, Event::HangUp { flight: id });
        }
        self.flights.insert(id, flight);
    }

    fn token(&mut self, token: Token) {
        let Some(flight) = self.flights.get_mut(&token.id) else { return };
        flight.seen += 1;
        if token.first {
            let waited = token.at.seconds_since(flight.arrived);
            self.health.first_token(self.now, waited);
            let (at, instance) = (flight.node, flight.instance);
            if let Some(node) = self.nodes.get_mut(at).filter(|node| node.instance == instance) {
                node.limiter.first_token(self.now, &mut flight.ticket);
            }
        }
        if token.last
            && let Some(flight) = self.flights.remove(&token.id)
        {
            let (input_tokens, output_tokens) = (flight.input, flight.output);
            self.settle(flight, Settlement::Used { input_tokens, output_tokens, images: 0 });
        }
    }

    fn hang_up(&mut self, id: u64) {
        if let Some(flight) = self.flights.remove(&id) {
            self.plant.abort(flight.replica, id);
            let output_seen = flight.seen;
            self.settle(flight, Settlement::Broken { output_seen });
        }
    }

    fn settle(&mut self, flight: Flight, settlement: Settlement) {
        let Some(node) = self.nodes.get_mut(flight.node).filter(|node| node.instance == flight.instance)
        else {
            // The node's process died with it.
            return;
        };
        let reserved = flight.ticket.reserved_work() as f64;
        let seen = flight.input as f64 + OUTPUT_COST * flight.seen as f64;
        let used = match settlement {
            Settlement::Used { .. } => flight.input as f64 + OUTPUT_COST * flight.output as f64,
            Settlement::Broken { .. } | Settlement::Died { .. } => reserved.max(seen),
            Settlement::NotSent | Settlement::UpstreamError => 0.0,
        };
        node.in_flight -= 1;
        if let Some(rate) = node.rate(&flight.tier, self.now) {
            node.accounts.entry(flight.tier.clone()).or_default().correct(self.now, rate, used - reserved);
        }
        node.limiter.settle(self.now, flight.ticket, settlement);
        let pool = PoolId::new(POOL);
        let counted = node.usage(self.now).pools.get(&pool).map(|pool| pool.in_flight);
        let expected = node.in_flight;
        if counted.is_some_and(|counted| counted != expected) {
            let detail = format!("node counts {counted:?} in flight, there are {expected}");
            self.break_promise(Promise::SlotsBalance, detail);
        }
        let _ = flight.generation;
    }

    // --- control ---

    fn tick(&mut self, generation: u64) {
        let Some(controller) = &mut self.controller else { return };
        if generation != self.health.generation {
            return;
        }
        let mut round = Round { usage: std::mem::take(&mut self.inbox), ..Round::default() };
        round.pools.insert(PoolId::new(POOL), self.plant.scrape(self.now));
        let tick = controller.tick(self.now, &round);
        self.journal = Some(controller.state().clone());
        let interval = self.policy.interval.as_secs_f64();
        self.after(interval, Event::Tick { generation });
        if let Ok(bytes) = tick.table.encode() {
            bytes.hash(&mut self.tables);
        }
        for (promise, detail) in self.publications.published(self.now, &tick) {
            self.break_promise(promise, detail);
        }
        self.restart_continues(&tick);
        let alive = self.plant.alive() as f64 * self.scenario.replica_rate;
        for detail in self.health.ticked(self.now, &tick, alive) {
            self.break_promise(Promise::Recovers, detail);
        }
        if self.past.len() == PAST_TABLES {
            self.past.remove(0);
        }
        self.past.push((*tick.table).clone());
        for node in 0..self.nodes.len() {
            if self.nodes.get(node).is_some_and(|node| node.reachable) {
                let delay = self.scenario.delay * self.chance.between(0.5, 1.5);
                self.after(delay, Event::Deliver { node, table: Arc::clone(&tick.table) });
            }
        }
    }

    /// The first budget after a restart with state lies within one step of the last.
    fn restart_continues(&mut self, tick: &Tick) {
        let Some(pool) = tick.pools.values().next() else { return };
        let budget = pool.decision.budget;
        if let Some(last) = self.restarted.take() {
            let scale = pool.estimate.ready / pool.estimate.ready_before.max(1e-9);
            let lowest = (last * 0.7).min(last * scale * 0.7);
            let highest = (last * 1.3).max(last * scale * 1.3);
            if !(lowest..=highest).contains(&budget) && pool.estimate.ready_before > 0.0 {
                let detail = format!("budget {last} before, {budget} after ({:?})", pool.decision.reason);
                self.break_promise(Promise::RestartContinues, detail);
            }
        }
        self.health.budget = budget;
    }

    fn report(&mut self, at: usize) {
        self.after_instant(self.now + REPORT_EVERY, Event::Report { node: at });
        let now = self.now;
        let Some(node) = self.nodes.get_mut(at) else { return };
        node.drain(now);
        if !node.reachable {
            return;
        }
        let report = Box::new(node.usage(now));
        let delay = self.scenario.delay * self.chance.between(0.5, 1.5);
        self.after(delay, Event::Hear { report });
    }

    fn deliver(&mut self, at: usize, table: &Arc<LimitTable>) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(at).filter(|node| node.reachable) else { return };
        let (stamp, before) = (node.limiter.held().map(Held::stamp), node.counters(now));
        let offer = node.limiter.offer((**table).clone(), now);
        let renewed = match offer {
            Ok(Offer::Applied(_) | Offer::Renewed(_)) => true,
            Ok(Offer::Stale) => false,
            Err(error) => {
                self.break_promise(Promise::VersionUnique, error.to_string());
                return;
            }
        };
        let held = node.limiter.held().map(Held::stamp);
        let after = node.counters(now);
        if renewed {
            node.renewed = Some((Arc::clone(table), now));
            node.drain(now);
            node.disk = Some((**table).clone());
        }
        if held < stamp || renewed && stamp.is_some_and(|stamp| table.stamp <= stamp) {
            let detail = format!("{stamp:?} then {held:?} on {:?}", table.stamp);
            self.break_promise(Promise::NodeNeverGoesBack, detail);
        }
        if after != before {
            self.break_promise(Promise::SwapKeepsCounters, format!("{before:?} became {after:?}"));
        }
    }

    fn begin(&mut self, keep_state: bool) {
        if self.controller.is_some() {
            return;
        }
        // Through JSON, as the journal does it.
        let stored = self.journal.as_ref().filter(|_| keep_state);
        let state = stored
            .and_then(|state| serde_json::to_vec(state).ok())
            .and_then(|bytes| serde_json::from_slice(&bytes).ok());
        self.restarted = state.is_some().then_some(self.health.budget);
        if state.is_none() {
            self.publications.state_lost();
        }
        self.controller = Some(Controller::new(Arc::clone(&self.policy), state.unwrap_or_default()));
        self.health.generation += 1;
        let interval = self.policy.interval.as_secs_f64();
        let generation = self.health.generation;
        self.after(interval, Event::Tick { generation });
    }

    // --- faults ---

    fn fault(&mut self, fault: Fault) {
        match fault {
            Fault::Die { replicas } => replicas.into_iter().for_each(|at| self.die(at)),
            Fault::Revive { replicas } => replicas.into_iter().for_each(|at| self.plant.revive(at)),
            Fault::Mute { replicas } => replicas.into_iter().for_each(|at| self.plant.mute(at, true)),
            Fault::Unmute { replicas } => replicas.into_iter().for_each(|at| self.plant.mute(at, false)),
            Fault::Slow { replica, part } => self.plant.slow(replica, part, &self.scenario),
            Fault::Partition { node } => self.reach(node, false),
            Fault::Rejoin { node } => self.reach(node, true),
            Fault::Kill { keep_state, back_after } => {
                self.controller = None;
                self.inbox.clear();
                // With neither state nor nodes to ask, no controller could know its past.
                let keep_state = keep_state || self.nodes.iter().any(|node| !node.reachable);
                self.after(back_after, Event::Begin { keep_state });
            }
            Fault::RestartNode { node } => self.restart_node(node),
            Fault::Replay { node } => {
                if let Some(table) = self.past.first().cloned() {
                    self.deliver(node, &Arc::new(table));
                }
            }
            Fault::Flood { tier, factor } => {
                if let Some(flood) = self.floods.get_mut(tier) {
                    *flood = factor;
                }
            }
            Fault::EditCeiling { tier, factor } => self.edit(tier, factor),
            Fault::Heal => self.heal(),
        }
    }

    fn die(&mut self, at: usize) {
        self.plant.die(at, &self.scenario);
        let lost: Vec<u64> =
            self.flights.iter().filter(|(_, flight)| flight.replica == at).map(|(id, _)| *id).collect();
        for id in lost {
            if let Some(flight) = self.flights.remove(&id) {
                let output_seen = flight.seen;
                self.settle(flight, Settlement::Died { output_seen });
            }
        }
    }

    fn reach(&mut self, node: usize, reachable: bool) {
        if let Some(node) = self.nodes.get_mut(node) {
            node.reachable = reachable;
        }
    }

    fn restart_node(&mut self, at: usize) {
        let lost: Vec<u64> =
            self.flights.iter().filter(|(_, flight)| flight.node == at).map(|(id, _)| *id).collect();
        for id in lost {
            if let Some(flight) = self.flights.remove(&id) {
                self.plant.abort(flight.replica, id);
            }
        }
        let now = self.now;
        let Some(node) = self.nodes.get_mut(at) else { return };
        let mut fresh = Node::new(at, now, node.instance + 1);
        fresh.reachable = node.reachable;
        fresh.disk = node.disk.take();
        if let Some(table) = fresh.disk.clone() {
            let valid_for = table.valid_for_ms * 1_000_000;
            fresh.renewed = Some((Arc::new(table.clone()), Instant(now.0.saturating_sub(valid_for))));
            if let Err(error) = fresh.limiter.restore(table, now) {
                self.break_promise(Promise::NodeAloneDrifts, error.to_string());
                return;
            }
        }
        *node = fresh;
    }

    fn edit(&mut self, tier: usize, factor: f64) {
        let mut policy = self.scenario.policy.clone();
        let capacity = self.scenario.capacity() * 60.0;
        let Some(tier) = self.scenario.tenants.get(tier).map(|tenant| tenant.tier.clone()) else { return };
        for grant in policy.models.values_mut().filter_map(|model| model.tiers.get_mut(&tier)) {
            let scaled = grant.ceiling.as_f64().min(capacity) * factor;
            if factor < 1.0 {
                grant.ceiling = crate::unit::Limit::from_f64(scaled.max(grant.guarantee as f64));
            }
        }
        policy.digest = format!("{tier} {factor}");
        self.put_in_force(policy);
    }

    fn put_in_force(&mut self, policy: Policy) {
        self.policy = Arc::new(policy);
        if let Some(controller) = &mut self.controller {
            controller.set_policy(Arc::clone(&self.policy));
            self.publications.edited();
        }
    }

    fn heal(&mut self) {
        for at in 0..self.plant.count() {
            self.plant.revive(at);
            self.plant.mute(at, false);
            self.plant.slow(at, 1.0, &self.scenario);
        }
        for at in 0..self.nodes.len() {
            self.reach(at, true);
        }
        self.floods.fill(1.0);
        self.scenario.hang_ups = 0.0;
        self.begin(true);
        self.put_in_force(self.scenario.policy.clone());
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
        let _ = self.elapsed();
    }
}

// === impl Node ===

impl Node {
    fn new(at: usize, now: Instant, instance: u64) -> Node {
        let id = NodeId::new(format!("node-{at}"));
        Node {
            limiter: Limiter::new(id.clone(), 1000),
            id,
            started: now,
            instance,
            reachable: true,
            disk: None,
            renewed: None,
            accounts: BTreeMap::new(),
            in_flight: 0,
        }
    }

    fn usage(&self, now: Instant) -> UsageReport {
        self.limiter.report(now, self.started, self.instance)
    }

    /// Everything a refusal or a swap must leave alone: admitted work, requests in flight, work
    /// that waits.
    fn counters(&self, now: Instant) -> Vec<(u64, u64, u64)> {
        let usage = self.usage(now);
        let rows = usage.rows.iter().map(|row| (row.admitted.requests, row.admitted.work, 0));
        let pools = usage.pools.values().map(|pool| (pool.in_flight, pool.waiting_work, 1));
        let counts: Vec<(u64, u64, u64)> = rows.chain(pools).collect();
        counts.into_iter().filter(|(a, b, _)| a + b > 0).collect()
    }

    /// Brings every account up to now, under the rates in force from here on.
    fn drain(&mut self, now: Instant) {
        let rates: Vec<(TierId, f64)> =
            self.accounts.keys().filter_map(|tier| Some((tier.clone(), self.rate(tier, now)?))).collect();
        for (tier, rate) in rates {
            if let Some(account) = self.accounts.get_mut(&tier) {
                account.drain(now, rate);
            }
        }
    }

    /// What a tier may use here, work per second, by an account of the node's table of its own.
    fn rate(&self, tier: &TierId, now: Instant) -> Option<f64> {
        let (table, renewed_at) = self.renewed.as_ref()?;
        let row = table.row(MODEL, tier.as_str())?;
        let entry = row.limits.values().next()?;
        let pool = table.pools.get(&row.pool)?;
        let Some(share) = pool.shares.get(&self.id) else {
            return Some(entry.safe.as_f64() / 60.0 * f64::from(pool.unlisted_share) / 1e6);
        };
        let (last, safe) = (entry.tier_limit.as_f64(), entry.safe.as_f64());
        let past = now.seconds_since(*renewed_at) - table.valid_for_ms as f64 / 1e3;
        let limit = if past < 0.0 || last <= safe {
            last
        } else {
            let steps = (past / (table.interval_ms as f64 / 1e3)).floor() + 1.0;
            (last * 0.7f64.powf(steps)).max(safe)
        };
        Some(limit / 60.0 * f64::from(*share) / 1e6)
    }
}

fn seconds(at: f64) -> Instant {
    Instant((at * 1e9) as u64)
}
