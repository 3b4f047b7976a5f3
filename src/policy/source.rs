//! Where a pool's load is read and how it is reached. Secrets are named by file, never held here.

use std::time::Duration;

/// How often names are looked up unless the policy says otherwise.
pub const DNS_REFRESH: Duration = Duration::from_secs(30);

/// One kind of source for a pool.
#[derive(Clone, Debug, PartialEq)]
pub enum SourcePolicy {
    /// Base URLs of Prometheus-compatible servers that scrape the same replicas, read by instant
    /// queries. Several are a pair for availability: a replica that two name is one replica.
    Prometheus { servers: Vec<String>, access: Access },
    /// None: what the tiers are granted is stated, not measured.
    Fixed,
    /// Metric pages of the replicas themselves.
    Direct { targets: Targets, access: Access },
}

/// Replicas by name, by file and by DNS; together they are the pool.
#[derive(Clone, Debug, PartialEq)]
pub struct Targets {
    /// URLs, or `host:port`.
    pub fixed: Vec<String>,
    /// Files of Prometheus's `file_sd` format; the last path segment may hold one `*`.
    pub file_sd: Vec<String>,
    /// `name:port`, each address of which is a replica.
    pub dns: Vec<String>,
    pub dns_refresh: Duration,
    /// Where a target without a path has its page; empty means `/metrics`.
    pub path: String,
}

/// What a source asks of its callers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Access {
    pub login: Option<Login>,
    pub tls: Tls,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Login {
    /// `Authorization: KIND` and what the file holds.
    Token {
        kind: String,
        file: String,
    },
    Basic {
        username: String,
        password_file: String,
    },
}

/// PEM files; the system's authorities and no client certificate unless stated.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tls {
    pub ca_file: Option<String>,
    pub cert_file: Option<String>,
    pub key_file: Option<String>,
    /// The name that the certificate is checked against, in place of the URL's host.
    pub server_name: Option<String>,
}

// === impl Targets ===

impl Default for Targets {
    fn default() -> Self {
        Self {
            fixed: Vec::new(),
            file_sd: Vec::new(),
            dns: Vec::new(),
            dns_refresh: DNS_REFRESH,
            path: String::new(),
        }
    }
}

// === impl SourcePolicy ===

impl SourcePolicy {
    /// One open Prometheus.
    pub fn prometheus(url: impl Into<String>) -> Self {
        Self::Prometheus { servers: vec![url.into()], access: Access::default() }
    }

    /// Open pages.
    pub fn targets(fixed: Vec<String>) -> Self {
        let targets = Targets { fixed, ..Targets::default() };
        Self::Direct { targets, access: Access::default() }
    }
}
