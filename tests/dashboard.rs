//! Every query of the dashboard, asked of a real Prometheus that scrapes a real demo while half of
//! its replicas die; and both pages as `promtool` sees them.
//!
//! Needs `prometheus` and `promtool`, as tests/fleet_prometheus.rs does.
#![cfg(feature = "daemon")]
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a broken promise ends the test"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use support::prometheus::{Prometheus, promtool};
use tidegate::dashboard::alerts::ALERTS;
use tidegate::dashboard::{ROWS, grafana};

/// A third of the demo: then half of the replicas die.
const HALVED_AT: u64 = 25;
const SEED: &str = "7";
/// Seconds of the demo looked at: before the halving, and from its first consequence to its last.
const BEFORE: [u64; 2] = [16, HALVED_AT - 1];
const AFTER: [u64; 2] = [HALVED_AT + 2, HALVED_AT + 14];
/// Longest that the next line of the demo, or an answer, may take.
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn the_committed_dashboard_and_alerts_are_what_the_command_prints() {
    for (arguments, file) in [
        (&["dashboard"][..], "dashboards/tidegate.json"),
        (&["dashboard", "--alerts"], "dashboards/alerts.yaml"),
    ] {
        let printed = Command::new(env!("CARGO_BIN_EXE_tidegate")).args(arguments).output().unwrap();
        assert!(printed.status.success(), "{arguments:?}");
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        if std::env::var_os("TIDEGATE_REGENERATE").is_some() {
            std::fs::write(&path, &printed.stdout).unwrap();
        }
        let committed = std::fs::read(&path).unwrap();
        assert!(
            committed == printed.stdout,
            "{file} is old: TIDEGATE_REGENERATE=1 cargo test --test dashboard"
        );
    }
}

