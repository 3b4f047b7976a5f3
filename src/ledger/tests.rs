//! Records and the book against a model of their own, and the clock's mischief.

use std::collections::BTreeMap;

use crate::ledger::book::Asked;
use crate::ledger::book::Book;
use crate::ledger::book::Denied;
use crate::ledger::book::Reserved;
use crate::ledger::book::Whose;
use crate::ledger::codec;
use crate::ledger::period::Periods;
use crate::ledger::period::UnixMs;
use crate::ledger::period::Zone;
use crate::ledger::record::Amount;
use crate::ledger::record::Entry;
use crate::ledger::record::Holder;
use crate::ledger::record::Limits;
use crate::ledger::record::Record;
use crate::ledger::record::What;
use crate::unit::Limit;
use crate::unit::ProductId;

const HOUR: u64 = 3_600_000;
const ACCOUNT: [u8; 32] = [1; 32];
const KEY: [u8; 32] = [2; 32];

/// A book with its journal, at a time that a test sets.
struct Desk {
    book: Book,
    journal: Vec<Entry>,
    zone: Zone,
    now: UnixMs,
    product: ProductId,
    requests: u64,
    account: Limits,
    key: Option<Limits>,
}

fn at(text: &str) -> UnixMs {
    u64::try_from(text.parse::<jiff::Timestamp>().unwrap().as_millisecond()).unwrap()
}

fn amount(tokens: u64, micros: u64) -> Amount {
    Amount { tokens, micros }
}

fn whose(key: Option<[u8; 32]>) -> Holder {
    Holder { account: ACCOUNT, key }
}

impl Desk {
    fn new(zone: &str, now: &str) -> Desk {
        let mut book = Book::new(100);
        for key in [None, Some(KEY)] {
            book.take_in(whose(key), Record::default()).unwrap();
        }
        Desk {
            book,
            journal: Vec::new(),
            zone: Zone::named(zone).unwrap(),
            now: at(now),
            product: "chat".into(),
            requests: 0,
            account: Limits::default(),
            key: None,
        }
    }

    fn asked<'a>(&'a self, calendar: &'a Periods, amount: Amount, bounded: bool) -> Asked<'a> {
        Asked {
            account: ACCOUNT,
            account_limits: self.account,
            key: self.key.map(|limits| (KEY, limits)),
            product: &self.product,
            zone: &self.zone,
            calendar,
            amount,
            bounded,
        }
    }

    fn reserve(&mut self, amount: Amount, bounded: bool) -> Result<Reserved, Denied> {
        let calendar = self.zone.periods(self.now);
        let (zone, product, key) = (self.zone.clone(), self.product.clone(), self.key);
        let asked = Asked {
            account: ACCOUNT,
            account_limits: self.account,
            key: key.map(|limits| (KEY, limits)),
            product: &product,
            zone: &zone,
            calendar: &calendar,
            amount,
            bounded,
        };
        let before: Vec<Option<Record>> =
            [None, Some(KEY)].map(|key| self.book.record(&whose(key)).cloned()).into();
        match self.book.test(&asked) {
            Ok(booked) => {
                self.requests += 1;
                let journal = &mut self.journal;
                let reserved = self
                    .book
                    .reserve(&asked, booked.unwrap(), self.requests, &mut |entry| push(journal, entry));
                Ok(reserved)
            }
            Err(denied) => {
                let after: Vec<Option<Record>> =
                    [None, Some(KEY)].map(|key| self.book.record(&whose(key)).cloned()).into();
                assert_eq!(before, after, "a refusal changes nothing");
                Err(denied)
            }
        }
    }

    fn settle(&mut self, reserved: Reserved, used: Amount) {
        let journal = &mut self.journal;
        self.book.settle(reserved, used, &mut |entry| push(journal, entry));
    }

    /// A request that is over at once.
    fn use_up(&mut self, used: Amount) -> Result<(), Denied> {
        let reserved = self.reserve(used, true)?;
        self.settle(reserved, used);
        Ok(())
    }

    fn used(&self, what: What) -> (u64, u64) {
        let calendar = self.zone.periods(self.now);
        let lines = self.book.usage(&self.asked(&calendar, Amount::default(), true));
        let line = lines.iter().find(|line| line.what == what && line.whose == Whose::Account).unwrap();
        (line.used, line.reserved)
    }
}

