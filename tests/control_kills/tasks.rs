//! A task that breaks is begun anew or takes its process with it; a policy that breaks the loop is
//! set aside. Failures come from `TIDEGATE_FAILPOINT`, which a build with debug assertions obeys.

use std::time::Duration;

use tidegate::policy::load::load;

use crate::daemon::{Place, table};
use crate::support::node::{KEY, Upstream};
use crate::support::{LONG, call, get, until};

const FAILPOINT: &str = "TIDEGATE_FAILPOINT";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d09_a_panic_in_a_task_of_the_controller_ends_the_process_and_says_so() {
    for task in ["tick", "reload", "accept", "disk"] {
        let place = Place::new().await;
        let begin = place.begin().env(FAILPOINT, &format!("{task}=panic"));
        let said = match begin.start() {
            Err(said) => said,
            Ok(mut daemon) => {
                let status = daemon.ended(LONG);
                assert_eq!(status.code(), Some(1), "{task}");
                std::thread::sleep(Duration::from_millis(50));
                daemon.said()
            }
        };
        assert!(said.contains(&format!("failpoint {task}")), "{task}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d09_a_panic_in_a_task_of_the_node_begins_it_anew_or_ends_the_process() {
    let place = Place::new().await;
    let daemon = place.start();
    daemon.table().await;
    let upstream = Upstream::start().await;
    for task in ["table", "keys", "report"] {
        let begin = place.begin_node(daemon.addr, &upstream).env(FAILPOINT, &format!("{task}=panic-once"));
        let node = begin.start().unwrap();
        until("a panic counted", async || {
            (node.metric("tidegate_enforce_panics_total").await == 1.0).then_some(())
        })
        .await;
        until("a table all the same", async || node.holds().await).await;
        let auth = format!("Bearer {KEY}");
        let headers = [("authorization", auth.as_str()), ("content-type", "application/json")];
        let body = br#"{"model":"m","max_tokens":5,"messages":[{"role":"user","content":"Hi"}]}"#;
        until("service", async || {
            let answer = call(node.addr, "POST /v1/chat/completions", &headers, body).await;
            (answer.status == 200).then_some(())
        })
        .await;
        let said = node.said();
        assert!(said.contains(&format!("\"task\":\"{task}\"")), "{task}: {said}");
    }
    for task in ["proxy", "admin", "accept", "watchdog"] {
        let begin = place.begin_node(daemon.addr, &upstream).env(FAILPOINT, &format!("{task}=panic"));
        match begin.start() {
            Err(said) => assert!(said.contains("failpoint"), "{task}: {said}"),
            Ok(mut node) => assert_eq!(node.ended(LONG).code(), Some(1), "{task}"),
        }
    }
    // One that breaks every time is given up.
    let begin = place.begin_node(daemon.addr, &upstream).env(FAILPOINT, "table=panic");
    let mut node = begin.start().unwrap();
    assert_eq!(node.ended(LONG * 2).code(), Some(1));
    assert_eq!(node.said().matches("a task panicked").count(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c13_a_policy_that_breaks_the_loop_three_times_is_quarantined_and_the_last_good_one_runs() {
    let place = Place::new().await;
    let digest = || load(&place.path().join("policies")).unwrap().policy.digest;
    let good = digest();
    let daemon = place.start();
    daemon.table().await;
    until("the good one stored", async || place.state().join("policy.json").exists().then_some(())).await;
    daemon.stop();
    place.edit("39M tpm");
    let poison = digest();
    place.edit("40M tpm");
    assert_eq!(digest(), good);
    let begin = || place.begin().env(FAILPOINT, &format!("tick:{poison}=panic"));

    // It is edited in while a controller runs: the first bad end.
    let mut daemon = begin().start().unwrap();
    assert_eq!(daemon.table().await.policy, good);
    place.edit("39M tpm");
    assert_eq!(daemon.ended(LONG).code(), Some(1));
    for _ in 0..2 {
        match begin().start() {
            Err(said) => assert!(said.contains("failpoint tick"), "{said}"),
            Ok(mut daemon) => assert_eq!(daemon.ended(LONG).code(), Some(1)),
        }
    }
    let daemon = begin().start().unwrap();
    assert_eq!(daemon.table().await.policy, good);
    let quarantined = "tidegate_control_policy_quarantined";
    assert_eq!(daemon.metric(quarantined).await, 1.0);
    assert_eq!(daemon.metric("tidegate_policy_last_reload_successful").await, 0.0);
    let status = get(daemon.addr, "/v1/status").await.json();
    assert_eq!(status["quarantined"], poison.as_str());
    // A reload does not bring it back.
    let token = std::fs::read_to_string(place.state().join("token")).unwrap();
    let auth = format!("Bearer {token}");
    let refused = call(daemon.addr, "POST /-/reload", &[("authorization", &auth)], b"").await;
    assert_eq!(refused.status, 400);
    assert!(refused.text().contains("is quarantined"), "{}", refused.text());
    // Nor does a kill, which is no doing of the good one.
    let mut daemon = daemon;
    daemon.kill();
    let daemon = begin().start().unwrap();
    assert_eq!(daemon.table().await.policy, good);
    // Corrected, it is taken.
    place.edit("38M tpm");
    let corrected = digest();
    until("the corrected one", async || (table(daemon.addr).await?.policy == corrected).then_some(())).await;
    assert_eq!(daemon.metric(quarantined).await, 0.0);
    daemon.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn c13_kills_with_no_other_policy_to_go_to_are_no_reason_not_to_serve() {
    let place = Place::new().await;
    for _ in 0..3 {
        let mut daemon = place.start();
        daemon.table().await;
        daemon.kill();
    }
    let daemon = place.start();
    daemon.table().await;
    assert_eq!(daemon.metric("tidegate_control_policy_quarantined").await, 0.0);
    daemon.stop();
}
