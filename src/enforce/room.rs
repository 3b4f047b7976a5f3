//! Memory that many hold together: each takes what it needs, and is told when there is none.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes left.
#[derive(Debug)]
pub struct Room(AtomicUsize);

/// One holder's part; given back when dropped.
#[derive(Debug)]
pub struct Part {
    room: Arc<Room>,
    bytes: usize,
}

// === impl Room ===

impl Room {
    pub fn new(bytes: usize) -> Arc<Room> {
        Arc::new(Room(AtomicUsize::new(bytes)))
    }

    /// A part of no bytes yet.
    pub fn part(self: &Arc<Room>) -> Part {
        Part { room: Arc::clone(self), bytes: 0 }
    }
}

// === impl Part ===

impl Part {
    /// Holds so many bytes from here on, if there are; otherwise as many as before.
    pub fn resize(&mut self, bytes: usize) -> bool {
        let left = &self.room.0;
        let taken = match bytes.checked_sub(self.bytes) {
            Some(more) => {
                let take = |left: usize| left.checked_sub(more);
                left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
            }
            None => {
                left.fetch_add(self.bytes - bytes, Ordering::Relaxed);
                true
            }
        };
        if taken {
            self.bytes = bytes;
        }
        taken
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.resize(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_given_back_and_there_is_never_more() {
        let room = Room::new(100);
        let (mut one, mut other) = (room.part(), room.part());
        assert!(one.resize(60) && !other.resize(50) && other.resize(40) && !one.resize(61));
        assert!(one.resize(10) && other.resize(90));
        drop(other);
        assert!(one.resize(100));
        drop(one);
        assert_eq!(room.0.load(Ordering::Relaxed), 100);
    }
}
