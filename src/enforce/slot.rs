//! The counters of one key or account, in two cache lines.
//!
//! A lane stores what was used relative to its row's [`Flow`], the integral of the rate in force:
//! draining costs nothing, a changed rate counts from the instant of its change on, and neither a
//! time nor a rate is kept for each key. Where minutes are windows, a lane is a minute's number
//! and what was used in it.

use crate::enforce::allowance::Allowance;
use crate::enforce::bucket::{GRAINS, Rate, corrected, drained, grains, nanos};
use crate::enforce::meters::{Amounts, Charged, Over, RATES, place};
use crate::enforce::minute::Minute;
use crate::unit::{Dimension, Instant};
use crate::wire::Window;

/// The bit of [`Charged`] that says a share took the reservation: beyond those of the rates.
const SHARE: usize = RATES;

/// What a rate has drained since its row is known: the area under it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    pub rate: Rate,
    since: Instant,
    base: u128,
}

/// Of keys, then of accounts.
pub type Flows = [[Flow; RATES]; 2];

/// What lanes are read against.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// By row.
    pub flows: &'a [Flows],
    pub now: Instant,
    pub minute: Minute,
}

/// What a lane's number means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Basis {
    /// Grains used, above the row's flow.
    #[default]
    Flow,
    /// The minute's number, and units used in it.
    Minute,
    /// Grains used as of `at`: of limits that are the key's own.
    Own,
}

/// Limits as a key or account has them, and how it is counted.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    pub row: u32,
    pub limits: &'a [Allowance],
    pub basis: Basis,
    /// Rates that are the key's own; all zero where none are.
    pub own: [Rate; RATES],
    pub share: Option<&'a Share>,
}

/// A key's fair share of its tier's limit. It counts work, in a lane that none of its limits needs.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    pub lane: usize,
    pub allowance: Allowance,
}

/// In this order: what a request per minute needs is in the first cache line.
#[derive(Clone, Debug, Default)]
#[repr(C, align(64))]
pub struct Slot {
    /// Whose it is: see [`Name`](crate::enforce::keys::Name). Zero: nobody's yet.
    pub tag: u128,
    /// Requests in flight.
    pub active: u32,
    pub jobs: u32,
    /// The row whose flows count.
    row: u32,
    basis: Basis,
    pub account: bool,
    /// One above the lane that counts the key's share; zero while none does. That lane stands above
    /// the row's flow whatever the basis.
    share: u8,
    at: Instant,
    /// When all lanes are free again, of limits that are the key's own.
    free_at: Instant,
    lanes: [u128; RATES],
}

// === impl Flow ===

impl Flow {
    pub fn at(&self, now: Instant) -> u128 {
        self.base.saturating_add(drained(self.rate, now, self.since))
    }

    /// The same flow at another rate from `now` on.
    pub fn turned(&self, now: Instant, rate: Rate) -> Flow {
        if rate == self.rate {
            return *self;
        }
        Flow { rate, since: now.max(self.since), base: self.at(now) }
    }
}

// === impl Share ===

impl Share {
    /// Limits of the key's own may need the lane.
    pub fn fits(&self, limits: &[Allowance]) -> bool {
        limits.iter().all(|limit| place(limit.dimension) != Some(self.lane))
    }
}

// === impl Basis ===

impl Basis {
    pub fn of(window: Window, own: bool) -> Basis {
        match window {
            Window::Minute => Basis::Minute,
            Window::Rolling if own => Basis::Own,
            Window::Rolling => Basis::Flow,
        }
    }
}

// === impl Slot ===

impl Slot {
    pub fn new(tag: u128, account: bool) -> Slot {
        Slot { tag, account, ..Slot::default() }
    }

    /// Nothing in flight, and nothing used that is not drained.
    pub fn is_idle(&self, view: &View<'_>) -> bool {
        if self.active > 0 || self.jobs > 0 {
            return false;
        }
        let rates = match self.basis {
            Basis::Own => view.now >= self.free_at,
            _ => (0..RATES).all(|at| self.used(at, view, 0) == 0),
        };
        rates && self.of_share(view) == 0
    }

    /// Grains of the share that are used.
    fn of_share(&self, view: &View<'_>) -> u128 {
        let Some(at) = usize::from(self.share).checked_sub(1) else { return 0 };
        self.lanes.get(at).map_or(0, |lane| lane.saturating_sub(self.flow(at, view).at(view.now)))
    }

