//! Enforcement: a table and a request in, a verdict out.
//!
//! [`Limiter`] decides and is pure; everything else here is the shell around it. Without the
//! `daemon` feature this room is the limiter and the file follower, for embedding.

mod allowance;
mod bucket;
mod keys;
pub mod limiter;
pub mod ticket;

pub use limiter::{Limiter, Quota};
pub use ticket::{Cap, KeyId, Refusal, RefusalReason, Request, Scope, Settlement, Ticket, Verdict};
