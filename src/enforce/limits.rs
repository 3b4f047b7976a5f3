//! `GET /v1/limits`: how the holder of a key stands, in one document.
//!
//! Pure: the table, the holder and a look at the limiter in, JSON out. Bounded by the models that
//! are listed at all; nothing of other tiers or keys is in it.

use serde::Serialize;

use crate::bounds::MODELS_LISTED_MAX;
use crate::enforce::accounts::Holder;
use crate::enforce::limiter::Quotas;
use crate::enforce::purse;
use crate::enforce::render::{Meter, Moment, Standing, rfc3339, scope_word, whole_seconds};
use crate::enforce::ticket::{self, Request};
use crate::enforce::voice::Voice;
use crate::ledger::PeriodUsage;
use crate::ledger::What;
use crate::ledger::Whose;
use crate::unit::{Limit, ModelId, ProductId, TierId};
use crate::wire::dialect::Round;
use crate::wire::{Budget, LimitTable, Row};

/// How a key stands with every model that its tier has.
#[derive(Debug, Serialize)]
pub struct Standings<'a> {
    object: &'static str,
    /// RFC 3339, UTC: `reset` of every limit is counted from here.
    at: String,
    models: Vec<Model<'a>>,
    /// There are more models than are listed.
    truncated: bool,
}

#[derive(Debug, Serialize)]
struct Model<'a> {
    model: &'a ModelId,
    #[serde(skip_serializing_if = "Option::is_none")]
    product: Option<&'a ProductId>,
    tier: &'a TierId,
    /// By dimension, the one scope of each that binds first.
    limits: Vec<Now>,
    periods: Vec<Period>,
}

#[derive(Debug, Serialize)]
struct Now {
    dimension: &'static str,
    limit: Limit,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    left: Option<Left>,
}

#[derive(Debug, Serialize)]
struct Left {
    remaining: u64,
    /// Seconds until `remaining` is whole again, rounded up; absent for counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    reset: Option<u64>,
    scope: &'static str,
    /// `ceiling`, `guarantee` or `load` where the limit moves; `static` or `override` where not.
    bound: &'static str,
}

/// A budget of a day or month; tokens, or micro-dollars.
#[derive(Debug, Serialize)]
struct Period {
    budget: &'static str,
    scope: &'static str,
    limit: Limit,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    usage: Option<Used>,
}

/// At this node.
#[derive(Debug, Serialize)]
struct Used {
    used: u64,
    /// By requests in flight.
    reserved: u64,
    remaining: u64,
    /// RFC 3339, UTC: when the period ends; credit has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<String>,
}

/// What a holder asks for, with everything that is known of them.
pub fn request<'a>(holder: &'a Holder, model: &'a str, tier: &'a TierId) -> Request<'a> {
    let overrides = ticket::Overrides {
        key: holder.overrides.as_ref().map(|own| own.limits(model)),
        account: holder.facts.as_ref().and_then(|facts| Some(facts.overrides.as_ref()?.limits(model))),
    };
    let account = holder.account;
    Request { account, overrides, ..Request::new(model, tier.as_str(), holder.key) }
}

/// Looks at every row of the holder's tier, each with `quotas`.
pub fn standings<'a>(
    table: &'a LimitTable,
    holder: &'a Holder,
    moment: Moment,
    mut quotas: impl FnMut(&Request<'_>) -> Quotas,
    mut usage: impl FnMut(&Row) -> Vec<PeriodUsage>,
) -> Standings<'a> {
    let product = |row: &Row| row.product.as_ref().and_then(|product| table.products.get(product));
    let mut rows = table.rows.iter().filter(|row| holder.tier(product(row)) == Ok(&row.tier));
    let models = rows.by_ref().take(MODELS_LISTED_MAX).map(|row| {
        let request = request(holder, row.model.as_str(), &row.tier);
        let voice = Voice::of(Some(table), row.model.as_str(), row.tier.as_str()).with(request.overrides);
        let standings = voice.standings(&quotas(&request));
        Model {
            model: &row.model,
            product: row.product.as_ref(),
            tier: &row.tier,
            limits: limits(row, &standings),
            periods: periods(row, holder, &usage(row)),
        }
    });
    let models = models.collect();
    let at = rfc3339(whole_seconds(moment.unix, Round::Down));
    Standings { object: "limits", at, models, truncated: rows.next().is_some() }
}

/// What is limited, and of the rest that it is not.
fn limits(row: &Row, standings: &[Standing]) -> Vec<Now> {
    let free = row.limits.keys().filter(|name| standings.iter().all(|known| known.dimension != **name));
    let free = free.map(|name| Now { dimension: name.short(), limit: Limit::Unlimited, left: None });
    let bound = standings.iter().map(|standing| Now {
        dimension: standing.dimension.short(),
        limit: Limit::Finite(standing.limit),
        left: Some(Left {
            remaining: standing.remaining,
            reset: standing.is_rate().then(|| whole_seconds(standing.reset, Round::Up)),
            scope: scope_word(standing.scope),
            bound: standing.bound.word(),
        }),
    });
    bound.chain(free).collect()
}

/// The budgets of a row and its holder and the credit of the account, with what is used where that is
/// counted.
fn periods(row: &Row, holder: &Holder, usage: &[PeriodUsage]) -> Vec<Period> {
    let used = |line: &PeriodUsage| Used {
        used: line.used,
        reserved: line.reserved,
        remaining: line.limit.saturating_sub(line.used).saturating_sub(line.reserved),
        until: line.until.map(|until| rfc3339(until / 1_000)),
    };
    let of = |budget: Budget| {
        let (word, what) = (Meter::Period(budget).word(), counted(budget));
        [("key", Whose::Key), ("account", Whose::Account)].map(|(scope, whose)| {
            let limit = purse::limit(row, holder, whose, budget);
            let line = usage.iter().find(|line| line.what == what && line.whose == whose);
            Period { budget: word, scope, limit, usage: line.map(used) }
        })
    };
    let limited = |both: &[Period; 2]| both.iter().any(|period| period.limit != Limit::Unlimited);
    let stated = Budget::ALL.map(|budget| (row.budgets.contains_key(&budget), of(budget)));
    let budgets = stated.into_iter().filter(|(stated, both)| *stated || limited(both));
    let credit = usage.iter().find(|line| line.what == What::Credit).map(|line| Period {
        budget: "credit",
        scope: "account",
        limit: Limit::Finite(line.limit),
        usage: Some(used(line)),
    });
    budgets.flat_map(|(_, both)| both).chain(credit).collect()
}

fn counted(budget: Budget) -> What {
    match budget {
        Budget::TokensPerDay => What::TokensPerDay,
        Budget::SpendPerDay => What::SpendPerDay,
        Budget::SpendPerMonth => What::SpendPerMonth,
    }
}
