//! One HTTP exchange with a source: whole body or reason, under one deadline and one size cap.
//!
//! Sources are trusted by address only. Nothing is followed (a redirect may lead into the
//! operator's own network), nothing is unpacked beyond the cap, nothing is unbounded.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue,
    RETRY_AFTER,
};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::bounds::{BODY_SMALL_MAX, SOURCE_IDLE_MAX};
use crate::observe::body::{Body, BodyError};

/// A client that keeps connections alive. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Fetcher {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    /// Marked as sensitive, so that no debug output shows it.
    login: Option<HeaderValue>,
}

#[derive(Debug)]
pub struct Fetched {
    pub status: u16,
    pub content_type: Option<String>,
    /// In whole seconds, as it was asked for; a date is not read.
    pub retry_after: Option<Duration>,
    pub body: Bytes,
    /// Held for as long as a large body is.
    pub room: Option<OwnedSemaphorePermit>,
}

/// Why there is no whole answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// Nobody listens there: the one failure of a connection that says "down".
    #[error("connection refused")]
    Refused,
    #[error("no whole answer within {0:?}")]
    Timeout(Duration),
    #[error("the answer has more than {0} bytes")]
    TooLarge(usize),
    #[error("the answer is encoded as {0}, which was not asked for")]
    Encoded(String),
    #[error("{0}")]
    Other(String),
}

// === impl Fetcher ===

impl Fetcher {
    pub fn new(
        tls: ClientConfig,
        server_name: Option<ServerName<'static>>,
        login: Option<HeaderValue>,
    ) -> Self {
        let mut plain = HttpConnector::new();
        plain.enforce_http(false);
        plain.set_nodelay(true);
        let builder = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
        let builder = match server_name {
            Some(name) => builder.with_server_name_resolver(FixedServerNameResolver::new(name)),
            None => builder,
        };
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(SOURCE_IDLE_MAX)
            .pool_max_idle_per_host(8)
            .pool_timer(TokioTimer::new())
            .http1_max_buf_size(64 << 10)
            .build(builder.enable_http1().wrap_connector(plain));
        Self { client, login }
    }

    /// # Errors
    /// See [`FetchError`]. The deadline covers the connection, the headers and the whole body.
    /// A body that grows large waits for `room`, so that the large ones of one pool do not all
    /// lie in memory at once.
    pub async fn fetch(
        &self,
        mut request: Request<Full<Bytes>>,
        deadline: Duration,
        bytes_max: usize,
        room: &Arc<Semaphore>,
    ) -> Result<Fetched, FetchError> {
        let headers = request.headers_mut();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        if let Some(login) = &self.login {
            headers.insert(AUTHORIZATION, login.clone());
        }
        let exchange = async {
            let response = self.client.request(request).await.map_err(|error| refused_or(&error))?;
            whole(response, bytes_max, room).await
        };
        let late = || {
            Duration::from_millis(u64::try_from(deadline.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX))
        };
        tokio::time::timeout(deadline, exchange).await.unwrap_or_else(|_| Err(FetchError::Timeout(late())))
    }
}

async fn whole(
    response: http::Response<Incoming>,
    bytes_max: usize,
    room: &Arc<Semaphore>,
) -> Result<Fetched, FetchError> {
    let headers = response.headers();
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let mut body = Body::new(encoding(headers)?.as_deref(), bytes_max).map_err(FetchError::Encoded)?;
    let announced = header(CONTENT_LENGTH).and_then(|length| length.parse::<usize>().ok());
    if announced.is_some_and(|length| length > bytes_max) {
        return Err(FetchError::TooLarge(bytes_max));
    }
    let content_type = header(CONTENT_TYPE);
    let retry_after = header(RETRY_AFTER).and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
    let status = response.status().as_u16();
    let mut incoming = response.into_body();
    let mut held = None;
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(|error| FetchError::Other(format!("the answer broke off: {error}")))?;
        if let Some(piece) = frame.data_ref() {
            if held.is_none() && body.len() + piece.len() > BODY_SMALL_MAX {
                let permit = Arc::clone(room).acquire_owned().await;
                held = Some(permit.map_err(|error| FetchError::Other(error.to_string()))?);
            }
            body.add(piece).map_err(unusable)?;
        }
    }
    let body = Bytes::from(body.finish().map_err(unusable)?);
    Ok(Fetched { status, content_type, retry_after, body, room: held })
}

/// Several headers are one list, and so a chain.
fn encoding(headers: &HeaderMap) -> Result<Option<String>, FetchError> {
    let name: HeaderName = CONTENT_ENCODING;
    let mut parts = Vec::new();
    for value in headers.get_all(name) {
        let text = value.to_str().map_err(|_| FetchError::Encoded("something unreadable".to_owned()))?;
        parts.push(text.to_owned());
    }
    Ok((!parts.is_empty()).then(|| parts.join(", ")))
}

fn unusable(error: BodyError) -> FetchError {
    match error {
        BodyError::TooLarge(bytes_max) => FetchError::TooLarge(bytes_max),
        BodyError::Damaged(reason) => FetchError::Other(format!("the answer broke off: {reason}")),
    }
}

/// The innermost cause says more than "client error".
fn refused_or(error: &hyper_util::client::legacy::Error) -> FetchError {
    let mut cause: &(dyn std::error::Error + 'static) = error;
    loop {
        let io = cause.downcast_ref::<io::Error>();
        if io.is_some_and(|io| io.kind() == io::ErrorKind::ConnectionRefused) {
            return FetchError::Refused;
        }
        match cause.source() {
            Some(next) => cause = next,
            None => break,
        }
    }
    let what = if error.is_connect() { "no connection" } else { "no answer" };
    FetchError::Other(format!("{what}: {cause}"))
}
