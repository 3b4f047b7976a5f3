//! The controller as a process: started, signalled, and ended with its test.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::LONG;

pub struct Program {
    pub child: Child,
    pub addr: SocketAddr,
    pub log: mpsc::Receiver<String>,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// === impl Program ===

impl Program {
    /// Policies are in `policies` and the state in `state`; returns once it listens.
    pub fn start(dir: &Path, listen: &str) -> Program {
        Program::start_with(dir, listen, &[])
    }

    pub fn start_with(dir: &Path, listen: &str, environment: &[(&str, &Path)]) -> Program {
        let mut child = Command::new(env!("CARGO_BIN_EXE_tidegate"))
            .args(["control", "--listen", listen, "--log-format", "json"])
            .arg("--policies")
            .arg(dir.join("policies"))
            .arg("--state")
            .arg(dir.join("state"))
            .envs(environment.iter().copied())
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
        let line = wait_for(&log, "\"message\":\"listening\"");
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        Program { child, addr: line["addr"].as_str().unwrap().parse().unwrap(), log }
    }

    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    pub fn exit_code(&mut self) -> Option<i32> {
        let begun = Instant::now();
        while begun.elapsed() < LONG {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("it went on running");
    }
}

pub fn wait_for(log: &mpsc::Receiver<String>, part: &str) -> String {
    let begun = Instant::now();
    let mut seen = String::new();
    while let Some(left) = LONG.checked_sub(begun.elapsed()) {
        let Ok(line) = log.recv_timeout(left) else { break };
        if line.contains(part) {
            return line;
        }
        seen.push_str(&line);
        seen.push('\n');
    }
    panic!("no {part} in\n{seen}");
}

/// libfaketime; none where it is not installed.
pub fn faketime() -> Option<PathBuf> {
    let stated = std::env::var_os("TIDEGATE_FAKETIME").map(PathBuf::from);
    let library = stated.filter(|path| path.exists());
    if library.is_none() {
        super::not_tested("libfaketime is not here; TIDEGATE_FAKETIME names it");
    }
    library
}

/// The environment of a process whose wall clock is that far from the system's as the file `wall`
/// says at any time, such as `+300` or `-30d`; its monotonic clock is the system's.
pub fn faked<'a>(library: &'a Path, wall: &'a Path) -> [(&'static str, &'a Path); 5] {
    [
        ("LD_PRELOAD", library),
        ("FAKETIME_TIMESTAMP_FILE", wall),
        ("FAKETIME_NO_CACHE", Path::new("1")),
        ("FAKETIME_DONT_FAKE_MONOTONIC", Path::new("1")),
        ("DONT_FAKE_MONOTONIC", Path::new("1")),
    ]
}
