//! What would have become of what was asked, under another limit.
//!
//! Where a node's part of the limit is what it was, what was recorded stands. Elsewhere the tier's
//! bucket is filled again, of the depth that nodes have, with what came spread evenly over the
//! interval. Refusals for other reasons (a key's own limit, no room in the pool) stay: a record has
//! no requests, only their sums. A lower limit never admits more than was admitted, a higher one
//! never less.

use crate::backtest::asked::{Asked, Counts, less};
use crate::enforce::Scope;
use crate::enforce::allowance::{Allowance, Portion};
use crate::enforce::bucket::{Bucket, GRAINS, drained};
use crate::unit::{Limit, NodeId};
use crate::wire::{LimitTable, Work};

/// What one node may let through of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate(Option<Allowance>);

// === impl Gate ===

impl Gate {
    /// Of a node, by a table; a row that the table does not have is shut.
    pub fn of(table: &LimitTable, model: &str, tier: &str, node: &NodeId) -> Gate {
        let row = table.row(model, tier);
        let found = row.and_then(|row| {
            let pool = table.pools.get(&row.pool)?;
            let dimension = pool.unit.dimension();
            Some((Portion::of(pool, node), dimension, row.limits.get(&dimension)?))
        });
        let shut = || (Portion::WHOLE, crate::unit::Dimension::TokensPerMinute, Limit::Finite(0));
        let (portion, dimension, limit) = found.map_or_else(shut, |(portion, dimension, entry)| {
            (portion, dimension, portion.part(entry, entry.tier_limit))
        });
        Gate(Allowance::of(dimension, limit, Scope::Tier, portion))
    }

    fn rate(&self) -> u64 {
        self.0.map_or(u64::MAX, |allowance| allowance.rate)
    }
}

/// What becomes of `asked` at a gate where it was recorded at another; the bucket goes along.
pub fn outcome(bucket: &mut Bucket, was: Gate, is: Gate, asked: &Asked) -> Counts {
    let recorded = asked.counts;
    let came = recorded.admitted.work + recorded.refused_tier.work + recorded.refused_share.work;
    let Some(allowance) = is.0 else {
        *bucket = Bucket::default();
        return with_admitted(recorded, if was == is { recorded.admitted.work } else { came });
    };
    let (rate, depth) = (allowance.rate, allowance.depth);
    bucket.touch(asked.from, rate, depth);
    let free = depth
        .saturating_sub(bucket.used_at(asked.from, rate))
        .saturating_add(drained(rate, asked.to, asked.from));
    let fits = came.min(u64::try_from(free / GRAINS).unwrap_or(u64::MAX));
    let admitted = match rate.cmp(&was.rate()) {
        std::cmp::Ordering::Equal => recorded.admitted.work,
        std::cmp::Ordering::Less => fits.min(recorded.admitted.work),
        std::cmp::Ordering::Greater => fits.max(recorded.admitted.work),
    };
    bucket.charge(admitted);
    bucket.touch(asked.to, rate, depth);
    with_admitted(recorded, admitted)
}

/// The same with so much work admitted; the difference is refused for the tier's limit, or taken
/// from what was.
fn with_admitted(recorded: Counts, admitted: u64) -> Counts {
    let was = recorded.admitted;
    if admitted <= was.work {
        let refused = part(was, was.work - admitted);
        return Counts {
            admitted: less(was, refused),
            refused_limit: recorded.refused_limit.plus(refused),
            refused_tier: recorded.refused_tier.plus(refused),
            ..recorded
        };
    }
    let more = admitted - was.work;
    let of_tier = part(recorded.refused_tier, more.min(recorded.refused_tier.work));
    let of_share = part(recorded.refused_share, more.saturating_sub(of_tier.work));
    let taken = of_tier.plus(of_share);
    Counts {
        admitted: was.plus(taken),
        refused_limit: less(recorded.refused_limit, taken),
        refused_tier: less(recorded.refused_tier, of_tier),
        refused_share: less(recorded.refused_share, of_share),
        ..recorded
    }
}

