//! Shares a pool's budget among its rows: guarantees first, then weighted max-min on offered work.
//!
//! What is published is the water level, not a prediction per tenant: a tier that wakes finds its
//! share there at once, and asking for more than the level buys nothing. The level is the largest
//! λ with Σ min(demand, max(guarantee, λ·weight)) = budget (weighted max-min, Bertsekas &
//! Gallager, Data Networks, 6.5.2).

use serde::{Deserialize, Serialize};

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
    if guaranteed > budget {
        return by_priority(budget, claims);
    }
    if wanted <= budget {
        return uncontended(budget, wanted, claims);
    }
    let level = level(budget, claims);
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
    let slack = budget - wanted;
    let grants = claims
        .iter()
        .map(|claim| {
            let free = (level * claim.weight + slack).min(budget).max(claim.guarantee);
            claim.capped(free, Bound::Uncontended)
        })
        .collect();
    Allocation { level: None, grants }
}

/// Guarantees do not fit: in order of priority, each gets its guarantee while some is left.
fn by_priority(budget: f64, claims: &[Claim]) -> Allocation {
    let mut order: Vec<usize> = (0..claims.len()).collect();
    order.sort_by_key(|at| claims.get(*at).map(|claim| claim.priority));
    let mut grants = vec![Granted { limit: 0.0, bound: Bound::Priority }; claims.len()];
    let mut left = budget;
    for at in order {
        let (Some(claim), Some(grant)) = (claims.get(at), grants.get_mut(at)) else { continue };
        let trickle = TRICKLE * budget;
        let limit = claim.guarantee.min(left.max(trickle)).min(claim.ceiling);
        let bound = if limit < claim.guarantee { Bound::Priority } else { Bound::Guarantee };
        *grant = Granted { limit, bound };
        left = (left - claim.wanted().min(limit)).max(0.0);
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
