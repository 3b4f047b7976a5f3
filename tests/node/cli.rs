//! `tidegate enforce` as a process: exit codes, addresses, signals.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use crate::support::node::*;
use http::StatusCode;
use http_body_util::BodyExt;
use tidegate::unit::Dimension;
use tidegate::wire::LimitTable;
use tokio::time::Instant;

/// A line of some node's log held a credential.
static LEAKED: AtomicBool = AtomicBool::new(false);

/// Killed when a test ends, however it ends.
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        assert!(std::thread::panicking() || !LEAKED.load(Ordering::Relaxed), "a credential in a log");
    }
}

impl Process {
    pub fn signal(&self, name: &str) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    pub async fn code(&mut self) -> Option<i32> {
        let mut code = None;
        until("the process to end", || {
            code = self.0.try_wait().unwrap();
            code.is_some()
        })
        .await;
        code.unwrap().code()
    }
}

pub fn enforce(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command
        .arg("enforce")
        .args(arguments)
        .args(["--log-format", "text"])
        .current_dir(dir)
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// Both addresses from the line that says the node serves, and the lines after it.
pub fn addresses(process: &mut Process) -> (String, String, mpsc::Receiver<String>) {
    let mut lines = BufReader::new(process.0.stderr.take().unwrap()).lines();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        while let Some(Ok(line)) = lines.next() {
            if line.contains(CANARY) {
                LEAKED.store(true, Ordering::Relaxed);
                eprintln!("a credential in a log: {line}");
            }
            let _ = sender.send(line);
        }
    });
    loop {
        let line = receiver.recv_timeout(PATIENCE).expect("the node says where it serves");
        let field = |name: &str| line.split(name).nth(1)?.split_whitespace().next().map(str::to_owned);
        if let (Some(proxy), Some(admin)) = (field("proxy="), field("admin=")) {
            return (proxy, admin, receiver);
        }
    }
}

pub fn set_up(dir: &Path, upstream: &str) {
    write_table(&dir.join("table.json"), &table(1, &[(Dimension::RequestsPerMinute, key_limit(600))]));
    std::fs::write(dir.join("keys.jsonl"), keys()).unwrap();
    let text = format!("node: n\nkeys: keys.jsonl\nupstreams:\n  main: {{urls: [\"{upstream}\"]}}\n");
    std::fs::write(dir.join("node.yaml"), text).unwrap();
}

/// A node that is ready, as a process of its own.
pub struct Serving {
    pub process: Process,
    pub proxy: String,
    _lines: mpsc::Receiver<String>,
}

/// In front of the rig's upstream, with this table, these keys and more of an environment.
pub async fn serving(
    rig: &Rig,
    dir: &Path,
    table: &LimitTable,
    keys: &str,
    more: &[(&str, &Path)],
) -> Serving {
    set_up(dir, &rig.upstream.url());
    std::fs::write(dir.join("keys.jsonl"), keys).unwrap();
    let text = std::fs::read_to_string(dir.join("node.yaml")).unwrap();
    std::fs::write(dir.join("node.yaml"), text + "state: state\n").unwrap();
    write_table(&dir.join("table.json"), table);
    let mut command = enforce(dir, &["--config", "node.yaml", "--listen", "127.0.0.1:0"]);
    command.env("TIDEGATE_TABLE", "table.json").env("TIDEGATE_ADMIN", "127.0.0.1:0");
    let mut process = Process(command.envs(more.iter().copied()).spawn().unwrap());
    let (proxy, admin, _lines) = addresses(&mut process);
    let admin = admin.parse().unwrap();
    let ready = async || (rig.get(admin, "/-/ready").await.0 == StatusCode::OK).then_some(());
    crate::support::until("ready", ready).await;
    Serving { process, proxy, _lines }
}

