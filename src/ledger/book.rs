//! The records in memory, and the verdict on what a request would take of them.
//!
//! Pure: a request is tested against every budget of its account and key first, and reserved only
//! when all agree. Records are few: one that is on disk as it is in memory may be forgotten, and is
//! read again when it is asked for. Every change is an [`Entry`] for the journal, made and applied
//! in one step.

mod asked;
mod grow;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::ops::Bound;

use crate::ledger::codec;
use crate::ledger::period::PeriodId;
use crate::ledger::period::Periods;
use crate::ledger::period::UnixMs;
use crate::ledger::period::Zone;
use crate::ledger::record::Amount;
use crate::ledger::record::Booked;
use crate::ledger::record::Entry;
use crate::ledger::record::Holder;
use crate::ledger::record::Id;
use crate::ledger::record::Left;
use crate::ledger::record::Limits;
use crate::ledger::record::Record;
use crate::ledger::record::Step;
use crate::ledger::record::What;
use crate::unit::ProductId;

/// Records looked at for one that may be forgotten.
const LOOKED_AT: usize = 64;

#[derive(Debug)]
pub struct Book {
    records: BTreeMap<Holder, Live>,
    records_max: usize,
    /// Where the search for a record to forget goes on.
    hand: Option<Holder>,
    /// Changed since they were last written.
    dirty: BTreeSet<Holder>,
    /// Those of them that the round under way has still to write.
    round: Vec<Holder>,
    /// Records forgotten so far: what was read from disk before one was may be old.
    forgotten: u64,
}

#[derive(Debug)]
struct Live {
    record: Record,
    saved: Saved,
    /// Requests that need it in memory.
    pins: u32,
    /// Since the hand last passed.
    asked_for: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Saved {
    Yes,
    /// On its way to the disk.
    Going,
    No,
}

/// What a request would take, and whose limits it has to fit.
#[derive(Clone, Debug)]
pub struct Asked<'a> {
    pub account: Id,
    pub account_limits: Limits,
    /// Its key, where the limits of one are to be kept.
    pub key: Option<(Id, Limits)>,
    pub product: &'a ProductId,
    pub zone: &'a Zone,
    pub calendar: &'a Periods,
    pub amount: Amount,
    /// The amount is the most that the request can use, not what it is expected to.
    pub bounded: bool,
}

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    pub what: What,
    pub whose: Whose,
    pub limit: u64,
    /// When there is more; credit is not restored by time.
    pub until: Option<UnixMs>,
    /// It asks for more than the whole limit.
    pub never: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Whose {
    Account,
    Key,
}

/// What an admitted request holds; settled once, since settling consumes it.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "an unsettled reservation is held until the node starts anew"]
pub struct Reserved {
    pub(super) id: u64,
    pub(super) account: Id,
    pub(super) key: Option<Id>,
    pub(super) booked: Booked,
}

/// Nothing is known of this holder here; read it from disk first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unread;

/// All records in memory are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("every account that may be in memory has requests in flight; raise `caps.accounts`")]
pub struct Full;

/// A record on its way to the disk.
#[derive(Debug)]
pub struct Snapshot {
    pub holder: Holder,
    pub seq: u64,
    /// None: there is nothing left to keep.
    pub bytes: Option<Vec<u8>>,
}

/// One line of an account's statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeriodUsage {
    pub whose: Whose,
    pub what: What,
    /// The part of the limit that this node may fill.
    pub limit: u64,
    /// Tokens, or micro-dollars.
    pub used: u64,
    /// By requests in flight.
    pub reserved: u64,
    /// When the period ends; credit has none.
    pub until: Option<UnixMs>,
}

// === impl Book ===

impl Book {
    pub fn new(records_max: usize) -> Book {
        Book {
            records: BTreeMap::new(),
            records_max: records_max.max(2),
            hand: None,
            dirty: BTreeSet::new(),
            round: Vec::new(),
            forgotten: 0,
        }
    }

