//! What tiers grant: values parsed once, then merged and checked for every model of the file,
//! because only a model's pool says in which unit they have to be written.

use std::collections::BTreeMap;

use crate::policy::Grant;
use crate::policy::diagnostic::{Place, Placed};
use crate::policy::limits::{Limits, budgets, limits, rates, shared};
use crate::policy::pool::{accept, within};
use crate::policy::product::word;
use crate::policy::report::Report;
use crate::policy::shape::{Named, Text, TierShape};
use crate::policy::value::{self, Quantity};
use crate::unit::{Limit, TierId, WorkUnit};
use crate::wire::{Budget, BudgetEntry, Credit};

const PRIORITY: [u64; 2] = [1, u32::MAX as u64];
/// Far enough apart for any use, near enough that shares stay exact.
const WEIGHT: [f64; 2] = [0.001, 1_000_000.0];
const CREDITS: [(&str, Credit); 2] = [("required", Credit::Required), ("ignored", Credit::Ignored)];

/// A tier, or a model's difference from it, with every value parsed.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    priority: Option<Placed<u32>>,
    weight: Option<Placed<f64>>,
    guarantee: Option<Placed<Quantity>>,
    safe: Option<Placed<Quantity>>,
    pub ceiling: Option<Placed<Quantity>>,
    tier_limits: Option<Limits>,
    pub key_limits: Option<Limits>,
    pub account_limits: Option<Limits>,
    pub credit: Option<Placed<Credit>>,
    /// A value was refused: what is said about the others still counts, the grant does not.
    broken: bool,
}

/// The pool that a grant is for.
#[derive(Clone, Copy)]
pub struct Served {
    pub unit: WorkUnit,
    pub fixed: bool,
}

/// The grants of one model.
pub struct Granted {
    pub grants: BTreeMap<TierId, Grant>,
    pub complete: bool,
}

/// How one list of limits is read.
type Reader = dyn Fn(&Placed<Vec<Text>>, &mut Report) -> Option<Limits>;

pub fn parts(shape: &TierShape, report: &mut Report) -> Parts {
    let mut broken = false;
    let mut parts = Parts::default();
    if let Some(text) = &shape.priority {
        let help = "write a whole number from 1, the highest, upwards";
        let parsed = accept(text, value::integer(&text.value), report)
            .and_then(|number| within(text, number, PRIORITY, help, report))
            .and_then(|number| u32::try_from(number).ok());
        broken |= parsed.is_none();
        parts.priority = parsed.map(|value| Placed { value, place: text.place.clone() });
    }
    if let Some(text) = &shape.weight {
        let help = "write a number from 0.001 to 1000000; a tier without a share has `ceiling` = `guarantee`";
        let parsed = accept(text, value::decimal(&text.value), report)
            .and_then(|number| within(text, number, WEIGHT, help, report));
        broken |= parsed.is_none();
        parts.weight = parsed.map(|value| Placed { value, place: text.place.clone() });
    }
    let mut quantity = |text: &Option<Text>, finite: &str| {
        let text = text.as_ref()?;
        let parsed = self::quantity(text, report);
        let parsed = match parsed {
            Some(Quantity::Unlimited) if !finite.is_empty() => {
                let message = format!("`{finite}` cannot be `unlimited`");
                report.error(&text.place, message, "write the amount that is promised, as in `600k tpm`");
                None
            }
            parsed => parsed,
        };
        broken |= parsed.is_none();
        Some(Placed { value: parsed?, place: text.place.clone() })
    };
    parts.guarantee = quantity(&shape.guarantee, "guarantee");
    parts.safe = quantity(&shape.safe, "safe");
    parts.ceiling = quantity(&shape.ceiling, "");
    let mut list = |texts: &Option<Placed<Vec<Text>>>, read: &Reader| {
        let parsed = texts.as_ref().and_then(|texts| read(texts, report));
        broken |= texts.is_some() && parsed.is_none();
        parsed
    };
    parts.tier_limits = list(&shape.tier_limits, &|texts, report| shared("tier_limits", texts, report));
    parts.key_limits = list(&shape.key_limits, &limits);
    parts.account_limits = list(&shape.account_limits, &limits);
    if let Some(text) = &shape.credit {
        let parsed = word(&shape.credit, "word for `credit`", &CREDITS, report);
        broken |= parsed.is_none();
        parts.credit = parsed.map(|value| Placed { value, place: text.place.clone() });
    }
    parts.broken = broken;
    parts
}

