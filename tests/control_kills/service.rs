//! The units, and what the daemons tell a service manager.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::daemon::{BIN, Daemon, Place};
use crate::support::node::Upstream;
use crate::support::not_tested;
use crate::support::until;

/// Tenths of systemd's exposure level that a unit may have.
const EXPOSURE_MAX: &str = "15";

fn units() -> Vec<(PathBuf, String)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging");
    ["tidegate-control.service", "tidegate-enforce.service"]
        .iter()
        .map(|name| (dir.join(name), std::fs::read_to_string(dir.join(name)).unwrap()))
        .collect()
}

#[test]
fn the_units_are_valid_and_expose_little() {
    let dir = tempfile::tempdir().unwrap();
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        not_tested("`systemd-analyze` does not start; install systemd");
        return;
    }
    let run = |arguments: &[&str], path: &Path| {
        let output = Command::new("systemd-analyze").args(arguments).arg(path).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    };
    for (path, text) in units() {
        // The program is where it was built, not where a package puts it.
        assert!(text.contains("/usr/bin/tidegate"));
        let here = dir.path().join(path.file_name().unwrap());
        std::fs::write(&here, text.replace("/usr/bin/tidegate", BIN)).unwrap();
        let (valid, said) = run(&["verify", "--man=no"], &here);
        assert!(valid && !said.contains("Unknown"), "{}: {said}", path.display());
        let threshold = format!("--threshold={EXPOSURE_MAX}");
        let (little, said) = run(&["security", "--offline=true", &threshold], &here);
        let level = said.lines().find(|line| line.contains("Overall exposure level")).unwrap_or(&said);
        println!("{level}");
        assert!(little, "{said}");
        // The checks can fail.
        std::fs::write(&here, text.replace("Type=notify", "Type=nonsense").replace("/usr/bin/tidegate", BIN))
            .unwrap();
        assert!(run(&["verify", "--man=no"], &here).1.contains("nonsense"));
        std::fs::write(
            &here,
            text.replace("ProtectSystem=strict", "User=root").replace("CapabilityBoundingSet=", ""),
        )
        .unwrap();
        assert!(!run(&["security", "--offline=true", &threshold], &here).0);
    }
}

/// A service manager's end of the socket.
struct Manager {
    socket: UnixDatagram,
    path: String,
    seen: Vec<String>,
}

impl Manager {
    fn new(dir: &Path) -> Manager {
        let path = dir.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        Manager { socket, path: path.display().to_string(), seen: Vec::new() }
    }

    fn hear(&mut self) {
        let mut bytes = [0; 4096];
        while let Ok(count) = self.socket.recv(&mut bytes) {
            let text = String::from_utf8_lossy(&bytes[..count]).into_owned();
            self.seen.extend(text.lines().map(str::to_owned));
        }
    }

    fn count(&self, word: &str) -> usize {
        self.seen.iter().filter(|line| *line == word).count()
    }

    async fn heard(&mut self, word: &str, times: usize) {
        until(&format!("{times} {word}"), async || {
            self.hear();
            (self.count(word) >= times).then_some(())
        })
        .await;
    }
}

async fn tells(mut manager: Manager, mut daemon: Daemon) {
    manager.heard("READY=1", 1).await;
    manager.heard("WATCHDOG=1", 4).await;
    assert_eq!(manager.count("STOPPING=1"), 0);
    daemon.signal("TERM");
    assert!(daemon.ended(Duration::from_secs(20)).success());
    manager.heard("STOPPING=1", 1).await;
}

/// It has begun to hang: from here on nothing feeds the watchdog.
async fn starves(mut manager: Manager, daemon: Daemon) {
    std::thread::sleep(Duration::from_secs(2));
    manager.hear();
    let fed = manager.count("WATCHDOG=1");
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        manager.hear();
    }
    assert_eq!(manager.count("WATCHDOG=1"), fed, "a loop that hangs is fed");
    drop(daemon);
}

/// As `WatchdogSec=1500ms` sets it.
const WATCHDOG: (&str, &str) = ("WATCHDOG_USEC", "1500000");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_controller_tells_its_service_manager_and_a_loop_that_hangs_does_not() {
    let place = Place::new().await;
    let manager = Manager::new(place.path());
    let begin =
        |manager: &Manager| place.begin().env("NOTIFY_SOCKET", &manager.path).env(WATCHDOG.0, WATCHDOG.1);
    let daemon = begin(&manager).start().unwrap();
    tells(manager, daemon).await;
    std::fs::remove_file(place.path().join("notify")).unwrap();
    let manager = Manager::new(place.path());
    let daemon = begin(&manager).env("TIDEGATE_FAILPOINT", "tick=hang").start().unwrap();
    starves(manager, daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_tells_its_service_manager_and_a_listener_that_hangs_does_not() {
    let place = Place::new().await;
    let controller = place.start();
    controller.table().await;
    let upstream = Upstream::start().await;
    let manager = Manager::new(place.path());
    let begin = |manager: &Manager| {
        let begin = place.begin_node(controller.addr, &upstream);
        begin.env("NOTIFY_SOCKET", &manager.path).env(WATCHDOG.0, WATCHDOG.1)
    };
    let node = begin(&manager).start().unwrap();
    tells(manager, node).await;
    std::fs::remove_file(place.path().join("notify")).unwrap();
    let manager = Manager::new(place.path());
    let node = begin(&manager).env("TIDEGATE_FAILPOINT", "accept=hang").start().unwrap();
    starves(manager, node).await;
    controller.stop();
}
