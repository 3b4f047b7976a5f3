//! The demo: a whole cluster in one process, over real sockets, to watch limits follow load.

pub mod batch;
mod engine;
mod page;
pub mod plant;
pub mod prompt;
mod replica;
mod wire;
