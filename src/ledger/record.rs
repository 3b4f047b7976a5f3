//! What one holder has used and reserved: counters of days, months and all time.
//!
//! A [`Record`] changes by [`Entry`]s only, and each entry changes it once: it remembers the last
//! one's number. What a request reserved stays until it is settled, so a record that is read back
//! from disk still knows what was in flight. Amounts are integers: tokens, and millionths of a
//! dollar.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Place;

use crate::ledger::period::Kind;
use crate::ledger::period::PeriodId;
use crate::ledger::period::Periods;
use crate::unit::Limit;
use crate::unit::ProductId;

/// SHA-256 of an account's name or of a key.
pub type Id = [u8; 32];

/// Whose record: an account's, or that of one of its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    pub account: Id,
    pub key: Option<Id>,
}

/// Input and output tokens together, and micro-dollars.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    pub tokens: u64,
    pub micros: u64,
}

/// One request of one holder in the journal. `id` is the request's, never used again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Rises by one from entry to entry, across restarts.
    pub seq: u64,
    pub step: Step,
    pub id: u64,
    pub holder: Holder,
    pub booked: Booked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Replaces what the same request had reserved before.
    Reserve,
    /// Replaces what was reserved, whatever that was.
    Settle,
}

/// What a request takes, and in which periods: those of its admission, however long it lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Booked {
    pub product: ProductId,
    pub day: PeriodId,
    pub month: PeriodId,
    pub amount: Amount,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The last entry that changed it.
    pub(super) seq: u64,
    /// Micro-dollars of all time, which credit is compared with.
    pub(super) spent: u64,
    /// Reserved and not settled.
    pub(super) open: BTreeMap<u64, Booked>,
    /// Micro-dollars of those together.
    held: u64,
    pub(super) meters: BTreeMap<ProductId, Meter>,
}

/// Counters of one product. The former period is kept for requests that began in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meter {
    pub(super) days: [Slot; 2],
    pub(super) months: [Slot; 2],
}

/// One period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    pub(super) id: PeriodId,
    pub(super) used: Amount,
    /// By requests in flight.
    pub(super) held: Amount,
}

/// The limits of one holder that this node may fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub tokens_per_day: Limit,
    pub spend_per_day: Limit,
    pub spend_per_month: Limit,
    /// Micro-dollars of all time; none where credit does not matter.
    pub credit: Option<u64>,
}

/// What ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    TokensPerDay,
    SpendPerDay,
    SpendPerMonth,
    Credit,
}

/// What is left of one of the [`Limits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    pub what: What,
    pub limit: u64,
    /// Settled.
    pub used: u64,
    /// By requests in flight.
    pub held: u64,
}

// === impl Amount ===

impl Amount {
    pub(super) fn plus(self, other: Amount) -> Amount {
        Amount {
            tokens: self.tokens.saturating_add(other.tokens),
            micros: self.micros.saturating_add(other.micros),
        }
    }

    fn minus(self, other: Amount) -> Amount {
        Amount {
            tokens: self.tokens.saturating_sub(other.tokens),
            micros: self.micros.saturating_sub(other.micros),
        }
    }
}

// === impl Record ===

impl Record {
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Micro-dollars settled in all time.
    pub fn spent(&self) -> u64 {
        self.spent
    }

    /// Requests in flight.
    pub fn open(&self) -> impl Iterator<Item = (u64, &Booked)> {
        self.open.iter().map(|(id, booked)| (*id, booked))
    }

    /// Applies an entry that was not applied before; says whether it did.
    pub fn apply(&mut self, entry: &Entry) -> bool {
        if entry.seq <= self.seq {
            return false;
        }
        self.seq = entry.seq;
        match entry.step {
            Step::Reserve => self.reserve(entry.id, entry.booked.clone()),
            Step::Settle => {
                self.release(entry.id);
                self.book(&entry.booked);
            }
        }
        true
    }

    /// Settles everything in flight at what it reserved: what remains of a node that died.
    pub fn settle_all(&mut self) -> usize {
        let open = std::mem::take(&mut self.open);
        for booked in open.values() {
            self.unhold(booked);
            self.book(booked);
        }
        open.len()
    }

    /// The periods that a request of now is booked in: those of the calendar, or the last ones in
    /// which anything was booked where the clock has been put back since.
    pub fn periods(&self, product: &ProductId, calendar: &Periods) -> (PeriodId, PeriodId) {
        match self.meters.get(product) {
            None => (calendar.day, calendar.month),
            Some(Meter { days: [day, _], months: [month, _] }) => {
                (calendar.day.max(day.id), calendar.month.max(month.id))
            }
        }
    }

