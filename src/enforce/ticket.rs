//! The words of one decision: what is asked, what is answered, and the reservation in between.
//!
//! A [`Ticket`] is the reservation of one admitted request. It cannot be copied and
//! [`Limiter::settle`](crate::enforce::Limiter::settle) consumes it, so a request is settled at
//! most once by construction; a shell holds it in a guard whose drop settles.

use std::time::Duration;

use crate::enforce::keys::KeyName;
use crate::unit::{Dimension, Instant, Limit};

/// SHA-256 of an account's name or of a key: fixed length, nothing a client chose.
pub type KeyId = [u8; 32];

/// One request at the door, as far as limits care.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub model: &'a str,
    pub tier: &'a str,
    pub key: KeyId,
    pub input_tokens: u64,
    /// The client's own bound on output tokens.
    pub output_max: Option<u64>,
    pub images: u64,
    /// The first token says when the request stops waiting; otherwise nothing does.
    pub streamed: bool,
}

#[derive(Debug)]
#[must_use]
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
}

/// Whose limit it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    Tier,
    Key,
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
    /// The upstream said what it used. `input_tokens` are the uncached ones.
    Used { input_tokens: u64, output_tokens: u64, images: u64 },
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
    pub(super) row: usize,
    pub(super) pool: usize,
    pub(super) key: Option<KeySlot>,
    pub(super) reserved: Costs,
    pub(super) input_tokens: u64,
    /// Which buckets took the reservation, by [`Ticket::bit`]; an unlimited one takes none.
    pub(super) charged: u8,
    /// Work still counted as waiting for its first token.
    pub(super) waiting: u64,
    pub(super) admitted_at: Instant,
}

/// Where a key's counters are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeySlot {
    Own(usize),
    /// Shared by all keys of a model that found no place; this is the one that asked.
    Overflow(KeyName),
}

/// What a request costs in each rate dimension, and in its pool's unit of work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Costs {
    pub requests: u64,
    pub tokens: u64,
    pub images: u64,
    pub work: u64,
}

// === impl Ticket ===

impl Ticket {
    /// Work reserved, in the pool's unit.
    pub fn reserved_work(&self) -> u64 {
        self.reserved.work
    }

    pub fn admitted_at(&self) -> Instant {
        self.admitted_at
    }

    pub(super) fn bit(scope: Scope, dimension: usize) -> u8 {
        let shift = dimension * 2 + usize::from(scope == Scope::Key);
        1_u8.checked_shl(u32::try_from(shift).unwrap_or(u32::MAX)).unwrap_or(0)
    }
}

// === impl Costs ===

/// The rate dimensions, in the order of a bucket array.
pub const RATES: [Dimension; 3] =
    [Dimension::RequestsPerMinute, Dimension::TokensPerMinute, Dimension::ImagesPerMinute];

impl Costs {
    /// In the order of [`RATES`].
    pub fn rates(&self) -> [u64; 3] {
        [self.requests, self.tokens, self.images]
    }
}
