//! What a request asks of a book, and what it got: whose records these are, and what a refusal says.

use crate::ledger::period::Kind;

use super::*;

// === impl Asked ===

impl Asked<'_> {
    pub fn holders(&self) -> impl Iterator<Item = Holder> + use<> {
        let (account, key) = (self.account, self.key.map(|(key, _)| key));
        both(account, key)
    }

    pub(super) fn denied(&self, whose: Whose, left: Left, periods: (PeriodId, PeriodId)) -> Denied {
        let never = self.bounded && left.part(self.amount) > left.limit || left.limit == 0;
        Denied { what: left.what, whose, limit: left.limit, until: self.until(left.what, periods), never }
    }

    pub(super) fn until(&self, what: What, (day, month): (PeriodId, PeriodId)) -> Option<UnixMs> {
        let kind = what.period()?;
        let id = if kind == Kind::Day { day } else { month };
        Some(self.zone.span(kind, id).end)
    }
}

fn both(account: Id, key: Option<Id>) -> impl Iterator<Item = Holder> {
    let key = key.map(|key| Holder { account, key: Some(key) });
    std::iter::once(Holder { account, key: None }).chain(key)
}

// === impl Reserved ===

impl Reserved {
    /// What it may use without exceeding what was reserved.
    pub fn amount(&self) -> Amount {
        self.booked.amount
    }

    pub fn account(&self) -> &Id {
        &self.account
    }

    pub(super) fn holders(&self) -> impl Iterator<Item = Holder> + use<> {
        both(self.account, self.key)
    }
}
