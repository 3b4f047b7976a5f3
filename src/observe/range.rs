//! Range queries: what a Prometheus has kept, asked for in pieces that it and we can hold.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::{CONTENT_TYPE, USER_AGENT};
use http_body_util::Full;
use tokio::sync::Semaphore;

use crate::bounds::{ANSWER_BYTES_MAX, RANGE_WAIT_MAX};
use crate::observe::access::{Door, system_roots};
use crate::observe::fetch::{FetchError, Fetched};
use crate::observe::matrix::{Matrix, Window};
use crate::observe::prometheus::form_encoded;
use crate::policy::source::Access;

/// One Prometheus-compatible server.
pub struct Ranges {
    server: String,
    door: Door,
    room: Arc<Semaphore>,
}

// === impl Ranges ===

impl Ranges {
    /// `access` says how the server knows its callers.
    pub fn new(server: &str, access: Access) -> Ranges {
        Ranges {
            server: server.trim_end_matches('/').to_owned(),
            door: Door::new(access, system_roots()),
            room: Arc::new(Semaphore::new(1)),
        }
    }

    /// A query's series over a window; one whose answer is too large is asked for in halves.
    ///
    /// # Errors
    /// The server, the query and what became of it.
    pub async fn ask(&mut self, query: &str, window: Window) -> Result<Matrix, String> {
        let mut matrix = Matrix::default();
        let mut pieces = vec![window];
        while let Some(piece) = pieces.pop() {
            match self.exchange(query, piece).await {
                Ok(part) => matrix.0.extend(part.0),
                Err(FetchError::TooLarge(_)) if piece.steps > 1 => {
                    let half = piece.steps / 2;
                    let rest = Window { start: piece.at(half), steps: piece.steps - half, ..piece };
                    pieces.extend([Window { steps: half, ..piece }, rest]);
                }
                Err(error) => {
                    return Err(format!("{}: range query of `{query}`: {error}", self.server));
                }
            }
        }
        Ok(matrix)
    }

    async fn exchange(&mut self, query: &str, window: Window) -> Result<Matrix, FetchError> {
        let Fetched { status, body, .. } = self.fetch(query, window).await?;
        Matrix::read(status, &body).map_err(FetchError::Other)
    }

    async fn fetch(&mut self, query: &str, window: Window) -> Result<Fetched, FetchError> {
        let (fetcher, _) = self.door.open(RANGE_WAIT_MAX).await.map_err(FetchError::Other)?;
        let seconds = |at: Duration| format!("{:.3}", at.as_secs_f64());
        let form = format!(
            "query={}&start={}&end={}&step={}",
            form_encoded(query),
            seconds(window.start),
            seconds(window.at(window.steps.saturating_sub(1))),
            seconds(window.step)
        );
        let request = Request::post(format!("{}/api/v1/query_range", self.server))
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(USER_AGENT, concat!("tidegate/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(Bytes::from(form)))
            .map_err(|error| FetchError::Other(format!("no request can be made: {error}")))?;
        fetcher.fetch(request, RANGE_WAIT_MAX, ANSWER_BYTES_MAX, &self.room).await
    }
}
