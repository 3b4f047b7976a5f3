//! The law: how much a pool may admit, and why.
//!
//! AIMD in shape, anchored in measurement. The budget **follows** capacity where that is
//! measured (ready replicas times the work one delivers while busy) and **steers** everywhere
//! else: it raises only a limit that binds, cuts at most once per feedback delay, and without
//! signals drifts to safe. Sources: signals-and-control notes section 4; growth is CUBIC
//! (RFC 9438); no growth of an unused limit is RFC 7661; significance is a Poisson tail.

mod decision;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use statrs::distribution::{DiscreteCDF, Poisson};

pub use decision::{Decision, Motion, Reason};

use crate::estimate::Estimate;
use crate::estimate::Freshness;
use crate::estimate::PoolDemand;
use crate::planted::{bug, without};
use crate::unit::Instant;

/// Publish and scrape delay beyond the interval: one feedback delay is `interval + DELAY`.
const DELAY: Duration = Duration::from_secs(1);
/// Part of the SLO that the queue may take before it counts as overload.
const WAIT_PART_OF_SLO: f64 = 0.4;
/// Budget over measured capacity while probing: keeps a backlog, and so a measurement, alive. What
/// it is too much nodes keep from waiting by the pool's caps.
const PROBE_MAX: f64 = 1.03;
/// Where the budget returns to after an overload has drained.
const RECOVERED: f64 = 0.97;
/// Growth per tick before the first backlog.
const SLOW_START: f64 = 1.25;
/// A limit is used, and may grow, when admissions exceed this part of it.
const USED: f64 = 0.85;
/// Most that a steered budget falls in one interval, as the factor that remains.
const STEER_DOWN: f64 = 0.7;
/// Most that a steered budget rises in one interval, as a part of measured capacity.
const STEER_UP: f64 = 0.05;
/// Seconds in which a probe returns to where it was cut.
const CUBIC_SECONDS: f64 = 20.0;
const CUBIC_SCALE: f64 = 0.4;
/// Arrivals come in bursts: index of dispersion of counts of the Azure trace at 5 s.
const DISPERSION: f64 = 2.5;
const SIGNIFICANT: f64 = 0.01;
/// Waiting requests per replica that count as overload while requests per second are unknown.
const WAITING_PER_REPLICA: f64 = 5.0;
/// A loop that did not turn for this many intervals was paused.
const PAUSED_INTERVALS: u32 = 5;
/// Time constant of the drift to safe without signals, seconds.
const DRIFT_SECONDS: f64 = 60.0;
/// The budget never falls below this part of what the pool could do at its best.
const FLOOR: f64 = 0.05;
/// Part of the SLO that admitted work may wait for its first token, by Little's law.
/// Nodes let it be more by the spread of what they see of it.
const WAITING_CAP_PART_OF_SLO: f64 = 0.75;
/// Requests in flight over the most that were seen running: without, a pool that was measured while
/// its batches were small could never be seen to fill them.
const IN_FLIGHT_SPARE: f64 = 1.1;

/// No request is believed to be more work than this.
const REQUEST_WORK_MAX: f64 = 1e7;

/// What is remembered of one pool's decisions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Law {
    /// Work per second; none before the first decision.
    budget: Option<f64>,
    /// Where the budget was last cut from.
    cut_from: f64,
    /// What it was cut to.
    cut_to: f64,
    cut_at: Instant,
    /// No second cut and no probe before this.
    cool_until: Instant,
    /// It steered to safe for want of signals, and steers back: what comes back may lie at first.
    drifted: bool,
    /// The most the pool was ever measured to deliver, work per second.
    best: f64,
    /// Mean work of one request.
    request_work: Option<f64>,
    #[serde(default)]
    stepped_at: Option<Instant>,
}

/// What a pool's decision needs beside its estimate.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    pub now: Instant,
    pub interval: Duration,
    pub slo: Duration,
    /// Sum of the rows' `safe`, work per second.
    pub safe: f64,
}

// === impl Law ===

