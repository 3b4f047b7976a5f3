//! The controller's certificate and key: read together, checked together, replaced together while
//! connections come and go.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use x509_cert::Certificate;
use x509_cert::der::Decode;

use crate::bounds::CREDENTIAL_BYTES_MAX;
use crate::publish::file::read_bounded;

/// A certificate chain with its key.
#[derive(Clone)]
pub struct Identity {
    key: Arc<CertifiedKey>,
    /// When the first certificate of the chain that expires does, seconds since 1970.
    pub not_after: u64,
}

/// The identity that new connections get.
pub struct Presented(ArcSwap<CertifiedKey>);

// === impl Identity ===

impl Identity {
    /// From a chain and its key, both PEM.
    ///
    /// # Errors
    /// What is wrong with which of the two; a key that is not the certificate's, too.
    pub fn new(chain: &[u8], key: &[u8]) -> Result<Identity, String> {
        let in_chain = |error: &dyn fmt::Display| format!("certificate: {error}");
        let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(|error| in_chain(&error))?;
        let mut not_after = u64::MAX;
        for der in &certificates {
            let parsed = Certificate::from_der(der).map_err(|error| in_chain(&error))?;
            let end = parsed.tbs_certificate().validity().not_after.to_unix_duration();
            not_after = not_after.min(end.as_secs());
        }
        if certificates.is_empty() {
            return Err(in_chain(&"none in this file; give the chain as PEM"));
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("key: {error}"))?;
        let key = CertifiedKey::from_der(certificates, key, &default_provider())
            .map_err(|error| format!("certificate and key do not go together: {error}"))?;
        Ok(Identity { key: Arc::new(key), not_after })
    }

    /// From two PEM files.
    ///
    /// # Errors
    /// With the path.
    pub fn read(chain: &Path, key: &Path) -> Result<Identity, String> {
        let bytes = |path: &Path| {
            let bytes = read_bounded(path, CREDENTIAL_BYTES_MAX).map_err(|error| error.to_string())?;
            bytes.ok_or_else(|| format!("{}: there is no such file", path.display()))
        };
        let (certificates, private) = (bytes(chain)?, bytes(key)?);
        Identity::new(&certificates, &private)
            .map_err(|reason| format!("{} and {}: {reason}", chain.display(), key.display()))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

// === impl Presented ===

impl Presented {
    pub fn new(identity: Identity) -> Arc<Presented> {
        Arc::new(Presented(ArcSwap::new(identity.key)))
    }

    /// From the next handshake on.
    pub fn replace(&self, identity: Identity) {
        self.0.store(identity.key);
    }

    /// For a listener that presents whatever is current.
    ///
    /// # Errors
    /// The TLS library supports none of its own protocol versions.
    pub fn config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, String> {
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS cannot be set up: {error}"))?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        Ok(Arc::new(config))
    }
}

impl ResolvesServerCert for Presented {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl fmt::Debug for Presented {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Presented")
    }
}
