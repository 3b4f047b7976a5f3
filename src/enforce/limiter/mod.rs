//! One node's counters for every pool, tier and key, and the verdict on a request.
//!
//! Pure: no clock, no lock, no log. A request is tested against everything first and charged
//! only when all of it agrees, so a refusal changes no counter. Counters belong to names, not to
//! tables: a new table changes what they are compared with, never what they hold.

mod charge;
mod rows;
#[cfg(test)]
mod tests;
mod usage;

use std::time::Duration;

use crate::enforce::allowance::{Allowance, window};
use crate::enforce::keys::{KeyName, KeyState, Keys, Place};
use crate::enforce::ticket::{
    Cap, Costs, KeyId, RATES, Refusal, RefusalReason, Request, Scope, Ticket, Verdict,
};
use crate::planted::bug;
use crate::unit::{Dimension, Instant, Limit, NodeId, PPM};
use crate::wire::Yields;
use crate::wire::{Held, LimitTable, Offer, TableError};

pub use usage::RowCounts;

use rows::{PoolState, Rows, Rules};

/// Retry-After where no exact time is known: a count that is full, a pool without room.
pub const RETRY_SOON: Duration = Duration::from_secs(1);
/// Retry-After of a limit of zero, which no wait satisfies.
pub const RETRY_ZERO: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Limiter {
    node: NodeId,
    held: Option<Held>,
    rows: Rows,
    keys: Keys,
}

/// One dimension's standing for one key, as answers print it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    pub dimension: Dimension,
    pub scope: Scope,
    /// Of all nodes together, per minute.
    pub limit: u64,
    /// Left at this node now; never above `limit`.
    pub remaining: u64,
    /// Until `remaining` is whole again.
    pub reset: Duration,
}

/// A refusal in the making: the longest wait of all tests that failed.
#[derive(Debug, Default)]
struct Worst(Option<Refusal>);

// === impl Limiter ===

impl Limiter {
    /// `keys_max` bounds the states of keys, one per key and model.
    pub fn new(node: NodeId, keys_max: usize) -> Limiter {
        Limiter { node, held: None, rows: Rows::default(), keys: Keys::new(keys_max) }
    }

    pub fn held(&self) -> Option<&Held> {
        self.held.as_ref()
    }

    pub fn node(&self) -> &NodeId {
        &self.node
    }

    /// Key states in memory, at most `keys_max`.
    pub fn keys_held(&self) -> usize {
        self.keys.len()
    }

    /// Takes a table that is newer than the one held; it binds on the next request.
    ///
    /// # Errors
    /// Whatever [`Held::offer`] finds; the table held stays in force.
    pub fn offer(&mut self, table: LimitTable, now: Instant) -> Result<Offer, TableError> {
        let offer = Held::offer(self.held.as_ref(), table, now)?;
        match &offer {
            Offer::Applied(held) => {
                self.rows.apply(&held.table, &self.node)?;
                self.held = Some(held.clone());
            }
            Offer::Renewed(held) => self.held = Some(held.clone()),
            Offer::Stale => {}
        }
        Ok(offer)
    }

    /// [`Limiter::restore_aged`] for a table that was valid until just now.
    ///
    /// # Errors
    /// As there.
    pub fn restore(&mut self, table: LimitTable, now: Instant) -> Result<(), TableError> {
        self.restore_aged(table, Duration::ZERO, now)
    }

    /// Takes the table of a former life, last renewed `age` ago: expired already, so that it steers
    /// toward `safe` from here on until a controller renews it, and no further up than it was when
    /// the former life ended. Nothing happens when a newer one is held.
    ///
    /// `now` must lie at least the table's validity above zero for that; a shell starts its clock
    /// accordingly.
    ///
    /// # Errors
    /// The table is not valid.
    pub fn restore_aged(&mut self, table: LimitTable, age: Duration, now: Instant) -> Result<(), TableError> {
        table.validate()?;
        if self.held.as_ref().is_some_and(|held| held.stamp() >= table.stamp) {
            return Ok(());
        }
        self.rows.apply(&table, &self.node)?;
        let age = age.max(Duration::from_millis(table.valid_for_ms));
        self.held = Some(Held::fresh(table, now - age));
        Ok(())
    }

