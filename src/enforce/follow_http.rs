//! Follows a controller: a long poll whose answer is the next table.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, IF_NONE_MATCH};
use http::{Request, StatusCode, Uri};
use http_body_util::Full;

use crate::bounds::FOLLOW_BODY_WAIT;
use crate::bounds::FOLLOW_HEAD_WAIT;
use crate::bounds::FOLLOW_PAUSE_MIN;
use crate::bounds::FOLLOW_PROGRESS_WAIT;
use crate::bounds::FOLLOW_RECONNECT_MAX;
use crate::bounds::TABLE_BYTES_MAX;
use crate::enforce::client::{HttpClient, jitter, join, read_body};
use crate::enforce::config::Secret;
use crate::enforce::shared::Shared;
use crate::wire::{LimitTable, Nack, Stamp, TableError};

/// One node's view of its controller.
struct Controller {
    client: HttpClient,
    url: Uri,
    token: Option<Secret>,
    /// Not the table from disk: the controller shall say what is current.
    known: Option<Stamp>,
}

/// Why there is no table.
enum Problem {
    Away(String),
    Refused(Nack),
}

/// Runs until dropped.
pub async fn follow(shared: Arc<Shared>, client: HttpClient, base: String, token: Option<Secret>) {
    let url = match join(&base, "/v1/table?wait=10s") {
        Ok(url) => url,
        Err(reason) => {
            tracing::error!(%reason, "the controller's URL is none; tables will not come");
            return;
        }
    };
    let mut controller = Controller { client, url, token, known: None };
    loop {
        let asked = tokio::time::Instant::now();
        let reason = match controller.ask().await {
            Ok(Some(table)) => match shared.offer(table, Duration::ZERO).await {
                Ok(()) => {
                    controller.known = shared.cell.held().map(|held| held.stamp());
                    None
                }
                Err(error) => Some(error.to_string()),
            },
            Ok(None) => None,
            Err(Problem::Away(reason)) => Some(reason),
            Err(Problem::Refused(nack)) => {
                shared.refuse(nack.stamp, &nack.reason);
                Some(nack.reason)
            }
        };
        match reason {
            None if asked.elapsed() < FOLLOW_PAUSE_MIN => tokio::time::sleep(FOLLOW_PAUSE_MIN).await,
            None => {}
            Some(reason) => {
                shared.count.table_errors();
                tracing::warn!(controller = %base, %reason, "no table; the last one stays in force");
                // Thousands of nodes lose their controller in the same moment.
                tokio::time::sleep(FOLLOW_RECONNECT_MAX.mul_f64(jitter())).await;
            }
        }
    }
}

// === impl Controller ===

impl Controller {
    /// The next table; none when the known one is still current.
    async fn ask(&self) -> Result<Option<LimitTable>, Problem> {
        let Some(bytes) = self.exchange().await.map_err(Problem::Away)? else { return Ok(None) };
        let refused = |error: TableError| Nack::new(LimitTable::stamp_of(&bytes), &error.to_string());
        LimitTable::decode(&bytes).map(Some).map_err(|error| Problem::Refused(refused(error)))
    }

    async fn exchange(&self) -> Result<Option<Bytes>, String> {
        let mut request = Request::get(self.url.clone());
        if let Some(Stamp { epoch, version, tick }) = self.known {
            request = request.header(IF_NONE_MATCH, format!("\"{epoch}.{version}.{tick}\""));
        }
        if let Some(bearer) = self.token.as_ref().and_then(Secret::bearer) {
            request = request.header(AUTHORIZATION, bearer);
        }
        let request = request.body(Full::new(Bytes::new())).map_err(|error| error.to_string())?;
        let answer = match tokio::time::timeout(FOLLOW_HEAD_WAIT, self.client.request(request)).await {
            Ok(answer) => answer.map_err(|error| chain(&error))?,
            Err(_) => return Err(format!("no answer within {} s", FOLLOW_HEAD_WAIT.as_secs())),
        };
        match answer.status() {
            StatusCode::OK => {
                read_body(answer.into_body(), TABLE_BYTES_MAX, FOLLOW_PROGRESS_WAIT, FOLLOW_BODY_WAIT)
                    .await
                    .map(Some)
            }
            StatusCode::NOT_MODIFIED => Ok(None),
            status => Err(format!("the controller answers {status}")),
        }
    }
}

/// An error and its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
