//! From reservation to settlement: everything that changes a counter of an admitted request.

use crate::enforce::meters::Amounts;
use crate::enforce::slot::{Basis, Slot, Terms, View};
use crate::enforce::ticket::{Costs, JobSlot, Places, Request, Settlement, Ticket};
use crate::planted::bug;
use crate::unit::Instant;

use super::Limiter;
use super::admit::Shard;
use super::rules::Built;
use super::sync::lock;

// === impl Limiter ===

impl Limiter {
    /// The request waits no longer. Calling it again changes nothing.
    pub fn first_token(&self, now: Instant, ticket: &mut Ticket) {
        let waiting = std::mem::take(&mut ticket.waiting);
        if waiting == 0 {
            return;
        }
        let shard = self.shard(ticket.place.shard);
        if let Some(pool) = shard.rules.pool(ticket.pool) {
            lock(&pool.cell.state).first_token(now, waiting, ticket.admitted_at);
        }
    }

    /// An upstream failed before it got the request; another one is tried under the same ticket.
    pub fn attempt_failed(&self, ticket: &Ticket) {
        let shard = self.shard(ticket.place.shard);
        if let Some(pool) = shard.rules.pool(ticket.pool) {
            lock(&pool.cell.state).count(Settlement::UpstreamError);
        }
    }

    /// A stream has come this far. Where it outgrows its estimate the reservation grows with it, so
    /// that limits on tokens bind while it flows.
    pub fn progress(&self, now: Instant, ticket: &mut Ticket, output_seen: u64) {
        if output_seen <= ticket.output {
            return;
        }
        let mut shard = self.shard(ticket.place.shard);
        let Some(row) = shard.rules.row(ticket.place.row).filter(|row| row.live) else {
            return;
        };
        let costs = row.costs(ticket.input_tokens, 0, output_seen, ticket.reserved.images);
        shard.replace(now, ticket, &costs, false);
        (ticket.reserved, ticket.output) = (costs, output_seen);
    }

    /// Ends a reservation: what was reserved is replaced by what was used.
    pub fn settle(&self, now: Instant, ticket: Ticket, outcome: Settlement) {
        let mut shard = self.shard(ticket.place.shard);
        let Some(actual) = shard.rules.row(ticket.place.row).map(|row| row.actual(&ticket, outcome)) else {
            return;
        };
        shard.replace(now, &ticket, &actual, true);
        shard.finish(&ticket, &actual, outcome);
    }

    /// A job is over, whatever became of it.
    pub fn release_job(&self, slot: JobSlot) {
        self.shard(slot.place.shard).end_job(&slot.place);
    }

    /// Counts a job that began in a former life of the node, without a test: it is running. None
    /// where the table has no such row.
    pub fn adopt_job(&self, now: Instant, request: &Request<'_>) -> Option<JobSlot> {
        self.shard(self.shard_of(request)).adopt_job(now, request)
    }

    /// Learned output tokens of a request; none before the first was settled.
    pub fn output_expected(&self, model: &str, tier: &str) -> Option<f64> {
        let shard = self.shard(0);
        let (_, row) = shard.rules.find(model, tier).ok()?;
        row.cell.output()
    }
}

// === impl Shard ===

impl Shard {
    /// Puts other costs in the place of what is reserved, in every rate that took it; `ends` ends
    /// the request's counts.
    fn replace(&mut self, now: Instant, ticket: &Ticket, actual: &Costs, ends: bool) {
        let Shard { held, valid_until, rules, wall, keys, .. } = self;
        let Some(row) = rules.row(ticket.place.row) else { return };
        let view = View { flows: &rules.flows, now, minute: wall.minute(now) };
        let steered = held.as_ref().filter(|_| now >= *valid_until).map(|held| row.steered(held, now));
        let tier = steered.as_ref().map_or(&*row.tier, Built::limits);
        let (before, after) = (ticket.reserved.weighted(row.unit), actual.weighted(row.unit));
        let [of_tier, of_key, of_account, of_model] = ticket.charged;
        {
            let mut counted = row.cell.counted(ticket.place.shard);
            let admitted = &mut counted.admitted;
            admitted.requests = admitted.requests.saturating_sub(1).saturating_add(actual.requests);
            admitted.work = admitted.work.saturating_sub(ticket.reserved.work).saturating_add(actual.work);
        }
        {
            let mut meters = lock(&row.cell.meters);
            // A row that is not in the table limits nothing.
            let tier = if row.live { tier } else { &[] };
            meters.correct(now, tier, of_tier, &before, &after);
            meters.end(ends, ends && ticket.job);
        }
        let (before, after): (Amounts, Amounts) = (ticket.reserved.rates(), actual.rates());
        if let Some(model) = ticket.place.model.and_then(|at| rules.models.get(at as usize)) {
            let mut meters = lock(&model.state);
            meters.correct(now, &model.limits, of_model, &before, &after);
            meters.end(ends, ends && ticket.job);
        }
        let work = (ticket.reserved.work, actual.work);
        let parties =
            [(ticket.place.key, of_key, &*row.key), (ticket.place.account, of_account, &*row.account)];
        for ((slot, charged, limits), own) in parties.into_iter().zip(ticket.own) {
            let Some(slot) = slot else { continue };
            let basis = Basis::of(row.window, own.iter().any(|rate| *rate > 0));
            let share = row.share.as_ref().filter(|_| Some(slot) == ticket.place.key);
            let share = share.filter(|share| share.fits(limits));
            let terms = Terms { row: ticket.place.row, limits, basis, own, share };
            // What a minute that is over has admitted counts in it and in no other.
            let late = basis == Basis::Minute && ticket.minute != view.minute.number;
            keys.release(slot, ends, ends && ticket.job, |slot: &mut Slot| {
                if !late {
                    slot.correct(&terms, charged, (&before, work.0), (&after, work.1), &view);
                }
            });
        }
    }

    /// What a request leaves behind in counters that nothing limits.
    fn finish(&mut self, ticket: &Ticket, actual: &Costs, outcome: Settlement) {
        let Some(row) = self.rules.row(ticket.place.row) else { return };
        {
            let mut counted = row.cell.counted(ticket.place.shard);
            counted.settled_work = counted.settled_work.saturating_add(actual.work);
        }
        if let Settlement::Used { output_tokens, .. } = outcome {
            row.cell.learn(output_tokens);
        }
        let Some(pool) = self.rules.pool(ticket.pool) else { return };
        let mut pool = lock(&pool.cell.state);
        let leaks = bug("slot-leak") && matches!(outcome, Settlement::Broken { .. });
        pool.in_flight = pool.in_flight.saturating_sub(u64::from(!leaks));
        pool.waiting = pool.waiting.saturating_sub(ticket.waiting);
        pool.count(outcome);
    }

    fn end_job(&mut self, place: &Places) {
        let Shard { rules, keys, .. } = self;
        if let Some(row) = rules.row(place.row) {
            lock(&row.cell.meters).end(false, true);
        }
        if let Some(model) = place.model.and_then(|at| rules.models.get(at as usize)) {
            lock(&model.state).end(false, true);
        }
        for slot in [place.key, place.account].into_iter().flatten() {
            keys.release(slot, false, true, |_| {});
        }
    }
}
