//! A table in somebody's hands: what was accepted, when it was last renewed, and what it is
//! worth once nobody renews it.
//!
//! Validity is a duration on the holder's clock: absolute expiry would compare the clocks of two
//! machines.

use std::sync::Arc;
use std::time::Duration;

use crate::planted::bug;
use crate::unit::{Instant, Limit};
use crate::wire::entry::Entry;
use crate::wire::table::{LimitTable, Stamp, TableError};

/// Most that a steered limit falls in one interval, as the factor that remains.
pub const STEER_DOWN_PER_INTERVAL: f64 = 0.7;

#[derive(Clone, Debug)]
pub struct Held {
    pub table: Arc<LimitTable>,
    /// When the last tick of this table arrived.
    pub renewed_at: Instant,
}

/// What became of an offered table.
#[derive(Clone, Debug)]
pub enum Offer {
    /// New entries are in force.
    Applied(Held),
    /// Same version, later tick: the holder's validity starts anew.
    Renewed(Held),
    /// Not newer than what is held; it renews nothing.
    Stale,
}

// === impl Held ===

impl Held {
    /// A table that just came from its publisher.
    pub fn fresh(table: LimitTable, now: Instant) -> Held {
        Held { table: Arc::new(table), renewed_at: now }
    }

    /// Decides on a table offered to a holder of `current`; acceptance order is (epoch, version, tick).
    ///
    /// # Errors
    /// [`TableError::Reused`] when a version comes back with other contents, and whatever the
    /// validator says. `current` stays in force.
    pub fn offer(current: Option<&Held>, table: LimitTable, now: Instant) -> Result<Offer, TableError> {
        table.validate()?;
        let Some(held) = current else {
            return Ok(Offer::Applied(Held::fresh(table, now)));
        };
        if table.stamp <= held.table.stamp && !bug("replay-accepted") {
            return Ok(Offer::Stale);
        }
        let same_version =
            (table.stamp.epoch, table.stamp.version) == (held.table.stamp.epoch, held.table.stamp.version);
        if !same_version {
            return Ok(Offer::Applied(Held::fresh(table, now)));
        }
        if !table.same_entries(&held.table) {
            return Err(TableError::Reused(table.stamp));
        }
        Ok(Offer::Renewed(Held::fresh(table, now)))
    }

    pub fn stamp(&self) -> Stamp {
        self.table.stamp
    }

    pub fn age(&self, now: Instant) -> Duration {
        now.since(self.renewed_at)
    }

    /// Whole or begun intervals past the table's validity; zero while it is valid.
    pub fn intervals_expired(&self, now: Instant) -> u32 {
        let valid_for = Duration::from_millis(self.table.valid_for_ms);
        let age = self.age(now);
        if age < valid_for {
            return 0;
        }
        let past = (age - valid_for).as_millis() / u128::from(self.table.interval_ms.max(1));
        u32::try_from(past).unwrap_or(u32::MAX).saturating_add(1)
    }

    /// The tier limit in force `now`: the table's while it is valid, then at most 30 % an interval
    /// down to `safe`. Never above the last table, and zero only where `safe` is.
    pub fn tier_limit(&self, entry: &Entry, now: Instant) -> Limit {
        let steps = self.intervals_expired(now);
        if steps == 0 || bug("never-drifts") || entry.tier_limit <= entry.safe {
            return entry.tier_limit;
        }
        let (Limit::Finite(last), Limit::Finite(safe)) = (entry.tier_limit, entry.safe) else {
            // From no limit at all there is no proportional way down.
            return entry.safe;
        };
        let exponent = i32::try_from(steps.min(10_000)).unwrap_or(i32::MAX);
        let steered = last as f64 * STEER_DOWN_PER_INTERVAL.powi(exponent);
        Limit::from_f64(steered.max(safe as f64))
    }
}
