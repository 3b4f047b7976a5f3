//! Somebody else's capacity: a quota that only its refusals and headers tell of.
//!
//! A token bucket that holds [`Quota::depth`] requests. Where refused calls count, they take from
//! it as well, down to as much debt as it holds: whoever keeps asking keeps being refused.

use crate::sim::engine::Quota;
use crate::unit::Instant;

#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    tokens: f64,
    at: Instant,
    /// Part of the quota that is in force.
    pub part: f64,
}

// === impl Bucket ===

impl Bucket {
    pub fn new(quota: &Quota) -> Bucket {
        Bucket { tokens: quota.depth, at: Instant::ZERO, part: 1.0 }
    }

    /// Whether one more request is served.
    pub fn take(&mut self, quota: &Quota, now: Instant) -> bool {
        let refilled = self.tokens + quota.per_second * self.part * now.seconds_since(self.at);
        (self.tokens, self.at) = (refilled.min(quota.depth), now);
        let serves = self.tokens >= 1.0;
        if serves || quota.counts_refused {
            self.tokens = (self.tokens - 1.0).max(-quota.depth);
        }
        serves
    }

    /// Requests left.
    pub fn left(&self) -> f64 {
        self.tokens.max(0.0).floor()
    }
}
