//! Days, months and credit over HTTP: what is used up stays used up, whatever dies.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::StatusCode;
use http_body_util::BodyExt;
use serde_json::json;
use tidegate::enforce::config::{KeySource, NodeConfig};
use tidegate::enforce::node::Node;
use tidegate::ledger::Wall;
use tidegate::unit::{Limit, PPM};
use tidegate::wire::{Budget, BudgetEntry, Credit, LimitTable, ModelEntry, Price, Product};

use crate::support::node::{
    INPUT, KEY, M, OUTPUT, Rig, config, key_line, keys, table, timed, until, write_table,
};

/// Tokens of one answer of the upstream.
const USED: u64 = INPUT + OUTPUT;
/// 2026-11-22T20:00:00Z: four hours before midnight in UTC.
const EVENING: u64 = 1_795_377_600_000;

/// A wall clock for tests.
#[derive(Clone)]
pub struct Time(Arc<AtomicU64>);

impl Time {
    pub fn new() -> Time {
        Time(Arc::new(AtomicU64::new(EVENING)))
    }

    fn wall(&self) -> Wall {
        let time = self.clone();
        Wall::told(move || time.0.load(Ordering::SeqCst))
    }

    fn hours(&self, hours: i64) {
        let by = hours.unsigned_abs() * 3_600_000;
        match hours < 0 {
            true => self.0.fetch_sub(by, Ordering::SeqCst),
            false => self.0.fetch_add(by, Ordering::SeqCst),
        };
    }
}

pub fn budgeted(zone: &str, account: &[(Budget, u64)]) -> LimitTable {
    let mut table = table(1, &[]);
    table.products = [("chat".into(), Product { zone: zone.to_owned(), ..Product::default() })].into();
    let row = &mut table.rows[0];
    row.product = Some("chat".into());
    let entry = |limit: &u64| BudgetEntry { key: M, account: Limit::Finite(*limit) };
    row.budgets = account.iter().map(|(budget, limit)| (*budget, entry(limit))).collect();
    table
}

pub fn priced(table: &mut LimitTable, price: Price) {
    table.models = [("m".into(), ModelEntry { price: Some(price), ..ModelEntry::default() })].into();
}

pub fn kept(time: &Time) -> impl FnOnce(&mut NodeConfig) + use<> {
    let wall = time.wall();
    move |config| {
        let dir = tempfile::tempdir().unwrap().keep();
        config.state = Some(dir);
        config.wall = wall;
    }
}

/// An account's line of a budget, as its tenant sees it.
pub async fn period(rig: &Rig, budget: &str) -> serde_json::Value {
    let request = http::Request::get(format!("http://{}/v1/limits", rig.node.proxy))
        .header("authorization", format!("Bearer {KEY}"))
        .body(http_body_util::Full::default())
        .unwrap();
    let (_, _, body) = rig.answer(request).await;
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    let periods = body["models"][0]["periods"].as_array().unwrap().clone();
    let found = periods.into_iter().find(|line| line["budget"] == budget && line["scope"] == "account");
    found.unwrap_or_else(|| panic!("{budget}: {body}"))
}

