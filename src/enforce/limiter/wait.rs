//! How long work waits for its first token, as this node sees it: the one sign of a pool's queue
//! that comes without delay and without anybody's page.
//!
//! What may wait at a node is its part of a cap that was set for a pool that is used up. While first
//! tokens come at once there is no queue anywhere, whatever this node has waiting, and more may; once
//! they come late, or stop, less may: a replica died, and no table says so yet.

use std::time::Duration;

use crate::planted::without;
use crate::unit::Instant;

/// Parts of the SLO: a wait up to the first is none, from the second on a pool is used up.
const CALM: f64 = 0.05;
const FULL: f64 = 0.2;
/// How many times its part a node may have waiting while there is no queue,
const MOST: f64 = 2.0;
/// and once there is a long one: a prompt takes long by itself, so that this is no proof.
const LEAST: f64 = 0.5;
/// What a longer wait than before counts for. A shorter one counts at once: among the last few the
/// quickest shows the queue, the others their own prompts.
const RISE: f64 = 0.5;
/// Weight of the newest request in the mean of their work.
const MEAN: f64 = 0.05;

#[derive(Debug, Default)]
pub struct Wait {
    /// Of late, seconds.
    seen: f64,
    /// The last first token, or when something began to wait after nothing did.
    since: Instant,
    /// Mean work of a request; none before the first.
    request: Option<f64>,
}

// === impl Wait ===

impl Wait {
    /// `first`: nothing else waits.
    pub fn begins(&mut self, now: Instant, work: u64, first: bool) {
        if first {
            self.since = now;
        }
        let mean = self.request.get_or_insert(work as f64);
        *mean += MEAN * (work as f64 - *mean);
    }

    pub fn ends(&mut self, now: Instant, admitted_at: Instant) {
        let waited = now.seconds_since(admitted_at);
        let gain = if waited < self.seen { 1.0 } else { RISE };
        self.seen += gain * (waited - self.seen);
        self.since = now;
    }

    /// Mean work of a request that waits.
    pub fn request(&self) -> f64 {
        self.request.unwrap_or(0.0)
    }

    /// How many times its part of the cap may wait here, while something does; `uncut`: never
    /// less than once.
    pub fn stretch(&self, now: Instant, slo: Duration, uncut: bool) -> f64 {
        if slo.is_zero() {
            return 1.0;
        }
        let waited = self.seen.max(now.seconds_since(self.since)) / slo.as_secs_f64();
        if waited > FULL {
            let uncut = uncut || without("wait-less");
            return if uncut { 1.0 } else { (FULL / waited).max(LEAST) };
        }
        let calm = ((FULL - waited) / (FULL - CALM)).min(1.0);
        let calm = if without("wait-more") { 0.0 } else { calm };
        1.0 + (MOST - 1.0) * calm
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLO: Duration = Duration::from_secs(2);

    fn at(seconds: f64) -> Instant {
        Instant((seconds * 1e9) as u64)
    }

    /// A node whose first tokens take so long, one after the other.
    fn after(waits: &[f64]) -> (Wait, f64) {
        let (mut wait, mut now) = (Wait::default(), 100.0);
        for waited in waits {
            wait.begins(at(now), 100, true);
            now += waited;
            wait.ends(at(now), at(now - waited));
        }
        (wait, now)
    }

    #[test]
    fn while_first_tokens_come_at_once_twice_as_much_may_wait() {
        let (wait, now) = after(&[0.1, 0.2, 0.1]);
        assert_eq!(wait.stretch(at(now), SLO, false), MOST);
        let (wait, now) = after(&[0.25; 12]);
        let between = wait.stretch(at(now), SLO, false);
        assert!((1.4..1.6).contains(&between), "{between}");
    }

    #[test]
    fn once_they_come_late_less_may_and_never_less_than_half() {
        let (wait, now) = after(&[0.5; 12]);
        let less = wait.stretch(at(now), SLO, false);
        assert!((0.79..0.81).contains(&less), "{less}");
        let (wait, now) = after(&[30.0; 12]);
        assert_eq!(wait.stretch(at(now), SLO, false), LEAST);
        assert_eq!(wait.stretch(at(now), SLO, true), 1.0);
    }

    #[test]
    fn one_long_prompt_among_short_ones_is_no_queue() {
        let (wait, now) = after(&[0.1, 1.5, 0.1]);
        assert_eq!(wait.stretch(at(now), SLO, false), MOST);
    }

    #[test]
    fn first_tokens_that_stop_are_late_before_the_next_one_comes() {
        let (mut wait, now) = after(&[0.1, 0.1]);
        wait.begins(at(now), 100, true);
        assert_eq!(wait.stretch(at(now + 0.1), SLO, false), MOST);
        assert_eq!(wait.stretch(at(now + 5.0), SLO, false), LEAST);
    }

    #[test]
    fn without_an_slo_the_table_alone_says_what_may_wait() {
        let (wait, now) = after(&[30.0; 3]);
        assert_eq!(wait.stretch(at(now), Duration::ZERO, false), 1.0);
    }
}
