//! Bad policies at a running controller: each of them is told, and changes nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::{call, get, loader, metric, policy, replica, until};
use tidegate::bounds::SETTLED_AFTER;
use tidegate::bounds::TABLE_BYTES_MAX;
use tidegate::control::reload::{Loaded, Loader};
use tidegate::control::run::{Options, Running, start};
use tidegate::control::standing::Origin;
use tidegate::policy::{Grant, ModelPolicy, Policy, SourcePolicy};
use tidegate::publish::file::load_table;
use tidegate::unit::{Dimension, Limit, ModelId, PoolId, TierId};
use tidegate::wire::LimitTable;
use tracing_subscriber::fmt::MakeWriter;

const PAGE: &str = "vllm:num_requests_running 3\nvllm:num_requests_waiting 0\n\
                    vllm:prompt_tokens_total 500\nvllm:generation_tokens_total 10\n";

fn long() -> bool {
    std::env::var_os("TIDEGATE_LONG").is_some()
}

/// Everything the controller logs on this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Log;

    fn make_writer(&'a self) -> Log {
        self.clone()
    }
}

impl Log {
    fn take(&self) -> String {
        String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap()
    }
}

struct Place {
    dir: tempfile::TempDir,
    running: Running,
}

impl Place {
    async fn start(loader: Loader, files: &[(&str, &str)], settle: Duration) -> Place {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("policies")).unwrap();
        for (name, text) in files {
            fs::write(dir.path().join("policies").join(name), text).unwrap();
        }
        let mut options = Options::new(dir.path().join("policies"), dir.path().join("state"), loader);
        options.settle = settle;
        let running = start(options).await.unwrap();
        Place { dir, running }
    }

    fn policies(&self) -> PathBuf {
        self.dir.path().join("policies")
    }

    fn addr(&self) -> SocketAddr {
        self.running.addr
    }

    async fn post(&self, path: &str) -> crate::support::Reply {
        let token = format!("Bearer {}", self.running.token.reveal());
        call(self.addr(), &format!("POST {path}"), &[("authorization", &token)], b"").await
    }

    async fn table(&self) -> LimitTable {
        table(self.addr()).await
    }
}

async fn table(addr: SocketAddr) -> LimitTable {
    LimitTable::decode(&get(addr, "/v1/table?wait=10s").await.body).unwrap()
}

fn good(target: SocketAddr) -> String {
    format!(
        "product: chat\ninterval: 500ms\npools:\n  gpu: {{preset: vllm, targets: [http://{target}/metrics], slo: 1s}}\n\
         models:\n  m: {{pool: gpu}}\ntiers:\n  \
         free: {{priority: 1, weight: 1, guarantee: 6k tpm, ceiling: 40k tpm, key_limits: unlimited}}\n"
    )
}

fn empty(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
}

/// Files of one case of the corpus, and what a check of it prints.
struct Case {
    name: String,
    files: Vec<(String, Vec<u8>)>,
    printed: String,
}

fn corpus() -> Vec<Case> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/policies");
    let mut cases = Vec::new();
    for entry in fs::read_dir(&root).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let files = if name.ends_with(".bad") {
            let files = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path());
            let named = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
            files.map(|path| (named(&path), fs::read(&path).unwrap())).collect()
        } else if name.ends_with(".bad.yaml") {
            vec![(name.clone(), fs::read(&path).unwrap())]
        } else {
            continue;
        };
        let stderr = root.join(format!("{}.stderr", name.trim_end_matches(".yaml")));
        cases.push(Case { name, files, printed: fs::read_to_string(stderr).unwrap() });
    }
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    cases
}

