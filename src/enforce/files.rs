//! The files a running node follows: the table that a controller publishes, and the keys.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;

use crate::bounds::CONFIG_BYTES_MAX;
use crate::bounds::KEYS_BYTES_MAX;
use crate::enforce::config::{KeySource, Secret};
use crate::enforce::follow::{FollowError, Follower};
use crate::enforce::gateway::Gate;
use crate::enforce::keyring::{Keyring, KeyringError};
use crate::enforce::shared::Shared;

#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error(transparent)]
    Read(#[from] FollowError),
    #[error("keys: not UTF-8")]
    Utf8,
    #[error("keys {path}: {error}")]
    Parse { path: PathBuf, error: KeyringError },
}

/// Follows the table file until dropped.
pub async fn follow_table(shared: Arc<Shared>, path: PathBuf, every: Duration) {
    let mut follower = Follower::new(path);
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let polled = spawn_blocking(move || {
            let table = follower.poll();
            (follower, table)
        });
        let Ok((returned, table)) = polled.await else { return };
        follower = returned;
        let problem = match table {
            None => continue,
            Some(Ok(found)) => {
                shared.offer(found.table, found.age).await.err().map(|error| error.to_string())
            }
            Some(Err(error)) => {
                if let FollowError::Table { stamp, error, .. } = &error {
                    shared.refuse(*stamp, &error.to_string());
                }
                Some(error.to_string())
            }
        };
        if let Some(reason) = problem {
            shared.count.table_errors();
            tracing::warn!(%reason, "table refused; the one in force stays");
        }
    }
}

/// Follows the keys file until dropped.
pub async fn follow_keys(gate: Arc<Gate>, path: PathBuf, every: Duration) {
    let shared = Arc::clone(&gate.shared);
    follow(shared, path.clone(), KEYS_BYTES_MAX, every, "keys file", move |bytes| {
        let keyring = parse_keys(&path, bytes).map_err(|error| error.to_string())?;
        gate.keyring.store(Arc::new(keyring));
        Ok(true)
    })
    .await;
}

/// Follows the file of a secret until dropped.
pub async fn follow_secret(shared: Arc<Shared>, secret: Secret, path: PathBuf, every: Duration) {
    let bytes_max = usize::try_from(CONFIG_BYTES_MAX).unwrap_or(usize::MAX);
    follow(shared, path.clone(), bytes_max, every, "token file", move |bytes| {
        let text = String::from_utf8(bytes).map_err(|_| format!("{}: not UTF-8", path.display()))?;
        let former = secret.expose();
        secret.replace(&text).map_err(|reason| format!("{}: {reason}", path.display()))?;
        Ok(secret.expose() != former)
    })
    .await;
}

/// A change counts once two reads are equal, so that a file in the middle of being written is not
/// taken; `take` says whether it was one.
async fn follow(
    shared: Arc<Shared>,
    path: PathBuf,
    bytes_max: usize,
    every: Duration,
    what: &'static str,
    take: impl Fn(Vec<u8>) -> Result<bool, String>,
) {
    let mut follower = Follower::bounded(path, bytes_max);
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut former: Option<Vec<u8>> = None;
    loop {
        ticks.tick().await;
        let polled = spawn_blocking(move || {
            let bytes = follower.changed();
            (follower, bytes)
        });
        let Ok((returned, bytes)) = polled.await else { return };
        follower = returned;
        let outcome = match bytes {
            None => continue,
            Some(Err(error)) => Err(error.to_string()),
            Some(Ok(bytes)) if former.as_ref() != Some(&bytes) => {
                former = Some(bytes);
                follower.forget();
                continue;
            }
            Some(Ok(bytes)) => take(bytes),
        };
        match outcome {
            Ok(true) => shared.count.reloads(),
            Ok(false) => {}
            Err(reason) => {
                shared.count.reload_errors();
                tracing::error!(%reason, "{what} refused; the last good one stays in force");
            }
        }
    }
}

pub fn read_keys(source: &KeySource) -> Result<Keyring, KeysError> {
    match source {
        KeySource::File(path) => {
            let mut follower = Follower::bounded(path.clone(), KEYS_BYTES_MAX);
            let bytes = follower.changed().transpose()?.unwrap_or_default();
            parse_keys(path, bytes)
        }
        KeySource::Inline(text) => {
            Keyring::parse(text).map_err(|error| KeysError::Parse { path: PathBuf::from("(inline)"), error })
        }
    }
}

fn parse_keys(path: &Path, bytes: Vec<u8>) -> Result<Keyring, KeysError> {
    let text = String::from_utf8(bytes).map_err(|_| KeysError::Utf8)?;
    Keyring::parse(&text).map_err(|error| KeysError::Parse { path: path.to_owned(), error })
}
