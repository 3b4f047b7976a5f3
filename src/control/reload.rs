//! The policy directory, watched: an edit that has settled is read, checked as a whole, and only
//! then handed to the loop. A bad edit changes a gauge and a log line, nothing else.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use crate::bounds::DIRECTORY_ENTRIES_MAX;
use crate::bounds::LAST_GOOD_BYTES_MAX;
use crate::bounds::SETTLED_AFTER;
use crate::control::metrics::Metrics;
use crate::policy::Policy;
use crate::policy::diagnostic::{Diagnostic, render};
use crate::policy::load;
use crate::publish::board::{ReloadRequest, Reloaded};
use crate::publish::file::{Access, read_bounded, write_atomic};
use crate::unit::{Clock, Instant};

/// How often the directory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(125);

/// Name of the last good policy in a state directory.
const LAST_GOOD: &str = "policy.json";

/// A policy that passed every check, with the files it came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub policy: Arc<Policy>,
    /// Name and bytes of every file.
    pub files: Vec<(String, Vec<u8>)>,
    /// For the log.
    pub warnings: Vec<String>,
}

type FromDir = dyn Fn(&Path) -> Result<Loaded, String> + Send + Sync;
type FromFiles = dyn Fn(Vec<(String, Vec<u8>)>) -> Result<Loaded, String> + Send + Sync;

/// Reads policies; the same checks from a directory and from stored bytes.
#[derive(Clone)]
pub struct Loader {
    from_dir: Arc<FromDir>,
    from_files: Arc<FromFiles>,
}

/// What a directory looked like: name, size, modification time and inode of every policy file.
pub type Fingerprint = Vec<(String, u64, i128, u64)>;

/// Decides when an edit has settled. Pure: told what was seen and when.
#[derive(Debug)]
pub struct Settling {
    /// What was read last, good or bad.
    read: Fingerprint,
    seen: Fingerprint,
    since: Instant,
}

/// The task that watches a directory and takes reload requests.
pub struct Reloader {
    pub dir: PathBuf,
    pub loader: Loader,
    pub clock: Arc<dyn Clock>,
    pub metrics: Metrics,
    pub accepted: watch::Sender<Arc<Loaded>>,
    pub requests: mpsc::Receiver<ReloadRequest>,
    pub settling: Settling,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    digest: String,
    /// Name and text; policy files are UTF-8.
    files: Vec<(String, String)>,
}

// === impl Loader ===

impl Loader {
    pub fn new(
        from_dir: impl Fn(&Path) -> Result<Loaded, String> + Send + Sync + 'static,
        from_files: impl Fn(Vec<(String, Vec<u8>)>) -> Result<Loaded, String> + Send + Sync + 'static,
    ) -> Loader {
        Loader { from_dir: Arc::new(from_dir), from_files: Arc::new(from_files) }
    }

    /// Policies as `tidegate check` reads them.
    pub fn checked() -> Loader {
        let told = |loaded: Result<load::Loaded, Vec<Diagnostic>>| {
            let loaded = loaded.map_err(|diagnostics| render(&diagnostics, false))?;
            Ok(Loaded {
                policy: Arc::new(loaded.policy),
                files: loaded.files,
                warnings: loaded.warnings.iter().map(|warning| warning.render(false)).collect(),
            })
        };
        Loader::new(move |dir| told(load::load(dir)), move |files| told(load::load_bytes(files)))
    }

    /// # Errors
    /// Every diagnostic, as text.
    pub fn dir(&self, dir: &Path) -> Result<Loaded, String> {
        (self.from_dir)(dir)
    }

    /// # Errors
    /// Every diagnostic, as text.
    pub fn files(&self, files: Vec<(String, Vec<u8>)>) -> Result<Loaded, String> {
        (self.from_files)(files)
    }
}

impl fmt::Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Loader")
    }
}

// === impl Settling ===

impl Settling {
    pub fn new(read: Fingerprint, now: Instant) -> Settling {
        Settling { seen: read.clone(), read, since: now }
    }

    /// Whether what is seen now differs from what was read and has been so long enough.
    pub fn look(&mut self, now: Instant, seen: Fingerprint) -> bool {
        if seen != self.seen {
            self.seen = seen;
            self.since = now;
        }
        self.seen != self.read && now.since(self.since) >= SETTLED_AFTER
    }

    pub fn read(&mut self, fingerprint: Fingerprint) {
        self.read = fingerprint;
    }
}

// === impl Reloader ===