    /// Records in memory.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Rises whenever a record is forgotten.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    pub fn record(&self, holder: &Holder) -> Option<&Record> {
        self.records.get(holder).map(|live| &live.record)
    }

    /// Keeps a record in memory until it is unpinned as often.
    ///
    /// # Errors
    /// It is not there.
    pub fn pin(&mut self, holder: &Holder) -> Result<(), Unread> {
        let live = self.records.get_mut(holder).ok_or(Unread)?;
        live.pins = live.pins.saturating_add(1);
        live.asked_for = true;
        Ok(())
    }

    pub fn unpin(&mut self, holder: &Holder) {
        if let Some(live) = self.records.get_mut(holder) {
            live.pins = live.pins.saturating_sub(1);
        }
    }

    /// Takes in what the disk has of a holder, and forgets another one for it.
    ///
    /// # Errors
    /// None can be forgotten.
    pub fn take_in(&mut self, holder: Holder, record: Record) -> Result<(), Full> {
        if self.records.contains_key(&holder) {
            return Ok(());
        }
        if self.records.len() >= self.records_max && !self.forget_one() {
            return Err(Full);
        }
        self.records.insert(holder, Live { record, saved: Saved::Yes, pins: 0, asked_for: true });
        Ok(())
    }

    /// Tests everything. Nothing changes.
    ///
    /// # Errors
    /// What there is not enough of: of several, what lasts longest. `Ok(None)`: a record is not in
    /// memory.
    pub fn test(&self, asked: &Asked<'_>) -> Result<Option<Booked>, Denied> {
        let Some(holders) = self.holders(asked) else { return Ok(None) };
        let (day, month) = periods(asked, &holders);
        let mut amount = asked.amount;
        let mut worst: Option<Denied> = None;
        for (whose, record, limits) in &holders {
            for left in record.left(asked.product, (day, month), limits) {
                let need = left.part(asked.amount);
                let fits = match asked.bounded {
                    true => need <= left.remaining(),
                    false => need == 0 || left.remaining() > 0,
                };
                if !fits || left.limit == 0 {
                    let denied = asked.denied(*whose, left, (day, month));
                    let longer = |worst: &Denied| {
                        denied.until.unwrap_or(UnixMs::MAX) > worst.until.unwrap_or(UnixMs::MAX)
                    };
                    if worst.as_ref().is_none_or(longer) {
                        worst = Some(denied);
                    }
                } else if left.what == What::TokensPerDay {
                    amount.tokens = amount.tokens.min(left.remaining());
                } else {
                    amount.micros = amount.micros.min(left.remaining());
                }
            }
        }
        match worst {
            Some(denied) => Err(denied),
            None => Ok(Some(Booked { product: asked.product.clone(), day, month, amount })),
        }
    }

    /// Reserves what [`Book::test`] agreed to, under the request's number `id`.
    pub fn reserve(
        &mut self,
        asked: &Asked<'_>,
        booked: Booked,
        id: u64,
        journal: &mut impl FnMut(Entry) -> Entry,
    ) -> Reserved {
        let key = asked.key.map(|(key, _)| key);
        let reserved = Reserved { id, account: asked.account, key, booked };
        self.write(&reserved, Step::Reserve, reserved.booked.amount, journal);
        reserved
    }

    /// Ends a reservation: what was reserved is replaced by what was used.
    pub fn settle(&mut self, reserved: Reserved, used: Amount, journal: &mut impl FnMut(Entry) -> Entry) {
        self.write(&reserved, Step::Settle, used, journal);
    }

    fn write(
        &mut self,
        reserved: &Reserved,
        step: Step,
        amount: Amount,
        journal: &mut impl FnMut(Entry) -> Entry,
    ) {
        let booked = Booked { amount, ..reserved.booked.clone() };
        for holder in reserved.holders() {
            // The journal gives it its number.
            let entry = journal(Entry { seq: 0, step, id: reserved.id, holder, booked: booked.clone() });
            let Some(live) = self.records.get_mut(&holder) else { continue };
            live.record.apply(&entry);
            if live.saved != Saved::No {
                live.saved = Saved::No;
                self.dirty.insert(holder);
            }
        }
    }

    /// Begins a round over all that changed so far; [`Book::snapshots`] goes through it.
    pub fn begin_round(&mut self) {
        self.round.extend(std::mem::take(&mut self.dirty));
    }

    /// The next changed records of the round, at most `most`, without the periods that were over
    /// before those of now; none when the round is through.
    pub fn snapshots(&mut self, most: usize, day: PeriodId, month: PeriodId) -> Vec<Snapshot> {
        let mut snapshots = Vec::new();
        while snapshots.len() < most
            && let Some(holder) = self.round.pop()
        {
            let Some(live) = self.records.get_mut(&holder) else { continue };
            live.saved = Saved::Going;
            let over = live.record.prune(day, month);
            let bytes = (!over).then(|| codec::record(&live.record));
            snapshots.push(Snapshot { holder, seq: live.record.seq(), bytes });
        }
        snapshots
    }

    /// So many records are on disk as entries only that few others find room.
    pub fn is_pressed(&self) -> bool {
        self.dirty.len() >= self.records_max / 2
    }

    /// A snapshot is on disk.
    pub fn written(&mut self, holder: &Holder, seq: u64) {
        if let Some(live) = self.records.get_mut(holder)
            && live.saved == Saved::Going
            && live.record.seq() == seq
        {
            live.saved = Saved::Yes;
        }
    }

    /// An account's standing, where its records are in memory.
    pub fn usage(&self, asked: &Asked<'_>) -> Vec<PeriodUsage> {
        let Some(holders) = self.holders(asked) else { return Vec::new() };
        let (day, month) = periods(asked, &holders);
        let mut lines = Vec::new();
        for (whose, record, limits) in &holders {
            for left in record.left(asked.product, (day, month), limits) {
                lines.push(PeriodUsage {
                    whose: *whose,
                    what: left.what,
                    limit: left.limit,
                    used: left.used,
                    reserved: left.held,
                    until: asked.until(left.what, (day, month)),
                });
            }
        }
        lines
    }

    fn holders(&self, asked: &Asked<'_>) -> Option<Vec<(Whose, &Record, Limits)>> {
        let account = self.record(&Holder { account: asked.account, key: None })?;
        let mut holders = vec![(Whose::Account, account, asked.account_limits)];
        if let Some((key, limits)) = asked.key {
            let record = self.record(&Holder { account: asked.account, key: Some(key) })?;
            holders.push((Whose::Key, record, limits));
        }
        Some(holders)
    }

    /// A clock's hand: the next record that is on disk, in nobody's use, and not asked for since the
    /// hand last passed.
    fn forget_one(&mut self) -> bool {
        for _ in 0..LOOKED_AT {
            let from = self.hand.map_or(Bound::Unbounded, Bound::Excluded);
            let Some((holder, live)) = self.records.range_mut((from, Bound::Unbounded)).next() else {
                if self.hand.take().is_none() {
                    return false;
                }
                continue;
            };
            let holder = *holder;
            self.hand = Some(holder);
            let idle = live.saved == Saved::Yes && live.pins == 0 && live.record.open().next().is_none();
            if idle && !std::mem::take(&mut live.asked_for) {
                self.records.remove(&holder);
                self.forgotten = self.forgotten.saturating_add(1);
                return true;
            }
        }
        false
    }
}

fn periods(asked: &Asked<'_>, holders: &[(Whose, &Record, Limits)]) -> (PeriodId, PeriodId) {
    let calendar = (asked.calendar.day, asked.calendar.month);
    holders.iter().fold(calendar, |(day, month), (_, record, _)| {
        let (later_day, later_month) = record.periods(asked.product, asked.calendar);
        (day.max(later_day), month.max(later_month))
    })
}
