//! The turn of a pool that nobody measures: nothing is estimated or decided, every row has what the
//! policy states. Only who asks how much is followed, because nodes hold shares of it.

use crate::allocate::Bound;
use crate::control::PoolTick;
use crate::control::RowTick;
use crate::decide::Decision;
use crate::decide::Motion;
use crate::decide::Reason;
use crate::estimate::Estimate;
use crate::estimate::Freshness;
use crate::estimate::PoolDemand;
use crate::policy::Policy;
use crate::unit::{Limit, MAX_FINITE};

/// The pool's turn under limits that stay what they are.
pub fn tick(policy: &Policy, demand: PoolDemand, mut rows: Vec<RowTick>) -> PoolTick {
    for row in &mut rows {
        let grant = policy.models.get(&row.model).and_then(|model| model.tiers.get(&row.tier));
        let ceiling = grant.map_or(Limit::Finite(0), |grant| grant.ceiling);
        // A number, also where there is no limit: the journal has no infinity.
        row.limit = ceiling.min(Limit::Finite(MAX_FINITE)).as_f64() / 60.0;
        row.bound = Bound::Ceiling;
    }
    let budget: f64 = rows.iter().map(|row| row.limit).sum();
    let decision = Decision {
        budget,
        motion: Motion::Hold,
        reason: Reason::Fixed,
        waiting_work: budget,
        in_flight: None,
        in_flight_above_batch: 0.0,
        waiting_threshold: 0.0,
    };
    PoolTick { estimate: unmeasured(), demand, decision, level: None, contended: false, rows }
}

/// What is known of a pool without a source. Nothing is missing, so nothing is stale.
fn unmeasured() -> Estimate {
    Estimate {
        freshness: Freshness::Fresh,
        replicas: 0,
        rejected: 0,
        frozen: 0,
        ready: 0.0,
        ready_before: 0.0,
        running: 0.0,
        waiting: 0.0,
        delivered: None,
        backlogged: false,
        per_replica: None,
        capacity: None,
        running_saturated: None,
        output_cost: 1.0,
        loss_confirmed: false,
        latency: None,
    }
}
