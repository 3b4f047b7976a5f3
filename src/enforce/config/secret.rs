//! A credential that a node holds: never shown, and replaced where it is used when its file changes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::{ConfigError, read};

/// A credential. Its `Debug` never shows it. Clones share it: one that is replaced is replaced
/// wherever it is used.
#[derive(Clone)]
pub struct Secret {
    current: Arc<ArcSwap<String>>,
    /// Where it was read, and may be read again.
    file: Option<PathBuf>,
}

// === impl Secret ===

impl Secret {
    pub fn new(secret: impl Into<String>) -> Secret {
        Secret { current: Arc::new(ArcSwap::from_pointee(secret.into())), file: None }
    }

    /// The first line of a file; a controller's token file may hold former tokens below it.
    pub fn load(path: &Path) -> Result<Secret, ConfigError> {
        let secret = Secret { file: Some(path.to_owned()), ..Secret::new("") };
        let invalid = |reason| ConfigError::Invalid { path: path.to_owned(), reason };
        secret.replace(&read(path)?).map_err(invalid)?;
        Ok(secret)
    }

    /// Puts the first line of a text in its place.
    ///
    /// # Errors
    /// Says what it must be, not what it is; the former secret stays.
    pub fn replace(&self, text: &str) -> Result<(), String> {
        let secret = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
        let printable = secret.bytes().all(|byte| byte.is_ascii_graphic());
        if secret.is_empty() || !printable {
            return Err("must hold one token of printable characters".to_owned());
        }
        self.current.store(Arc::new(secret.to_owned()));
        Ok(())
    }

    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    pub fn expose(&self) -> Arc<String> {
        self.current.load_full()
    }

    /// As the value of an `Authorization` header; none when it cannot be one.
    pub fn bearer(&self) -> Option<http::HeaderValue> {
        let mut value = http::HeaderValue::try_from(format!("Bearer {}", self.expose())).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}
