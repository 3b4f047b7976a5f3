//! The token in a job's webhook address: the job's nonce and a signature over it.
//!
//! Nobody but the node makes one, and what it names is one job of this node: forged ones fail the
//! signature, replayed ones name a job that is gone. HMAC-SHA-256 (RFC 2104), compared in constant
//! time.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::enforce::jobs::table::Nonce;

/// What else the secret might one day sign is not a job.
const PURPOSE: &[u8] = b"tidegate job webhook 1\0";

pub fn sign(secret: &[u8], nonce: Nonce) -> Option<String> {
    let signature = mac(secret, nonce)?.finalize().into_bytes();
    let signature: String = signature.iter().map(|byte| format!("{byte:02x}")).collect();
    Some(format!("{nonce:032x}{signature}"))
}

/// The job that the token names, if the node made it.
pub fn verify(secret: &[u8], token: &str) -> Option<Nonce> {
    let (nonce, signature) = token.split_at_checked(32).filter(|(_, rest)| rest.len() == 64)?;
    let plain = token.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let nonce = Nonce::from_str_radix(nonce, 16).ok().filter(|_| plain)?;
    let bytes = (0..32).map(|at| u8::from_str_radix(signature.get(at * 2..at * 2 + 2)?, 16).ok());
    let bytes: Option<Vec<u8>> = bytes.collect();
    mac(secret, nonce)?.verify_slice(&bytes?).ok().map(|()| nonce)
}

fn mac(secret: &[u8], nonce: Nonce) -> Option<Hmac<Sha256>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).ok()?;
    mac.update(PURPOSE);
    mac.update(&nonce.to_be_bytes());
    Some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s2_16_a_token_names_one_job_and_no_other_is_made_of_it() {
        let token = sign(b"secret", 7).unwrap();
        assert_eq!(verify(b"secret", &token), Some(7));
        assert_eq!(verify(b"other", &token), None);
        for at in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
            assert_eq!(verify(b"secret", &String::from_utf8(bytes).unwrap()), None, "{at}");
        }
        for bad in ["", "00", &token[1..], &format!("{token}0"), &token.to_uppercase(), &"é".repeat(48)] {
            assert_eq!(verify(b"secret", bad), None, "{bad}");
        }
    }
}
