//! Predictions: limits of one key, and jobs from creation to completion.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::rig::*;

/// As the document has them; the reset is an example's, the start of a minute.
const HEADERS: [(&str, &str); 3] =
    [("x-ratelimit-limit", "60"), ("x-ratelimit-remaining", "45"), ("x-ratelimit-reset", "1705312800")];
const CONCURRENT: &str = r#"{"error":{"type":"rate_limit_error","message":"Concurrent prediction limit exceeded. 5/5 predictions running.","code":"CONCURRENT_LIMIT_EXCEEDED","details":{"limit":5,"active":5}}}"#;

fn of(name: &str, account: &str, rest: &str) -> String {
    key(name, account, &format!("\"tier\":\"default\"{rest}"))
}

async fn create(rig: &Rig, key: &str) -> Answer {
    rig.ask(key, "/v1/predictions", &json!({"model": "sdxl", "input": {"prompt": "a tide gate"}})).await
}

async fn look(rig: &Rig, key: &str, id: &str) -> Answer {
    rig.call(key, Method::GET, &format!("/v1/predictions/{id}"), &Value::Null).await
}

/// Running predictions of the key until there are five; the sixth's answer.
async fn fill(rig: &Rig, key: &str) -> (Vec<String>, Answer) {
    let mut running = Vec::new();
    loop {
        let answer = create(rig, key).await;
        if answer.status != StatusCode::CREATED {
            return (running, answer);
        }
        running.push(answer.json()["id"].as_str().unwrap().to_owned());
    }
}

/// 60 a minute of each key, across models; another key of the account has its own.
#[tokio::test]
async fn s2_1_s2_2_s2_9_a_key_has_sixty_requests_a_minute_and_not_one_more() {
    let rig = Rig::start("predictions", of("a", "acme", "") + &of("b", "acme", "")).await;
    for _ in 0..3 {
        aligned().await;
        let begun = minute();
        let sums = [rig.admitted("a", "sdxl", 40, 4).await, rig.admitted("a", "video-01", 20, 4).await];
        let refused = rig.say("a", "sdxl", "2").await;
        let other = rig.chat("b", "sdxl", 2).await;
        if minute() == begun {
            assert_eq!((sums, refused.status), ([40, 20], StatusCode::TOO_MANY_REQUESTS));
            let error = json!({
                "type": "rate_limit_error", "message": "Rate limit exceeded. Limit is 60 requests per minute.",
                "code": "RATE_LIMIT_EXCEEDED", "details": {"limit": 60, "remaining": 0},
            });
            assert_eq!(refused.json(), json!({"error": error}));
            return assert_eq!(other, StatusCode::OK);
        }
    }
    panic!("no minute was long enough");
}

/// Fifteen of sixty: the document's header values but for the minute, on whatever answer; and
/// Retry-After with a 429 only.
#[tokio::test]
async fn s2_6_s2_7_s2_8_the_headers_of_the_document_on_every_answer() {
    let rig = Rig::start("predictions", of("a", "acme", "")).await;
    for _ in 0..3 {
        aligned().await;
        let (begun, before) = (minute(), rig.limit("a", "sdxl", "rpm").await["remaining"].as_u64().unwrap());
        let mut answers = Vec::new();
        for at in 0..before {
            // Served; without such a model; and served with what the upstream itself refuses.
            let model = if at % 5 == 4 { "none" } else { "sdxl" };
            answers.push(rig.say("a", model, "2").await);
            if answers.last().unwrap().header("x-ratelimit-remaining") == 45 {
                break;
            }
        }
        let shown = answers.last().unwrap();
        let next = (begun + 1) * 60;
        if minute() != begun {
            continue;
        }
        for (name, value) in HEADERS {
            let value = if name.ends_with("reset") { next.to_string() } else { value.to_owned() };
            assert_eq!(shown.headers[name], value.as_str());
        }
        rig.world.refuses.lock().unwrap().insert("main".to_owned(), (500, "{}"));
        answers.push(rig.say("a", "sdxl", "2").await);
        answers.push(rig.call("a", Method::GET, "/v1/models", &Value::Null).await);
        let names = HEADERS.map(|(name, _)| name);
        assert!(answers.iter().any(|answer| answer.status == StatusCode::NOT_FOUND));
        assert!(answers.iter().any(|answer| answer.status == StatusCode::INTERNAL_SERVER_ERROR));
        assert!(answers.iter().all(|answer| answer.limit_headers() == names.into()), "{answers:?}");
        rig.admitted("a", "sdxl", 60, 4).await;
        let refused = rig.say("a", "sdxl", "2").await;
        if minute() == begun {
            assert_eq!(
                (refused.status, refused.header("x-ratelimit-remaining")),
                (StatusCode::TOO_MANY_REQUESTS, 0)
            );
            let wait = refused.header("retry-after");
            assert!(unix() + wait >= next && refused.limit_headers().len() == 4, "{refused:?}");
            return;
        }
    }
    panic!("no minute was long enough");
}