/// A promise or bound of the control loop.
fn quantity(text: &Text, report: &mut Report) -> Option<Quantity> {
    accept(text, value::quantity(&text.value), report)
}

/// Every tier's grant on one model; what is wrong with the merged values goes into `report`.
pub fn grants(tiers: &[(&str, Parts)], served: Served, report: &mut Report) -> Granted {
    let mut granted = Granted { grants: BTreeMap::new(), complete: true };
    for (name, parts) in tiers {
        match parts.grant(served, report) {
            Some(grant) => drop(granted.grants.insert(TierId::new(name), grant)),
            None => granted.complete = false,
        }
    }
    granted
}

/// The tiers with what a model states in place of their own.
pub fn merged<'a>(tiers: &'a [Named<Parts>], overrides: &[Named<Parts>]) -> Vec<(&'a str, Parts)> {
    let over = |name: &Text| overrides.iter().find(|(found, _)| found.value == name.value);
    let merge = |(name, tier): &'a Named<Parts>| {
        let merged = over(name).map_or_else(|| tier.clone(), |(_, over)| tier.with(over));
        (name.value.as_str(), merged)
    };
    tiers.iter().map(merge).collect()
}

// === impl Parts ===

impl Parts {
    /// The tier with what `over` states in place of its own.
    fn with(&self, over: &Parts) -> Parts {
        let tier = self.clone();
        let over = over.clone();
        Parts {
            priority: over.priority.or(tier.priority),
            weight: over.weight.or(tier.weight),
            guarantee: over.guarantee.or(tier.guarantee),
            safe: over.safe.or(tier.safe),
            ceiling: over.ceiling.or(tier.ceiling),
            tier_limits: over.tier_limits.or(tier.tier_limits),
            key_limits: over.key_limits.or(tier.key_limits),
            account_limits: over.account_limits.or(tier.account_limits),
            credit: over.credit.or(tier.credit),
            broken: over.broken || tier.broken,
        }
    }

    /// A limit on money, if there is one.
    pub fn spend(&self) -> Option<&Placed<Quantity>> {
        let spend = |limit: &&Placed<Quantity>| {
            matches!(limit.value, Quantity::Budget(_, Budget::SpendPerDay | Budget::SpendPerMonth))
        };
        self.key_limits.iter().chain(&self.account_limits).flat_map(|limits| &limits.value).find(spend)
    }

    fn grant(&self, served: Served, report: &mut Report) -> Option<Grant> {
        let Served { unit, fixed } = served;
        let guarantee = in_unit(self.guarantee.as_ref(), unit, report);
        let safe = in_unit(self.safe.as_ref(), unit, report);
        let ceiling = in_unit(self.ceiling.as_ref(), unit, report);
        let mut good = !self.broken;
        if let Some(ceiling) = ceiling {
            let promises = [("guarantee", guarantee, &self.guarantee), ("safe", safe, &self.safe)];
            for (field, limit, stated) in promises {
                let Some((limit, stated)) = limit.zip(stated.as_ref()) else { continue };
                if limit > ceiling {
                    let message = format!("`{field}` {} is above the ceiling", said(stated));
                    self.against_ceiling(stated, message, "lower it, or raise the ceiling", report);
                    good = false;
                }
            }
        }
        if let (true, Some(safe)) = (fixed, &self.safe) {
            let help = "remove it: limits that nobody moves stay what they are without a controller";
            report.error(&safe.place, "`safe` for a pool of fixed capacity", help);
            good = false;
        }
        good &= self.not_moved(unit, report);
        good &= self.one_fits(unit, ceiling, report);
        let guarantee = match self.guarantee {
            None if fixed => 0,
            _ => guarantee?.finite()?,
        };
        let safe = match self.safe {
            Some(_) => safe?.finite()?,
            None => guarantee,
        };
        let of = |limits: &Option<Limits>| limits.as_ref().map(rates).unwrap_or_default();
        let equal = Grant::default();
        let priority = self.priority.as_ref().map(|priority| priority.value);
        let weight = self.weight.as_ref().map(|weight| weight.value);
        let grant = Grant {
            priority: priority.or(fixed.then_some(equal.priority))?,
            weight: weight.or(fixed.then_some(equal.weight))?,
            guarantee,
            safe,
            ceiling: ceiling?,
            tier_limits: of(&self.tier_limits),
            key_limits: self.key_limits.as_ref().map(rates)?,
            account_limits: of(&self.account_limits),
            budgets: self.budgets(),
            credit: self.credit.as_ref().map(|credit| credit.value).unwrap_or_default(),
        };
        good.then_some(grant)
    }

