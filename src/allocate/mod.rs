//! Shares a pool's budget among its rows: guarantees first, then weighted max-min on offered work.
//!
//! What is published is the water level, not a prediction per tenant: a tier that wakes finds its
//! share there at once, and asking for more than the level buys nothing. The level is the largest
//! λ with Σ min(demand, max(guarantee, λ·weight)) = budget (weighted max-min, Bertsekas &
//! Gallager, Data Networks, 6.5.2).

mod share;

use serde::{Deserialize, Serialize};

pub use share::{KeyShare, Outcomes};

use crate::planted::without;

/// Part of the budget a row keeps when guarantees do not fit and its priority leaves nothing.
const TRICKLE: f64 = 0.01;

/// What is known of one row. Work per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Claim {
    pub priority: u32,
    pub weight: f64,
    pub guarantee: f64,
    /// Infinite where there is none.
    pub ceiling: f64,
    pub demand: f64,
}

/// A budget, shared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Allocation {
    /// Work per second and unit of weight; none while every demand fits.
    pub level: Option<f64>,
    /// In the order of the claims.
    pub grants: Vec<Granted>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Granted {
    /// Work per second.
    pub limit: f64,
    pub bound: Bound,
}

/// Which rule set a row's limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Every demand fits: the limit is what would be free for it.
    Uncontended,
    /// The pool's level times the row's weight.
    FairShare,
    Guarantee,
    Ceiling,
    /// Guarantees do not fit: higher priorities went first.
    Priority,
}

/// Shares `budget` among `claims`. No grant exceeds the larger of budget and guarantee.
pub fn allocate(budget: f64, claims: &[Claim]) -> Allocation {
    let wanted: f64 = claims.iter().map(Claim::wanted).sum();
    let guaranteed: f64 = claims.iter().map(|claim| claim.wanted().min(claim.guarantee)).sum();
    if guaranteed > budget && !without("by-priority") {
        return by_priority(budget, claims);
    }
    if wanted <= budget {
        return uncontended(budget, wanted, claims);
    }
    let weights = || claims.iter().map(|claim| claim.weight).sum::<f64>();
    let level = if without("level") { budget / weights() } else { level(budget, claims) };
    let grants = claims
        .iter()
        .map(|claim| {
            let fair = (level * claim.weight).min(budget);
            let (limit, bound) = if claim.guarantee >= fair {
                (claim.guarantee, Bound::Guarantee)
            } else {
                (fair, Bound::FairShare)
            };
            claim.capped(limit, bound)
        })
        .collect();
    Allocation { level: Some(level), grants }
}

/// Everybody gets what it asks, and may take what is left over. Continuous with the contended
/// case: as demand reaches the budget, the leftover reaches zero and the level takes over.
fn uncontended(budget: f64, wanted: f64, claims: &[Claim]) -> Allocation {
    let level = claims.iter().map(|claim| claim.wanted() / claim.weight).fold(0.0, f64::max);
    let slack = if without("slack") { 0.0 } else { budget - wanted };
    let grants = claims
        .iter()
        .map(|claim| {
            let free = (level * claim.weight + slack).min(budget).max(claim.guarantee);
            claim.capped(free, Bound::Uncontended)
        })
        .collect();
    Allocation { level: None, grants }
}

/// Guarantees do not fit: priority by priority, each gets its guarantee while that fits; the first
/// that does not fit is cut by the same part for everybody in it.
fn by_priority(budget: f64, claims: &[Claim]) -> Allocation {
    let mut priorities: Vec<u32> = claims.iter().map(|claim| claim.priority).collect();
    priorities.sort_unstable();
    priorities.dedup();
    let mut grants = vec![Granted { limit: 0.0, bound: Bound::Priority }; claims.len()];
    let trickle = if without("trickle") { 0.0 } else { TRICKLE * budget };
    let mut left = budget;
    for priority in priorities {
        let group = || claims.iter().filter(|claim| claim.priority == priority);
        let due: f64 = group().map(|claim| claim.wanted().min(claim.guarantee)).sum();
        let part = if due > left { left / due } else { 1.0 };
        for (claim, grant) in claims.iter().zip(&mut grants).filter(|(claim, _)| claim.priority == priority) {
            // Who asks for less than its guarantee is cut from what it asks.
            let cut = claim.wanted().min(claim.guarantee) * part;
            let limit = if part < 1.0 { cut.max(trickle.min(claim.guarantee)) } else { claim.guarantee };
            let limit = limit.min(claim.ceiling);
            let bound = if limit < claim.guarantee { Bound::Priority } else { Bound::Guarantee };
            *grant = Granted { limit, bound };
        }
        left = (left - due).max(0.0);
    }
    Allocation { level: Some(0.0), grants }
}

/// Largest λ with Σ min(wanted, max(guarantee, λ·weight)) = budget. The sum is piecewise linear in
/// λ and grows only between a claim's two corners, so the corners are walked in order.
fn level(budget: f64, claims: &[Claim]) -> f64 {
    let mut corners: Vec<(f64, f64)> = Vec::with_capacity(2 * claims.len());
    let mut sum = 0.0;
    for claim in claims {
        let wanted = claim.wanted();
        sum += wanted.min(claim.guarantee);
        if wanted > claim.guarantee {
            corners.push((claim.guarantee / claim.weight, claim.weight));
            corners.push((wanted / claim.weight, -claim.weight));
        }
    }
    corners.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut at, mut slope) = (0.0, 0.0);
    for (corner, change) in corners {
        let reached = sum + slope * (corner - at);
        if reached >= budget && slope > 0.0 {
            break;
        }
        (sum, at, slope) = (reached, corner, slope + change);
    }
    if slope > 0.0 { at + (budget - sum) / slope } else { at }
}