fn push(journal: &mut Vec<Entry>, mut entry: Entry) -> Entry {
    entry.seq = journal.len() as u64 + 1;
    journal.push(entry.clone());
    entry
}

fn daily(tokens: u64) -> Limits {
    Limits { tokens_per_day: Limit::Finite(tokens), ..Limits::default() }
}

#[test]
fn d6_a_budget_closes_hard_also_against_what_is_in_flight() {
    let mut desk = Desk::new("UTC", "2026-11-22T20:00:00Z");
    desk.account = daily(1_000);
    let first = desk.reserve(amount(600, 0), true).unwrap();
    let denied = desk.reserve(amount(401, 0), true).unwrap_err();
    assert_eq!((denied.what, denied.whose, denied.limit), (What::TokensPerDay, Whose::Account, 1_000));
    assert_eq!(denied.until, Some(at("2026-11-23T00:00:00Z")));
    assert!(!denied.never);
    let second = desk.reserve(amount(400, 0), true).unwrap();
    desk.settle(first, amount(10, 0));
    assert_eq!(desk.used(What::TokensPerDay), (10, 400));
    desk.settle(second, amount(400, 0));
    desk.use_up(amount(590, 0)).unwrap();
    assert_eq!(desk.used(What::TokensPerDay), (1_000, 0));
    desk.reserve(amount(1, 0), false).unwrap_err();
    // What never fits says so; zero means zero.
    assert!(desk.reserve(amount(1_001, 0), true).unwrap_err().never);
    desk.account = daily(0);
    assert!(desk.reserve(amount(0, 0), true).unwrap_err().never);
    // A new day is a new budget.
    desk.account = daily(1_000);
    desk.now += 4 * HOUR;
    desk.use_up(amount(1_000, 0)).unwrap();
}

#[test]
fn h06_an_estimate_never_keeps_a_first_request_out_and_holds_no_more_than_there_is() {
    let mut desk = Desk::new("UTC", "2026-11-22T20:00:00Z");
    desk.account = daily(100);
    let first = desk.reserve(amount(4_096, 7), false).unwrap();
    assert_eq!(first.amount(), amount(100, 7));
    desk.reserve(amount(1, 0), false).unwrap_err();
    desk.settle(first, amount(150, 7));
    // The overshoot is what this one request was beyond its estimate.
    assert_eq!(desk.used(What::TokensPerDay), (150, 0));
    desk.reserve(amount(1, 0), true).unwrap_err();
}

#[test]
fn a_request_fits_all_budgets_of_account_and_key_or_takes_of_none() {
    let mut desk = Desk::new("UTC", "2026-11-22T20:00:00Z");
    let spend = |day, month| Limits {
        spend_per_day: Limit::Finite(day),
        spend_per_month: Limit::Finite(month),
        ..daily(10_000)
    };
    desk.account = Limits { credit: Some(900), ..spend(500, 5_000) };
    desk.key = Some(spend(50, 60));
    desk.use_up(amount(1, 50)).unwrap();
    let denied = desk.reserve(amount(1, 1), true).unwrap_err();
    assert_eq!((denied.what, denied.whose), (What::SpendPerDay, Whose::Key));
    desk.now += 24 * HOUR;
    desk.use_up(amount(1, 10)).unwrap();
    let denied = desk.reserve(amount(1, 1), true).unwrap_err();
    assert_eq!((denied.what, denied.whose), (What::SpendPerMonth, Whose::Key));
    assert_eq!(denied.until, Some(at("2026-12-01T00:00:00Z")));
    desk.key = None;
    desk.use_up(amount(1, 400)).unwrap();
    desk.now += 24 * HOUR;
    desk.use_up(amount(1, 440)).unwrap();
    let denied = desk.reserve(amount(1, 1), true).unwrap_err();
    assert_eq!((denied.what, denied.until), (What::Credit, None));
    // A recharge is effective at once.
    desk.account.credit = Some(901);
    desk.use_up(amount(1, 1)).unwrap();
}

