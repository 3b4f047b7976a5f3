//! A real Prometheus as the source: its dialect, its sample times, its `up`.
//!
//! Needs the program `prometheus` (Debian's package of that name) in the path, or its place in
//! `TIDEGATE_PROMETHEUS`. Without it the test says so, and fails where peers are required.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::prometheus::Prometheus;
use crate::support::{Manner, policy, serve, until};
use tidegate::observe::sources::Sources;
use tidegate::observe::{Outcome, PoolRound, Reading};
use tidegate::policy::{Policy, SourcePolicy};
use tidegate::unit::{self, SystemClock};

async fn round(sources: &mut Sources) -> PoolRound {
    sources.observe_round().await.remove("gpu").unwrap()
}

fn reading(round: &PoolRound, replica: SocketAddr) -> Option<&Reading> {
    round.replicas.iter().find(|reading| reading.replica.as_str() == replica.to_string())
}

fn work_done(reading: &Reading) -> (unit::Instant, f64) {
    match &reading.outcome {
        Outcome::Up(signals) => (reading.at, signals.work_done.unwrap()),
        other => panic!("{other:?}"),
    }
}

fn renamed(url: &str) -> Policy {
    let source = SourcePolicy::prometheus(url);
    let mut policy = policy(source, Duration::from_secs(2), 1000, "d");
    let pool = policy.pools.get_mut("gpu").unwrap();
    // A name nobody has yet comes first; a label is asked for as PromQL does.
    pool.signals.running.insert(0, "vllm:running_as_renamed".to_owned());
    pool.signals.work_done =
        vec!["vllm:absent_total".to_owned(), "vllm:prompt_tokens_total{engine=\"0\"}".to_owned()];
    pool.signals.ready = vec!["up{job=\"fleet\"}".to_owned()];
    policy
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rates_come_from_sample_times_and_a_lost_replica_is_down() {
    let dir = tempfile::tempdir().unwrap();
    let lasting = serve(Manner::Works(Instant::now())).await;
    let dying = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dying_addr = dying.local_addr().unwrap();
    let serving = tokio::spawn(crate::support::serve_on(dying, Manner::Works(Instant::now())));
    let targets = [lasting.to_string(), dying_addr.to_string()];
    let Some(prometheus) = Prometheus::scraping(dir.path(), &targets).await else { return };
    let policy = renamed(&format!("http://{}", prometheus.addr));
    let clock = Arc::new(SystemClock::starting_at(unit::Instant(100_000_000_000)));
    let mut sources = Sources::new(clock.clone(), &policy).unwrap();

    let first = until("both replicas", async || {
        let round = round(&mut sources).await;
        let up = |addr| reading(&round, addr).is_some_and(|r| matches!(r.outcome, Outcome::Up(_)));
        (round.failed.is_none() && up(lasting) && up(dying_addr)).then_some(round)
    })
    .await;
    let mut last = work_done(reading(&first, lasting).unwrap());
    for _ in 0..4 {
        // Not a multiple of the scrape interval.
        tokio::time::sleep(Duration::from_millis(1300)).await;
        let round = round(&mut sources).await;
        assert_eq!(round.failed, None);
        let now = work_done(reading(&round, lasting).unwrap());
        let rate = (now.1 - last.1) / now.0.seconds_since(last.0);
        assert!((970.0..1030.0).contains(&rate), "{rate} from {last:?} to {now:?}");
        last = now;
        let Outcome::Up(signals) = reading(&round, lasting).unwrap().outcome else { panic!() };
        assert_eq!((signals.running, signals.waiting), (Some(3.0), Some(1.0)));
    }

    let mut unready = policy.clone();
    unready.pools.get_mut("gpu").unwrap().signals.ready.clear();
    let mut plain = Sources::new(clock, &unready).unwrap();
    assert_eq!(round(&mut plain).await.replicas.len(), 2);
    serving.abort();
    let down = until("the loss", async || {
        let round = round(&mut sources).await;
        let reading = reading(&round, dying_addr).unwrap();
        matches!(reading.outcome, Outcome::Down(_)).then(|| reading.outcome.clone())
    })
    .await;
    assert_eq!(down, Outcome::Down("ready is 0".to_owned()));

    // Without `ready`, what the server says about its own scrape is asked for.
    let down = reading(&round(&mut plain).await, dying_addr).unwrap().outcome.clone();
    assert_eq!(down, Outcome::Down("up is 0".to_owned()));

    drop(prometheus);
    // What was in flight breaks off first, in ways of its own.
    until("the server's loss", async || {
        round(&mut sources).await.failed.filter(|lost| lost.contains("connection refused"))
    })
    .await;
}
