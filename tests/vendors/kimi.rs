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
        let before = rig.in_flight();
        let mut held = tokio::task::JoinSet::new();
        for _ in 0..concurrent {
            let (rig, name) = (std::sync::Arc::clone(&rig), name.clone());
            held.spawn(async move {
                let body = json!({"model": MODEL, "max_tokens": 1, "user": "hang", "messages": []});
                rig.ask(&name, "/v1/chat/completions", &body).await
            });
        }
        let all = || rig.in_flight() == before + concurrent;
        crate::support::node::until(&format!("{tier}: {concurrent} at a time"), all).await;
        assert_eq!(rig.chat(&name, MODEL, 2).await, StatusCode::TOO_MANY_REQUESTS, "{tier}");
        held.shutdown().await;
        crate::support::node::until(&format!("{tier}: free"), || rig.in_flight() == before).await;
    }
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

/// 1,500,000 tokens of Tier0's day, and no end of the others': the rates of the accounts are lifted
/// in their lines, so that a minute holds a day.
#[tokio::test]
async fn s1_1_s1_2_s1_7_the_cells_of_tokens_a_day_admit_n_and_refuse_one_more() {
    let lifted = r#","vouchers_micros":1000000000,"limits":{"rpm":"unlimited","tpm":"unlimited"}"#;
    let line = |tier: &str, cents| key(tier, tier, "") + &account_with(tier, cents, lifted);
    let rig = Rig::start("kimi", TABLE.map(|(tier, cents, ..)| line(tier, cents)).concat()).await;
    for (used, model) in [("1400000+90000", MODEL), ("9000+1000", "kimi-k2-turbo")] {
        assert_eq!(rig.say("Tier0", model, used).await.status, StatusCode::OK, "{used}");
    }
    let answer = rig.say("Tier0", MODEL, "1").await;
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS, "{answer:?}");
    let wait = answer.header("retry-after");
    // S1-12: to the midnight of Beijing, eight hours before that of UTC.
    let left = 86_400 - (unix() + 8 * 3_600) % 86_400;
    assert!((left..=left + 63).contains(&wait), "{wait} of {left}");
    let said = format!("request reached tpd limit: 1500000, please try again after {wait} seconds");
    assert_eq!(answer.json()["error"]["message"], said);
    for (tier, ..) in &TABLE[1..] {
        for _ in 0..3 {
            assert_eq!(rig.chat(tier, MODEL, 50_000_000).await, StatusCode::OK, "{tier}");
        }
        assert_eq!(rig.standing(tier, MODEL).await["periods"].as_array().unwrap().len(), 1, "only credit");
    }
}

/// Each boundary by an account's line: the limits are those of the tier, and below $1 there are none.
#[tokio::test]
async fn s1_1_s1_3_s1_4_s1_11_what_an_account_recharged_decides_its_limits() {
    let mut lines = String::new();
    for (tier, cents, ..) in TABLE {
        for (name, cents) in [(tier.to_owned(), cents), (format!("below {tier}"), cents - 1)] {
            lines += &(key(&name, &name, "") + &account(&name, cents));
        }
    }
    let rig = Rig::start("kimi", lines).await;
    let mut before: Option<[u64; 3]> = None;
    for (tier, _, concurrent, rpm, tpm) in TABLE {
        let below = format!("below {tier}");
        match before {
            Some(before) => assert_eq!(limits(&rig, &below).await, before, "{below}"),
            None => {
                let answer = rig.say(&below, MODEL, "2").await;
                assert_eq!(answer.status, StatusCode::FORBIDDEN, "{answer:?}");
                let said = "recharge at least $1.00 to start using the API";
                let error = json!({"message": said, "type": "permission_denied_error"});
                assert_eq!(answer.json(), json!({"error": error}));
                assert!(!answer.headers.contains_key("retry-after"), "no wait helps");
                assert_eq!(rig.asked("main"), 0);
            }
        }
        let now = limits(&rig, tier).await;
        assert_eq!(now, [concurrent, rpm, tpm], "{tier}");
        assert!(before.is_none_or(|before| before.iter().zip(now).all(|(low, high)| *low <= high)));
        before = Some(now);
    }
}

