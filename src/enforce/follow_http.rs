//! Follows a controller: a long poll whose answer is the next table.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{AUTHORIZATION, IF_NONE_MATCH};
use http::{Request, StatusCode, Uri};
use http_body_util::Full;

use crate::bounds::FOLLOW_BACKOFF_MAX;
use crate::bounds::FOLLOW_BACKOFF_MIN;
use crate::bounds::FOLLOW_PAUSE_MIN;
use crate::bounds::FOLLOW_WAIT_MAX;
use crate::bounds::TABLE_BYTES_MAX;
use crate::enforce::client::{HttpClient, jitter, join, read_body};
use crate::enforce::config::Secret;
use crate::enforce::shared::Shared;
use crate::wire::{LimitTable, Stamp};

/// Runs until dropped.
pub async fn follow(shared: Arc<Shared>, client: HttpClient, base: String, token: Option<Secret>) {
    let url = match join(&base, "/v1/table?wait=10s") {
        Ok(url) => url,
        Err(reason) => {
            tracing::error!(%reason, "the controller's URL is none; tables will not come");
            return;
        }
    };
    let mut backoff = FOLLOW_BACKOFF_MIN;
    // Not the one from disk: the controller shall say what is current.
    let mut known: Option<Stamp> = None;
    loop {
        let asked = tokio::time::Instant::now();
        let answer = tokio::time::timeout(FOLLOW_WAIT_MAX, ask(&client, &url, token.as_ref(), known)).await;
        let problem = match answer {
            Ok(Ok(Some(table))) => {
                let stamp = table.stamp;
                match shared.offer(table).await {
                    Ok(()) => {
                        known = Some(stamp);
                        None
                    }
                    Err(error) => Some(error.to_string()),
                }
            }
            Ok(Ok(None)) => None,
            Ok(Err(reason)) => Some(reason),
            Err(_) => Some(format!("no answer within {} s", FOLLOW_WAIT_MAX.as_secs())),
        };
        match problem {
            None => {
                backoff = FOLLOW_BACKOFF_MIN;
                if asked.elapsed() < FOLLOW_PAUSE_MIN {
                    tokio::time::sleep(FOLLOW_PAUSE_MIN).await;
                }
            }
            Some(reason) => {
                shared.count.table_errors();
                tracing::warn!(controller = %base, %reason, "no table; the last one stays in force");
                tokio::time::sleep(FOLLOW_BACKOFF_MIN + backoff.mul_f64(jitter())).await;
                backoff = (backoff * 2).min(FOLLOW_BACKOFF_MAX - FOLLOW_BACKOFF_MIN);
            }
        }
    }
}

async fn ask(
    client: &HttpClient,
    url: &Uri,
    token: Option<&Secret>,
    known: Option<Stamp>,
) -> Result<Option<LimitTable>, String> {
    let mut request = Request::get(url.clone());
    if let Some(Stamp { epoch, version, tick }) = known {
        request = request.header(IF_NONE_MATCH, format!("\"{epoch}.{version}.{tick}\""));
    }
    if let Some(bearer) = token.and_then(Secret::bearer) {
        request = request.header(AUTHORIZATION, bearer);
    }
    let request = request.body(Full::new(Bytes::new())).map_err(|error| error.to_string())?;
    let answer = client.request(request).await.map_err(|error| chain(&error))?;
    match answer.status() {
        StatusCode::OK => {
            let body = read_body(answer.into_body(), TABLE_BYTES_MAX).await?;
            LimitTable::decode(&body).map(Some).map_err(|error| error.to_string())
        }
        StatusCode::NOT_MODIFIED => Ok(None),
        status => Err(format!("the controller answers {status}")),
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
