//! One node: the shipped limiter, and an account of its own of what the limiter may admit.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::enforce::{Limiter, Request};
use crate::sim::check::Account;
use crate::sim::world::MODEL;
use crate::unit::{Instant, NodeId, TierId};
use crate::wire::{LimitTable, UsageReport};

pub struct Node {
    pub id: NodeId,
    pub limiter: Limiter,
    pub started: Instant,
    pub instance: u64,
    pub reachable: bool,
    pub disk: Option<LimitTable>,
    /// The last table that came from the controller, and when: the oracle's own copy.
    pub renewed: Option<(Arc<LimitTable>, Instant)>,
    pub accounts: BTreeMap<TierId, Account>,
    pub in_flight: u64,
}

// === impl Node ===

impl Node {
    pub fn new(at: usize, now: Instant, instance: u64) -> Node {
        let id = NodeId::new(format!("node-{at}"));
        Node {
            limiter: Limiter::new(id.clone(), 1000),
            id,
            started: now,
            instance,
            reachable: true,
            disk: None,
            renewed: None,
            accounts: BTreeMap::new(),
            in_flight: 0,
        }
    }

    pub fn usage(&self, now: Instant) -> UsageReport {
        self.limiter.report(now, self.started, self.instance)
    }

    /// Everything a refusal or a swap must leave alone: admitted work, requests in flight, work
    /// that waits.
    pub fn counters(&self, now: Instant) -> Vec<(u64, u64, u64)> {
        let usage = self.usage(now);
        let rows = usage.rows.iter().map(|row| (row.admitted.requests, row.admitted.work, 0));
        let pools = usage.pools.values().map(|pool| (pool.in_flight, pool.waiting_work, 1));
        let counts: Vec<(u64, u64, u64)> = rows.chain(pools).collect();
        counts.into_iter().filter(|(a, b, _)| a + b > 0).collect()
    }

    /// What is left to a key in each dimension, as the limiter would tell a client.
    pub fn quotas(&self, now: Instant, tier: &TierId, key: u8) -> Vec<Option<u64>> {
        let quotas = self.limiter.quotas(now, &Request::new(MODEL, tier.as_str(), [key; 32]), None);
        quotas.iter().map(|quota| quota.as_ref().map(|quota| quota.remaining)).collect()
    }

    /// Brings every account up to now, under the rates in force from here on.
    pub fn drain(&mut self, now: Instant) {
        let rates: Vec<(TierId, f64)> =
            self.accounts.keys().filter_map(|tier| Some((tier.clone(), self.rate(tier, now)?))).collect();
        let part = self.part();
        for (tier, rate) in rates {
            if let Some(account) = self.accounts.get_mut(&tier) {
                account.drain(now, (rate, part));
            }
        }
    }

    /// Of the fleet's limits, what is this node's.
    pub fn part(&self) -> f64 {
        let pools = self.renewed.as_ref().and_then(|(table, _)| table.pools.values().next());
        let share = pools.map(|pool| pool.shares.get(&self.id).copied().unwrap_or(pool.unlisted_share));
        f64::from(share.unwrap_or(1_000_000)) / 1e6
    }

    /// What a tier may use here, work per second, by an account of the node's table of its own.
    pub fn rate(&self, tier: &TierId, now: Instant) -> Option<f64> {
        let (table, renewed_at) = self.renewed.as_ref()?;
        let row = table.row(MODEL, tier.as_str())?;
        let entry = row.limits.values().next()?;
        let pool = table.pools.get(&row.pool)?;
        let Some(share) = pool.shares.get(&self.id) else {
            return Some(entry.safe.as_f64() / 60.0 * f64::from(pool.unlisted_share) / 1e6);
        };
        let (last, safe) = (entry.tier_limit.as_f64(), entry.safe.as_f64());
        let past = now.seconds_since(*renewed_at) - table.valid_for_ms as f64 / 1e3;
        let limit = if past < 0.0 || last <= safe {
            last
        } else {
            let steps = (past / (table.interval_ms as f64 / 1e3)).floor() + 1.0;
            (last * 0.7f64.powf(steps)).max(safe)
        };
        Some(limit / 60.0 * f64::from(*share) / 1e6)
    }
}
