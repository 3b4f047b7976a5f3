//! A fence around what a policy drives: a panic in there is a reason, not the end of the daemon.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What `work` returns, or what it panicked with. Whatever it was changing is not to be trusted
/// after a panic; the caller puts it together anew.
///
/// # Errors
/// The panic's message.
pub fn fenced<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| format!("it panicked: {}", message(&*payload)))
}

fn message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("without a message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_message() {
        assert_eq!(fenced(|| 7), Ok(7));
        let (row, kind) = (3, "static");
        assert_eq!(fenced(|| panic!("row {row}")), Err::<(), _>("it panicked: row 3".to_owned()));
        assert_eq!(fenced(|| panic!("static")), Err::<(), _>(format!("it panicked: {kind}")));
    }
}