#[tokio::test]
async fn c01_c02_c03_c04_c05_c08_c09_c15_every_bad_policy_is_told_and_leaves_the_running_table_alone() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().json().with_writer(log.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    // With one subscriber only, a line that another test's thread reaches first is never logged.
    let _other = tracing::Dispatch::new(tracing_subscriber::fmt().with_writer(io::sink).finish());
    let settle = if long() { SETTLED_AFTER } else { Duration::from_millis(20) };
    let target = replica(PAGE).await;
    let place = Place::start(Loader::checked(), &[("chat.yaml", &good(target))], settle).await;
    let addr = place.addr();
    // Until nothing moves the limits any more.
    let mut before = place.table().await;
    until("a table that stays", async || {
        let now = place.table().await;
        let stays = now.stamp.version == before.stamp.version && now.stamp.tick > before.stamp.tick + 2;
        if now.stamp.version != before.stamp.version {
            before = now;
        }
        stays.then_some(())
    })
    .await;

    let cases = corpus();
    assert!(cases.len() >= 60, "only {} cases", cases.len());
    let shown = place.policies().display().to_string();
    let mut failures = metric(addr, "tidegate_policy_reload_failures_total").await;
    assert_eq!(failures, 0.0);
    for case in &cases {
        log.take();
        empty(&place.policies());
        for (name, bytes) in &case.files {
            fs::write(place.policies().join(name), bytes).unwrap();
        }
        let refused = place.post("/-/reload").await;
        assert_eq!(refused.status, 400, "{}: {}", case.name, refused.text());
        // What the corpus calls by its name is the whole directory here.
        let told = |text: &str| text.replace(&shown, &case.name);
        let reason = refused.json()["error"]["reason"].as_str().unwrap().to_owned();
        assert_eq!(told(&reason), case.printed, "{}: answer", case.name);
        let status = get(addr, "/v1/status").await.json();
        let said = status["reload"]["diagnostics"].as_str().unwrap();
        assert_eq!(told(said), case.printed, "{}: status", case.name);
        assert_eq!(status["reload"]["successful"], false, "{}", case.name);
        let lines = log.take();
        let line = lines.lines().find(|line| line.contains("policy refused")).expect("a log line");
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(told(line["fields"]["diagnostics"].as_str().unwrap()), case.printed, "{}: log", case.name);
        let now = metric(addr, "tidegate_policy_reload_failures_total").await;
        // The watcher may have read the same edit before the request did.
        assert!((1.0..=2.0).contains(&(now - failures)), "{}: {failures} {now}", case.name);
        failures = now;
        assert_eq!(metric(addr, "tidegate_policy_last_reload_successful").await, 0.0, "{}", case.name);
        assert_eq!(get(addr, "/-/ready").await.status, 200, "{}", case.name);
        let after = LimitTable::decode(&get(addr, "/v1/table").await.body).unwrap();
        assert_eq!(after.policy, before.policy, "{}", case.name);
        let version = |table: &LimitTable| (table.stamp.epoch, table.stamp.version);
        assert_eq!(version(&after), version(&before), "{}", case.name);
        assert!(after.same_entries(&before), "{}", case.name);
    }
    let last = until("a tick after the last case", async || {
        let now = place.table().await;
        (now.stamp.tick > before.stamp.tick + 3).then_some(now)
    })
    .await;
    assert!(last.same_entries(&before));
    eprintln!("{} bad policies, table {:?} throughout", cases.len(), before.stamp);
    place.running.shutdown().await;
}

