//! The four vendors' rows: shipped policies, unscaled, through the real controller's step into the
//! real node, over HTTP, in one program so that CI links once.
#![cfg(feature = "daemon")]
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a broken promise ends the test"
)]

mod kimchi;
mod kimi;
mod media;
mod predictions;
mod rig;
#[path = "../support/mod.rs"]
mod support;
mod upstream;