    /// Grains of one rate that are used; `rate` drains what is counted by the key's own limits.
    fn used(&self, at: usize, view: &View<'_>, rate: Rate) -> u128 {
        if usize::from(self.share) == at + 1 {
            return 0;
        }
        let lane = self.lanes.get(at).copied().unwrap_or(0);
        match self.basis {
            Basis::Flow => lane.saturating_sub(self.flow(at, view).at(view.now)),
            Basis::Minute => grains(minute_used(lane, view)),
            Basis::Own => lane.saturating_sub(drained(rate, view.now, self.at)),
        }
    }

    /// The same in whole units, rounded up.
    fn units(&self, at: usize, view: &View<'_>, rate: Rate) -> u64 {
        match self.basis {
            Basis::Minute if usize::from(self.share) == at + 1 => 0,
            Basis::Minute => minute_used(self.lanes.get(at).copied().unwrap_or(0), view),
            _ => u64::try_from(self.used(at, view, rate).div_ceil(GRAINS)).unwrap_or(u64::MAX),
        }
    }

    fn flow(&self, at: usize, view: &View<'_>) -> Flow {
        let flows = view.flows.get(self.row as usize).and_then(|row| row.get(usize::from(self.account)));
        flows.and_then(|row| row.get(at)).copied().unwrap_or_default()
    }

    /// The limit with the longest wait that a request does not fit in. `active` and `jobs` are what
    /// counts for it, its own or those of all who share this place.
    pub fn test(
        &self,
        terms: &Terms<'_>,
        amounts: &Amounts,
        job: bool,
        (active, jobs): (u32, u32),
        view: &View<'_>,
    ) -> Option<Over> {
        let mut worst = None;
        for limit in terms.limits {
            let over = match (place(limit.dimension), limit.dimension) {
                (Some(at), _) => self.test_rate(at, limit, terms.basis, amounts, view),
                (None, Dimension::Jobs) if !job => None,
                (None, Dimension::Jobs) => Over::count(limit, u64::from(jobs)),
                (None, _) => Over::count(limit, u64::from(active)),
            };
            worst = over.map(|over| over.worse(worst)).or(worst);
        }
        worst
    }

    /// Whether a request of this work is over the key's share.
    pub fn test_share(&self, share: &Share, work: u64, view: &View<'_>) -> Option<Over> {
        let wait = share.allowance.shortfall(self.of_share(view), work)?;
        Some(Over::rate(&share.allowance, wait))
    }

    fn test_rate(
        &self,
        at: usize,
        limit: &Allowance,
        basis: Basis,
        amounts: &Amounts,
        view: &View<'_>,
    ) -> Option<Over> {
        let cost = amounts.get(at).copied().filter(|cost| *cost > 0)?;
        // The number of images is known beforehand, unlike that of tokens.
        let too_many = limit.dimension == Dimension::ImagesPerMinute && cost > limit.limit;
        if limit.rate == 0 || too_many {
            return Some(Over::never(limit));
        }
        if basis != Basis::Minute {
            let wait = limit.shortfall(self.used(at, view, limit.rate), cost);
            return wait.map(|wait| Over::rate(limit, wait));
        }
        let most = limit.minute();
        let full = self.units(at, view, limit.rate).saturating_add(cost.min(most)) > most;
        full.then(|| Over::rate(limit, view.minute.left))
    }

    /// Charges the rates that are limited, and the share with work; the counts are the caller's.
    pub fn charge(&mut self, terms: &Terms<'_>, amounts: &Amounts, work: u64, view: &View<'_>) -> Charged {
        self.rebase(terms, view);
        let mut charged = Charged::default();
        for limit in terms.limits {
            let Some(at) = place(limit.dimension) else { continue };
            self.correct_one(at, terms, 0, amounts.get(at).copied().unwrap_or(0), view);
            charged.add(at);
        }
        if let Some(share) = terms.share {
            self.correct_share(share, 0, work, view);
            charged.add(SHARE);
        }
        self.free(terms, view);
        charged
    }

    /// What a key used while nobody was in its way is no debt: there is none above a full share.
    fn correct_share(&mut self, share: &Share, reserved: u64, actual: u64, view: &View<'_>) {
        let used = corrected(self.of_share(view), reserved, actual).min(share.allowance.depth);
        let drained = self.flow(share.lane, view).at(view.now);
        if let Some(lane) = self.lanes.get_mut(share.lane) {
            *lane = drained.saturating_add(used);
        }
    }

    /// Replaces what was reserved in the rates that took it. A reservation of a minute that is over
    /// changes nothing any more.
    pub fn correct(
        &mut self,
        terms: &Terms<'_>,
        charged: Charged,
        (reserved, reserved_work): (&Amounts, u64),
        (actual, actual_work): (&Amounts, u64),
        view: &View<'_>,
    ) {
        self.rebase(terms, view);
        if let Some(share) = terms.share.filter(|_| charged.has(SHARE)) {
            self.correct_share(share, reserved_work, actual_work, view);
        }
        for (at, (reserved, actual)) in reserved.iter().zip(actual).enumerate() {
            if charged.has(at) && reserved != actual {
                self.correct_one(at, terms, *reserved, *actual, view);
            }
        }
        self.free(terms, view);
    }

