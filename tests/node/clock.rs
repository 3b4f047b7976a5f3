//! The wall clock of a node's process: wrong by minutes, and stepped while it runs.

use std::path::Path;

use crate::answers::product;
use crate::cli::serving;
use crate::support::node::*;
use crate::support::program::{faked, faketime};
use http::{HeaderMap, StatusCode};
use serde_json::json;
use tidegate::unit::{Dimension, Limit};
use tidegate::wire::{Budget, BudgetEntry, Dialect, LimitTable, Span};

/// All that one refusal says of time.
#[derive(Debug)]
struct Told {
    wait: i64,
    /// In its body.
    until: i64,
    /// In a header.
    reset: i64,
    /// By the true clock.
    at: i64,
}

/// Three a minute, which are free again one by one; the body says until when, a header when all are.
fn limited() -> LimitTable {
    let mut table = product("kimchi", Span::Model, &[(Dimension::RequestsPerMinute, key_limit(3))]);
    let answers = &mut table.products.get_mut("p").unwrap().answers;
    answers.headers = Dialect::preset("kimi").unwrap().headers;
    table
}

async fn told(rig: &Rig, proxy: &str) -> Told {
    loop {
        let mut request = rig.chat("", false);
        *request.uri_mut() = format!("http://{proxy}/v1/chat/completions").parse().unwrap();
        let at = jiff::Timestamp::now().as_second();
        let (status, headers, body) = rig.answer(request).await;
        if status == StatusCode::OK {
            continue;
        }
        assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{body}");
        let number = |headers: &HeaderMap, name: &str| headers[name].to_str().unwrap().parse().unwrap();
        let until = body.split("until ").nth(1).unwrap().trim_end_matches("\"}");
        return Told {
            wait: number(&headers, "retry-after"),
            until: until.parse::<jiff::Timestamp>().unwrap().as_second(),
            reset: number(&headers, "x-ratelimit-reset"),
            at,
        };
    }
}

/// What is a duration is the monotonic clock's; what is an instant is the wall clock's, in the body
/// and in the headers alike; and no step of that clock brings a request back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b04_until_header_and_body_of_skewed_and_stepped_nodes_move_together() {
    let Some(library) = faketime() else { return };
    let rig = Rig::start(&limited()).await;
    let mut nodes = Vec::new();
    for skew in [-300, 300] {
        let dir = tempfile::TempDir::new().unwrap();
        jump(dir.path(), skew);
        let wall = dir.path().join("wall");
        let node = serving(&rig, dir.path(), &limited(), &keys(), &faked(&library, &wall)).await;
        nodes.push((skew, dir, node));
    }
    let check = |told: &Told, skew: i64| {
        assert!((10..=23).contains(&told.wait), "a third of a minute at most: {told:?}");
        let late = told.until - (told.at + skew + told.wait);
        assert!((0..=2).contains(&late), "{skew}: {told:?}");
        let left = told.reset - (told.at + skew);
        assert!((50..=61).contains(&left), "{skew}: {told:?}");
    };
    for (skew, _, node) in &nodes {
        check(&told(&rig, &node.proxy).await, *skew);
    }
    // Steps: forward, back, far back. Nothing is admitted again, and all instants move at once.
    let (_, dir, node) = &nodes[1];
    let served = rig.upstream.requests();
    for skew in [3_600, 300, -86_400] {
        jump(dir.path(), skew);
        check(&told(&rig, &node.proxy).await, skew);
    }
    assert_eq!(rig.upstream.requests(), served);
}

fn jump(dir: &Path, seconds: i64) {
    write(&dir.join("wall"), format!("{seconds:+}\n").as_bytes());
}

/// A month forward, a month back, an hour: a day that is used up is not begun anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b01_a_jump_of_the_wall_clock_rolls_no_day_and_lowers_no_budget() {
    let Some(library) = faketime() else { return };
    let mut limits = product("openai", Span::Model, &[]);
    let entry = BudgetEntry { key: M, account: Limit::Finite(2 * (INPUT + OUTPUT)) };
    limits.rows[0].budgets = [(Budget::TokensPerDay, entry)].into();
    let rig = Rig::start(&table(1, &[])).await;
    let dir = tempfile::TempDir::new().unwrap();
    jump(dir.path(), 0);
    let wall = dir.path().join("wall");
    let node = serving(&rig, dir.path(), &limits, &keys(), &faked(&library, &wall)).await;
    let ask = async || {
        let body = json!({"model": "m", "max_tokens": OUTPUT, "messages": []});
        let mut request = rig.post("/v1/chat/completions", &body);
        *request.uri_mut() = format!("http://{}/v1/chat/completions", node.proxy).parse().unwrap();
        rig.answer(request).await
    };
    for _ in 0..2 {
        assert_eq!(ask().await.0, StatusCode::OK);
    }
    for seconds in [0, 3_600, 30 * 86_400, -30 * 86_400, 0] {
        jump(dir.path(), seconds);
        let (status, headers, body) = ask().await;
        assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{seconds}: {body}");
        assert!(body.contains("tokens per day"), "{seconds}: {body}");
        let wait: u64 = headers["retry-after"].to_str().unwrap().parse().unwrap();
        assert!(wait <= 86_400 + 60, "{seconds}: until the end of this day: {wait}");
    }
    assert_eq!(rig.upstream.requests(), 2);
}
