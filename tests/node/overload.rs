//! Ten times as much as is allowed, from a client that does not care what it is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::cli::{Process, serving};
use crate::support::node::*;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use tidegate::unit::{Dimension, Limit};

const RPM: Dimension = Dimension::RequestsPerMinute;
/// Requests of each kind whose cost is measured.
const MEASURED: u32 = 4_000;
/// A second, while there is an overload.
const WELCOME: u64 = 100;

/// Time on a processor that a process had so far.
fn used(process: &Process) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.0.id())).unwrap();
    // Behind the name, which may hold anything: user and system time in hundredths of a second.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

async fn ask(http: &Http, proxy: &str, key: &str) -> (StatusCode, Option<u64>) {
    let body = r#"{"model":"m","max_tokens":4,"messages":[{"role":"user","content":"Hi"}]}"#;
    let request = Request::post(format!("http://{proxy}/v1/chat/completions"))
        .header("authorization", format!("Bearer {key}"))
        .header("content-type", "application/json")
        .body(Full::from(body));
    let (parts, body) = timed(http.request(request.unwrap())).await.unwrap().into_parts();
    timed(body.collect()).await.unwrap();
    let wait = parts.headers.get("retry-after").map(|wait| wait.to_str().unwrap().parse().unwrap());
    (parts.status, wait)
}

/// Asks four at a time; all answers have that status.
async fn many(http: &Http, proxy: &str, key: &'static str, count: u32, status: StatusCode) {
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (http, proxy) = (http.clone(), proxy.to_owned());
        asking.spawn(async move {
            for _ in 0..count / 4 {
                assert_eq!(ask(&http, &proxy, key).await.0, status);
            }
        });
    }
    asking.join_all().await;
}

/// A refusal costs a fraction of what it saves; who is inside its limit is served as without the
/// overload; and who came too early all the time is served once it waits as told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h08_ten_times_the_load_costs_little_and_takes_nothing_from_who_is_inside_its_limit() {
    let mut limits = table(1, &[(RPM, key_limit(1))]);
    let mut paid = limits.rows[0].clone();
    paid.tier = "u".into();
    paid.limits.get_mut(&RPM).unwrap().key_limit = Limit::Finite(1_000_000);
    limits.rows.push(paid);
    let rig = Rig::start(&limits).await;
    let dir = tempfile::TempDir::new().unwrap();
    let lines = [key_line("inside", None).replace("\"t\"", "\"u\""), key_line("beyond", None)];
    let node = serving(&rig, dir.path(), &limits, &lines.join("\n"), &[]).await;
    let (process, proxy) = (&node.process, node.proxy.clone());
    let begun = used(process);
    many(&rig.http, &proxy, "inside", MEASURED, StatusCode::OK).await;
    let admitted = used(process);
    assert_eq!(ask(&rig.http, &proxy, "beyond").await.0, StatusCode::OK);
    // The second on is too many for a minute; the rest of this test is shorter.
    let (spent, refused) = (used(process), std::time::Instant::now());
    many(&rig.http, &proxy, "beyond", MEASURED, StatusCode::TOO_MANY_REQUESTS).await;
    let cost = [admitted - begun, used(process) - spent].map(|cost| cost / MEASURED);
    println!("CPU of an admitted request {:?}, of a refused one {:?}", cost[0], cost[1]);
    println!("{MEASURED} refused in {:?}", refused.elapsed());
    assert!(cost[1] < cost[0], "a refusal costs more than what it spares: {cost:?}");

    // At a steady pace, whatever becomes of those before: ten times as many are refused beside it.
    let seconds = 2;
    let (served, too_many) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut asking = tokio::task::JoinSet::new();
    let mut pace = tokio::time::interval(Duration::from_millis(1_000 / WELCOME));
    for _ in 0..WELCOME * seconds {
        pace.tick().await;
        for at in 0..11 {
            let (http, proxy) = (rig.http.clone(), proxy.clone());
            let (served, too_many) = (Arc::clone(&served), Arc::clone(&too_many));
            asking.spawn(async move {
                let key = if at == 0 { "inside" } else { "beyond" };
                match ask(&http, &proxy, key).await.0 {
                    StatusCode::OK if at == 0 => served.fetch_add(1, Ordering::Relaxed),
                    _ => too_many.fetch_add(1, Ordering::Relaxed),
                };
            });
        }
    }
    let in_time = served.load(Ordering::Relaxed);
    asking.join_all().await;
    println!("{in_time} of {} served in time, {too_many:?} refused", WELCOME * seconds);
    assert_eq!(served.load(Ordering::Relaxed), WELCOME * seconds);
    assert!(in_time >= WELCOME * seconds * 95 / 100, "{in_time} by the end of the overload");
    // Thousands of early retries put nothing off.
    let (status, wait) = ask(&rig.http, &proxy, "beyond").await;
    if status != StatusCode::OK {
        let wait = Duration::from_secs(wait.unwrap());
        assert!(refused.elapsed() + wait <= Duration::from_secs(68), "{:?} {wait:?}", refused.elapsed());
    }
}
