//! A controller and a node as processes, under strace where a test wants that, and what a follower
//! of tables holds them to.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use tidegate::publish::file::load_table;
use tidegate::unit;
use tidegate::wire::{Held, LimitTable, Offer, Stamp};

use crate::support::node::{Upstream, keys};
use crate::support::{LONG, call, get, metric, not_tested, replica, until};

pub const BIN: &str = env!("CARGO_BIN_EXE_tidegate");
pub const PAGE: &str = "vllm:num_requests_running 3\nvllm:num_requests_waiting 0\n\
                    vllm:prompt_tokens_total 500\nvllm:generation_tokens_total 10\n";

pub fn long() -> bool {
    std::env::var("TIDEGATE_LONG").is_ok_and(|value| value == "1")
}

// === a place ===

pub struct Place {
    pub dir: tempfile::TempDir,
    target: SocketAddr,
}

impl Place {
    pub async fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("policies")).unwrap();
        let place = Place { dir, target: replica(PAGE).await };
        place.edit("40M tpm");
        place
    }

    pub fn edit(&self, ceiling: &str) {
        let policy = format!(
            "product: chat\ninterval: 500ms\npools:\n  gpu:\n    preset: vllm\n    \
             targets: [http://{}/metrics]\n    slo: 1s\nmodels:\n  m: {{pool: gpu}}\ntiers:\n  \
             t: {{priority: 1, weight: 1, guarantee: 6M tpm, ceiling: {ceiling}, key_limits: unlimited}}\n",
            self.target
        );
        // In one step: a half is a policy of its own.
        let path = self.dir.path().join("policies/chat.yaml");
        std::fs::write(path.with_extension("new"), policy).unwrap();
        std::fs::rename(path.with_extension("new"), path).unwrap();
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn state(&self) -> PathBuf {
        self.path().join("state")
    }

    pub fn on_disk(&self) -> Option<LimitTable> {
        load_table(&self.state()).expect("a whole table on disk, or none")
    }

    /// Policies in `policies`, state in `state`.
    pub fn begin(&self) -> Begin {
        let mut arguments = vec![BIN.to_owned(), "control".to_owned(), "--log-format".to_owned()];
        arguments.extend(["json", "--listen", "127.0.0.1:0", "--policies"].map(str::to_owned));
        arguments.push(self.path().join("policies").display().to_string());
        arguments.extend(["--state".to_owned(), self.state().display().to_string()]);
        let lock = Some(self.state().join("lock"));
        Begin { words: arguments, env: Vec::new(), lock, dir: self.path().to_owned() }
    }

    pub fn start(&self) -> Daemon {
        self.begin().start().unwrap()
    }

    /// A node that follows a controller with this policy.
    pub fn begin_node(&self, controller: SocketAddr, upstream: &Upstream) -> Begin {
        std::fs::write(self.path().join("keys.jsonl"), keys()).unwrap();
        let config = format!(
            "node: n\nkeys: keys.jsonl\ncontroller_token_file: state/token\n\
             upstreams:\n  main: {{urls: [\"{}\"]}}\n",
            upstream.url()
        );
        std::fs::write(self.path().join("node.yaml"), config).unwrap();
        let table = format!("http://{controller}");
        let words = [BIN, "enforce", "--config", "node.yaml", "--table", &table, "--listen", "127.0.0.1:0"];
        let mut words: Vec<String> = words.map(str::to_owned).into();
        words.extend(["--admin", "127.0.0.1:0", "--log-format", "json"].map(str::to_owned));
        Begin { words, env: Vec::new(), lock: None, dir: self.path().to_owned() }
    }
}

// === a process ===

pub struct Begin {
    words: Vec<String>,
    env: Vec<(String, String)>,
    /// Names the process when another one is its parent.
    lock: Option<PathBuf>,
    dir: PathBuf,
}

