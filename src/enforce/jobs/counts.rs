//! How many jobs each key, account, tier and model has: all are tested, then all are counted.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::enforce::allowance::{Allowance, Portion};
use crate::enforce::ticket::{KeyId, Refusal, RefusalReason, Request, Scope};
use crate::unit::{Dimension, Instant, Limit, ModelId, NodeId, TierId};
use crate::wire::{Entry, Held, Span};

/// No time is known at which a job will be over: clients are asked to wait that long.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub struct Counts(BTreeMap<Counter, u64>);

/// Whose jobs are counted together; the model where each model has a count of its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Counter {
    Key(KeyId, Option<ModelId>),
    Account(KeyId, Option<ModelId>),
    Tier(TierId, ModelId),
    Model(ModelId),
}

/// A counter, and how much of it this node has now; none where nothing limits it.
#[derive(Clone, Debug)]
pub struct Claim {
    counter: Counter,
    most: Option<(u64, Limit)>,
}

/// One job's place in its counters.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a slot that is not given back is held forever"]
pub struct Slot(Vec<Counter>);

/// What a job of this request would count in.
pub fn claims(held: &Held, node: &NodeId, now: Instant, wanted: &Request<'_>) -> Vec<Claim> {
    let table = &held.table;
    let Some(row) = table.row(wanted.model, wanted.tier) else { return Vec::new() };
    let product = row.product.as_ref().and_then(|product| table.products.get(product));
    let model = row.model.clone();
    let spanned = match product.map(|product| product.span) {
        Some(Span::Product) => None,
        _ => Some(model.clone()),
    };
    let portion = table.pools.get(&row.pool).map(|pool| Portion::of(pool, node));
    let unlimited = Limit::Unlimited;
    let plain = Entry { tier_limit: unlimited, key_limit: unlimited, ..Entry::default() };
    let entry = row.limits.get(&Dimension::Jobs).copied().unwrap_or(plain);
    let own = |limits: Option<&crate::enforce::ticket::Limits>| limits?.get(&Dimension::Jobs).copied();
    let most = |entry: &Entry, scope| {
        let allowance = Allowance::of(held, entry, scope, portion?, now);
        Some((allowance.count()?, allowance.limit()))
    };
    let key = Entry { key_limit: own(wanted.overrides.key).unwrap_or(entry.key_limit), ..entry };
    let mut claims = vec![
        Claim { counter: Counter::Key(wanted.key, spanned.clone()), most: most(&key, Scope::Key) },
        Claim { counter: Counter::Tier(row.tier.clone(), model.clone()), most: most(&entry, Scope::Tier) },
    ];
    if let Some(account) = wanted.account {
        let limit = own(wanted.overrides.account).unwrap_or(entry.account_limit);
        let entry = Entry { account_limit: limit, ..entry };
        claims
            .push(Claim { counter: Counter::Account(account, spanned), most: most(&entry, Scope::Account) });
    }
    let all = table.models.get(&model).and_then(|model| model.limits.get(&Dimension::Jobs));
    let all = Entry { key_limit: all.copied().unwrap_or(unlimited), ..plain };
    claims.push(Claim { counter: Counter::Model(model), most: most(&all, Scope::Model) });
    claims
}

// === impl Counts ===

impl Counts {
    /// # Errors
    /// The limit that is reached; nothing is counted then.
    pub fn take(&mut self, claims: Vec<Claim>) -> Result<Slot, Refusal> {
        for claim in &claims {
            let active = self.0.get(&claim.counter).copied().unwrap_or(0);
            if let Some((_, limit)) = claim.most.filter(|(most, _)| active >= *most) {
                let reason =
                    RefusalReason::Limit { scope: claim.counter.scope(), dimension: Dimension::Jobs, limit };
                let never = limit == Limit::Finite(0);
                return Err(Refusal { reason, retry_after: RETRY, active, never });
            }
        }
        Ok(self.count(claims))
    }

    /// Counts a job that runs already, whatever the limits are by now.
    pub fn count(&mut self, claims: Vec<Claim>) -> Slot {
        for claim in &claims {
            let count = self.0.entry(claim.counter.clone()).or_default();
            *count = count.saturating_add(1);
        }
        Slot(claims.into_iter().map(|claim| claim.counter).collect())
    }

    pub fn give_back(&mut self, slot: Slot) {
        for counter in slot.0 {
            let left = self.0.get(&counter).map_or(0, |count| count.saturating_sub(1));
            match left {
                0 => drop(self.0.remove(&counter)),
                left => drop(self.0.insert(counter, left)),
            }
        }
    }
}

impl Counter {
    fn scope(&self) -> Scope {
        match self {
            Counter::Key(..) => Scope::Key,
            Counter::Account(..) => Scope::Account,
            Counter::Tier(..) => Scope::Tier,
            Counter::Model(_) => Scope::Model,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(key: u8, most: Option<u64>, account: Option<u64>) -> Vec<Claim> {
        let claim = |counter, most: Option<u64>| Claim {
            counter,
            most: most.map(|most| (most, Limit::Finite(most))),
        };
        vec![claim(Counter::Key([key; 32], None), most), claim(Counter::Account([9; 32], None), account)]
    }

    #[test]
    fn s2_3_five_and_no_sixth_until_one_is_over() {
        let mut counts = Counts::default();
        let mut slots: Vec<Slot> = (0..5).map(|_| counts.take(claims(1, Some(5), None)).unwrap()).collect();
        let refusal = counts.take(claims(1, Some(5), None)).unwrap_err();
        assert_eq!(refusal.active, 5);
        let limit = Limit::Finite(5);
        assert_eq!(
            refusal.reason,
            RefusalReason::Limit { scope: Scope::Key, dimension: Dimension::Jobs, limit }
        );
        counts.give_back(slots.pop().unwrap());
        slots.push(counts.take(claims(1, Some(5), None)).unwrap());
        slots.into_iter().for_each(|slot| counts.give_back(slot));
        assert!(counts.0.is_empty(), "memory is that of the jobs that run");
    }

    #[test]
    fn i09_an_account_binds_across_its_keys_and_a_refusal_counts_nowhere() {
        let mut counts = Counts::default();
        let _first = counts.take(claims(1, Some(5), Some(2))).unwrap();
        let _second = counts.take(claims(2, Some(5), Some(2))).unwrap();
        let refusal = counts.take(claims(3, Some(5), Some(2))).unwrap_err();
        assert!(matches!(refusal.reason, RefusalReason::Limit { scope: Scope::Account, .. }));
        assert_eq!(counts.0.len(), 3, "the third key has none");
    }

    #[test]
    fn h16_a_limit_lowered_below_what_runs_ends_nothing_and_admits_nothing() {
        let mut counts = Counts::default();
        let mut slots: Vec<Slot> = (0..5).map(|_| counts.take(claims(1, Some(5), None)).unwrap()).collect();
        for left in [5, 4, 3, 2] {
            assert_eq!(counts.take(claims(1, Some(2), None)).unwrap_err().active, left);
            counts.give_back(slots.pop().unwrap());
        }
        let _new = counts.take(claims(1, Some(2), None)).unwrap();
    }
}