/// So much of the work, at most all of it, with its part of the requests.
fn part(all: Work, work: u64) -> Work {
    let work = work.min(all.work);
    let requests = (u128::from(all.requests) * u128::from(work) + u128::from(all.work) / 2)
        .checked_div(u128::from(all.work))
        .unwrap_or(0);
    Work { requests: u64::try_from(requests).unwrap_or(all.requests), work }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unit::{Dimension, Instant};

    fn gate(per_minute: u64) -> Gate {
        Gate(Allowance::of(
            Dimension::TokensPerMinute,
            Limit::Finite(per_minute),
            Scope::Tier,
            Portion::WHOLE,
        ))
    }

    fn work(requests: u64, work: u64) -> Work {
        Work { requests, work }
    }

    /// Second `at`: so much admitted, so much refused for the tier's limit.
    fn second(at: u64, admitted: Work, refused: Work) -> Asked {
        let counts = Counts {
            offered: admitted.plus(refused),
            admitted,
            refused_limit: refused,
            refused_tier: refused,
            ..Counts::default()
        };
        let (from, to) = (Instant(at * 1_000_000_000), Instant((at + 1) * 1_000_000_000));
        let node = "n".into();
        Asked { node, instance: 1, model: "m".into(), tier: "t".into(), from, to, counts }
    }

    #[test]
    fn the_same_limit_changes_nothing_and_a_lower_one_admits_its_rate_after_its_bucket() {
        let mut bucket = Bucket::default();
        let asked = |at| second(at, work(10, 1_000), work(2, 200));
        assert_eq!(outcome(&mut bucket, gate(60_000), gate(60_000), &asked(0)), asked(0).counts);
        // 500 a second, of which 4 s fit the bucket: the 1,000 of the second before have filled
        // it, less what it drained meanwhile at the lower of both rates.
        let mut bucket = Bucket::default();
        let admitted: Vec<Work> =
            (0..5).map(|at| outcome(&mut bucket, gate(60_000), gate(30_000), &asked(at)).admitted).collect();
        // 2,000 of depth: 500 more than drains, four times, then what drains.
        let whole = work(10, 1_000);
        assert_eq!(admitted, [whole, whole, whole, whole, work(5, 500)]);
        let counts = outcome(&mut bucket, gate(60_000), gate(30_000), &asked(5));
        assert_eq!((counts.refused_tier, counts.refused_limit), (work(7, 700), work(7, 700)));
        assert_eq!(counts.offered, asked(5).counts.offered);
    }

    #[test]
    fn a_higher_limit_admits_what_the_tier_refused_and_nothing_else() {
        let mut bucket = Bucket::default();
        let mut asked = second(0, work(10, 1_000), work(3, 300));
        asked.counts.refused_limit = work(8, 800);
        asked.counts.refused_capacity = work(1, 100);
        let counts = outcome(&mut bucket, gate(60_000), Gate(None), &asked);
        assert_eq!((counts.admitted, counts.refused_tier), (work(13, 1_300), work(0, 0)));
        // Of keys' own limits, and for want of room.
        assert_eq!((counts.refused_limit, counts.refused_capacity), (work(5, 500), work(1, 100)));
        // Raised, but the bucket is what it is: never less than was admitted.
        let counts = outcome(&mut Bucket::default(), gate(1), gate(2), &asked);
        assert_eq!(counts, asked.counts);
    }

    #[test]
    fn a_row_that_is_gone_admits_nothing() {
        let asked = second(0, work(10, 1_000), work(0, 0));
        let counts = outcome(&mut Bucket::default(), gate(60_000), gate(0), &asked);
        assert_eq!((counts.admitted, counts.refused_tier), (work(0, 0), work(10, 1_000)));
    }
}
