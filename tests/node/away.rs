//! A controller that is away, or gone without a word: the node goes on by itself, and notices.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::follow::{Controller, followed};
use crate::support::node::*;
use http::StatusCode;
use tidegate::enforce::node::Node;
use tidegate::unit::{Dimension, Limit};
use tidegate::wire::{Entry, Held};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

const RPM: Dimension = Dimension::RequestsPerMinute;

fn limit(held: &Held, rig: &Rig) -> f64 {
    let entry = held.table.rows[0].limits[&RPM];
    held.tier_limit(&entry, rig.node.cell().now()).as_f64()
}

#[tokio::test]
async fn f01_without_a_controller_limits_drift_to_safe_step_by_step_and_requests_are_decided() {
    const INTERVAL: Duration = Duration::from_millis(100);
    let drifting = |version| {
        let limit = Entry { safe: Limit::Finite(100_000), ..entry(Limit::Finite(1_000_000), M) };
        let mut table = table(version, &[(RPM, limit)]);
        (table.interval_ms, table.valid_for_ms) = (100, 1_000);
        table
    };
    let dir = tempfile::TempDir::new().unwrap();
    let mut rig = Rig::start(&table(1, &[])).await;
    let controller = Controller::start().await;
    rig.node = Node::start(followed(&controller, dir.path(), &rig.upstream), None).await.unwrap();
    controller.publish(drifting(5));
    until("version 5", || rig.node.cell().held().is_some()).await;
    let held = rig.node.cell().held().unwrap();
    let port = controller.address;
    drop(controller);
    let begun = Instant::now();
    let (mut before, mut at, mut whole) = (limit(&held, &rig), Instant::now(), 0);
    while before > 100_000.0 {
        // Decided here, whoever is away: no request waits for the network.
        let decided = rig.answer(rig.chat("", false)).await.0;
        assert!([StatusCode::OK, StatusCode::TOO_MANY_REQUESTS].contains(&decided), "{decided}");
        let (now, next) = (Instant::now(), limit(&held, &rig));
        let intervals = now.duration_since(at).as_secs_f64() / INTERVAL.as_secs_f64();
        let least = before * 0.7_f64.powf(intervals.floor() + 1.0) - 1.0;
        assert!(next <= before && next >= least, "{before} to {next} in {intervals} intervals");
        whole += usize::from(next == 1_000_000.0);
        (before, at) = (next, now);
        assert!(begun.elapsed() < PATIENCE * 3, "stays at {next}");
    }
    assert!(whole > 0, "the last table held until it expired");
    assert_eq!(before, 100_000.0);
    assert_eq!(rig.node.cell().held().unwrap().stamp().version, 5, "still the last one");
    // Back: what it says holds at once.
    let listener = TcpListener::bind(port).await.unwrap();
    let controller = Controller::on(listener);
    controller.publish(drifting(6));
    until("version 6", || rig.node.cell().held().unwrap().stamp().version == 6).await;
    assert!(limit(&rig.node.cell().held().unwrap(), &rig) > 100_000.0);
}

/// Passes bytes on; what is under way when it is told to goes silent and stays open, as if the
/// machine at the other end were gone.
async fn passing(to: SocketAddr, silenced: watch::Receiver<bool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut silenced = silenced.clone();
            let mortal = !*silenced.borrow();
            connections.spawn(async move {
                let mut far = TcpStream::connect(to).await.unwrap();
                let passing = tokio::io::copy_bidirectional(&mut near, &mut far);
                let silent = async {
                    if silenced.wait_for(|silent| *silent && mortal).await.is_ok() {
                        std::future::pending::<()>().await;
                    }
                };
                tokio::select! {
                    _ = passing => {}
                    () = silent => {}
                }
            });
        }
    });
    addr
}

#[tokio::test]
async fn f09_a_controller_that_vanished_within_a_poll_is_noticed_and_asked_anew() {
    let dir = tempfile::TempDir::new().unwrap();
    let upstream = Upstream::start().await;
    let controller = Controller::start().await;
    let (silence, silenced) = watch::channel(false);
    let between = passing(controller.address, silenced).await;
    let mut config = followed(&controller, dir.path(), &upstream);
    config.table = tidegate::enforce::config::TableSource::parse(&format!("http://{between}"));
    let node = Node::start(config, None).await.unwrap();
    controller.publish(table(1, &[]));
    until("the first table", || node.cell().held().is_some()).await;
    // The poll for the next one is under way.
    until("a poll", || controller.state.asked.lock().unwrap().len() >= 2).await;
    silence.send_replace(true);
    let begun = Instant::now();
    controller.publish(table(2, &[]));
    // Noticed within 15 s; then a pause of up to 4 s, and what this machine does beside.
    let noticed = async {
        while node.cell().held().unwrap().stamp().version < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(40), noticed).await.expect("the silence is noticed");
    println!("table 2 after {:?}", begun.elapsed());
}
