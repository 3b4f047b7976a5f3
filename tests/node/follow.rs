//! Where a node's table and keys come from: a file, a controller, its own disk; and what happens
//! when one of them is wrong or away.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::node::*;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tidegate::enforce::config::{KeySource, NodeConfig, Secret, TableSource};
use tidegate::enforce::node::Node;
use tidegate::enforce::store::Store;
use tidegate::unit::{Dimension, Limit};
use tidegate::wire::{Entry, LimitTable, Stamp, UsageReport};

const RPM: Dimension = Dimension::RequestsPerMinute;

#[tokio::test]
async fn f10_a_bad_table_file_keeps_the_last_one_and_a_good_one_follows() {
    let rig = Rig::start(&table(1, &[(RPM, key_limit(60))])).await;
    let mut wrong = table(2, &[(RPM, key_limit(60))]);
    wrong.rows[0].pool = "nowhere".into();
    let good = table(1, &[]).encode().unwrap();
    let bad: [&[u8]; 5] =
        [b"", b"{}", &good[..good.len() / 2], &serde_json::to_vec(&wrong).unwrap(), b"\xff"];
    for (count, bytes) in bad.into_iter().enumerate() {
        write(&rig.table_path(), bytes);
        let expected = format!("tidegate_enforce_table_errors_total {}", count + 1);
        wait_for_metric(&rig, &expected).await;
        assert_eq!(rig.node.cell().held().unwrap().stamp().version, 1);
        assert_eq!(rig.answer(rig.chat("", false)).await.0, StatusCode::OK);
    }
    std::fs::remove_file(rig.table_path()).unwrap();
    wait_for_metric(&rig, "tidegate_enforce_table_errors_total 6").await;
    // A lowered limit binds on the next request.
    write_table(&rig.table_path(), &table(3, &[(RPM, key_limit(5))]));
    until("version 3", || rig.node.cell().held().unwrap().stamp().version == 3).await;
    assert_eq!(rig.answer(rig.chat("", false)).await.0, StatusCode::TOO_MANY_REQUESTS);
    // An older one does not come back.
    write_table(&rig.table_path(), &table(2, &[]));
    wait_for_metric(&rig, "tidegate_enforce_tables_stale_total 1").await;
    assert_eq!(rig.node.cell().held().unwrap().stamp().version, 3);
}

pub async fn wait_for_metric(rig: &Rig, line: &str) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let page = rig.get(rig.node.admin, "/metrics").await.2;
        if page.lines().any(|known| known == line) {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "no {line} in\n{page}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn keys_are_reloaded_and_a_bad_file_keeps_the_last_good_ones() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("keys.jsonl");
    write(&path, format!("{}\n", key_line(KEY, None)).as_bytes());
    let rig = Rig::with(&table(1, &[]), |config| config.keys = KeySource::File(path.clone())).await;
    assert_eq!(rig.answer(rig.chat("", false)).await.0, StatusCode::OK);
    write(&path, b"{\"key_sha256\":\"sk-canary\",\"tier\":\"t\"}\n");
    wait_for_metric(&rig, "tidegate_enforce_reload_errors_total 1").await;
    assert_eq!(rig.answer(rig.chat("", false)).await.0, StatusCode::OK);
    let reason = rig.node.reload().await.unwrap_err();
    assert!(reason.contains("line 1") && !reason.contains("canary"), "{reason}");
    // Revoked, and another one granted.
    write(&path, format!("{}\n", key_line("new", None)).as_bytes());
    rig.node.reload().await.unwrap();
    assert_eq!(rig.answer(rig.chat("", false)).await.0, StatusCode::UNAUTHORIZED);
    let mut request = rig.chat("", false);
    request.headers_mut().insert("authorization", "Bearer new".parse().unwrap());
    assert_eq!(rig.answer(request).await.0, StatusCode::OK);

    std::fs::remove_file(&path).unwrap();
    let config = NodeConfig { keys: KeySource::File(path), ..config(dir.path(), &[rig.upstream.url()]) };
    let error = Node::start(config, None).await.err().unwrap().to_string();
    assert!(error.contains("keys.jsonl"), "a start without keys fails: {error}");
}

