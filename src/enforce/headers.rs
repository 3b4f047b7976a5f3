//! Which headers pass: what names an identity or belongs to one connection stays here.

use http::header::{self, HeaderMap, HeaderName};

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

/// What an upstream may see of the client's headers.
pub fn prepare(headers: &mut HeaderMap, upstream: &Upstream) {
    strip(headers);
    if !upstream.forward_authorization {
        headers.remove(header::AUTHORIZATION);
        headers.remove("x-api-key");
    }
    let framing = [header::HOST, header::CONTENT_LENGTH, header::EXPECT, header::ACCEPT_ENCODING];
    for name in framing.iter().map(HeaderName::as_str).chain(["x-tier", "x-real-ip", "forwarded"]) {
        headers.remove(name);
    }
    remove_prefixed(headers, "x-ratelimit-");
    remove_prefixed(headers, "x-envoy-");
    remove_prefixed(headers, "x-forwarded-");
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

pub fn remove_prefixed(headers: &mut HeaderMap, prefix: &str) {
    let names: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with(prefix)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}
