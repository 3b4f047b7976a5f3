//! A node's configuration: the YAML file and the values it turns into.
//!
//! ```yaml
//! node: edge-1                      # default: the host's name; shares are given to it
//! keys: keys.jsonl                  # {"key_sha256":"<64 hex>","account":"acme","tier":"free"}
//! state: /var/lib/tidegate/edge-1   # keeps the last table
//! controller_token_file: token
//! upstreams:
//!   llama:
//!     urls: ["http://10.0.0.1:8000", "http://10.0.0.2:8000"]
//!     models: [llama-70b]
//! routes:
//!   - {prefix: /v1/images, model: flux}
//! ```

mod secret;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::bounds::CAPS_ACCOUNTS;
use crate::bounds::CAPS_ANSWER_WAIT;
use crate::bounds::CAPS_ANSWERS_BYTES;
use crate::bounds::CAPS_BODIES_BYTES;
use crate::bounds::CAPS_BODY_BYTES;
use crate::bounds::CAPS_BODY_WAIT;
use crate::bounds::CAPS_CONNECT_WAIT;
use crate::bounds::CAPS_CONNECTIONS;
use crate::bounds::CAPS_FIRST_BYTE_WAIT;
use crate::bounds::CAPS_HEADER_WAIT;
use crate::bounds::CAPS_IDLE_WAIT;
use crate::bounds::CAPS_KEEP_ALIVE_WAIT;
use crate::bounds::CAPS_KEYS;
use crate::bounds::CAPS_WRITE_WAIT;
use crate::bounds::CONFIG_BYTES_MAX;
use crate::bounds::NAME_BYTES_MAX;
use crate::enforce::jobs::{Hook, HookFile};
use crate::ledger::Wall;
use crate::metrics::Detail;
use crate::metrics::PageOptions;
use crate::unit::{ModelId, NodeId};

pub use secret::Secret;

/// Everything a node needs to start.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    pub node: NodeId,
    pub table: TableSource,
    pub listen: SocketAddr,
    pub admin: SocketAddr,
    pub keys: KeySource,
    /// Where the last table applied is kept.
    pub state: Option<PathBuf>,
    /// Base URL for usage reports.
    pub controller: Option<String>,
    pub controller_token: Option<Secret>,
    /// Needed by `POST /-/reload`; without it, only SIGHUP reloads.
    pub admin_token: Option<Secret>,
    /// Where upstreams tell that a job has ended.
    pub hook: Option<Hook>,
    pub routing: RoutingConfig,
    pub caps: Caps,
    /// What `/metrics` shows.
    pub metrics: PageOptions,
    /// Tells days and months.
    pub wall: Wall,
}

/// Where tables come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableSource {
    File(PathBuf),
    /// The controller's base URL, without `/v1/table`.
    Http(String),
}

#[derive(Clone, Debug)]
pub enum KeySource {
    File(PathBuf),
    /// The lines of such a file.
    Inline(String),
}

/// The part of the configuration that a reload replaces.
#[derive(Clone, Debug, Default)]
pub struct RoutingConfig {
    pub upstreams: BTreeMap<String, UpstreamConfig>,
    pub routes: Vec<RouteConfig>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamConfig {
    /// Replicas of one another.
    pub urls: Vec<String>,
    /// Empty: every model that no other upstream names.
    #[serde(default)]
    pub models: Vec<String>,
    /// Holds the upstream's own credential, sent as a bearer token.
    pub credential_file: Option<PathBuf>,
    /// Pass the client's own credential on.
    #[serde(default)]
    pub forward_authorization: bool,
    /// Ask for usage in streams whose client did not, and keep it from the client.
    #[serde(default = "yes")]
    pub ask_usage: bool,
    #[serde(skip)]
    pub credential: Option<Secret>,
}

/// The model of requests whose body names none.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteConfig {
    pub prefix: String,
    pub model: ModelId,
}

