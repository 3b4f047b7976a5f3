//! Tells the controller what this node admits and refuses, every second.
//!
//! Counters are cumulative, so a report that is lost costs nothing but time.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http_body_util::Full;

use crate::enforce::client::{HttpClient, join};
use crate::enforce::config::Secret;
use crate::enforce::follow_http::chain;
use crate::enforce::node::Shared;

const DEADLINE: Duration = Duration::from_secs(5);

/// Runs until dropped. The first report leaves at once: it tells the controller that the node is
/// there, which is how it gets a share.
pub async fn report(
    shared: Arc<Shared>,
    client: HttpClient,
    base: String,
    token: Option<Secret>,
    every: Duration,
) {
    let mut ticks = tokio::time::interval(every.max(Duration::from_millis(10)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        ticks.tick().await;
        let sent = tokio::time::timeout(DEADLINE, send(&shared, &client, &base, token.as_ref())).await;
        let outcome = sent.unwrap_or_else(|_| Err(format!("no answer within {} s", DEADLINE.as_secs())));
        match outcome {
            Ok(()) if failing => tracing::info!(controller = %base, "usage reports arrive again"),
            Ok(()) => {}
            Err(reason) => {
                shared.count.report_errors();
                // Said once an outage, counted every time.
                if !failing {
                    tracing::warn!(controller = %base, %reason, "usage report not delivered");
                }
                failing = true;
                continue;
            }
        }
        failing = false;
    }
}

async fn send(
    shared: &Shared,
    client: &HttpClient,
    base: &str,
    token: Option<&Secret>,
) -> Result<(), String> {
    let body = serde_json::to_vec(&shared.report()).map_err(|error| error.to_string())?;
    let mut request = Request::post(join(base, "/v1/usage")?).header(CONTENT_TYPE, "application/json");
    if let Some(bearer) = token.and_then(Secret::bearer) {
        request = request.header(AUTHORIZATION, bearer);
    }
    let request = request.body(Full::new(Bytes::from(body))).map_err(|error| error.to_string())?;
    let answer = client.request(request).await.map_err(|error| chain(&error))?;
    if answer.status().is_success() {
        return Ok(());
    }
    Err(format!("the controller answers {}", answer.status()))
}