async fn limits(rig: &Rig, key: &str) -> [u64; 3] {
    let standing = rig.standing(key, MODEL).await;
    ["concurrent", "rpm", "tpm"].map(|dimension| {
        let found =
            standing["limits"].as_array().unwrap().iter().find(|found| found["dimension"] == dimension);
        assert_eq!(found.unwrap()["scope"], "account", "{standing}");
        found.unwrap()["limit"].as_u64().unwrap()
    })
}

/// $5 recharged and $5 given: ten dollars to spend, in Tier0.
#[tokio::test]
async fn s1_5_s1_6_a_voucher_is_spent_like_money_and_raises_no_tier() {
    let given =
        r#","vouchers_micros":5000000,"limits":{"rpm":"unlimited","tpm":"unlimited","tpd":"unlimited"}"#;
    let lines = key("with", "with", "") + &account_with("with", 500, given) + &key("plain", "plain", "");
    let rig = Rig::start("kimi", lines + &account_with("plain", 500, ",\"vouchers_micros\":5000000")).await;
    assert_eq!(limits(&rig, "plain").await, [1, 3, 500_000], "Tier0");
    assert_eq!(rig.standing("with", MODEL).await["tier"], "Tier0");
    // $3 a million tokens of output: the third dollar threefold, then what the voucher gives.
    for spent in [3, 6, 9] {
        assert_eq!(rig.say("with", MODEL, "0+1000000").await.status, StatusCode::OK, "${spent}");
    }
    let periods = rig.standing("with", MODEL).await["periods"].clone();
    let credit = periods.as_array().unwrap().iter().find(|line| line["budget"] == "credit").unwrap();
    assert_eq!([&credit["limit"], &credit["used"]], [&json!(10_000_000), &json!(9_000_000)], "{periods}");
    assert_eq!(rig.say("with", MODEL, "0+333333").await.status, StatusCode::OK, "$10, to a micro-dollar");
    let answer = rig.say("with", MODEL, "1000").await;
    assert_eq!(answer.json()["error"]["type"], "exceeded_current_quota_error", "{answer:?}");
}

/// One organisation beyond its limits takes nothing from another, and everybody has a share of a
/// cluster that is too small for all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_9_one_account_cannot_slow_another_and_all_have_a_share() {
    let line = |name: &str, cents| key(name, name, "") + &account(name, cents);
    let rig = Rig::start("kimi", line("loud", 300_000) + &line("quiet", 100)).await;
    let mut held = tokio::task::JoinSet::new();
    for _ in 0..1_200 {
        let rig = std::sync::Arc::clone(&rig);
        held.spawn(async move { rig.say("loud", MODEL, "hang").await.status });
    }
    // A thousand are held, and the rest is refused: that many and no more.
    for _ in 0..200 {
        assert_eq!(held.join_next().await.unwrap().unwrap(), StatusCode::TOO_MANY_REQUESTS);
    }
    assert_eq!(rig.in_flight(), 1_000);
    assert_eq!(rig.chat("quiet", MODEL, 2).await, StatusCode::OK);
    held.shutdown().await;
    let mut control = Loop::new(policy("kimi"));
    let poor = Load { each: 100.0, waiting: 200.0, ..VAST };
    let tick = (0..120).map(|_| control.turn(poor, |_, _| 1_000_000)).last().unwrap();
    let granted = TABLE.map(|(tier, ..)| {
        tick.table.row(MODEL, tier).unwrap().limits[&Dimension::TokensPerMinute].tier_limit
    });
    assert!(
        granted[0] > Limit::Finite(0) && granted.is_sorted(),
        "by weight, and nobody without: {granted:?}"
    );
}

