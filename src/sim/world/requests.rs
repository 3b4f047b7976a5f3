//! A request's way through the world: offered, judged, served, settled; every step checked.

use crate::enforce::{RefusalReason, Request, Settlement, Ticket, Verdict};
use crate::sim::batch::Token;
use crate::sim::check::Promise;
use crate::sim::scenario::OUTPUT_COST;
use crate::sim::world::{Event, Flight, MODEL, POOL, World};
use crate::unit::{PoolId, TierId};

impl World {
    pub(super) fn arrive(&mut self, tenant: usize) {
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
            input_tokens: input,
            output_max: Some(400),
            streamed: true,
            ..Request::new(MODEL, traffic.tier.as_str(), [key; 32])
        };
        let work = input as f64 + OUTPUT_COST * output as f64;
        let now = self.now;
        self.outcome.offered += 1;
        self.health.offered(now, &traffic.tier, work);
        let Some(node) = self.nodes.get_mut(at) else { return };
        // A bucket learns of a cut with the next request, admitted or not.
        node.drain(now);
        let before = (node.counters(now), node.quotas(now, &traffic.tier, key));
        match node.limiter.admit(now, &request) {
            Verdict::Admitted(ticket) => {
                self.outcome.admitted += 1;
                self.health.admitted(now, &traffic.tier, work);
                self.admitted(at, ticket, traffic.tier, input, output);
            }
            Verdict::Refused(refusal) => {
                match refusal.reason {
                    RefusalReason::Capacity { .. } => self.outcome.refused_capacity += 1,
                    _ => self.outcome.refused_limit += 1,
                }
                if (node.counters(now), node.quotas(now, &traffic.tier, key)) != before {
                    let detail = format!("{:?} changed counters", refusal.reason);
                    self.break_promise(Promise::RefusalChangesNothing, detail);
                }
            }
        }
    }

    pub(super) fn admitted(&mut self, at: usize, ticket: Ticket, tier: TierId, input: u64, output: u64) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(at) else { return };
        node.in_flight += 1;
        let reserved = ticket.reserved_work() as f64;
        let (rate, part) = (node.rate(&tier, now), node.part());
        if let Some(rate) = rate
            && let Err(detail) =
                node.accounts.entry(tier.clone()).or_default().admit(now, (rate, part), reserved)
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

    pub(super) fn token(&mut self, token: Token) {
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
            self.settle(
                flight,
                Settlement::Used { input_tokens, cached_tokens: 0, output_tokens, images: 0 },
            );
        }
    }

    pub(super) fn hang_up(&mut self, id: u64) {
        if let Some(flight) = self.flights.remove(&id) {
            self.plant.abort(flight.replica, id);
            let output_seen = flight.seen;
            self.settle(flight, Settlement::Broken { output_seen });
        }
    }

    pub(super) fn settle(&mut self, flight: Flight, settlement: Settlement) {
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
            Settlement::NotSent | Settlement::UpstreamError | Settlement::Rejected => 0.0,
        };
        node.in_flight -= 1;
        if let Some(rate) = node.rate(&flight.tier, self.now) {
            let of = (rate, node.part());
            node.accounts.entry(flight.tier.clone()).or_default().correct(self.now, of, used - reserved);
        }
        node.limiter.settle(self.now, flight.ticket, settlement);
        let pool = PoolId::new(POOL);
        let counted = node.usage(self.now).pools.get(&pool).map(|pool| pool.in_flight);
        let expected = node.in_flight;
        if counted.is_some_and(|counted| counted != expected) {
            let detail = format!("node counts {counted:?} in flight, there are {expected}");
            self.break_promise(Promise::SlotsBalance, detail);
        }
    }
}
