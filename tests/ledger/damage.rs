//! Damage is found and ends the use of the ledger; an older copy is found where something newer is
//! beside it. Nothing is ever skipped in silence.

use std::fs;
use std::path::Path;

use tidegate::ledger::{Amount, State};

use crate::desk::{holders, open, reserve, spend, spent};
use crate::long;

const FILE: &str = "ledger.redb";
const MARK: &str = "ledger.mark";

/// Ten accounts that spent 100 each, in ten batches and one record each; some in the journal only.
async fn made(dir: &Path) {
    let ledger = open(dir);
    for turn in 0..10 {
        for account in 0..10 {
            let sent = spend(&ledger, account, 100 + account, 9);
            if account == 9 {
                ledger.settled(sent).await.unwrap();
            }
        }
        if turn == 4 {
            ledger.stop();
            return Box::pin(rest(dir)).await;
        }
    }
}

async fn rest(dir: &Path) {
    let ledger = open(dir);
    for account in 0..10 {
        let sent = spend(&ledger, account, 100 + account, 55);
        ledger.settled(sent).await.unwrap();
    }
    ledger.stop();
}

fn all_there(dir: &Path) -> Result<(), String> {
    let ledger = open(dir);
    if let State::Closed(reason) = &*ledger.state() {
        let _pinned = ledger.pin_now(holders(1, 1)).map(|_| ()).unwrap_err();
        reserve(&ledger, 1, 1, 1, 100).unwrap_err();
        return Err(reason.clone());
    }
    for account in 0..10 {
        assert_eq!(spent(&ledger, account, 100 + account), (100, 100), "account {account}");
    }
    Ok(())
}

/// Copies of a directory, one for each mischief.
fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for name in [FILE, MARK] {
        fs::copy(from.join(name), to.path().join(name)).unwrap();
    }
    to
}

#[tokio::test]
async fn j02_a_flipped_bit_is_harmless_or_closes_the_ledger_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    made(dir.path()).await;
    let good = fs::read(dir.path().join(FILE)).unwrap();
    all_there(copy(dir.path()).path()).unwrap();
    let written: Vec<usize> = (0..good.len()).filter(|at| good[*at] != 0).collect();
    let turns = if long() { 8_000 } else { 250 };
    let (mut closed, mut harmless) = (0, 0);
    for turn in 0..turns {
        let at = written[(turn * written.len()) / turns];
        let copy = copy(dir.path());
        let mut bad = good.clone();
        bad[at] ^= 1 << (turn % 8);
        fs::write(copy.path().join(FILE), &bad).unwrap();
        match all_there(copy.path()) {
            Ok(()) => harmless += 1,
            Err(reason) => {
                closed += 1;
                assert!(reason.contains(FILE), "byte {at}: {reason}");
            }
        }
    }
    // Pages that nothing refers to any more may be anything.
    assert!(closed > turns / 20, "{closed} closed, {harmless} harmless");
    for cut in [0, 1, 100, 4_096, good.len() / 2, good.len() - 1] {
        let copy = copy(dir.path());
        fs::write(copy.path().join(FILE), &good[..cut]).unwrap();
        let reason = all_there(copy.path()).unwrap_err();
        assert!(reason.contains(FILE), "cut to {cut}: {reason}");
    }
    println!("{closed} flips closed the ledger, {harmless} lay where nothing is");
}

#[tokio::test]
async fn j06_yesterdays_copy_is_found_by_the_mark_beside_it_and_so_is_another_or_no_ledger() {
    let dir = tempfile::tempdir().unwrap();
    made(dir.path()).await;
    let yesterday = copy(dir.path());
    let ledger = open(dir.path());
    let last = spend(&ledger, 3, 103, 1);
    ledger.settled(last).await.unwrap();
    ledger.stop();
    fs::copy(yesterday.path().join(FILE), dir.path().join(FILE)).unwrap();
    let reason = all_there(dir.path()).unwrap_err();
    assert!(reason.contains("older copy") && reason.contains(MARK), "{reason}");
    // The file is gone.
    fs::remove_file(dir.path().join(FILE)).unwrap();
    let reason = all_there(dir.path()).unwrap_err();
    assert!(reason.contains("gone"), "{reason}");
    assert!(!dir.path().join(FILE).exists(), "none is made in its place");
    // Another one's.
    let other = tempfile::tempdir().unwrap();
    open(other.path()).stop();
    let mut mark = fs::read(dir.path().join(MARK)).unwrap();
    fs::copy(yesterday.path().join(FILE), dir.path().join(FILE)).unwrap();
    mark[0] ^= 1;
    let sum = crc32(&mark[..16]);
    mark[16..].copy_from_slice(&sum.to_le_bytes());
    fs::write(dir.path().join(MARK), &mark).unwrap();
    let reason = all_there(dir.path()).unwrap_err();
    assert!(reason.contains("is not the ledger"), "{reason}");
    // Whoever removes the mark takes what there is.
    fs::remove_file(dir.path().join(MARK)).unwrap();
    all_there(dir.path()).unwrap();
    // A copy of file and mark together is whole by all that is known here: see the README.
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    !crc
}

/// A crash leaves the file as it is while it is in use.
#[tokio::test]
async fn j02_a_copy_taken_in_use_is_repaired_and_a_flip_in_it_is_found() {
    let dir = tempfile::tempdir().unwrap();
    made(dir.path()).await;
    let ledger = open(dir.path());
    let reserved = {
        let _pinned = ledger.pin_now(holders(0, 100)).unwrap();
        reserve(&ledger, 0, 100, 50, 1_000).unwrap()
    };
    let sent = spend(&ledger, 55, 56, 1);
    ledger.settled(sent).await.unwrap();
    let crashed = copy(dir.path());
    ledger.settle(reserved, Amount::default());
    ledger.stop();
    let check = |dir: &Path| {
        let ledger = open(dir);
        let state = State::clone(&ledger.state());
        (state == State::Open).then(|| (spent(&ledger, 0, 100), spent(&ledger, 55, 56)))
    };
    let good = fs::read(crashed.path().join(FILE)).unwrap();
    assert_eq!(check(copy(crashed.path()).path()), Some(((150, 150), (1, 1))));
    let written: Vec<usize> = (0..good.len()).filter(|at| good[*at] != 0).collect();
    let turns = if long() { 4_000 } else { 80 };
    for turn in 0..turns {
        let at = written[(turn * written.len()) / turns];
        let copy = copy(crashed.path());
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        fs::write(copy.path().join(FILE), &bad).unwrap();
        let found = check(copy.path());
        assert!(found.is_none() || found == Some(((150, 150), (1, 1))), "byte {at}: {found:?}");
    }
}
