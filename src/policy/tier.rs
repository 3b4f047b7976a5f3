//! What tiers grant: values parsed once, then merged and checked for every model of the file,
//! because only a model's pool says in which unit they have to be written.

use std::collections::BTreeMap;

use crate::policy::Grant;
use crate::policy::diagnostic::{Place, Placed};
use crate::policy::pool::{accept, within};
use crate::policy::report::Report;
use crate::policy::shape::{Named, Text, TierShape};
use crate::policy::value::{self, Quantity};
use crate::unit::{Dimension, Limit, TierId, WorkUnit};

const PRIORITY: [u64; 2] = [1, u32::MAX as u64];
/// Far enough apart for any use, near enough that shares stay exact.
const WEIGHT: [f64; 2] = [0.001, 1_000_000.0];

/// A tier, or a model's difference from it, with every value parsed.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    priority: Option<Placed<u32>>,
    weight: Option<Placed<f64>>,
    guarantee: Option<Placed<Quantity>>,
    safe: Option<Placed<Quantity>>,
    ceiling: Option<Placed<Quantity>>,
    tier_limits: Option<Limits>,
    key_limits: Option<Limits>,
    /// A value was refused: what is said about the others still counts, the grant does not.
    broken: bool,
}

/// `unlimited`, or one limit a dimension.
type Limits = Placed<Vec<Placed<(Dimension, u64)>>>;

/// The grants of one model and the ceilings behind them.
pub struct Granted {
    pub grants: BTreeMap<TierId, Grant>,
    pub complete: bool,
}

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
    for (shape, limits) in
        [(&shape.tier_limits, &mut parts.tier_limits), (&shape.key_limits, &mut parts.key_limits)]
    {
        *limits = shape.as_ref().and_then(|texts| self::limits(texts, report));
        broken |= shape.is_some() && limits.is_none();
    }
    parts.broken = broken;
    parts
}

/// A quantity that can be enforced.
fn quantity(text: &Text, report: &mut Report) -> Option<Quantity> {
    let parsed = accept(text, value::quantity(&text.value), report)?;
    if matches!(parsed, Quantity::Spend { .. }) {
        report.error(
            &text.place,
            "spend is not enforced by this version",
            "remove it: a limit that nothing enforces would look like one that holds",
        );
        return None;
    }
    Some(parsed)
}

fn limits(texts: &Placed<Vec<Text>>, report: &mut Report) -> Option<Limits> {
    let mut limits: Vec<Placed<(Dimension, u64)>> = Vec::new();
    let mut good = true;
    for text in &texts.value {
        match quantity(text, report) {
            None => good = false,
            Some(Quantity::Unlimited) if texts.value.len() == 1 => {}
            Some(Quantity::Amount(amount, dimension)) => {
                if let Some(first) = limits.iter().find(|first| first.value.0 == dimension) {
                    let message = format!("two limits in `{}`", dimension.short());
                    let also = (&first.place, "the first");
                    report.error_and(&text.place, also, message, "keep one of them");
                    good = false;
                }
                limits.push(Placed { value: (dimension, amount), place: text.place.clone() });
            }
            Some(_) => {
                let help = "keep either `unlimited` or the limits";
                report.error(&text.place, "`unlimited` among limits", help);
                good = false;
            }
        }
    }
    good.then(|| Placed { value: limits, place: texts.place.clone() })
}

/// Every tier's grant on one model; what is wrong with the merged values goes into `report`.
pub fn grants(
    tiers: &[Named<Parts>],
    overrides: &[Named<Parts>],
    unit: WorkUnit,
    report: &mut Report,
) -> Granted {
    let mut granted = Granted { grants: BTreeMap::new(), complete: true };
    let mut order = Vec::with_capacity(tiers.len());
    for (name, tier) in tiers {
        let over = overrides.iter().find(|(found, _)| found.value == name.value).map(|(_, parts)| parts);
        let merged = over.map_or_else(|| tier.clone(), |over| tier.with(over));
        match merged.grant(unit, report) {
            Some(grant) => {
                let place = merged.ceiling.as_ref().map(|ceiling| ceiling.place.clone());
                order.push((grant.priority, grant.ceiling, name.value.clone(), place));
                granted.grants.insert(TierId::new(&name.value), grant);
            }
            None => granted.complete = false,
        }
    }
    warn_of_order(order, report);
    granted
}

