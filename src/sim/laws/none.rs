//! No limit at all: what every other law must be better than.

use std::time::Duration;

use crate::sim::law::Ask;
use crate::sim::law::End;
use crate::sim::law::Law;
use crate::sim::law::Seen;
use crate::unit::Instant;

#[derive(Clone, Copy, Debug)]
pub struct Nothing;

// === impl Nothing ===

impl Law for Nothing {
    fn tick(&mut self, _now: Instant, _seen: &Seen<'_>) {}

    fn admit(&mut self, _now: Instant, _node: usize, _ask: &Ask) -> bool {
        true
    }

    fn first_token(&mut self, _now: Instant, _node: usize, _id: u64, _ttft: Duration) {}

    fn done(&mut self, _now: Instant, _node: usize, _ask: &Ask, _end: &End) {}

    fn budget(&self) -> Option<f64> {
        None
    }
}
