//! A list of limits, as it stands behind `key_limits`, `limits` and their like: `unlimited`, or one
//! limit a dimension.

use std::collections::BTreeMap;

use crate::policy::diagnostic::Placed;
use crate::policy::pool::accept;
use crate::policy::report::Report;
use crate::policy::shape::Text;
use crate::policy::value::{self, Quantity};
use crate::unit::{Dimension, Limit};
use crate::wire::Budget;

/// Empty: `unlimited`.
pub type Limits = Placed<Vec<Placed<Quantity>>>;

/// A list as it was parsed; `None` when something in it is wrong, which is in the report.
pub fn limits(texts: &Placed<Vec<Text>>, report: &mut Report) -> Option<Limits> {
    let mut limits: Vec<Placed<Quantity>> = Vec::new();
    let mut good = true;
    for text in &texts.value {
        match accept(text, value::quantity(&text.value), report) {
            None => good = false,
            Some(Quantity::Unlimited) if texts.value.len() == 1 => {}
            Some(Quantity::Unlimited) => {
                let help = "keep either `unlimited` or the limits";
                report.error(&text.place, "`unlimited` among limits", help);
                good = false;
            }
            Some(quantity) => {
                if let Some(first) = limits.iter().find(|first| first.value.unit() == quantity.unit()) {
                    let message = format!("two limits in `{}`", quantity.unit());
                    let also = (&first.place, "the first");
                    report.error_and(&text.place, also, message, "keep one of them");
                    good = false;
                }
                limits.push(Placed { value: quantity, place: text.place.clone() });
            }
        }
    }
    good.then(|| Placed { value: limits, place: texts.place.clone() })
}

/// Limits that hold for many accounts together, or for none: those have no days and months.
pub fn shared(field: &str, texts: &Placed<Vec<Text>>, report: &mut Report) -> Option<Limits> {
    let limits = limits(texts, report)?;
    let mut good = true;
    for limit in &limits.value {
        if let Quantity::Budget(..) = limit.value {
            let message = format!("a limit in `{}` in `{field}`", limit.value.unit());
            let help = "a day's or month's budget is a key's or an account's: write it into `key_limits` or \
                        `account_limits`";
            report.error(&limit.place, message, help);
            good = false;
        }
    }
    good.then_some(limits)
}

pub fn rates(limits: &Limits) -> BTreeMap<Dimension, Limit> {
    let rate = |limit: &Placed<Quantity>| match limit.value {
        Quantity::Amount(amount, dimension) => Some((dimension, Limit::Finite(amount))),
        Quantity::Unlimited | Quantity::Budget(..) => None,
    };
    limits.value.iter().filter_map(rate).collect()
}

pub fn budgets(limits: &Limits) -> BTreeMap<Budget, Limit> {
    let budget = |limit: &Placed<Quantity>| match limit.value {
        Quantity::Budget(amount, budget) => Some((budget, Limit::Finite(amount))),
        Quantity::Unlimited | Quantity::Amount(..) => None,
    };
    limits.value.iter().filter_map(budget).collect()
}
