//! tidegate: dynamic, load-aware rate limits.
//!
//! This page is the map. A datum's way through the rooms, each naming only rooms before it:
//!
//! ```text
//!  /metrics, PromQL, usage reports
//!      │
//!   observe ─► estimate ─► decide ─► allocate ─► (control seals) wire::LimitTable ─► publish
//!                                                                       │
//!                        request ─► enforce ◄───────────────────────────┘
//!                           429 / 503 / upstream
//! ```
#![forbid(unsafe_code)]

#[cfg(feature = "control")]
pub mod allocate;
#[cfg(feature = "control")]
pub mod control;
#[cfg(feature = "control")]
pub mod decide;
#[cfg(feature = "daemon")]
pub mod demo;
pub mod enforce;
#[cfg(feature = "control")]
pub mod estimate;
#[cfg(feature = "control")]
pub mod observe;
#[cfg(feature = "control")]
pub mod policy;
#[cfg(feature = "daemon")]
pub mod publish;
#[cfg(feature = "sim")]
pub mod sim;
pub mod unit;
pub mod wire;
