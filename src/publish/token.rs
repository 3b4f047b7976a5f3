//! The token that writing endpoints ask for: read from a file, never shown.

use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use subtle::ConstantTimeEq;

use crate::bounds::TOKEN_BYTES_MAX;
use crate::bounds::TOKEN_BYTES_MIN;
use crate::publish::file::{Access, at, read_bounded, write_atomic};

/// Name of the token file in a state directory.
pub const TOKEN_FILE: &str = "token";

/// A secret; compared in constant time and printed as dots.
#[derive(Clone)]
pub struct Token(String);

// === impl Token ===

impl Token {
    /// # Errors
    /// A token that is too short, too long, or cannot stand in a header.
    pub fn new(text: &str) -> Result<Token, String> {
        let text = text.trim();
        let printable = text.bytes().all(|byte| byte.is_ascii_graphic());
        if !printable || !(TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX).contains(&text.len()) {
            return Err(format!(
                "a token is {TOKEN_BYTES_MIN} to {TOKEN_BYTES_MAX} printable ASCII characters"
            ));
        }
        Ok(Token(text.to_owned()))
    }

    /// Reads a token file that must exist.
    ///
    /// # Errors
    /// With the path; also when others may read the file.
    pub fn read(path: &Path) -> io::Result<Token> {
        let bytes = read_bounded(path, TOKEN_BYTES_MAX + 2)?
            .ok_or_else(|| at(path, &io::Error::new(ErrorKind::NotFound, "there is no such file")))?;
        let mode = std::fs::metadata(path).map_err(|error| at(path, &error))?.permissions().mode();
        let fail = |reason: String| at(path, &io::Error::new(ErrorKind::InvalidData, reason));
        if mode & 0o077 != 0 {
            return Err(fail(format!("mode {:o} lets others read the token; chmod 600", mode & 0o777)));
        }
        Token::new(&String::from_utf8_lossy(&bytes)).map_err(fail)
    }

    /// The token of a state directory, made on its first start.
    ///
    /// # Errors
    /// With the path.
    pub fn read_or_create(dir: &Path) -> io::Result<Token> {
        let path = dir.join(TOKEN_FILE);
        if path.exists() {
            return Token::read(&path);
        }
        let mut random = [0_u8; 32];
        let source = Path::new("/dev/urandom");
        File::open(source).and_then(|mut file| file.read_exact(&mut random)).map_err(|e| at(source, &e))?;
        let text: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        write_atomic(dir, TOKEN_FILE, text.as_bytes(), Access::Owner)?;
        Ok(Token(text))
    }

    /// Whether a header `Authorization: Bearer ...` carries this token.
    pub fn admits(&self, authorization: Option<&[u8]>) -> bool {
        let Some((scheme, given)) = authorization.and_then(|value| value.split_at_checked(7)) else {
            return false;
        };
        scheme.eq_ignore_ascii_case(b"bearer ") && bool::from(given.trim_ascii().ct_eq(self.0.as_bytes()))
    }

    /// For whoever has to send it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_made_once_and_admits_only_itself() {
        let dir = tempfile::tempdir().unwrap();
        let token = Token::read_or_create(dir.path()).unwrap();
        assert_eq!(token.reveal().len(), 64);
        assert_eq!(Token::read_or_create(dir.path()).unwrap().reveal(), token.reveal());
        assert!(token.admits(Some(format!("Bearer {}", token.reveal()).as_bytes())));
        assert!(token.admits(Some(format!("bearer  {}", token.reveal()).as_bytes())));
        for wrong in ["", "Bearer", "Bearer ", "Basic abc", "Bearer 00"] {
            assert!(!token.admits(Some(wrong.as_bytes())), "{wrong:?}");
        }
        assert!(!token.admits(None));
        assert_eq!(format!("{token:?}"), "Token(..)");
    }

    #[test]
    fn a_token_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t");
        std::fs::write(&path, "0123456789abcdef\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Token::read(&path).unwrap_err().to_string().contains("chmod 600"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(Token::read(&path).unwrap().reveal(), "0123456789abcdef");
        std::fs::write(&path, "short").unwrap();
        assert!(Token::read(&path).is_err());
    }
}