    /// Tests everything, then charges everything.
    pub fn admit(&mut self, now: Instant, request: &Request<'_>) -> Verdict {
        let Limiter { held, rows, keys, .. } = self;
        let Some(held) = held.as_ref() else {
            return refuse(RefusalReason::NoTable, RETRY_SOON);
        };
        let found = match rows.find(request.model, request.tier) {
            Ok(found) => found,
            Err(reason) => return refuse(reason, RETRY_ZERO),
        };
        let place = rows.get(found).and_then(|row| {
            row.rules.filter(Rules::counts_keys)?;
            let name = KeyName { key: request.key, model: row.model_index };
            Some((name, keys.place(&name, |state| is_idle(state, rows, held, now))))
        });
        let Some((row, pool)) = rows.pair(found) else {
            return refuse(RefusalReason::UnknownModel, RETRY_ZERO);
        };
        let Some(rules) = row.rules else {
            return refuse(RefusalReason::UnknownModel, RETRY_ZERO);
        };
        let costs = row.costs(&rules, request);
        row.counted.offered.add(costs.work);
        let mut worst = Worst::default();
        row.test_tier(&rules, held, now, &costs, &mut worst);
        if let Some((name, place)) = place {
            test_key(keys, place, &name, &rules, held, now, &costs, &mut worst);
        }
        if let Some(refusal) = worst.0 {
            row.counted.refused_limit.add(costs.work);
            if bug("refused-charges") {
                row.buckets.iter_mut().zip(costs.rates()).for_each(|(bucket, cost)| bucket.charge(cost));
            }
            return Verdict::Refused(refusal);
        }
        if let Some(cap) = pool.has_no_room(rules.yields) {
            row.counted.refused_capacity.add(costs.work);
            return refuse(RefusalReason::Capacity { cap }, RETRY_SOON);
        }
        let slot = place.map(|(name, place)| keys.take(name, place));
        let mut ticket = Ticket {
            row: found,
            pool: rules.pool,
            key: slot,
            reserved: costs,
            input_tokens: request.input_tokens,
            charged: 0,
            waiting: if request.streamed { costs.work } else { 0 },
            admitted_at: now,
        };
        charge::charge(&mut ticket, row, pool, slot.and_then(|slot| keys.state_mut(slot)), held, now);
        Verdict::Admitted(ticket)
    }

    /// How a key stands in each rate dimension its row limits. Where both bind, the tighter one.
    pub fn quotas(&self, now: Instant, model: &str, tier: &str, key: KeyId) -> [Option<Quota>; 3] {
        self.quotas_after(now, model, tier, key, None)
    }

    /// As [`Limiter::quotas`], but the limit that just refused a request is shown whatever else binds.
    pub fn quotas_after(
        &self,
        now: Instant,
        model: &str,
        tier: &str,
        key: KeyId,
        refused: Option<(Scope, Dimension)>,
    ) -> [Option<Quota>; 3] {
        let Some(held) = self.held.as_ref() else {
            return [None; 3];
        };
        let row = self.rows.find(model, tier).ok().and_then(|at| self.rows.get(at));
        let Some((row, rules)) = row.and_then(|row| row.rules.map(|rules| (row, rules))) else {
            return [None; 3];
        };
        let name = KeyName { key, model: row.model_index };
        let state = self.keys.find(&name).and_then(|slot| self.keys.state(slot));
        let unused = KeyState::default();
        let keyed = state.unwrap_or(&unused);
        std::array::from_fn(|at| {
            let entry = rules.limits.get(at).copied().flatten()?;
            let dimension = RATES.get(at).copied()?;
            let one = |scope, bucket: Option<&crate::enforce::bucket::Bucket>| {
                let Allowance::Finite { limit, micro } =
                    Allowance::of(held, &entry, scope, rules.portion, now)
                else {
                    return None;
                };
                let (remaining, reset) = bucket?.remaining(now, micro, window(scope));
                Some(Quota { dimension, scope, limit, remaining: remaining.min(limit), reset })
            };
            let tier = one(Scope::Tier, row.buckets.get(at));
            let key = one(Scope::Key, keyed.buckets.get(at));
            match (tier, key) {
                (Some(tier), _) if refused == Some((Scope::Tier, dimension)) => Some(tier),
                (_, Some(key)) if refused == Some((Scope::Key, dimension)) => Some(key),
                (Some(tier), Some(key)) if tier.limit < key.limit => Some(tier),
                (tier, key) => key.or(tier),
            }
        })
    }
}

