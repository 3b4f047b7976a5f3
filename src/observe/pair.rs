//! Several Prometheus servers for one pool: what they say together.
//!
//! They are replicas of each other and scrape the same targets, so a replica that two of them
//! name is one replica, read from whichever saw it last. One that is down takes nothing with it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::bounds::SOURCE_WARNINGS_MAX;
use crate::observe::{Outcome, PoolRound, Reading};
use crate::unit::{Instant, ReplicaId};

/// A sample up to this old outweighs another server's word that the replica is down: they scrape
/// at different moments, and one may have lost its own way to it.
const OUTWEIGHS: Duration = Duration::from_secs(30);

/// What one server said in this round.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    /// Names it in warnings.
    pub server: String,
    pub round: PoolRound,
    /// Whom it named before.
    pub known: Vec<ReplicaId>,
}

/// The union by replica.
pub fn together(mut said: Vec<Said>, now: Instant) -> PoolRound {
    if said.len() <= 1 {
        return said.pop().map(|said| said.round).unwrap_or_default();
    }
    let failures: Vec<String> = said
        .iter()
        .filter_map(|said| said.round.failed.as_ref().map(|reason| format!("{}: {reason}", said.server)))
        .collect();
    if failures.len() == said.len() {
        return PoolRound { failed: Some(failures.join("; ")), ..PoolRound::default() };
    }
    let mut best: BTreeMap<ReplicaId, Reading> = BTreeMap::new();
    let mut warnings = failures;
    let mut missed = Vec::new();
    for Said { server, round, known } in said {
        if round.failed.is_some() {
            missed.extend(known);
        }
        warnings.extend(round.warnings.into_iter().map(|warning| format!("{server}: {warning}")));
        for reading in round.replicas {
            match best.get(&reading.replica) {
                Some(known) if !better(&reading, known) => {}
                _ => {
                    best.insert(reading.replica.clone(), reading);
                }
            }
        }
    }
    // Nobody else may know these yet: that their only witness is down says nothing about them.
    for replica in missed {
        best.entry(replica.clone()).or_insert_with(|| {
            let outcome = Outcome::Silent("the only server that names it does not answer".to_owned());
            Reading { replica, at: now, outcome }
        });
    }
    warnings.truncate(SOURCE_WARNINGS_MAX);
    PoolRound { replicas: best.into_values().collect(), failed: None, warnings }
}

fn better(new: &Reading, known: &Reading) -> bool {
    use Outcome::{Down, Silent, Up};
    match (&new.outcome, &known.outcome) {
        (Up(_), Up(_)) => new.at > known.at,
        (Up(_), Down(_)) => known.at.since(new.at) <= OUTWEIGHS,
        (Down(_), Up(_)) => new.at.since(known.at) > OUTWEIGHS,
        (Up(_) | Down(_), Silent(_)) => true,
        (Down(_) | Silent(_), Down(_)) | (Silent(_), Up(_) | Silent(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Signals;

    const NOW: Instant = Instant(100_000_000_000);

    fn up(replica: &str, seconds_ago: u64, work: f64) -> Reading {
        let at = Instant(NOW.0 - seconds_ago * 1_000_000_000);
        let signals = Signals { work_done: Some(work), ..Signals::default() };
        Reading { replica: replica.into(), at, outcome: Outcome::Up(signals) }
    }

    fn not(replica: &str, outcome: fn(String) -> Outcome) -> Reading {
        Reading { replica: replica.into(), at: NOW, outcome: outcome("x".to_owned()) }
    }

    fn said(server: &str, replicas: Vec<Reading>) -> Said {
        let known = replicas.iter().map(|reading| reading.replica.clone()).collect();
        Said { server: server.to_owned(), round: PoolRound { replicas, ..PoolRound::default() }, known }
    }

    fn failed(server: &str, known: &[&str]) -> Said {
        let round = PoolRound { failed: Some("HTTP 500".to_owned()), ..PoolRound::default() };
        let known = known.iter().map(|replica| ReplicaId::new(*replica)).collect();
        Said { server: server.to_owned(), round, known }
    }

    #[test]
    fn a_replica_that_two_servers_name_is_one_and_as_fresh_as_the_fresher() {
        let a = said("a", vec![up("r0", 3, 10.0), up("r1", 1, 20.0)]);
        let b = said("b", vec![up("r0", 1, 12.0), up("r1", 4, 15.0), up("r2", 9, 1.0)]);
        for order in [[a.clone(), b.clone()], [b, a]] {
            let round = together(order.to_vec(), NOW);
            assert_eq!(round.replicas, [up("r0", 1, 12.0), up("r1", 1, 20.0), up("r2", 9, 1.0)]);
            assert_eq!((round.failed, round.warnings.len()), (None, 0));
        }
    }

    #[test]
    fn one_server_down_loses_nothing_and_is_told() {
        let round = together(vec![failed("a", &["r0", "r9"]), said("b", vec![up("r0", 1, 1.0)])], NOW);
        assert_eq!(round.failed, None);
        assert_eq!(round.warnings, ["a: HTTP 500"]);
        assert_eq!(round.replicas[0], up("r0", 1, 1.0));
        assert!(matches!(&round.replicas[1].outcome, Outcome::Silent(_)));
        let round = together(vec![failed("a", &["r0"]), failed("b", &[])], NOW);
        assert_eq!((round.failed.as_deref(), round.replicas.len()), (Some("a: HTTP 500; b: HTTP 500"), 0));
    }

    #[test]
    fn servers_that_disagree_are_weighed() {
        let winner = |one: Reading, other: Reading| {
            let orders = [(one.clone(), other.clone()), (other, one)];
            let won = orders.map(|(a, b)| {
                let round = together(vec![said("a", vec![a]), said("b", vec![b])], NOW);
                assert_eq!(round.replicas.len(), 1);
                round.replicas[0].outcome.clone()
            });
            assert_eq!(won[0], won[1], "the order of the servers decides");
            won[0].clone()
        };
        assert!(matches!(winner(up("r", 20, 1.0), not("r", Outcome::Down)), Outcome::Up(_)));
        assert!(matches!(winner(up("r", 60, 1.0), not("r", Outcome::Down)), Outcome::Down(_)));
        assert!(matches!(winner(up("r", 60, 1.0), not("r", Outcome::Silent)), Outcome::Up(_)));
        assert!(matches!(winner(not("r", Outcome::Down), not("r", Outcome::Silent)), Outcome::Down(_)));
    }

    #[test]
    fn a_server_alone_speaks_for_itself() {
        let alone = failed("a", &["r0"]);
        assert_eq!(together(vec![alone.clone()], NOW), alone.round);
        assert_eq!(together(Vec::new(), NOW), PoolRound::default());
    }
}
