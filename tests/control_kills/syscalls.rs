//! `kill -9` at every system call that the controller makes on its state directory.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tidegate::wire::Held;

use crate::daemon::{Place, accept, files, long, nothing_lost, try_table, within_a_step};

/// What the first two turns of a controller call, and how often: the journal's beginning and an
/// append, two tables, the stored policy, the record of runs.
const CALLS: [(&str, usize); 6] =
    [("openat", 10), ("write", 6), ("fsync", 9), ("rename", 6), ("unlink", 4), ("fdatasync", 2)];
/// A call that is not made by then is not part of the path.
const REACHED_WITHIN: Duration = Duration::from_secs(6);

/// Everything in the state directory that the publish path touches.
pub fn paths(place: &Place) -> Vec<PathBuf> {
    std::fs::create_dir_all(place.state()).unwrap();
    let state = place.state().canonicalize().unwrap();
    let names = ["table.json", "journal.jsonl", "policy.json", "runs.json"];
    let mut paths = vec![state.clone(), state.join("journal.1.jsonl")];
    paths.extend(names.iter().flat_map(|name| [state.join(name), state.join(format!(".{name}.tmp"))]));
    paths
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d01_killed_at_every_system_call_of_the_publish_path_the_table_is_the_old_or_the_new_one() {
    let place = Place::new().await;
    let paths = paths(&place);
    let every: Vec<(&str, usize, bool)> = CALLS
        .iter()
        .flat_map(|(call, count)| (1..=*count).map(move |at| (*call, at)))
        .flat_map(|(call, at)| [(call, at, false), (call, at, true)])
        .collect();
    // Seven is prime to the number of kinds: the short form meets all of them.
    let points: Vec<_> = every.iter().step_by(if long() { 1 } else { 7 }).collect();
    let mut held: Option<Held> = None;
    let mut reached = 0;
    for (call, at, fresh) in &points {
        let when =
            format!("{call} {at}, {}", if *fresh { "a journal begun anew" } else { "the journal goes on" });
        if *fresh {
            // What is no journal is set aside: the rotation's calls are made.
            std::fs::write(place.state().join("journal.jsonl"), "damaged\n").unwrap();
        }
        let inject = format!("inject={call}:signal=SIGKILL:when={at}");
        let trace = format!("trace={call}");
        let Some((begin, _)) = place.begin().traced(&paths, &["-e", &trace, "-e", &inject]) else { return };
        // Killed before it listens is killed too.
        let Ok(mut daemon) = begin.start() else {
            nothing_lost(&place, &mut held, &when);
            reached += 1;
            continue;
        };
        let begun = Instant::now();
        let mut first = true;
        let killed = loop {
            if daemon.child.try_wait().unwrap().is_some() {
                break true;
            }
            if begun.elapsed() > REACHED_WITHIN {
                daemon.kill();
                break false;
            }
            match try_table(daemon.addr).await {
                Some(table) if held.as_ref().is_none_or(|held| held.stamp() != table.stamp) => {
                    if std::mem::take(&mut first) {
                        within_a_step(held.as_ref(), &table, &when);
                    }
                    accept(&mut held, table, &format!("{when}, served"));
                }
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        };
        reached += usize::from(killed);
        nothing_lost(&place, &mut held, &when);
    }
    println!("killed at {reached} of {} system calls", points.len());
    assert!(reached * 10 >= points.len() * 8, "only {reached} of {} calls were made", points.len());
    assert!(held.is_some(), "no table was ever announced");
    assert!(files(&place) <= 11, "{} files are left", files(&place));
    // Whatever is left, a controller goes on from it.
    let daemon = place.start();
    let first = daemon.table().await;
    accept(&mut held, first, "after all of it");
    daemon.stop();
}
