//! The table as anybody may read it: asked from the controller over HTTP, some times a second.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

use super::cluster::{GUARANTEES, POOL};
use super::ledger::TIERS;
use super::page::MODEL;
use super::verdict::Terms;
use crate::bounds::TABLE_BYTES_MAX;
use crate::unit::Dimension;
use crate::wire::LimitTable;
use crate::wire::Stamp;

const EVERY: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(2);

/// What the last table said, in work a second.
#[derive(Clone, Debug, PartialEq)]
pub struct Sight {
    pub stamp: Option<Stamp>,
    pub budget: Option<f64>,
    pub tiers: [Terms; TIERS.len()],
}

/// Follows the table of one controller; shows nothing when there is none to follow.
#[derive(Clone, Debug, Default)]
pub struct Watch(Arc<Mutex<Sight>>);

// === impl Watch ===

impl Watch {
    /// Polls until dropped. An answer that does not come leaves the last one standing.
    pub async fn follow(self, controller: String) {
        let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        let url = format!("{controller}/v1/table");
        loop {
            if let Ok(request) = Request::get(&url).body(Full::default())
                && let Ok(Ok(reply)) = tokio::time::timeout(PATIENCE, client.request(request)).await
                && let Ok(Ok(body)) =
                    tokio::time::timeout(PATIENCE, Limited::new(reply.into_body(), TABLE_BYTES_MAX).collect())
                        .await
                && let Ok(table) = LimitTable::decode(&body.to_bytes())
            {
                self.change(|sight| sight.see(&table));
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    /// What is in force now; the highest limits begin anew from it.
    pub fn take(&self) -> Sight {
        self.change(|sight| {
            let taken = sight.clone();
            for terms in &mut sight.tiers {
                terms.limit_max = terms.limit;
            }
            taken
        })
    }

    fn change<T>(&self, change: impl FnOnce(&mut Sight) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

// === impl Sight ===

impl Default for Sight {
    /// Before the first table only the guarantees are known: the demo's policy states them.
    fn default() -> Sight {
        let tiers = GUARANTEES.map(|guarantee| Terms { guarantee, ..Terms::default() });
        Sight { stamp: None, budget: None, tiers }
    }
}

impl Sight {
    fn see(&mut self, table: &LimitTable) {
        self.stamp = Some(table.stamp);
        self.budget = table.pools.get(POOL).map(|pool| pool.budget.as_f64() / 60.0);
        for (terms, name) in self.tiers.iter_mut().zip(TIERS) {
            let entry = table.row(MODEL, name).and_then(|row| row.limits.get(&Dimension::TokensPerMinute));
            terms.limit = entry.map(|entry| entry.tier_limit.as_f64() / 60.0);
            terms.limit_max = match (terms.limit_max, terms.limit) {
                (Some(highest), Some(limit)) => Some(highest.max(limit)),
                (_, limit) => limit,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::unit::{Limit, WorkUnit};
    use crate::wire::{Entry, PoolEntry, Row};

    fn table(limit: u64) -> LimitTable {
        let entry = Entry {
            tier_limit: Limit::Finite(limit),
            key_limit: Limit::Unlimited,
            safe: Limit::Finite(0),
            ..Entry::default()
        };
        let pool = PoolEntry {
            unit: WorkUnit::Tokens,
            output_cost_milli: 4000,
            budget: Limit::Finite(600_000),
            waiting_work: Limit::Unlimited,
            slo_ms: 0,
            in_flight: Limit::Unlimited,
            degraded: false,
            shares: BTreeMap::new(),
            unlisted_share: 0,
        };
        let row = Row {
            model: MODEL.into(),
            tier: "free".into(),
            pool: POOL.into(),
            yields: Default::default(),
            limits: BTreeMap::from([(Dimension::TokensPerMinute, entry)]),
            product: None,
            budgets: BTreeMap::new(),
            credit: Default::default(),
        };
        LimitTable {
            schema: 1,
            stamp: Stamp { epoch: 1, version: 2, tick: 3 },
            policy: String::new(),
            interval_ms: 2000,
            valid_for_ms: 20_000,
            pools: BTreeMap::from([(POOL.into(), pool)]),
            rows: vec![row],
            products: BTreeMap::new(),
            models: BTreeMap::new(),
            providers: BTreeMap::new(),
        }
    }

    #[test]
    fn the_highest_limit_since_the_last_look_is_remembered() {
        let watch = Watch::default();
        assert_eq!(watch.take(), Sight::default());
        for limit in [60_000, 120_000, 30_000] {
            watch.change(|sight| sight.see(&table(limit)));
        }
        let taken = watch.take();
        assert_eq!(taken.budget, Some(10_000.0));
        assert_eq!((taken.tiers[2].limit, taken.tiers[2].limit_max), (Some(500.0), Some(2000.0)));
        assert_eq!(watch.take().tiers[2].limit_max, Some(500.0));
        assert_eq!(taken.tiers[0].limit, None);
    }
}
