//! The decision: everything is tested, and only when all of it agrees is anything charged.

use std::sync::Arc;
use std::time::Duration;

use crate::enforce::allowance::Allowance;
use crate::enforce::bucket::Rate;
use crate::enforce::keys::{Keys, Name, Place};
use crate::enforce::meters::{Amounts, Charged, Meters, Over, RATES, RETRY_SOON, RETRY_ZERO};
use crate::enforce::minute::Wall;
use crate::enforce::slot::{Basis, Terms, View};
use crate::enforce::ticket::{
    Costs, JobSlot, KeyId, KeySlot, Places, Refusal, RefusalReason, Request, Scope, Ticket,
};
use crate::planted::{bug, without};
use crate::unit::{Instant, Limit};
use crate::wire::{Held, Yields};

use super::cells::{Counted, PoolState};
use super::rules::{Built, Due, ModelRules, PoolLimits, RowRules, Rules};
use super::sync::{MutexGuard, lock};

/// A part of the keys, and what they are tested against. All keys of an account are in one.
#[derive(Debug)]
pub struct Shard {
    pub at: u32,
    pub held: Option<Held>,
    /// Until then the table is valid.
    pub valid_until: Instant,
    pub rules: Arc<Rules>,
    pub wall: Wall,
    pub keys: Keys,
}

/// A key or account on its way through a decision.
struct Party<'a> {
    name: Name,
    terms: Terms<'a>,
    place: Place,
}

/// A request's own limits, where it has some.
pub struct Own {
    pub key: Option<Built>,
    pub account: Option<Built>,
}

/// What requests of all keys share, locked in the one order, as far as the request is limited by
/// it or held in it.
struct Shared<'a> {
    counted: MutexGuard<'a, Counted>,
    tier: Option<MutexGuard<'a, Meters>>,
    model: Option<(&'a ModelRules, MutexGuard<'a, Meters>)>,
    pool: Option<MutexGuard<'a, PoolState>>,
    /// Where the pool's caps bind.
    guarantee: Option<Due<'a>>,
}

/// A refusal in the making: the longest wait of all tests that failed.
#[derive(Default)]
struct Worst(Option<(Scope, Over)>);

// === impl Shard ===

impl Shard {
    /// Counts a running job of a key and account, without a test.
    pub fn adopt_job(&mut self, now: Instant, request: &Request<'_>) -> Option<JobSlot> {
        let Shard { at, rules, wall, keys, .. } = self;
        let (row_at, row) = rules.find(request.model, request.tier).ok()?;
        let view = View { flows: &rules.flows, now, minute: wall.minute(now) };
        let own = Own::of(row, request);
        let (key, account) = parties(keys, row_at, row, request, &own, &view);
        let mut hold = |party: Party<'_>| party.charge(keys, &Amounts::default(), 0, (false, true), &view).0;
        let (key, account) = (key.map(&mut hold), account.map(&mut hold));
        lock(&row.cell.meters).hold(false, true);
        let model = rules.model(row.model).map(|model| {
            lock(&model.state).hold(false, true);
            row.model
        });
        Some(JobSlot { place: Places { shard: *at, row: row_at, model, key, account } })
    }

