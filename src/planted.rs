//! Planted bugs, and terms of the law left out: with the feature `planted` one of them can be
//! switched on, and somebody must notice by name: the simulator (`tests/planted.rs`) a bug, the test
//! that `docs/law.md` names a missing term. Without the feature every question is answered at build
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

/// Whether this term of the law is left out: in the variable `TIDEGATE_WITHOUT`, read once, which
/// names one or some with commas between.
#[cfg(feature = "planted")]
pub fn without(term: &str) -> bool {
    static OFF: std::sync::LazyLock<Vec<String>> = std::sync::LazyLock::new(|| {
        let terms = std::env::var("TIDEGATE_WITHOUT").unwrap_or_default();
        terms.split(',').map(str::to_owned).collect()
    });
    OFF.iter().any(|off| off == term)
}

/// None is.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn without(_term: &str) -> bool {
    false
}
