//! Streams that run past a budget or the credit: ended where the policy says so, in words and in a
//! form that their clients understand, and settled by what was seen.

use std::path::Path;
use std::process::Command;

use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tidegate::enforce::config::KeySource;
use tidegate::wire::{Budget, Credit, Dialect, LimitTable, Price, Streams};

use crate::budgets::{Time, budgeted, counted, kept, period, priced};
use crate::clients::{missing, run};
use crate::support::node::{OUTPUT, Rig, keys, timed, until};

/// A dollar's millionth for each output token.
fn table(budgets: &[(Budget, u64)], streams: Streams, dialect: &str) -> LimitTable {
    let mut table = budgeted("UTC", budgets);
    let product = table.products.values_mut().next().unwrap();
    (product.streams, product.answers) = (streams, Dialect::preset(dialect).unwrap());
    priced(&mut table, Price { output: 1_000_000, ..Price::default() });
    table
}

async fn with_credit(credit: u64, streams: Streams, dialect: &str) -> Rig {
    let mut table = table(&[], streams, dialect);
    table.rows[0].credit = Credit::Required;
    let time = Time::new();
    let state = kept(&time);
    Rig::with(&table, move |config| {
        state(config);
        let account = json!({"account": "acme", "recharged_micros": credit});
        config.keys = KeySource::Inline(format!("{}{account}\n", keys()));
    })
    .await
}

/// No bound on its output: what it will cost is not known beforehand.
fn unbounded(rig: &Rig, path: &str, behave: &str) -> Request<Full<bytes::Bytes>> {
    rig.post(path, &json!({"model": "m", "user": behave, "stream": true, "messages": []}))
}

/// The events' text, and how many of them had content.
async fn read(rig: &Rig, path: &str, behave: &str) -> (String, u64) {
    let (status, _, text) = rig.answer(unbounded(rig, path, behave)).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    until("settled", || rig.report().pools["p"].in_flight == 0).await;
    let content = text.matches("Hi ").count() as u64;
    (text, content)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_passes_its_credit_ends_with_an_error_of_its_dialect() {
    for (dialect, path, begins, named) in [
        ("openai", "/v1/chat/completions", "data: {\"error\":", false),
        ("anthropic", "/v1/messages", "event: error\ndata: {\"type\":\"error\",", true),
        ("kimi", "/v1/chat/completions", "data: {", false),
    ] {
        let rig = with_credit(5, Streams::EndPastBudget, dialect).await;
        // Without an end of its own.
        let (text, content) = read(&rig, path, "slow").await;
        let (_, last) = text.trim_end().rsplit_once("\n\n").unwrap();
        assert!(last.starts_with(begins), "{last}");
        assert_eq!(last.starts_with("event: "), named);
        let data = last.split_once("data: ").unwrap().1;
        serde_json::from_str::<Value>(data).unwrap_or_else(|error| panic!("{error}: {data}"));
        assert!(text.ends_with("\n\n") && !text.contains("[DONE]"), "{text}");
        // The sixth event is one too many.
        assert!((6..=7).contains(&content), "{content}: {text}");
        let line = period(&rig, "credit").await;
        assert_eq!((&line["used"], &line["reserved"]), (&json!(content), &json!(0)), "{line}");
        assert_eq!(counted(&rig, "tidegate_enforce_streams_ended_total").await, 1.0);
        // There is nothing left to begin another one with.
        let status = rig.answer(unbounded(&rig, path, "slow")).await.0;
        assert!(status.is_client_error(), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_field_a_stream_runs_to_its_end_and_the_balance_goes_below_zero() {
    let rig = with_credit(2, Streams::Finish, "openai").await;
    let (text, content) = read(&rig, "/v1/chat/completions", "steps").await;
    assert!(text.ends_with("data: [DONE]\n\n") && !text.contains("error"), "{text}");
    let line = period(&rig, "credit").await;
    assert_eq!((content, &line["used"], &line["limit"]), (OUTPUT, &json!(OUTPUT), &json!(2)), "{line}");
    assert_eq!(counted(&rig, "tidegate_enforce_streams_ended_total").await, 0.0);
    assert!(rig.answer(unbounded(&rig, "/v1/chat/completions", "")).await.0.is_client_error());
}

/// Rates never end a stream, budgets that are not passed neither; a bounded one was reserved whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_inside_its_budget_is_not_touched_and_another_one_sees_what_it_has_used() {
    let time = Time::new();
    let table = table(&[(Budget::SpendPerDay, 1_000)], Streams::EndPastBudget, "openai");
    let rig = Rig::with(&table, kept(&time)).await;
    let (text, content) = read(&rig, "/v1/chat/completions", "steps").await;
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    let used = period(&rig, "spend_per_day").await;
    assert_eq!((content, &used["used"], &used["reserved"]), (OUTPUT, &json!(OUTPUT), &json!(0)), "{used}");
    // Learned by now: four tokens are reserved, and more as it flows.
    let mut open = rig.send(unbounded(&rig, "/v1/chat/completions", "slow")).await.into_body();
    let mut seen = 0;
    while seen < 20 {
        let piece = timed(open.frame()).await.unwrap().unwrap().into_data().unwrap();
        seen += String::from_utf8_lossy(&piece).matches("Hi ").count() as u64;
    }
    let reserved = period(&rig, "spend_per_day").await["reserved"].as_u64().unwrap();
    assert!((seen..=seen * 2).contains(&reserved), "{reserved} reserved, {seen} seen");
    drop(open);
    until("settled", || rig.report().pools["p"].in_flight == 0).await;
    let line = period(&rig, "spend_per_day").await;
    assert_eq!(line["reserved"], 0);
    let used = line["used"].as_u64().unwrap() - OUTPUT;
    assert!((seen..=seen * 2).contains(&used), "{used} used, {seen} seen");
}

const CLIENTS: &str = r#"
import sys, anthropic, openai

talk = [{"role": "user", "content": "Hello"}]
def ended(stream, kind, said):
    seen = 0
    try:
        for _ in stream:
            seen += 1
    except kind as error:
        assert said in str(error.body), error.body
        return seen
    raise SystemExit(f"{kind}: not told")

if sys.argv[2] == "openai":
    client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="canary-key", max_retries=0, timeout=10)
    stream = client.chat.completions.create(model="m", user="slow", messages=talk, stream=True)
    seen = ended(stream, openai.APIError, "insufficient_quota")
else:
    client = anthropic.Anthropic(base_url=sys.argv[1], api_key="canary-key", max_retries=0, timeout=10)
    create = client.messages.create
    stream = create(model="m", extra_body={"user": "slow"}, messages=talk, max_tokens=4, stream=True)
    seen = ended(stream, anthropic.APIStatusError, "error")
assert 6 <= seen <= 7, seen
print(f"told after {seen} events")
"#;

#[tokio::test]
async fn the_openai_and_anthropic_clients_raise_the_end_of_a_stream_as_an_error() {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venv/bin/python");
    let reason =
        "target/venv has no `openai` and `anthropic`; run: target/venv/bin/pip install openai anthropic";
    if missing(Command::new(&python).args(["-c", "import openai, anthropic"]), reason) {
        return;
    }
    for dialect in ["openai", "anthropic"] {
        let rig = with_credit(5, Streams::EndPastBudget, dialect).await;
        let mut client = Command::new(&python);
        client.args(["-c", CLIENTS, &format!("http://{}", rig.node.proxy), dialect]);
        println!("{dialect}: {}", run(client).await);
    }
}