    /// `stays`: it is in flight until it is settled, and over at once otherwise.
    pub fn admit<T>(
        &mut self,
        now: Instant,
        request: &Request<'_>,
        stays: bool,
        also: impl FnOnce(&Costs) -> Result<T, Refusal>,
    ) -> Result<(Ticket, T), Refusal> {
        let Shard { at, held, valid_until, rules, wall, keys } = self;
        let Some(held) = held else { return Err(Refusal::new(RefusalReason::NoTable, RETRY_SOON)) };
        let unknown = |reason| Refusal::new(reason, RETRY_ZERO);
        let (row_at, row) = rules.find(request.model, request.tier).map_err(unknown)?;
        let pool = rules.pool(row.pool).and_then(|pool| Some((pool, pool.limits.as_ref()?)));
        let (pool, pool_limits) = pool.ok_or_else(|| unknown(RefusalReason::UnknownModel))?;
        let view = View { flows: &rules.flows, now, minute: wall.minute(now) };
        let (costs, output) = row.estimate(request);
        let (plain, weighted) = (costs.rates(), costs.weighted(row.unit));
        let steered = (now >= *valid_until).then(|| row.steered(held, now));
        let tier = steered.as_ref().map_or(&*row.tier, Built::limits);
        let own = Own::of(row, request);
        let (key, account) = parties(keys, row_at, row, request, &own, &view);
        let mut shared = Shared {
            counted: row.cell.counted(*at),
            tier: (stays || !tier.is_empty()).then(|| lock(&row.cell.meters)),
            model: rules.model(row.model).map(|model| (model, lock(&model.state))),
            pool: (stays || pool_limits.bind()).then(|| lock(&pool.cell.state)),
            guarantee: row.guarantee.as_ref().filter(|_| pool_limits.bind()).map(|due| row.due(due, now)),
        };
        shared.counted.offered.add(costs.work);
        let mut worst = Worst::default();
        let share = shared.over_share((row, pool_limits), tier, keys, key.as_ref(), costs.work, &view);
        worst.add(Scope::Key, share);
        if let Some(meters) = &mut shared.tier {
            worst.add(Scope::Tier, meters.test(now, tier, &weighted, request.job));
        }
        for (scope, party) in [(Scope::Key, &key), (Scope::Account, &account)] {
            if let Some(party) = party {
                let (slot, counts) = keys.state(&party.name, party.place);
                worst.add(scope, slot.test(&party.terms, &plain, request.job, counts, &view));
            }
        }
        if let Some((rules, meters)) = &mut shared.model {
            worst.add(Scope::Model, meters.test(now, &rules.limits, &plain, request.job));
        }
        if let Some(refusal) = worst.refusal() {
            shared.refuse(&refusal, share.is_some(), costs.work);
            if let Some(meters) = shared.tier.as_mut().filter(|_| bug("refused-charges")) {
                meters.charge(now, tier, &weighted);
            }
            return Err(refusal);
        }
        shared.has_room(now, (pool_limits, row.yields), costs.work)?;
        let more = also(&costs).inspect_err(|_| shared.counted.refused_limit.add(costs.work))?;
        let mut ticket = Ticket {
            place: Places { shard: *at, row: row_at, model: None, key: None, account: None },
            pool: row.pool,
            reserved: costs,
            input_tokens: request.input_tokens,
            output,
            charged: [Charged::default(); 4],
            own: own.rates(),
            minute: view.minute.number,
            waiting: if request.streamed && stays { costs.work } else { 0 },
            admitted_at: now,
            job: request.job,
        };
        let held = (stays, request.job);
        let mut charge = |party: Option<Party<'_>>| {
            let charged = party.map(|party| party.charge(keys, &plain, costs.work, held, &view));
            charged.map_or((None, Charged::default()), |(slot, charged)| (Some(slot), charged))
        };
        let [_, of_key, of_account, _] = &mut ticket.charged;
        (ticket.place.key, *of_key) = charge(key);
        (ticket.place.account, *of_account) = charge(account);
        shared.charge(&mut ticket, row, tier, stays);
        Ok((ticket, more))
    }
}

// === impl Own ===

impl Own {
    pub fn of(row: &RowRules, request: &Request<'_>) -> Own {
        Own {
            key: request.overrides.key.map(|own| row.overridden(Scope::Key, own)),
            account: request.overrides.account.map(|own| row.overridden(Scope::Account, own)),
        }
    }

    fn rates(&self) -> [[Rate; RATES]; 2] {
        [&self.key, &self.account].map(|own| own.as_ref().map(Built::rates).unwrap_or_default())
    }
}

/// Under what terms a key or account is counted; nothing of it is where nothing is limited.
pub fn terms<'a>(row_at: u32, row: &'a RowRules, scope: Scope, own: Option<&'a Built>) -> Option<Terms<'a>> {
    let limits = own.map_or(row.limits(scope), Built::limits);
    let share = row.share.as_ref().filter(|share| scope == Scope::Key && share.fits(limits));
    if limits.is_empty() && share.is_none() {
        return None;
    }
    let own = own.map(Built::rates);
    Some(Terms {
        row: row_at,
        limits,
        basis: Basis::of(row.window, own.is_some()),
        own: own.unwrap_or_default(),
        share,
    })
}

fn parties<'a>(
    keys: &mut Keys,
    row_at: u32,
    row: &'a RowRules,
    request: &Request<'_>,
    own: &'a Own,
    view: &View<'_>,
) -> (Option<Party<'a>>, Option<Party<'a>>) {
    // A place that may be forgotten is not one of the same request.
    let known = request.account.and(keys.find(Name::new(&request.key, row.span, false).tag));
    let mut party = |scope, id: &KeyId, own, besides| {
        let terms = terms(row_at, row, scope, own)?;
        let name = Name::new(id, row.span, scope == Scope::Account);
        Some(Party { place: keys.place(&name, besides, view), name, terms })
    };
    let besides = known.map(Place::Own);
    let account =
        request.account.as_ref().and_then(|id| party(Scope::Account, id, own.account.as_ref(), besides));
    let besides = account.as_ref().map(|account| account.place);
    (party(Scope::Key, &request.key, own.key.as_ref(), besides), account)
}