#[test]
fn b02_a_clock_that_steps_back_over_a_month_resets_nothing() {
    let mut desk = Desk::new("America/New_York", "2026-12-01T05:00:01Z");
    desk.account = Limits {
        spend_per_month: Limit::Finite(1_000),
        spend_per_day: Limit::Finite(800),
        ..Limits::default()
    };
    desk.use_up(amount(0, 700)).unwrap();
    desk.now = at("2026-11-30T12:00:00Z");
    assert_eq!(desk.used(What::SpendPerMonth), (700, 0), "it stays December's");
    let denied = desk.reserve(amount(0, 200), true).unwrap_err();
    assert_eq!(denied.what, What::SpendPerDay);
    assert_eq!(denied.until, Some(at("2026-12-02T05:00:00Z")), "the day that it is booked in");
    desk.use_up(amount(0, 100)).unwrap();
    desk.now = at("2026-12-02T12:00:00Z");
    assert_eq!((desk.used(What::SpendPerDay), desk.used(What::SpendPerMonth)), ((0, 0), (800, 0)));
    desk.now = at("2027-01-01T05:00:00Z");
    assert_eq!(desk.used(What::SpendPerMonth), (0, 0));
}

#[test]
fn j04_a_stream_over_midnight_and_month_end_is_booked_where_it_began() {
    let mut desk = Desk::new("Asia/Shanghai", "2026-11-30T15:59:00Z");
    desk.account = Limits { spend_per_month: Limit::Finite(1_000), ..daily(100) };
    let stream = desk.reserve(amount(60, 600), true).unwrap();
    desk.now += HOUR;
    // The new day and month are whole, and stay so.
    desk.use_up(amount(100, 900)).unwrap();
    desk.settle(stream, amount(50, 500));
    assert_eq!((desk.used(What::TokensPerDay), desk.used(What::SpendPerMonth)), ((100, 0), (900, 0)));
    let record = desk.book.record(&whose(None)).unwrap();
    let [today, before] = record.meters[&desk.product].days;
    assert_eq!((today.used, before.used, before.held), (amount(100, 900), amount(50, 500), amount(0, 0)));
    assert_eq!(record.spent(), 1_400);
}

#[test]
fn h15_a_stream_of_a_day_holds_what_it_reserved_to_its_end() {
    let mut desk = Desk::new("UTC", "2026-11-22T12:00:00Z");
    desk.account = Limits { credit: Some(1_000), ..daily(100) };
    let stream = desk.reserve(amount(60, 600), true).unwrap();
    for _ in 0..3 {
        desk.now += 24 * HOUR;
        desk.reserve(amount(1, 401), true).unwrap_err();
        desk.use_up(amount(100, 0)).unwrap();
    }
    // Its day is too long ago to be shown; what it spent is not.
    desk.settle(stream, amount(60, 400));
    assert_eq!((desk.used(What::TokensPerDay), desk.used(What::Credit)), ((100, 0), (400, 0)));
}

#[test]
fn h07_counters_near_their_end_saturate_and_stay_closed() {
    let mut desk = Desk::new("UTC", "2026-11-22T20:00:00Z");
    desk.account = Limits { credit: Some(u64::MAX), ..daily(crate::unit::MAX_FINITE) };
    let most = desk.reserve(amount(u64::MAX, u64::MAX), false).unwrap();
    desk.settle(most, amount(u64::MAX, u64::MAX));
    assert_eq!(desk.used(What::Credit), (u64::MAX, 0));
    desk.reserve(amount(1, 1), true).unwrap_err();
    desk.account = Limits::default();
    desk.use_up(amount(u64::MAX, u64::MAX)).unwrap();
}

