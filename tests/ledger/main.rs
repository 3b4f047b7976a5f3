//! What a ledger owes: what it acknowledged is there once, whatever dies, fills up or is damaged.
#![cfg(feature = "daemon")]
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a broken promise ends the test"
)]

mod damage;
mod desk;
mod disk;
mod kills;

use std::time::Duration;

/// Nothing in these tests may take longer.
const PATIENCE: Duration = Duration::from_secs(30);

fn long() -> bool {
    std::env::var("TIDEGATE_LONG").is_ok_and(|value| value == "1")
}