    /// What is left of every limit there is.
    pub fn left(
        &self,
        product: &ProductId,
        (day, month): (PeriodId, PeriodId),
        limits: &Limits,
    ) -> impl Iterator<Item = Left> + use<> {
        let meter = self.meters.get(product).copied().unwrap_or_default();
        let [day, month] = [Meter::of(&meter.days, day), Meter::of(&meter.months, month)];
        let credit = limits.credit.map_or(Limit::Unlimited, Limit::Finite);
        [
            (What::TokensPerDay, limits.tokens_per_day, day.used.tokens, day.held.tokens),
            (What::SpendPerDay, limits.spend_per_day, day.used.micros, day.held.micros),
            (What::SpendPerMonth, limits.spend_per_month, month.used.micros, month.held.micros),
            (What::Credit, credit, self.spent, self.held),
        ]
        .into_iter()
        .filter_map(|(what, limit, used, held)| Some(Left { what, limit: limit.finite()?, used, held }))
    }

    /// Products that were used in a period that still lasts.
    pub fn products(&self) -> impl Iterator<Item = &ProductId> {
        self.meters.keys()
    }

    /// Forgets meters whose periods ended before those of `now`; says whether nothing is left
    /// that has to be kept.
    pub fn prune(&mut self, day: PeriodId, month: PeriodId) -> bool {
        // One more than the former period: zones differ by up to a day.
        let over = |slots: &[Slot; 2], now: PeriodId| {
            slots.iter().all(|slot| slot.held == Amount::default() && slot.id.0 < now.0.saturating_sub(2))
        };
        self.meters.retain(|_, meter| !(over(&meter.days, day) && over(&meter.months, month)));
        self.meters.is_empty() && self.open.is_empty() && self.spent == 0
    }

    /// As read back from disk, where amounts held are not written beside what holds them.
    pub(super) fn restored(seq: u64, spent: u64, meters: BTreeMap<ProductId, Meter>) -> Record {
        Record { seq, spent, meters, ..Record::default() }
    }

    pub(super) fn reserve(&mut self, id: u64, booked: Booked) {
        self.release(id);
        self.held = self.held.saturating_add(booked.amount.micros);
        let meter = self.meters.entry(booked.product.clone()).or_default();
        for slot in meter.slots(&booked) {
            slot.held = slot.held.plus(booked.amount);
        }
        self.open.insert(id, booked);
    }

    fn release(&mut self, id: u64) {
        if let Place::Occupied(open) = self.open.entry(id) {
            let booked = open.remove();
            self.unhold(&booked);
        }
    }

    fn unhold(&mut self, booked: &Booked) {
        self.held = self.held.saturating_sub(booked.amount.micros);
        let Some(meter) = self.meters.get_mut(&booked.product) else { return };
        for slot in meter.slots(booked) {
            slot.held = slot.held.minus(booked.amount);
        }
    }

    fn book(&mut self, booked: &Booked) {
        self.spent = self.spent.saturating_add(booked.amount.micros);
        let meter = self.meters.entry(booked.product.clone()).or_default();
        for slot in meter.slots(booked) {
            slot.used = slot.used.plus(booked.amount);
        }
    }
}

// === impl Meter ===

impl Default for Meter {
    fn default() -> Meter {
        let slot = Slot { id: PeriodId(i32::MIN), used: Amount::default(), held: Amount::default() };
        Meter { days: [slot; 2], months: [slot; 2] }
    }
}

impl Meter {
    /// The slots of an amount's periods. One that is older than the former period has none: it
    /// counts in the total of all time only.
    fn slots(&mut self, booked: &Booked) -> impl Iterator<Item = &mut Slot> {
        let Meter { days, months } = self;
        Meter::slot(days, booked.day).into_iter().chain(Meter::slot(months, booked.month))
    }

    fn slot(slots: &mut [Slot; 2], id: PeriodId) -> Option<&mut Slot> {
        let [current, former] = slots;
        if id > current.id {
            *former = *current;
            *current = Slot { id, used: Amount::default(), held: Amount::default() };
        } else if id > former.id && id < current.id {
            *former = Slot { id, used: Amount::default(), held: Amount::default() };
        }
        slots.iter_mut().find(|slot| slot.id == id)
    }

    fn of(slots: &[Slot; 2], id: PeriodId) -> Slot {
        let found = slots.iter().find(|slot| slot.id == id);
        found.copied().unwrap_or(Slot { id, used: Amount::default(), held: Amount::default() })
    }
}

// === impl Limits ===

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            tokens_per_day: Limit::Unlimited,
            spend_per_day: Limit::Unlimited,
            spend_per_month: Limit::Unlimited,
            credit: None,
        }
    }
}

// === impl Left ===

impl Left {
    pub fn remaining(&self) -> u64 {
        self.limit.saturating_sub(self.used).saturating_sub(self.held)
    }

    /// The part of an amount that this limit is about.
    pub fn part(&self, amount: Amount) -> u64 {
        match self.what {
            What::TokensPerDay => amount.tokens,
            What::SpendPerDay | What::SpendPerMonth | What::Credit => amount.micros,
        }
    }
}

// === impl What ===

impl What {
    /// The period after which there is more of it; credit has none.
    pub fn period(self) -> Option<Kind> {
        match self {
            What::TokensPerDay | What::SpendPerDay => Some(Kind::Day),
            What::SpendPerMonth => Some(Kind::Month),
            What::Credit => None,
        }
    }
}