#[tokio::test]
async fn s1_10_an_account_by_contact_has_limits_of_its_own() {
    let own = r#","limits":{"concurrent":2,"rpm":7}"#;
    let lines = key("a", "a", "") + &account_with("a", 100, own) + &key("b", "b", "") + &account("b", 100);
    let rig = Rig::start("kimi", lines).await;
    assert_eq!(limits(&rig, "a").await, [2, 7, 500_000], "the rest is its tier's");
    assert_eq!(limits(&rig, "b").await, [1, 3, 500_000]);
    assert_eq!(rig.limit("a", MODEL, "rpm").await["bound"], "override");
    for _ in 0..3 {
        aligned().await;
        let (begun, before) = (minute(), rig.limit("a", MODEL, "rpm").await["remaining"].as_u64().unwrap());
        let admitted = rig.admitted("a", MODEL, before + 1, 1).await;
        if minute() == begun {
            return assert_eq!((before, admitted), (7, 7));
        }
    }
    panic!("no minute was long enough");
}

/// At the cluster's limit the node refuses an account that is far below its own.
#[tokio::test]
async fn s1_8_x_3_a_cluster_at_its_limit_lowers_limits_over_http_and_they_come_back() {
    let mut control = Loop::new(policy("kimi"));
    let calm = Load { each: 10_000.0, ..VAST };
    let tick = (0..30).map(|_| control.turn(calm, |_, _| 0)).last().unwrap();
    let rig = Rig::with(&tick.table, key("a", "a", "") + &account("a", 300_000)).await;
    let tpm = async || rig.limit("a", MODEL, "tpm").await;
    assert_eq!(tpm().await["limit"], 5_000_000);
    let poor = Load { each: 100.0, waiting: 200.0, ..calm };
    let tick = (0..120).map(|_| control.turn(poor, |_, _| 100_000)).last().unwrap();
    rig.publish(&tick.table).await;
    let busy = tpm().await;
    let limit = busy["limit"].as_u64().unwrap();
    assert!(limit < 5_000_000 && busy["scope"] == "tier" && busy["bound"] == "load", "{busy}");
    assert_eq!(rig.chat("a", MODEL, 2 * limit).await, StatusCode::OK);
    assert_eq!(rig.chat("a", MODEL, 2).await, StatusCode::TOO_MANY_REQUESTS);
    let tick = (0..120).map(|_| control.turn(calm, |_, _| 0)).last().unwrap();
    rig.publish(&tick.table).await;
    assert_eq!(tpm().await["limit"], 5_000_000);
}

/// Decided: a minute of the clock, the account's with all its keys and models, an object with a
/// type, and headers of the tightest rate.
#[tokio::test]
async fn s1_12_the_answer_the_window_and_the_scope_are_as_decided() {
    let rig = Rig::start("kimi", key("a", "x", "") + &key("b", "x", "") + &account("x", 100)).await;
    for _ in 0..3 {
        aligned().await;
        let begun = minute();
        let mut answers = Vec::new();
        for (key, model) in [("a", MODEL), ("b", MODEL), ("a", "kimi-k2-turbo"), ("b", MODEL)] {
            answers.push(rig.say(key, model, "2").await);
        }
        if minute() != begun {
            continue;
        }
        let answer = answers.pop().unwrap();
        assert!(answers.iter().all(|answer| answer.status == StatusCode::OK), "{answers:?}");
        let (wait, reset) = (answer.header("retry-after"), answer.header("x-ratelimit-reset"));
        let said = format!("request reached rpm limit: 3, please try again after {wait} seconds");
        let error = json!({"message": said, "type": "rate_limit_reached_error"});
        assert_eq!((answer.status, answer.json()), (StatusCode::TOO_MANY_REQUESTS, json!({"error": error})));
        assert_eq!((answer.header("x-ratelimit-limit"), answer.header("x-ratelimit-remaining")), (3, 0));
        return assert_eq!(reset, (begun + 1) * 60, "the next minute of the clock");
    }
    panic!("no minute was long enough");
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
