//! The record of runs: who ended badly under which policy, and the epoch kept for tables that
//! cannot be stored.
//!
//! A policy under which three runs end badly within a minute is not started a fourth time: that
//! would be a loop of crashes until somebody wakes up. Time is the journal's clock, which stands
//! still between two runs; a wall clock may jump.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::bounds::RUNS_BYTES_MAX;
use crate::bounds::UNCLEAN_RUNS_MAX;
use crate::bounds::UNCLEAN_RUNS_WITHIN;
use crate::publish::file::{Access, read_bounded, write_atomic};
use crate::unit::Instant;

/// Name of the record in a state directory.
pub const RUNS_FILE: &str = "runs.json";

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runs {
    /// Who holds the state directory; none after a clean end.
    current: Option<Run>,
    /// Bad ends, the latest last; a clean one forgets them.
    unclean: Vec<Run>,
    /// Digest of the policy that is not started again.
    quarantined: Option<String>,
    /// No stored table has this epoch or a later one, and no other run announces under it.
    spare_epoch: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Run {
    policy: String,
    began: Instant,
}

/// What the record says to a run that begins.
#[derive(Debug)]
pub struct Opened {
    pub runs: Runs,
    /// The last run may have announced tables that it could not store.
    pub unclean: bool,
}

// === impl Runs ===

impl Runs {
    /// Reads the record at the start of a run. `now` is where the last run's clock had come.
    pub fn open(dir: &Path, now: Instant) -> Opened {
        let path = dir.join(RUNS_FILE);
        let read = read_bounded(&path, RUNS_BYTES_MAX)
            .and_then(|bytes| Ok(bytes.map(|bytes| serde_json::from_slice::<Runs>(&bytes)).transpose()?));
        match read {
            Ok(Some(runs)) => runs.opened(now),
            Ok(None) => Opened { runs: Runs::default(), unclean: false },
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the record of runs is set aside");
                Opened { runs: Runs::default(), unclean: true }
            }
        }
    }

    fn opened(mut self, now: Instant) -> Opened {
        let ended = self.current.take();
        let unclean = ended.is_some();
        self.unclean.extend(ended);
        let surplus = self.unclean.len().saturating_sub(UNCLEAN_RUNS_MAX);
        self.unclean.drain(..surplus);
        if let Some(first) = self.unclean.first()
            && self.unclean.len() == UNCLEAN_RUNS_MAX
            && self.unclean.iter().all(|run| run.policy == first.policy)
            && now.since(first.began) <= UNCLEAN_RUNS_WITHIN
        {
            self.quarantined = Some(first.policy.clone());
        }
        Opened { runs: self, unclean }
    }

    /// Digest of the policy that may not be started.
    pub fn quarantined(&self) -> Option<&str> {
        self.quarantined.as_deref()
    }

    /// Begins a run. The result is the epoch it goes on with: after a bad end one above whatever
    /// the last run may have announced without storing it.
    #[must_use]
    pub fn begin(&mut self, policy: &str, now: Instant, epoch: u64, unclean: bool) -> u64 {
        let epoch =
            if unclean { epoch.saturating_add(1).max(self.spare_epoch).saturating_add(1) } else { epoch };
        self.current = Some(Run { policy: policy.to_owned(), began: now });
        self.keep_spare(epoch);
        epoch
    }

    /// Another policy is in force: what ends badly from here on is its doing.
    pub fn under(&mut self, policy: &str, now: Instant) {
        if self.current.as_ref().is_some_and(|run| run.policy != policy) {
            self.current = Some(Run { policy: policy.to_owned(), began: now });
        }
    }

    /// A clean end.
    pub fn end(&mut self) {
        self.current = None;
        self.unclean.clear();
    }

    /// Keeps an epoch above the one in use.
    pub fn keep_spare(&mut self, in_use: u64) {
        if self.spare_epoch <= in_use {
            self.spare_epoch = in_use.saturating_add(1);
        }
    }

    pub fn spare_epoch(&self) -> u64 {
        self.spare_epoch
    }

    /// Durable when it returns.
    ///
    /// # Errors
    /// With the path.
    pub fn save(&self, dir: &Path) -> std::io::Result<()> {
        write_atomic(dir, RUNS_FILE, &serde_json::to_vec(self)?, Access::Everyone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant(seconds * 1_000_000_000)
    }

    /// One run after the other, each ending badly after `lived` seconds.
    fn crashes(policies: &[&str], lived: u64) -> Runs {
        let mut runs = Runs::default();
        let mut now = 0;
        for policy in policies {
            let _ = runs.begin(policy, at(now), 1, false);
            now += lived;
            runs = runs.opened(at(now)).runs;
        }
        runs
    }

    #[test]
    fn c13_three_bad_ends_within_a_minute_under_one_policy_quarantine_it() {
        assert_eq!(crashes(&["a", "a"], 1).quarantined(), None);
        assert_eq!(crashes(&["a", "a", "a"], 1).quarantined(), Some("a"));
        assert_eq!(crashes(&["b", "a", "a", "a"], 20).quarantined(), Some("a"));
        assert_eq!(crashes(&["a", "b", "a"], 1).quarantined(), None);
        assert_eq!(crashes(&["a", "a", "a"], 21).quarantined(), None);
    }

    #[test]
    fn c13_a_clean_end_does_not_count_and_forgets() {
        let mut runs = crashes(&["a", "a"], 1);
        let _ = runs.begin("a", at(3), 1, true);
        runs.end();
        let Opened { mut runs, unclean } = runs.opened(at(4));
        assert!(!unclean);
        let _ = runs.begin("a", at(4), 1, false);
        assert_eq!(runs.opened(at(5)).runs.quarantined(), None);
    }

    #[test]
    fn the_blame_moves_with_the_policy() {
        let mut runs = Runs::default();
        for _ in 0..3 {
            let _ = runs.begin("good", at(0), 1, false);
            runs.under("poison", at(1));
            runs = runs.opened(at(2)).runs;
        }
        assert_eq!(runs.quarantined(), Some("poison"));
    }

    #[test]
    fn d12_after_a_bad_end_the_epoch_is_above_any_that_may_have_been_announced() {
        let mut runs = Runs::default();
        assert_eq!(runs.begin("a", at(0), 4, false), 4);
        assert_eq!(runs.spare_epoch(), 5);
        // It announces under 5, and dies; on disk is 4.
        let Opened { mut runs, unclean } = runs.opened(at(1));
        let epoch = runs.begin("a", at(1), 4, unclean);
        assert!(epoch > 5 && runs.spare_epoch() > epoch);
        // The record is lost: the spare epoch was one above the stored one.
        assert!(Runs::default().begin("a", at(1), 4, true) > 5);
        // A clean end stores everything.
        runs.end();
        let Opened { mut runs, unclean } = runs.opened(at(2));
        assert_eq!(runs.begin("a", at(2), epoch, unclean), epoch);
    }

    #[test]
    fn d12_a_damaged_record_counts_as_a_bad_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut runs = Runs::default();
        assert_eq!(runs.begin("a", at(0), 1, false), 1);
        runs.save(dir.path()).unwrap();
        assert_eq!(Runs::open(dir.path(), at(0)).runs.spare_epoch(), 2);
        let path = dir.path().join(RUNS_FILE);
        let bytes = std::fs::read(&path).unwrap();
        for cut in 0..bytes.len() {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            assert!(Runs::open(dir.path(), at(0)).unclean, "cut at {cut}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(!Runs::open(dir.path(), at(0)).unclean);
    }
}
