//! One HTTP exchange with a source: whole body or reason, under one deadline and one size cap.
//!
//! Sources are trusted by address only. Nothing is followed (a redirect may lead into the
//! operator's own network), nothing is decompressed (none was asked for), nothing is unbounded.

use crate::bounds::SOURCE_IDLE_MAX;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

/// A client that keeps connections alive. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Fetcher {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

#[derive(Clone, Debug)]
pub struct Fetched {
    pub status: u16,
    pub content_type: Option<String>,
    pub body: Bytes,
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
    /// # Errors
    /// When the TLS library cannot be set up.
    pub fn new() -> Result<Fetcher, String> {
        let mut roots = rustls::RootCertStore::empty();
        // A machine without any root certificate can still scrape plain HTTP; https then fails
        // at its handshake, with a reason.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS cannot be set up: {error}"))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut plain = HttpConnector::new();
        plain.enforce_http(false);
        plain.set_nodelay(true);
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(plain);
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(SOURCE_IDLE_MAX)
            .pool_max_idle_per_host(8)
            .pool_timer(TokioTimer::new())
            .http1_max_buf_size(64 << 10)
            .build(connector);
        Ok(Fetcher { client })
    }

    /// # Errors
    /// See [`FetchError`]. The deadline covers the connection, the headers and the whole body.
    pub async fn fetch(
        &self,
        request: Request<Full<Bytes>>,
        deadline: Duration,
        bytes_max: usize,
    ) -> Result<Fetched, FetchError> {
        let exchange = async {
            let response = self.client.request(request).await.map_err(|error| refused_or(&error))?;
            whole(response, bytes_max).await
        };
        tokio::time::timeout(deadline, exchange).await.unwrap_or(Err(FetchError::Timeout(deadline)))
    }
}

async fn whole(response: http::Response<Incoming>, bytes_max: usize) -> Result<Fetched, FetchError> {
    let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let encoding = header(CONTENT_ENCODING).filter(|encoding| !encoding.eq_ignore_ascii_case("identity"));
    if let Some(encoding) = encoding {
        return Err(FetchError::Encoded(encoding.chars().take(40).collect()));
    }
    let content_type = header(CONTENT_TYPE);
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), bytes_max).collect().await;
    let body = body.map_err(|error| match error.downcast_ref::<LengthLimitError>() {
        Some(_) => FetchError::TooLarge(bytes_max),
        None => FetchError::Other(format!("the answer broke off: {error}")),
    })?;
    Ok(Fetched { status, content_type, body: body.to_bytes() })
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