pub async fn counted(rig: &Rig, metric: &str) -> f64 {
    let (_, _, page) = rig.get(rig.node.admin, "/metrics").await;
    let line =
        page.lines().find(|line| line.starts_with(metric)).unwrap_or_else(|| panic!("{metric}: {page}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d6_tokens_of_a_day_end_at_the_zones_midnight_and_no_clock_step_brings_them_back() {
    let time = Time::new();
    // 15:00 in New York: nine hours until midnight.
    let rig =
        Rig::with(&budgeted("America/New_York", &[(Budget::TokensPerDay, 2 * USED)]), kept(&time)).await;
    let ask = || {
        let body =
            json!({"model": "m", "max_tokens": OUTPUT, "messages": [{"role": "user", "content": "x"}]});
        rig.post("/v1/chat/completions", &body)
    };
    for _ in 0..2 {
        assert_eq!(rig.answer(ask()).await.0, StatusCode::OK);
    }
    let (status, headers, body) = rig.answer(ask()).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{body}");
    assert!(body.contains("tokens per day"), "{body}");
    let wait: u64 = headers["retry-after"].to_str().unwrap().parse().unwrap();
    let midnight = 9 * 3_600;
    assert!((midnight..=midnight + midnight / 10 + 1).contains(&wait), "{wait}");
    // Backwards nothing is free again; the refusal cost nothing.
    time.hours(-30);
    assert_eq!(rig.answer(ask()).await.0, StatusCode::TOO_MANY_REQUESTS);
    time.hours(39);
    assert_eq!(rig.answer(ask()).await.0, StatusCode::OK);
    assert_eq!(counted(&rig, "tidegate_enforce_refusals_total{reason=\"account_budget\"}").await, 2.0);
    let line = period(&rig, "tpd").await;
    assert_eq!((&line["used"], &line["remaining"]), (&json!(USED), &json!(USED)), "{line}");
    assert_eq!(line["until"], "2026-11-24T05:00:00Z");
    assert_eq!(rig.upstream.requests(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credit_is_spent_to_the_micro_dollar_survives_a_restart_and_a_recharge_adds_to_it() {
    let time = Time::new();
    let mut table = budgeted("UTC", &[]);
    table.rows[0].credit = Credit::Required;
    // 11 + 16 + 3 micro-dollars an answer.
    priced(&mut table, Price { input: 1_000_000, output: 4_000_000, request: 3, ..Price::default() });
    let dir = tempfile::tempdir().unwrap();
    write_table(&dir.path().join("table.json"), &table);
    let upstream = crate::support::node::Upstream::start().await;
    let accounts = |recharged: u64| {
        let account = json!({"account": "acme", "recharged_micros": recharged, "vouchers_micros": 7});
        format!("{}{account}\n", keys())
    };
    let start = |recharged: u64| {
        let mut config = config(dir.path(), &[upstream.url()]);
        config.state = Some(dir.path().join("state"));
        config.keys = KeySource::Inline(accounts(recharged));
        config.wall = time.wall();
        async {
            let node = Node::start(config, None).await.unwrap();
            until("the first table", || node.cell().held().is_some()).await;
            node
        }
    };
    let http = crate::support::node::client();
    let ask = async |proxy: std::net::SocketAddr, key: &str| {
        let body = json!({"model": "m", "max_tokens": OUTPUT, "messages": []});
        let request = http::Request::post(format!("http://{proxy}/v1/chat/completions"))
            .header("authorization", format!("Bearer {key}"))
            .body(http_body_util::Full::new(bytes::Bytes::from(body.to_string())))
            .unwrap();
        let response = timed(http.request(request)).await.unwrap();
        let status = response.status();
        timed(response.into_body().collect()).await.unwrap();
        status
    };
    let node = start(83).await;
    assert_eq!(
        ask(node.proxy, "other").await,
        StatusCode::TOO_MANY_REQUESTS,
        "it has no account, so no credit"
    );
    for _ in 0..2 {
        assert_eq!(ask(node.proxy, KEY).await, StatusCode::OK);
    }
    node.shutdown().await;
    // 90 in all; 60 are spent.
    let node = start(83).await;
    assert_eq!(ask(node.proxy, KEY).await, StatusCode::OK);
    assert_eq!(ask(node.proxy, KEY).await, StatusCode::TOO_MANY_REQUESTS);
    node.shutdown().await;
    let node = start(113).await;
    assert_eq!(ask(node.proxy, KEY).await, StatusCode::OK);
    assert_eq!(ask(node.proxy, KEY).await, StatusCode::TOO_MANY_REQUESTS);
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_place_for_the_ledger_budgets_are_closed_and_rates_are_not() {
    let mut table = budgeted("UTC", &[(Budget::TokensPerDay, 1_000_000)]);
    let rig = Rig::start(&table).await;
    let (status, headers, body) = rig.answer(rig.chat("", false)).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body}");
    assert!(headers.contains_key("retry-after"));
    assert_eq!(counted(&rig, "tidegate_enforce_ledger_open").await, 0.0);
    assert_eq!(counted(&rig, "tidegate_enforce_ledger_closed_total").await, 1.0);
    assert_eq!(rig.upstream.requests(), 0);
    table.stamp.version = 2;
    table.rows[0].budgets = BTreeMap::new();
    write_table(&rig.table_path(), &table);
    until("rates only", || rig.node.cell().held().is_some_and(|held| held.stamp().version == 2)).await;
    assert_eq!(rig.answer(rig.chat("", false)).await.0, StatusCode::OK);
}

/// H03 and H14: what an upstream says of usage is neither final before its end nor beyond belief.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h03_h14_usage_that_is_missing_partial_absurd_or_said_twice_is_charged_within_bounds() {
    let time = Time::new();
    let mut table = budgeted("UTC", &[(Budget::TokensPerDay, 1_000_000), (Budget::SpendPerMonth, 1 << 40)]);
    let model = ModelEntry { output_max: Some(50), ..ModelEntry::default() };
    table.models = [("m".into(), model)].into();
    let rig = Rig::with(&table, kept(&time)).await;
    let mut before = 0;
    let mut used = async |behave: &str, stream: bool| {
        let response = rig.send(rig.chat(behave, stream)).await;
        // A stream that breaks off is an error of its body.
        let _ = timed(response.into_body().collect()).await;
        until("settled", || rig.report().pools["p"].in_flight == 0).await;
        let all = period(&rig, "tpd").await["used"].as_u64().unwrap();
        let used = all - before;
        before = all;
        used
    };
    assert_eq!(used("", false).await, USED);
    assert_eq!(used("", true).await, USED);
    // Nothing said of a stream: its events, and the input as it was estimated.
    let unsaid = used("nousage", true).await;
    assert!((OUTPUT..USED).contains(&unsaid) || unsaid >= OUTPUT, "{unsaid}");
    // Nothing said of a whole answer, or the upstream dies: at least what such requests use.
    let learned = rig.node.cell().with(|limiter, _| limiter.output_expected("m", "t")).unwrap() as u64;
    assert!(used("nousage", false).await >= learned);
    assert!(used("die", true).await >= learned, "partial is not final");
    // 1e9 tokens of output: what the model can answer with at most.
    assert_eq!(used("absurd", false).await, INPUT + 50);
    assert_eq!(used("absurd", true).await, INPUT + 50);
    assert_eq!(counted(&rig, "tidegate_enforce_usages_clamped_total").await, 2.0);
    // Said twice in one stream: the last word counts, once.
    assert_eq!(used("twice", true).await, USED);
    assert_eq!(used("500", false).await, 0);
    assert_eq!(used("400", false).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_nodes_one_owns_an_accounts_budget_and_the_other_holds_a_hundredth() {
    let time = Time::new();
    let budget = 1_000 * USED;
    let mut table = budgeted("UTC", &[(Budget::TokensPerDay, budget)]);
    let half = PPM / 2;
    table.pools.get_mut("p").unwrap().shares = [("a".into(), half), ("b".into(), half)].into();
    let lines: Vec<String> =
        (0..20).map(|at| key_line(&format!("canary-{at}"), Some(&format!("account-{at}")))).collect();
    let both = async |name: &'static str| {
        let (lines, state) = (lines.join("\n"), kept(&time));
        Rig::with(&table, move |config| {
            state(config);
            config.node = name.into();
            config.keys = KeySource::Inline(lines);
        })
        .await
    };
    let (a, b) = (both("a").await, both("b").await);
    // Far below the budget, far above a hundredth of it: 10 answers at the other, any number here.
    let mut owned = [0, 0];
    for key in 0..20 {
        let mut passed = [0, 0];
        for (rig, passed) in [&a, &b].into_iter().zip(&mut passed) {
            for _ in 0..14 {
                let mut request = rig.chat("", false);
                let bearer = format!("Bearer canary-{key}").parse().unwrap();
                request.headers_mut().insert("authorization", bearer);
                let body = json!({"model": "m", "max_tokens": OUTPUT, "messages": []});
                *request.body_mut() = bytes::Bytes::from(body.to_string()).into();
                let (status, headers, _) = rig.answer(request).await;
                match status {
                    StatusCode::OK => *passed += 1,
                    _ => assert!(headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() > 3_600),
                }
            }
        }
        let owner = usize::from(passed[1] == 14);
        assert_eq!(passed[owner], 14, "{passed:?}");
        assert_eq!(passed[1 - owner], 10, "{passed:?}");
        owned[owner] += 1;
    }
    assert!(owned[0] > 3 && owned[1] > 3, "{owned:?}");
}
