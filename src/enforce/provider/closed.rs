//! When every provider of a model refuses: who may be asked first again, and whose fault it is.

use crate::enforce::ticket::{Cap, Refusal, RefusalReason, Scope};
use crate::unit::{Dimension, Instant, Limit};
use crate::wire::usage::Hold;

/// The providers that were passed over or refused, for one request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Closed {
    /// The first that may be asked again.
    until: Option<Instant>,
    /// One has no room or broke: another request may find it well at any time.
    weak: bool,
}

// === impl Closed ===

impl Closed {
    pub fn add(&mut self, until: Instant, why: Hold) {
        self.until = Some(self.until.map_or(until, |known| known.min(until)));
        self.weak |= matches!(why, Hold::Overloaded | Hold::Failed);
    }

    /// None while nobody has refused. Over the limits of all of them it is a limit like the
    /// client's own; where one merely has no room, it is capacity.
    pub fn refusal(&self, now: Instant) -> Option<Refusal> {
        let retry_after = self.until?.since(now);
        let reason = match self.weak {
            true => RefusalReason::Capacity { cap: Cap::InFlight },
            false => RefusalReason::Limit {
                scope: Scope::Provider,
                dimension: Dimension::RequestsPerMinute,
                limit: Limit::Finite(0),
            },
        };
        Some(Refusal { reason, retry_after, active: 0, never: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn h13_the_earliest_counts_and_one_without_room_makes_it_capacity() {
        let at = |seconds| Instant::ZERO + Duration::from_secs(seconds);
        let mut closed = Closed::default();
        assert_eq!(closed.refusal(at(0)), None);
        for (until, why) in [(90, Hold::Exhausted), (30, Hold::Limited), (60, Hold::Limited)] {
            closed.add(at(until), why);
        }
        let refusal = closed.refusal(at(10)).unwrap();
        assert_eq!(refusal.retry_after, Duration::from_secs(20));
        assert!(matches!(refusal.reason, RefusalReason::Limit { scope: Scope::Provider, .. }));
        closed.add(at(70), Hold::Overloaded);
        assert!(matches!(closed.refusal(at(10)).unwrap().reason, RefusalReason::Capacity { .. }));
    }
}
