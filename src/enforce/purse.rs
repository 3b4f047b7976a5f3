//! What a request takes of budgets and credit: its row's terms, its holder's limits, and the
//! reservation in the [`ledger`](crate::ledger) that they come to.

use std::sync::Arc;
use std::time::Duration;

use crate::bounds::USAGE_TOKENS_MAX;
use crate::enforce::accounts::Holder;
use crate::enforce::ask::Ask;
use crate::enforce::limiter::RETRY_SOON;
use crate::enforce::limiter::RETRY_ZERO;
use crate::enforce::ticket::{Costs, KeyId, Refusal, RefusalReason, Scope, Settlement};
use crate::ledger;
use crate::ledger::Amount;
use crate::ledger::Asked;
use crate::ledger::Ledger;
use crate::ledger::Limits;
use crate::ledger::Part;
use crate::ledger::PeriodUsage;
use crate::ledger::Pinned;
use crate::ledger::Refused;
use crate::ledger::Reserved;
use crate::ledger::What;
use crate::ledger::Whose;
use crate::unit::{Limit, ModelId, ProductId, TierId};
use crate::wire::{Budget, CachedInput, Credit, LimitTable, Price, Row, Streams};

/// What a request's row and holder say of money and days; none where they say nothing.
#[derive(Clone, Debug)]
pub struct Purse {
    account: KeyId,
    key: Option<KeyId>,
    /// Of all nodes together.
    account_limits: Limits,
    key_limits: Limits,
    product: ProductId,
    zone: String,
    terms: Terms,
    streams: Streams,
    model: ModelId,
    tier: TierId,
}

/// What usage costs.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    pub price: Price,
    pub cached: CachedInput,
    /// Most output tokens that an answer's choice can have.
    pub output_max: Option<u64>,
}

/// What a request is expected to use, and at most.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    pub input: u64,
    pub output: u64,
    /// The client's own bound.
    pub output_max: Option<u64>,
    pub images: u64,
}

/// An admitted request's reservation in the ledger.
pub struct Hold {
    ledger: Arc<Ledger>,
    /// Until it is settled.
    reserved: Option<Reserved>,
    _pinned: Pinned,
    purse: Purse,
    expected: Expected,
}

/// Why a stream has to end.
#[derive(Clone, Debug)]
pub struct Past {
    pub refusal: Refusal,
    pub model: ModelId,
    pub tier: TierId,
}

/// What binds a budget, all nodes together: the key's or account's own, else its row's.
pub fn limit(row: &Row, holder: &Holder, whose: Whose, budget: Budget) -> Limit {
    let entry = row.budgets.get(&budget);
    let (own, entry) = match whose {
        Whose::Key => (holder.overrides.as_ref(), entry.map(|entry| entry.key)),
        Whose::Account => {
            let facts = holder.facts.as_ref();
            (facts.and_then(|facts| facts.overrides.as_ref()), entry.map(|entry| entry.account))
        }
    };
    own.and_then(|own| own.budget(budget)).or(entry).unwrap_or(Limit::Unlimited)
}

// === impl Purse ===

impl Purse {
    /// Of a request of this row by this holder.
    pub fn of(table: &LimitTable, row: &Row, holder: &Holder) -> Option<Purse> {
        let limits = |whose: Whose| Limits {
            tokens_per_day: limit(row, holder, whose, Budget::TokensPerDay),
            spend_per_day: limit(row, holder, whose, Budget::SpendPerDay),
            spend_per_month: limit(row, holder, whose, Budget::SpendPerMonth),
            credit: None,
        };
        let (mut account_limits, key_limits) = (limits(Whose::Account), limits(Whose::Key));
        if row.credit == Credit::Required {
            account_limits.credit = Some(holder.facts.as_ref().map_or(0, |facts| facts.credit()));
        }
        let none = Limits::default();
        if row.budgets.is_empty() && account_limits == none && key_limits == none {
            return None;
        }
        let product = row.product.as_ref().and_then(|name| table.products.get(name));
        let model = table.models.get(&row.model);
        Some(Purse {
            account: holder.account.unwrap_or(holder.key),
            key: (key_limits != none).then_some(holder.key),
            account_limits,
            key_limits,
            product: row.product.clone().unwrap_or_else(|| ProductId::new("")),
            zone: product.map_or_else(|| "UTC".to_owned(), |product| product.zone.clone()),
            terms: Terms {
                price: model.and_then(|model| model.price).unwrap_or_default(),
                cached: product.map(|product| product.cached_input).unwrap_or_default(),
                output_max: model.and_then(|model| model.output_max),
            },
            streams: product.map(|product| product.streams).unwrap_or_default(),
            model: row.model.clone(),
            tier: row.tier.clone(),
        })
    }