/// A demo and the lines it prints.
struct Demo {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Drop for Demo {
    fn drop(&mut self) {
        // Nobody reads on, so it tidies up and ends with its next line; if not, it is ended.
        self.lines = mpsc::channel().1;
        for _ in 0..500 {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Demo {
    fn start() -> Demo {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tidegate"))
            .args(["demo", "--json", "--seed", SEED, "--seconds", &(3 * HALVED_AT).to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            // Ends, and with it the pipe, when the receiver is gone.
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Demo { child, lines }
    }

    fn next(&self) -> Value {
        let line = self.lines.recv_timeout(PATIENCE).expect("the demo goes on");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    /// Until second `at` of the demo has passed; when that was.
    fn pass(&self, at: u64) -> f64 {
        loop {
            let line = self.next();
            assert!(line.get("summary").is_none(), "{line}");
            if line["t"] == at {
                return SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
            }
        }
    }
}

/// Steps of a query over a range: per step, each series' labels and value.
type Steps = BTreeMap<String, BTreeMap<String, String>>;

async fn fetch(url: &str, form: &[(&str, &str)]) -> String {
    let encode = |text: &str| -> String { text.bytes().map(|byte| format!("%{byte:02X}")).collect() };
    let body: Vec<String> = form.iter().map(|(name, value)| format!("{name}={}", encode(value))).collect();
    let request = if form.is_empty() { Request::get(url) } else { Request::post(url) };
    let request = request.header("content-type", "application/x-www-form-urlencoded");
    let request = request.body(Full::new(Bytes::from(body.join("&")))).unwrap();
    let exchange = async {
        let answer = support::node::client().request(request).await.unwrap();
        answer.into_body().collect().await.unwrap().to_bytes()
    };
    let bytes = tokio::time::timeout(PATIENCE, exchange).await.expect("an answer in time");
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// As Grafana would fill it in, for everything there is.
fn filled(expr: &str) -> String {
    ["$pool", "$model", "$tier"]
        .iter()
        .fold(expr.to_owned(), |expr, name| expr.replace(name, ".*"))
        .replace("$__rate_interval", "6s")
}

async fn ask(prometheus: &Prometheus, expr: &str, [from, to]: [f64; 2]) -> Steps {
    let url = format!("{}/api/v1/query_range", prometheus.url());
    let (from, to) = (from.to_string(), to.to_string());
    let form = [("query", filled(expr)), ("start", from), ("end", to), ("step", "1".to_owned())];
    let form: Vec<(&str, &str)> = form.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let answer: Value = serde_json::from_str(&fetch(&url, &form).await).unwrap();
    assert_eq!(answer["status"], "success", "{expr}: {answer}");
    let mut steps = Steps::new();
    for series in answer["data"]["result"].as_array().unwrap() {
        for sample in series["values"].as_array().unwrap() {
            let step = steps.entry(sample[0].to_string()).or_default();
            step.insert(series["metric"].to_string(), sample[1].as_str().unwrap().to_owned());
        }
    }
    steps
}

fn lint(name: &str, page: &str) {
    let mut child = promtool()
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("promtool does not start ({error}); install prometheus"));
    child.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{name}: {}", String::from_utf8_lossy(&said));
}

/// Every metric that an expression names.
fn named(expr: &str) -> BTreeSet<&str> {
    let words = expr.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("tidegate_") || word.starts_with("process_")).collect()
}

fn has(page: &str, metric: &str) -> bool {
    page.lines().any(|line| line.strip_prefix(metric).is_some_and(|rest| rest.starts_with(['{', ' '])))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_query_has_data_and_sees_half_of_the_replicas_die() {
    let demo = Demo::start();
    let addresses = demo.next()["addresses"].clone();
    let mut urls = vec![addresses["controller"].as_str().unwrap().to_owned()];
    urls.extend(addresses["nodes"].as_array().unwrap().iter().map(|url| url.as_str().unwrap().to_owned()));
    let hosts: Vec<String> = urls.iter().map(|url| url.replacen("http://", "", 1)).collect();
    let dir = tempfile::tempdir().unwrap();
    let Some(prometheus) = Prometheus::scraping(dir.path(), &hosts).await else { return };

    let before = [demo.pass(BEFORE[0]), demo.pass(BEFORE[1] - 1)];
    let after = [demo.pass(AFTER[0]), demo.pass(AFTER[1])];
    let mut pages = Vec::new();
    for url in &urls {
        pages.push(fetch(&format!("{url}/metrics"), &[]).await);
    }
    drop(demo);

    for (url, page) in urls.iter().zip(&pages) {
        lint(url, page);
    }
    let mut wrong = Vec::new();
    let mut asked = 0;
    for panel in ROWS.iter().flat_map(|row| row.panels) {
        for query in panel.queries {
            asked += 1;
            let (then, now) =
                (ask(&prometheus, query.expr, before).await, ask(&prometheus, query.expr, after).await);
            let last = then.values().last();
            if then.is_empty() || now.is_empty() {
                wrong.push(format!("{}: no data: {}", panel.title, query.expr));
            } else if !query.constant && now.values().all(|step| Some(step) == last) {
                wrong.push(format!("{}: did not change from {last:?}: {}", panel.title, query.expr));
            }
        }
    }
    assert!(asked > 40, "{asked}");
    // What is no panel's query, but asks for metrics too.
    let dashboard: Value = serde_json::from_str(&grafana()).unwrap();
    let around = dashboard["templating"].to_string() + &dashboard["annotations"].to_string();
    let alerts = ALERTS.iter().flat_map(|alert| named(alert.expr));
    for metric in alerts.chain(named(&around)).filter(|metric| *metric != "tidegate_") {
        if !pages.iter().any(|page| has(page, metric)) {
            wrong.push(format!("no page has {metric}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    println!("{asked} queries");
}

#[test]
fn the_alerts_are_rules_that_prometheus_takes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboards/alerts.yaml");
    let output = match promtool().args(["check", "rules"]).arg(path).output() {
        Ok(output) => output,
        Err(error) => {
            support::not_tested(&format!("promtool does not start ({error}); install prometheus"));
            return;
        }
    };
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains(&format!("{} rules found", ALERTS.len())), "{said}");
}