impl Law {
    /// One decision.
    pub fn step(&mut self, context: &Context, estimate: &Estimate, demand: &PoolDemand) -> Decision {
        self.learn(estimate, demand);
        let threshold = self.waiting_threshold(context, estimate, demand);
        let (budget, motion, reason) = self.awake(context, estimate, demand, threshold);
        let floor = if without("floor") { 1.0 } else { (FLOOR * self.best).max(1.0) };
        let budget = budget.max(floor);
        self.budget = Some(budget);
        let slo = context.slo.as_secs_f64();
        // While a lost pool counts no replica, one is left room for: a cap of nothing could not
        // be seen to recover.
        let ready = estimate.ready.max(if without("last-replica-room") { 0.0 } else { 1.0 });
        let capacity = estimate.per_replica.map(|rate| rate * ready);
        // Before a measurement the budget stands in: what waits longer than that is a backlog.
        let waiting_work = WAITING_CAP_PART_OF_SLO * slo * capacity.unwrap_or(budget);
        let queue = waiting_work / self.request_work.unwrap_or(waiting_work).max(1.0);
        let spare = if without("in-flight-spare") { 1.0 } else { IN_FLIGHT_SPARE };
        let batch = estimate.running_saturated.map(|running| spare * running * ready);
        Decision {
            budget,
            motion,
            reason,
            waiting_work,
            in_flight: batch.map(|batch| batch + queue),
            in_flight_above_batch: batch.map_or(0.0, |batch| queue / (batch + queue)),
            waiting_threshold: threshold,
        }
    }

    /// Goes on from the last published budget where nothing else is remembered.
    pub fn resume(&mut self, published: Option<f64>) {
        self.budget = self.budget.or(published);
    }

    fn learn(&mut self, estimate: &Estimate, demand: &PoolDemand) {
        if let Some(capacity) = estimate.capacity {
            self.best = self.best.max(capacity);
        }
        if demand.admitted.requests > 0.0 {
            let seen = (demand.admitted.work / demand.admitted.requests).min(REQUEST_WORK_MAX);
            let mean = self.request_work.get_or_insert(seen);
            *mean += 0.2 * (seen - *mean);
        }
    }

    fn waiting_threshold(&self, context: &Context, estimate: &Estimate, demand: &PoolDemand) -> f64 {
        let starts = match (estimate.capacity, self.request_work) {
            (Some(capacity), Some(work)) => Some(capacity / work.max(1.0)),
            _ if demand.admitted.requests > 0.0 => Some(demand.admitted.requests),
            _ => None,
        };
        match starts {
            Some(starts) => (WAIT_PART_OF_SLO * context.slo.as_secs_f64() * starts).max(1.0),
            None => (WAITING_PER_REPLICA * estimate.ready).max(1.0),
        }
    }

    /// Decides; after a pause of the loop itself nothing rises yet, whatever the first look shows.
    fn awake(
        &mut self,
        context: &Context,
        estimate: &Estimate,
        demand: &PoolDemand,
        threshold: f64,
    ) -> (f64, Motion, Reason) {
        let before = self.stepped_at.replace(context.now).unwrap_or(context.now);
        if self.cut_at == Instant::ZERO {
            // Probing counts from here: from the clock's own beginning it would depend on that.
            self.cut_at = context.now;
        }
        let paused =
            context.now.since(before) > PAUSED_INTERVALS * context.interval && !without("pause-guard");
        let known = self.budget;
        let decided = self.decide(context, estimate, demand, threshold);
        match known {
            Some(known) if paused && decided.0 > known => (known, Motion::Hold, Reason::SignalsHeld),
            _ => decided,
        }
    }

