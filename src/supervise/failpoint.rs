//! Failures on demand, for tests of what supervises: a build with debug assertions obeys
//! `TIDEGATE_FAILPOINT`, any other has nothing of it.

/// Fails here when the environment says so: `NAME=ACTION`, or `NAME:DETAIL=ACTION` to fail only with
/// this detail. `panic` panics every time, `panic-once` the first time, `hang` never returns.
#[cfg(not(debug_assertions))]
#[inline]
pub fn failpoint(_name: &str, _detail: &str) {}

/// Fails here when the environment says so: `NAME=ACTION`, or `NAME:DETAIL=ACTION` to fail only with
/// this detail. `panic` panics every time, `panic-once` the first time, `hang` never returns.
#[cfg(debug_assertions)]
pub fn failpoint(name: &str, detail: &str) {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicBool, Ordering};

    static WANTED: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("TIDEGATE_FAILPOINT").ok());
    static ONCE: AtomicBool = AtomicBool::new(false);

    let Some((place, action)) = WANTED.as_deref().and_then(|wanted| wanted.split_once('=')) else { return };
    let (wanted, only) = place.split_once(':').map_or((place, None), |(name, only)| (name, Some(only)));
    if wanted != name || only.is_some_and(|only| only != detail) {
        return;
    }
    match action {
        "hang" => loop {
            std::thread::park();
        },
        "panic-once" if ONCE.swap(true, Ordering::Relaxed) => {}
        #[expect(clippy::panic, reason = "what it is for")]
        _ => panic!("failpoint {name} {detail}"),
    }
}