/// Every bound of a node.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Caps {
    pub body_bytes: usize,
    /// All bodies in memory together.
    pub bodies_bytes: usize,
    /// All that is kept of answers to look into them, together.
    pub answers_bytes: usize,
    pub connections: usize,
    pub keys: usize,
    /// Accounts and keys whose budgets are in memory.
    pub accounts: usize,
    pub connect_seconds: u64,
    /// From a head's first byte to its last.
    pub header_seconds: u64,
    /// Between a client's requests.
    pub keep_alive_seconds: u64,
    pub body_seconds: u64,
    /// For a client to take 16 kB of an answer that waits for it.
    pub write_seconds: u64,
    /// Until a stream begins.
    pub first_byte_seconds: u64,
    /// Until an answer in one piece begins: the whole of it is made before.
    pub answer_seconds: u64,
    pub idle_seconds: u64,
    /// Pause between looks at followed files.
    pub poll_ms: u64,
    pub report_ms: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}: {error}")]
    Read { path: PathBuf, error: std::io::Error },
    #[error("{path}: {reason}")]
    Invalid { path: PathBuf, reason: String },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    node: Option<String>,
    keys: PathBuf,
    state: Option<PathBuf>,
    controller: Option<String>,
    controller_token_file: Option<PathBuf>,
    admin_token_file: Option<PathBuf>,
    upstreams: BTreeMap<String, UpstreamConfig>,
    webhooks: Option<HookFile>,
    #[serde(default)]
    routes: Vec<RouteConfig>,
    #[serde(default)]
    caps: Caps,
    #[serde(default)]
    metrics_detail: Detail,
}

// === impl NodeConfig ===

impl NodeConfig {
    /// Reads the file and everything it names. Relative paths are relative to the file.
    ///
    /// # Errors
    /// Names the file, and what to change in it.
    pub fn load(
        path: &Path,
        table: &str,
        listen: SocketAddr,
        admin: SocketAddr,
    ) -> Result<NodeConfig, ConfigError> {
        let invalid = |reason: String| ConfigError::Invalid { path: path.to_owned(), reason };
        let text = read(path)?;
        let file: ConfigFile = serde_saphyr::from_str(&text).map_err(|error| invalid(error.to_string()))?;
        let dir = path.parent().unwrap_or(Path::new("."));
        let secret = |file: &Option<PathBuf>| file.as_ref().map(|file| Secret::load(&dir.join(file)));
        let node = match file.node {
            Some(node) => node,
            None => {
                hostname().ok_or_else(|| invalid("cannot tell the host's name; set `node:`".to_owned()))?
            }
        };
        if node.is_empty() || node.len() > NAME_BYTES_MAX || node.contains(char::is_control) {
            return Err(invalid(format!("node: must be 1 to {NAME_BYTES_MAX} printable bytes")));
        }
        let mut routing = RoutingConfig { upstreams: file.upstreams, routes: file.routes };
        for upstream in routing.upstreams.values_mut() {
            upstream.credential = secret(&upstream.credential_file).transpose()?;
        }
        let table = TableSource::parse(table);
        let urls = [table.url(), file.controller.as_deref()];
        urls.into_iter().flatten().try_for_each(check_url).map_err(invalid)?;
        let origin = match &table {
            TableSource::Http(url) => Some(url.clone()),
            TableSource::File(_) => None,
        };
        Ok(NodeConfig {
            node: NodeId::new(node),
            table,
            listen,
            admin,
            keys: KeySource::File(dir.join(file.keys)),
            state: file.state.map(|state| dir.join(state)),
            controller: file.controller.or(origin),
            controller_token: secret(&file.controller_token_file).transpose()?,
            admin_token: secret(&file.admin_token_file).transpose()?,
            hook: file.webhooks.map(|hook| hook.load(dir).map_err(invalid)).transpose()?,
            routing,
            caps: file.caps,
            metrics: PageOptions { detail: file.metrics_detail, ..PageOptions::default() },
            wall: Wall::system(),
        })
    }

