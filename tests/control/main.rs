//! The controller: its endpoints, sources, loop and process, in one program so that CI links once.
#![cfg(feature = "daemon")]
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a broken promise ends the test"
)]

mod clock;
mod credentials;
mod edits;
mod http;
mod metrics;
mod observe;
mod policies;
mod presets;
mod program;
mod prometheus;
mod rollback;
mod run;
mod sources;
#[path = "../support/mod.rs"]
mod support;
mod watchers;
