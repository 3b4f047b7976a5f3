//! Where a running ledger is in time and among the nodes: the periods of now, and which part of a
//! budget this node may fill.

use super::*;

// === impl Ledger ===

impl Ledger {
    /// A zone by its name, and the periods of now; none where there is no such zone.
    pub fn calendar(&self, zone: &str) -> Option<(Zone, Periods)> {
        let now = self.wall();
        let mut zones = self.zones.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((zone, periods)) = zones.get_mut(zone) {
            if !periods.within.contains(&now) {
                *periods = zone.periods(now);
            }
            return Some((zone.clone(), periods.clone()));
        }
        let found = Zone::named(zone).ok()?;
        let periods = found.periods(now);
        if zones.len() >= LEDGER_ZONES_MAX {
            zones.clear();
        }
        zones.insert(zone.to_owned(), (found.clone(), periods.clone()));
        Some((found, periods))
    }

    /// A table that lists these nodes is in force.
    pub fn see(&self, nodes: BTreeSet<NodeId>, unlisted_ppm: u32) {
        let now = self.wall();
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        listed.hold(now);
        let new = listed.lists.see(&nodes, now);
        listed.seen = true;
        listed.nodes = nodes;
        listed.unlisted_ppm = unlisted_ppm;
        if new || now.abs_diff(listed.kept) >= KEPT_EVERY_MS {
            listed.kept = now;
            self.queue.keep(listed.lists.clone());
        }
    }

    /// What this node may fill of an account's budgets.
    pub fn parts(&self, account: &Id, zone: &Zone, calendar: &Periods) -> Parts {
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        listed.hold(self.wall());
        let part =
            |period| listed.lists.part(&self.node, account, &period, &listed.nodes, listed.unlisted_ppm);
        Parts {
            day: part(calendar.within.clone()),
            month: part(zone.span(Kind::Month, calendar.month)),
            // Of all time: whoever owned it first.
            credit: part(0..UnixMs::MAX),
        }
    }
}

// === impl Listed ===

impl Listed {
    fn hold(&mut self, now: UnixMs) {
        if self.seen {
            self.lists.hold(now);
        }
    }
}
