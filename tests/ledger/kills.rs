//! Kill -9 at any instant: a child settles and says what was acknowledged; whoever comes after it
//! finds that to the unit, and nothing twice.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidegate::ledger::Amount;

use crate::desk::{holders, open_with, reserve, spent};
use crate::{PATIENCE, long};

/// Tells the child what to do: `settle` or `hold`, a directory, a first request.
const CHILD: &str = "TIDEGATE_LEDGER_CHILD";
const ACCOUNTS: u64 = 40;
const MOST: u64 = 1_000_000;

/// What a request reserves, and what it uses: neither is another one's.
fn amounts(request: u64) -> (u64, u64) {
    let reserved = 2 + request.wrapping_mul(2_654_435_761) % 1_000;
    (reserved, 1 + request.wrapping_mul(40_503) % (reserved - 1))
}

/// Not a test of its own: the process that the others kill.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Ok(words) = std::env::var(CHILD) else { return };
    let mut words = words.split(' ');
    let mut next = || words.next().unwrap().to_owned();
    let (mode, dir, first) = (next(), next(), next().parse::<u64>().unwrap());
    // So few that some are always being written out beside the entries: a kill hits that, too.
    let ledger = open_with(Path::new(&dir), if mode == "hold" { 4_000 } else { 400 });
    if mode == "hold" {
        let mut held = Vec::new();
        for request in first..first + 1_000 {
            let pinned = ledger.pin_now(holders(request % ACCOUNTS, request)).unwrap();
            held.push((
                pinned,
                reserve(&ledger, request % ACCOUNTS, request, amounts(request).0, MOST).unwrap(),
            ));
        }
        // A settle behind them is on disk: so are they.
        let _pinned = ledger.pin_now(holders(77, 77)).unwrap();
        let last = reserve(&ledger, 77, 77, 1, MOST).unwrap();
        ledger.settled(ledger.settle(last, Amount { tokens: 1, micros: 1 })).await.unwrap();
        say("held");
        std::future::pending::<()>().await;
    }
    let number = Arc::new(AtomicU64::new(first));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..24 {
        let (ledger, number) = (Arc::clone(&ledger), Arc::clone(&number));
        tasks.spawn(async move {
            loop {
                let request = number.fetch_add(1, Ordering::Relaxed);
                let account = request % ACCOUNTS;
                let _pinned = ledger.pin(holders(account, request)).await.unwrap();
                let (most, used) = amounts(request);
                say(&format!("began {request}"));
                let reserved = reserve(&ledger, account, request, most, u64::MAX >> 20).unwrap();
                tokio::task::yield_now().await;
                let sent = ledger.settle(reserved, Amount { tokens: 1, micros: used });
                ledger.settled(sent).await.unwrap();
                say(&format!("acknowledged {request}"));
            }
        });
    }
    tasks.join_all().await;
}

/// One write, so that no line is half there.
fn say(line: &str) {
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
}

fn start(mode: &str, dir: &Path, first: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kills::child", "--nocapture"])
        .env(CHILD, format!("{mode} {} {first}", dir.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Kills it `after` so many acknowledgements and a moment; what it said: acknowledged or not.
fn killed(mut child: Child, after: usize, moment: Duration) -> BTreeMap<u64, bool> {
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut said = BTreeMap::new();
    let mut acknowledged = 0;
    let mut dead = false;
    for line in lines.map_while(Result::ok) {
        let Some((word, request)) = line.split_once(' ') else { continue };
        let Ok(request) = request.parse::<u64>() else { panic!("{line}") };
        said.insert(request, word == "acknowledged");
        acknowledged += usize::from(word == "acknowledged");
        if acknowledged >= after && !dead {
            std::thread::sleep(moment);
            // SIGKILL.
            child.kill().unwrap();
            dead = true;
        }
    }
    child.wait().unwrap();
    said
}

#[test]
fn j01_an_acknowledged_settle_survives_kill_9_at_any_instant_to_the_unit_and_once() {
    let goal = if long() { 100_000 } else { 10_000 };
    let dir = tempfile::tempdir().unwrap();
    let (mut acknowledged, mut open, mut lives) = (0, 0, 0);
    let mut first = 0;
    let mut known: BTreeMap<u64, u64> = BTreeMap::new();
    let mut accounts: BTreeMap<u64, u64> = BTreeMap::new();
    while acknowledged < goal {
        lives += 1;
        // Now and then in the middle of a start, or of the recovery of the one before.
        let after = if lives % 5 == 0 { 0 } else { 1 + (lives * 397) % 1_500 };
        let moment = Duration::from_micros((lives as u64 * 7_919) % 9_000);
        let said = match after {
            0 => {
                let mut child = start("settle", dir.path(), first);
                std::thread::sleep(moment * 3);
                child.kill().unwrap();
                killed(child, usize::MAX, moment)
            }
            _ => killed(start("settle", dir.path(), first), after, moment),
        };
        let ledger = open_with(dir.path(), 200);
        for (request, acknowledged) in &said {
            let (most, used) = amounts(*request);
            let (_, found) = spent(&ledger, request % ACCOUNTS, *request);
            match acknowledged {
                true => assert_eq!(found, used, "life {lives}: request {request} was acknowledged"),
                // Never written, written, or only its reservation was.
                false => assert!([0, used, most].contains(&found), "life {lives}: {request}: {found}"),
            }
            known.insert(*request, found);
            *accounts.entry(request % ACCOUNTS).or_default() += found;
            open += u64::from(!acknowledged);
        }
        // An account's sum is that of its keys, always.
        for (account, sum) in &accounts {
            assert_eq!(spent(&ledger, *account, 0).0, *sum, "life {lives}: account {account}");
        }
        acknowledged += said.values().filter(|acknowledged| **acknowledged).count();
        first = said.keys().last().map_or(first, |last| last + 1);
        ledger.stop();
    }
    // What was right once is right at the end.
    let ledger = open_with(dir.path(), 200);
    for (request, expected) in known.iter().step_by(if long() { 1 } else { 7 }) {
        assert_eq!(spent(&ledger, request % ACCOUNTS, *request).1, *expected, "request {request}");
    }
    assert!(lives >= 5 && open > 0, "{lives} lives, {open} without an acknowledgement");
    println!("{acknowledged} settles acknowledged over {lives} kills; {open} were under way");
}

#[test]
fn h04_a_thousand_in_flight_at_a_kill_are_settled_as_reserved_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = start("hold", dir.path(), 0);
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let begun = std::time::Instant::now();
    while lines.next().unwrap().unwrap() != "held" {
        assert!(begun.elapsed() < PATIENCE);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    for life in 0..3 {
        let ledger = open_with(dir.path(), 200);
        let recovered = ledger.counts().recovered.load(Ordering::Relaxed);
        assert_eq!(recovered, if life == 0 { 1_000 } else { 0 });
        let mut accounts: BTreeMap<u64, u64> = BTreeMap::new();
        for request in 0..1_000 {
            let (most, _) = amounts(request);
            assert_eq!(spent(&ledger, request % ACCOUNTS, request).1, most, "life {life}: {request}");
            *accounts.entry(request % ACCOUNTS).or_default() += most;
        }
        for (account, sum) in accounts {
            assert_eq!(spent(&ledger, account, 0).0, sum);
        }
        ledger.stop();
    }
}