#[tokio::test]
async fn s2_3_s2_10_s2_11_s2_12_s2_13_five_run_and_the_sixth_gets_the_bytes_of_the_document() {
    let rig = Rig::start("predictions", of("a", "acme", "") + &of("b", "acme", "")).await;
    let (running, refused) = fill(&rig, "a").await;
    assert_eq!(running.len(), 5);
    assert_eq!((refused.status, refused.body.as_str()), (StatusCode::TOO_MANY_REQUESTS, CONCURRENT));
    assert_eq!(refused.headers["content-type"], "application/json");
    let details = &refused.json()["error"]["details"];
    assert!(details["limit"].is_u64() && details["active"].is_u64());
    // S2-17: the headers go on showing the requests of the minute.
    assert_eq!(refused.header("x-ratelimit-limit"), 60);
    assert!(refused.header("x-ratelimit-remaining") > 40 && refused.header("retry-after") >= 1);
    assert_eq!(create(&rig, "b").await.status, StatusCode::CREATED, "limits are a key's");
    // Answered long since, they run: only an end that is seen frees a slot, whichever it is.
    for (id, end) in running.iter().zip(["succeeded", "failed", "canceled", "by request"]) {
        assert_eq!(create(&rig, "a").await.body, CONCURRENT);
        match end {
            "by request" => {
                let path = format!("/v1/predictions/{id}/cancel");
                assert_eq!(rig.ask("a", &path, &json!({})).await.status, StatusCode::OK);
            }
            end => {
                rig.world.predictions.lock().unwrap().insert(id.clone(), end.to_owned());
                assert!(look(&rig, "a", id).await.body.contains(end));
            }
        }
        let (more, refused) = fill(&rig, "a").await;
        assert_eq!((more.len(), refused.body.as_str()), (1, CONCURRENT), "{end}");
    }
}

/// No limit on spend is there by default; one that is set in a key's line binds that key, to the
/// day and to the month, and is told with another status than a rate.
#[tokio::test]
async fn s2_4_s2_5_s2_17_spend_is_without_limit_until_a_key_has_one() {
    let spend = |unit: &str| format!(",\"limits\":{{\"{unit}\":1000000}}");
    let (day, month) = (spend("spend_per_day"), spend("spend_per_month"));
    let lines = of("free", "a", "") + &of("day", "b", &day) + &of("month", "b", &month);
    let rig = Rig::start("predictions", lines).await;
    for _ in 0..4 {
        assert_eq!(rig.chat("free", "video-01", 2).await, StatusCode::OK, "$0.50 each");
    }
    for (name, text) in [("day", "day"), ("month", "month")] {
        for _ in 0..2 {
            assert_eq!(rig.chat(name, "video-01", 2).await, StatusCode::OK, "{name}");
        }
        let refused = rig.say(name, "video-01", "2").await;
        assert_eq!(refused.status, StatusCode::PAYMENT_REQUIRED, "{refused:?}");
        let error = &refused.json()["error"];
        assert_eq!(error["message"], format!("Limit of 1.00 dollars per {text} reached."));
        assert_eq!(
            (&error["code"], &error["details"]["limit"]),
            (&json!("SPEND_LIMIT_EXCEEDED"), &json!(1.0))
        );
        let until: jiff::Timestamp = error["details"]["until"].as_str().unwrap().parse().unwrap();
        // With what spreads those who come back, at most a minute.
        let over = until.as_second().rem_euclid(86_400);
        assert!(over <= 61, "a midnight of UTC: {until}");
        assert!(!refused.headers.contains_key("retry-after"), "only with a 429");
    }
    let left = rig.standing("month", "video-01").await;
    let of_key = |line: &&Value| line["budget"] == "spend_per_month" && line["scope"] == "key";
    let line = left["periods"].as_array().unwrap().iter().find(of_key).unwrap();
    assert_eq!((&line["used"], &line["remaining"]), (&json!(1_000_000), &json!(0)), "{left}");
}

