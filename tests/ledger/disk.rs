//! A disk that is full, a file that must not grow without end, memory for fewer accounts than
//! there are.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tidegate::ledger::{Refused, State};

use crate::desk::{holders, open, open_with, reserve, spend, spent};
use crate::{PATIENCE, long};

struct Mounted<'a>(&'a Path);

impl Mounted<'_> {
    fn tmpfs(at: &Path) -> Option<Mounted<'_>> {
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"]).arg(at).status();
        if status.is_ok_and(|status| status.success()) {
            return Some(Mounted(at));
        }
        eprintln!("NOT TESTED: a file system cannot be mounted here; run as root");
        None
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn j03_a_full_disk_closes_hard_budgets_and_nothing_is_lost_when_there_is_room_again() {
    let dir = tempfile::tempdir().unwrap();
    let Some(_mounted) = Mounted::tmpfs(dir.path()) else { return };
    let ledger = open(dir.path());
    assert_eq!(*ledger.state(), State::Open);
    spend(&ledger, 1, 2, 10);
    until("the first commit", || ledger.waiting() == 0);
    // What is in flight when the disk fills is settled all the same.
    let _pinned = ledger.pin_now(holders(3, 4)).unwrap();
    let in_flight = reserve(&ledger, 3, 4, 100, 1_000).unwrap();
    let ballast = dir.path().join("ballast");
    let _ = Command::new("dd")
        .args(["if=/dev/zero", "bs=4k", &format!("of={}", ballast.display())])
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    let mut settled = 0;
    until("the alarm", || {
        if *ledger.state() == State::Open {
            let Ok(_pinned) = ledger.pin_now(holders(5, 6)) else { return false };
            let Ok(reserved) = reserve(&ledger, 5, 6, 1, 1 << 30) else { return false };
            ledger.settle(reserved, tidegate::ledger::Amount { tokens: 1, micros: 1 });
            settled += 1;
        }
        matches!(&*ledger.state(), State::Failing(_))
    });
    assert!(matches!(reserve(&ledger, 3, 4, 1, 1_000), Err(Refused::Closed(_))));
    let sent = ledger.settle(in_flight, tidegate::ledger::Amount { tokens: 1, micros: 77 });
    fs::remove_file(&ballast).unwrap();
    until("room", || *ledger.state() == State::Open);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(ledger.settled(sent)).unwrap();
    reserve(&ledger, 3, 4, 1, 1_000).map(|_| ()).unwrap();
    ledger.stop();
    let ledger = open(dir.path());
    assert_eq!(spent(&ledger, 1, 2), (10, 10));
    // The last reservation was in flight at the end: as reserved.
    assert_eq!(spent(&ledger, 3, 4), (78, 78));
    assert_eq!(spent(&ledger, 5, 6), (settled, settled));
    assert!(settled >= 1);
}

/// Enough to write records out and to empty the journal several times, with memory for few.
#[test]
fn accounts_beyond_memory_are_read_back_and_the_file_does_not_grow_without_end() {
    let rounds: u64 = if long() { 40 } else { 8 };
    let dir = tempfile::tempdir().unwrap();
    let ledger = open_with(dir.path(), 2_000);
    let mut sizes = Vec::new();
    let mut refused = 0_u64;
    for round in 0..rounds {
        // Four entries a request.
        for request in 0..20_000_u64 {
            let (account, key) = (request % 1_500, request % 1_500 + 10_000);
            let spent = || {
                let _pinned = ledger.pin_now(holders(account, key)).ok()?;
                let reserved = reserve(&ledger, account, key, 1, u64::MAX >> 20).ok()?;
                Some(ledger.settle(reserved, tidegate::ledger::Amount { tokens: 1, micros: 1 }))
            };
            // Too many that are not written yet: it says so, and lets nothing pass.
            until("room in memory", || {
                let done = spent().is_some();
                refused += u64::from(!done);
                done
            });
        }
        until("the disk", || ledger.waiting() == 0);
        assert!(ledger.records() <= 2_100, "{}", ledger.records());
        sizes.push(fs::metadata(dir.path().join("ledger.redb")).unwrap().len());
        println!("round {round}: {} bytes, {refused} refused", sizes.last().unwrap());
    }
    let commits = ledger.counts().commits.load(Ordering::Relaxed);
    let entries = ledger.counts().entries.load(Ordering::Relaxed);
    println!("{entries} entries in {commits} commits");
    let (half, end) = (sizes[sizes.len() / 2], *sizes.last().unwrap());
    assert!(end <= half * 2 && end < 128 << 20, "{sizes:?}");
    ledger.stop();
    let ledger = open_with(dir.path(), 2_000);
    for account in [0, 1, 499, 500, 1_499] {
        let times = (0..20_000_u64).filter(|request| request % 1_500 == account).count() as u64;
        assert_eq!(spent(&ledger, account, account + 10_000), (times * rounds, times * rounds));
    }
    spend(&ledger, 1, 1, 1);
}
