//! Webhooks: where an upstream tells the node that a job has ended, and how it gets the address.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::enforce::config::Secret;
use crate::enforce::jobs::table::Nonce;
use crate::enforce::jobs::token;

/// Where webhooks arrive, before the token.
pub const HOOKS: &str = "/-/jobs/";

#[derive(Clone, Debug)]
pub struct Hook {
    /// Where upstreams reach this node's proxy listener.
    pub url: String,
    pub secret: Secret,
}

/// As the node's file has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookFile {
    url: String,
    secret_file: PathBuf,
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
        Ok(Hook { url: self.url, secret })
    }
}

// === impl Hook ===

impl Hook {
    /// The creating body with the node's address in `field`, everything else byte for byte. None
    /// where the client has put its own there: that is the client's, and the job's end is then seen
    /// by polls or its lease.
    pub fn ask(&self, body: &Bytes, field: &str, nonce: Nonce) -> Option<Bytes> {
        let fields: BTreeMap<String, IgnoredAny> = serde_json::from_slice(body).ok()?;
        if fields.contains_key(field) {
            return None;
        }
        let token = token::sign(self.secret.expose().as_bytes(), nonce)?;
        let address = format!("{}{HOOKS}{token}", self.url.trim_end_matches('/'));
        let comma = if fields.is_empty() { "" } else { "," };
        let entry = format!("{}:{}{comma}", serde_json::json!(field), serde_json::json!(address));
        let brace = body.iter().position(|byte| *byte == b'{')?;
        let (before, after) = body.split_at_checked(brace + 1)?;
        Some([before, entry.as_bytes(), after].concat().into())
    }

    pub fn verify(&self, token: &str) -> Option<Nonce> {
        token::verify(self.secret.expose().as_bytes(), token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s2_16_the_address_is_put_in_front_and_never_over_the_clients() {
        let hook = Hook { url: "http://edge:1/".to_owned(), secret: Secret::new("canary-secret") };
        let asked = |body: &'static str| hook.ask(&Bytes::from_static(body.as_bytes()), "webhook", 7);
        let text =
            String::from_utf8(asked(r#" {"seed":12345678901234567890123}"#).unwrap().to_vec()).unwrap();
        let (address, rest) = text.strip_prefix(" {\"webhook\":\"").unwrap().split_once('"').unwrap();
        assert_eq!(rest, ",\"seed\":12345678901234567890123}");
        let token = address.strip_prefix("http://edge:1/-/jobs/").unwrap();
        assert_eq!(hook.verify(token), Some(7));
        assert_eq!(&asked("{}").unwrap()[..11], b"{\"webhook\":");
        serde_json::from_slice::<serde_json::Value>(&asked("{}").unwrap()).unwrap();
        for body in [r#"{"webhook":"http://client/"}"#, r#"{"webhook":null}"#, "[]", "no"] {
            assert_eq!(asked(body), None, "{body}");
        }
    }
}
