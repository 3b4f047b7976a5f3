//! Which part of a record is asked for.

use std::time::Duration;

use jiff::Timestamp;

use crate::control::entry::Recorded;

/// From and to, since 1970, both included; open where none is stated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    pub from: Option<Duration>,
    pub to: Option<Duration>,
}

#[derive(Debug, thiserror::Error)]
pub enum SpanError {
    #[error("the record is of {0} to {1}; ask for a part of that")]
    Outside(String, String),
    #[error(
        "the record's entries have no wall time: an earlier version wrote them; \
         replay all of it, without --from and --to"
    )]
    NoTime,
}

/// What was seen of a record so far.
pub struct Watch {
    span: Span,
    seen: Option<(Duration, Duration)>,
}

// === impl Span ===

impl Span {
    pub fn watch(self) -> Watch {
        Watch { span: self, seen: None }
    }

    fn is_open(&self) -> bool {
        self.from.is_none() && self.to.is_none()
    }
}

// === impl Watch ===

impl Watch {
    /// Is the entry in the part that is asked for?
    ///
    /// # Errors
    /// [`SpanError::NoTime`].
    pub fn holds(&mut self, entry: &Recorded) -> Result<bool, SpanError> {
        let Some(at) = entry.unix else {
            return if self.span.is_open() { Ok(true) } else { Err(SpanError::NoTime) };
        };
        let (first, last) = self.seen.unwrap_or((at, at));
        self.seen = Some((first.min(at), last.max(at)));
        Ok(self.span.from.is_none_or(|from| from <= at) && self.span.to.is_none_or(|to| at <= to))
    }

    /// Why nothing was in it: the record has entries, but of another time.
    pub fn nothing(&self) -> Option<SpanError> {
        let (first, last) = self.seen?;
        Some(SpanError::Outside(rfc3339(first), rfc3339(last)))
    }
}

/// RFC 3339, or seconds since 1970.
///
/// # Errors
/// What it is not, and what to write.
pub fn instant(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    // A double holds a time of today to less than a microsecond.
    let seconds = seconds.map(|at| Duration::from_micros((at.as_secs_f64() * 1e6).round() as u64));
    let stamp = |text: &str| {
        let nanos = text.parse::<Timestamp>().ok()?.as_nanosecond();
        u64::try_from(nanos).ok().map(Duration::from_nanos)
    };
    seconds.or_else(|| stamp(text)).ok_or_else(|| {
        "neither RFC 3339 nor seconds since 1970; write it as 2026-05-01T12:00:00Z or 1777636800".to_owned()
    })
}

/// To the millisecond, UTC.
pub fn rfc3339(unix: Duration) -> String {
    let millis = i64::try_from(unix.as_millis()).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(millis).map_or_else(|_| format!("{millis} ms"), |at| format!("{at:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_write_an_instant_say_the_same() {
        let noon = Duration::from_secs(1_777_636_800);
        assert_eq!(instant("1777636800"), Ok(noon));
        assert_eq!(instant("1777636800.814"), Ok(noon + Duration::from_millis(814)));
        assert_eq!(instant("2026-05-01T12:00:00Z"), Ok(noon));
        assert_eq!(instant("2026-05-01T14:00:00+02:00"), Ok(noon));
        assert_eq!(rfc3339(noon + Duration::from_millis(250)), "2026-05-01T12:00:00.250Z");
        for bad in ["yesterday", "-5", "1e30", "", "NaN", "2026-05-01"] {
            assert!(instant(bad).unwrap_err().contains("RFC 3339"), "{bad}");
        }
    }
}
