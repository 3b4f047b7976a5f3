//! How a key stands, as answers print it.

use std::time::Duration;

use crate::enforce::allowance::Allowance;
use crate::enforce::keys::Name;
use crate::enforce::meters::{Meters, place};
use crate::enforce::slot::View;
use crate::enforce::ticket::{Request, Scope};
use crate::unit::{Dimension, Instant};

use super::Limiter;
use super::admit::{Own, Shard, terms};
use super::rules::{Built, RowRules};
use super::sync::lock;

/// One dimension's standing for one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    pub dimension: Dimension,
    /// Whose limit it is that is shown.
    pub scope: Scope,
    /// Of all nodes together, per minute or at once.
    pub limit: u64,
    /// Left at this node now; never above `limit`.
    pub remaining: u64,
    /// Until `remaining` is whole again; zero for counts.
    pub reset: Duration,
}

/// In the order of [`Dimension::ALL`].
pub type Quotas = [Option<Quota>; Dimension::ALL.len()];

// === impl Limiter ===

impl Limiter {
    /// How the key of a request stands in each dimension that limits it. Where several limits bind,
    /// the smallest; but the one that just refused the request is shown whatever else binds.
    pub fn quotas(&self, now: Instant, request: &Request<'_>, refused: Option<(Scope, Dimension)>) -> Quotas {
        let mut shown = Shown { quotas: Quotas::default(), refused };
        let shard = self.shard(self.shard_of(request));
        if let Ok((at, row)) = shard.rules.find(request.model, request.tier) {
            shard.parties(now, request, at, row, &mut shown);
            shard.shared(now, row, &mut shown);
        }
        shown.quotas
    }
}

/// Quotas as far as they are looked at.
struct Shown {
    quotas: Quotas,
    refused: Option<(Scope, Dimension)>,
}

// === impl Shown ===

impl Shown {
    fn add(&mut self, scope: Scope, limit: &Allowance, (remaining, reset): (u64, Duration)) {
        let Some(known) = self.quotas.get_mut(limit.dimension as usize) else { return };
        let of_refusal = |scope| self.refused == Some((scope, limit.dimension));
        let kept = known
            .is_some_and(|known| of_refusal(known.scope) || known.limit <= limit.limit && !of_refusal(scope));
        if !kept {
            let (dimension, limit) = (limit.dimension, limit.limit);
            *known = Some(Quota { dimension, scope, limit, remaining: remaining.min(limit), reset });
        }
    }

    fn meters(&mut self, now: Instant, scope: Scope, limits: &[Allowance], meters: &Meters) {
        for limit in limits {
            let left = match place(limit.dimension).and_then(|at| meters.rates.get(at)) {
                Some(bucket) => limit.remaining(bucket.used_at(now, limit.rate)),
                None => (limit.count.saturating_sub(meters.held(limit.dimension)), Duration::ZERO),
            };
            self.add(scope, limit, left);
        }
    }
}

// === impl Shard ===

impl Shard {
    fn parties(&self, now: Instant, request: &Request<'_>, at: u32, row: &RowRules, shown: &mut Shown) {
        let view = View { flows: &self.rules.flows, now, minute: self.wall.minute(now) };
        let own = Own::of(row, request);
        let parties = [
            (Scope::Key, Some(&request.key), &own.key),
            (Scope::Account, request.account.as_ref(), &own.account),
        ];
        for (scope, id, own) in parties {
            let Some((id, terms)) = id.zip(terms(at, row, scope, own.as_ref())) else { continue };
            let (slot, counts) = self.keys.known(&Name::new(id, row.span, scope == Scope::Account));
            for limit in terms.limits {
                shown.add(scope, limit, slot.remaining(limit, terms.basis, counts, &view));
            }
        }
    }

    fn shared(&self, now: Instant, row: &RowRules, shown: &mut Shown) {
        if let Some(model) = self.rules.model(row.model) {
            shown.meters(now, Scope::Model, &model.limits, &lock(&model.state));
        }
        let steered =
            self.held.as_ref().filter(|_| now >= self.valid_until).map(|held| row.steered(held, now));
        let tier = steered.as_ref().map_or(&*row.tier, Built::limits);
        shown.meters(now, Scope::Tier, tier, &lock(&row.cell.meters));
    }
}
