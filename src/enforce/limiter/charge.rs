//! From reservation to settlement: everything that changes a counter of an admitted request.

use crate::enforce::allowance::Allowance;
use crate::enforce::bucket::Bucket;
use crate::enforce::keys::KeyState;
use crate::enforce::ticket::{Costs, Scope, Settlement, Ticket};
use crate::planted::bug;
use crate::unit::Instant;
use crate::wire::Held;

use super::Limiter;
use super::rows::{PoolState, RowState, Rules};

/// Weight of the newest request in the learned output.
const OUTPUT_GAIN: f64 = 0.05;

pub(super) fn charge(
    ticket: &mut Ticket,
    row: &mut RowState,
    pool: &mut PoolState,
    key: Option<&mut KeyState>,
    held: &Held,
    now: Instant,
) {
    let costs = ticket.reserved;
    if let Some(rules) = row.rules {
        take(ticket, &mut row.buckets, Scope::Tier, &rules, held, now);
        if let Some(key) = key {
            take(ticket, &mut key.buckets, Scope::Key, &rules, held, now);
            key.in_flight = key.in_flight.saturating_add(1);
            key.row = ticket.row;
        }
    }
    row.in_flight = row.in_flight.saturating_add(1);
    row.counted.admitted.add(costs.work);
    pool.in_flight = pool.in_flight.saturating_add(1);
    pool.waiting = pool.waiting.saturating_add(ticket.waiting);
}

fn take(
    ticket: &mut Ticket,
    buckets: &mut [Bucket; 3],
    scope: Scope,
    rules: &Rules,
    held: &Held,
    now: Instant,
) {
    let costs = ticket.reserved.rates();
    for (at, ((bucket, entry), cost)) in buckets.iter_mut().zip(&rules.limits).zip(costs).enumerate() {
        let rate =
            entry.as_ref().and_then(|entry| Allowance::of(held, entry, scope, rules.portion, now).rate());
        if let Some(rate) = rate {
            bucket.touch(now, rate);
            bucket.charge(cost);
            ticket.charged |= Ticket::bit(scope, at);
        }
    }
}

fn correct(
    ticket: &Ticket,
    buckets: &mut [Bucket; 3],
    scope: Scope,
    actual: &Costs,
    rules: Option<(&Rules, &Held, Instant)>,
) {
    let amounts = ticket.reserved.rates().into_iter().zip(actual.rates());
    for (at, (bucket, (reserved, used))) in buckets.iter_mut().zip(amounts).enumerate() {
        if ticket.charged & Ticket::bit(scope, at) == 0 {
            continue;
        }
        // Drained to now first, or the refund would be taken from what has drained already.
        if let Some((rules, held, now)) = rules
            && let Some(entry) = rules.limits.get(at).copied().flatten()
            && let Some(rate) = Allowance::of(held, &entry, scope, rules.portion, now).rate()
        {
            bucket.touch(now, rate);
        }
        bucket.correct(reserved, used);
    }
}

// === impl Limiter ===

impl Limiter {
    /// The request waits no longer. Calling it again changes nothing.
    pub fn first_token(&mut self, _now: Instant, ticket: &mut Ticket) {
        let waiting = std::mem::take(&mut ticket.waiting);
        if let Some(pool) = self.rows.pool_mut(ticket.pool) {
            pool.waiting = pool.waiting.saturating_sub(waiting);
        }
    }

    /// An upstream failed before it got the request; another one is tried under the same ticket.
    pub fn attempt_failed(&mut self, ticket: &Ticket) {
        if let Some(pool) = self.rows.pool_mut(ticket.pool) {
            pool.upstream_requests = pool.upstream_requests.saturating_add(1);
            pool.upstream_errors = pool.upstream_errors.saturating_add(1);
        }
    }

    /// Ends a reservation: what was reserved is replaced by what was used.
    pub fn settle(&mut self, now: Instant, mut ticket: Ticket, outcome: Settlement) {
        self.first_token(now, &mut ticket);
        let Limiter { held, rows, keys, .. } = self;
        if let Some(pool) = rows.pool_mut(ticket.pool) {
            let leaks = bug("slot-leak") && matches!(outcome, Settlement::Broken { .. });
            pool.in_flight = pool.in_flight.saturating_sub(u64::from(!leaks));
            pool.count(outcome);
        }
        let Some(row) = rows.get_mut(ticket.row) else { return };
        if let Settlement::Used { output_tokens, .. } = outcome {
            row.learn(output_tokens);
        }
        let actual = row.actual(&ticket, outcome);
        row.in_flight = row.in_flight.saturating_sub(1);
        let admitted = &mut row.counted.admitted;
        admitted.requests = admitted.requests.saturating_sub(1).saturating_add(actual.requests);
        admitted.work = admitted.work.saturating_sub(ticket.reserved.work).saturating_add(actual.work);
        row.settled_work = row.settled_work.saturating_add(actual.work);
        let rules = row.rules;
        let context = rules.as_ref().zip(held.as_ref()).map(|(rules, held)| (rules, held, now));
        correct(&ticket, &mut row.buckets, Scope::Tier, &actual, context);
        if let Some(slot) = ticket.key {
            keys.release(slot, |key| {
                key.in_flight = key.in_flight.saturating_sub(1);
                correct(&ticket, &mut key.buckets, Scope::Key, &actual, context);
            });
        }
    }

    /// Learned output tokens of a request; none before the first was settled.
    pub fn output_expected(&self, model: &str, tier: &str) -> Option<f64> {
        let row = self.rows.find(model, tier).ok().and_then(|at| self.rows.get(at))?;
        row.output
    }
}

// === impl RowState ===

impl RowState {
    fn learn(&mut self, output_tokens: u64) {
        let seen = output_tokens as f64;
        self.output = Some(match self.output {
            None => seen,
            Some(learned) => learned + OUTPUT_GAIN * (seen - learned),
        });
    }

    fn actual(&self, ticket: &Ticket, outcome: Settlement) -> Costs {
        let reserved = ticket.reserved;
        let price = |input, output, images| match &self.rules {
            Some(rules) => rules.costs(input, output, images),
            // The row left the table meanwhile; what was reserved is the best that is known.
            None => reserved,
        };
        match outcome {
            Settlement::Used { input_tokens, output_tokens, images, .. } => {
                price(input_tokens, output_tokens, images)
            }
            Settlement::Broken { output_seen } | Settlement::Died { output_seen } => {
                let seen = price(ticket.input_tokens, output_seen, reserved.images);
                Costs {
                    requests: 1,
                    tokens: seen.tokens.max(reserved.tokens),
                    images: reserved.images,
                    work: seen.work.max(reserved.work),
                }
            }
            Settlement::NotSent => Costs::default(),
            Settlement::UpstreamError | Settlement::Rejected => Costs { requests: 1, ..Costs::default() },
        }
    }
}

// === impl PoolState ===

impl PoolState {
    fn count(&mut self, outcome: Settlement) {
        if outcome == Settlement::NotSent {
            return;
        }
        self.upstream_requests = self.upstream_requests.saturating_add(1);
        if matches!(outcome, Settlement::UpstreamError | Settlement::Died { .. }) {
            self.upstream_errors = self.upstream_errors.saturating_add(1);
        }
    }
}
