//! What crosses the wire between a controller and its nodes: the limit table goes down, the
//! usage report comes up. Plain data, its ordering and its validator; never a socket or a clock.

mod head;
pub mod held;
pub mod table;
pub mod usage;

pub use held::{Held, Offer};
pub use table::{Entry, LimitTable, PoolEntry, Row, Stamp, TableError, Yields};
pub use usage::{Nack, PoolUsage, UsageReport, UsageRow, Work};
