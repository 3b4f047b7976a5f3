//! How a source is reached: login and certificates, read from files again in every round.
//!
//! A secret rotates while we run: the files are read, and only when they differ from what is in
//! use is a new client made of them. What cannot be read or used leaves the last good one.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use sha2::{Digest, Sha256};
use tokio::task::JoinHandle;

use crate::bounds::SECRET_FILE_BYTES_MAX;
use crate::observe::fetch::Fetcher;
use crate::policy::source::{Access, Login, Tls};

/// The client of one pool's sources.
pub struct Door {
    wanted: Access,
    system: Arc<RootCertStore>,
    /// Of the files that [`Self::fetcher`] was made from.
    digest: Option<[u8; 32]>,
    fetcher: Option<Fetcher>,
    /// A reading of the files that has not come back: no second one is begun.
    reading: Option<JoinHandle<Result<Files, String>>>,
}

/// What the files hold; never shown, kept no longer than it takes to make a client of it.
#[derive(Default)]
struct Files {
    login: Option<Vec<u8>>,
    ca: Option<Vec<u8>>,
    cert: Option<Vec<u8>>,
    key: Option<Vec<u8>>,
}

/// The system's authorities. A machine without any can still read plain HTTP; https then fails
/// at its handshake, with a reason.
pub fn system_roots() -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    Arc::new(roots)
}

// === impl Door ===

impl Door {
    pub fn new(wanted: Access, system: Arc<RootCertStore>) -> Self {
        Self { wanted, system, digest: None, fetcher: None, reading: None }
    }

    /// The client in force, and what is wrong with its files where the last good ones serve on.
    ///
    /// # Errors
    /// When there never was a good one: file and reason, and nothing of what it holds.
    pub async fn open(&mut self, patience: Duration) -> Result<(Fetcher, Option<String>), String> {
        let trouble = match self.files(patience).await {
            Ok(files) => self.follow(&files).err(),
            Err(reason) => Some(reason),
        };
        match (&self.fetcher, trouble) {
            (Some(fetcher), trouble) => {
                let kept = |reason| format!("{reason}; the last good one is still used");
                Ok((fetcher.clone(), trouble.map(kept)))
            }
            (None, Some(reason)) => Err(reason),
            (None, None) => Err("no client could be made".to_owned()),
        }
    }

    /// Off the event loop: a file may lie on a file system that hangs.
    async fn files(&mut self, patience: Duration) -> Result<Files, String> {
        if self.wanted == Access::default() {
            return Ok(Files::default());
        }
        let wanted = self.wanted.clone();
        let mut reading =
            self.reading.take().unwrap_or_else(|| tokio::task::spawn_blocking(move || Files::read(&wanted)));
        match tokio::time::timeout(patience, &mut reading).await {
            Ok(Ok(files)) => files,
            Ok(Err(error)) => Err(format!("the files of a login could not be read: {error}")),
            Err(_) => {
                self.reading = Some(reading);
                Err(format!("the files of a login could not be read within {patience:?}"))
            }
        }
    }

    fn follow(&mut self, files: &Files) -> Result<(), String> {
        let digest = files.digest();
        if self.digest == Some(digest) && self.fetcher.is_some() {
            return Ok(());
        }
        let login = match (&self.wanted.login, &files.login) {
            (Some(login), Some(secret)) => Some(header(login, secret)?),
            _ => None,
        };
        let tls = client_config(&self.wanted.tls, files, &self.system)?;
        let name = self.wanted.tls.server_name.clone();
        let name = name.map(ServerName::try_from).transpose();
        let name = name.map_err(|_| "`server_name` is not a name".to_owned())?;
        self.fetcher = Some(Fetcher::new(tls, name, login));
        self.digest = Some(digest);
        Ok(())
    }
}

fn header(login: &Login, secret: &[u8]) -> Result<HeaderValue, String> {
    let (file, text) = match login {
        Login::Token { kind, file } => {
            let token = secret.trim_ascii();
            if !token.iter().all(u8::is_ascii_graphic) {
                return Err(format!("{file}: a token is one word of printable ASCII"));
            }
            (file, [kind.as_bytes(), b" ", token].concat())
        }
        Login::Basic { username, password_file } => {
            let password = secret.strip_suffix(b"\n").unwrap_or(secret);
            let password = password.strip_suffix(b"\r").unwrap_or(password);
            let pair = [username.as_bytes(), b":", password].concat();
            (password_file, format!("Basic {}", STANDARD.encode(pair)).into_bytes())
        }
    };
    let mut value =
        HeaderValue::from_bytes(&text).map_err(|_| format!("{file}: it cannot stand in a header"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn client_config(tls: &Tls, files: &Files, system: &Arc<RootCertStore>) -> Result<ClientConfig, String> {
    let roots = match (&tls.ca_file, &files.ca) {
        (Some(file), Some(pem)) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(file, pem)? {
                roots.add(certificate).map_err(|error| format!("{file}: {error}"))?;
            }
            Arc::new(roots)
        }
        _ => Arc::clone(system),
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be set up: {error}"))?
        .with_root_certificates(roots);
    let (Some(cert_file), Some(cert), Some(key_file), Some(key)) =
        (&tls.cert_file, &files.cert, &tls.key_file, &files.key)
    else {
        return Ok(builder.with_no_client_auth());
    };
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| format!("{key_file}: no private key in PEM"))?;
    builder
        .with_client_auth_cert(certificates(cert_file, cert)?, key)
        .map_err(|error| format!("{cert_file} and {key_file}: {error}"))
}

fn certificates(file: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) | Err(_) => Err(format!("{file}: no certificate in PEM")),
    }
}

// === impl Files ===

impl Files {
    fn read(wanted: &Access) -> Result<Self, String> {
        let login = match &wanted.login {
            Some(Login::Token { file, .. } | Login::Basic { password_file: file, .. }) => Some(file),
            None => None,
        };
        let read = |file: Option<&String>| {
            file.map(|file| bounded(Path::new(file)).map_err(|error| format!("{file}: {error}"))).transpose()
        };
        Ok(Self {
            login: read(login)?,
            ca: read(wanted.tls.ca_file.as_ref())?,
            cert: read(wanted.tls.cert_file.as_ref())?,
            key: read(wanted.tls.key_file.as_ref())?,
        })
    }

    fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for file in [&self.login, &self.ca, &self.cert, &self.key] {
            let bytes = file.as_deref().unwrap_or_default();
            hash.update(bytes.len().to_be_bytes());
            hash.update(bytes);
        }
        hash.finalize().into()
    }
}

/// A file that is one, is not empty, and is small.
fn bounded(path: &Path) -> io::Result<Vec<u8>> {
    let fail = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
    // Looked at before it is opened: opening a pipe would wait for its writer.
    if !std::fs::metadata(path)?.is_file() {
        return Err(fail("not a file".to_owned()));
    }
    let mut bytes = Vec::new();
    let most = SECRET_FILE_BYTES_MAX as u64 + 1;
    File::open(path)?.take(most).read_to_end(&mut bytes)?;
    if bytes.len() > SECRET_FILE_BYTES_MAX {
        return Err(fail(format!("larger than {SECRET_FILE_BYTES_MAX} bytes")));
    }
    if bytes.trim_ascii().is_empty() {
        return Err(fail("empty".to_owned()));
    }
    Ok(bytes)
}
