//! The policy directory, watched: an edit that has settled is checked as a whole, and only then
//! handed to the loop. A bad edit changes a gauge, a counter, the status and a log line, nothing
//! else. There is no watch to lose: the directory is polled.

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
use crate::bounds::RELOADS_WAITING_MAX;
use crate::bounds::UNSETTLED_MAX;
use crate::control::fence::fenced;
use crate::control::history::{self, Held};
use crate::control::metrics::Metrics;
use crate::control::settle::{Fingerprint, Settling, Verdict};
use crate::control::standing::{Origin, Standing};
use crate::policy::Policy;
use crate::policy::compare::widened;
use crate::policy::diagnostic::render;
use crate::policy::load::{self, Contents};
use crate::publish::board::{Board, ReloadRequest, Reloaded, RollbackRequest};
use crate::publish::file::{Access, read_bounded, write_atomic};
use crate::unit::{Clock, Instant};

/// How often the directory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(125);

/// Name of the last good policy in a state directory.
pub const LAST_GOOD: &str = "policy.json";
/// Name of the policy that was in force long enough to be trusted after crashes of a later one.
pub const PROVEN: &str = "policy.proven.json";

/// A policy that passed every check, with the files it came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub policy: Arc<Policy>,
    /// Name and bytes of every file.
    pub files: Vec<(String, Vec<u8>)>,
    /// For the log.
    pub warnings: Vec<String>,
    pub origin: Origin,
}

type Judge = dyn Fn(Contents) -> Result<Loaded, String> + Send + Sync;

/// Judges policies; the same checks for a directory and for stored bytes.
#[derive(Clone)]
pub struct Loader(Arc<Judge>);

/// The task that watches a directory and takes reload and rollback requests.
pub struct Reloader {
    pub dir: PathBuf,
    pub state: PathBuf,
    pub loader: Loader,
    pub clock: Arc<dyn Clock>,
    pub metrics: Metrics,
    pub board: Arc<Board>,
    pub standing: Arc<Standing>,
    pub accepted: watch::Sender<Arc<Loaded>>,
    pub requests: mpsc::Receiver<ReloadRequest>,
    pub rollbacks: mpsc::Receiver<RollbackRequest>,
    pub settling: Settling,
}

/// Whoever waits for the directory to be read, and since when.
#[derive(Default)]
struct Waiting {
    requests: Vec<ReloadRequest>,
    since: Option<Instant>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    digest: String,
    /// Name and text; policy files are UTF-8.
    files: Vec<(String, String)>,
}

// === impl Loader ===

impl Loader {
    pub fn new(judge: impl Fn(Contents) -> Result<Loaded, String> + Send + Sync + 'static) -> Loader {
        Loader(Arc::new(judge))
    }

    /// Policies as `tidegate check` reads them.
    pub fn checked() -> Loader {
        Loader::new(|contents| {
            let loaded = load::check(contents).map_err(|diagnostics| render(&diagnostics, false))?;
            Ok(Loaded {
                policy: Arc::new(loaded.policy),
                files: loaded.files,
                warnings: loaded.warnings.iter().map(|warning| warning.render(false)).collect(),
                origin: Origin::Directory,
            })
        })
    }

    /// # Errors
    /// Every diagnostic, as text; also when the check itself panics.
    pub fn judge(&self, contents: Contents) -> Result<Loaded, String> {
        let digest = contents.digest();
        fenced(|| (self.0)(contents))
            .unwrap_or_else(|panicked| Err(format!("contents {digest} cannot be checked: {panicked}")))
    }

    /// The same, but for a policy of this digest: runs under it end badly.
    pub fn without(&self, digest: Option<&str>, record: &Path) -> Loader {
        let Some(digest) = digest.map(str::to_owned) else { return self.clone() };
        let reason = format!(
            "policy {digest} is quarantined: three runs under it ended badly within a minute; \
             correct it, or remove {} to have it started again",
            record.display()
        );
        let pass = move |loaded: Loaded| {
            if loaded.policy.digest == digest { Err(reason.clone()) } else { Ok(loaded) }
        };
        let all = self.clone();
        Loader::new(move |contents| all.judge(contents).and_then(&pass))
    }

    /// # Errors
    /// Every diagnostic, as text.
    pub fn dir(&self, dir: &Path) -> Result<Loaded, String> {
        self.judge(load::read(dir))
    }

