//! A replica's own metrics page, read once: `Up`, `Down` or `Silent`, and when.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, USER_AGENT};
use http::{Method, Request, Uri};
use http_body_util::Full;
use tokio::sync::Semaphore;

use crate::bounds::PAGE_BYTES_MAX;
use crate::bounds::PARSE_INLINE_BYTES_MAX;
use crate::observe::Outcome;
use crate::observe::exposition::Format;
use crate::observe::fetch::{FetchError, Fetched, Fetcher};
use crate::observe::select::Selectors;
use crate::unit::ReplicaId;

const FORMATS: &str = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5";

/// Where one replica is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub replica: ReplicaId,
    pub uri: Uri,
}

// === impl Target ===

impl Target {
    /// `host:port`, or a whole URL; `http` and the path `page` unless stated. The replica's name
    /// is `host:port`, as a Prometheus would label it, followed by a path that is not `page`.
    ///
    /// # Errors
    /// Says why the text is not an address.
    pub fn parse(text: &str, page: &str) -> Result<Target, String> {
        let text = text.trim();
        let page = if page.is_empty() { "/metrics" } else { page };
        let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let fail = |reason: &str| format!("target `{text}` {reason}; write `host:port` or a URL");
        let uri: Uri = url.parse().map_err(|error| fail(&format!("is not a URL ({error})")))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(fail("is neither http nor https"));
        }
        let authority = uri.authority().ok_or_else(|| fail("has no host"))?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let path = if path == "/" { page } else { path };
        // A password in a URL is used for nothing and never shown.
        let host = authority.as_str().rsplit('@').next().unwrap_or_default();
        let replica = ReplicaId::new(if path == page { host.to_owned() } else { format!("{host}{path}") });
        let scheme = uri.scheme_str().unwrap_or("http");
        let uri = format!("{scheme}://{host}{path}").parse().map_err(|_| fail("is not a URL"))?;
        Ok(Target { replica, uri })
    }
}

/// One page, read.
#[derive(Debug)]
pub struct Scraped {
    pub outcome: Outcome,
    pub manner: Manner,
}

/// How a target took being asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    Answered,
    /// It does not want to be asked: not again for a while, or not before what it said.
    Refused(Option<Duration>),
    /// Silence, or a connection refused: asked again next round, or its return would be seen late.
    Absent,
}

/// Reads one page. Never fails: a failure is a reading too.
pub async fn scrape(
    fetcher: &Fetcher,
    target: &Target,
    selectors: &Arc<Selectors>,
    deadline: Duration,
    room: &Arc<Semaphore>,
) -> Scraped {
    let absent = |outcome| Scraped { outcome, manner: Manner::Absent };
    let request = Request::builder()
        .method(Method::GET)
        .uri(target.uri.clone())
        .header(ACCEPT, FORMATS)
        .header(USER_AGENT, concat!("tidegate/", env!("CARGO_PKG_VERSION")))
        .body(Full::new(Bytes::new()));
    let request = match request {
        Ok(request) => request,
        Err(error) => return absent(Outcome::Silent(format!("no request can be made: {error}"))),
    };
    match fetcher.fetch(request, deadline, PAGE_BYTES_MAX, room).await {
        Err(FetchError::Refused) => absent(Outcome::Down("connection refused".to_owned())),
        Err(error) => absent(Outcome::Silent(error.to_string())),
        Ok(page) => Scraped { manner: manner(&page), outcome: read(page, selectors).await },
    }
}

/// A 503 without Retry-After is how a server says that it is not ready yet.
fn manner(page: &Fetched) -> Manner {
    match (page.status, page.retry_after) {
        (200, _) => Manner::Answered,
        (503, None) => Manner::Absent,
        (_, retry_after) => Manner::Refused(retry_after),
    }
}

async fn read(page: Fetched, selectors: &Arc<Selectors>) -> Outcome {
    match page.status {
        200 => {}
        503 => return Outcome::Down("HTTP 503".to_owned()),
        300..400 => return Outcome::Silent(format!("HTTP {}: redirects are not followed", page.status)),
        status => return Outcome::Silent(format!("HTTP {status}")),
    }
    let format = Format::of_content_type(page.content_type.as_deref());
    if page.body.len() <= PARSE_INLINE_BYTES_MAX {
        return selectors.apply(&page.body, format);
    }
    let selectors = Arc::clone(selectors);
    let parsed = tokio::task::spawn_blocking(move || selectors.apply(&page.body, format)).await;
    parsed.unwrap_or_else(|error| Outcome::Silent(format!("the page could not be read: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_named_as_a_prometheus_would() {
        let target = Target::parse("10.0.0.1:8000", "").unwrap();
        assert_eq!(
            (target.replica.as_str(), target.uri.to_string().as_str()),
            ("10.0.0.1:8000", "http://10.0.0.1:8000/metrics")
        );
        let target = Target::parse("https://user:secret@gpu:443/engines/0?x=1", "/metrics").unwrap();
        assert_eq!(target.replica.as_str(), "gpu:443/engines/0?x=1");
        assert!(!target.uri.to_string().contains("secret"));
        let target = Target::parse("http://gpu:8000/", "/prometheus/metrics").unwrap();
        assert_eq!(target.replica.as_str(), "gpu:8000");
        assert_eq!(target.uri.path(), "/prometheus/metrics");
        for bad in ["", "ftp://a", "http://", "a b", "unix:///run/x"] {
            assert!(Target::parse(bad, "").is_err(), "{bad:?}");
        }
    }
}