#[test]
fn records_in_use_or_not_on_disk_are_never_forgotten() {
    let mut book = Book::new(10);
    let holder = |number: u8| Holder { account: [number; 32], key: None };
    (0..10).for_each(|number| book.take_in(holder(number), Record::default()).unwrap());
    (0..10).for_each(|number| book.pin(&holder(number)).unwrap());
    assert!(book.take_in(holder(11), Record::default()).is_err());
    book.unpin(&holder(4));
    book.take_in(holder(11), Record::default()).unwrap();
    assert!(book.record(&holder(4)).is_none() && book.len() == 10 && book.forgotten() == 1);
    // One that changed stays until it is written.
    (0..10).for_each(|number| book.unpin(&holder(number)));
    let (zone, product) = (Zone::utc(), "p".into());
    let calendar = zone.periods(0);
    let asked = Asked {
        account: holder(3).account,
        account_limits: Limits::default(),
        key: None,
        product: &product,
        zone: &zone,
        calendar: &calendar,
        amount: amount(1, 1),
        bounded: true,
    };
    let booked = book.test(&asked).unwrap().unwrap();
    let mut seq = 0;
    let mut number = |entry| {
        seq += 1;
        Entry { seq, ..entry }
    };
    let reserved = book.reserve(&asked, booked, 1, &mut number);
    book.settle(reserved, amount(1, 1), &mut number);
    (20..60).for_each(|number| book.take_in(holder(number), Record::default()).unwrap());
    assert_eq!(book.record(&holder(3)).unwrap().spent(), 1);
    book.begin_round();
    let snapshots = book.snapshots(9, calendar.day, calendar.month);
    assert_eq!(snapshots.len(), 1);
    (60..90).for_each(|number| book.take_in(holder(number), Record::default()).unwrap());
    assert!(book.record(&holder(3)).is_some(), "it is on its way");
    book.written(&holder(3), snapshots[0].seq);
    (90..130).for_each(|number| book.take_in(holder(number), Record::default()).unwrap());
    assert!(book.record(&holder(3)).is_none());
}

struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// Everything ever booked, by day and month of its admission, and what is in flight.
#[derive(Default)]
struct Model {
    days: BTreeMap<i32, u64>,
    months: BTreeMap<i32, u64>,
    spent: u64,
    open: BTreeMap<u64, (i32, i32, u64)>,
    last: (i32, i32),
}

/// What it has used counts while it is under way, also for others, and is said to be too much.
#[test]
fn a_request_that_outgrows_its_reservation_reserves_more_and_says_when_there_is_no_more() {
    let mut desk = Desk::new("UTC", "2026-11-22T12:00:00Z");
    desk.account = Limits { credit: Some(100), ..Limits::default() };
    let mut stream = desk.reserve(amount(0, 10), false).unwrap();
    let other = desk.reserve(amount(0, 40), true).unwrap();
    let mut grow = |desk: &mut Desk, micros: u64| {
        let (calendar, zone, product) =
            (desk.zone.periods(desk.now), desk.zone.clone(), desk.product.clone());
        let asked = Asked {
            account: ACCOUNT,
            account_limits: desk.account,
            key: None,
            product: &product,
            zone: &zone,
            calendar: &calendar,
            amount: amount(0, micros),
            bounded: true,
        };
        let journal = &mut desk.journal;
        let past = desk.book.grow(&mut stream, &asked, &mut |entry| push(journal, entry));
        (past.map(|denied| denied.what), desk.used(What::Credit))
    };
    // A step ahead, as long as there is room for it beside what another one reserved.
    assert_eq!(grow(&mut desk, 16), (None, (0, 40 + 20)));
    assert_eq!(grow(&mut desk, 56), (None, (0, 40 + 60)));
    let entries = desk.journal.len();
    assert_eq!(grow(&mut desk, 60), (None, (0, 40 + 60)));
    assert_eq!(desk.journal.len(), entries, "nothing to write");
    assert_eq!(grow(&mut desk, 64), (Some(What::Credit), (0, 40 + 80)));
    // Replayed, it is one reservation.
    let mut record = Record::default();
    desk.journal.iter().for_each(|entry| assert!(record.apply(entry)));
    assert_eq!(&record, desk.book.record(&whose(None)).unwrap());
    desk.settle(other, amount(0, 1));
    desk.settle(stream, amount(0, 64));
    assert_eq!(desk.used(What::Credit), (65, 0));
}

