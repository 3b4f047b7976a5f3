//! The words of one decision: what is asked, what is answered, and the reservation in between.
//!
//! A [`Ticket`] is the reservation of one admitted request. It cannot be copied and
//! [`Limiter::settle`](crate::enforce::Limiter::settle) consumes it, so a request is settled at
//! most once by construction; a shell holds it in a guard whose drop settles.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::enforce::bucket::Rate;
use crate::enforce::keys::Name;
use crate::enforce::meters::{Amounts, Charged, RATES, place};
use crate::unit::{Dimension, Instant, Limit, WorkUnit};
use crate::wire::Budget;

/// SHA-256 of an account's name or of a key, or [`Limiter::key`](crate::enforce::Limiter::key) of
/// its bytes: fixed length, nothing a client chose. The first 16 bytes tell keys apart.
pub type KeyId = [u8; 32];

/// Limits by dimension.
pub type Limits = BTreeMap<Dimension, Limit>;

/// One request at the door, as far as limits care.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub model: &'a str,
    pub tier: &'a str,
    pub key: KeyId,
    /// Whose key it is, where several keys share an account.
    pub account: Option<KeyId>,
    pub overrides: Overrides<'a>,
    pub input_tokens: u64,
    /// The client's own bound on output tokens.
    pub output_max: Option<u64>,
    pub images: u64,
    /// The first token says when the request stops waiting; otherwise nothing does.
    pub streamed: bool,
    /// Creates a job, which outlives the request: see [`Ticket::take_job`].
    pub job: bool,
}

/// Limits of this key or account alone, in place of the table's, dimension by dimension.
#[derive(Clone, Copy, Debug, Default)]
pub struct Overrides<'a> {
    pub key: Option<&'a Limits>,
    pub account: Option<&'a Limits>,
}

#[derive(Debug)]
#[must_use]
#[expect(clippy::large_enum_variant, reason = "one for every request: a box would be an allocation")]
pub enum Verdict {
    Admitted(Ticket),
    Refused(Refusal),
}

/// Why not, and when again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: RefusalReason,
    /// After this time, without other use and under no lower table, the request is admitted. For
    /// limits of zero, counts and pool room no such time is known; it is then a fixed pause.
    pub retry_after: Duration,
    /// Of a limit on a count: how many are active now. Zero for rates.
    pub active: u64,
    /// No wait will do: the limit is zero, or more images were asked for than it has.
    pub never: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RefusalReason {
    /// Over its own limit: 429.
    Limit { scope: Scope, dimension: Dimension, limit: Limit },
    /// Inside its limit, but the pool has no room: 503.
    Capacity { cap: Cap },
    /// No row of the table has the model: 404.
    UnknownModel,
    /// The table has the model, but not for this tier.
    UnknownTier,
    /// Nothing to obey yet. Never means unlimited: 503.
    NoTable,
    /// A budget of a day or month is used up, or reserved by requests in flight.
    Budget { scope: Scope, budget: Budget, limit: Limit },
    /// Nothing is left to pay with.
    Credit,
    /// Budgets or credit would have to be looked at and cannot be: 503.
    Ledger,
}

/// Whose limit it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    Tier,
    Key,
    /// All keys of an account together.
    Account,
    /// All tiers of a model together.
    Model,
    /// Whoever serves a model.
    Provider,
}

/// Which of a pool's caps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cap {
    WaitingWork,
    InFlight,
}

/// How an admitted request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// The upstream said what it used. `input_tokens` are those it had not cached.
    Used { input_tokens: u64, cached_tokens: u64, output_tokens: u64, images: u64 },
    /// The client left, or usage never came: the larger of the estimate and what was seen.
    Broken { output_seen: u64 },
    /// As `Broken`, but the upstream broke off; counts as its error.
    Died { output_seen: u64 },
    /// The upstream refused the request (4xx): no work was done, the request counts.
    Rejected,
    /// Nothing reached an upstream: everything is released.
    NotSent,
    /// The upstream answered with an error: no work was done, the request counts.
    UpstreamError,
}

/// The reservation of one admitted request.
#[derive(Debug)]
#[must_use = "an unsettled ticket holds its reservation forever"]
pub struct Ticket {
    pub(super) place: Places,
    pub(super) pool: u32,
    pub(super) reserved: Costs,
    pub(super) input_tokens: u64,
    /// Output tokens that are reserved.
    pub(super) output: u64,
    /// Which rates of tier, key, account and model took the reservation.
    pub(super) charged: [Charged; 4],
    /// Rates that are the key's or account's own; all zero where none are.
    pub(super) own: [[Rate; RATES]; 2],
    /// The minute in which it was admitted.
    pub(super) minute: u64,
    /// Work still counted as waiting for its first token.
    pub(super) waiting: u64,
    pub(super) admitted_at: Instant,
    pub(super) job: bool,
}

/// A job's place in the counts, until it is completed.
#[derive(Debug)]
#[must_use = "a slot that is not released is held forever"]
pub struct JobSlot {
    pub(super) place: Places,
}

/// Where what a request or job counts in is found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    pub shard: u32,
    pub row: u32,
    /// Where the model has limits for all tiers together.
    pub model: Option<u32>,
    pub key: Option<KeySlot>,
    pub account: Option<KeySlot>,
}

/// Where a key's counters are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeySlot {
    Own(u32),
    /// Shared by all keys of a span that found no place; this is the one that asked.
    Overflow(Name),
}

/// What a request costs in each rate dimension, and in its pool's unit of work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Costs {
    pub requests: u64,
    /// Input and output together.
    pub tokens: u64,
    pub input: u64,
    pub output: u64,
    pub images: u64,
    pub work: u64,
}

// === impl Request ===

impl<'a> Request<'a> {
    /// One request that does no work.
    pub fn new(model: &'a str, tier: &'a str, key: KeyId) -> Request<'a> {
        Request {
            model,
            tier,
            key,
            account: None,
            overrides: Overrides::default(),
            input_tokens: 0,
            output_max: Some(0),
            images: 0,
            streamed: false,
            job: false,
        }
    }
}

// === impl Refusal ===

impl Refusal {
    pub(super) fn is_of(&self, scope: Scope) -> bool {
        matches!(self.reason, RefusalReason::Limit { scope: of, .. } if of == scope)
    }

    pub fn new(reason: RefusalReason, retry_after: Duration) -> Refusal {
        Refusal { reason, retry_after, active: 0, never: false }
    }
}

// === impl Ticket ===

impl Ticket {
    pub fn reserved(&self) -> &Costs {
        &self.reserved
    }

    /// Work reserved, in the pool's unit.
    pub fn reserved_work(&self) -> u64 {
        self.reserved.work
    }

    pub fn admitted_at(&self) -> Instant {
        self.admitted_at
    }

    /// The job that the request has created, which from now on outlives it. Where nobody takes it,
    /// it ends with the request.
    pub fn take_job(&mut self) -> Option<JobSlot> {
        std::mem::take(&mut self.job).then_some(JobSlot { place: self.place })
    }
}

// === impl Costs ===

impl Costs {
    /// In the order of [`Dimension::ALL`].
    pub fn rates(&self) -> Amounts {
        [self.requests, self.tokens, self.input, self.output, self.images]
    }

    /// As [`Costs::rates`], with work in the place of what the pool's unit counts.
    pub(super) fn weighted(&self, unit: WorkUnit) -> Amounts {
        let mut amounts = self.rates();
        if let Some(amount) = place(unit.dimension()).and_then(|at| amounts.get_mut(at)) {
            *amount = self.work;
        }
        amounts
    }
}