pub struct Daemon {
    pub child: Child,
    /// Of the daemon itself.
    pub pid: u32,
    /// The controller's listener, or the node's proxy.
    pub addr: SocketAddr,
    /// The node's.
    pub admin: Option<SocketAddr>,
    log: mpsc::Receiver<String>,
    said: Mutex<String>,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            signal(self.pid, "KILL");
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

pub fn signal(pid: u32, name: &str) {
    // One that is gone already is no error.
    let _ = Command::new("kill").args(["-s", name, &pid.to_string()]).stderr(Stdio::null()).status();
}

impl Begin {
    pub fn listen(mut self, addr: &str) -> Begin {
        let at = self.words.iter().position(|word| word == "--listen").unwrap();
        self.words[at + 1] = addr.to_owned();
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Begin {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Under another program.
    pub fn under(mut self, words: &[&str]) -> Begin {
        self.words.splice(0..0, words.iter().map(|word| (*word).to_owned()));
        self
    }

    /// Under strace, which looks at the state directory only and does what `options` say.
    pub fn traced(self, paths: &[PathBuf], options: &[&str]) -> Option<(Begin, PathBuf)> {
        let program = std::env::var("TIDEGATE_STRACE").unwrap_or_else(|_| "strace".to_owned());
        if Command::new(&program).arg("-V").stdout(Stdio::null()).status().is_err() {
            not_tested("`strace` does not start; install strace");
            return None;
        }
        let out = self.dir.join("trace");
        let mut words = vec![program, "-f".to_owned(), "-qq".to_owned(), "-o".to_owned()];
        words.push(out.display().to_string());
        for path in paths {
            words.extend(["-P".to_owned(), path.display().to_string()]);
        }
        words.extend(options.iter().map(|word| (*word).to_owned()));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        Some((self.under(&words), out))
    }

    /// Returns once it listens; what it said when it ends before.
    pub fn start(self) -> Result<Daemon, String> {
        let mut child = Command::new(&self.words[0])
            .args(&self.words[1..])
            .envs(self.env)
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = child.stderr.take().unwrap();
        let (sender, log) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let mut seen = String::new();
        let begun = Instant::now();
        while let Some(left) = (LONG * 2).checked_sub(begun.elapsed()) {
            let Ok(line) = log.recv_timeout(left) else { break };
            seen = format!("{seen}{line}\n");
            let fields: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
            let addr = |name: &str| fields[name].as_str().and_then(|text| text.parse().ok());
            if let Some(addr) = addr("addr").or_else(|| addr("proxy")) {
                let pid = self.lock.and_then(|lock| {
                    let lock: serde_json::Value = serde_json::from_slice(&std::fs::read(lock).ok()?).ok()?;
                    u32::try_from(lock["pid"].as_u64()?).ok()
                });
                let pid = pid.unwrap_or(child.id());
                return Ok(Daemon {
                    pid,
                    addr,
                    admin: addr_of(&fields, "admin"),
                    child,
                    log,
                    said: Mutex::new(seen),
                });
            }
        }
        let _ = child.kill();
        let _ = child.wait();
        Err(seen)
    }
}

fn addr_of(fields: &serde_json::Value, name: &str) -> Option<SocketAddr> {
    fields[name].as_str()?.parse().ok()
}

impl Daemon {
    pub fn signal(&self, name: &str) {
        signal(self.pid, name);
    }

    pub fn kill(&mut self) {
        self.signal("KILL");
        self.child.wait().unwrap();
    }

    pub fn ended(&mut self, within: Duration) -> ExitStatus {
        let begun = Instant::now();
        while begun.elapsed() < within {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("it goes on running after {within:?}");
    }

    /// A clean end.
    pub fn stop(mut self) {
        self.signal("TERM");
        assert!(self.ended(LONG).success());
    }

    /// Everything so far.
    pub fn said(&self) -> String {
        let mut said = self.said.lock().unwrap();
        self.log.try_iter().for_each(|line| said.push_str(&format!("{line}\n")));
        said.clone()
    }

    pub async fn metric(&self, name: &str) -> f64 {
        metric(self.admin.unwrap_or(self.addr), name).await
    }

    pub async fn table(&self) -> LimitTable {
        until("a table", async || table(self.addr).await).await
    }

    /// The next table after one.
    pub async fn after(&self, stamp: Stamp) -> LimitTable {
        until("a later table", async || table(self.addr).await.filter(|table| table.stamp > stamp)).await
    }

    /// What a node holds.
    pub async fn holds(&self) -> Option<Stamp> {
        let table = get(self.admin.unwrap(), "/v1/table").await.body;
        Some(serde_json::from_slice::<LimitTable>(&table).ok()?.stamp)
    }
}

pub async fn table(addr: SocketAddr) -> Option<LimitTable> {
    LimitTable::decode(&get(addr, "/v1/table?wait=10s").await.body).ok()
}

/// The next table, or none when the controller has died.
pub async fn try_table(addr: SocketAddr) -> Option<LimitTable> {
    let asked = tokio::spawn(async move { call(addr, "GET /v1/table?wait=1s", &[], b"").await.body });
    // A connection refused or cut ends that task.
    LimitTable::decode(&asked.await.ok()?).ok()
}

// === a follower ===

/// As a node does: a version that comes back with other contents is an error.
pub fn accept(held: &mut Option<Held>, table: LimitTable, when: &str) {
    let stamp = table.stamp;
    match Held::offer(held.as_ref(), table, unit::Instant::ZERO) {
        Ok(Offer::Applied(next) | Offer::Renewed(next)) => *held = Some(next),
        Ok(Offer::Stale) => {
            panic!("{when}: {stamp:?} is not newer than {:?}", held.as_ref().unwrap().stamp())
        }
        Err(error) => panic!("{when}: {error}"),
    }
}

/// The first table after a restart is within one step of the last.
pub fn within_a_step(last: Option<&Held>, first: &LimitTable, when: &str) {
    let Some(last) = last else { return };
    for (dimension, old) in &last.table.rows[0].limits {
        let (old, new) = (old.tier_limit.as_f64(), first.rows[0].limits[dimension].tier_limit.as_f64());
        let same = old.is_infinite() && new.is_infinite();
        assert!(same || (new >= old * 0.69 && new <= old * 1.3), "{when}: {old} to {new}");
    }
}

/// What must be on disk whenever a controller dies: a whole table, as new as any that was announced.
pub fn nothing_lost(place: &Place, held: &mut Option<Held>, when: &str) {
    let Some(on_disk) = place.on_disk() else {
        assert!(held.is_none(), "{when}: the table on disk is gone");
        return;
    };
    if let Some(held) = held {
        assert!(on_disk.stamp >= held.stamp(), "{when}: {:?} was announced", held.stamp());
        if on_disk.stamp == held.stamp() {
            assert!(on_disk.same_entries(&held.table), "{when}: {:?} has other entries", on_disk.stamp);
            return;
        }
    }
    accept(held, on_disk, &format!("{when}, on disk"));
}

pub fn files(place: &Place) -> usize {
    std::fs::read_dir(place.state()).unwrap().count()
}
