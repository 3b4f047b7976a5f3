//! What the ledger counts, as metrics.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::ledger::Ledger;
use crate::ledger::State;
use crate::metrics::Family;
use crate::metrics::Sheet;

const OPEN: Family<0> = Family::gauge(
    "tidegate_enforce_ledger_open",
    "1 while budgets and credit can be accounted for; at 0 requests that need that are refused.",
    [],
);
const CLOSED: Family<0> = Family::counter(
    "tidegate_enforce_ledger_closed_total",
    "Requests refused because the ledger could not be asked.",
    [],
);
const COMMITS: Family<0> =
    Family::counter("tidegate_enforce_ledger_commits_total", "Batches made durable.", []);
const ENTRIES: Family<0> = Family::counter(
    "tidegate_enforce_ledger_entries_total",
    "Reservations and settlements made durable: by commits, the size of a batch.",
    [],
);
const SECONDS: Family<0> = Family::counter(
    "tidegate_enforce_ledger_commit_seconds_total",
    "Time that commits took: by commits, how long one takes.",
    [],
);
const ERRORS: Family<0> =
    Family::counter("tidegate_enforce_ledger_errors_total", "Commits that failed; tried again.", []);
const WAITING: Family<0> = Family::gauge(
    "tidegate_enforce_ledger_waiting_entries",
    "Reservations and settlements that are not durable yet.",
    [],
);
const RECORDS: Family<0> =
    Family::gauge("tidegate_enforce_ledger_records", "Accounts and keys whose budgets are in memory.", []);
const RECOVERED: Family<0> = Family::counter(
    "tidegate_enforce_ledger_recovered_total",
    "Requests in flight when an earlier process died, settled as reserved.",
    [],
);

pub fn add(sheet: &mut Sheet, ledger: &Ledger) {
    let counts = ledger.counts();
    let count = |count: &AtomicU64| count.load(Ordering::Relaxed) as f64;
    sheet.one(&OPEN, f64::from(u8::from(*ledger.state() == State::Open)));
    sheet.one(&CLOSED, count(&counts.closed));
    sheet.one(&COMMITS, count(&counts.commits));
    sheet.one(&ENTRIES, count(&counts.entries));
    sheet.one(&SECONDS, count(&counts.commit_micros) / 1_000_000.0);
    sheet.one(&ERRORS, count(&counts.errors));
    sheet.one(&WAITING, ledger.waiting() as f64);
    sheet.one(&RECORDS, ledger.records() as f64);
    sheet.one(&RECOVERED, count(&counts.recovered));
}
