//! When a directory that somebody edits may be believed. Pure: told what was seen and read, and
//! when.
//!
//! An editor truncates before it writes, a copy over a network stops half-way, and a file that is
//! cut may still be a valid policy. So contents count once two reads of them, half a second apart,
//! are equal, and nothing looked different in between. Looks at names, sizes, times and inodes are
//! cheap and frequent; the contents are read when a look differs, and now and then in any case:
//! whatever a look cannot see is found by that.

use std::time::Duration;

use crate::bounds::UNREAD_MAX;
use crate::unit::Instant;

/// What a directory looked like: one line for every policy file.
pub type Fingerprint = Vec<(String, [i128; 5])>;

#[derive(Debug)]
pub struct Settling {
    apart: Duration,
    /// Digest of the contents that were handed on last, good or bad.
    taken: String,
    seen: Fingerprint,
    /// It looks different than when its contents were read.
    moved: bool,
    /// The first of two reads.
    first: Option<(Instant, String)>,
    read_at: Instant,
}

/// What to do with contents that were just read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They have to be read once more.
    Wait,
    /// They are what was taken before.
    Unchanged,
    /// They are to be judged.
    Take,
}

// === impl Settling ===

impl Settling {
    /// After contents of this digest were taken.
    pub fn new(taken: String, seen: Fingerprint, apart: Duration, now: Instant) -> Settling {
        Settling { apart, taken, seen, moved: false, first: None, read_at: now }
    }

    /// Digest of the contents that were taken last.
    pub fn taken(&self) -> &str {
        &self.taken
    }

    /// Whether the contents are to be read now; `asked` by somebody who waits for it.
    pub fn look(&mut self, now: Instant, seen: Fingerprint, asked: bool) -> bool {
        if seen != self.seen {
            self.seen = seen;
            self.first = None;
            self.moved = true;
            // Somebody is writing: reading now would be in vain.
            return false;
        }
        match &self.first {
            Some((at, _)) => now.since(*at) >= self.apart,
            None => self.moved || asked || now.since(self.read_at) >= UNREAD_MAX,
        }
    }

    /// Says what becomes of contents, by their digest.
    pub fn read(&mut self, now: Instant, contents: String) -> Verdict {
        self.moved = false;
        self.read_at = now;
        match self.first.take() {
            Some((at, first)) if first == contents && now.since(at) >= self.apart => {
                self.taken = contents;
                Verdict::Take
            }
            _ if contents == self.taken => Verdict::Unchanged,
            Some((at, first)) if first == contents => {
                self.first = Some((at, first));
                Verdict::Wait
            }
            _ => {
                self.first = Some((now, contents));
                Verdict::Wait
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bounds::SETTLED_AFTER;

    /// A directory of one file on a disk whose looks may lie.
    struct Disk {
        settling: Settling,
        contents: String,
        seen: i128,
        now: u64,
        taken: Vec<(u64, String)>,
        reads: usize,
    }

    impl Disk {
        fn new(contents: &str) -> Disk {
            let seen = vec![("a.yaml".to_owned(), [0; 5])];
            let settling = Settling::new(contents.to_owned(), seen, SETTLED_AFTER, Instant(0));
            let contents = contents.to_owned();
            Disk { settling, contents, seen: 0, now: 0, taken: Vec::new(), reads: 0 }
        }

        fn write(&mut self, contents: &str) {
            self.contents = contents.to_owned();
            self.seen += 1;
        }

        /// A look every 125 ms.
        fn wait(&mut self, millis: u64) {
            for _ in 0..millis.div_ceil(125) {
                self.now += 125;
                let now = Instant(self.now * 1_000_000);
                let seen = vec![("a.yaml".to_owned(), [self.seen; 5])];
                if self.settling.look(now, seen, false) {
                    self.reads += 1;
                    if self.settling.read(now, self.contents.clone()) == Verdict::Take {
                        self.taken.push((self.now, self.contents.clone()));
                    }
                }
            }
        }
    }

    #[test]
    fn an_edit_is_taken_once_two_reads_agree_and_once_only() {
        let mut disk = Disk::new("old");
        disk.wait(4_000);
        disk.write("");
        disk.wait(250);
        disk.write("new");
        let edited = disk.now;
        disk.wait(20_000);
        assert_eq!(disk.taken.len(), 1);
        let (at, contents) = &disk.taken[0];
        assert_eq!(contents, "new");
        assert!((500..=1_000).contains(&(at - edited)), "after {} ms", at - edited);
        // Quiet: two reads for the edit, and the backstop's.
        assert!(disk.reads <= 7, "{}", disk.reads);
    }

    #[test]
    fn an_edit_that_is_taken_back_is_none() {
        let mut disk = Disk::new("old");
        disk.write("new");
        disk.wait(375);
        disk.write("old");
        disk.wait(9_000);
        assert!(disk.taken.is_empty());
    }

    #[test]
    fn c06_no_prefix_of_any_file_is_taken_while_it_is_written_slowly() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/policies");
        for entry in std::fs::read_dir(dir).unwrap() {
            let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
            for step in [1, 7, 512] {
                let mut disk = Disk::new("old");
                for end in (0..=text.len()).step_by(step).filter(|end| text.is_char_boundary(*end)) {
                    disk.write(&text[..end]);
                    disk.wait(375);
                }
                disk.write(&text);
                assert!(disk.taken.is_empty(), "{:?}", disk.taken);
                disk.wait(2_000);
                assert_eq!(disk.taken.len(), 1);
                assert_eq!(disk.taken[0].1, text);
            }
        }
    }

    #[test]
    fn c11_a_hundred_edits_a_second_are_neither_read_nor_taken_before_they_end() {
        let mut disk = Disk::new("old");
        for edit in 0..480 {
            disk.write(&format!("{edit}"));
            disk.wait(125);
        }
        assert_eq!((disk.reads, disk.taken.len()), (0, 0));
        disk.wait(2_000);
        assert_eq!(disk.taken.len(), 1);
    }

    #[test]
    fn c14_what_no_look_can_see_is_found_within_five_seconds_and_a_half() {
        let mut disk = Disk::new("old");
        disk.contents = "new".to_owned();
        disk.wait(5_750);
        assert_eq!(disk.taken.len(), 1);
        // Two readings that differ although nothing looks different are no pair.
        disk.contents = "half".to_owned();
        disk.wait(5_125);
        disk.contents = "whole".to_owned();
        disk.wait(500);
        assert_eq!(disk.taken.len(), 1);
        disk.wait(500);
        assert_eq!(disk.taken[1].1, "whole");
    }

    #[test]
    fn whoever_asks_is_answered_at_once_when_nothing_changed_and_after_two_reads_else() {
        let seen = || vec![("a.yaml".to_owned(), [0; 5])];
        let mut settling = Settling::new("old".to_owned(), seen(), SETTLED_AFTER, Instant(0));
        let at = |millis: u64| Instant(millis * 1_000_000);
        assert!(!settling.look(at(100), seen(), false));
        assert!(settling.look(at(100), seen(), true));
        assert_eq!(settling.read(at(100), "old".to_owned()), Verdict::Unchanged);
        assert!(settling.look(at(200), seen(), true));
        assert_eq!(settling.read(at(200), "new".to_owned()), Verdict::Wait);
        assert!(!settling.look(at(600), seen(), true));
        assert!(settling.look(at(700), seen(), true));
        assert_eq!(settling.read(at(700), "new".to_owned()), Verdict::Take);
        assert_eq!(settling.taken(), "new");
    }
}
