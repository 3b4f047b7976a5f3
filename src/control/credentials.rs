//! The listener's certificate and the token, followed in their files: what is good is in force with
//! the next connection, what is not leaves the last good one there, counted and logged.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::bounds::CREDENTIAL_BYTES_MAX;
use crate::control::metrics::Metrics;
use crate::control::reload::looks;
use crate::control::settle::{Fingerprint, Settling, Verdict};
use crate::policy::load::digest;
use crate::publish::board::Board;
use crate::publish::file::read_bounded;
use crate::publish::tls::{Identity, Presented};
use crate::publish::token::Token;
use crate::unit::Clock;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What a listener proves itself and its callers by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credential {
    Certificate,
    Token,
}

/// Where a credential is read, and where it goes.
pub enum Source {
    Certificate { chain: PathBuf, key: PathBuf, presented: Arc<Presented> },
    Token { file: PathBuf, board: Arc<Board> },
}

/// The task that follows one credential.
pub struct Follow {
    pub source: Source,
    pub settling: Settling,
    pub clock: Arc<dyn Clock>,
    pub metrics: Metrics,
}

/// Bytes of each file, or why there are none.
type Contents = Vec<Result<Vec<u8>, String>>;

impl Follow {
    /// Of a credential that is in force.
    pub fn new(source: Source, settle: Duration, clock: Arc<dyn Clock>, metrics: Metrics) -> Follow {
        let files = source.files();
        let seen = fingerprint(&files);
        let taken = digest_of(&read(&files));
        let settling = Settling::new(taken, seen, settle, clock.now());
        Follow { source, settling, clock, metrics }
    }

    /// Runs until dropped.
    pub async fn run(mut self) {
        let mut every = tokio::time::interval(LOOK_EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            let files = self.source.files();
            let Ok(seen) = tokio::task::spawn_blocking(move || fingerprint(&files)).await else { continue };
            if !self.settling.look(self.clock.now(), seen, false) {
                continue;
            }
            let files = self.source.files();
            let Ok(contents) = tokio::task::spawn_blocking(move || read(&files)).await else { continue };
            if self.settling.read(self.clock.now(), digest_of(&contents)) == Verdict::Take {
                self.take(&contents);
            }
        }
    }

    fn take(&self, contents: &Contents) {
        let credential = self.source.credential();
        let taken = self.source.put(contents);
        self.metrics.credential_read(credential, taken.is_ok());
        match taken {
            Ok(not_after) => {
                if let Some(not_after) = not_after {
                    self.metrics.certificate(not_after);
                }
                tracing::info!(?credential, not_after, "in force from the next connection on");
            }
            Err(reason) => tracing::error!(?credential, reason, "refused; the last good one stays in force"),
        }
    }
}

// === impl Source ===

impl Source {
    pub fn credential(&self) -> Credential {
        match self {
            Source::Certificate { .. } => Credential::Certificate,
            Source::Token { .. } => Credential::Token,
        }
    }

    fn files(&self) -> Vec<PathBuf> {
        match self {
            Source::Certificate { chain, key, .. } => vec![chain.clone(), key.clone()],
            Source::Token { file, .. } => vec![file.clone()],
        }
    }

    /// Puts it in force; of a certificate, says when it expires.
    fn put(&self, contents: &Contents) -> Result<Option<u64>, String> {
        match (self, contents.as_slice()) {
            (Source::Certificate { presented, .. }, [chain, key]) => {
                let identity = Identity::new(chain.as_ref()?, key.as_ref()?)?;
                let not_after = identity.not_after;
                presented.replace(identity);
                Ok(Some(not_after))
            }
            (Source::Token { file, board }, [bytes]) => {
                let token = Token::parse(file, bytes.as_ref()?).map_err(|error| error.to_string())?;
                board.token.store(Arc::new(token));
                Ok(None)
            }
            _ => Err("its files were not read".to_owned()),
        }
    }
}

// === impl Credential ===

impl Credential {
    pub fn name(self) -> &'static str {
        match self {
            Credential::Certificate => "certificate",
            Credential::Token => "token",
        }
    }
}

fn fingerprint(files: &[PathBuf]) -> Fingerprint {
    files.iter().map(|path| (path.display().to_string(), looks(path))).collect()
}

fn read(files: &[PathBuf]) -> Contents {
    let bytes = |path: &PathBuf| {
        let bytes = read_bounded(path, CREDENTIAL_BYTES_MAX).map_err(|error| error.to_string())?;
        bytes.ok_or_else(|| format!("{}: there is no such file", path.display()))
    };
    files.iter().map(bytes).collect()
}

fn digest_of(contents: &Contents) -> String {
    let part = |read: &Result<Vec<u8>, String>| match read {
        Ok(bytes) => ("read".to_owned(), bytes.clone()),
        Err(reason) => (reason.clone(), Vec::new()),
    };
    digest(&contents.iter().map(part).collect::<Vec<_>>())
}
