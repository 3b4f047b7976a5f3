//! What one node holds of a fleet's limit: the limit in force now, times the node's share.

use std::time::Duration;

use crate::enforce::bucket::{GRAINS, Rate};
use crate::enforce::ticket::{Limits, Scope};
use crate::planted::without;
use crate::unit::{Dimension, Instant, Limit, NodeId, PPM};
use crate::wire::table::Share;
use crate::wire::{Entry, Held, Pinned, PoolEntry};

/// The bucket of a tier on the only node holds this much of its limit; see [`Portion::window`] for
/// a part. Long enough that what a quiet second left is not lost to the next; a pool does not queue
/// behind it, since what may wait there has a cap of its own.
pub const TIER_WINDOW: Duration = Duration::from_secs(4);
/// A key's fair share holds this much of itself: a key that comes back after a pause is let in at
/// once, one that floods is found out in seconds.
pub const SHARE_WINDOW: Duration = Duration::from_secs(15);
/// All other buckets hold one minute: a fresh key at 60 rpm may send 60 at once.
pub const MINUTE: Duration = Duration::from_secs(60);

/// The node's part of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Portion {
    ppm: u32,
    /// Of what one key or account may use. Nothing is set aside of that for nodes that are not
    /// listed: those grant a key its whole limit, and are bounded by their part of the tier's.
    of_keys: u32,
    of_accounts: u32,
    /// Of the limit when listed, of `safe` otherwise.
    listed: bool,
}

/// One finite limit of one scope as this node applies it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    pub dimension: Dimension,
    /// Of all nodes together.
    pub limit: u64,
    /// What this node's part drains in a nanosecond; the largest there is stands for any larger.
    pub rate: Rate,
    /// What this node's part holds, grains.
    pub depth: u128,
    /// Things that may be held at once: rounded up, and at least one unless the limit is zero.
    pub count: u64,
}

// === impl Portion ===

impl Portion {
    /// The only node there is.
    pub const WHOLE: Portion = Portion { ppm: PPM, of_keys: PPM, of_accounts: PPM, listed: true };

    /// A share of zero counts as not listed: the reserve for such nodes covers it.
    pub fn of(pool: &PoolEntry, node: &NodeId) -> Portion {
        match pool.share(node) {
            Share::Listed(ppm) if ppm > 0 => {
                let listed = u64::from(PPM.saturating_sub(pool.unlisted_share)).max(1);
                let of_keys = u64::from(ppm) * u64::from(PPM) / listed;
                let of_keys = u32::try_from(of_keys).unwrap_or(PPM).min(PPM);
                Portion { ppm: ppm.min(PPM), of_keys, of_accounts: of_keys, listed: true }
            }
            _ => Portion { ppm: pool.unlisted_share.min(PPM), of_keys: PPM, of_accounts: PPM, listed: false },
        }
    }

    /// What reaches this node only is this node's alone to limit: nothing of it is divided.
    pub fn pinned(self, pinned: Pinned) -> Portion {
        match pinned {
            Pinned::Nothing => self,
            Pinned::Keys => Portion { of_keys: PPM, ..self },
            Pinned::Accounts => Portion { of_keys: PPM, of_accounts: PPM, ..self },
        }
    }

    pub fn ppm(self) -> u32 {
        self.ppm
    }

    /// What is not this node's, 0 to 1.
    pub fn others(self) -> f64 {
        f64::from(PPM.saturating_sub(self.ppm)) / f64::from(PPM)
    }

    /// How long a bucket of this part holds what it drains, where that of all would hold it for
    /// `whole`: what arrives in a part varies less than the part is smaller, by its root.
    fn window(self, whole: Duration) -> Duration {
        let part = (f64::from(self.ppm) / f64::from(PPM)).max(1e-4);
        if without("window-root") { whole } else { whole.div_f64(part.sqrt()) }
    }

    /// A tier's limit in force `now`.
    pub fn tier_limit(self, held: &Held, entry: &Entry, now: Instant) -> Limit {
        self.part(entry, held.tier_limit(entry, now))
    }

    /// Of a tier's limit, what such a node goes by.
    pub fn part(self, entry: &Entry, limit: Limit) -> Limit {
        // A node without a share has only what is reserved for such nodes; steering may be below
        // `safe` only where the table itself is.
        if self.listed { limit } else { entry.safe.min(limit) }
    }
}

// === impl Allowance ===

impl Allowance {
    /// `None` is unlimited.
    pub fn of(dimension: Dimension, limit: Limit, scope: Scope, portion: Portion) -> Option<Allowance> {
        let limit = limit.finite()?;
        let ppm = match scope {
            Scope::Key => portion.of_keys,
            Scope::Account => portion.of_accounts,
            Scope::Tier | Scope::Model | Scope::Provider => portion.ppm,
        };
        let mut micro = u128::from(limit) * u128::from(ppm);
        if scope != Scope::Tier && limit > 0 {
            // A small key on a node with a small share still gets one unit a minute.
            micro = micro.max(u128::from(PPM));
        }
        let whole = if without("tier-window") { Duration::from_secs(1) } else { TIER_WINDOW };
        let window = if scope == Scope::Tier { portion.window(whole) } else { MINUTE };
        Some(Allowance::holding(dimension, limit, micro, window))
    }

    /// A key's fair share of its tier, in work.
    pub fn share(dimension: Dimension, limit: Limit, portion: Portion) -> Option<Allowance> {
        let limit = limit.finite()?;
        let micro = (u128::from(limit) * u128::from(portion.of_keys)).max(u128::from(PPM));
        Some(Allowance::holding(dimension, limit, micro, portion.window(SHARE_WINDOW)))
    }

    fn holding(dimension: Dimension, limit: u64, micro: u128, window: Duration) -> Allowance {
        Allowance {
            dimension,
            limit,
            rate: Rate::try_from(micro).unwrap_or(Rate::MAX),
            depth: micro.saturating_mul(window.as_nanos()),
            count: u64::try_from(micro.div_ceil(u128::from(PPM))).unwrap_or(u64::MAX),
        }
    }

    /// The finite ones of some limits.
    pub fn all(limits: &Limits, scope: Scope, portion: Portion) -> Box<[Allowance]> {
        let finite =
            limits.iter().filter_map(|(dimension, limit)| Allowance::of(*dimension, *limit, scope, portion));
        finite.collect()
    }

    /// Whole units that fit one minute.
    pub fn minute(&self) -> u64 {
        u64::try_from(self.depth / GRAINS).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::unit::WorkUnit;

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
                slo_ms: 0,
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

    #[test]
    fn what_is_pinned_is_whole_on_its_node() {
        let half = Portion { ppm: PPM / 2, of_keys: PPM / 2, of_accounts: PPM / 2, listed: true };
        let count = |scope, pinned| {
            let dimension = Dimension::Concurrency;
            Allowance::of(dimension, Limit::Finite(10), scope, half.pinned(pinned)).unwrap().count
        };
        let counts = |pinned| [Scope::Key, Scope::Account, Scope::Tier].map(|scope| count(scope, pinned));
        assert_eq!(counts(Pinned::Nothing), [5, 5, 5]);
        assert_eq!(counts(Pinned::Keys), [10, 5, 5]);
        assert_eq!(counts(Pinned::Accounts), [10, 10, 5]);
    }
}
