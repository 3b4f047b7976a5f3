//! The words every room shares: names, instants, limits and dimensions.
//!
//! An [`Instant`] is a number, because a simulator must be able to make one; `std`'s cannot be
//! made. Only shells read a clock ([`SystemClock`]), everything that decides is handed `now`.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Nanoseconds since the holder's own epoch. Comparable within one process only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Instant(pub u64);

/// A source of `now`. Monotonic: never falls.
pub trait Clock: Send + Sync {
    fn now(&self) -> Instant;
}

/// The operating system's monotonic clock, counted on from `start`.
///
/// A controller that restarts passes the last instant of its journal as `start`, so that ages
/// stay meaningful across the restart and wall time never enters a decision.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
    base: std::time::Instant,
}

/// Wall time since 1970, for what people and other machines are told. Zero before 1970.
pub fn unix_now() -> Duration {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}

/// A rate per minute, a count, or no limit at all.
///
/// Written as an integer in `0..=MAX_FINITE`, or the word `unlimited`. Zero means zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Limit {
    Finite(u64),
    Unlimited,
}

/// Largest finite limit: every JSON reader holds it exactly (2^53 - 1).
pub const MAX_FINITE: u64 = (1 << 53) - 1;

/// What a limit counts. Rates are per minute; concurrency and jobs are counts.
///
/// A tier's limit in its pool's unit counts work: an uncached input token is 1, an output token
/// the pool's output cost. Every other limit counts plainly what its name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dimension {
    RequestsPerMinute,
    /// Input and output together.
    TokensPerMinute,
    InputTokensPerMinute,
    OutputTokensPerMinute,
    ImagesPerMinute,
    /// Requests in flight.
    Concurrency,
    /// Jobs between creation and completion, whatever became of the requests that made them.
    Jobs,
}

/// What a pool's work is counted in: the one dimension its control loop moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkUnit {
    #[default]
    Tokens,
    Requests,
    Images,
}

/// Parts per million; shares and reserves cross the wire as integers.
pub const PPM: u32 = 1_000_000;

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Eq, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        // Most names that are compared are copies of one: that they are is seen without reading them.
        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
            }
        }
        impl Ord for $name {
            fn cmp(&self, other: &Self) -> std::cmp::Ordering {
                if Arc::ptr_eq(&self.0, &other.0) { std::cmp::Ordering::Equal } else { self.0.cmp(&other.0) }
            }
        }
        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
                Some(self.cmp(other))
            }
        }
        impl std::hash::Hash for $name {
            fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
                self.0.hash(state);
            }
        }
        impl $name {
            pub fn new(name: impl AsRef<str>) -> Self {
                Self(Arc::from(name.as_ref()))
            }
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
        impl From<&str> for $name {
            fn from(name: &str) -> Self {
                Self::new(name)
            }
        }
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    )+};
}

names! {
    /// A pool of capacity: replicas that serve the same models.
    PoolId,
    /// A model as clients name it, verbatim (spaces and capitals included).
    ModelId,
    /// A plan or priority class.
    TierId,
    /// One enforcement node.
    NodeId,
    /// One replica of a pool, named by its source.
    ReplicaId,
    /// A product: what one policy file describes.
    ProductId,
    /// Somebody who serves a model: one of a node's upstreams.
    ProviderId,
}

// === impl Instant ===

impl Instant {
    pub const ZERO: Instant = Instant(0);

    /// Time from `earlier` to `self`; zero when `earlier` is later.
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    pub fn seconds_since(self, earlier: Instant) -> f64 {
        self.since(earlier).as_secs_f64()
    }
}

impl std::ops::Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, rhs: Duration) -> Instant {
        let nanos = u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX);
        Instant(self.0.saturating_add(nanos))
    }
}

impl std::ops::Sub<Duration> for Instant {
    type Output = Instant;
    fn sub(self, rhs: Duration) -> Instant {
        let nanos = u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX);
        Instant(self.0.saturating_sub(nanos))
    }
}

// === impl SystemClock ===

impl SystemClock {
    pub fn starting_at(start: Instant) -> Self {
        #[expect(clippy::disallowed_methods, reason = "the one place that reads the monotonic clock")]
        let base = std::time::Instant::now();
        Self { start, base }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        self.start + self.base.elapsed()
    }
}

// === impl Limit ===

impl Limit {
    /// Rounds down; above [`MAX_FINITE`] clamps to it; negative and NaN become zero.
    pub fn from_f64(value: f64) -> Limit {
        if value.is_nan() || value <= 0.0 {
            return Limit::Finite(0);
        }
        if value >= MAX_FINITE as f64 {
            return Limit::Finite(MAX_FINITE);
        }
        Limit::Finite(value as u64)
    }

    /// The number, or infinity.
    pub fn as_f64(self) -> f64 {
        match self {
            Limit::Finite(value) => value as f64,
            Limit::Unlimited => f64::INFINITY,
        }
    }

    pub fn finite(self) -> Option<u64> {
        match self {
            Limit::Finite(value) => Some(value),
            Limit::Unlimited => None,
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Limit::Finite(value) => value.fmt(f),
            Limit::Unlimited => f.write_str("unlimited"),
        }
    }
}

impl Serialize for Limit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Limit::Finite(value) => serializer.serialize_u64(*value),
            Limit::Unlimited => serializer.serialize_str("unlimited"),
        }
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Limit;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an integer from 0 to 2^53 - 1, or the word `unlimited`")
            }
            fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Limit, E> {
                if value <= MAX_FINITE {
                    Ok(Limit::Finite(value))
                } else {
                    Err(E::invalid_value(serde::de::Unexpected::Unsigned(value), &self))
                }
            }
            fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Limit, E> {
                if value == "unlimited" {
                    Ok(Limit::Unlimited)
                } else {
                    Err(E::invalid_value(serde::de::Unexpected::Str(value), &self))
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

// === impl WorkUnit ===

impl WorkUnit {
    /// The dimension in which a pool of this unit is limited.
    pub fn dimension(self) -> Dimension {
        match self {
            WorkUnit::Tokens => Dimension::TokensPerMinute,
            WorkUnit::Requests => Dimension::RequestsPerMinute,
            WorkUnit::Images => Dimension::ImagesPerMinute,
        }
    }
}

// === impl Dimension ===

impl Dimension {
    pub const ALL: [Dimension; 7] = [
        Dimension::RequestsPerMinute,
        Dimension::TokensPerMinute,
        Dimension::InputTokensPerMinute,
        Dimension::OutputTokensPerMinute,
        Dimension::ImagesPerMinute,
        Dimension::Concurrency,
        Dimension::Jobs,
    ];

    /// As policies and people write it.
    pub fn short(self) -> &'static str {
        match self {
            Dimension::RequestsPerMinute => "rpm",
            Dimension::TokensPerMinute => "tpm",
            Dimension::InputTokensPerMinute => "itpm",
            Dimension::OutputTokensPerMinute => "otpm",
            Dimension::ImagesPerMinute => "ipm",
            Dimension::Concurrency => "concurrent",
            Dimension::Jobs => "jobs",
        }
    }
}
