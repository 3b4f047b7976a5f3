//! A request that uses more than it reserved, while it is still under way.

use super::*;

/// Part of what was seen by which a reservation runs ahead of it, so that few entries are written.
const AHEAD: u64 = 4;

// === impl Book ===

impl Book {
    /// The request has come to `asked.amount`. Where that is more than it reserved, it reserves that
    /// and a step ahead, in the periods of its admission. Says of what it has used more than there
    /// is, the rest being used or reserved by others: it is reserved all the same, since it is used.
    pub fn grow(
        &mut self,
        reserved: &mut Reserved,
        asked: &Asked<'_>,
        journal: &mut impl FnMut(Entry) -> Entry,
    ) -> Option<Denied> {
        let (own, seen) = (reserved.booked.amount, asked.amount);
        let periods = (reserved.booked.day, reserved.booked.month);
        let mut to = seen.plus(Amount { tokens: seen.tokens / AHEAD, micros: seen.micros / AHEAD });
        let mut past = None;
        for (whose, record, limits) in &self.holders(asked)? {
            for left in record.left(asked.product, periods, limits) {
                let others = left.used.saturating_add(left.held.saturating_sub(left.part(own)));
                let room = left.limit.saturating_sub(others);
                if room < left.part(seen) {
                    past = past.or_else(|| Some(asked.denied(*whose, left, periods)));
                } else if left.what == What::TokensPerDay {
                    to.tokens = to.tokens.min(room);
                } else {
                    to.micros = to.micros.min(room);
                }
            }
        }
        to = Amount { tokens: to.tokens.max(own.tokens), micros: to.micros.max(own.micros) };
        if to != own {
            reserved.booked.amount = to;
            self.write(reserved, Step::Reserve, to, journal);
        }
        past
    }
}