    fn decide(
        &mut self,
        context: &Context,
        estimate: &Estimate,
        demand: &PoolDemand,
        threshold: f64,
    ) -> (f64, Motion, Reason) {
        let Some(budget) = self.budget else {
            return (context.safe, Motion::Steer, Reason::Started);
        };
        match estimate.freshness {
            Freshness::Held if without("hold") => {}
            Freshness::Held => return (budget, Motion::Hold, Reason::SignalsHeld),
            Freshness::Stale if without("drift") => return (budget, Motion::Hold, Reason::SignalsHeld),
            Freshness::Stale => return self.drift(context, budget),
            Freshness::Fresh => {}
        }
        let budget = match self.follow_replicas(context, estimate, budget) {
            Ok(budget) => budget,
            Err(followed) => return followed,
        };
        if estimate.waiting > threshold && overloaded(estimate.waiting, threshold) && !without("cut") {
            return self.cut(context, estimate, budget, threshold);
        }
        let (budget, motion, reason) = if estimate.waiting > threshold / 2.0 && !without("dead-band") {
            let held = estimate.capacity.map_or(budget, |capacity| {
                if estimate.waiting > threshold { budget.min(capacity) } else { budget }
            });
            (held, Motion::Hold, Reason::Backlogged)
        } else {
            self.clear(context, estimate, demand, budget)
        };
        match estimate.capacity {
            Some(capacity) if budget > capacity * probe_max() => {
                (capacity * probe_max(), Motion::Follow, Reason::CapacityMeasured)
            }
            _ => (budget, motion, reason),
        }
    }

    /// Without signals nothing rises, and the budget goes to safe slowly: what died may be the
    /// scraper.
    fn drift(&mut self, context: &Context, budget: f64) -> (f64, Motion, Reason) {
        if bug("raise-on-stale") {
            return (budget * 1.1, Motion::Steer, Reason::SignalsStale);
        }
        let keep = (-context.interval.as_secs_f64() / DRIFT_SECONDS).exp();
        let drifted = (budget * keep).max(context.safe.min(budget));
        self.drifted = !without("steer-back");
        (drifted, Motion::Steer, Reason::SignalsStale)
    }

    /// Feed-forward: a change of ready replicas is a known change of capacity. `Ok` passes the
    /// budget on to the rest of the law.
    fn follow_replicas(
        &mut self,
        context: &Context,
        estimate: &Estimate,
        budget: f64,
    ) -> Result<f64, (f64, Motion, Reason)> {
        let (before, ready) = (estimate.ready_before, estimate.ready);
        let unchanged = (ready - before).abs() < 1e-9 || without("feed-forward");
        if unchanged || before <= 0.0 && estimate.capacity.is_none() {
            return Ok(budget);
        }
        self.cool_until = context.now + context.interval + DELAY;
        let scaled = if before > 0.0 { budget * ready / before } else { 0.0 };
        self.cut_from = if before > 0.0 { self.cut_from * ready / before } else { self.cut_from };
        if ready < before {
            return Err((scaled, Motion::Follow, Reason::CapacityLost));
        }
        let Some(capacity) = estimate.capacity else {
            // Nothing was measured of one replica, so nothing is known of one more.
            return Ok(budget);
        };
        let least = if self.drifted { 0.0 } else { RECOVERED * capacity };
        let most = probe_max() * capacity;
        Err((scaled.max(least).min(most).max(budget.min(most)), Motion::Follow, Reason::CapacityGained))
    }

    /// Significantly more wait than the SLO allows: cut to what drains the excess in `e` feedback
    /// delays (critically damped; faster cuts oscillate), at most once per feedback delay.
    fn cut(
        &mut self,
        context: &Context,
        estimate: &Estimate,
        budget: f64,
        threshold: f64,
    ) -> (f64, Motion, Reason) {
        let delay = (context.interval + DELAY).as_secs_f64();
        let target = match estimate.capacity.filter(|_| !without("anchor")) {
            Some(capacity) => {
                let excess = estimate.waiting - threshold / 2.0;
                let pace = if without("drain-pace") { 1.0 } else { std::f64::consts::E * delay };
                let drain = excess * self.request_work.unwrap_or(0.0) / pace;
                let drain = if without("severity") { capacity } else { drain };
                (capacity - drain).max(if without("cut-bound") { 0.0 } else { STEER_DOWN * capacity })
            }
            None => {
                let severity = (0.7 * (1.0 - threshold / estimate.waiting)).clamp(0.05, 1.0 - STEER_DOWN);
                budget * (1.0 - severity)
            }
        };
        if target >= budget {
            // Below what drains the queue of a measured pool a budget helps nobody: what waits then
            // came past the nodes.
            let measured = estimate.capacity.is_some() && !self.cools(context) && !without("past-the-nodes");
            if let Some(capacity) = estimate.capacity.filter(|_| measured && self.drifted) {
                let stepped = target.min(budget + STEER_UP * capacity);
                return (stepped, Motion::Steer, Reason::Recovered);
            }
            let motion = if measured && target > budget { Motion::Follow } else { Motion::Hold };
            return (if measured { target } else { budget }, motion, Reason::Overload);
        }
        if self.cools(context) {
            // Capacity itself is not a matter of cooling: going down to it is following.
            let followed = estimate.capacity.map_or(budget, |capacity| budget.min(capacity));
            let motion = if followed < budget { Motion::Follow } else { Motion::Hold };
            return (followed, motion, Reason::Cooling);
        }
        self.cool_until = context.now + context.interval + DELAY;
        self.cut_at = context.now;
        self.cut_from = estimate.capacity.unwrap_or(budget);
        self.cut_to = estimate.capacity.map_or(target, |capacity| RECOVERED * capacity);
        (target, Motion::Steer, Reason::Overload)
    }