    /// # Errors
    /// Every diagnostic, as text.
    pub fn files(&self, mut files: Vec<(String, Vec<u8>)>) -> Result<Loaded, String> {
        files.sort();
        self.judge(Contents { files, problems: Vec::new() })
    }
}

impl fmt::Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Loader")
    }
}

// === impl Loaded ===

impl Loaded {
    /// Name and text of every file, for a store.
    ///
    /// # Errors
    /// Names the file that is not text.
    pub fn texts(&self) -> Result<Vec<(String, String)>, String> {
        let text = |(name, bytes): &(String, Vec<u8>)| {
            let text = std::str::from_utf8(bytes).map_err(|_| format!("{name} is not UTF-8"))?;
            Ok((name.clone(), text.to_owned()))
        };
        self.files.iter().map(text).collect()
    }
}

// === impl Waiting ===

impl Waiting {
    fn join(&mut self, now: Instant, request: ReloadRequest) {
        self.since.get_or_insert(now);
        self.requests.push(request);
    }

    fn any(&self) -> bool {
        !self.requests.is_empty()
    }

    fn in_vain(&self, now: Instant) -> bool {
        self.since.is_some_and(|since| now.since(since) > UNSETTLED_MAX)
    }

    fn answer(&mut self, reloaded: &Reloaded) {
        self.since = None;
        for respond in self.requests.drain(..) {
            let _ = respond.send(reloaded.clone());
        }
    }
}

// === impl Reloader ===

