//! What holds for any input at all: one function for each way that foreign bytes come in.
//!
//! The fuzz targets search for an input that breaks one, `tests/corpora.rs` replays what they
//! found interesting; both call these functions, so that neither checks less than the other. A
//! broken property panics.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a broken property panics"
)]

pub mod exposition;
pub mod http;
mod loops;
pub mod policy;
pub mod table;
pub mod usage;

/// Panics where an input breaks it.
pub type Property = fn(&[u8]);

/// By the name of the target and of its directory of inputs.
pub const ALL: [(&str, Property); 5] = [
    ("policy", policy::check),
    ("exposition", exposition::check),
    ("table", table::check),
    ("usage", usage::check),
    ("http", http::check),
];
