//! Sources over real sockets: those that behave and those that do not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::{Manner, nobody, policy, replica, serve};
use tidegate::observe::sources::Sources;
use tidegate::observe::{Outcome, PoolRound};
use tidegate::policy::{Policy, SourcePolicy};
use tidegate::unit::{self, Clock, SystemClock};

const PAGE: &str = "vllm:num_requests_running 3\nvllm:num_requests_waiting 1\nvllm:prompt_tokens_total 500\n";

fn sources(policy: &Policy) -> (Sources, Arc<SystemClock>) {
    let clock = Arc::new(SystemClock::starting_at(unit::Instant(5_000_000_000)));
    (Sources::new(clock.clone(), policy).unwrap(), clock)
}

fn direct(targets: Vec<String>, interval: Duration) -> Policy {
    policy(SourcePolicy::targets(targets), interval, 1000, "d")
}

async fn round(sources: &mut Sources) -> PoolRound {
    let mut round = sources.observe_round().await;
    round.remove("gpu").unwrap()
}

fn outcome<'a>(round: &'a PoolRound, replica: &str) -> &'a Outcome {
    let found: Vec<_> = round.replicas.iter().filter(|r| r.replica.as_str() == replica).collect();
    assert_eq!(found.len(), 1, "{replica} in {round:?}");
    &found[0].outcome
}

fn silent(round: &PoolRound, replica: &str) -> String {
    match outcome(round, replica) {
        Outcome::Silent(reason) => reason.clone(),
        other => panic!("{replica}: {other:?}"),
    }
}

#[tokio::test]
async fn a02_a06_a_source_that_misbehaves_harms_only_itself() {
    let good = replica(PAGE).await.to_string();
    let open = serve(Manner::Answers(200, "application/openmetrics-text", format!("{PAGE}# EOF\n"))).await;
    let bad = [
        (serve(Manner::Dribbles).await, "no whole answer within 500ms"),
        (serve(Manner::DribblesHead).await, "no whole answer within 500ms"),
        (serve(Manner::Mute).await, "no whole answer within 500ms"),
        (serve(Manner::BreaksOff(PAGE.to_owned())).await, "the answer broke off: "),
        (serve(Manner::Redirects(format!("http://{good}/metrics"))).await, "HTTP 302: redirects are not"),
        (serve(Manner::Encodes("gzip")).await, "the answer broke off: it is no whole gzip stream"),
        (serve(Manner::Encodes("gzip, gzip")).await, "the answer is encoded as gzip, gzip"),
        (serve(Manner::Encodes("br")).await, "the answer is encoded as br"),
        (serve(Manner::Answers(404, crate::support::TEXT, PAGE.to_owned())).await, "HTTP 404"),
        (replica("<html>\n").await, "line 1, column 1: expected a metric name"),
        (replica("go_goroutines 1\n").await, "no metric of the pool's signal map"),
        (replica("vllm:num_requests_running NaN\n").await, "running: `vllm:num_requests_running` is NaN"),
        (
            serve(Manner::Answers(200, "application/openmetrics-text", PAGE.to_owned())).await,
            "line 3, column 1: the page ends without `# EOF`",
        ),
    ];
    let (refused, busy) =
        (nobody().await, serve(Manner::Answers(503, crate::support::TEXT, String::new())).await);
    let mut targets: Vec<String> = bad.iter().map(|(addr, _)| addr.to_string()).collect();
    targets.extend([good.clone(), good.clone(), open.to_string(), refused.to_string(), busy.to_string()]);
    let (mut sources, clock) = sources(&direct(targets, Duration::from_secs(1)));

    let begun = Instant::now();
    let round = round(&mut sources).await;
    assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());
    assert_eq!(round.failed, None);
    assert_eq!(round.replicas.len(), bad.len() + 4);
    for (addr, reason) in bad {
        let told = silent(&round, &addr.to_string());
        assert!(told.starts_with(reason), "{told} / {reason}");
    }
    assert_eq!(*outcome(&round, &refused.to_string()), Outcome::Down("connection refused".to_owned()));
    assert_eq!(*outcome(&round, &busy.to_string()), Outcome::Down("HTTP 503".to_owned()));
    for up in [good, open.to_string()] {
        let Outcome::Up(signals) = outcome(&round, &up) else { panic!("{round:?}") };
        assert_eq!(
            (signals.running, signals.waiting, signals.work_done),
            (Some(3.0), Some(1.0), Some(500.0))
        );
        let at = round.replicas.iter().find(|r| r.replica.as_str() == up).unwrap().at;
        // Not when the last one was given up.
        assert!(clock.now().since(at) >= Duration::from_millis(300), "{:?}", clock.now().since(at));
        assert!(at > unit::Instant(5_000_000_000));
    }
}

