//! Limit tables, one offered after the other, as whoever writes to a node's table would.

use std::time::Duration;

use tidegate::enforce::limiter::Limiter;
use tidegate::enforce::{Request, Settlement, Verdict};
use tidegate::unit::{Instant, Limit};
use tidegate::wire::{Entry, Held, LimitTable, Offer, Row, TableError};

const TABLES_MAX: usize = 8;
const ROWS_MAX: usize = 4;

pub fn check(data: &[u8]) {
    // As a node's clock starts: above any table's validity.
    let mut now = Instant(1 << 60);
    let mut limiter = Limiter::new("n1".into(), 8);
    let mut held: Option<Held> = None;
    for bytes in data.split(|byte| *byte == b'\n').take(TABLES_MAX) {
        let Ok(table) = LimitTable::decode(bytes) else { continue };
        same_again(&table);
        now = now + Duration::from_secs(1);
        let offered = Held::offer(held.as_ref(), table.clone(), now);
        let taken = limiter.offer(table.clone(), now);
        assert_eq!(format!("{offered:?}"), format!("{taken:?}"), "the limiter decides otherwise");
        if let Some(next) = judge(held.as_ref(), &table, offered) {
            held = Some(next);
        }
        let Some(held) = &held else { continue };
        for row in held.table.rows.iter().take(ROWS_MAX) {
            row.limits.values().for_each(|entry| drifts(held, entry));
            use_up(&mut limiter, row, now);
        }
    }
}

fn same_again(table: &LimitTable) {
    let encoded = table.encode().expect("what was decoded can be encoded");
    let again = LimitTable::decode(&encoded).expect("and decoded again");
    assert_eq!(again, *table);
    assert_eq!(again.encode().expect("twice"), encoded);
    for row in &table.rows {
        assert_eq!(table.row(row.model.as_str(), row.tier.as_str()), Some(row));
    }
}

/// What is held from here on, if that changed.
fn judge(held: Option<&Held>, table: &LimitTable, offered: Result<Offer, TableError>) -> Option<Held> {
    let version = |table: &LimitTable| (table.stamp.epoch, table.stamp.version);
    match (held, offered) {
        (None, Ok(Offer::Applied(new))) => Some(new),
        (None, other) => panic!("a valid first table became {other:?}"),
        (Some(old), Ok(Offer::Applied(new))) => {
            assert!(table.stamp > old.stamp() && version(table) != version(&old.table));
            Some(new)
        }
        (Some(old), Ok(Offer::Renewed(new))) => {
            assert!(table.stamp > old.stamp() && table.same_entries(&old.table));
            Some(new)
        }
        (Some(old), Ok(Offer::Stale)) => {
            assert!(table.stamp <= old.stamp());
            None
        }
        (Some(old), Err(TableError::Reused(_))) => {
            assert!(version(table) == version(&old.table) && !table.same_entries(&old.table));
            None
        }
        (Some(_), Err(other)) => panic!("a valid table was refused: {other}"),
    }
}

/// Unrenewed, a limit only falls, never below `safe`, and arrives there.
fn drifts(held: &Held, entry: &Entry) {
    let (valid, interval) = (held.table.valid_for_ms, held.table.interval_ms);
    let at = |past: u64| {
        let age = valid.saturating_add(interval.saturating_mul(past));
        held.tier_limit(entry, held.renewed_at + Duration::from_millis(age))
    };
    assert_eq!(held.tier_limit(entry, held.renewed_at), entry.tier_limit);
    let mut before = entry.tier_limit;
    for past in [0, 1, 2, 5, 20, 200] {
        let now = at(past);
        assert!(
            now <= before && now >= entry.safe.min(entry.tier_limit),
            "{entry:?}: {now:?} after {before:?}"
        );
        before = now;
    }
    // Where the clock still reaches that far.
    if valid.saturating_add(interval.saturating_mul(200)) < (1 << 40) {
        assert_eq!(before, entry.safe.min(entry.tier_limit));
    }
}

/// Zero means zero, and whatever is admitted can be settled.
fn use_up(limiter: &mut Limiter, row: &Row, now: Instant) {
    let closed = row
        .limits
        .values()
        .any(|entry| entry.tier_limit == Limit::Finite(0) || entry.key_limit == Limit::Finite(0));
    let ends = [
        Settlement::Used {
            input_tokens: u64::MAX,
            cached_tokens: 0,
            output_tokens: u64::MAX,
            images: u64::MAX,
        },
        Settlement::Used { input_tokens: 0, cached_tokens: 0, output_tokens: 0, images: 0 },
        Settlement::NotSent,
    ];
    for (at, end) in ends.into_iter().enumerate() {
        let request = Request {
            input_tokens: [1, 1 << 20, u64::MAX][at],
            output_max: [None, Some(1 << 20), Some(u64::MAX)][at],
            images: 1,
            streamed: at == 0,
            ..Request::new(row.model.as_str(), row.tier.as_str(), [at as u8; 32])
        };
        match limiter.admit(now, &request) {
            Verdict::Admitted(mut ticket) => {
                assert!(!closed, "a limit of zero admitted");
                limiter.first_token(now, &mut ticket);
                limiter.settle(now, ticket, end);
            }
            Verdict::Refused(refusal) => assert!(!refusal.retry_after.is_zero(), "{refusal:?}"),
        }
        let _ = limiter.quotas(now, &request, None);
    }
}