#[tokio::test]
async fn sigterm_lets_a_stream_end_and_exits_with_0_and_sighup_reloads_keys() {
    let rig = Rig::start(&table(1, &[])).await;
    let dir = rig.dir.path();
    set_up(dir, &rig.upstream.url());
    let mut command = enforce(dir, &["--config", "node.yaml", "--listen", "127.0.0.1:0"]);
    command.env("TIDEGATE_TABLE", "table.json").env("TIDEGATE_ADMIN", "127.0.0.1:0");
    let mut process = Process(command.spawn().unwrap());
    let (proxy, admin, lines) = addresses(&mut process);
    let admin = admin.parse().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while rig.get(admin, "/-/ready").await.0 != StatusCode::OK {
        assert!(Instant::now() < deadline, "never ready");
    }
    let at = |mut request: http::Request<_>| {
        *request.uri_mut() = format!("http://{proxy}/v1/chat/completions").parse().unwrap();
        request
    };
    assert_eq!(rig.answer(at(rig.chat("", true))).await.0, StatusCode::OK);
    write(&dir.join("keys.jsonl"), format!("{}\n", key_line("new", None)).as_bytes());
    process.signal("-HUP");
    while !lines.recv_timeout(PATIENCE).expect("a line that says so").contains("reloaded") {}
    assert_eq!(rig.answer(at(rig.chat("", true))).await.0, StatusCode::UNAUTHORIZED);

    let mut request = at(rig.chat("slow", true));
    request.headers_mut().insert("authorization", "Bearer new".parse().unwrap());
    let mut open = rig.send(request).await.into_body();
    timed(open.frame()).await.unwrap().unwrap();
    process.signal("-TERM");
    until("the port to close", || std::net::TcpStream::connect(&proxy).is_err()).await;
    for _ in 0..5 {
        timed(open.frame()).await.expect("the stream goes on").unwrap();
    }
    drop(open);
    assert_eq!(process.code().await, Some(0));
}

#[tokio::test]
async fn a_second_sigterm_quits_at_once() {
    let rig = Rig::start(&table(1, &[])).await;
    set_up(rig.dir.path(), &rig.upstream.url());
    let arguments = ["--config", "node.yaml", "--table", "table.json", "--listen", "127.0.0.1:0"];
    let mut command = enforce(rig.dir.path(), &arguments);
    let mut process = Process(command.args(["--admin", "127.0.0.1:0"]).spawn().unwrap());
    let (proxy, admin, _lines) = addresses(&mut process);
    let admin = admin.parse().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while rig.get(admin, "/-/ready").await.0 != StatusCode::OK {
        assert!(Instant::now() < deadline, "never ready");
    }
    let mut request = rig.chat("slow", true);
    *request.uri_mut() = format!("http://{proxy}/v1/chat/completions").parse().unwrap();
    let mut open = rig.send(request).await.into_body();
    timed(open.frame()).await.unwrap().unwrap();
    let began = Instant::now();
    process.signal("-TERM");
    until("the port to close", || std::net::TcpStream::connect(&proxy).is_err()).await;
    process.signal("-TERM");
    assert_eq!(process.code().await, Some(1), "the stream was cut");
    assert!(began.elapsed().as_secs() < 8, "did not wait for the stream");
}

#[tokio::test]
async fn exit_codes_tell_usage_from_failure() {
    let dir = tempfile::TempDir::new().unwrap();
    set_up(dir.path(), "http://127.0.0.1:1");
    let good = ["--table", "table.json", "--config", "node.yaml", "--listen", "127.0.0.1:0"];
    for (arguments, code, expected) in [
        (vec![], 2, "--table"),
        (vec!["--table", "t", "--config", "c", "--listen", "nowhere"], 2, "--listen"),
        (vec!["--table", "t", "--config", "absent.yaml"], 1, "absent.yaml"),
        ([&good[..], &["--admin", "0.0.0.0:0"]].concat(), 2, "loopback"),
        ([&good[..], &["--log-level", "info,=,"]].concat(), 1, "--log-level"),
    ] {
        let mut process = Process(enforce(dir.path(), &arguments).spawn().unwrap());
        let mut text = String::new();
        process.0.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(process.code().await, Some(code), "{text}");
        assert!(text.contains(expected), "{text}");
    }
}
