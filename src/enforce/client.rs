//! The HTTP client towards controllers and upstreams: no redirects, TLS where the URL says so.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Uri;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::bounds::PEER_IDLE_MAX;
use crate::bounds::PEER_PROBE_WAIT;
use crate::bounds::PEER_PROBES_MAX;
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
    // A peer that vanished while an answer is waited for says nothing: it is asked.
    tcp.set_keepalive(Some(PEER_IDLE_MAX));
    tcp.set_keepalive_interval(Some(PEER_PROBE_WAIT));
    tcp.set_keepalive_retries(Some(PEER_PROBES_MAX));
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

/// Reads a body of at most `bytes_max`, of which something arrives every `progress` and all of it
/// within `whole`.
///
/// # Errors
/// Too large, too slow, or the connection broke.
pub async fn read_body(
    body: Incoming,
    bytes_max: usize,
    progress: Duration,
    whole: Duration,
) -> Result<Bytes, String> {
    let mut body = Limited::new(body, bytes_max);
    let read = async {
        let mut bytes = BytesMut::new();
        loop {
            match tokio::time::timeout(progress, body.frame()).await {
                Ok(Some(Ok(frame))) => {
                    if let Some(part) = frame.data_ref() {
                        bytes.extend_from_slice(part);
                    }
                }
                Ok(None) => return Ok(bytes.freeze()),
                Ok(Some(Err(error))) => return Err(format!("the answer's body: {error}")),
                Err(_) => return Err(format!("the answer's body stopped for {} s", progress.as_secs())),
            }
        }
    };
    let late = |_| Err(format!("the answer's body took more than {} s", whole.as_secs()));
    tokio::time::timeout(whole, read).await.unwrap_or_else(late)
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

/// Anything between 0 and 1, evenly.
pub fn jitter() -> f64 {
    (entropy() >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f04_jitter_is_spread_over_its_whole_range() {
        let mut drawn: Vec<f64> = (0..4_000).map(|_| jitter()).collect();
        drawn.sort_by(f64::total_cmp);
        assert!(drawn[0] >= 0.0 && drawn[3_999] < 1.0);
        // Ten standard deviations: 0.08 each.
        for tenth in 0..10 {
            let (at, expected) = (drawn[tenth * 400], tenth as f64 / 10.0);
            assert!((at - expected).abs() < 0.08, "{tenth}: {at}");
        }
    }
}