impl Reloader {
    /// Runs until the loop or the server is gone.
    pub async fn run(mut self) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let respond = tokio::select! {
                request = self.requests.recv() => match request {
                    Some(respond) => Some(respond),
                    None => return,
                },
                _ = looks.tick() => None,
            };
            // Before the files are read: an edit in between is then seen as one.
            let dir = self.dir.clone();
            let Ok(seen) = tokio::task::spawn_blocking(move || fingerprint(&dir)).await else {
                continue;
            };
            let settled = self.settling.look(self.clock.now(), seen.clone());
            if respond.is_none() && !settled {
                continue;
            }
            self.settling.read(seen);
            let reloaded = self.reload().await;
            if let Some(respond) = respond {
                let _ = respond.send(reloaded);
            }
        }
    }

    async fn reload(&mut self) -> Reloaded {
        let (loader, dir) = (self.loader.clone(), self.dir.clone());
        let loaded = tokio::task::spawn_blocking(move || loader.dir(&dir)).await;
        let loaded = loaded.unwrap_or_else(|error| Err(format!("the policy could not be read: {error}")));
        self.metrics.reloaded(loaded.is_ok());
        match loaded {
            Ok(loaded) => {
                let digest = loaded.policy.digest.clone();
                for warning in &loaded.warnings {
                    tracing::warn!("{warning}");
                }
                tracing::info!(
                    digest,
                    files = loaded.files.len(),
                    "policy read; in force with the next tick"
                );
                self.accepted.send_replace(Arc::new(loaded));
                Ok(format!("policy {digest} is in force with the next tick"))
            }
            Err(diagnostics) => {
                let dir = self.dir.display();
                tracing::error!(%dir, diagnostics, "policy refused; the last good one stays in force");
                Err(diagnostics)
            }
        }
    }
}

/// What the directory looks like now; one that cannot be read looks empty.
pub fn fingerprint(dir: &Path) -> Fingerprint {
    let mut files = Fingerprint::new();
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    for entry in entries.take(DIRECTORY_ENTRIES_MAX) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !load::is_policy(&name) {
            continue;
        }
        // Follows links: a volume's update swaps what they point to.
        let (size, modified, inode) = match fs::metadata(entry.path()) {
            Ok(meta) => {
                let nanos = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
                (meta.len(), nanos, meta.ino())
            }
            Err(_) => (u64::MAX, 0, 0),
        };
        files.push((name, size, modified, inode));
    }
    files.sort();
    files
}

/// Keeps a policy that has made a table, for a restart after a bad edit.
///
/// # Errors
/// With the path, or the file that is not text.
pub fn store_last_good(state: &Path, loaded: &Loaded) -> Result<(), String> {
    let mut files = Vec::new();
    for (name, bytes) in &loaded.files {
        let text = std::str::from_utf8(bytes).map_err(|_| format!("{name} is not UTF-8"))?;
        files.push((name.clone(), text.to_owned()));
    }
    let stored = Stored { digest: loaded.policy.digest.clone(), files };
    let bytes = serde_json::to_vec(&stored).map_err(|error| error.to_string())?;
    write_atomic(state, LAST_GOOD, &bytes, Access::Everyone).map_err(|error| error.to_string())
}

/// The last good policy of a state directory, checked again.
///
/// # Errors
/// Why it cannot be used.
pub fn load_last_good(state: &Path, loader: &Loader) -> Result<Option<Loaded>, String> {
    let path = state.join(LAST_GOOD);
    let Some(bytes) = read_bounded(&path, LAST_GOOD_BYTES_MAX).map_err(|error| error.to_string())? else {
        return Ok(None);
    };
    let stored: Stored =
        serde_json::from_slice(&bytes).map_err(|error| format!("{}: {error}", path.display()))?;
    let files = stored.files.into_iter().map(|(name, text)| (name, text.into_bytes())).collect();
    loader.files(files).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(size: u64) -> Fingerprint {
        vec![("a.yaml".to_owned(), size, 0, 0)]
    }

    fn at(millis: u64) -> Instant {
        Instant(millis * 1_000_000)
    }

    #[test]
    fn an_edit_is_read_once_it_has_settled() {
        let mut settling = Settling::new(print(1), at(0));
        assert!(!settling.look(at(1000), print(1)));
        // Truncated, then written bit by bit.
        for (now, size) in [(1100, 0), (1500, 5), (1900, 9), (2300, 9)] {
            assert!(!settling.look(at(now), print(size)), "at {now}");
        }
        assert!(settling.look(at(2400), print(9)));
        settling.read(print(9));
        assert!(!settling.look(at(9000), print(9)));
        // Back to what was read before it settled: no edit at all.
        assert!(!settling.look(at(9100), print(2)));
        assert!(!settling.look(at(9900), print(9)));
    }

    #[test]
    fn a_directory_looks_different_after_every_kind_of_edit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        fs::write(&path, "1").unwrap();
        fs::write(dir.path().join("notes.txt"), "1").unwrap();
        let first = fingerprint(dir.path());
        assert_eq!(first.len(), 1);
        fs::write(dir.path().join("b.yaml.tmp"), "2").unwrap();
        assert_eq!(fingerprint(dir.path()), first);
        // Same size, other inode.
        fs::rename(dir.path().join("b.yaml.tmp"), &path).unwrap();
        let second = fingerprint(dir.path());
        assert_ne!(second, first);
        fs::write(&path, "33").unwrap();
        assert_ne!(fingerprint(dir.path()), second);
        fs::remove_file(&path).unwrap();
        assert!(fingerprint(dir.path()).is_empty());
    }
}