/// Tests a key's counters; a new key is tested as the state it would start with.
#[expect(clippy::too_many_arguments, reason = "one test against everything a verdict depends on")]
fn test_key(
    keys: &mut Keys,
    place: Place,
    name: &KeyName,
    rules: &Rules,
    held: &Held,
    now: Instant,
    costs: &Costs,
    worst: &mut Worst,
) {
    let in_flight = keys.in_flight(name, place);
    if let Some(state) = keys.view(place, name.model) {
        test_rates(&mut state.buckets, Scope::Key, rules, held, now, costs, worst);
    }
    test_count(in_flight, Scope::Key, rules, held, now, worst);
}

fn test_rates(
    buckets: &mut [crate::enforce::bucket::Bucket; 3],
    scope: Scope,
    rules: &Rules,
    held: &Held,
    now: Instant,
    costs: &Costs,
    worst: &mut Worst,
) {
    let rates = buckets.iter_mut().zip(&rules.limits).zip(RATES).zip(costs.rates());
    for (((bucket, entry), dimension), cost) in rates {
        let Some(entry) = entry else { continue };
        let allowance = Allowance::of(held, entry, scope, rules.portion, now);
        let Some(rate) = allowance.rate() else { continue };
        // Draining is no charge; the rate is remembered so that the promised wait comes true.
        bucket.touch(now, rate);
        if cost == 0 {
            continue;
        }
        if let Some(wait) = bucket.wait(now, rate, cost, window(scope)) {
            let reason = RefusalReason::Limit { scope, dimension, limit: allowance.limit() };
            worst.add(reason, wait.unwrap_or(RETRY_ZERO));
        }
    }
}

fn test_count(in_flight: u64, scope: Scope, rules: &Rules, held: &Held, now: Instant, worst: &mut Worst) {
    let Some(entry) = rules.concurrency else { return };
    let allowance = Allowance::of(held, &entry, scope, rules.portion, now);
    let Some(count) = allowance.count() else { return };
    if in_flight >= count {
        let dimension = Dimension::Concurrency;
        let reason = RefusalReason::Limit { scope, dimension, limit: allowance.limit() };
        worst.add(reason, if count == 0 { RETRY_ZERO } else { RETRY_SOON });
    }
}

/// Full in every bucket under the limits of its own row. A key whose row left the table is full
/// when nothing is left of its use at the last known rate.
fn is_idle(state: &KeyState, rows: &Rows, held: &Held, now: Instant) -> bool {
    let rules = rows.get(state.row).and_then(|row| row.rules.as_ref());
    state.buckets.iter().enumerate().all(|(at, bucket)| {
        let entry = rules.and_then(|rules| rules.limits.get(at).copied().flatten());
        let rate = entry.and_then(|entry| {
            let portion = rules.map(|rules| rules.portion)?;
            Allowance::of(held, &entry, Scope::Key, portion, now).rate()
        });
        bucket.is_full(now, rate.unwrap_or(u128::MAX))
    })
}

fn refuse(reason: RefusalReason, retry_after: Duration) -> Verdict {
    Verdict::Refused(Refusal::new(reason, retry_after))
}

// === impl Worst ===

impl Worst {
    fn add(&mut self, reason: RefusalReason, retry_after: Duration) {
        if self.0.as_ref().is_none_or(|known| known.retry_after < retry_after) {
            self.0 = Some(Refusal::new(reason, retry_after));
        }
    }
}

// === impl PoolState ===

impl PoolState {
    /// Whether the pool's caps leave room for a tier that yields this part of them.
    ///
    /// The test is on what is there already, so that one large request is never starved.
    fn has_no_room(&self, yields: Yields) -> Option<Cap> {
        let rules = self.rules?;
        let left = |yields: u32| u128::from(rules.portion.ppm()) * u128::from(PPM.saturating_sub(yields));
        let part = left(yields.waiting);
        let whole = u128::from(PPM) * u128::from(PPM);
        if let Limit::Finite(cap) = rules.waiting_work
            && u128::from(self.waiting) * whole >= u128::from(cap) * part
        {
            return Some(Cap::WaitingWork);
        }
        if let Limit::Finite(cap) = rules.in_flight {
            let part = left(yields.in_flight);
            let held = (u128::from(cap) * part).div_ceil(whole);
            // A tier that yields everything but one slot of a living pool is not shut out.
            let least = u128::from(cap > 0 && rules.portion.ppm() > 0);
            if u128::from(self.in_flight) >= held.max(least) {
                return Some(Cap::InFlight);
            }
        }
        None
    }
}
