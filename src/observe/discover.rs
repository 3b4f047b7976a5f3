//! Targets that are not in the policy but in files and in DNS, asked for again as they change.
//!
//! Neither may stop a round: a file is read and a name looked up beside it, and until something
//! new is known the last good answer holds. A replica is gone once its file or its name, read
//! well, does not say it any more; a file that cannot be read says nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::bounds::{
    FILE_SD_BYTES_MAX, FILE_SD_FILES_MAX, LOOKUP_KEPT_MAX, LOOKUP_WAIT_MAX, SOURCE_WARNINGS_MAX, TARGETS_MAX,
};
use crate::observe::file_sd;
use crate::observe::scrape::Target;
use crate::policy::source::Targets;
use crate::unit::{Instant, ReplicaId};

/// The targets of one pool as they are known now.
pub struct Discovery {
    fixed: Vec<Target>,
    page: String,
    patterns: Vec<String>,
    files: BTreeMap<PathBuf, Listed>,
    names: Vec<Name>,
    refresh: Duration,
    reading: Option<JoinHandle<Listing>>,
}

/// What one round of discovery found.
#[derive(Debug, Default)]
pub struct Found {
    pub targets: Vec<Target>,
    pub warnings: Vec<String>,
    /// Targets that a file or a name, read well, no longer says.
    pub left: BTreeSet<ReplicaId>,
}

/// One `file_sd` file.
#[derive(Default)]
struct Listed {
    targets: Vec<Target>,
    /// Read once and different from what is in use: taken when it is read so again.
    next: Option<Vec<u8>>,
    bytes: Option<Vec<u8>>,
}

/// The files that patterns name, each with its bytes or why there are none.
#[derive(Default)]
struct Listing {
    files: BTreeMap<PathBuf, Result<Vec<u8>, String>>,
    /// Patterns whose directory could not be listed, or that name nothing.
    failed: Vec<String>,
}

/// One name whose addresses are replicas.
struct Name {
    /// As the policy writes it: `name:port`, or a URL of them.
    text: String,
    host: String,
    targets: Vec<Target>,
    answered: Option<Instant>,
    asked: Option<Instant>,
    failure: Option<String>,
    lookup: Option<JoinHandle<Result<Vec<String>, String>>>,
}

// === impl Discovery ===

impl Discovery {
    /// # Errors
    /// When a fixed target is no address.
    pub fn new(wanted: &Targets) -> Result<Self, String> {
        let mut fixed: Vec<Target> = Vec::new();
        for text in &wanted.fixed {
            fixed.push(Target::parse(text, &wanted.path)?);
        }
        let names = wanted.dns.iter().map(|text| Name::new(text)).collect();
        Ok(Self {
            fixed,
            page: wanted.path.clone(),
            patterns: wanted.file_sd.clone(),
            files: BTreeMap::new(),
            names,
            refresh: wanted.dns_refresh,
            reading: None,
        })
    }

    /// Whether there is more to it than what the policy lists.
    pub fn asks(&self) -> bool {
        !self.patterns.is_empty() || !self.names.is_empty()
    }

    /// Whom it knows without asking anybody.
    pub fn known(&self) -> Found {
        let mut found = Found::default();
        let mut seen = BTreeSet::new();
        let listed = self.files.values().flat_map(|file| &file.targets);
        let named = self.names.iter().flat_map(|name| &name.targets);
        // A replica that is written twice is still one replica.
        for target in self.fixed.iter().chain(listed).chain(named) {
            if found.targets.len() < TARGETS_MAX {
                if seen.insert(target.replica.clone()) {
                    found.targets.push(target.clone());
                }
            } else if found.warnings.is_empty() {
                found.warnings.push(format!("more than {TARGETS_MAX} targets; the rest is left out"));
            }
        }
        found
    }

    /// Follows files and names, for `patience` at most.
    pub async fn refresh(&mut self, now: Instant, patience: Duration) -> Found {
        let before: BTreeSet<ReplicaId> = self.replicas();
        let mut warnings = Vec::new();
        let mut lost = BTreeSet::new();
        let follow = async {
            self.follow_files(&mut warnings).await;
            self.names.iter_mut().for_each(|name| name.ask(now, self.refresh));
            for name in &mut self.names {
                name.follow(now, &self.page, &mut lost).await;
            }
        };
        // What takes longer goes on beside the round and is looked at in the next.
        let late = tokio::time::timeout(patience, follow).await.is_err();
        if late {
            warnings.push("discovery takes longer than a round".to_owned());
        }
        warnings.extend(
            self.names.iter().filter_map(|name| {
                name.failure.as_ref().map(|failure| format!("dns {}: {failure}", name.text))
            }),
        );
        let mut found = self.known();
        found.warnings.extend(warnings);
        found.warnings.truncate(SOURCE_WARNINGS_MAX);
        let after = self.replicas();
        // That a name could not be looked up for too long is no word about its replicas.
        found.left = before.into_iter().filter(|id| !after.contains(id) && !lost.contains(id)).collect();
        found
    }

    fn replicas(&self) -> BTreeSet<ReplicaId> {
        self.known().targets.into_iter().map(|target| target.replica).collect()
    }

