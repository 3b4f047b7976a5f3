//! Plans with limits that follow load.

use std::collections::BTreeSet;
use std::time::Duration;

use http::StatusCode;
use tidegate::unit::{Dimension, Limit};
use tidegate::wire::Credit;

use crate::rig::*;

const TPM: Dimension = Dimension::TokensPerMinute;
const SIZES: [&str; 3] = ["llama-3.1-8b", "qwen3-coder-30b", "minimax-m2.7"];
const TIERS: [&str; 3] = ["enterprise", "starter", "free"];
const MODEL: &str = "minimax-m2.7";
/// As the document has it.
const DOCUMENT: &str = r#"{"error": "minimax-m2.7 model is rate limited until 2026-02-05T15:32:41Z"}"#;

/// A key `name` of an account of that name, with a plan and what was paid in.
fn plan(name: &str, tier: &str, cents: u64) -> String {
    key(name, name, &format!("\"tier\":\"{tier}\"")) + &account(name, cents)
}

/// Body and headers are the document's, but for the time.
fn as_documented(answer: &Answer, asked: u64) {
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS, "{answer:?}");
    let (wait, at) = (answer.header("retry-after"), DOCUMENT.find("2026").unwrap());
    assert_eq!(answer.headers["retry-after"], wait.to_string().as_str(), "whole seconds and nothing else");
    let until = answer.body.get(at..at + 20).unwrap_or_else(|| panic!("{answer:?}"));
    assert_eq!(answer.body.replace(until, &DOCUMENT[at..at + 20]), DOCUMENT);
    assert_eq!(answer.headers["content-type"], "application/json");
    assert_eq!(answer.limit_headers(), ["retry-after"].into(), "no other is promised");
    // S0-6: never earlier than the answer and its Retry-After.
    let until = u64::try_from(until.parse::<jiff::Timestamp>().unwrap().as_second()).unwrap();
    assert!((asked + wait..=unix() + wait + 1).contains(&until), "{asked} {wait} {until}");
}

/// Asks until it is refused: how often it was not, and the refusal.
async fn refused(rig: &Rig, key: &str, model: &str) -> (u64, Answer) {
    for admitted in 0.. {
        let answer = rig.say(key, model, "2").await;
        if answer.status != StatusCode::OK {
            return (admitted, answer);
        }
        assert_eq!(answer.limit_headers(), BTreeSet::new(), "S0-18: none on a success");
    }
    unreachable!()
}

#[tokio::test]
async fn s0_1_s0_3_s0_4_s0_5_s0_6_s0_17_s0_18_requests_beyond_the_limit_get_the_bytes_of_the_document() {
    let rig = Rig::start("kimchi", plan("a", "free", 1_000) + &key("b", "a", "\"tier\":\"free\"")).await;
    let begun = std::time::Instant::now();
    let asked = unix();
    let (admitted, answer) = refused(&rig, "a", MODEL).await;
    // What was used comes back bit by bit: one a second.
    let most = 61 + begun.elapsed().as_secs();
    assert!((60..=most).contains(&admitted), "{admitted} of 60");
    as_documented(&answer, asked);
    // Of that model and that key: others have their own.
    assert_eq!(rig.chat("a", "qwen3-coder-30b", 2).await, StatusCode::OK);
    assert_eq!(rig.chat("b", MODEL, 2).await, StatusCode::OK);
    let left = rig.limit("b", MODEL, "rpm").await;
    assert_eq!((&left["limit"], &left["scope"]), (&60.into(), &"key".into()), "{left}");
    assert!((58..60).contains(&left["remaining"].as_u64().unwrap()), "{left}");
    // Whoever waits as told is served.
    let (_, answer) = refused(&rig, "a", MODEL).await;
    tokio::time::sleep(Duration::from_secs(answer.header("retry-after"))).await;
    assert_eq!(rig.chat("a", MODEL, 2).await, StatusCode::OK);
}

