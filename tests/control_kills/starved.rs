//! Memory and descriptors that run out, and an end under load.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tidegate::wire::Held;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::daemon::{Place, accept, within_a_step};
use crate::support::node::{KEY, Upstream};
use crate::support::{LONG, call, get, until};

/// A memory cgroup of 64 MiB.
struct Group(PathBuf);

impl Group {
    fn new() -> Option<Group> {
        let dir = PathBuf::from(format!("/sys/fs/cgroup/memory/tidegate-{}", std::process::id()));
        let made = std::fs::create_dir(&dir);
        let limited = made.and_then(|()| std::fs::write(dir.join("memory.limit_in_bytes"), "67108864"));
        if let Err(error) = limited {
            eprintln!("NOT TESTED: no memory cgroup here ({error}); run as root with cgroup v1");
            return None;
        }
        Some(Group(dir))
    }

    /// `exec` after joining the group, first in line to be killed.
    fn join(&self) -> String {
        let procs = self.0.join("cgroup.procs");
        format!("echo $$ >{} && echo 1000 >/proc/self/oom_score_adj && exec \"$@\"", procs.display())
    }

    /// Takes memory in the group until somebody is killed.
    fn hog(&self) -> Hog {
        let procs = self.0.join("cgroup.procs");
        let script = format!("echo $$ >{} && exec tail /dev/zero", procs.display());
        Hog(Command::new("sh")
            .args(["-c", &script])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let begun = Instant::now();
        while std::fs::remove_dir(&self.0).is_err() && begun.elapsed() < LONG {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

struct Hog(Child);

impl Drop for Hog {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d08_killed_for_memory_at_64_mib_it_is_back_at_once_within_one_step() {
    let place = Place::new().await;
    let Some(group) = Group::new() else { return };
    let join = group.join();
    let start = || place.begin().under(&["sh", "-c", &join, "sh"]).start().unwrap();
    let mut daemon = start();
    let mut held: Option<Held> = None;
    accept(&mut held, daemon.table().await, "before");
    let hog = group.hog();
    let status = daemon.ended(LONG);
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{status}");
    drop(hog);
    let begun = Instant::now();
    let daemon = start();
    let listening = begun.elapsed();
    let first = daemon.table().await;
    println!("listening {listening:?}, first table {:?} after an out-of-memory kill", begun.elapsed());
    within_a_step(held.as_ref(), &first, "after the kill");
    accept(&mut held, first, "after the kill");
    drop(daemon);
}

fn descriptors(pid: u32, limit: usize) {
    let status =
        Command::new("prlimit").arg(format!("--pid={pid}")).arg(format!("--nofile={limit}:")).status();
    assert!(status.unwrap().success());
}

fn open_descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d15_without_descriptors_accepting_pauses_and_watches_go_on() {
    let place = Place::new().await;
    let daemon = place.start();
    let before = daemon.table().await;
    // A watch on a connection that stays open.
    let mut watch = TcpStream::connect(daemon.addr).await.unwrap();
    let mut next = async |after: String| {
        let head = format!("GET /v1/table?wait=10s HTTP/1.1\r\nhost: t\r\nif-none-match: {after}\r\n\r\n");
        watch.write_all(head.as_bytes()).await.unwrap();
        let mut seen = Vec::new();
        let mut part = [0; 4096];
        loop {
            let count = tokio::time::timeout(LONG, watch.read(&mut part)).await.unwrap().unwrap();
            assert!(count > 0, "the watch was cut");
            seen.extend_from_slice(&part[..count]);
            let text = String::from_utf8_lossy(&seen).into_owned();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let field = |name: &str| {
                    head.lines()
                        .find_map(|line| line.strip_prefix(name))
                        .unwrap_or_default()
                        .trim()
                        .to_owned()
                };
                if field("content-length:").parse::<usize>().unwrap_or(0) == body.len() {
                    return field("etag:");
                }
            }
        }
    };
    let mut tag =
        next(format!("\"{}.{}.{}\"", before.stamp.epoch, before.stamp.version, before.stamp.tick)).await;
    descriptors(daemon.pid, open_descriptors(daemon.pid) + 4);
    let mut crowd = Vec::new();
    for _ in 0..40 {
        crowd.push(TcpStream::connect(daemon.addr).await.unwrap());
    }
    until("a refusal to accept", async || daemon.said().contains("could not be accepted").then_some(()))
        .await;
    let before = cpu(daemon.pid);
    for _ in 0..3 {
        let later = next(tag.clone()).await;
        assert_ne!(later, tag);
        tag = later;
    }
    // It waits between two attempts instead of spinning.
    let spent = cpu(daemon.pid) - before;
    println!("{spent} ticks of CPU while descriptors are used up");
    assert!(spent < 100, "{spent} ticks of CPU in three intervals");
    drop(crowd);
    until("room again", async || (get(daemon.addr, "/-/ready").await.status == 200).then_some(())).await;
    daemon.stop();
}

/// Ticks of CPU, a hundred a second.
fn cpu(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d15_fewer_connections_are_allowed_than_descriptors_would_break() {
    let place = Place::new().await;
    let upstream = Upstream::start().await;
    let daemon = place.begin().under(&["prlimit", "--nofile=600:600"]).start().unwrap();
    let said = daemon.said();
    assert!(said.contains("raise the limit") && said.contains("\"connections\":344"), "{said}");
    daemon.table().await;
    let begin = place.begin_node(daemon.addr, &upstream).under(&["prlimit", "--nofile=600:600"]);
    // Two each: a client's and a replica's.
    let said = begin.start().unwrap().said();
    assert!(said.contains("raise the limit") && said.contains("\"connections\":172"), "{said}");
    // Where there is room nothing is said.
    let place = Place::new().await;
    let daemon = place.begin().under(&["prlimit", "--nofile=14000:14000"]).start().unwrap();
    assert!(!daemon.said().contains("raise the limit"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d16_a_controller_told_to_stop_answers_everybody_and_its_end_is_clean() {
    let place = Place::new().await;
    let mut daemon = place.start();
    let held = daemon.table().await.stamp;
    let later = format!("\"9{}.{}.{}\"", held.epoch, held.version, held.tick);
    let (addr, open) = (daemon.addr, open_descriptors(daemon.pid));
    let watches: Vec<_> = (0..200)
        .map(|_| {
            let later = later.clone();
            tokio::spawn(async move {
                call(addr, "GET /v1/table?wait=60s", &[("if-none-match", &later)], b"").await
            })
        })
        .collect();
    until("all connected", async || (open_descriptors(daemon.pid) >= open + 200).then_some(())).await;
    // Connected is not asked.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let begun = Instant::now();
    daemon.signal("TERM");
    assert!(daemon.ended(Duration::from_secs(20)).success());
    println!("200 watches answered and drained in {:?}", begun.elapsed());
    for watch in watches {
        assert_eq!(watch.await.unwrap().status, 200);
    }
    let last = place.on_disk().unwrap().stamp;
    let daemon = place.start();
    assert_eq!(daemon.table().await.stamp.epoch, last.epoch, "a clean end needs no epoch of its own");
    daemon.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d16_a_node_told_to_stop_under_load_finishes_what_it_began() {
    let place = Place::new().await;
    let daemon = place.start();
    daemon.table().await;
    let upstream = Upstream::start().await;
    let mut node = place.begin_node(daemon.addr, &upstream).start().unwrap();
    until("the node's first table", async || node.holds().await).await;
    let proxy = node.addr;
    let clients: Vec<_> = (0..8)
        .map(|_| {
            tokio::spawn(async move {
                let mut served = 0;
                loop {
                    let auth = format!("Bearer {KEY}");
                    let body = br#"{"model":"m","stream":true,"max_tokens":20,"messages":[{"role":"user","content":"Hi"}]}"#;
                    let head = format!(
                        "POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\
                         authorization: {auth}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                        body.len()
                    );
                    let Ok(mut stream) = TcpStream::connect(proxy).await else { return Ok(served) };
                    let mut answer = Vec::new();
                    let wrote = stream.write_all(&[head.as_bytes(), body].concat()).await;
                    let read = stream.read_to_end(&mut answer).await;
                    let text = String::from_utf8_lossy(&answer).into_owned();
                    if answer.is_empty() {
                        // Connected to a listener that had closed: it was never accepted.
                        let _ = (wrote, read);
                        return Ok(served);
                    }
                    // Refused is answered, too.
                    let refused = text.starts_with("HTTP/1.1 429") && text.trim_end().ends_with('}');
                    if !refused && !text.contains("data: [DONE]") {
                        return Err(text);
                    }
                    served += usize::from(!refused);
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let begun = Instant::now();
    node.signal("TERM");
    assert!(node.ended(Duration::from_secs(20)).success());
    println!("drained in {:?}", begun.elapsed());
    let mut served = 0;
    for client in clients {
        let outcome = tokio::time::timeout(LONG, client).await.unwrap().unwrap();
        served += outcome.unwrap_or_else(|text| panic!("cut off: {text}"));
    }
    assert!(served > 10, "only {served} requests: no load");
    daemon.stop();
}
