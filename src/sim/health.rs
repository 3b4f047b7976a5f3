//! Liveness: once every fault is healed, the system must be a healthy one again.

use std::collections::BTreeMap;

use crate::control::Tick;
use crate::sim::scenario::Scenario;
use crate::unit::{Instant, TierId};

/// Healing shows after this long, seconds: five intervals to believe signals again, a drained
/// queue, and a policy edit's ramp.
const SETTLED_AFTER: f64 = 60.0;
/// Windows in which guarantees are measured, seconds.
const WINDOW: f64 = 20.0;

/// What a healthy phase showed.
pub struct Health {
    /// Which life of the controller this is; ticks of an earlier one are void.
    pub generation: u64,
    /// The last published budget, work per second.
    pub budget: f64,
    from: f64,
    to: f64,
    slo: f64,
    capacity: f64,
    guarantees: BTreeMap<TierId, f64>,
    windows: BTreeMap<(u64, TierId), (f64, f64)>,
    first_tokens: u64,
    late_first_tokens: u64,
    offered: f64,
    admitted: f64,
    budgets_low: u32,
    budgets_high: u32,
    ticks: u32,
}

// === impl Health ===

impl Health {
    pub fn new(scenario: &Scenario) -> Health {
        let grants = scenario.policy.models.values().flat_map(|model| &model.tiers);
        let slo = scenario.policy.pools.values().next().map_or(1.0, |pool| pool.slo.as_secs_f64());
        Health {
            generation: 0,
            budget: 0.0,
            from: scenario.healed_at + SETTLED_AFTER,
            to: scenario.seconds,
            slo,
            capacity: scenario.capacity(),
            guarantees: grants.map(|(tier, grant)| (tier.clone(), grant.guarantee as f64 / 60.0)).collect(),
            windows: BTreeMap::new(),
            first_tokens: 0,
            late_first_tokens: 0,
            offered: 0.0,
            admitted: 0.0,
            budgets_low: 0,
            budgets_high: 0,
            ticks: 0,
        }
    }

    fn settled(&self, now: Instant) -> bool {
        (self.from..self.to).contains(&now.seconds_since(Instant::ZERO))
    }

    pub fn offered(&mut self, now: Instant, tier: &TierId, work: f64) {
        if self.settled(now) {
            self.offered += work;
            self.window(now, tier).0 += work;
        }
    }

    pub fn admitted(&mut self, now: Instant, tier: &TierId, work: f64) {
        if self.settled(now) {
            self.admitted += work;
            self.window(now, tier).1 += work;
        }
    }

    fn window(&mut self, now: Instant, tier: &TierId) -> &mut (f64, f64) {
        let window = (now.seconds_since(Instant::ZERO) / WINDOW) as u64;
        self.windows.entry((window, tier.clone())).or_default()
    }

    pub fn first_token(&mut self, now: Instant, waited: f64) {
        if self.settled(now) {
            self.first_tokens += 1;
            self.late_first_tokens += u64::from(waited > self.slo);
        }
    }

    /// One tick of the controller. `alive`: what the pool can do now, work per second.
    pub fn ticked(&mut self, now: Instant, tick: &Tick, alive: f64) -> Vec<String> {
        let mut found = Vec::new();
        if !self.settled(now) {
            return found;
        }
        let Some(pool) = tick.pools.values().next() else { return found };
        self.ticks += 1;
        let measured = pool.estimate.capacity.is_some();
        self.budgets_high += u32::from(measured && pool.decision.budget > alive * 1.10);
        self.budgets_low += u32::from(pool.demand.binding && pool.decision.budget < alive * 0.80);
        if tick.table.pools.values().any(|pool| pool.degraded) {
            found.push("signals are healed, yet the table says degraded".to_owned());
        }
        found
    }

    /// At the end: everything a healthy phase failed to be.
    pub fn report(&self) -> Vec<String> {
        let mut found = Vec::new();
        let late = self.late_first_tokens as f64 / self.first_tokens.max(1) as f64;
        if late > 0.02 {
            found.push(format!("{:.1} % of first tokens came after the SLO", late * 100.0));
        }
        let could = self.offered.min(self.capacity * (self.to - self.from));
        if self.admitted < 0.85 * could {
            found.push(format!("admitted {:.3} of what was offered and fits", self.admitted / could));
        }
        if self.budgets_high * 10 > self.ticks {
            found.push(format!(
                "budget above 1.1 x capacity in {} of {} ticks",
                self.budgets_high, self.ticks
            ));
        }
        if self.budgets_low * 4 > self.ticks {
            found.push(format!(
                "binding budget below .8 x capacity in {} of {} ticks",
                self.budgets_low, self.ticks
            ));
        }
        for ((window, tier), (offered, admitted)) in &self.windows {
            let whole = (*window as f64 * WINDOW >= self.from) && ((*window + 1) as f64 * WINDOW <= self.to);
            let due = offered.min(self.guarantees.get(tier).copied().unwrap_or(0.0) * WINDOW);
            if whole && *admitted < 0.9 * due {
                found.push(format!("{tier} was served {:.3} of its guarantee", admitted / due));
            }
        }
        found
    }
}