/// A controller that answers as told and keeps what it hears.
pub struct Controller {
    pub address: SocketAddr,
    pub state: Arc<Told>,
    task: tokio::task::JoinHandle<()>,
}

pub struct Told {
    /// Tag and bytes.
    table: tokio::sync::watch::Sender<Option<(String, Bytes)>>,
    pub asked: Mutex<Vec<HeaderMap>>,
    reports: Mutex<Vec<UsageReport>>,
}

impl Controller {
    pub async fn start() -> Controller {
        Controller::on(tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    pub fn on(listener: tokio::net::TcpListener) -> Controller {
        let address = listener.local_addr().unwrap();
        let table = tokio::sync::watch::Sender::new(None);
        let state = Arc::new(Told { table, asked: Mutex::default(), reports: Mutex::default() });
        let told = Arc::clone(&state);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let Ok((socket, _)) = listener.accept().await else { continue };
                let told = Arc::clone(&told);
                let service = service_fn(move |request| answer(request, Arc::clone(&told)));
                connections.spawn(async move {
                    let builder = hyper::server::conn::http1::Builder::new();
                    let _ = builder.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        Controller { address, state, task }
    }

    fn url(&self) -> String {
        format!("http://{}/v1/table", self.address)
    }

    pub fn publish(&self, table: LimitTable) {
        self.publish_bytes(table.stamp, table.encode().unwrap());
    }

    fn publish_bytes(&self, Stamp { epoch, version, tick }: Stamp, bytes: Vec<u8>) {
        self.state.table.send_replace(Some((format!("\"{epoch}.{version}.{tick}\""), bytes.into())));
    }

    /// The last report; none before the first.
    fn report(&self) -> Option<UsageReport> {
        self.state.reports.lock().unwrap().last().cloned()
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The long poll as the controller has it: 503 without a table, else the next one.
async fn answer(request: Request<Incoming>, told: Arc<Told>) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut response = Response::new(Full::default());
    if request.headers().get("authorization").is_none_or(|value| value != "Bearer canary-token") {
        *response.status_mut() = StatusCode::UNAUTHORIZED;
        return Ok(response);
    }
    if request.method() == Method::POST {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        told.reports.lock().unwrap().push(UsageReport::decode(&body).unwrap());
        return Ok(response);
    }
    assert_eq!(request.uri().to_string(), "/v1/table?wait=10s");
    told.asked.lock().unwrap().push(request.headers().clone());
    let known = request.headers().get("if-none-match").map(|value| value.to_str().unwrap().to_owned());
    let mut tables = told.table.subscribe();
    if known.is_some() {
        let newer = |table: &Option<(String, Bytes)>| table.as_ref().map(|(tag, _)| tag) != known.as_ref();
        let _ = tables.wait_for(newer).await;
    }
    match tables.borrow().as_ref() {
        None => *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE,
        Some((_, bytes)) => *response.body_mut() = Full::new(bytes.clone()),
    }
    Ok(response)
}

pub fn followed(controller: &Controller, dir: &std::path::Path, upstream: &Upstream) -> NodeConfig {
    let source = TableSource::parse(&controller.url());
    let keys = KeySource::Inline(keys());
    let mut config = NodeConfig::embedded("n", source, keys, routing(&[upstream.url()]));
    config.controller_token = Some(Secret::new("canary-token"));
    config.state = Some(dir.join("state"));
    config.caps.report_ms = 20;
    config
}

#[tokio::test]
async fn f01_f02_a_node_follows_its_controller_reports_and_starts_again_without_it() {
    let dir = tempfile::TempDir::new().unwrap();
    let upstream = Upstream::start().await;
    let controller = Controller::start().await;
    let node = Node::start(followed(&controller, dir.path(), &upstream), None).await.unwrap();
    until("a report before the first table", || !controller.state.reports.lock().unwrap().is_empty()).await;
    assert_eq!(controller.state.reports.lock().unwrap()[0].applied, None);
    assert!(node.cell().held().is_none());
    controller.publish(table(5, &[(RPM, entry(Limit::Finite(600), M))]));
    until("version 5", || node.cell().held().is_some_and(|held| held.stamp().version == 5)).await;
    let mut tick = table(5, &[(RPM, entry(Limit::Finite(600), M))]);
    tick.stamp.tick = 6;
    controller.publish(tick);
    until("the renewal", || node.cell().held().unwrap().stamp().tick == 6).await;
    let mut next = table(7, &[(RPM, entry(Limit::Finite(1_000), M))]);
    next.rows[0].limits.get_mut(&RPM).unwrap().safe = Limit::Finite(100);
    next.valid_for_ms = 20_000;
    controller.publish(next);
    until("version 7", || node.cell().held().unwrap().stamp().version == 7).await;
    let applied = || controller.state.reports.lock().unwrap().last().unwrap().applied;
    until("its report", || applied().is_some_and(|stamp| stamp.version == 7)).await;
    let asked = controller.state.asked.lock().unwrap().clone();
    assert!(asked[0].get("if-none-match").is_none());
    assert!(asked.iter().any(|headers| headers.get("if-none-match").is_some_and(|tag| tag == "\"1.5.6\"")));
    // Kept on disk, in the other slot than the one before.
    let slot = |name: &str| dir.path().join("state").join(name);
    let kept = |name: &str| {
        let bytes = std::fs::read(slot(name)).ok()?;
        Some(LimitTable::decode(&bytes).unwrap().stamp.version)
    };
    until("the table on disk", || kept("table.json") == Some(7)).await;
    assert_eq!(kept("table.1.json"), Some(5));
    let config = followed(&controller, dir.path(), &upstream);
    let error = Node::start(config.clone(), None).await.err().unwrap().to_string();
    assert!(error.contains("in use by another node") && error.contains("state"), "{error}");
    timed(node.shutdown()).await;

    drop(controller);
    let node = Node::start(config.clone(), None).await.unwrap();
    let held = node.cell().held().expect("serves from disk at once");
    assert_eq!(held.stamp().version, 7);
    assert!(held.intervals_expired(node.cell().now()) >= 1, "steers toward safe at once");
    let entry = held.table.rows[0].limits[&RPM];
    assert_eq!(held.tier_limit(&entry, node.cell().now()), Limit::Finite(700));
    timed(node.shutdown()).await;

    // A week later, still without a controller, it is not worth more than `safe`.
    let file = std::fs::OpenOptions::new().write(true).open(slot("table.json")).unwrap();
    let week = Duration::from_secs(7 * 86_400);
    file.set_modified(file.metadata().unwrap().modified().unwrap() - week).unwrap();
    let node = Node::start(config, None).await.unwrap();
    let held = node.cell().held().unwrap();
    assert_eq!(held.tier_limit(&entry, node.cell().now()), Limit::Finite(100));
}

#[tokio::test]
async fn f02_a_week_old_file_is_served_at_once_as_safe_and_a_new_one_as_it_stands() {
    let limit = Entry { safe: Limit::Finite(10), ..entry(Limit::Finite(100_000), M) };
    let mut old = table(1, &[(RPM, limit)]);
    old.valid_for_ms = 20_000;
    let dir = tempfile::TempDir::new().unwrap();
    let upstream = Upstream::start().await;
    let config = config(dir.path(), &[upstream.url()]);
    let path = dir.path().join("table.json");
    write_table(&path, &old);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let week = Duration::from_secs(7 * 86_400);
    file.set_modified(file.metadata().unwrap().modified().unwrap() - week).unwrap();
    let node = Node::start(config, None).await.unwrap();
    let limit = || {
        let held = node.cell().held()?;
        Some(held.tier_limit(&held.table.rows[0].limits[&RPM], node.cell().now()))
    };
    until("the old table", || limit().is_some()).await;
    assert_eq!(limit(), Some(Limit::Finite(10)));
    old.stamp.tick += 1;
    write_table(&path, &old);
    until("its renewal", || limit() == Some(Limit::Finite(100_000))).await;
    timed(node.shutdown()).await;
}

#[tokio::test]
async fn f03_a_damaged_slot_gives_the_one_before_and_without_any_nothing_is_admitted() {
    let dir = tempfile::TempDir::new().unwrap();
    let mut rig = Rig::start(&table(1, &[])).await;
    let state = dir.path().join("state");
    let mut config = config(&dir.path().join("absent"), &[rig.upstream.url()]);
    config.state = Some(state.clone());
    let store = Store::open(&state).unwrap();
    for number in [3, 4] {
        store.save(&table(number, &[(RPM, key_limit(60))])).unwrap();
    }
    store.release();
    // The newest, cut off in the middle as a full disk would leave it.
    let newest = state.join("table.json");
    let bytes = std::fs::read(&newest).unwrap();
    std::fs::write(&newest, &bytes[..bytes.len() / 2]).unwrap();
    rig.node = Node::start(config.clone(), None).await.unwrap();
    assert_eq!(rig.node.cell().held().unwrap().stamp().version, 3);
    assert_eq!(rig.answer(rig.chat("", false)).await.0, StatusCode::OK);
    // One bit of the other: neither is a table, and a node without one is not unlimited.
    let mut flipped = std::fs::read(state.join("table.1.json")).unwrap();
    flipped[40] ^= 1;
    std::fs::write(state.join("table.1.json"), flipped).unwrap();
    // Dropped before the next one starts, which needs its state.
    rig.node = Node::start(bare(&rig), None).await.unwrap();
    rig.node = Node::start(config, None).await.unwrap();
    assert!(rig.node.cell().held().is_none());
    assert_eq!(rig.get(rig.node.admin, "/-/ready").await.0, StatusCode::SERVICE_UNAVAILABLE);
    let (status, _, body) = rig.answer(rig.chat("", false)).await;
    assert!(status == StatusCode::SERVICE_UNAVAILABLE && body.contains("no_limits"), "{status} {body}");
    // Two slots, and the file that it follows is not there.
    wait_for_metric(&rig, "tidegate_enforce_table_errors_total 3").await;
}

#[tokio::test]
async fn f06_an_older_table_is_refused_from_a_file_and_from_a_controller() {
    let limited = |version| table(version, &[(RPM, entry(Limit::Finite(600 + version), M))]);
    let rig = Rig::start(&limited(5)).await;
    let mut earlier_epoch = limited(9);
    earlier_epoch.stamp.epoch = 0;
    for (count, replayed) in [limited(4), earlier_epoch.clone()].into_iter().enumerate() {
        write_table(&rig.table_path(), &replayed);
        wait_for_metric(&rig, &format!("tidegate_enforce_tables_stale_total {}", count + 1)).await;
        assert_eq!(rig.node.cell().held().unwrap().stamp().version, 5);
    }
    // The version in force with other contents is no replay but a lie.
    let mut reused = limited(4);
    reused.stamp = Stamp { tick: 99, ..limited(5).stamp };
    write_table(&rig.table_path(), &reused);
    wait_for_metric(&rig, "tidegate_enforce_tables_refused_total 1").await;

    let dir = tempfile::TempDir::new().unwrap();
    let controller = Controller::start().await;
    let node = Node::start(followed(&controller, dir.path(), &rig.upstream), None).await.unwrap();
    controller.publish(limited(5));
    until("version 5", || node.cell().held().is_some_and(|held| held.stamp().version == 5)).await;
    let asked = || controller.state.asked.lock().unwrap().len();
    for replayed in [limited(4), earlier_epoch] {
        let before = asked();
        controller.publish(replayed);
        until("two more polls", || asked() >= before + 2).await;
        let held = node.cell().held().unwrap();
        assert_eq!((held.stamp().version, held.table.as_ref()), (5, &limited(5)));
    }
    // Neither did a replay renew it.
    assert!(node.cell().held().unwrap().stamp().tick == 5);
    controller.publish(limited(6));
    until("version 6", || node.cell().held().unwrap().stamp().version == 6).await;
}

#[tokio::test]
async fn f10_a_table_that_cannot_be_read_is_refused_with_its_reason_and_the_old_one_stays() {
    let dir = tempfile::TempDir::new().unwrap();
    let mut rig = Rig::start(&table(1, &[])).await;
    let controller = Controller::start().await;
    rig.node = Node::start(followed(&controller, dir.path(), &rig.upstream), None).await.unwrap();
    controller.publish(table(5, &[]));
    let reported = || controller.report().and_then(|report| report.applied).map(|stamp| stamp.version);
    until("version 5", || reported() == Some(5)).await;
    assert_eq!(controller.report().unwrap().nack, None);
    let good = table(6, &[]).encode().unwrap();
    let text = String::from_utf8(good.clone()).unwrap();
    let newer = text.split(",\"crc32").next().unwrap().replace("\"schema\":1", "\"schema\":2") + "}";
    let mut damaged = good.clone();
    damaged[good.len() / 2] ^= 4;
    let stamp = |version| Some(Stamp { epoch: 1, version, tick: version });
    for (bytes, whose, expected) in [
        (newer.into_bytes(), stamp(6), "schema 2 is not 1"),
        (b"<html>\r\n a proxy's error page".to_vec(), None, "not JSON"),
        (damaged, None, "damaged"),
    ] {
        controller.publish_bytes(Stamp { epoch: 1, version: 6, tick: bytes.len() as u64 }, bytes);
        let told = || {
            let nack = controller.report()?.nack?;
            (nack.reason.contains(expected) && (whose.is_none() || nack.stamp == whose)).then_some(())
        };
        until(expected, || told().is_some()).await;
        let report = controller.report().unwrap();
        assert_eq!(report.applied, stamp(5));
        assert_eq!(rig.answer(rig.chat("", false)).await.0, StatusCode::OK);
    }
    let page = rig.get(rig.node.admin, "/metrics").await.2;
    let line = page.lines().find_map(|line| line.strip_prefix("tidegate_enforce_tables_refused_total "));
    assert!(line.unwrap().parse::<u64>().unwrap() >= 3, "{page}");
    controller.publish(table(7, &[]));
    until("version 7", || reported() == Some(7)).await;
    until("no refusal any more", || controller.report().unwrap().nack.is_none()).await;
}

/// A node on the rig's own table.
fn bare(rig: &Rig) -> NodeConfig {
    config(rig.dir.path(), &[rig.upstream.url()])
}

#[tokio::test]
async fn tokens_are_followed_in_their_files_and_a_bad_one_keeps_the_last_good() {
    let dir = tempfile::TempDir::new().unwrap();
    let upstream = Upstream::start().await;
    let controller = Controller::start().await;
    controller.publish(table(1, &[]));
    let (sent, asked) = (dir.path().join("controller-token"), dir.path().join("admin-token"));
    write(&sent, b"not-yet-the-token\n");
    write(&asked, b"former-admin-token\n");
    let mut config = followed(&controller, dir.path(), &upstream);
    config.controller_token = Some(Secret::load(&sent).unwrap());
    config.admin_token = Some(Secret::load(&asked).unwrap());
    config.caps.poll_ms = 10;
    let node = Node::start(config, None).await.unwrap();
    let http = client();
    let reload = async |token: &str| {
        let request = Request::post(format!("http://{}/-/reload", node.admin));
        let request =
            request.header("authorization", format!("Bearer {token}")).body(Full::default()).unwrap();
        timed(http.request(request)).await.unwrap().status()
    };
    assert_eq!(reload("former-admin-token").await, StatusCode::OK);
    assert!(node.cell().held().is_none());
    // What the controller admits is on the first line; below it may stand what it admitted before.
    write(&sent, b"canary-token\nnot-yet-the-token\n");
    until("a table, with the new token", || node.cell().held().is_some()).await;
    until("a report, with the new token", || !controller.state.reports.lock().unwrap().is_empty()).await;
    write(&asked, b"latter-admin-token\n");
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while reload("latter-admin-token").await != StatusCode::OK {
        assert!(tokio::time::Instant::now() < deadline, "the new admin token is not admitted");
    }
    assert_eq!(reload("former-admin-token").await, StatusCode::UNAUTHORIZED);
    // Nothing, nonsense and absence leave the last one there.
    let errors = async || {
        let page = format!("http://{}/metrics", node.admin);
        let page = timed(http.request(Request::get(page).body(Full::default()).unwrap())).await.unwrap();
        let page = timed(page.into_body().collect()).await.unwrap().to_bytes();
        let page = String::from_utf8(page.to_vec()).unwrap();
        let line = page.lines().find_map(|line| line.strip_prefix("tidegate_enforce_reload_errors_total "));
        line.unwrap().parse::<u64>().unwrap()
    };
    for (at, bad) in [Some(&b"\n\n"[..]), Some(b"two words"), Some(b"\xff"), None].into_iter().enumerate() {
        match bad {
            Some(bytes) => write(&asked, bytes),
            None => std::fs::remove_file(&asked).unwrap(),
        }
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while errors().await <= at as u64 {
            assert!(tokio::time::Instant::now() < deadline, "{bad:?} was not refused");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        assert_eq!(reload("latter-admin-token").await, StatusCode::OK);
    }
    timed(node.shutdown()).await;
}

#[tokio::test]
async fn d14_a_later_controllers_table_is_taken_without_what_it_adds_and_refused_with_what_it_requires() {
    let rig = Rig::start(&table(1, &[(RPM, key_limit(60))])).await;
    let later = |version: u64, head: &str| {
        let json = String::from_utf8(table(version, &[(RPM, key_limit(60))]).encode().unwrap()).unwrap();
        // Without the checksum, which is of the whole text.
        let json = format!("{}}}", json.split(",\"crc32").next().unwrap());
        json.replacen('{', &format!("{{{head},"), 1).replace("\"yields\"", "\"later\":[{}],\"yields\"")
    };
    write(&rig.table_path(), later(2, "\"later\":{\"a\":1}").as_bytes());
    until("version 2", || rig.node.cell().held().unwrap().stamp().version == 2).await;
    write(&rig.table_path(), later(3, "\"requires\":[\"spend\"]").as_bytes());
    wait_for_metric(&rig, "tidegate_enforce_table_errors_total 1").await;
    write(&rig.table_path(), later(4, "\"requires\":[]").replace("\"schema\":1", "\"schema\":2").as_bytes());
    wait_for_metric(&rig, "tidegate_enforce_table_errors_total 2").await;
    assert_eq!(rig.node.cell().held().unwrap().stamp().version, 2);
    assert_eq!(rig.answer(rig.chat("", false)).await.0, StatusCode::OK);
    write(&rig.table_path(), later(5, "\"requires\":[]").as_bytes());
    until("version 5", || rig.node.cell().held().unwrap().stamp().version == 5).await;
}

#[tokio::test]
async fn a_controller_that_comes_late_or_refuses_is_asked_again() {
    let dir = tempfile::TempDir::new().unwrap();
    let upstream = Upstream::start().await;
    let controller = Controller::start().await;
    let mut config = followed(&controller, dir.path(), &upstream);
    (config.controller_token, config.state) = (Some(Secret::new("wrong")), None);
    let refused = Node::start(config, None).await.unwrap();
    let node = Node::start(followed(&controller, dir.path(), &upstream), None).await.unwrap();
    until("two tries", || controller.state.asked.lock().unwrap().len() >= 2).await;
    controller.publish(table(1, &[]));
    until("the table", || node.cell().held().is_some()).await;
    assert!(refused.cell().held().is_none());
    assert!(controller.state.reports.lock().unwrap().iter().all(|report| report.node.as_str() == "n"));
}

#[tokio::test]
async fn a_configuration_file_is_read_and_its_mistakes_are_named() {
    let dir = tempfile::TempDir::new().unwrap();
    let upstream = Upstream::start().await;
    let path = dir.path().join("node.yaml");
    std::fs::write(dir.path().join("keys.jsonl"), keys()).unwrap();
    std::fs::write(dir.path().join("token"), "canary-token\n").unwrap();
    let text = format!(
        "node: n\nkeys: keys.jsonl\nstate: state\ncontroller_token_file: token\n\
         upstreams:\n  main:\n    urls: [\"{}\"]\n    models: [m]\n\
         routes:\n  - {{prefix: /v1/images, model: m}}\ncaps:\n  body_bytes: 100000\n  poll_ms: 10\n",
        upstream.url()
    );
    std::fs::write(&path, &text).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let file = dir.path().join("table.json");
    write_table(&file, &table(1, &[]));
    let config = NodeConfig::load(&path, file.to_str().unwrap(), any, any).unwrap();
    let node = Node::start(config, Some(path.clone())).await.unwrap();
    until("the table", || node.cell().held().is_some()).await;
    node.reload().await.unwrap();
    std::fs::write(&path, text.replace("urls:", "url:")).unwrap();
    let reason = node.reload().await.unwrap_err();
    assert!(reason.contains("node.yaml") && reason.contains("url"), "{reason}");
    timed(node.shutdown()).await;
    for (from, to, expected) in [
        ("http://", "ftp://", "must look like"),
        ("keys.jsonl", "absent", "absent"),
        ("prefix: /v1", "prefix: v1", "slash"),
    ] {
        std::fs::write(&path, text.replace(from, to)).unwrap();
        let config = NodeConfig::load(&path, file.to_str().unwrap(), any, any).unwrap();
        let error = Node::start(config, None).await.err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn a_controllers_url_is_checked_at_start_and_never_holds_a_credential() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("node.yaml");
    std::fs::write(&path, "node: n\nkeys: keys.jsonl\nupstreams: {}\n").unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    for (url, expected) in [
        ("http://user:canary@127.0.0.1:7600", "controller_token_file"),
        ("http://", "must look like"),
        ("http://127.0.0.1:x", "must look like"),
    ] {
        let error = NodeConfig::load(&path, url, any, any).unwrap_err().to_string();
        assert!(error.contains(expected) && !error.contains("canary"), "{error}");
    }
    NodeConfig::load(&path, "http://127.0.0.1:7600/v1/table", any, any).unwrap();
}

#[tokio::test]
async fn a_node_that_stops_says_what_was_used_in_the_end() {
    let rig = Rig::start(&table(1, &[])).await;
    let controller = Controller::start().await;
    controller.publish(table(1, &[]));
    let dir = tempfile::TempDir::new().unwrap();
    let mut config = followed(&controller, dir.path(), &rig.upstream);
    config.caps.report_ms = 3_600_000;
    let node = Node::start(config, None).await.unwrap();
    until("the table", || node.cell().held().is_some()).await;
    until("the first report", || controller.state.reports.lock().unwrap().len() == 1).await;
    let mut request = rig.chat("", true);
    *request.uri_mut() = format!("http://{}/v1/chat/completions", node.proxy).parse().unwrap();
    assert_eq!(rig.answer(request).await.0, http::StatusCode::OK);
    timed(node.shutdown()).await;
    let reports = controller.state.reports.lock().unwrap();
    assert_eq!(reports.len(), 2);
    assert_eq!(reports[1].rows[0].admitted.work, INPUT + OUTPUT);
    assert_eq!(reports[1].pools["p"].in_flight, 0);
}