    /// Reads the holder's records, where they are not in memory.
    ///
    /// # Errors
    /// The ledger cannot be asked.
    pub async fn open(&self, ledger: &Arc<Ledger>) -> Result<Pinned, Refusal> {
        let account = ledger::Holder { account: self.account, key: None };
        let key = self.key.map(|key| ledger::Holder { account: self.account, key: Some(key) });
        let holders = std::iter::once(account).chain(key).collect();
        ledger.pin(holders).await.map_err(|refused| self.refusal(&refused, ledger))
    }

    /// As [`Purse::open`], for whatever row.
    ///
    /// # Errors
    /// The ledger cannot be asked.
    pub async fn pin(holder: &Holder, ledger: &Arc<Ledger>) -> Result<Pinned, Refused> {
        let account = holder.account.unwrap_or(holder.key);
        let holders = [None, Some(holder.key)].map(|key| ledger::Holder { account, key });
        ledger.pin(holders.into()).await
    }

    /// Tests everything and reserves it, or changes nothing. Does not wait.
    ///
    /// # Errors
    /// What there is not enough of.
    pub fn reserve(&self, ledger: &Arc<Ledger>, pinned: Pinned, expected: Expected) -> Result<Hold, Refusal> {
        let bounded = expected.output_max.is_some();
        let amount = self.terms.amount(expected.input, 0, expected.most(&self.terms), expected.images);
        let reserved = self.with(ledger, amount, bounded, |asked| ledger.reserve(asked))?;
        let reserved = reserved.map_err(|refused| self.refusal(&refused, ledger))?;
        let (ledger, purse) = (Arc::clone(ledger), self.clone());
        Ok(Hold { ledger, reserved: Some(reserved), _pinned: pinned, purse, expected })
    }

    /// How the holder stands now, where its records are in memory.
    ///
    /// # Errors
    /// The ledger cannot be asked.
    pub fn usage(&self, ledger: &Ledger) -> Result<Vec<PeriodUsage>, Refusal> {
        self.with(ledger, Amount::default(), false, |asked| ledger.usage(asked))
    }

