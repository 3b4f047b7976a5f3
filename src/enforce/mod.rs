//! Enforcement: a table and a request in, a verdict out.
//!
//! [`Limiter`] decides and is pure; everything else here is the shell around it. Without the
//! `daemon` feature this room is the limiter, the file follower and the cell that holds a table
//! for readers: what an embedding gateway needs.

pub mod allowance;
pub mod bucket;
pub mod cell;
pub mod follow;
mod keys;
pub mod limiter;
pub mod meters;
mod minute;
mod slot;
pub mod store;
pub mod ticket;

#[cfg(feature = "daemon")]
pub mod accounts;
#[cfg(feature = "daemon")]
mod admin;
#[cfg(feature = "daemon")]
mod affair;
#[cfg(feature = "daemon")]
mod answer;
#[cfg(feature = "daemon")]
pub mod ask;
#[cfg(feature = "daemon")]
mod client;
#[cfg(feature = "daemon")]
pub mod config;
#[cfg(feature = "daemon")]
mod fallback;
#[cfg(feature = "daemon")]
mod files;
#[cfg(feature = "daemon")]
mod follow_http;
#[cfg(feature = "daemon")]
mod forward;
#[cfg(feature = "daemon")]
pub mod framing;
#[cfg(feature = "daemon")]
mod gateway;
#[cfg(feature = "daemon")]
mod headers;
#[cfg(feature = "daemon")]
mod intake;
#[cfg(feature = "daemon")]
pub mod jobs;
#[cfg(feature = "daemon")]
mod ledger_page;
#[cfg(feature = "daemon")]
mod limits;
#[cfg(feature = "daemon")]
pub mod meter;
#[cfg(feature = "daemon")]
mod metrics;
#[cfg(feature = "daemon")]
pub mod node;
#[cfg(feature = "daemon")]
mod parting;
#[cfg(feature = "daemon")]
mod patient;
#[cfg(feature = "daemon")]
pub(crate) mod provider;
#[cfg(feature = "daemon")]
mod purse;
#[cfg(feature = "daemon")]
mod relay;
#[cfg(feature = "daemon")]
mod render;
#[cfg(feature = "daemon")]
mod report;
#[cfg(feature = "daemon")]
pub mod room;
#[cfg(feature = "daemon")]
mod serve;
#[cfg(feature = "daemon")]
mod shared;
#[cfg(feature = "daemon")]
mod strangers;
#[cfg(feature = "daemon")]
mod stream;
#[cfg(feature = "daemon")]
mod upstream;
#[cfg(feature = "daemon")]
mod voice;

pub use cell::Cell;
pub use limiter::{Limiter, Quota, Quotas};
pub use ticket::{
    Cap, Costs, JobSlot, KeyId, Limits, Overrides, Refusal, RefusalReason, Request, Scope, Settlement,
    Ticket, Verdict,
};
