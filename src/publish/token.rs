//! The token that writing endpoints ask for: read from a file, never shown.
//!
//! A file may hold several, one a line: all are admitted, the first is the one to send. So a token is
//! replaced without a refusal: the new one first, the old one below it until every node has the new.

use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use subtle::{Choice, ConstantTimeEq};

use crate::bounds::CREDENTIAL_BYTES_MAX;
use crate::bounds::TOKEN_BYTES_MAX;
use crate::bounds::TOKEN_BYTES_MIN;
use crate::bounds::TOKENS_MAX;
use crate::publish::file::{Access, at, read_bounded, write_atomic};

/// Name of the token file in a state directory.
pub const TOKEN_FILE: &str = "token";

/// A secret, or a few; compared in constant time and printed as dots.
#[derive(Clone)]
pub struct Token(Vec<String>);

// === impl Token ===

impl Token {
    /// # Errors
    /// A token that is too short, too long, or cannot stand in a header; too many of them.
    pub fn new(text: &str) -> Result<Token, String> {
        let tokens: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let fits = |token: &&str| {
            let printable = token.bytes().all(|byte| byte.is_ascii_graphic());
            printable && (TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX).contains(&token.len())
        };
        if tokens.is_empty() || !tokens.iter().all(fits) {
            return Err(format!(
                "a token is {TOKEN_BYTES_MIN} to {TOKEN_BYTES_MAX} printable ASCII characters on a line of its own"
            ));
        }
        if tokens.len() > TOKENS_MAX {
            return Err(format!("{} tokens; at most {TOKENS_MAX} are admitted at a time", tokens.len()));
        }
        Ok(Token(tokens.into_iter().map(str::to_owned).collect()))
    }

    /// Reads a token file that must exist.
    ///
    /// # Errors
    /// With the path; also when others may read the file.
    pub fn read(path: &Path) -> io::Result<Token> {
        let bytes = read_bounded(path, CREDENTIAL_BYTES_MAX)?
            .ok_or_else(|| at(path, &io::Error::new(ErrorKind::NotFound, "there is no such file")))?;
        Token::parse(path, &bytes)
    }

    /// From what was read there.
    ///
    /// # Errors
    /// With the path; also when others may read the file.
    pub fn parse(path: &Path, bytes: &[u8]) -> io::Result<Token> {
        let mode = std::fs::metadata(path).map_err(|error| at(path, &error))?.permissions().mode();
        let fail = |reason: String| at(path, &io::Error::new(ErrorKind::InvalidData, reason));
        if mode & 0o077 != 0 {
            return Err(fail(format!("mode {:o} lets others read the token; chmod 600", mode & 0o777)));
        }
        Token::new(&String::from_utf8_lossy(bytes)).map_err(fail)
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
        Ok(Token(vec![text]))
    }

    /// Whether a header `Authorization: Bearer ...` carries one of these.
    pub fn admits(&self, authorization: Option<&[u8]>) -> bool {
        let Some((scheme, given)) = authorization.and_then(|value| value.split_at_checked(7)) else {
            return false;
        };
        // Every one of them is looked at: which one it is takes no time to tell.
        let same = self.0.iter().map(|token| given.trim_ascii().ct_eq(token.as_bytes()));
        scheme.eq_ignore_ascii_case(b"bearer ") & bool::from(same.fold(Choice::from(0), |any, one| any | one))
    }

    /// For whoever has to send it.
    pub fn reveal(&self) -> &str {
        self.0.first().map_or("", String::as_str)
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
    fn i08_old_and_new_token_are_admitted_side_by_side_and_nothing_else() {
        let (old, new) = ("old-0123456789abcdef", "new-0123456789abcdef");
        let token = Token::new(&format!("{new}\n\n  {old}\n")).unwrap();
        assert_eq!(token.reveal(), new);
        for (given, admitted) in [(old, true), (new, true), ("", false), ("old-0123456789abcdeF", false)] {
            assert_eq!(token.admits(Some(format!("Bearer {given}").as_bytes())), admitted, "{given}");
        }
        assert!(!token.admits(Some(format!("Bearer {new}{old}").as_bytes())));
        assert!(Token::new(&format!("{new}\nshort\n")).is_err());
        assert!(Token::new(&format!("{new}\n").repeat(5)).unwrap_err().contains("5 tokens"));
        assert!(Token::new("\n").is_err());
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