// === impl Party ===

impl Party<'_> {
    fn charge(
        self,
        keys: &mut Keys,
        amounts: &Amounts,
        work: u64,
        (stays, job): (bool, bool),
        view: &View<'_>,
    ) -> (KeySlot, Charged) {
        let slot = keys.take(self.name, self.place);
        keys.hold(slot, stays, job);
        let charged = keys.state_mut(slot).map(|state| state.charge(&self.terms, amounts, work, view));
        (slot, charged.unwrap_or_default())
    }
}

// === impl Shared ===

impl Shared<'_> {
    fn has_room(
        &mut self,
        now: Instant,
        (limits, yields): (&PoolLimits, Yields),
        work: u64,
    ) -> Result<(), Refusal> {
        let fits = |(guarantee, admitted): &Due<'_>| {
            guarantee.shortfall(admitted.used_at(now, guarantee.rate), work).is_none()
        };
        let due = self.guarantee.as_ref().is_some_and(fits);
        let full = self.pool.as_ref().and_then(|pool| pool.has_no_room(now, limits, yields, due));
        let Some(cap) = full else { return Ok(()) };
        self.counted.refused_capacity.add(work);
        Err(Refusal::new(RefusalReason::Capacity { cap }, RETRY_SOON))
    }

    fn refuse(&mut self, refusal: &Refusal, by_share: bool, work: u64) {
        self.counted.refused_limit.add(work);
        if by_share {
            self.counted.refused_share.add(work);
        } else if refusal.is_of(Scope::Tier) {
            self.counted.refused_tier.add(work);
        }
    }

    /// Whether the key asks for more than its fair share of a tier that is being used up. While
    /// there is enough for everybody a share binds nobody.
    fn over_share(
        &mut self,
        (row, pool_limits): (&RowRules, &PoolLimits),
        tier: &[Allowance],
        keys: &Keys,
        key: Option<&Party<'_>>,
        work: u64,
        view: &View<'_>,
    ) -> Option<Over> {
        let party = key?;
        let share = party.terms.share?;
        let meters = self.tier.as_mut()?;
        let crowded = self.pool.as_ref().is_some_and(|pool| pool.is_crowded(pool_limits, row.yields));
        if !without("share-when-crowded")
            && !crowded
            && !meters.is_contended(view.now, tier, row.unit.dimension())
        {
            return None;
        }
        keys.state(&party.name, party.place).0.test_share(share, work, view)
    }

    fn charge(&mut self, ticket: &mut Ticket, row: &RowRules, tier: &[Allowance], stays: bool) {
        let (now, job, costs) = (ticket.admitted_at, ticket.job, ticket.reserved);
        let [of_tier, .., of_model] = &mut ticket.charged;
        if let Some(meters) = &mut self.tier {
            *of_tier = meters.charge(now, tier, &costs.weighted(row.unit));
            meters.hold(stays, job);
        }
        if let Some((rules, meters)) = &mut self.model {
            *of_model = meters.charge(now, &rules.limits, &costs.rates());
            meters.hold(stays, job);
            ticket.place.model = Some(row.model);
        }
        self.counted.admitted.add(costs.work);
        if let Some((_, admitted)) = &mut self.guarantee {
            // What is expected of a request stands: on the mean that is what it comes to.
            admitted.charge(costs.work);
        }
        match &mut self.pool {
            Some(pool) if stays => pool.begin(now, ticket.waiting),
            _ => self.counted.settled_work = self.counted.settled_work.saturating_add(costs.work),
        }
    }
}

// === impl Worst ===

impl Worst {
    fn add(&mut self, scope: Scope, over: Option<Over>) {
        if let Some(over) = over
            && self.0.is_none_or(|(_, known)| known.wait < over.wait)
        {
            self.0 = Some((scope, over));
        }
    }

    fn refusal(self) -> Option<Refusal> {
        let (scope, over) = self.0?;
        let limit = Limit::Finite(over.limit);
        let reason = RefusalReason::Limit { scope, dimension: over.dimension, limit };
        let retry_after: Duration = over.wait;
        Some(Refusal { reason, retry_after, active: over.active, never: over.never })
    }
}