    fn budgets(&self) -> BTreeMap<Budget, BudgetEntry> {
        let of = |limits: &Option<Limits>| limits.as_ref().map(budgets).unwrap_or_default();
        let (keys, accounts) = (of(&self.key_limits), of(&self.account_limits));
        let limit = |of: &BTreeMap<Budget, Limit>, budget: &Budget| {
            of.get(budget).copied().unwrap_or(Limit::Unlimited)
        };
        let entry =
            |budget: &Budget| BudgetEntry { key: limit(&keys, budget), account: limit(&accounts, budget) };
        keys.keys().chain(accounts.keys()).map(|budget| (*budget, entry(budget))).collect()
    }

    fn against_ceiling<T>(&self, stated: &Placed<T>, message: String, help: &str, report: &mut Report) {
        match &self.ceiling {
            Some(ceiling) => {
                report.error_and(&stated.place, (&ceiling.place, "the ceiling"), message, help);
            }
            None => report.error(&stated.place, message, help),
        }
    }

    /// What the loop moves is bounded by the ceiling and by nothing beside it.
    fn not_moved(&self, unit: WorkUnit, report: &mut Report) -> bool {
        let stated = self.tier_limits.iter().flat_map(|limits| &limits.value);
        let moved = stated.filter(|limit| limit.value.unit() == unit.dimension().short());
        let mut good = true;
        for limit in moved {
            let message = format!("`tier_limits` in `{}`, which the control loop moves", limit.value.unit());
            report.error(&limit.place, message, "write it as the tier's `ceiling`");
            good = false;
        }
        good
    }

    /// No key may be granted more than its account or tier, and no account more than its tier.
    fn one_fits(&self, unit: WorkUnit, ceiling: Option<Limit>, report: &mut Report) -> bool {
        let mut good = true;
        for (noun, limits) in [("key", &self.key_limits), ("account", &self.account_limits)] {
            for limit in limits.iter().flat_map(|limits| &limits.value) {
                let within = |all: &Option<Limits>| {
                    let same = |of: &&Placed<Quantity>| of.value.unit() == limit.value.unit();
                    let all = all.iter().flat_map(|limits| &limits.value).find(same);
                    all.filter(|all| all.value.limit() < limit.value.limit()).map(|all| all.place.clone())
                };
                let moved = limit.value.unit() == unit.dimension().short();
                if moved && ceiling.is_some_and(|most| limit.value.limit() > most) {
                    let message =
                        format!("one {noun}'s limit {} is above the ceiling of its tier", said(limit));
                    let help = "lower it, or raise the ceiling: all keys of the tier share that";
                    self.against_ceiling(limit, message, help, report);
                    good = false;
                } else if let Some(tier) = within(&self.tier_limits) {
                    let message =
                        format!("one {noun}'s limit {} is above the limit of its tier", said(limit));
                    let also = (&tier, "all keys of the tier together");
                    report.error_and(&limit.place, also, message, "lower it, or raise the limit of the tier");
                    good = false;
                } else if let Some(account) = within(&self.account_limits).filter(|_| noun == "key") {
                    let message =
                        format!("one key's limit {} is above the limit of its account", said(limit));
                    let also = (&account, "all keys of the account together");
                    report.error_and(
                        &limit.place,
                        also,
                        message,
                        "lower it, or raise the limit of the account",
                    );
                    good = false;
                }
            }
        }
        good
    }
}

fn in_unit(stated: Option<&Placed<Quantity>>, unit: WorkUnit, report: &mut Report) -> Option<Limit> {
    let stated = stated?;
    if stated.value != Quantity::Unlimited && stated.value.unit() != unit.dimension().short() {
        wrong_unit(&stated.place, stated.value.unit(), unit, report);
        return None;
    }
    Some(stated.value.limit())
}

fn wrong_unit(place: &Place, has: &str, unit: WorkUnit, report: &mut Report) {
    let wants = unit.dimension().short();
    let message = format!("a limit in `{has}` on a model whose pool counts `{wants}`");
    let help = format!(
        "write it in `{wants}`; models of another unit state theirs under `tiers`, or in a file of their own"
    );
    report.error(place, message, help);
}

/// The value as it stands in the file.
fn said<T>(stated: &Placed<T>) -> String {
    format!("`{}`", stated.place.text())
}
