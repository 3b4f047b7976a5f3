//! The token in a job's webhook address: the job's nonce and a signature, and after a slash the
//! address of the client's own webhook, where it is relayed; the signature is over both.
//!
//! Nobody but the node makes one, and what it names is one job of this node: forged ones fail the
//! signature, replayed ones name a job that is gone. HMAC-SHA-256 (RFC 2104), compared in constant
//! time.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::enforce::jobs::table::Nonce;

/// What else the secret might one day sign is not a job.
const PURPOSE: &[u8] = b"tidegate job webhook 1\0";

/// `client`: where the client wants to be called; empty where it named nothing.
pub fn sign(secret: &[u8], nonce: Nonce, client: &str) -> Option<String> {
    let signature = hex(&mac(secret, nonce, client)?.finalize().into_bytes());
    let slash = if client.is_empty() { "" } else { "/" };
    Some(format!("{nonce:032x}{signature}{slash}{}", hex(client.as_bytes())))
}

/// The job that the token names and the client's address, if the node made it.
pub fn verify(secret: &[u8], token: &str) -> Option<(Nonce, String)> {
    let (token, client) = match token.split_once('/') {
        Some((_, "")) => return None,
        Some((token, client)) => (token, String::from_utf8(unhex(client)?).ok()?),
        None => (token, String::new()),
    };
    let (nonce, signature) = token.split_at_checked(32).filter(|(_, rest)| rest.len() == 64)?;
    let nonce = Nonce::from_be_bytes(unhex(nonce)?.try_into().ok()?);
    mac(secret, nonce, &client)?.verify_slice(&unhex(signature)?).ok().map(|()| (nonce, client))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Only as [`hex`] writes it.
fn unhex(text: &str) -> Option<Vec<u8>> {
    let plain = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let pair = |at: usize| u8::from_str_radix(text.get(at * 2..at * 2 + 2)?, 16).ok();
    if plain { (0..text.len().div_ceil(2)).map(pair).collect() } else { None }
}

fn mac(secret: &[u8], nonce: Nonce, client: &str) -> Option<Hmac<Sha256>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).ok()?;
    mac.update(PURPOSE);
    mac.update(&nonce.to_be_bytes());
    mac.update(client.as_bytes());
    Some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s2_16_a_token_names_one_job_and_no_other_is_made_of_it() {
        let token = sign(b"secret", 7, "").unwrap();
        assert_eq!(verify(b"secret", &token), Some((7, String::new())));
        assert_eq!(verify(b"other", &token), None);
        for at in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
            assert_eq!(verify(b"secret", &String::from_utf8(bytes).unwrap()), None, "{at}");
        }
        for bad in [
            "",
            "00",
            &token[1..],
            &format!("{token}0"),
            &token.to_uppercase(),
            &"é".repeat(48),
            &format!("{token}/"),
        ] {
            assert_eq!(verify(b"secret", bad), None, "{bad}");
        }
        let relayed = sign(b"secret", 7, "https://c/é").unwrap();
        assert_eq!(verify(b"secret", &relayed), Some((7, "https://c/é".to_owned())));
        let (alone, client) = relayed.split_once('/').unwrap();
        let other = hex(b"https://d/");
        for bad in
            [alone, &format!("{token}/{client}"), &format!("{alone}/{other}"), &relayed[..relayed.len() - 1]]
        {
            assert_eq!(verify(b"secret", bad), None, "{bad}");
        }
    }
}
