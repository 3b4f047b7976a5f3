//! The files a running node follows: the table that a controller publishes, and the keys.

use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;

use crate::bounds::ACCOUNTS_BYTES_MAX;
use crate::bounds::CONFIG_BYTES_MAX;
use crate::enforce::accounts::{Accounts, AccountsError};
use crate::enforce::config::{KeySource, Secret};
use crate::enforce::follow::{FollowError, Follower};
use crate::enforce::gateway::Gate;
use crate::enforce::shared::Shared;

#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error(transparent)]
    Read(#[from] FollowError),
    #[error("keys: not UTF-8")]
    Utf8,
    #[error("keys {path}: {error}")]
    Parse { path: PathBuf, error: AccountsError },
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
    follow(shared, path.clone(), ACCOUNTS_BYTES_MAX, every, "keys file", move |bytes| {
        let former = gate.accounts.load_full();
        let accounts = parse_keys(&path, bytes, &former).map_err(|error| error.to_string())?;
        gate.accounts.store(Arc::new(accounts));
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
    take: impl Fn(Vec<u8>) -> Result<bool, String> + Send + Sync + 'static,
) {
    let take = Arc::new(take);
    let mut follower = Follower::bounded(path, bytes_max);
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut former: Option<u64> = None;
    loop {
        ticks.tick().await;
        let take = Arc::clone(&take);
        let polled = spawn_blocking(move || {
            let outcome = look(&mut follower, &mut former, &*take);
            (follower, former, outcome)
        });
        let Ok((follower_again, former_again, outcome)) = polled.await else { return };
        (follower, former) = (follower_again, former_again);
        let Some(outcome) = outcome else { continue };
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

/// None while there is nothing new, or only one look at it.
fn look(
    follower: &mut Follower,
    former: &mut Option<u64>,
    take: &dyn Fn(Vec<u8>) -> Result<bool, String>,
) -> Option<Result<bool, String>> {
    let bytes = match follower.changed()? {
        Ok(bytes) => bytes,
        Err(error) => return Some(Err(error.to_string())),
    };
    let seen = Some(hash(&bytes));
    if std::mem::replace(former, seen) != seen {
        follower.forget();
        return None;
    }
    Some(take(bytes))
}

/// As a change of what is known already.
pub fn read_keys(source: &KeySource, former: &Accounts) -> Result<Accounts, KeysError> {
    match source {
        KeySource::File(path) => {
            let mut follower = Follower::bounded(path.clone(), ACCOUNTS_BYTES_MAX);
            let bytes = follower.changed().transpose()?.unwrap_or_default();
            parse_keys(path, bytes, former)
        }
        KeySource::Inline(text) => {
            let parse = |error| KeysError::Parse { path: PathBuf::from("(inline)"), error };
            Accounts::parse(text).map_err(parse)
        }
    }
}

fn parse_keys(path: &Path, bytes: Vec<u8>, former: &Accounts) -> Result<Accounts, KeysError> {
    let text = String::from_utf8(bytes).map_err(|_| KeysError::Utf8)?;
    former.updated(&text).map_err(|error| KeysError::Parse { path: path.to_owned(), error })
}

/// Tells two reads of a file apart without keeping the first.
fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}