    /// Nobody waits for long.
    fn clear(
        &mut self,
        context: &Context,
        estimate: &Estimate,
        demand: &PoolDemand,
        budget: f64,
    ) -> (f64, Motion, Reason) {
        if self.cools(context) {
            return (budget, Motion::Hold, Reason::Cooling);
        }
        let binding = demand.binding || without("binding-only");
        let Some(capacity) = estimate.capacity else {
            if budget < context.safe && !without("safe-start") {
                // It began without signals, and so below what is safe with them.
                return (context.safe, Motion::Steer, Reason::Started);
            }
            let used = demand.admitted.work > USED * budget || without("used");
            if binding && used && !without("slow-start") {
                let growth = if bug("raise-unbounded") { 2.0 } else { SLOW_START };
                return (budget * growth, Motion::Steer, Reason::SlowStart);
            }
            return (budget, Motion::Hold, Reason::NotBinding);
        };
        if budget < RECOVERED * capacity && !without("recovery") {
            if self.drifted {
                let stepped = (budget + STEER_UP * capacity).min(RECOVERED * capacity);
                return (stepped, Motion::Steer, Reason::Recovered);
            }
            return (RECOVERED * capacity, Motion::Follow, Reason::Recovered);
        }
        self.drifted = false;
        if !binding || without("probing") {
            return (budget, Motion::Hold, Reason::NotBinding);
        }
        let step = budget + STEER_UP * capacity;
        let probed = if without("cubic") { step } else { self.cubic(context, capacity) };
        let bounded = probed.min(step).min(probe_max() * capacity).max(budget);
        (bounded, Motion::Steer, Reason::Probing)
    }

    /// Whether the last cut or replica is so young that what it did cannot be seen yet.
    fn cools(&self, context: &Context) -> bool {
        context.now < self.cool_until && !without("cool-down")
    }

    /// CUBIC (RFC 9438) in time since the last cut, scaled so that it is back after
    /// [`CUBIC_SECONDS`]·K.
    fn cubic(&self, context: &Context, capacity: f64) -> f64 {
        let from = if self.cut_from > 0.0 { self.cut_from } else { capacity };
        let to = if self.cut_to > 0.0 { self.cut_to } else { RECOVERED * capacity };
        let offset = ((1.0 - to / from).max(0.0) / CUBIC_SCALE).cbrt();
        let elapsed = context.now.seconds_since(self.cut_at) / CUBIC_SECONDS;
        from * (1.0 + CUBIC_SCALE * (elapsed - offset).powi(3))
    }
}

/// Is `waiting` significantly above `threshold`, for arrivals that come in bursts?
fn overloaded(waiting: f64, threshold: f64) -> bool {
    let dispersion = if without("dispersion") { 1.0 } else { DISPERSION };
    let count = (waiting / dispersion) as u64;
    let poisson = Poisson::new(threshold / dispersion);
    poisson.is_ok_and(|poisson| poisson.sf(count.saturating_sub(1)) < SIGNIFICANT) || without("significance")
}

fn probe_max() -> f64 {
    if without("probe-bound") { 1e9 } else { PROBE_MAX }
}

#[cfg(test)]
mod tests;