/// 100,000 a minute: input or output alone leaves something, both together nothing.
#[tokio::test]
async fn s0_1_s0_2_s0_3_s0_4_tokens_of_input_and_output_count_together() {
    let rig =
        Rig::start("kimchi", ["in", "out", "both"].map(|name| plan(name, "free", 1_000)).concat()).await;
    for (name, used, left) in
        [("in", "70000+0", true), ("out", "0+70000", true), ("both", "70000+70000", false)]
    {
        assert_eq!(rig.say(name, MODEL, used).await.status, StatusCode::OK);
        let asked = unix();
        let next = rig.say(name, MODEL, "2").await;
        assert_eq!(next.status == StatusCode::OK, left, "{name}: {next:?}");
        if !left {
            as_documented(&next, asked);
        }
    }
}

#[tokio::test]
async fn s0_7_the_next_providers_are_asked_before_anybody_gets_a_429() {
    let rig = Rig::start("kimchi", plan("a", "starter", 0)).await;
    let refuses = |name: &str, status| {
        rig.world.refuses.lock().unwrap().insert(name.to_owned(), (status, r#"{"error":"no"}"#));
    };
    refuses("own", 429);
    refuses("partner", 500);
    for _ in 0..50 {
        assert_eq!(rig.chat("a", MODEL, 2).await, StatusCode::OK);
    }
    assert_eq!(rig.asked("reserve"), 50);
    assert!(rig.asked("own") >= 1 && rig.asked("partner") >= 1);
    let left = rig.limit("a", MODEL, "rpm").await["remaining"].as_u64().unwrap();
    assert!((550..=600).contains(&left), "charged once each: {left} of 600");
    refuses("partner", 429);
    refuses("reserve", 429);
    let asked = unix();
    let (admitted, answer) = refused(&rig, "a", MODEL).await;
    assert_eq!(admitted, 0);
    as_documented(&answer, asked);
}

#[tokio::test]
async fn s0_8_s0_9_s0_10_s0_11_without_credit_the_free_plan_ends_and_the_paid_ones_go_on() {
    let plans = |cents: u64| TIERS.map(|tier| plan(tier, tier, cents)).concat();
    let rig = Rig::start("kimchi", plans(1)).await;
    // 12,000 micro-dollars, of 10,000.
    for tier in TIERS {
        assert_eq!(rig.say(tier, MODEL, "0+10000").await.status, StatusCode::OK, "{tier}");
    }
    for tier in ["enterprise", "starter"] {
        assert_eq!(rig.say(tier, MODEL, "0+10000").await.status, StatusCode::OK, "{tier}: is billed");
    }
    let answer = rig.say("free", MODEL, "2").await;
    assert_eq!(answer.status, StatusCode::PAYMENT_REQUIRED, "{answer:?}");
    assert_eq!(answer.body, r#"{"error": "credits are used up; add credits or upgrade the plan"}"#);
    assert_eq!(answer.limit_headers(), BTreeSet::new(), "no wait helps");
    rig.accounts(&plans(2));
    eventually("credit that was added", async || rig.chat("free", MODEL, 2).await == StatusCode::OK).await;
}

/// What a key may use falls as load rises and is back as it goes, and says which bound is active.
#[tokio::test]
async fn s0_12_x_3_limits_over_http_follow_the_load() {
    let mut control = Loop::new(policy("kimchi"));
    let quiet = Load { each: 10_000.0, ..VAST };
    let tick = (0..30).map(|_| control.turn(quiet, |_, _| 0)).last().unwrap();
    let rig = Rig::with(&tick.table, plan("a", "starter", 0)).await;
    let calm = rig.limit("a", MODEL, "tpm").await;
    assert_eq!((&calm["limit"], &calm["bound"]), (&400_000.into(), &"static".into()), "its own: {calm}");
    // A replica that does a hundred tokens a second of all that is asked for, and queues.
    let poor = Load { each: 100.0, waiting: 200.0, ..quiet };
    let tick = (0..120).map(|_| control.turn(poor, |_, _| 100_000)).last().unwrap();
    println!("{:?}", tick.table.row(MODEL, "starter").unwrap().limits[&TPM]);
    rig.publish(&tick.table).await;
    let busy = rig.limit("a", MODEL, "tpm").await;
    let limit = busy["limit"].as_u64().unwrap();
    assert!(limit < 400_000 && busy["scope"] == "tier", "{busy}");
    assert!(["load", "guarantee"].contains(&busy["bound"].as_str().unwrap()), "{busy}");
    assert_eq!(rig.say("a", MODEL, &format!("{limit}+{limit}")).await.status, StatusCode::OK);
    let asked = unix();
    as_documented(&rig.say("a", MODEL, "2").await, asked);
    let tick = (0..120).map(|_| control.turn(quiet, |_, _| 0)).last().unwrap();
    rig.publish(&tick.table).await;
    assert_eq!(rig.limit("a", MODEL, "tpm").await["limit"], calm["limit"]);
}

/// Whoever asks alone gets what the others leave: nothing is kept for who is not there.
#[test]
fn s0_13_what_the_others_leave_is_used() {
    for alone in TIERS {
        let mut control = Loop::new(policy("kimchi"));
        let load = Load { replicas: 20, each: 2_000.0, running: 20.0, waiting: 2.0 };
        let asked = |model: &str, tier: &str| if (model, tier) == (MODEL, alone) { 200_000 } else { 0 };
        let tick = (0..200).map(|_| control.turn(load, asked)).last().unwrap();
        let entry = tick.table.row(MODEL, alone).unwrap().limits[&TPM];
        let budget = tick.table.pools.values().next().unwrap().budget;
        println!("{alone} alone: {} of {}", entry.tier_limit.as_f64(), budget.as_f64());
        assert!(entry.tier_limit.as_f64() >= 0.8 * budget.as_f64().min(entry.ceiling.as_f64()), "{alone}");
    }
}

#[tokio::test]
async fn s0_8_s0_14_s0_15_paid_plans_and_smaller_models_have_more() {
    let rig = Rig::start("kimchi", TIERS.map(|tier| plan(tier, tier, 100)).concat()).await;
    for dimension in ["rpm", "tpm"] {
        let mut limits = Vec::new();
        for tier in TIERS {
            for model in SIZES {
                limits.push(rig.limit(tier, model, dimension).await["limit"].as_u64().unwrap());
            }
        }
        let tier = |at: usize| limits[at * 3..at * 3 + 3].to_vec();
        assert!((0..3).all(|at| tier(at).is_sorted_by(|small, large| small > large)), "{limits:?}");
        assert!((0..2).all(|at| tier(at).iter().zip(tier(at + 1)).all(|(paid, less)| *paid > less)));
        assert!(limits.iter().all(|limit| *limit > 0), "S0-14: there is one on all");
    }
}

#[tokio::test]
async fn s0_16_an_upgrade_frees_a_throttled_key_at_once() {
    let rig = Rig::start("kimchi", plan("a", "free", 100)).await;
    refused(&rig, "a", MODEL).await;
    let upgraded = std::time::Instant::now();
    rig.accounts(&plan("a", "starter", 100));
    // More than a second's worth: not what came back meanwhile.
    let starter = async || rig.limit("a", MODEL, "rpm").await["limit"] == 600;
    eventually("the upgrade", starter).await;
    for _ in 0..100 {
        assert_eq!(rig.chat("a", MODEL, 2).await, StatusCode::OK);
    }
    println!("upgraded and 100 served after {:?}", upgraded.elapsed());
    let left = rig.limit("a", MODEL, "rpm").await["remaining"].as_u64().unwrap();
    assert!(left < 600 - 100, "what it had used stays used: {left}");
}

/// At every tick, whatever the load: a paid tier has no less than the one below, and a smaller model
/// no less than a larger one, in what is granted together and in what one key may use.
#[test]
fn s0_12_s0_14_s0_15_orders_hold_at_every_tick_while_load_moves() {
    let (mut moved, mut before) = (0, Limit::Unlimited);
    for seed in 1..20_u64 {
        let mut control = Loop::new(policy("kimchi"));
        let mut chance = seed;
        let mut draw = move |below: u64| {
            chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (chance >> 33) % below
        };
        let mut load = Load { replicas: 4, each: 2_000.0, running: 8.0, waiting: 2.0 };
        let mut asked = [0_u64; 9];
        for turn in 0..150 {
            if turn % 10 == 0 {
                // Down to where guarantees do not fit, and up again.
                load = Load {
                    replicas: 1 + draw(12) as usize,
                    each: 100.0 + draw(8_000) as f64,
                    running: 1.0 + draw(30) as f64,
                    waiting: draw(40) as f64,
                };
                asked.iter_mut().for_each(|asked| *asked = draw(20_000) * draw(3));
            }
            let place = |list: &[&str], name: &str| list.iter().position(|one| *one == name).unwrap();
            let offered = |model: &str, tier: &str| asked[place(&SIZES, model) * 3 + place(&TIERS, tier)];
            let tick = control.turn(load, offered);
            let entry = |model: &str, tier: &str| tick.table.row(model, tier).unwrap().limits[&TPM];
            for model in SIZES {
                for pair in TIERS.windows(2) {
                    let (high, low) = (entry(model, pair[0]), entry(model, pair[1]));
                    assert!(
                        high.tier_limit >= low.tier_limit,
                        "{seed} {turn} {model}: {pair:?} {high:?} {low:?}"
                    );
                    assert!(high.key_limit > low.key_limit, "{model}: {pair:?}");
                }
            }
            for tier in TIERS {
                for pair in SIZES.windows(2) {
                    let (small, large) = (entry(pair[0], tier), entry(pair[1], tier));
                    let said = format!("{seed} {turn} {tier}: {pair:?} {small:?} {large:?}");
                    assert!(small.tier_limit >= large.tier_limit, "{said}");
                    assert!(small.key_limit > large.key_limit, "{said}");
                }
            }
            let now = entry("minimax-m2.7", "free").tier_limit;
            moved += u32::from(now != before);
            before = now;
        }
    }
    assert!(moved > 100, "the load moved nothing: {moved}");
}

#[test]
fn s0_1_s0_8_s0_9_s0_10_the_plans_their_two_limits_and_their_gates() {
    for (name, model) in &policy("kimchi").models {
        assert_eq!(model.tiers.keys().map(|tier| tier.as_str()).collect::<BTreeSet<_>>(), TIERS.into());
        for (tier, grant) in &model.tiers {
            let units: Vec<&Dimension> = grant.key_limits.keys().collect();
            assert_eq!(units, [&Dimension::RequestsPerMinute, &TPM], "{name} {tier}");
            let gate = if tier.as_str() == "free" { Credit::Required } else { Credit::Ignored };
            assert_eq!(grant.credit, gate);
        }
        assert!(model.entry.price.is_some() && model.entry.providers.len() > 1, "S0-7: {name}");
    }
}

/// What the rows together need, the language has and a shipped policy shows.
#[test]
fn x_2_every_dimension_and_scope_is_in_a_shipped_policy() {
    let mut units = BTreeSet::new();
    let mut budgets = BTreeSet::new();
    for name in ["kimchi", "kimi", "predictions", "media"] {
        for model in policy(name).models.values() {
            for grant in model.tiers.values() {
                units.extend(grant.key_limits.keys().chain(grant.account_limits.keys()).copied());
                budgets.extend(grant.budgets.keys().copied());
            }
        }
    }
    use Dimension::*;
    assert!(
        [RequestsPerMinute, TokensPerMinute, ImagesPerMinute, Concurrency, Jobs]
            .iter()
            .all(|unit| units.contains(unit))
    );
    assert!(budgets.contains(&tidegate::wire::Budget::TokensPerDay));
    assert!(!policy("kimchi").providers.is_empty());
}
