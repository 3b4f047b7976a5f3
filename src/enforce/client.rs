//! The HTTP client towards controllers and upstreams: no redirects, TLS where the URL says so.

use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::bounds::UPSTREAM_BUFFER_BYTES_MAX;

pub type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// A client whose connections are up within `connect`.
///
/// # Errors
/// The TLS library supports none of its own protocol versions.
pub fn client(connect: Duration) -> Result<HttpClient, rustls::Error> {
    let mut tcp = HttpConnector::new();
    tcp.set_connect_timeout(Some(connect));
    tcp.set_nodelay(true);
    tcp.enforce_http(false);
    let mut roots = rustls::RootCertStore::empty();
    // Without any root, TLS connections fail and say why; plain ones do not need one.
    let _ = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let tls = builder.with_root_certificates(roots).with_no_client_auth();
    let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1();
    Ok(Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .http1_max_buf_size(UPSTREAM_BUFFER_BYTES_MAX)
        // Below the 5 s after which common inference servers close an idle connection: a request
        // sent into that moment would fail.
        .pool_idle_timeout(Duration::from_secs(4))
        .build(connector.wrap_connector(tcp)))
}

/// Reads a body of at most `bytes_max`.
///
/// # Errors
/// Too large, or the connection broke.
pub async fn read_body(body: Incoming, bytes_max: usize) -> Result<Bytes, String> {
    match Limited::new(body, bytes_max).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) => Err(format!("the answer's body: {error}")),
    }
}

/// `base` and a path that starts with a slash.
///
/// # Errors
/// Not a URL.
pub fn join(base: &str, path: &str) -> Result<Uri, String> {
    let text = format!("{}{path}", base.trim_end_matches('/'));
    text.parse().map_err(|error| format!("{text}: {error}"))
}

/// An unpredictable number, for jitter and names that must differ; never for keys.
pub fn entropy() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}

/// Between 0 and 1.
pub fn jitter() -> f64 {
    (entropy() >> 11) as f64 / (1_u64 << 53) as f64
}
