//! How often each source may come without a valid key before its connections are closed on it.
//!
//! A key that is not known leaves no trace of its own: sources share a table of fixed size. Two
//! that fall into one cell share its count, which costs a stranger its connection and a holder of
//! a key nothing, since nobody asks here about a request whose key is known.

use core::net::IpAddr;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use crate::bounds::STRANGER_ATTEMPTS_MAX;
use crate::bounds::STRANGER_CELLS;
use crate::bounds::STRANGER_PAUSE;
use crate::unit::Instant;

pub struct Strangers {
    /// When the attempts of a cell will have been forgotten.
    cells: Vec<Instant>,
    /// Unpredictable, so that nobody picks whom to share a cell with.
    hash: RandomState,
}

// === impl Strangers ===

impl Strangers {
    pub fn new() -> Strangers {
        Strangers { cells: vec![Instant::ZERO; STRANGER_CELLS], hash: RandomState::new() }
    }

    /// Counts an attempt; whether the source may keep its connection.
    pub fn attempt(&mut self, source: IpAddr, now: Instant) -> bool {
        let at = self.hash.hash_one(network(source)) % (STRANGER_CELLS as u64);
        let Some(cell) = usize::try_from(at).ok().and_then(|at| self.cells.get_mut(at)) else {
            return false;
        };
        let most: Duration = STRANGER_PAUSE * STRANGER_ATTEMPTS_MAX;
        if cell.since(now) + STRANGER_PAUSE > most {
            return false;
        }
        *cell = (*cell).max(now) + STRANGER_PAUSE;
        true
    }
}

/// One host owns as many addresses of IPv6 as it likes, all in one network.
fn network(source: IpAddr) -> u128 {
    match source.to_canonical() {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address) >> 64 << 64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i01_a_source_has_its_attempts_and_gets_them_back_with_time() {
        let mut strangers = Strangers::new();
        let (mut now, source) = (Instant(1 << 60), IpAddr::from([10, 0, 0, 1]));
        let burst = |strangers: &mut Strangers, now| {
            (0..10_000).take_while(|_| strangers.attempt(source, now)).count()
        };
        assert_eq!(burst(&mut strangers, now), STRANGER_ATTEMPTS_MAX as usize);
        now = now + 3 * STRANGER_PAUSE;
        assert_eq!(burst(&mut strangers, now), 3);
        now = now + Duration::from_secs(86_400);
        assert_eq!(burst(&mut strangers, now), STRANGER_ATTEMPTS_MAX as usize);
    }

    #[test]
    fn i01_millions_of_sources_take_no_more_room_than_one() {
        let mut strangers = Strangers::new();
        let size = strangers.cells.capacity();
        for source in 0..200_000_u128 {
            strangers.attempt(IpAddr::from((source << 64).to_be_bytes()), Instant(1 << 60));
        }
        assert_eq!(strangers.cells.capacity(), size);
        // All addresses of one network are one source.
        let mut strangers = Strangers::new();
        let one = (0..10_000_u128).filter(|at| strangers.attempt(IpAddr::from(at.to_be_bytes()), Instant(1)));
        assert_eq!(one.count(), STRANGER_ATTEMPTS_MAX as usize);
    }
}