impl Reloader {
    /// Runs until the loop or the server is gone.
    pub async fn run(mut self) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut waiting = Waiting::default();
        loop {
            tokio::select! {
                request = self.requests.recv(), if waiting.requests.len() < RELOADS_WAITING_MAX => match request {
                    Some(request) => waiting.join(self.clock.now(), request),
                    None => return,
                },
                Some(request) = self.rollbacks.recv() => {
                    let _ = request.respond.send(self.roll_back(request.to).await);
                    continue;
                }
                _ = looks.tick() => {}
            }
            // Before the files are read: an edit in between is then seen as one.
            let dir = self.dir.clone();
            let Ok(seen) = tokio::task::spawn_blocking(move || fingerprint(&dir)).await else {
                continue;
            };
            let now = self.clock.now();
            if self.settling.look(now, seen, waiting.any()) {
                self.read(&mut waiting).await;
            }
            if waiting.in_vain(now) {
                let reason = "the directory keeps changing; reload once it is quiet";
                waiting.answer(&Err(reason.to_owned()));
            }
        }
    }

    async fn read(&mut self, waiting: &mut Waiting) {
        let dir = self.dir.clone();
        let read = tokio::task::spawn_blocking(move || {
            let contents = load::read(&dir);
            let digest = contents.digest();
            (contents, digest)
        });
        let Ok((contents, digest)) = read.await else { return };
        match self.settling.read(self.clock.now(), digest) {
            Verdict::Wait => {}
            Verdict::Unchanged if !waiting.any() => {}
            Verdict::Unchanged | Verdict::Take => {
                let reloaded = self.take(contents).await;
                waiting.answer(&reloaded);
            }
        }
    }

    async fn take(&mut self, contents: Contents) -> Reloaded {
        let loader = self.loader.clone();
        let judged = tokio::task::spawn_blocking(move || loader.judge(contents)).await;
        let judged = judged.unwrap_or_else(|error| Err(format!("the policy could not be read: {error}")));
        let judged = judged.and_then(|loaded| match self.standing.quarantined(&loaded.policy.digest) {
            Some(refusal) => Err(refusal),
            None => Ok(loaded),
        });
        self.metrics.reloaded(judged.is_ok());
        match judged {
            Ok(loaded) => {
                if let Err(reason) = history::release(&self.state) {
                    tracing::error!(%reason, "the note of what is held is still there");
                }
                Ok(self.accept(loaded))
            }
            Err(diagnostics) => {
                let dir = self.dir.display();
                tracing::error!(%dir, diagnostics, "policy refused; the last good one stays in force");
                self.standing.refused(&diagnostics);
                Err(diagnostics)
            }
        }
    }

    /// The loop takes it with its next turn.
    fn accept(&mut self, loaded: Loaded) -> String {
        let digest = loaded.policy.digest.clone();
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        let widened = widened(&self.accepted.borrow().policy, &loaded.policy);
        if !widened.is_empty() {
            let limits = widened.join("; ");
            tracing::warn!(digest, limits, "the edit widens limits");
        }
        let (files, origin) = (loaded.files.len(), &loaded.origin);
        tracing::info!(digest, files, ?origin, "policy read; in force with the next tick");
        self.standing.accepted(&digest, loaded.origin.clone(), widened);
        self.accepted.send_replace(Arc::new(loaded));
        format!("policy {digest} is in force with the next tick")
    }

    /// Goes back to a former policy, which is held until the directory is edited or reloaded.
    async fn roll_back(&mut self, to: Option<u64>) -> Reloaded {
        let now = self.board.latest().map(|latest| latest.stamp).unwrap_or_default();
        let in_force = self.standing.policy();
        let (state, loader) = (self.state.clone(), self.loader.clone());
        let directory = self.settling.taken().to_owned();
        let found = tokio::task::spawn_blocking(move || {
            let kept = history::find(history::kept(&state)?, to, now, &in_force)?;
            let (policy, to) = (kept.since.policy.clone(), to.unwrap_or(kept.since.version));
            let mut loaded = loader.files(kept.into_files())?;
            loaded.origin = Origin::Rollback { to };
            // First on disk: a restart in between must not bring the other one back.
            history::hold(&state, &Held { policy, to, directory })?;
            Ok(loaded)
        });
        let found = found.await.unwrap_or_else(|error| Err(error.to_string()));
        let found = found.and_then(|loaded| match self.standing.quarantined(&loaded.policy.digest) {
            Some(refusal) => Err(refusal),
            None => Ok(loaded),
        });
        match found {
            Ok(loaded) => {
                let digest = loaded.policy.digest.clone();
                tracing::warn!(digest, origin = ?loaded.origin, "rolled back; an edit or a reload ends it");
                self.metrics.held(true);
                let line = self.accept(loaded);
                Ok(format!("{line}; it is held until the directory is edited or reloaded"))
            }
            Err(reason) => {
                tracing::error!(reason, "rollback refused");
                Err(reason)
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
        files.push((name, looks(&entry.path())));
    }
    files.sort();
    files
}

/// Size, times and identity of what a path leads to: links are followed, because a volume's update
/// swaps what they point to.
pub fn looks(path: &Path) -> [i128; 5] {
    let nanos = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    match fs::metadata(path) {
        Ok(meta) => [
            i128::from(meta.len()),
            nanos(meta.mtime(), meta.mtime_nsec()),
            // Whoever keeps the time of modification changes this one.
            nanos(meta.ctime(), meta.ctime_nsec()),
            i128::from(meta.ino()),
            i128::from(meta.dev()),
        ],
        Err(_) => [-1; 5],
    }
}

/// Keeps a policy that has made a table, for a restart after a bad edit.
///
/// # Errors
/// With the path, or the file that is not text.
pub fn store_policy(state: &Path, name: &str, loaded: &Loaded) -> Result<(), String> {
    let stored = Stored { digest: loaded.policy.digest.clone(), files: loaded.texts()? };
    let bytes = serde_json::to_vec(&stored).map_err(|error| error.to_string())?;
    write_atomic(state, name, &bytes, Access::Everyone).map_err(|error| error.to_string())
}

/// A stored policy of a state directory, checked again.
///
/// # Errors
/// Why it cannot be used.
pub fn load_policy(state: &Path, name: &str, loader: &Loader) -> Result<Option<Loaded>, String> {
    let path = state.join(name);
    let Some(bytes) = read_bounded(&path, LAST_GOOD_BYTES_MAX).map_err(|error| error.to_string())? else {
        return Ok(None);
    };
    let stored: Stored =
        serde_json::from_slice(&bytes).map_err(|error| format!("{}: {error}", path.display()))?;
    let files = stored.files.into_iter().map(|(name, text)| (name, text.into_bytes())).collect();
    loader.files(files).map(|loaded| Some(Loaded { origin: Origin::LastGood, ..loaded }))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let third = fingerprint(dir.path());
        assert_ne!(third, second);
        // Same size, same inode, and the time of modification put back, as `rsync --inplace -t` does.
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        fs::write(&path, "44").unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
        assert_ne!(fingerprint(dir.path()), third);
        fs::remove_file(&path).unwrap();
        assert!(fingerprint(dir.path()).is_empty());
    }
}
