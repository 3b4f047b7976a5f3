//! Promises about sources, judged by what the replicas really did and showed.

use crate::control::PoolTick;
use crate::estimate::Freshness;
use crate::observe::{Outcome, PoolRound};
use crate::sim::check::Promise;
use crate::sim::page::Untrue;
use crate::unit::Instant;

/// A page that stands still must be old after this many served ticks: ten to notice, three to age.
const FROZEN_TICKS: u32 = 14;
/// Ticks with too few replicas seen after which nothing may move.
const PART_TICKS: u32 = 4;
/// Most that one replica may be measured at, as a factor of what it can do: steps end unevenly.
const MEASURED_MAX: f64 = 1.5;
/// A lie that nobody could see through is forgotten after this long, seconds.
const TAINTED_FOR: f64 = 60.0;

/// What is behind the pages of one round.
#[derive(Clone, Debug, Default)]
pub struct Truth {
    /// Work per second that a replica can do.
    pub rate: f64,
    pub alive: usize,
    /// Per replica: what its page shows instead of the truth.
    pub untrue: Vec<Option<Untrue>>,
    /// The loop was paused before this tick.
    pub resumed: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Sources {
    frozen: u32,
    in_part: u32,
    /// This controller has seen the whole pool.
    whole: bool,
    tainted_at: Option<Instant>,
    coming_back: bool,
    before: Option<PoolTick>,
}

type Found = Vec<(Promise, String)>;

// === impl Sources ===

impl Sources {
    pub fn state_lost(&mut self) {
        *self = Sources { tainted_at: self.tainted_at, ..Sources::default() };
    }

    pub fn ticked(&mut self, now: Instant, pool: &PoolTick, round: &PoolRound, truth: &Truth) -> Found {
        let mut found = Found::new();
        self.measured(now, pool, round, truth, &mut found);
        self.frozen(pool, truth, &mut found);
        self.in_part(pool, round, truth, &mut found);
        self.comes_back(pool, &mut found);
        if let Some(before) = self.before.as_ref().filter(|_| truth.resumed) {
            let (from, to) = (before.decision.budget, pool.decision.budget);
            if to > from * 1.0001 {
                found.push((Promise::PauseRaisesNothing, format!("{from} to {to} after a pause")));
            }
        }
        self.before = Some(pool.clone());
        found
    }

    /// Resets, and one liar of three or more, leave what is measured near what can be done.
    fn measured(
        &mut self,
        now: Instant,
        pool: &PoolTick,
        round: &PoolRound,
        truth: &Truth,
        found: &mut Found,
    ) {
        let up = up(round);
        let lying = truth.untrue.iter().filter(|page| matches!(page, Some(Untrue::Times { .. }))).count();
        if lying > 1 || lying == 1 && up < 3 {
            self.tainted_at = Some(now);
        }
        if self.tainted_at.is_some_and(|at| now.seconds_since(at) < TAINTED_FOR) {
            return;
        }
        let most = truth.rate * MEASURED_MAX;
        if let Some(measured) = pool.estimate.per_replica.filter(|measured| *measured > most) {
            let detail = format!("a replica of {} is measured at {measured}, {lying} lie", truth.rate);
            found.push((Promise::MeasuredIsReal, detail));
        }
    }

    fn frozen(&mut self, pool: &PoolTick, truth: &Truth, found: &mut Found) {
        let all = truth.alive == truth.untrue.len()
            && truth.untrue.iter().all(|page| *page == Some(Untrue::Frozen));
        if !all {
            self.frozen = 0;
            return;
        }
        self.frozen += u32::from(pool.demand.served);
        if self.frozen >= FROZEN_TICKS && pool.estimate.freshness == Freshness::Fresh {
            let detail = format!("every page stands still for {} served ticks", self.frozen);
            found.push((Promise::FrozenIsStale, detail));
        }
    }

    /// Fewer than half of the replicas are seen and none refuses: nothing rises, nothing is lost.
    fn in_part(&mut self, pool: &PoolTick, round: &PoolRound, truth: &Truth, found: &mut Found) {
        let up = up(round);
        let refuses = round.replicas.iter().any(|reading| matches!(reading.outcome, Outcome::Down(_)));
        let doubtful = truth.untrue.iter().any(|page| !matches!(page, None | Some(Untrue::Silent)));
        self.whole |= up == truth.untrue.len() && !doubtful;
        if !self.whole || refuses || doubtful || 2 * up >= truth.untrue.len() {
            self.in_part = 0;
            return;
        }
        self.in_part += 1;
        let Some(before) = self.before.as_ref().filter(|_| self.in_part >= PART_TICKS) else { return };
        let (from, to) = (before.decision.budget, pool.decision.budget);
        if to > from * 1.0001 {
            let detail = format!("{up} of {} seen, budget {from} to {to}", truth.untrue.len());
            found.push((Promise::PartIsNoLoss, detail));
        }
        let (from, to) = (before.estimate.ready, pool.estimate.ready);
        if to < from - 1e-9 {
            let detail = format!("{up} of {} seen, ready {from} to {to}", truth.untrue.len());
            found.push((Promise::PartIsNoLoss, detail));
        }
    }

    /// After stale signals the budget comes back in steps of 5 %, until it is back.
    fn comes_back(&mut self, pool: &PoolTick, found: &mut Found) {
        let Some(before) = &self.before else { return };
        let capacity = pool.estimate.capacity.unwrap_or(f64::INFINITY);
        let (from, to) = (before.decision.budget, pool.decision.budget);
        if pool.estimate.freshness == Freshness::Stale {
            self.coming_back = to < 0.9 * capacity;
            return;
        }
        let same = (pool.estimate.ready - before.estimate.ready).abs() < 1e-9;
        let most = if pool.estimate.capacity.is_some() { from + 0.05 * capacity } else { from * 1.25 };
        if self.coming_back && same && to > most * 1.0001 {
            let reason = pool.decision.reason;
            found.push((Promise::RecoversWithoutStep, format!("{from} to {to} of {capacity} ({reason:?})")));
        }
        self.coming_back &= to < 0.9 * capacity;
    }
}

fn up(round: &PoolRound) -> usize {
    round.replicas.iter().filter(|reading| matches!(reading.outcome, Outcome::Up(_))).count()
}