#[tokio::test]
async fn a03_a_flood_ends_at_its_cap() {
    let flood = serve(Manner::Floods).await.to_string();
    // A deadline of a second would end it too; on loopback 16 MiB take less.
    let (mut sources, _) = sources(&direct(vec![flood.clone()], Duration::from_secs(20)));
    let round = round(&mut sources).await;
    assert_eq!(silent(&round, &flood), "the answer has more than 16777216 bytes");
}

#[tokio::test]
async fn a_target_that_is_no_address_is_said_every_round() {
    let (mut sources, _) = sources(&direct(vec!["ftp://x".to_owned()], Duration::from_secs(1)));
    for _ in 0..2 {
        let round = round(&mut sources).await;
        assert!(round.failed.unwrap().contains("is neither http nor https"));
    }
}

#[tokio::test]
async fn a_prometheus_names_the_replicas() {
    let body = r#"{"status":"success","data":{"resultType":"vector","result":[
        {"metric":{"__name__":"x","instance":"a:1","engine":"0"},"value":[1000.5,"2"]},
        {"metric":{"__name__":"x","instance":"a:1","engine":"1"},"value":[1000.5,"3"]},
        {"metric":{"__name__":"x","instance":"b:1","engine":"0"},"value":[1000.5,"7"]}]}}"#;
    let server = serve(Manner::Answers(200, "application/json", body.to_owned())).await;
    let source = SourcePolicy::prometheus(format!("http://{server}/"));
    let (mut sources, _) = sources(&policy(source, Duration::from_secs(2), 1000, "d"));
    let round = round(&mut sources).await;
    assert_eq!((round.failed.clone(), round.replicas.len()), (None, 2));
    let Outcome::Up(a) = outcome(&round, "a:1") else { panic!("{round:?}") };
    assert_eq!((a.running, a.work_done), (Some(5.0), Some(5.0)));
    let Outcome::Up(b) = outcome(&round, "b:1") else { panic!("{round:?}") };
    assert_eq!(b.waiting, Some(7.0));
}

#[tokio::test]
async fn a02_a_prometheus_that_fails_says_nothing_about_replicas() {
    let error = r#"{"status":"error","errorType":"bad_data","error":"1:3: parse error"}"#;
    let cases = [
        (nobody().await, "connection refused"),
        (serve(Manner::Mute).await, "no whole answer within 500ms"),
        (serve(Manner::Answers(400, "application/json", error.to_owned())).await, "1:3: parse error"),
        (serve(Manner::Redirects("http://127.0.0.1:1/".to_owned())).await, "redirects are not followed"),
    ];
    for (addr, reason) in cases {
        let source = SourcePolicy::prometheus(format!("http://{addr}"));
        let (mut sources, _) = sources(&policy(source, Duration::from_secs(1), 1000, "d"));
        let round = round(&mut sources).await;
        assert!(round.replicas.is_empty());
        let failed = round.failed.unwrap();
        assert!(failed.contains(reason), "{failed}");
    }
}

#[tokio::test]
async fn a_pool_whose_source_stays_is_not_begun_anew() {
    let good = replica(PAGE).await.to_string();
    let one = direct(vec![good.clone()], Duration::from_secs(1));
    let (mut sources, _) = sources(&one);
    assert_eq!(round(&mut sources).await.replicas.len(), 1);
    sources.set_policy(&direct(vec![good.clone(), nobody().await.to_string()], Duration::from_secs(1)));
    assert_eq!(round(&mut sources).await.replicas.len(), 2);
}

#[tokio::test]
async fn a_target_that_an_edit_takes_away_is_down_until_another_answers() {
    let (good, gone) = (replica(PAGE).await.to_string(), replica(PAGE).await.to_string());
    let interval = Duration::from_secs(1);
    let (mut sources, _) = sources(&direct(vec![good.clone(), gone.clone()], interval));
    assert_eq!(round(&mut sources).await.replicas.len(), 2);
    // Nobody answers in the round after the edit: it is said once more.
    sources.set_policy(&direct(vec![nobody().await.to_string()], interval));
    let left = Outcome::Down("it is not a target any more".to_owned());
    for _ in 0..2 {
        let round = round(&mut sources).await;
        assert_eq!((outcome(&round, &good), outcome(&round, &gone)), (&left, &left));
    }
    sources.set_policy(&direct(vec![good.clone()], interval));
    let after = round(&mut sources).await;
    assert!(matches!(outcome(&after, &good), Outcome::Up(_)));
    assert_eq!(outcome(&after, &gone), &left);
    assert_eq!(round(&mut sources).await.replicas.len(), 1);
}