    /// With defaults everywhere; for a node embedded in another program.
    pub fn embedded(node: &str, table: TableSource, keys: KeySource, routing: RoutingConfig) -> NodeConfig {
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        let controller = match &table {
            TableSource::Http(url) => Some(url.clone()),
            TableSource::File(_) => None,
        };
        NodeConfig {
            node: NodeId::new(node),
            table,
            listen: any_port,
            admin: any_port,
            keys,
            state: None,
            controller,
            controller_token: None,
            admin_token: None,
            hook: None,
            routing,
            caps: Caps::default(),
            metrics: PageOptions::fresh(),
            wall: Wall::system(),
        }
    }
}

// === impl TableSource ===

impl TableSource {
    pub fn parse(text: &str) -> TableSource {
        if !text.starts_with("http://") && !text.starts_with("https://") {
            return TableSource::File(PathBuf::from(text));
        }
        let base = text.trim_end_matches('/');
        TableSource::Http(base.strip_suffix("/v1/table").unwrap_or(base).to_owned())
    }

    fn url(&self) -> Option<&str> {
        match self {
            TableSource::Http(url) => Some(url),
            TableSource::File(_) => None,
        }
    }
}

// === impl Caps ===

impl Default for Caps {
    fn default() -> Caps {
        Caps {
            body_bytes: CAPS_BODY_BYTES,
            bodies_bytes: CAPS_BODIES_BYTES,
            answers_bytes: CAPS_ANSWERS_BYTES,
            connections: CAPS_CONNECTIONS,
            keys: CAPS_KEYS,
            accounts: CAPS_ACCOUNTS,
            connect_seconds: CAPS_CONNECT_WAIT.as_secs(),
            header_seconds: CAPS_HEADER_WAIT.as_secs(),
            keep_alive_seconds: CAPS_KEEP_ALIVE_WAIT.as_secs(),
            body_seconds: CAPS_BODY_WAIT.as_secs(),
            write_seconds: CAPS_WRITE_WAIT.as_secs(),
            first_byte_seconds: CAPS_FIRST_BYTE_WAIT.as_secs(),
            answer_seconds: CAPS_ANSWER_WAIT.as_secs(),
            idle_seconds: CAPS_IDLE_WAIT.as_secs(),
            poll_ms: 200,
            report_ms: 1_000,
        }
    }
}

impl Caps {
    pub fn poll(&self) -> Duration {
        Duration::from_millis(self.poll_ms.max(1))
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let unreadable = |error| ConfigError::Read { path: path.to_owned(), error };
    let bytes = fs::metadata(path).map_err(unreadable)?.len();
    if bytes > CONFIG_BYTES_MAX {
        let reason = format!("{bytes} bytes, allowed are {CONFIG_BYTES_MAX}");
        return Err(ConfigError::Invalid { path: path.to_owned(), reason });
    }
    fs::read_to_string(path).map_err(unreadable)
}

/// A controller's URL is printed in logs, so it must not hold a credential.
fn check_url(url: &str) -> Result<(), String> {
    if url.contains('@') {
        return Err("the controller's URL holds a credential; use `controller_token_file`".to_owned());
    }
    let parsed = url.parse::<http::Uri>().ok().filter(|url| {
        let ends_in_port = url.port().is_some() || url.authority().is_some_and(|at| at.as_str() == at.host());
        ends_in_port && url.query().is_none()
    });
    match parsed.as_ref().and_then(http::Uri::scheme_str) {
        Some("http" | "https") => Ok(()),
        _ => Err(format!("the controller's URL {url} must look like http://host:port")),
    }
}

fn hostname() -> Option<String> {
    let read =
        fs::read_to_string("/proc/sys/kernel/hostname").or_else(|_| fs::read_to_string("/etc/hostname"));
    let name = read.ok()?.trim().to_owned();
    (!name.is_empty()).then_some(name)
}

fn yes() -> bool {
    true
}
