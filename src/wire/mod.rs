//! What crosses the wire between a controller and its nodes: the limit table goes down, the
//! usage report comes up. Plain data, its ordering and its validator; never a socket or a clock.

pub mod dialect;
mod entry;
mod head;
pub mod held;
pub mod jobs;
pub mod product;
pub mod table;
pub mod usage;

pub use dialect::Dialect;
pub use entry::Entry;
pub use held::{Held, Offer};
pub use jobs::{Jobs, Touch};
pub use product::{
    Budget, BudgetEntry, CachedInput, Credit, ModelEntry, Pinned, Price, Product, Span, Window,
};
pub use table::{LimitTable, PoolEntry, Row, Stamp, TableError, Yields};
pub use usage::{Hold, LearnedLimit, LimitWindow, Nack, PoolUsage, ProviderUsage, Quantity};
pub use usage::{UsageReport, UsageRow, Work};
