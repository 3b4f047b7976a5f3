//! Who is asking: API keys by their digests, from a file that holds nothing else.
//!
//! A key is hashed and the digest looked up, so the time of a lookup says nothing about a key,
//! and missing, malformed, unknown and doubled credentials are one and the same answer.

use std::collections::BTreeMap;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::bounds::KEY_BYTES_MAX;
use crate::bounds::KEYS_MAX;
use crate::bounds::NAME_BYTES_MAX;
use crate::enforce::ticket::KeyId;
use crate::unit::TierId;

#[derive(Debug, Default)]
pub struct Keyring {
    holders: BTreeMap<[u8; 32], Holder>,
}

/// What a key stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Shared by all keys of an account.
    pub counters: KeyId,
    pub tier: TierId,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    key_sha256: String,
    account: Option<String>,
    tier: String,
}

/// Names the line, never its contents.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct KeyringError {
    line: usize,
    reason: String,
}

// === impl Keyring ===

impl Keyring {
    /// JSON Lines; all of it or none.
    ///
    /// # Errors
    /// The first bad line.
    pub fn parse(text: &str) -> Result<Keyring, KeyringError> {
        let mut holders = BTreeMap::new();
        let mut tiers: BTreeMap<String, TierId> = BTreeMap::new();
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let bad = |reason: &str| KeyringError { line: index + 1, reason: reason.to_owned() };
            if holders.len() >= KEYS_MAX {
                return Err(bad("more than 1000000 keys"));
            }
            // The error's text may quote the line; its kind and column do not.
            let line: Line = serde_json::from_str(line).map_err(|error| {
                bad(&format!(
                    "expected {{\"key_sha256\":\"<64 hex>\",\"account\":\"...\",\"tier\":\"...\"}}, not that at column {}",
                    error.column()
                ))
            })?;
            let digest = unhex(&line.key_sha256).ok_or_else(|| bad("key_sha256 must be 64 hex digits"))?;
            if line.tier.is_empty() || line.tier.len() > NAME_BYTES_MAX {
                return Err(bad("tier is empty or too long"));
            }
            let tier = tiers.entry(line.tier).or_insert_with_key(|name| TierId::new(name)).clone();
            let counters = line.account.map_or(digest, |account| sha256(account.as_bytes()));
            if holders.insert(digest, Holder { counters, tier }).is_some() {
                return Err(bad("the key is listed twice"));
            }
        }
        Ok(Keyring { holders })
    }

    pub fn len(&self) -> usize {
        self.holders.len()
    }

    pub fn is_empty(&self) -> bool {
        self.holders.is_empty()
    }

    /// The one holder of the one credential in the headers.
    pub fn identify(&self, headers: &HeaderMap) -> Option<&Holder> {
        let mut bearer = headers.get_all(AUTHORIZATION).iter();
        let mut plain = headers.get_all("x-api-key").iter();
        let (first, key) = (bearer.next(), plain.next());
        if bearer.next().is_some() || plain.next().is_some() {
            return None;
        }
        let key = match (first, key) {
            (Some(value), None) => {
                let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
                scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())?
            }
            (None, Some(value)) => value.to_str().ok()?.trim(),
            // Both at once: which one counts is not ours to guess.
            _ => return None,
        };
        if key.len() > KEY_BYTES_MAX {
            return None;
        }
        self.holders.get(&sha256(key.as_bytes()))
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (at, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    // sha256("secret")
    const SECRET: &str = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";

    fn ring() -> Keyring {
        Keyring::parse(&format!(r#"{{"key_sha256":"{SECRET}","account":"acme","tier":"free"}}"#)).unwrap()
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    #[test]
    fn i04_one_credential_identifies_and_anything_else_does_not() {
        let ring = ring();
        for good in [
            [("authorization", "Bearer secret")],
            [("authorization", "bearer  secret")],
            [("x-api-key", "secret")],
        ] {
            assert_eq!(ring.identify(&headers(&good)).unwrap().tier.as_str(), "free", "{good:?}");
        }
        for bad in [
            &[][..],
            &[("authorization", "Bearer wrong")],
            &[("authorization", "Basic secret")],
            &[("authorization", "secret")],
            &[("authorization", "Bearer secret"), ("authorization", "Bearer secret")],
            &[("authorization", "Bearer secret"), ("x-api-key", "secret")],
            &[("x-api-key", "secret"), ("x-api-key", "secret")],
        ] {
            assert_eq!(ring.identify(&headers(bad)), None, "{bad:?}");
        }
    }

    #[test]
    fn i09_keys_of_one_account_share_their_counters() {
        let other = SECRET.replace('2', "3");
        let text = format!(
            "{{\"key_sha256\":\"{SECRET}\",\"account\":\"acme\",\"tier\":\"free\"}}\n\n{{\"key_sha256\":\"{other}\",\"account\":\"acme\",\"tier\":\"paid\"}}\n"
        );
        let ring = Keyring::parse(&text).unwrap();
        let mut counters = ring.holders.values().map(|holder| holder.counters);
        assert_eq!(counters.next(), counters.next());
    }

    #[test]
    fn a_bad_line_is_named_and_not_quoted() {
        for line in [
            "{\"key_sha256\":\"sk-canary\",\"tier\":\"free\"}",
            "{\"key\":\"sk-canary\"}",
            "sk-canary",
            &format!("{{\"key_sha256\":\"{SECRET}\",\"tier\":\"\"}}"),
        ] {
            let error = Keyring::parse(&format!("\n{line}")).unwrap_err().to_string();
            assert!(error.starts_with("line 2: "), "{error}");
            assert!(!error.contains("canary"), "{error}");
        }
    }
}
