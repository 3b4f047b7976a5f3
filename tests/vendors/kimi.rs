//! Six tiers by recharge, four dimensions.

use http::StatusCode;
use serde_json::json;
use tidegate::unit::{Dimension, Limit};
use tidegate::wire::Budget;

use crate::rig::*;

/// Name, recharge in cents, concurrent, RPM, TPM.
const TABLE: [(&str, u64, u64, u64, u64); 6] = [
    ("Tier0", 100, 1, 3, 500_000),
    ("Tier1", 1_000, 50, 200, 2_000_000),
    ("Tier2", 2_000, 100, 500, 3_000_000),
    ("Tier3", 10_000, 200, 5_000, 3_000_000),
    ("Tier4", 100_000, 400, 5_000, 4_000_000),
    ("Tier5", 300_000, 1_000, 10_000, 5_000_000),
];
const MODEL: &str = "kimi-k2.5";
/// A cell that a new minute began in is tried again, by an account that is fresh.
const TRIES: usize = 3;

/// An account with a key for each cell and try.
fn keys() -> String {
    let mut lines = String::new();
    for (tier, cents, ..) in TABLE {
        for cell in ["concurrent", "rpm", "tpm"] {
            for at in 0..TRIES {
                let name = format!("{tier}-{cell}-{at}");
                lines += &key(&name, &name, "");
                lines += &account(&name, cents);
            }
        }
    }
    lines
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_1_s1_2_s1_7_the_cells_of_requests_a_minute_admit_n_and_refuse_one_more() {
    let rig = Rig::start("kimi", keys()).await;
    for (tier, _, concurrent, rpm, _) in TABLE {
        let mut shown = false;
        for at in 0..TRIES {
            aligned().await;
            let (begun, name) = (minute(), format!("{tier}-rpm-{at}"));
            let admitted = rig.admitted(&name, MODEL, rpm, concurrent).await;
            let next = rig.chat(&name, "kimi-k2-turbo", 2).await;
            if minute() == begun {
                assert_eq!((admitted, next), (rpm, StatusCode::TOO_MANY_REQUESTS), "{tier}");
                shown = true;
                break;
            }
        }
        assert!(shown, "{tier}: no minute was long enough");
    }
}

#[tokio::test]
async fn s1_1_s1_2_s1_7_the_cells_of_tokens_a_minute_admit_n_and_refuse_one_more() {
    let rig = Rig::start("kimi", keys()).await;
    for (tier, _, _, _, tpm) in TABLE {
        let mut shown = false;
        for at in 0..TRIES {
            aligned().await;
            let (begun, name) = (minute(), format!("{tier}-tpm-{at}"));
            let most = rig.chat(&name, MODEL, tpm - 100).await;
            let last = rig.chat(&name, "kimi-k2-turbo", 100).await;
            let more = rig.chat(&name, MODEL, 1).await;
            if minute() == begun {
                let expected = (StatusCode::OK, StatusCode::OK, StatusCode::TOO_MANY_REQUESTS);
                assert_eq!((most, last, more), expected, "{tier}");
                shown = true;
                break;
            }
        }
        assert!(shown, "{tier}: no minute was long enough");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_1_s1_2_s1_7_the_cells_of_concurrency_admit_n_and_refuse_one_more() {
    let rig = Rig::start("kimi", keys()).await;
    for (tier, _, concurrent, ..) in TABLE {
        let name = format!("{tier}-concurrent-0");
        let before = in_flight(&rig);
        let mut held = tokio::task::JoinSet::new();
        for _ in 0..concurrent {
            let (rig, name) = (std::sync::Arc::clone(&rig), name.clone());
            held.spawn(async move {
                let body = json!({"model": MODEL, "max_tokens": 1, "user": "hang", "messages": []});
                rig.ask(&name, "/v1/chat/completions", &body).await
            });
        }
        let all = || in_flight(&rig) == before + concurrent;
        crate::support::node::until(&format!("{tier}: {concurrent} at a time"), all).await;
        assert_eq!(rig.chat(&name, MODEL, 2).await, StatusCode::TOO_MANY_REQUESTS, "{tier}");
        held.shutdown().await;
        crate::support::node::until(&format!("{tier}: free"), || in_flight(&rig) == before).await;
    }
}

fn in_flight(rig: &Rig) -> u64 {
    let start = tidegate::unit::Instant::ZERO;
    let report = rig.node.cell().with(|limiter, now| limiter.report(now, start, 1));
    report.pools.get("moonshot").map_or(0, |pool| pool.in_flight)
}

/// Every boundary of the table: a cent below, and the amount itself.
#[test]
fn s1_3_s1_4_the_tier_of_a_recharge_is_that_of_the_shipped_policy() {
    let policy = policy("kimi");
    let product = &policy.products["kimi"];
    let tier = |cents: u64| product.tier_of(cents * 10_000).map(|tier| tier.to_string());
    let mut below = None;
    for (name, cents, ..) in TABLE {
        assert_eq!(tier(cents - 1), below, "a cent below {name}");
        assert_eq!(tier(cents).as_deref(), Some(name));
        below = Some(name.to_owned());
    }
}

#[test]
fn s1_11_no_dimension_falls_with_a_higher_tier() {
    let policy = policy("kimi");
    for model in policy.models.values() {
        for pair in TABLE.windows(2) {
            let (low, high) = (&model.tiers[pair[0].0], &model.tiers[pair[1].0]);
            for (unit, limit) in &low.account_limits {
                assert!(high.account_limits[unit] >= *limit, "{} {unit:?}", pair[1].0);
            }
        }
        let tier0 = &model.tiers["Tier0"];
        let day = tier0.budgets[&Budget::TokensPerDay].account;
        let minute = tier0.account_limits[&Dimension::TokensPerMinute];
        assert_eq!((minute, day), (Limit::Finite(500_000), Limit::Finite(3 * 500_000)));
        let unlimited = |name: &&str| model.tiers[*name].budgets.is_empty();
        assert!(["Tier1", "Tier2", "Tier3", "Tier4", "Tier5"].iter().all(unlimited));
    }
}

/// At the cluster's limit a tier's limit falls below what the table grants one account of it, and
/// comes back once load has gone.
#[test]
fn s1_8_limits_are_lowered_while_the_cluster_is_at_its_limit_and_come_back() {
    let mut control = Loop::new(policy("kimi"));
    let calm = Load { each: 10_000.0, ..VAST };
    let of = |tick: &tidegate::control::Tick| {
        let entry = tick.table.row(MODEL, "Tier0").unwrap().limits[&Dimension::TokensPerMinute];
        assert_eq!(entry.account_limit, Limit::Finite(500_000), "the table stands");
        entry
    };
    let first = (0..30).map(|_| control.turn(calm, |_, _| 0)).last().unwrap();
    let before = of(&first);
    assert!(before.tier_limit > before.account_limit);
    // A replica does a hundred tokens a second of what everybody asks for, and queues grow.
    let poor = Load { each: 100.0, waiting: 200.0, ..calm };
    let busy = (0..120).map(|_| control.turn(poor, |_, _| 100_000)).last().unwrap();
    let lowered = of(&busy);
    assert!(lowered.tier_limit < lowered.account_limit, "{lowered:?}");
    let back = (0..120).map(|_| control.turn(calm, |_, _| 0)).last().unwrap();
    assert!(of(&back).tier_limit > before.account_limit, "{:?}", of(&back));
}
