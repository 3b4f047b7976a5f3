//! The ledger: what accounts and keys have used in days, months and all time, kept for good.
//!
//! Rates forgive a restart, budgets do not: tokens a day, money a day and a month, and credit are
//! counted here, on disk. [`period`] says when days and months begin, [`record`] what one holder has
//! used, [`book`] whether a request fits, [`share`] which part of a budget a node may fill: all
//! pure. [`store`] keeps it, [`live`] is all of it in a running node.
//!
//! Amounts are integers throughout: tokens, and micro-dollars.

pub mod book;
mod codec;
pub mod live;
mod mark;
pub mod period;
mod queue;
pub mod record;
pub mod share;
mod steady;
mod store;
mod writer;

pub use book::Asked;
pub use book::Denied;
pub use book::PeriodUsage;
pub use book::Reserved;
pub use book::Whose;
pub use live::Ledger;
pub use live::Options;
pub use live::Parts;
pub use live::Pinned;
pub use live::Refused;
pub use live::Sent;
pub use live::Wall;
pub use period::Zone;
pub use record::Amount;
pub use record::Holder;
pub use record::Limits;
pub use record::What;
pub use share::Part;
pub use writer::State;

#[cfg(test)]
mod tests;
