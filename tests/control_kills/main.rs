//! What may not be lost when processes die, disks fail and tasks break: real processes, killed,
//! starved and lied to.
#![cfg(feature = "daemon")]
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a broken promise ends the test"
)]

mod daemon;
mod disk;
mod kills;
mod power;
mod service;
mod starved;
#[path = "../support/mod.rs"]
mod support;
mod syscalls;
mod tasks;