    async fn follow_files(&mut self, warnings: &mut Vec<String>) {
        if self.patterns.is_empty() {
            return;
        }
        let patterns = self.patterns.clone();
        let reading =
            self.reading.get_or_insert_with(|| tokio::task::spawn_blocking(move || Listing::read(&patterns)));
        let listing = reading.await;
        self.reading = None;
        let Ok(Listing { files, failed }) = listing else {
            warnings.push("the files of `file_sd` could not be read".to_owned());
            return;
        };
        // A file that its directory does not list any more has left, unless nothing is left of
        // its pattern: then the directory was lost, or is just being written.
        self.files.retain(|path, _| {
            files.contains_key(path) || failed.iter().any(|pattern| matches(pattern, path))
        });
        warnings.extend(failed.iter().map(|pattern| format!("file_sd {pattern}: there is no such file")));
        for (path, read) in files {
            let told = match read {
                Ok(bytes) => self.files.entry(path.clone()).or_default().follow(&path, bytes, &self.page),
                Err(reason) => Err(reason),
            };
            if let Err(reason) = told {
                warnings.push(format!("file_sd {}: {reason}", path.display()));
            }
        }
    }
}

// === impl Listed ===

impl Listed {
    /// Takes what was read twice running, or at first; an error leaves what was last good.
    fn follow(&mut self, path: &Path, bytes: Vec<u8>, page: &str) -> Result<(), String> {
        if self.bytes.as_ref() == Some(&bytes) {
            self.next = None;
            return Ok(());
        }
        // A file that is cut off may be good YAML with fewer targets in it.
        if self.bytes.is_some() && self.next.as_ref() != Some(&bytes) {
            self.next = Some(bytes);
            return Ok(());
        }
        let texts = file_sd::targets(&path.to_string_lossy(), &bytes)?;
        self.targets = texts.iter().map(|text| Target::parse(text, page)).collect::<Result<_, _>>()?;
        self.bytes = Some(bytes);
        self.next = None;
        Ok(())
    }
}

// === impl Listing ===

impl Listing {
    fn read(patterns: &[String]) -> Self {
        let mut listing = Self::default();
        for pattern in patterns {
            let mut any = false;
            for path in paths(pattern) {
                if listing.files.len() >= FILE_SD_FILES_MAX {
                    listing.failed.push(format!("{pattern} (more than {FILE_SD_FILES_MAX} files)"));
                    break;
                }
                match read(&path) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    read => {
                        any = true;
                        listing.files.insert(path, read.map_err(|error| error.to_string()));
                    }
                }
            }
            if !any {
                listing.failed.push(pattern.clone());
            }
        }
        listing
    }
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let fail = |reason: &str| std::io::Error::other(reason.to_owned());
    if !std::fs::metadata(path)?.is_file() {
        return Err(fail("not a file"));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(FILE_SD_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > FILE_SD_BYTES_MAX {
        return Err(fail(&format!("larger than {FILE_SD_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

/// The files that a pattern names now, in order.
fn paths(pattern: &str) -> Vec<PathBuf> {
    let path = Path::new(pattern);
    if !pattern.contains('*') {
        return vec![path.to_owned()];
    }
    let Some(Ok(entries)) = path.parent().map(std::fs::read_dir) else { return Vec::new() };
    let mut found: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|path| matches(pattern, path)).collect();
    found.sort();
    found
}

/// Whether a path is one that a pattern names; its last segment may hold one `*`.
fn matches(pattern: &str, path: &Path) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return Path::new(pattern) == path };
    let path = path.to_string_lossy();
    let between = path.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
    between.is_some_and(|between| !between.contains('/') && !between.starts_with('.'))
}

// === impl Name ===

impl Name {
    fn new(text: &str) -> Self {
        let host = text.split_once("://").map_or(text, |(_, rest)| rest);
        let host = host.split('/').next().unwrap_or_default().to_owned();
        Self {
            text: text.to_owned(),
            host,
            targets: Vec::new(),
            answered: None,
            asked: None,
            failure: None,
            lookup: None,
        }
    }

    fn ask(&mut self, now: Instant, refresh: Duration) {
        let due = self.asked.is_none_or(|asked| now.since(asked) >= refresh);
        if due && self.lookup.is_none() {
            self.asked = Some(now);
            self.lookup = Some(tokio::spawn(look_up(self.host.clone())));
        }
    }

    async fn follow(&mut self, now: Instant, page: &str, lost: &mut BTreeSet<ReplicaId>) {
        // The first answer is waited for: there is nothing to go on with.
        let ready =
            self.lookup.as_ref().is_some_and(|lookup| lookup.is_finished() || self.answered.is_none());
        if let Some(lookup) = self.lookup.as_mut().filter(|_| ready) {
            let joined = lookup.await;
            self.lookup = None;
            let addresses = joined.unwrap_or_else(|error| Err(error.to_string()));
            match addresses.and_then(|addresses| self.parse(&addresses, page)) {
                Ok(targets) => {
                    self.targets = targets;
                    self.answered = Some(now);
                    self.failure = None;
                }
                Err(reason) => self.failure = Some(reason),
            }
        }
        if self.answered.is_some_and(|answered| now.since(answered) > LOOKUP_KEPT_MAX) {
            lost.extend(self.targets.drain(..).map(|target| target.replica));
        }
    }

    fn parse(&self, addresses: &[String], page: &str) -> Result<Vec<Target>, String> {
        let target = |address: &String| Target::parse(&self.text.replacen(&self.host, address, 1), page);
        addresses.iter().map(target).collect()
    }
}

/// Every address of a `name:port`, in order. None at all is a failure: an empty answer is more
/// often a resolver's fault than a fleet of none.
async fn look_up(host: String) -> Result<Vec<String>, String> {
    let found = tokio::time::timeout(LOOKUP_WAIT_MAX, tokio::net::lookup_host(host)).await;
    let found = found.map_err(|_| format!("no answer within {LOOKUP_WAIT_MAX:?}"))?;
    let found: BTreeSet<String> =
        found.map_err(|error| error.to_string())?.map(|address| address.to_string()).collect();
    if found.is_empty() {
        return Err("it has no address".to_owned());
    }
    Ok(found.into_iter().take(TARGETS_MAX).collect())
}
