//! Webhooks: where an upstream tells the node that a job has ended, and how it gets the address.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::bounds::WEBHOOK_URL_BYTES_MAX;
use crate::enforce::config::Secret;
use crate::enforce::jobs::table::Nonce;
use crate::enforce::jobs::token;
use crate::enforce::relay::address;

/// Where webhooks arrive, before the token.
pub const HOOKS: &str = "/-/jobs/";

#[derive(Clone, Debug)]
pub struct Hook {
    /// Where upstreams reach this node's proxy listener.
    pub url: String,
    pub secret: Secret,
    /// A client's own webhook is called by the node, and not by the upstream.
    pub relay: bool,
}

/// As the node's file has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookFile {
    url: String,
    secret_file: PathBuf,
    #[serde(default)]
    relay: bool,
}

// === impl HookFile ===

impl HookFile {
    /// # Errors
    /// Says what to change.
    pub fn load(self, dir: &Path) -> Result<Hook, String> {
        let parsed = self.url.parse::<http::Uri>().ok();
        let plain = parsed.as_ref().is_some_and(|url| url.query().is_none() && !self.url.contains('@'));
        if !plain || !matches!(parsed.as_ref().and_then(http::Uri::scheme_str), Some("http" | "https")) {
            return Err("webhooks.url must look like https://host:port".to_owned());
        }
        let secret = Secret::load(&dir.join(self.secret_file)).map_err(|error| error.to_string())?;
        Ok(Hook { url: self.url, secret, relay: self.relay })
    }
}

// === impl Hook ===

impl Hook {
    /// The creating body with the node's address in `field`, everything else byte for byte. Where the
    /// client has put its own there the node's takes its place if it is relayed; otherwise there is
    /// none, and the job's end is seen by polls or its lease.
    pub fn ask(&self, body: &Bytes, field: &str, nonce: Nonce) -> Option<Bytes> {
        let fields: BTreeMap<String, &RawValue> = serde_json::from_slice(body).ok()?;
        if let Some(own) = fields.get(field) {
            return self.instead(body, own.get(), nonce);
        }
        let address = self.address(nonce, "")?;
        let comma = if fields.is_empty() { "" } else { "," };
        let entry = format!("{}:{}{comma}", serde_json::json!(field), serde_json::json!(address));
        let brace = body.iter().position(|byte| *byte == b'{')?;
        let (before, after) = body.split_at_checked(brace + 1)?;
        Some([before, entry.as_bytes(), after].concat().into())
    }

    /// `own`, a part of the body, is the client's address as JSON.
    fn instead(&self, body: &Bytes, own: &str, nonce: Nonce) -> Option<Bytes> {
        let client: String = serde_json::from_str(own).ok().filter(|_| self.relay)?;
        let known = client.len() <= WEBHOOK_URL_BYTES_MAX && address(&client).is_some();
        let address = self.address(nonce, &client).filter(|_| known)?;
        let at = own.as_ptr().addr().checked_sub(body.as_ptr().addr())?;
        let (before, after) = (body.get(..at)?, body.get(at + own.len()..)?);
        Some([before, serde_json::json!(address).to_string().as_bytes(), after].concat().into())
    }

    fn address(&self, nonce: Nonce, client: &str) -> Option<String> {
        let token = token::sign(self.secret.expose().as_bytes(), nonce, client)?;
        Some(format!("{}{HOOKS}{token}", self.url.trim_end_matches('/')))
    }

    /// The job, and where its client wants to be called, which may be nowhere.
    pub fn verify(&self, token: &str) -> Option<(Nonce, String)> {
        token::verify(self.secret.expose().as_bytes(), token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s2_16_the_address_is_put_in_front_and_never_over_the_clients() {
        let hook =
            Hook { url: "http://edge:1/".to_owned(), secret: Secret::new("canary-secret"), relay: false };
        let asked = |body: &'static str| hook.ask(&Bytes::from_static(body.as_bytes()), "webhook", 7);
        let text =
            String::from_utf8(asked(r#" {"seed":12345678901234567890123}"#).unwrap().to_vec()).unwrap();
        let (address, rest) = text.strip_prefix(" {\"webhook\":\"").unwrap().split_once('"').unwrap();
        assert_eq!(rest, ",\"seed\":12345678901234567890123}");
        let token = address.strip_prefix("http://edge:1/-/jobs/").unwrap();
        assert_eq!(hook.verify(token), Some((7, String::new())));
        assert_eq!(&asked("{}").unwrap()[..11], b"{\"webhook\":");
        serde_json::from_slice::<serde_json::Value>(&asked("{}").unwrap()).unwrap();
        for body in [r#"{"webhook":"http://client/"}"#, r#"{"webhook":null}"#, "[]", "no"] {
            assert_eq!(asked(body), None, "{body}");
        }
        // Relayed, it is put in the place of the client's, and nothing else moves.
        let hook = Hook { relay: true, ..hook };
        let asked = |body: &'static str| hook.ask(&Bytes::from_static(body.as_bytes()), "webhook", 7);
        let body = r#"{ "a":1e400, "webhook" : "https:\/\/c/x?y=1" ,"b":[0.10]}"#;
        let text = String::from_utf8(asked(body).unwrap().to_vec()).unwrap();
        let rest = text.strip_prefix(r#"{ "a":1e400, "webhook" : ""#).unwrap();
        let (address, rest) = rest.split_once('"').unwrap();
        assert_eq!(rest, r#" ,"b":[0.10]}"#);
        let token = address.strip_prefix("http://edge:1/-/jobs/").unwrap();
        assert_eq!(hook.verify(token), Some((7, "https://c/x?y=1".to_owned())));
        for own in ["ftp://c/", "https://user:word@c/", "/c", "https://é/", ""] {
            let body = Bytes::from(serde_json::json!({"webhook": own}).to_string());
            assert_eq!(hook.ask(&body, "webhook", 7), None, "{own}");
        }
    }
}
