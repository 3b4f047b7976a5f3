//! The demo: a whole cluster in one process, over real sockets, to watch limits follow load.

pub mod batch;
mod engine;
pub mod ledger;
mod page;
pub mod plant;
pub mod prompt;
mod replica;
pub mod tenants;
pub mod verdict;
mod wire;
