//! `kill -9` of the controller at random moments, while a node follows it and serves.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;
use tidegate::wire::Held;

use crate::daemon::{Place, accept, files, long, nothing_lost, within_a_step};
use crate::support::node::Upstream;
use crate::support::{call, nobody, until};

const SEED: u64 = 7;
/// Between two requests.
const TRICKLE: Duration = Duration::from_millis(20);

/// A request after the other until told to stop; what was not answered well, and how many were.
async fn trickle(proxy: SocketAddr, stop: Arc<AtomicBool>, served: Arc<AtomicU64>) -> Vec<String> {
    let mut failed = Vec::new();
    for turn in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let stream = turn.is_multiple_of(2);
        let body = json!({
            "model": "m", "stream": stream, "max_tokens": 20,
            "messages": [{"role": "user", "content": "Hi, how are you today?"}],
        });
        let headers = [("authorization", "Bearer canary-key"), ("content-type", "application/json")];
        let body = body.to_string();
        let answer = call(proxy, "POST /v1/chat/completions", &headers, body.as_bytes()).await;
        let text = answer.text();
        let whole = if stream { text.contains("data: [DONE]") } else { text.contains("Hello there") };
        if answer.status == 200 && whole {
            served.fetch_add(1, Ordering::Relaxed);
        } else {
            failed.push(format!("request {turn}: {} {text}", answer.status));
        }
        tokio::time::sleep(TRICKLE).await;
    }
    failed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d01_d07_d10_kills_at_random_moments_tear_nothing_lose_nothing_and_no_request_notices() {
    let kills = if long() { 500 } else { 30 };
    let place = Place::new().await;
    let listen = nobody().await.to_string();
    let mut daemon = place.begin().listen(&listen).start().unwrap();
    let upstream = Upstream::start().await;
    let node = place.begin_node(daemon.addr, &upstream).start().unwrap();
    until("the node's first table", async || node.holds().await).await;
    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let requests = tokio::spawn(trickle(node.addr, Arc::clone(&stop), Arc::clone(&served)));

    let mut held: Option<Held> = None;
    let mut random = SEED;
    let mut followed = std::collections::BTreeSet::new();
    for kill in 0..kills {
        let when = format!("seed {SEED}, kill {kill}");
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let moment = Duration::from_micros((random >> 33) % 550_000);
        if kill % 3 == 2 {
            // Before or just after its first turn.
            tokio::time::sleep(moment / 20).await;
        } else {
            let first = daemon.table().await;
            within_a_step(held.as_ref(), &first, &when);
            accept(&mut held, first, &format!("{when}, served"));
            tokio::time::sleep(moment).await;
        }
        daemon.kill();
        let on_disk = place.on_disk().expect("a table on disk");
        let on_node = node.holds().await.unwrap();
        assert!(
            on_disk.stamp >= on_node,
            "{when}: the node holds {on_node:?}, on disk is {:?}",
            on_disk.stamp
        );
        followed.insert(on_node);
        nothing_lost(&place, &mut held, &when);
        daemon = place.begin().listen(&listen).start().unwrap();
    }
    assert!(files(&place) <= 10, "{} files are left", files(&place));

    // The node is still there, and follows whoever came last.
    let last = daemon.table().await.stamp;
    until("the node to follow", async || (node.holds().await? >= last).then_some(())).await;
    stop.store(true, Ordering::Relaxed);
    let failed = requests.await.unwrap();
    let served = served.load(Ordering::Relaxed);
    println!("{kills} kills: {served} requests served, {} tables followed", followed.len());
    assert!(failed.is_empty(), "{} of {served} requests failed, first {:?}", failed.len(), failed.first());
    assert!(served > 100, "only {served} requests in all: nobody watched");
}
