//! What a bound is, and the form in which all of them are listed.

use std::fmt;
use std::time::Duration;

/// A bound as the documentation shows it.
#[derive(Clone, Copy, Debug)]
pub struct Bound {
    pub name: &'static str,
    pub of: Whose,
    /// What is bounded.
    pub what: &'static str,
    pub amount: Amount,
    /// What happens to what lies beyond it.
    pub beyond: &'static str,
}

/// Whom a bound protects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    Policy,
    Sources,
    Wire,
    Controller,
    Server,
    Node,
    Ledger,
    Pages,
    Simulator,
    Process,
}

#[derive(Clone, Copy, Debug)]
pub enum Amount {
    Bytes(u64),
    Count(u64),
    Time(Duration),
}

macro_rules! bounds {
    ($($whose:ident { $(
        #[doc = $what:literal]
        $name:ident: $of:ty, $amount:ident = $value:expr, $beyond:literal;
    )* })*) => {
        $($(
            #[doc = $what]
            #[doc = concat!("\n\nBeyond it: ", $beyond, ".")]
            pub const $name: $of = $value;
        )*)*

        /// Every bound there is, in the order of the rooms it guards.
        pub const BOUNDS: &[Bound] = &[$($(Bound {
            name: stringify!($name),
            of: Whose::$whose,
            what: $what,
            amount: amount!($amount, $name),
            beyond: $beyond,
        },)*)*];
    };
}

macro_rules! amount {
    (bytes, $value:expr) => {
        Amount::Bytes($value as u64)
    };
    (count, $value:expr) => {
        Amount::Count($value as u64)
    };
    (time, $value:expr) => {
        Amount::Time($value)
    };
}

// === impl Amount ===

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Bytes(bytes) if bytes >= 1 << 20 && bytes % (1 << 20) == 0 => {
                write!(f, "{} MiB", bytes >> 20)
            }
            Self::Bytes(bytes) if bytes >= 1 << 10 && bytes % (1 << 10) == 0 => {
                write!(f, "{} KiB", bytes >> 10)
            }
            Self::Bytes(bytes) => write!(f, "{bytes} B"),
            Self::Count(count) => write!(f, "{count}"),
            Self::Time(time) => write!(f, "{time:?}"),
        }
    }
}
