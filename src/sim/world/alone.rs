//! Nodes whose controller never comes back: what they admit after hours and after a month.
//!
//! Nothing happens on a node between two requests, so time without requests is skipped: traffic
//! comes in bursts, tick by tick while limits drift and then once an hour.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::enforce::{RefusalReason, Request, Settlement, Ticket, Verdict};
use crate::sim::Chance;
use crate::sim::check::{Broken, Promise};
use crate::sim::scenario::{OUTPUT_COST, Scenario};
use crate::sim::world::node::Node;
use crate::sim::world::{MODEL, World};
use crate::unit::{Instant, TierId};
use crate::wire::LimitTable;

/// How long the controller lives, seconds.
const TOGETHER: f64 = 200.0;
/// One burst, seconds; each tier asks for this many times its last limit.
const BURST: f64 = 5.0;
const PRESSURE: f64 = 1.5;
/// Answers take this long.
const SERVICE: Duration = Duration::from_secs(2);
/// Limits have arrived at safe after this many intervals past the table's validity: 0.7^60 is
/// less than a billionth.
const DRIFT_INTERVALS: u32 = 60;
/// Until a month has passed, a burst this often.
const EVERY: Duration = Duration::from_secs(3600);
const KEYS: usize = 4;

/// What became of nodes left alone.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Survived {
    pub broken: Vec<Broken>,
    pub bursts: u64,
    pub offered: u64,
    pub admitted: u64,
    /// Limits per minute when the controller fell silent, and at the end.
    pub first: BTreeMap<TierId, u64>,
    pub last: BTreeMap<TierId, u64>,
}

struct Alone {
    seed: u64,
    chance: Chance,
    table: Arc<LimitTable>,
    nodes: Vec<Node>,
    /// Requests being served: when they end, and where.
    serving: BTreeMap<(Instant, u64), Served>,
    survived: Survived,
}

struct Served {
    node: usize,
    tier: TierId,
    input: u64,
    output: u64,
    ticket: Ticket,
}

/// Lets a controller publish for a while, takes it away, and asks its nodes for `time`.
pub fn alone(seed: u64, time: Duration) -> Survived {
    let mut scenario = Scenario::draw(seed, TOGETHER);
    scenario.faults.clear();
    scenario.hang_ups = 0.0;
    let together = World::new(scenario.clone()).run();
    let Some(table) = together.table else { return Survived::default() };
    let mut nodes: Vec<Node> = (0..scenario.nodes).map(|at| Node::new(at, Instant::ZERO, 1)).collect();
    let mut survived = Survived::default();
    for node in &mut nodes {
        if let Err(error) = node.limiter.offer((*table).clone(), Instant::ZERO) {
            let (at, promise, detail) = (Instant::ZERO, Promise::TableValid, error.to_string());
            survived.broken.push(Broken { seed, at, promise, detail });
        }
        node.renewed = Some((Arc::clone(&table), Instant::ZERO));
    }
    let chance = Chance::seeded(seed);
    let mut alone = Alone { seed, chance, table, nodes, serving: BTreeMap::new(), survived };
    alone.run(time);
    alone.survived
}

// === impl Alone ===

impl Alone {
    fn run(&mut self, time: Duration) {
        let interval = Duration::from_millis(self.table.interval_ms);
        let valid_for = Duration::from_millis(self.table.valid_for_ms);
        let drifted = valid_for + interval * DRIFT_INTERVALS;
        self.survived.first = self.limits(Instant::ZERO);
        let mut at = Duration::ZERO;
        while at < time {
            self.burst(Instant::ZERO + at);
            // Every interval while the table is valid and while limits move, then every hour.
            at += if at < drifted { interval.max(Duration::from_secs_f64(BURST)) } else { EVERY };
        }
        self.survived.last = self.limits(Instant::ZERO + time);
        let end = Instant::ZERO + time + SERVICE * 2;
        self.serve(end);
        for at in 0..self.nodes.len() {
            let left = self.nodes.get(at).map(|node| node.usage(end));
            let in_flight: u64 =
                left.iter().flat_map(|usage| usage.pools.values()).map(|pool| pool.in_flight).sum();
            if in_flight > 0 {
                self.broken(end, Promise::SlotsBalance, format!("{in_flight} in flight at rest"));
            }
        }
    }

    fn broken(&mut self, at: Instant, promise: Promise, detail: String) {
        let seed = self.seed;
        if self.survived.broken.len() < 20 {
            self.survived.broken.push(Broken { seed, at, promise, detail });
        }
    }

    /// Each tier's limit per minute, as the first node tells it.
    fn limits(&self, now: Instant) -> BTreeMap<TierId, u64> {
        let limit = |tier: &TierId| {
            let quotas =
                self.nodes.first()?.limiter.quotas(now, &Request::new(MODEL, tier.as_str(), [0; 32]), None);
            quotas.into_iter().flatten().next().map(|quota| quota.limit)
        };
        let tiers = self.table.rows.iter().map(|row| &row.tier);
        tiers.filter_map(|tier| Some((tier.clone(), limit(tier)?))).collect()
    }