// === impl Claim ===

impl Claim {
    fn wanted(&self) -> f64 {
        self.demand.min(self.ceiling)
    }

    fn capped(&self, limit: f64, bound: Bound) -> Granted {
        if limit > self.ceiling {
            Granted { limit: self.ceiling, bound: Bound::Ceiling }
        } else {
            Granted { limit, bound }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(priority: u32, weight: f64, guarantee: f64, demand: f64) -> Claim {
        Claim { priority, weight, guarantee, ceiling: f64::INFINITY, demand }
    }

    fn limits(budget: f64, claims: &[Claim]) -> Vec<f64> {
        allocate(budget, claims).grants.iter().map(|grant| grant.limit).collect()
    }

    fn used(budget: f64, claims: &[Claim]) -> f64 {
        limits(budget, claims).iter().zip(claims).map(|(limit, claim)| limit.min(claim.demand)).sum()
    }

    #[test]
    fn the_level_shares_what_guarantees_leave_by_weight() {
        let claims = [claim(1, 4.0, 30.0, 20.0), claim(2, 2.0, 10.0, 90.0), claim(3, 1.0, 2.0, 90.0)];
        let allocation = allocate(80.0, &claims);
        // Enterprise takes its 20, the other 60 go 2 to 1.
        assert_eq!(allocation.level, Some(20.0));
        assert_eq!(limits(80.0, &claims), [80.0, 40.0, 20.0]);
        assert_eq!(allocation.grants[1].bound, Bound::FairShare);
    }

    #[test]
    fn a_guarantee_holds_when_the_level_is_below_it() {
        let claims = [claim(1, 1.0, 50.0, 60.0), claim(2, 1.0, 0.0, 500.0)];
        assert_eq!(limits(80.0, &claims), [50.0, 30.0]);
    }

    #[test]
    fn a_ceiling_caps_and_leaves_the_rest_to_others() {
        let mut claims = [claim(1, 1.0, 0.0, 90.0), claim(2, 1.0, 0.0, 90.0)];
        claims[0].ceiling = 10.0;
        let allocation = allocate(80.0, &claims);
        assert_eq!((allocation.grants[0].limit, allocation.grants[0].bound), (10.0, Bound::Ceiling));
        assert_eq!(allocation.grants[1].limit, 70.0);
    }

    #[test]
    fn while_all_demands_fit_a_limit_is_never_below_demand_nor_above_the_budget() {
        let claims = [claim(1, 4.0, 10.0, 5.0), claim(2, 1.0, 0.0, 30.0)];
        let allocation = allocate(100.0, &claims);
        assert_eq!(allocation.level, None);
        assert_eq!(limits(100.0, &claims), [100.0, 95.0]);
        assert_eq!(limits(100.0, &[claim(1, 1.0, 0.0, 0.0)]), [100.0], "an idle tier finds the pool open");
    }

    #[test]
    fn guarantees_that_do_not_fit_go_by_priority_and_nobody_gets_zero() {
        let claims = [claim(2, 1.0, 60.0, 60.0), claim(1, 1.0, 60.0, 60.0), claim(3, 1.0, 60.0, 60.0)];
        let allocation = allocate(100.0, &claims);
        assert_eq!(limits(100.0, &claims), [40.0, 60.0, 1.0]);
        let equals = [claim(1, 1.0, 60.0, 60.0), claim(1, 1.0, 60.0, 60.0)];
        assert_eq!(limits(60.0, &equals), [30.0, 30.0], "within a priority nobody goes first");
        assert_eq!(allocation.grants[0].bound, Bound::Priority);
        assert_eq!(allocation.grants[1].bound, Bound::Guarantee);
    }

    #[test]
    fn asking_for_more_than_the_level_buys_nothing() {
        let mut claims = [claim(1, 1.0, 0.0, 60.0), claim(2, 1.0, 0.0, 60.0)];
        let honest = limits(100.0, &claims)[0];
        claims[0].demand = 6000.0;
        assert_eq!(limits(100.0, &claims)[0], honest);
    }

    /// A small generator: the allocation is pure, so a hand of numbers is enough to shake it.
    #[test]
    fn any_claims_are_work_conserving_and_inside_the_budget() {
        let mut seed = 1u64;
        let mut draw = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((seed >> 33) % below) as f64
        };
        for _ in 0..20_000 {
            let claims: Vec<Claim> = (0..1 + draw(6) as u32)
                .map(|at| Claim {
                    priority: at + 1,
                    weight: 0.5 + draw(8),
                    guarantee: draw(20),
                    ceiling: if draw(3) == 0.0 { 20.0 + draw(100) } else { f64::INFINITY },
                    demand: draw(120),
                })
                .collect();
            let budget = 1.0 + draw(300);
            let wanted: f64 = claims.iter().map(Claim::wanted).sum();
            let guaranteed: f64 = claims.iter().map(|claim| claim.wanted().min(claim.guarantee)).sum();
            let used = used(budget, &claims);
            if guaranteed <= budget {
                let due = wanted.min(budget);
                assert!((used - due).abs() < 1e-6 * due.max(1.0), "{used} of {due}: {claims:?}");
                for (limit, claim) in limits(budget, &claims).iter().zip(&claims) {
                    assert!(*limit >= claim.guarantee.min(claim.ceiling) - 1e-9, "{claim:?} got {limit}");
                }
            } else {
                let trickle = TRICKLE * budget * claims.len() as f64;
                assert!(used <= budget + trickle + 1e-9, "{used} of {budget}: {claims:?}");
            }
        }
    }
}
