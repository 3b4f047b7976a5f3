//! The files a running node follows: the table that a controller publishes, and the keys.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;

use crate::bounds::KEYS_BYTES_MAX;
use crate::enforce::config::KeySource;
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

/// Follows the keys file until dropped. A change counts once two reads are equal, so that a file
/// in the middle of being written is not taken.
pub async fn follow_keys(gate: Arc<Gate>, path: PathBuf, every: Duration) {
    let mut follower = Follower::bounded(path.clone(), KEYS_BYTES_MAX);
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
            Some(Ok(bytes)) => parse_keys(&path, bytes).map_err(|error| error.to_string()),
        };
        match outcome {
            Ok(keyring) => {
                gate.shared.count.reloads();
                gate.keyring.store(Arc::new(keyring));
            }
            Err(reason) => {
                gate.shared.count.reload_errors();
                tracing::error!(%reason, "keys file refused; the last good one stays in force");
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