#[tokio::test]
async fn c12_a_policy_of_a_newer_schema_is_refused_with_its_version_named() {
    let target = replica(PAGE).await;
    let text = good(target);
    let place = Place::start(Loader::checked(), &[("chat.yaml", &text)], Duration::from_millis(20)).await;
    let before = place.table().await;
    let newer = format!("schema: 2\nspend_caps: {{a: 1}}\n{text}");
    fs::write(place.policies().join("chat.yaml"), &newer).unwrap();
    let refused = place.post("/-/reload").await;
    assert_eq!(refused.status, 400);
    let reason = refused.json()["error"]["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("`schema` is 2") && reason.contains("chat.yaml:1:9"), "{reason}");
    // What a newer schema brings is no mistake of its own.
    assert!(reason.ends_with("\n1 error\n"), "{reason}");
    assert_eq!(place.table().await.policy, before.policy);
    // The other way round: this schema, said or not, is read by this version and later ones.
    fs::write(place.policies().join("chat.yaml"), format!("schema: 1\n{text}")).unwrap();
    assert_eq!(place.post("/-/reload").await.status, 200);
    place.running.shutdown().await;
}

/// The test's loader, but one number stands for a policy whose turn panics (an interval whose
/// multiple overflows), and another for one whose check does.
fn poisonous(target: SocketAddr) -> Loader {
    let source = SourcePolicy::targets(vec![target.to_string()]);
    let plain = loader(source, Duration::from_millis(100));
    Loader::new(move |contents| {
        let loaded = plain.judge(contents)?;
        let mut policy = (*loaded.policy).clone();
        match policy.digest.as_str() {
            "666" => policy.interval = Duration::MAX,
            "667" => panic!("the check of {} panics", policy.digest),
            "668" => policy = wide(policy, 9_000),
            _ => {}
        }
        Ok(Loaded { policy: Arc::new(policy), ..loaded })
    })
}

/// So many rows of so long names: some 1.4 kB each in a table.
fn wide(mut made: Policy, rows: usize) -> Policy {
    let model = made.models["m"].clone();
    let grant = &model.tiers["free"];
    let long = |at: usize| format!("{at:05}-{}", "x".repeat(240));
    let pool = PoolId::new(long(0));
    made.pools = made.pools.into_values().map(|policy| (pool.clone(), policy)).collect();
    let limits: BTreeMap<Dimension, Limit> =
        Dimension::ALL.into_iter().map(|d| (d, Limit::Finite(9))).collect();
    let grant = Grant { key_limits: limits, ..grant.clone() };
    let tiers: BTreeMap<TierId, Grant> = [(TierId::new(long(0)), grant)].into();
    let models = (0..rows).map(|at| (ModelId::new(long(at)), ModelPolicy::new(pool.clone(), tiers.clone())));
    made.models = models.collect();
    made
}

async fn with_policy(place: &Place, digest: &str) -> LimitTable {
    until(&format!("policy {digest}"), async || {
        let table = place.table().await;
        (table.policy == digest).then_some(table)
    })
    .await
}

#[tokio::test]
async fn c13_a_policy_that_panics_is_put_in_quarantine_and_the_last_good_one_is_in_force_again() {
    let target = replica(PAGE).await;
    let settle = Duration::from_millis(20);
    let place = Place::start(poisonous(target), &[("p.yaml", "50000")], settle).await;
    let addr = place.addr();
    let before = with_policy(&place, "50000").await;
    fs::write(place.policies().join("p.yaml"), "666").unwrap();
    let status = until("the quarantine", async || {
        let status = get(addr, "/v1/status").await.json();
        (status["reload"]["quarantined"][0]["policy"] == "666").then_some(status)
    })
    .await;
    let reason = status["reload"]["quarantined"][0]["reason"].as_str().unwrap();
    assert!(reason.starts_with("it panicked: "), "{reason}");
    assert_eq!(status["reload"]["policy"], "50000");
    assert_eq!(metric(addr, "tidegate_control_turns_failed_total").await, 1.0);
    assert_eq!(metric(addr, "tidegate_policy_last_reload_successful").await, 0.0);
    assert_eq!(get(addr, "/-/ready").await.status, 200);
    // The loop goes on, under the last good policy, without a step back.
    let after = until("more tables", async || {
        let table = place.table().await;
        (table.stamp.tick > before.stamp.tick + 5).then_some(table)
    })
    .await;
    assert_eq!(after.policy, "50000");
    assert_eq!(after.stamp.epoch, before.stamp.epoch);
    assert!(after.stamp.version >= before.stamp.version);
    assert_eq!(metric(addr, "tidegate_control_turns_failed_total").await, 1.0);
    // Asked to try it again it refuses, and says why.
    let refused = place.post("/-/reload").await;
    assert_eq!(refused.status, 400);
    assert!(refused.text().contains("policy 666 is in quarantine"), "{}", refused.text());
    // A check that panics is a refusal like any other.
    fs::write(place.policies().join("p.yaml"), "667").unwrap();
    let refused = place.post("/-/reload").await;
    assert!(refused.text().contains("the check of 667 panics"), "{}", refused.text());
    // And an edit is an edit.
    fs::write(place.policies().join("p.yaml"), "60000").unwrap();
    with_policy(&place, "60000").await;
    assert_eq!(metric(addr, "tidegate_policy_last_reload_successful").await, 1.0);

    // A restart that finds the poison in the directory begins with the last good one.
    fs::write(place.policies().join("p.yaml"), "666").unwrap();
    let Place { dir, running } = place;
    running.shutdown().await;
    let mut options = Options::new(dir.path().join("policies"), dir.path().join("state"), poisonous(target));
    options.settle = settle;
    let running = start(options).await.unwrap();
    let place = Place { dir, running };
    with_policy(&place, "60000").await;
    let status = get(place.addr(), "/v1/status").await.json();
    assert_eq!(status["reload"]["quarantined"][0]["policy"], "666");
    place.running.shutdown().await;
}

#[tokio::test]
async fn d11_a_table_above_the_cap_reaches_no_channel_and_its_policy_is_quarantined() {
    let target = replica(PAGE).await;
    let place = Place::start(poisonous(target), &[("p.yaml", "50000")], Duration::from_millis(20)).await;
    let addr = place.addr();
    let before = with_policy(&place, "50000").await;
    assert_eq!(metric(addr, "tidegate_publish_table_alarm{above=\"0.5\"}").await, 0.0);
    fs::write(place.policies().join("p.yaml"), "668").unwrap();
    let name = "tidegate_publish_failures_total{channel=\"validate\"}";
    until("the refusal", async || (metric(addr, name).await >= 1.0).then_some(())).await;
    let status = until("the quarantine", async || {
        let status = get(addr, "/v1/status").await.json();
        (status["reload"]["quarantined"][0]["policy"] == "668").then_some(status)
    })
    .await;
    let reason = status["reload"]["quarantined"][0]["reason"].as_str().unwrap();
    assert!(reason.contains(&format!("allowed are {TABLE_BYTES_MAX}")), "{reason}");
    let after = until("more tables", async || {
        let table = place.table().await;
        (table.stamp.tick > before.stamp.tick + 5).then_some(table)
    })
    .await;
    assert_eq!(after.policy, "50000");
    // File and journal never saw it.
    let file = load_table(&place.dir.path().join("state")).unwrap().unwrap();
    assert_eq!(file.policy, "50000");
    let journal = fs::read_to_string(place.dir.path().join("state/journal.jsonl")).unwrap();
    assert!(!journal.contains("\"policy\":\"668\""));
    assert_eq!(metric(addr, name).await, 1.0);
    place.running.shutdown().await;
}

#[tokio::test]
async fn d11_alarms_are_on_above_half_and_four_fifths_of_what_a_node_takes() {
    let source = SourcePolicy::targets(vec![replica(PAGE).await.to_string()]);
    let parse = move |contents: tidegate::policy::load::Contents| {
        let count: usize = String::from_utf8_lossy(&contents.files[0].1).trim().parse().unwrap();
        let made = policy(source.clone(), Duration::from_millis(500), 50_000, &count.to_string());
        let policy = Arc::new(wide(made, count));
        Ok(Loaded { policy, files: contents.files, warnings: Vec::new(), origin: Origin::Directory })
    };
    let files = [("p.yaml", "100")];
    let place = Place::start(Loader::new(parse), &files, Duration::from_millis(20)).await;
    let addr = place.addr();
    with_policy(&place, "100").await;
    let bytes = metric(addr, "tidegate_publish_table_bytes").await / 100.0;
    for (part, expected) in [(0.4, (0.0, 0.0)), (0.6, (1.0, 0.0)), (0.9, (1.0, 1.0)), (0.3, (0.0, 0.0))] {
        let count = (part * TABLE_BYTES_MAX as f64 / bytes) as usize;
        fs::write(place.policies().join("p.yaml"), count.to_string()).unwrap();
        with_policy(&place, &count.to_string()).await;
        let half = metric(addr, "tidegate_publish_table_alarm{above=\"0.5\"}").await;
        let most = metric(addr, "tidegate_publish_table_alarm{above=\"0.8\"}").await;
        assert_eq!((half, most), expected, "{part}");
    }
    place.running.shutdown().await;
}
