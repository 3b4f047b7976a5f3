//! What one node holds of a fleet's limit: the limit in force now, times the node's share.

use std::time::Duration;

use crate::enforce::bucket::Rate;
use crate::enforce::ticket::Scope;
use crate::unit::{Instant, Limit, PPM};
use crate::wire::table::Share;
use crate::wire::{Entry, Held, PoolEntry};

/// A tier's bucket holds this much of its limit: long enough for a burst of arrivals, too short
/// for a pool to queue behind it.
pub const TIER_WINDOW: Duration = Duration::from_millis(1500);
/// A key's bucket holds one minute: a fresh key at 60 rpm may send 60 at once.
pub const KEY_WINDOW: Duration = Duration::from_secs(60);

/// The node's part of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Portion {
    ppm: u32,
    /// Of what one key or account may use. Nothing is set aside of that for nodes that are not
    /// listed: those grant a key its whole limit, and are bounded by their part of the tier's.
    of_keys: u32,
    /// Of the limit when listed, of `safe` otherwise.
    listed: bool,
}

/// One limit of one scope as this node applies it.
#[derive(Clone, Copy, Debug)]
pub enum Allowance {
    Unlimited,
    /// The limit of all nodes together, and this node's part of it in micro-units.
    Finite {
        limit: u64,
        micro: u128,
    },
}

// === impl Portion ===

impl Portion {
    /// A share of zero counts as not listed: the reserve for such nodes covers it.
    pub fn of(pool: &PoolEntry, node: &crate::unit::NodeId) -> Portion {
        match pool.share(node) {
            Share::Listed(ppm) if ppm > 0 => {
                let listed = u64::from(PPM.saturating_sub(pool.unlisted_share)).max(1);
                let of_keys = u64::from(ppm) * u64::from(PPM) / listed;
                let of_keys = u32::try_from(of_keys).unwrap_or(PPM).min(PPM);
                Portion { ppm: ppm.min(PPM), of_keys, listed: true }
            }
            _ => Portion { ppm: pool.unlisted_share.min(PPM), of_keys: PPM, listed: false },
        }
    }

    pub fn ppm(self) -> u32 {
        self.ppm
    }
}

// === impl Allowance ===

impl Allowance {
    pub fn of(held: &Held, entry: &Entry, scope: Scope, portion: Portion, now: Instant) -> Allowance {
        let limit = match scope {
            Scope::Tier if portion.listed => held.tier_limit(entry, now),
            // A node without a share has only what is reserved for such nodes; steering may be
            // below `safe` only where the table itself is.
            Scope::Tier => entry.safe.min(held.tier_limit(entry, now)),
            Scope::Account => entry.account_limit,
            _ => entry.key_limit,
        };
        let Limit::Finite(limit) = limit else {
            return Allowance::Unlimited;
        };
        let ppm = match scope {
            Scope::Key | Scope::Account => portion.of_keys,
            Scope::Tier | Scope::Model | Scope::Provider => portion.ppm,
        };
        let mut micro = u128::from(limit) * u128::from(ppm);
        if scope == Scope::Key && limit > 0 {
            // A small key on a node with a small share still gets one unit a minute.
            micro = micro.max(u128::from(PPM));
        }
        Allowance::Finite { limit, micro }
    }

    /// As a drain rate; `None` is unlimited.
    pub fn rate(self) -> Option<Rate> {
        match self {
            Allowance::Unlimited => None,
            Allowance::Finite { micro, .. } => Some(micro),
        }
    }

    /// As a count of things held at once: rounded up, and at least one unless the limit is zero.
    pub fn count(self) -> Option<u64> {
        match self {
            Allowance::Unlimited => None,
            Allowance::Finite { micro, .. } => {
                Some(u64::try_from(micro.div_ceil(u128::from(PPM))).unwrap_or(u64::MAX))
            }
        }
    }

    pub fn limit(self) -> Limit {
        match self {
            Allowance::Unlimited => Limit::Unlimited,
            Allowance::Finite { limit, .. } => Limit::Finite(limit),
        }
    }
}

pub fn window(scope: Scope) -> Duration {
    match scope {
        Scope::Tier => TIER_WINDOW,
        _ => KEY_WINDOW,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::unit::{NodeId, WorkUnit};

    /// What is kept for nodes that have not reported is the tier's: the only node there is admits a
    /// key's 10,000 requests, not 9,900, and two nodes together no more than that.
    #[test]
    fn listed_nodes_divide_a_keys_whole_limit_among_them() {
        let portion = |shares: &[u32]| -> Vec<u32> {
            let nodes = |at: usize| NodeId::new(format!("n{at}"));
            let pool = PoolEntry {
                unit: WorkUnit::Tokens,
                output_cost_milli: 1_000,
                budget: Limit::Unlimited,
                waiting_work: Limit::Unlimited,
                in_flight: Limit::Unlimited,
                degraded: false,
                shares: shares
                    .iter()
                    .enumerate()
                    .map(|(at, ppm)| (nodes(at), *ppm))
                    .collect::<BTreeMap<_, _>>(),
                unlisted_share: PPM / 100,
            };
            (0..shares.len()).map(|at| Portion::of(&pool, &nodes(at)).of_keys).collect()
        };
        assert_eq!(portion(&[PPM / 100 * 99]), [PPM]);
        assert_eq!(portion(&[PPM / 100 * 66, PPM / 100 * 33]), [666_666, 333_333]);
        assert_eq!(portion(&[0]), [PPM], "not listed");
    }
}