    /// Every tier asks every node for more than it may have, for [`BURST`] seconds.
    fn burst(&mut self, from: Instant) {
        self.survived.bursts += 1;
        self.serve(from);
        self.drift_is_right(from);
        let tiers: Vec<TierId> = self.table.rows.iter().map(|row| row.tier.clone()).collect();
        let mut admitted: BTreeMap<TierId, u64> = tiers.iter().map(|tier| (tier.clone(), 0)).collect();
        let mut arrivals: Vec<(Instant, usize, &TierId)> = Vec::new();
        for (at, node) in self.nodes.iter().enumerate() {
            for tier in &tiers {
                let share = node.rate(tier, Instant::ZERO).unwrap_or(0.0);
                let per_second = (share * PRESSURE / 400.0).clamp(0.5, 50.0);
                let mut now = from + Duration::from_secs_f64(self.chance.wait(per_second));
                while now.seconds_since(from) < BURST {
                    arrivals.push((now, at, tier));
                    now = now + Duration::from_secs_f64(self.chance.wait(per_second));
                }
            }
        }
        arrivals.sort();
        for (now, at, tier) in arrivals {
            let passed = self.ask(at, tier, now);
            *admitted.entry(tier.clone()).or_default() += u64::from(passed);
        }
        // After an hour's rest every bucket is full: something must pass.
        for (tier, count) in admitted {
            let safe = self
                .table
                .row(MODEL, tier.as_str())
                .and_then(|row| row.limits.values().next())
                .map(|entry| entry.safe);
            if count == 0 && safe.is_some_and(|safe| safe.as_f64() > 0.0) {
                self.broken(from, Promise::NodeAloneDrifts, format!("nothing of {tier} passed any node"));
            }
        }
    }

    /// Finite, never zero, never above the last table, and just where the drift has it.
    fn drift_is_right(&mut self, now: Instant) {
        let shown = self.limits(now);
        for row in self.table.rows.clone() {
            let Some(entry) = row.limits.values().next() else { continue };
            let Some(limit) = shown.get(&row.tier) else {
                self.broken(now, Promise::NodeAloneDrifts, format!("{} has no limit", row.tier));
                continue;
            };
            let share = self.nodes.first().and_then(|node| node.rate(&row.tier, now)).unwrap_or(0.0);
            let whole =
                self.nodes.first().and_then(|node| node.rate(&row.tier, Instant::ZERO)).unwrap_or(0.0);
            let due = entry.tier_limit.as_f64() * share / whole.max(1e-9);
            let limit = *limit as f64;
            if limit <= 0.0 || limit > entry.tier_limit.as_f64() || (limit - due).abs() > 0.001 * due + 2.0 {
                self.broken(now, Promise::NodeAloneDrifts, format!("{}: {limit}, due {due}", row.tier));
            }
        }
    }

    fn ask(&mut self, at: usize, tier: &TierId, now: Instant) -> bool {
        self.serve(now);
        self.survived.offered += 1;
        let (input, output) = (self.chance.size(180.0, 0.5, 20, 1500), self.chance.size(50.0, 0.6, 5, 400));
        let key = u8::try_from(self.chance.below(KEYS)).unwrap_or(0);
        let request = Request {
            input_tokens: input,
            output_max: Some(output),
            streamed: true,
            ..Request::new(MODEL, tier.as_str(), [key; 32])
        };
        let Some(node) = self.nodes.get_mut(at) else { return false };
        node.drain(now);
        match node.limiter.admit(now, &request) {
            Verdict::Refused(refusal) => {
                if !matches!(refusal.reason, RefusalReason::Limit { .. } | RefusalReason::Capacity { .. }) {
                    self.broken(now, Promise::NodeAloneDrifts, format!("{tier}: {:?}", refusal.reason));
                }
                false
            }
            Verdict::Admitted(mut ticket) => {
                let (cost, rate) = (ticket.reserved_work() as f64, node.rate(tier, now).unwrap_or(0.0));
                let of = (rate, node.part());
                let account = node.accounts.entry(tier.clone()).or_default().admit(now, of, cost);
                node.limiter.first_token(now, &mut ticket);
                self.survived.admitted += 1;
                let id = self.survived.admitted;
                let served = Served { node: at, tier: tier.clone(), input, output, ticket };
                self.serving.insert((now + SERVICE, id), served);
                if let Err(detail) = account {
                    self.broken(now, Promise::AdmittedInsideLimit, format!("{tier}: {detail}"));
                }
                true
            }
        }
    }

    /// Ends what is served by `now`.
    fn serve(&mut self, now: Instant) {
        while let Some(entry) = self.serving.first_entry().filter(|entry| entry.key().0 <= now) {
            let ((ended, _), Served { node, tier, input, output, ticket }) = entry.remove_entry();
            let Some(node) = self.nodes.get_mut(node) else { continue };
            let difference = input as f64 + OUTPUT_COST * output as f64 - ticket.reserved_work() as f64;
            if let Some(rate) = node.rate(&tier, ended) {
                let of = (rate, node.part());
                node.accounts.entry(tier).or_default().correct(ended, of, difference);
            }
            let settlement =
                Settlement::Used { input_tokens: input, cached_tokens: 0, output_tokens: output, images: 0 };
            node.limiter.settle(ended, ticket, settlement);
        }
    }
}
