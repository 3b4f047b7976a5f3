//! Tells the controller what this node admits and refuses, every second.
//!
//! Counters are cumulative, so a report that is lost costs nothing but time.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http_body_util::Full;

use crate::bounds::LAST_REPORT_WAIT_MAX;
use crate::bounds::REPORT_WAIT_MAX;
use crate::enforce::client::{HttpClient, join};
use crate::enforce::config::Secret;
use crate::enforce::follow_http::chain;
use crate::enforce::shared::Shared;

#[derive(Clone)]
pub struct Reporter {
    pub shared: Arc<Shared>,
    pub client: HttpClient,
    /// The controller's URL.
    pub base: String,
    pub token: Option<Secret>,
}

// === impl Reporter ===

impl Reporter {
    /// Runs until dropped. The first report leaves at once: it tells the controller that the node
    /// is there, which is how it gets a share.
    pub async fn run(self, every: Duration) {
        let mut ticks = tokio::time::interval(every.max(Duration::from_millis(10)));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut failing = false;
        loop {
            ticks.tick().await;
            match self.send(REPORT_WAIT_MAX).await {
                Ok(()) if failing => tracing::info!(controller = %self.base, "usage reports arrive again"),
                Ok(()) => {}
                Err(reason) => {
                    self.shared.count.report_errors();
                    // Said once an outage, counted every time.
                    if !failing {
                        tracing::warn!(controller = %self.base, %reason, "usage report not delivered");
                    }
                    failing = true;
                    continue;
                }
            }
            failing = false;
        }
    }

    /// What was used in the end; whatever comes of it, the node stops.
    pub async fn last(&self) {
        if let Err(reason) = self.send(LAST_REPORT_WAIT_MAX).await {
            tracing::warn!(controller = %self.base, %reason, "the last usage report is not delivered");
        }
    }

    async fn send(&self, deadline: Duration) -> Result<(), String> {
        let late = |_| Err(format!("no answer within {} s", deadline.as_secs()));
        tokio::time::timeout(deadline, self.exchange()).await.unwrap_or_else(late)
    }

    async fn exchange(&self) -> Result<(), String> {
        let body = serde_json::to_vec(&self.shared.report()).map_err(|error| error.to_string())?;
        let mut request =
            Request::post(join(&self.base, "/v1/usage")?).header(CONTENT_TYPE, "application/json");
        if let Some(bearer) = self.token.as_ref().and_then(Secret::bearer) {
            request = request.header(AUTHORIZATION, bearer);
        }
        let request = request.body(Full::new(Bytes::from(body))).map_err(|error| error.to_string())?;
        let answer = self.client.request(request).await.map_err(|error| chain(&error))?;
        if answer.status().is_success() {
            return Ok(());
        }
        Err(format!("the controller answers {}", answer.status()))
    }
}