/// "Don't": what they ask of clients is enforced where it can be.
#[tokio::test]
async fn s2_14_s2_15_polls_once_a_second_many_keys_gain_little_and_early_retries_put_nothing_off() {
    let names: Vec<String> = (0..7).map(|at| format!("k{at}")).collect();
    let rig = Rig::start("predictions", names.iter().map(|name| of(name, "acme", "")).collect()).await;
    let id = create(&rig, "k0").await.json()["id"].as_str().unwrap().to_owned();
    assert_eq!(look(&rig, "k0", &id).await.status, StatusCode::OK);
    let first = std::time::Instant::now();
    let early = look(&rig, "k0", &id).await;
    assert_eq!(early.status, StatusCode::TOO_MANY_REQUESTS);
    assert!((1..=2).contains(&early.header("retry-after")));
    eventually("the next look", async || look(&rig, "k0", &id).await.status == StatusCode::OK).await;
    let waited = first.elapsed();
    assert!((950..2_500).contains(&waited.as_millis()), "retries every 20 ms put nothing off: {waited:?}");
    // Five keys' worth of jobs for an account, however many keys it has.
    let mut running = 1;
    for name in &names {
        running += fill(&rig, name).await.0.len();
    }
    assert_eq!(running, 25);
}

/// Other limits by plan; and an end that the node is told of frees a slot without a poll.
#[tokio::test]
async fn s2_16_enterprise_plans_have_more_and_a_webhook_ends_a_prediction() {
    let rig =
        Rig::start("predictions", of("a", "a", "") + &key("big", "big", "\"tier\":\"enterprise\"")).await;
    for (dimension, default, more) in [("rpm", 60, 600), ("jobs", 5, 50)] {
        assert_eq!(rig.limit("a", "sdxl", dimension).await["limit"], default);
        assert_eq!(rig.limit("big", "sdxl", dimension).await["limit"], more);
    }
    let (running, _) = fill(&rig, "a").await;
    let address = rig.world.created.lock().unwrap()["webhook"].as_str().unwrap().to_owned();
    let path = address.split_once("//edge").unwrap().1;
    let told = json!({"id": running.last().unwrap(), "status": "succeeded"});
    assert_eq!(rig.ask("a", path, &told).await.status, StatusCode::OK);
    assert_eq!(fill(&rig, "a").await.0.len(), 1);
    assert_eq!(rig.ask("a", path, &told).await.status, StatusCode::OK, "told again, it frees nothing more");
    assert_eq!(create(&rig, "a").await.body, CONCURRENT);
}

/// No limit on spend is stated, and one can be for each key: every model has a price.
#[test]
fn s2_3_s2_4_s2_5_five_jobs_no_spend_limit_and_a_price_to_set_one_by() {
    use tidegate::unit::{Dimension, Limit};
    let policy = policy("predictions");
    for model in policy.models.values() {
        let default = &model.tiers["default"];
        assert_eq!(default.key_limits[&Dimension::Jobs], Limit::Finite(5));
        assert!(default.budgets.is_empty() && model.entry.price.is_some());
        let enterprise = &model.tiers["enterprise"];
        assert!(enterprise.key_limits.iter().all(|(unit, limit)| *limit > default.key_limits[unit]));
    }
}
