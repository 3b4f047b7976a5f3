//! Which headers pass: what names an identity or belongs to one connection stays here.

use http::StatusCode;
use http::header::{self, HeaderMap, HeaderName};

use crate::enforce::provider::is_quota;
use crate::enforce::upstream::Upstream;

/// Meant for one connection, never passed on.
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// What proxies say about clients, and what this one says itself: from a client it is a claim.
const CLAIMS: [&str; 9] = [
    "cf-connecting-ip",
    "client-ip",
    "forwarded",
    "true-client-ip",
    "x-account",
    "x-client-ip",
    "x-real-ip",
    "x-tenant",
    "x-tier",
];
const CLAIMING: [&str; 4] = ["x-envoy", "x-forwarded", "x-ratelimit", "x-tidegate"];

/// What an upstream may see of the client's headers.
pub fn prepare(headers: &mut HeaderMap, upstream: &Upstream) {
    strip(headers);
    if !upstream.forward_authorization {
        headers.remove(header::AUTHORIZATION);
        headers.remove("x-api-key");
    }
    let framing = [header::HOST, header::CONTENT_LENGTH, header::EXPECT, header::ACCEPT_ENCODING];
    for name in &framing {
        headers.remove(name);
    }
    remove_where(headers, claims);
    if let Some(credential) = &upstream.credential {
        headers.insert(header::AUTHORIZATION, credential.clone());
    }
}

/// Removes what belongs to one connection, named by the standard or by the message itself.
pub fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// What an upstream says of its own limits and of its own time to come again. Only an error that
/// is passed on keeps its Retry-After: there the upstream speaks for itself.
pub fn remove_quotas(headers: &mut HeaderMap, status: StatusCode) {
    remove_where(headers, is_quota);
    headers.remove("retry-after-ms");
    if !status.is_client_error() && !status.is_server_error() {
        headers.remove(header::RETRY_AFTER);
    }
}

/// Some servers take an underscore for a dash.
fn claims(name: &str) -> bool {
    let plain = name.replace('_', "-");
    let disguised = plain == "x-api-key" && name != plain;
    disguised || CLAIMS.contains(&plain.as_str()) || CLAIMING.iter().any(|prefix| plain.starts_with(prefix))
}

fn remove_where(headers: &mut HeaderMap, matches: impl Fn(&str) -> bool) {
    let names: Vec<HeaderName> = headers.keys().filter(|name| matches(name.as_str())).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}