/// A tier that is served first but may get less than one that gives way is most likely a slip.
fn warn_of_order(mut order: Vec<(u32, Limit, String, Option<Place>)>, report: &mut Report) {
    order.sort_by_key(|(priority, ceiling, ..)| (std::cmp::Reverse(*priority), *ceiling));
    let mut highest: Option<(Limit, String)> = None;
    let mut level: Option<(u32, Limit, String)> = None;
    for (priority, ceiling, name, place) in order {
        if level.as_ref().is_some_and(|(last, ..)| *last != priority)
            && let Some((_, limit, name)) = level.take()
            && highest.as_ref().is_none_or(|(most, _)| limit > *most)
        {
            highest = Some((limit, name));
        }
        if let (Some((most, worse)), Some(place)) = (&highest, place)
            && ceiling < *most
        {
            let message = format!("tier `{name}` has a lower ceiling than `{worse}`, which gives way to it");
            report.warning(&place, message, "raise it, or exchange the priorities, unless it is meant so");
        }
        // Within one priority the last is the largest.
        level = Some((priority, ceiling, name));
    }
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
            broken: over.broken || tier.broken,
        }
    }

    fn grant(&self, unit: WorkUnit, report: &mut Report) -> Option<Grant> {
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
        let key_limits = self.constants(self.key_limits.as_ref(), unit, true, report);
        let tier_limits = match &self.tier_limits {
            Some(stated) => self.constants(Some(stated), unit, false, report),
            None => Some(BTreeMap::new()),
        };
        good &= self.key_fits(unit, ceiling, report);
        let guarantee = guarantee?.finite()?;
        let safe = match self.safe {
            Some(_) => safe?.finite()?,
            None => guarantee,
        };
        let grant = Grant {
            priority: self.priority.as_ref()?.value,
            weight: self.weight.as_ref()?.value,
            guarantee,
            safe,
            ceiling: ceiling?,
            tier_limits: tier_limits?,
            key_limits: key_limits?,
        };
        good.then_some(grant)
    }

    fn against_ceiling<T>(&self, stated: &Placed<T>, message: String, help: &str, report: &mut Report) {
        match &self.ceiling {
            Some(ceiling) => {
                report.error_and(&stated.place, (&ceiling.place, "the ceiling"), message, help);
            }
            None => report.error(&stated.place, message, help),
        }
    }

    /// Limits that do not move, in dimensions that nodes can count for this pool.
    fn constants(
        &self,
        stated: Option<&Limits>,
        unit: WorkUnit,
        one_key: bool,
        report: &mut Report,
    ) -> Option<BTreeMap<Dimension, Limit>> {
        let mut limits = BTreeMap::new();
        let mut good = true;
        for limit in &stated?.value {
            let (dimension, amount) = limit.value;
            let always = matches!(dimension, Dimension::RequestsPerMinute | Dimension::Concurrency);
            if !one_key && dimension == unit.dimension() {
                let message =
                    format!("`tier_limits` in `{}`, which the control loop moves", dimension.short());
                report.error(&limit.place, message, "write it as the tier's `ceiling`");
                good = false;
            } else if !always && dimension != unit.dimension() {
                wrong_unit(&limit.place, dimension, unit, report);
                good = false;
            }
            limits.insert(dimension, Limit::Finite(amount));
        }
        good.then_some(limits)
    }

    /// No key may be granted more than all keys of its tier together.
    fn key_fits(&self, unit: WorkUnit, ceiling: Option<Limit>, report: &mut Report) -> bool {
        let mut good = true;
        for limit in self.key_limits.iter().flat_map(|limits| &limits.value) {
            let (dimension, amount) = limit.value;
            let of_tier = self.tier_limits.iter().flat_map(|limits| &limits.value);
            let tier = of_tier.into_iter().find(|tier| tier.value.0 == dimension && tier.value.1 < amount);
            if dimension == unit.dimension() && ceiling.is_some_and(|most| Limit::Finite(amount) > most) {
                let message = format!("one key's limit {} is above the ceiling of its tier", said(limit));
                let help = "lower it, or raise the ceiling: all keys of the tier share that";
                self.against_ceiling(limit, message, help, report);
                good = false;
            } else if let Some(tier) = tier {
                let message = format!("one key's limit {} is above the limit of its tier", said(limit));
                let also = (&tier.place, "all keys of the tier together");
                report.error_and(&limit.place, also, message, "lower it, or raise the limit of the tier");
                good = false;
            }
        }
        good
    }
}

fn in_unit(stated: Option<&Placed<Quantity>>, unit: WorkUnit, report: &mut Report) -> Option<Limit> {
    let stated = stated?;
    if let Quantity::Amount(_, dimension) = stated.value
        && dimension != unit.dimension()
    {
        wrong_unit(&stated.place, dimension, unit, report);
        return None;
    }
    stated.value.limit()
}

fn wrong_unit(place: &Place, dimension: Dimension, unit: WorkUnit, report: &mut Report) {
    let (has, wants) = (dimension.short(), unit.dimension().short());
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