#[test]
#[expect(clippy::too_many_lines, reason = "one model beside the code, step by step")]
fn j05_any_order_of_requests_settles_and_clock_steps_agrees_with_a_model_and_so_does_its_replay() {
    let rounds = if std::env::var("TIDEGATE_LONG").is_ok_and(|value| value == "1") { 400 } else { 40 };
    for round in 0..rounds {
        let mut chance = Chance(round * 7 + 1);
        let zone = ["UTC", "America/New_York", "Asia/Kathmandu", "Pacific/Auckland"][round as usize % 4];
        let mut desk = Desk::new(zone, "2026-10-25T12:00:00Z");
        let limit = 500 + chance.below(2_000);
        let granted = 20_000;
        desk.account = Limits {
            spend_per_day: Limit::Finite(limit),
            spend_per_month: Limit::Finite(limit * 5),
            credit: Some(granted),
            ..Limits::default()
        };
        let mut model = Model::default();
        let mut flying: Vec<(u64, Reserved)> = Vec::new();
        for _ in 0..400 {
            match chance.below(10) {
                0 => desk.now += chance.below(30 * HOUR),
                1 => desk.now = desk.now.saturating_sub(chance.below(20 * HOUR)),
                2..=6 => {
                    let calendar = desk.zone.periods(desk.now);
                    let day = calendar.day.0.max(model.last.0);
                    let month = calendar.month.0.max(model.last.1);
                    let held = |of: &dyn Fn(&(i32, i32, u64)) -> bool| -> u64 {
                        model.open.values().filter(|open| of(open)).map(|open| open.2).sum()
                    };
                    let used = |periods: &BTreeMap<i32, u64>, id| periods.get(&id).copied().unwrap_or(0);
                    let fits = |micros: u64| {
                        used(&model.days, day) + held(&|open| open.0 == day) + micros <= limit
                            && used(&model.months, month) + held(&|open| open.1 == month) + micros
                                <= limit * 5
                            && model.spent + held(&|_| true) + micros <= granted
                    };
                    let micros = 1 + chance.below(limit / 3);
                    match desk.reserve(amount(0, micros), true) {
                        Ok(reserved) => {
                            assert!(fits(micros), "round {round}");
                            model.open.insert(reserved.id, (day, month, micros));
                            model.last = (day, month);
                            flying.push((micros, reserved));
                        }
                        Err(denied) => {
                            assert!(!fits(micros), "round {round}: {denied:?}");
                            assert!(denied.until.is_none_or(|until| until > desk.now), "{denied:?}");
                        }
                    }
                }
                _ if flying.is_empty() => {}
                _ => {
                    let at = chance.below(flying.len() as u64) as usize;
                    let (most, reserved) = flying.swap_remove(at);
                    let used = chance.below(most + 1);
                    let (day, month, _) = model.open.remove(&reserved.id).unwrap();
                    desk.settle(reserved, amount(0, used));
                    *model.days.entry(day).or_default() += used;
                    *model.months.entry(month).or_default() += used;
                    model.spent += used;
                }
            }
            let record = desk.book.record(&whose(None)).unwrap();
            assert_eq!(record.spent(), model.spent);
            if let Some(meter) = record.meters.get(&desk.product) {
                for (slots, model) in [(&meter.days, &model.days), (&meter.months, &model.months)] {
                    for slot in slots {
                        assert_eq!(slot.used.micros, model.get(&slot.id.0).copied().unwrap_or(0), "{slot:?}");
                    }
                }
            }
        }
        assert_eq!(model.days.values().sum::<u64>(), model.spent, "each amount is in one day");
        assert_eq!(model.months.values().sum::<u64>(), model.spent, "each amount is in one month");
        assert!(model.days.values().all(|used| *used <= limit) && model.spent <= granted);
        replay_is_idempotent(&desk, &mut chance);
    }
}

/// A record as of any entry, and a journal from any earlier one, any number of times.
fn replay_is_idempotent(desk: &Desk, chance: &mut Chance) {
    let expected = desk.book.record(&whose(None)).unwrap();
    for _ in 0..10 {
        let length = desk.journal.len() as u64;
        let mut record = Record::default();
        let upto = chance.below(length + 1) as usize;
        desk.journal[..upto].iter().for_each(|entry| assert!(record.apply(entry)));
        let mut record = codec::read_record(&codec::record(&record)).unwrap();
        for _ in 0..3 {
            let from = chance.below(upto as u64 + 1) as usize;
            let end = upto + chance.below(length - upto as u64 + 1) as usize;
            desk.journal[from..end].iter().for_each(|entry| _ = record.apply(entry));
            // What was skipped is not: a journal has no holes.
            desk.journal[from..].iter().for_each(|entry| _ = record.apply(entry));
        }
        assert_eq!(&record, expected);
    }
}
