//! A policy that made no table, because its turn panicked or no node would take the table: it goes
//! into quarantine, and the last good one is in force again.

use std::sync::Arc;

use crate::control::entry::saved_state;
use crate::control::fence::fenced;
use crate::control::turn::Turns;
use crate::wire::Stamp;

impl Turns {
    /// The policy in force made no table. `broken`: not even the controller's state is to be trusted.
    pub(super) fn unfit(&mut self, reason: &str, broken: bool) {
        self.metrics.turn_failed();
        let policy = self.in_force.policy.digest.clone();
        let good = self.good.clone().filter(|good| good.policy.digest != policy);
        let last = self.controller.state().stamp;
        let mut state = match (broken, &good) {
            (false, None) => self.controller.state().clone(),
            // As a restart would go on, but for versions that were used since.
            _ => self
                .board
                .latest()
                .and_then(|latest| saved_state(&latest.status))
                .unwrap_or_else(|| self.initial.clone()),
        };
        if last > state.stamp {
            // That version may be on its way: nobody shall see it with other contents.
            state.stamp = Stamp { version: last.version.saturating_add(1), ..last };
        }
        let Some(good) = good else {
            tracing::error!(policy, reason, "no table this turn; the last one stays in force");
            let same = Arc::clone(&self.in_force);
            if let Err(again) = fenced(|| self.put(same, Some(state))) {
                tracing::error!(policy, reason = again, "the policy in force cannot be put in force again");
            }
            return;
        };
        let last_good = good.policy.digest.clone();
        tracing::error!(
            policy,
            last_good,
            reason,
            "policy in quarantine; the last good one is in force again"
        );
        self.standing.quarantine(&policy, reason, &last_good);
        self.metrics.reloaded(false);
        if let Err(reason) = fenced(|| self.put(good, Some(state))) {
            tracing::error!(last_good, reason, "the last good policy cannot be put in force");
        }
        self.metrics.quarantined(true);
    }
}
