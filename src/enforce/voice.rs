//! Who is spoken to and in which dialect: finds the product behind a request, and hands what the
//! limiter concluded to the renderer.

use bytes::Bytes;
use http::Response;

use crate::enforce::accounts::Holder;
use crate::enforce::answer::full;
use crate::enforce::limiter::{Quota, Quotas};
use crate::enforce::render::{self, Bound, Facts, Meter, Moment, Over, Standing};
use crate::enforce::stream::Body;
use crate::enforce::ticket::{Overrides, Refusal, RefusalReason, Request, Scope};
use crate::unit::{Dimension, Limit};
use crate::wire::dialect::{Dialect, Kind};
use crate::wire::{Entry, LimitTable, Product, Row, Span};

/// The dialect for one request, and the row its limits stand in.
#[derive(Clone, Copy)]
pub struct Voice<'a> {
    dialect: &'a Dialect,
    table: Option<&'a LimitTable>,
    product: Option<&'a Product>,
    overrides: Overrides<'a>,
    pub row: Option<&'a Row>,
}

// === impl Voice ===

impl<'a> Voice<'a> {
    /// For a request of a model and tier: the dialect of their row's product.
    pub fn of(table: Option<&'a LimitTable>, model: &str, tier: &str) -> Voice<'a> {
        match table.and_then(|table| table.row(model, tier)) {
            Some(row) => Voice { row: Some(row), ..Voice::of_product(table, product(table, row)) },
            None => Voice::of_product(table, table.and_then(|table| table.product_of(model))),
        }
    }

    /// For a request of no model that is known: of any row that the holder has. Where all models of
    /// a product share their counters, that row also shows how the key stands.
    pub fn of_holder(table: Option<&'a LimitTable>, holder: &Holder) -> Voice<'a> {
        let mut rows = table.into_iter().flat_map(|table| &table.rows);
        let Some(row) = rows.find(|row| holder.tier(product(table, row)) == Ok(&row.tier)) else {
            return Voice::of_nobody(table);
        };
        let product = product(table, row);
        let shared = product.is_some_and(|product| product.span == Span::Product);
        Voice { row: Some(row).filter(|_| shared), ..Voice::of_product(table, product) }
    }

    /// For a model of which the holder has no row.
    pub fn of_product(table: Option<&'a LimitTable>, product: Option<&'a Product>) -> Voice<'a> {
        let dialect = product.map_or(Dialect::of_nobody(), |product| &product.answers);
        Voice { dialect, table, product, overrides: Overrides::default(), row: None }
    }

    /// Some limits are the key's or account's own.
    pub fn with(self, overrides: Overrides<'a>) -> Voice<'a> {
        Voice { overrides, ..self }
    }

    /// For somebody who is not known: the one product there is speaks for itself, of several none
    /// is the right one.
    pub fn of_nobody(table: Option<&'a LimitTable>) -> Voice<'a> {
        let mut products = table.into_iter().flat_map(|table| table.products.values());
        let only = products.next().filter(|_| products.next().is_none());
        Voice::of_product(table, only)
    }

    /// An answer of a kind of which nothing but the model's name is known.
    pub fn say(&self, kind: Kind, model: &str, moment: Moment) -> Response<Body> {
        let minimum = self.product.and_then(|product| product.recharge.values().min()).copied().unwrap_or(0);
        let facts = Facts { kind, model, tier: "", wait: None, over: None, minimum };
        render::refusal(self.dialect, &facts, moment).map(full)
    }

    /// What a refused client hears, the headers of its standing included. Without a table there is
    /// nothing to say it in.
    pub fn refuse(
        &self,
        refusal: &Refusal,
        wanted: &Request<'_>,
        quotas: &Quotas,
        moment: Moment,
    ) -> Option<Response<Body>> {
        let mut response = self.words(refusal, wanted, quotas, moment)?.map(full);
        let dimension = match refusal.reason {
            RefusalReason::Limit { dimension, .. } => Some(dimension),
            _ => None,
        };
        self.mark(&mut response, quotas, dimension, moment);
        Some(response)
    }

    /// The same without those headers.
    pub fn words(
        &self,
        refusal: &Refusal,
        wanted: &Request<'_>,
        quotas: &Quotas,
        moment: Moment,
    ) -> Option<Response<Bytes>> {
        let (kind, over) = match &refusal.reason {
            RefusalReason::Limit { scope, dimension, limit } => {
                let over = self.over(refusal, *scope, *dimension, *limit, wanted, quotas);
                (kind_of(*dimension, &over), Some(over))
            }
            RefusalReason::Capacity { .. } | RefusalReason::Ledger => (Kind::Capacity, None),
            RefusalReason::Budget { scope, budget, limit } => {
                let limit = limit.finite().unwrap_or(0);
                let (meter, bound) = (Meter::Period(*budget), Bound::Static);
                let over = Over { meter, scope: *scope, bound, limit, remaining: 0, active: limit, asked: 0 };
                (Kind::Period, Some(over))
            }
            RefusalReason::Credit => (Kind::Credit, None),
            RefusalReason::UnknownModel | RefusalReason::UnknownTier => (Kind::UnknownModel, None),
            RefusalReason::NoTable => return None,
        };
        let timed = !matches!(kind, Kind::TooLarge | Kind::UnknownModel);
        let facts = Facts {
            kind,
            model: wanted.model,
            tier: wanted.tier,
            wait: Some(refusal.retry_after).filter(|_| timed),
            over,
            minimum: 0,
        };
        Some(render::refusal(self.dialect, &facts, moment))
    }

    /// Puts the headers of a standing on an answer, whoever made it.
    pub fn mark(
        &self,
        response: &mut Response<Body>,
        quotas: &Quotas,
        refused: Option<Dimension>,
        moment: Moment,
    ) {
        let standings = self.standings(quotas);
        let status = response.status();
        render::mark(self.dialect, &standings, refused, status, moment, response.headers_mut());
    }

    pub fn standings(&self, quotas: &Quotas) -> Vec<Standing> {
        quotas.iter().flatten().map(|quota| self.standing(quota)).collect()
    }

    fn standing(&self, quota: &Quota) -> Standing {
        let entry = self.row.and_then(|row| row.limits.get(&quota.dimension));
        let bound = self.bound(quota.scope, quota.dimension, quota.limit);
        let entry = entry.filter(|_| bound != Bound::Override);
        Standing {
            dimension: quota.dimension,
            scope: quota.scope,
            bound,
            limit: quota.limit,
            ceiling: entry.map_or(Limit::Finite(quota.limit), |entry| most(entry, quota.scope)),
            remaining: quota.remaining,
            reset: quota.reset,
        }
    }

    fn over(
        &self,
        refusal: &Refusal,
        scope: Scope,
        dimension: Dimension,
        limit: Limit,
        wanted: &Request<'_>,
        quotas: &Quotas,
    ) -> Over {
        let limit = limit.finite().unwrap_or(0);
        let standing = quotas.iter().flatten().find(|quota| quota.dimension == dimension);
        Over {
            meter: Meter::Minute(dimension),
            scope,
            bound: self.bound(scope, dimension, limit),
            limit,
            remaining: standing.map_or(0, |quota| quota.remaining),
            active: refusal.active,
            asked: if dimension == Dimension::ImagesPerMinute { wanted.images } else { 0 },
        }
    }

    /// Only a tier's limit in the unit of its pool moves; every other one stands in the policy.
    fn bound(&self, scope: Scope, dimension: Dimension, limit: u64) -> Bound {
        let own = match scope {
            Scope::Key => self.overrides.key,
            Scope::Account => self.overrides.account,
            Scope::Tier | Scope::Model | Scope::Provider => None,
        };
        if own.is_some_and(|own| own.contains_key(&dimension)) {
            return Bound::Override;
        }
        let entry = self.row.and_then(|row| row.limits.get(&dimension));
        let pool = self.table.zip(self.row).and_then(|(table, row)| table.pools.get(&row.pool));
        let moves = scope == Scope::Tier && pool.is_some_and(|pool| pool.unit.dimension() == dimension);
        match entry.filter(|_| moves) {
            None => Bound::Static,
            Some(entry) if Limit::Finite(limit) >= entry.ceiling => Bound::Ceiling,
            Some(entry) if Limit::Finite(limit) <= entry.guarantee => Bound::Guarantee,
            Some(_) => Bound::Load,
        }
    }
}

fn product<'a>(table: Option<&'a LimitTable>, row: &Row) -> Option<&'a Product> {
    table?.products.get(row.product.as_ref()?)
}

/// What a limit may become at most: a tier's moves up to its ceiling, the others stay.
fn most(entry: &Entry, scope: Scope) -> Limit {
    match scope {
        Scope::Tier => entry.ceiling,
        Scope::Key => entry.key_limit,
        Scope::Account => entry.account_limit,
        Scope::Model | Scope::Provider => Limit::Unlimited,
    }
}

fn kind_of(dimension: Dimension, over: &Over) -> Kind {
    match dimension {
        Dimension::Concurrency => Kind::Concurrency,
        Dimension::Jobs => Kind::Jobs,
        _ if over.limit > 0 && over.asked > over.limit => Kind::TooLarge,
        _ => Kind::Rate,
    }
}
