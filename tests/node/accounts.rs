//! The accounts file under a running node: upgrades, a million lines, and everything that is wrong.

use std::path::Path;
use std::time::{Duration, Instant};

use http::StatusCode;
use sha2::{Digest, Sha256};
use tidegate::enforce::accounts::Accounts;
use tidegate::enforce::config::{Caps, KeySource};
use tidegate::unit::{Dimension, Limit};
use tidegate::wire::{Entry, LimitTable, Product};

use crate::flood::long;
use crate::follow::wait_for_metric;
use crate::support::node::*;

const RPM: Dimension = Dimension::RequestsPerMinute;

fn digest(key: &str) -> String {
    Sha256::digest(key.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn key_line(key: &str, rest: &str) -> String {
    format!("{{\"key_sha256\":\"{}\",{rest}}}\n", digest(key))
}

/// Tier `t` has two requests a minute, tier `u` many; both by what an account has recharged.
fn tiers() -> LimitTable {
    let mut table = table(1, &[(RPM, key_limit(2))]);
    let mut upper = table.rows[0].clone();
    upper.tier = "u".into();
    upper.limits.insert(RPM, Entry { key_limit: Limit::Finite(10_000), ..upper.limits[&RPM] });
    table.rows.push(upper);
    let recharge = [("t".into(), 1_000_000), ("u".into(), 10_000_000)].into();
    table.products.insert("p".into(), Product { recharge, ..Product::default() });
    table.rows.iter_mut().for_each(|row| row.product = Some("p".into()));
    table
}

async fn rig(path: &Path) -> Rig {
    let path = path.to_owned();
    // As a node looks unless told otherwise.
    let poll_ms = Caps::default().poll_ms;
    Rig::with(&tiers(), |config| {
        config.keys = KeySource::File(path);
        config.caps.poll_ms = poll_ms;
    })
    .await
}

/// An upgrade frees a key that is at its limit, whether its tier is written or follows from what
/// was recharged; what it has used stays used.
#[tokio::test]
async fn h18_s0_16_an_upgrade_takes_effect_on_the_next_request_within_a_second() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("accounts.jsonl");
    let by_tier = |tier: &str| key_line(KEY, &format!("\"account\":\"acme\",\"tier\":\"{tier}\""));
    let by_recharge = |dollars: u64| {
        let micros = dollars * 1_000_000;
        format!(
            "{}{{\"account\":\"acme\",\"recharged_micros\":{micros}}}\n",
            key_line(KEY, "\"account\":\"acme\"")
        )
    };
    let mut quickest = Duration::MAX;
    for (before, after) in
        [(by_tier("t"), by_tier("u")), (by_recharge(1), by_recharge(10)), (by_recharge(9), by_tier("u"))]
    {
        write(&path, before.as_bytes());
        let rig = rig(&path).await;
        for _ in 0..2 {
            assert_eq!(rig.answer(rig.chat("", false)).await.0, StatusCode::OK);
        }
        assert_eq!(rig.answer(rig.chat("", false)).await.0, StatusCode::TOO_MANY_REQUESTS);
        let upgraded = Instant::now();
        write(&path, after.as_bytes());
        loop {
            let (status, headers, _) = rig.answer(rig.chat("", false)).await;
            if status == StatusCode::OK {
                // Two were used before, and one now; refusals were not counted.
                assert_eq!(headers["x-ratelimit-remaining-requests"], "9997");
                break;
            }
            assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
            assert!(upgraded.elapsed() < PATIENCE);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        quickest = quickest.min(upgraded.elapsed());
    }
    println!("quickest of three upgrades: {quickest:?}");
    assert!(quickest < Duration::from_secs(1), "{quickest:?}");
}

#[tokio::test]
async fn s1_4_an_account_below_the_least_recharge_cannot_use_the_api() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("accounts.jsonl");
    let account = "{\"account\":\"acme\",\"recharged_micros\":990000,\"vouchers_micros\":5000000}\n";
    write(&path, format!("{}{account}", key_line(KEY, "\"account\":\"acme\"")).as_bytes());
    let rig = rig(&path).await;
    let (status, headers, body) = rig.answer(rig.chat("", false)).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{body}");
    assert!(!headers.contains_key("retry-after"));
    assert!(body.contains("\"account_below_minimum\"") && body.contains("1.00 dollars"), "{body}");
    assert_eq!(rig.upstream.requests(), 0);
}

#[tokio::test]
async fn a_damaged_accounts_file_loses_nobody() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("accounts.jsonl");
    let good = key_line(KEY, "\"tier\":\"u\"");
    write(&path, good.as_bytes());
    let rig = rig(&path).await;
    let bad = [
        format!("{good}{good}"),
        format!("{good}{}", &key_line("other", "\"tier\":\"u\"")[..70]),
        format!("{good}{{\"account\":\"a\"}}\n{{\"account\":\"a\"}}\n"),
        format!("{good}{}", key_line("other", "\"tier\":\"u\",\"limits\":{\"rpm\":-5}")),
    ];
    for (at, text) in bad.iter().enumerate() {
        write(&path, text.as_bytes());
        wait_for_metric(&rig, &format!("tidegate_enforce_reload_errors_total {}", at + 1)).await;
        assert_eq!(rig.answer(rig.chat("", false)).await.0, StatusCode::OK);
    }
}

/// A million of them in the long form.
#[test]
fn a_million_lines_are_read_and_one_change_among_them_costs_a_look_at_each() {
    let lines: u64 = if long() { 1_000_000 } else { 100_000 };
    let mut text = String::new();
    let mut changed = String::new();
    for at in 0..lines {
        let tier =
            |tier: &str| key_line(&format!("k{at}"), &format!("\"account\":\"a{at}\",\"tier\":\"{tier}\""));
        text.push_str(&tier("free"));
        changed.push_str(&tier(if at == lines / 2 { "paid" } else { "free" }));
    }
    let begun = Instant::now();
    let accounts = Accounts::parse(&text).unwrap();
    let first = begun.elapsed();
    assert_eq!(accounts.len() as u64, lines);
    let begun = Instant::now();
    let after = accounts.updated(&changed).unwrap();
    let second = begun.elapsed();
    println!("{lines} keys: read in {first:?}, one change taken in {second:?}");
    let tier = |accounts: &Accounts| {
        let mut headers = http::HeaderMap::new();
        headers.insert("x-api-key", format!("k{}", lines / 2).parse().unwrap());
        accounts.identify(&headers).unwrap().tier(None).unwrap().clone()
    };
    assert_eq!((tier(&accounts).as_str(), tier(&after).as_str()), ("free", "paid"));
}