    fn with<T>(
        &self,
        ledger: &Ledger,
        amount: Amount,
        bounded: bool,
        call: impl FnOnce(&Asked<'_>) -> T,
    ) -> Result<T, Refusal> {
        let Some((zone, calendar)) = ledger.calendar(&self.zone) else {
            return Err(Refusal::new(RefusalReason::Ledger, RETRY_ZERO));
        };
        let parts = ledger.parts(&self.account, &zone, &calendar);
        let of = |part: Part, limit: Limit| part.of(limit);
        let limits = |limits: &Limits| Limits {
            tokens_per_day: of(parts.day, limits.tokens_per_day),
            spend_per_day: of(parts.day, limits.spend_per_day),
            spend_per_month: of(parts.month, limits.spend_per_month),
            credit: limits.credit.map(|credit| parts.credit.of_amount(credit)),
        };
        Ok(call(&Asked {
            account: self.account,
            account_limits: limits(&self.account_limits),
            key: self.key.map(|key| (key, limits(&self.key_limits))),
            product: &self.product,
            zone: &zone,
            calendar: &calendar,
            amount,
            bounded,
        }))
    }

    fn refusal(&self, refused: &Refused, ledger: &Ledger) -> Refusal {
        let denied = match refused {
            Refused::Closed(_) => return Refusal::new(RefusalReason::Ledger, RETRY_SOON),
            Refused::Denied(denied) => denied,
        };
        let scope = match denied.whose {
            Whose::Account => Scope::Account,
            Whose::Key => Scope::Key,
        };
        let limit = |limits: &Limits, what| match what {
            What::TokensPerDay => limits.tokens_per_day,
            What::SpendPerDay => limits.spend_per_day,
            What::SpendPerMonth => limits.spend_per_month,
            What::Credit => Limit::Unlimited,
        };
        let whole = match denied.whose {
            Whose::Account => limit(&self.account_limits, denied.what),
            Whose::Key => limit(&self.key_limits, denied.what),
        };
        let budget = |budget| RefusalReason::Budget { scope, budget, limit: whole };
        let reason = match denied.what {
            What::TokensPerDay => budget(Budget::TokensPerDay),
            What::SpendPerDay => budget(Budget::SpendPerDay),
            What::SpendPerMonth => budget(Budget::SpendPerMonth),
            What::Credit => RefusalReason::Credit,
        };
        let left = denied.until.map(|until| Duration::from_millis(until.saturating_sub(ledger.wall())));
        Refusal { never: denied.never, ..Refusal::new(reason, left.unwrap_or(RETRY_ZERO)) }
    }
}

// === impl Terms ===

impl Terms {
    fn amount(&self, input: u64, cached: u64, output: u64, images: u64) -> Amount {
        let counted = match self.cached {
            CachedInput::Counted => input.saturating_add(cached),
            CachedInput::Free => input,
        };
        Amount {
            tokens: counted.saturating_add(output),
            micros: self.price.of(input, cached, output, images),
        }
    }
}

// === impl Expected ===

impl Expected {
    /// `costs` are those that the limiter expects.
    pub fn of(ask: &Ask, costs: &Costs) -> Expected {
        let (input, images) = (ask.input_tokens, ask.images);
        Expected { input, output: costs.output, output_max: ask.output_max, images }
    }

    /// Output tokens to reserve: the client's bound, else what is expected of the model.
    fn most(&self, terms: &Terms) -> u64 {
        let learned = self.output.min(terms.output_max.unwrap_or(USAGE_TOKENS_MAX));
        self.output_max.unwrap_or(learned)
    }
}

// === impl Hold ===

impl Hold {
    /// A stream has come this far: where it outgrows what was reserved, the reservation grows with
    /// it. Says so where it has run past a budget or the credit, and the policy ends such streams.
    pub fn progress(&mut self, output_seen: u64) -> Option<Past> {
        let Hold { ledger, reserved, purse, expected, .. } = self;
        let reserved = reserved.as_mut()?;
        let seen = purse.terms.amount(expected.input, 0, output_seen, expected.images);
        let most = reserved.amount();
        if seen.tokens <= most.tokens && seen.micros <= most.micros {
            return None;
        }
        let denied = purse.with(ledger, seen, true, |asked| ledger.grow(reserved, asked)).ok()??;
        let refusal = self.purse.refusal(&Refused::Denied(denied), &self.ledger);
        let (model, tier) = (self.purse.model.clone(), self.purse.tier.clone());
        self.may_end().then_some(Past { refusal, model, tier })
    }

    /// Whether the policy ends streams that run past a budget.
    pub fn may_end(&self) -> bool {
        self.purse.streams == Streams::EndPastBudget
    }

    /// Replaces what was reserved by what the request came to. Durable a moment later: a node that
    /// dies before settles it as reserved.
    pub fn settle(mut self, end: Settlement) {
        let (terms, expected) = (self.purse.terms, self.expected);
        let used = match end {
            Settlement::Used { input_tokens, cached_tokens, output_tokens, images } => {
                terms.amount(input_tokens, cached_tokens, output_tokens, images)
            }
            // What was seen is not all there was: at least what such requests use.
            Settlement::Broken { output_seen } | Settlement::Died { output_seen } => {
                let least = expected.output.min(expected.most(&terms));
                terms.amount(expected.input, 0, output_seen.max(least), expected.images)
            }
            Settlement::Rejected | Settlement::NotSent | Settlement::UpstreamError => Amount::default(),
        };
        if let Some(reserved) = self.reserved.take() {
            self.ledger.settle(reserved, used);
        }
    }
}

impl Drop for Hold {
    /// Nothing came of it: nothing is used.
    fn drop(&mut self) {
        if let Some(reserved) = self.reserved.take() {
            self.ledger.settle(reserved, Amount::default());
        }
    }
}