    /// Of a slot that was rebased.
    fn correct_one(&mut self, at: usize, terms: &Terms<'_>, reserved: u64, actual: u64, view: &View<'_>) {
        let drained = match terms.basis {
            Basis::Flow => self.flow(at, view).at(view.now),
            Basis::Minute | Basis::Own => 0,
        };
        let Some(lane) = self.lanes.get_mut(at) else { return };
        *lane = match terms.basis {
            Basis::Flow => drained.saturating_add(corrected(lane.saturating_sub(drained), reserved, actual)),
            Basis::Own => corrected(*lane, reserved, actual),
            Basis::Minute => {
                let used = minute_used(*lane, view).saturating_add(actual).saturating_sub(reserved);
                minute_lane(used, view)
            }
        };
    }

    /// What is used, in the terms of another row or another way of counting.
    fn rebase(&mut self, terms: &Terms<'_>, view: &View<'_>) {
        let share = terms.share.and_then(|share| u8::try_from(share.lane + 1).ok()).unwrap_or(0);
        let same = self.basis == terms.basis && self.row == terms.row && self.share == share;
        if same && terms.basis != Basis::Own {
            return;
        }
        let of_share = self.of_share(view);
        let rate = |at: usize| match terms.own.get(at) {
            Some(own) if *own > 0 => *own,
            _ => self.flow(at, view).rate,
        };
        let used: [u128; RATES] = std::array::from_fn(|at| self.used(at, view, rate(at)));
        (self.basis, self.row, self.at) = (terms.basis, terms.row, view.now.max(self.at));
        self.lanes = std::array::from_fn(|at| {
            let used = used.get(at).copied().unwrap_or(0);
            match self.basis {
                Basis::Flow => self.flow(at, view).at(view.now).saturating_add(used),
                Basis::Minute => minute_lane(u64::try_from(used.div_ceil(GRAINS)).unwrap_or(u64::MAX), view),
                Basis::Own => used,
            }
        });
        self.share = share;
        if let Some(at) = usize::from(share).checked_sub(1) {
            let drained = self.flow(at, view).at(view.now);
            if let Some(lane) = self.lanes.get_mut(at) {
                *lane = drained.saturating_add(of_share);
            }
        }
    }

    fn free(&mut self, terms: &Terms<'_>, view: &View<'_>) {
        if terms.basis != Basis::Own {
            return;
        }
        let limited = self.lanes.iter().zip(terms.own).filter(|(_, rate)| *rate > 0);
        let free_at = limited.map(|(used, rate)| view.now + nanos(used.div_ceil(u128::from(rate))));
        self.free_at = free_at.fold(view.now, Instant::max);
    }

    /// Whole units left of a limit, and when all are free again.
    pub fn remaining(
        &self,
        limit: &Allowance,
        basis: Basis,
        counts: (u32, u32),
        view: &View<'_>,
    ) -> (u64, std::time::Duration) {
        match (place(limit.dimension), basis) {
            (Some(at), Basis::Minute) => {
                let used = self.units(at, view, limit.rate);
                (limit.minute().saturating_sub(used), view.minute.left)
            }
            (Some(at), _) => limit.remaining(self.used(at, view, limit.rate)),
            (None, _) => {
                let held = if limit.dimension == Dimension::Jobs { counts.1 } else { counts.0 };
                (limit.count.saturating_sub(u64::from(held)), std::time::Duration::ZERO)
            }
        }
    }
}

fn minute_used(lane: u128, view: &View<'_>) -> u64 {
    let number = (lane >> 64) as u64;
    if number == view.minute.number { lane as u64 } else { 0 }
}

fn minute_lane(used: u64, view: &View<'_>) -> u128 {
    (u128::from(view.minute.number) << 64) | u128::from(used)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_fits_two_cache_lines() {
        assert_eq!(std::mem::size_of::<Slot>(), 128);
    }

    #[test]
    fn a_flow_is_the_area_under_its_rates() {
        let flow = Flow::default().turned(Instant(10), 3).turned(Instant(20), 5);
        assert_eq!((flow.at(Instant(20)), flow.at(Instant(24))), (30, 50));
        assert_eq!(flow.turned(Instant(24), 5), flow, "an unchanged rate changes nothing");
        // A clock that two threads read at once may come late.
        assert_eq!(flow.turned(Instant(15), 7).at(Instant(20)), 30);
    }
}
