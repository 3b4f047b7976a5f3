//! The node: proxy, edges, following and process, in one program so that CI links once.
#![cfg(feature = "daemon")]
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a broken promise ends the test"
)]

mod accounts;
mod answers;
mod away;
mod budgets;
mod cli;
mod clients;
mod clock;
mod cuts;
mod edges;
mod ending;
mod flood;
mod follow;
mod h2;
mod jobs;
mod openai;
mod outlive;
mod overload;
mod providers;
mod proxy;
mod smuggling;
#[path = "../support/mod.rs"]
mod support;
