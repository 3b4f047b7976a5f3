//! The shipped law behind the seam: the controller's step, its tables, and one limiter a node.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::control::{Controller, State};
use crate::enforce::{Limiter, Request, Settlement, Ticket, Verdict};
use crate::observe::Round;
use crate::policy::{Grant, ModelPolicy, OutputCost, Policy, PoolPolicy, SignalMap, SourcePolicy};
use crate::sim::law::{Ask, End, Law, Seen, Terms};
use crate::unit::{Instant, Limit, ModelId, NodeId, PoolId, TierId, WorkUnit};
use crate::wire::UsageReport;

const MODEL: &str = "model";
const POOL: &str = "pool";
/// States of keys that one node keeps.
const KEYS_MAX: usize = 4_096;

/// A controller, and the nodes that obey it.
#[derive(Debug)]
pub struct Tide {
    controller: Controller,
    delay: Duration,
    tiers: Vec<String>,
    nodes: Vec<Node>,
    /// What nodes reported by the last scrape, on its way to the tick.
    reports: VecDeque<Vec<UsageReport>>,
    budget: Option<f64>,
    down: bool,
    unit: WorkUnit,
    /// Of requests under way, by id from `oldest` on.
    tickets: VecDeque<Option<Ticket>>,
    oldest: u64,
}

#[derive(Debug)]
struct Node {
    limiter: Limiter,
}

// === impl Tide ===

impl Tide {
    pub fn new(terms: &Terms) -> Tide {
        let tiers: Vec<String> = (0..terms.tiers.len()).map(|at| format!("tier-{at}")).collect();
        let node = |at: usize| Node { limiter: Limiter::new(NodeId::new(format!("node-{at}")), KEYS_MAX) };
        Tide {
            controller: Controller::new(Arc::new(policy(terms, &tiers)), State::default()),
            delay: terms.delay,
            tiers,
            nodes: (0..terms.nodes).map(node).collect(),
            reports: VecDeque::new(),
            budget: None,
            down: false,
            unit: unit(terms),
            tickets: VecDeque::new(),
            oldest: 0,
        }
    }

    fn ticket(&mut self, id: u64) -> Option<&mut Option<Ticket>> {
        self.tickets.get_mut(usize::try_from(id.checked_sub(self.oldest)?).ok()?)
    }

    fn keep(&mut self, id: u64, ticket: Ticket) {
        if self.tickets.is_empty() {
            self.oldest = id;
        }
        let place = usize::try_from(id.saturating_sub(self.oldest)).unwrap_or(0);
        while self.tickets.len() < place {
            self.tickets.push_back(None);
        }
        self.tickets.push_back(Some(ticket));
    }
}

impl Law for Tide {
    fn scraped(&mut self, now: Instant) {
        let report = |node: &Node| node.limiter.report(now, Instant::ZERO, 1);
        self.reports.push_back(self.nodes.iter().map(report).collect());
    }

    /// The controller decides as soon as the scrape is in; what it decides is in force now.
    fn tick(&mut self, now: Instant, seen: &Seen<'_>) {
        let usage = self.reports.pop_front().unwrap_or_default();
        if self.down {
            return;
        }
        let pools = BTreeMap::from([(PoolId::new(POOL), seen.round.clone())]);
        let tick = self.controller.tick(now - self.delay, &Round { pools, usage });
        self.budget = tick.pools.values().next().map(|pool| pool.decision.budget);
        for node in &self.nodes {
            // The controller seals only tables that are valid: there is nothing to refuse.
            let offered = node.limiter.offer((*tick.table).clone(), now);
            debug_assert!(offered.is_ok(), "{offered:?}");
        }
    }

    fn controller(&mut self, up: bool) {
        if up {
            // As the journal would give it back.
            self.controller =
                Controller::new(Arc::clone(self.controller.policy()), self.controller.state().clone());
        }
        self.down = !up;
    }

    fn admit(&mut self, now: Instant, node: usize, ask: &Ask) -> bool {
        let (Some(node), Some(tier)) = (self.nodes.get(node), self.tiers.get(ask.tier)) else { return false };
        let mut key = [0; 32];
        key.iter_mut().zip(ask.key.to_le_bytes()).for_each(|(at, byte)| *at = byte);
        let request = Request {
            input_tokens: u64::from(ask.prompt),
            output_max: None,
            images: u64::from(ask.images),
            streamed: self.unit == WorkUnit::Tokens,
            ..Request::new(MODEL, tier, key)
        };
        match node.limiter.admit(now, &request) {
            Verdict::Admitted(ticket) => {
                self.keep(ask.id, ticket);
                true
            }
            Verdict::Refused(_) => false,
        }
    }

    fn first_token(&mut self, now: Instant, node: usize, id: u64, _: Duration) {
        let Some(mut ticket) = self.ticket(id).and_then(Option::take) else { return };
        if let Some(node) = self.nodes.get(node) {
            node.limiter.first_token(now, &mut ticket);
        }
        if let Some(place) = self.ticket(id) {
            *place = Some(ticket);
        }
    }

    fn done(&mut self, now: Instant, node: usize, ask: &Ask, end: &End) {
        let Some(ticket) = self.ticket(ask.id).and_then(Option::take) else { return };
        while self.tickets.front().is_some_and(Option::is_none) {
            self.tickets.pop_front();
            self.oldest += 1;
        }
        let settlement = match end {
            End::Served { output, .. } => Settlement::Used {
                input_tokens: u64::from(ask.prompt),
                cached_tokens: 0,
                output_tokens: u64::from(*output),
                images: u64::from(ask.images),
            },
            End::Lost => Settlement::Died { output_seen: 0 },
            End::Abandoned => Settlement::Broken { output_seen: 0 },
        };
        if let Some(node) = self.nodes.get(node) {
            node.limiter.settle(now, ticket, settlement);
        }
    }

    fn budget(&self) -> Option<f64> {
        self.budget
    }
}

/// Where an answer's length is no work, images are what is counted.
fn unit(terms: &Terms) -> WorkUnit {
    if terms.output_cost > 0.0 { WorkUnit::Tokens } else { WorkUnit::Images }
}

/// As an operator would write it for this pool.
fn policy(terms: &Terms, names: &[String]) -> Policy {
    let grant = |tier: &crate::sim::law::Tier| {
        let guarantee = (tier.guarantee * 60.0) as u64;
        Grant {
            priority: tier.priority,
            weight: tier.weight,
            guarantee,
            safe: guarantee,
            ceiling: Limit::Unlimited,
            ..Grant::default()
        }
    };
    let tiers = names.iter().zip(&terms.tiers).map(|(name, tier)| (TierId::new(name), grant(tier)));
    let pool = PoolPolicy {
        product: "trial".to_owned(),
        unit: unit(terms),
        output_cost: OutputCost::Stated(terms.output_cost),
        slo: terms.slo,
        source: SourcePolicy::targets(Vec::new()),
        signals: SignalMap::default(),
    };
    Policy {
        digest: "0".to_owned(),
        interval: terms.interval,
        pools: BTreeMap::from([(PoolId::new(POOL), pool)]),
        models: BTreeMap::from([(ModelId::new(MODEL), ModelPolicy::new(PoolId::new(POOL), tiers.collect()))]),
        ..Policy::default()
    }
}
