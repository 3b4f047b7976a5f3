//! Planted bugs: with the feature `planted` one of them can be switched on, and the simulator must
//! catch it by name (`tests/planted.rs`). Without the feature every question is answered at build
//! time, and nothing of this is left.

/// Whether this bug is switched on: in the variable `TIDEGATE_BUG`, read once.
#[cfg(feature = "planted")]
pub fn bug(name: &str) -> bool {
    static ON: std::sync::LazyLock<Option<String>> =
        std::sync::LazyLock::new(|| std::env::var("TIDEGATE_BUG").ok());
    ON.as_deref() == Some(name)
}

/// There is none.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn bug(_name: &str) -> bool {
    false
}
