//! The demo's controller and nodes: the daemon's own, started in this process.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::control::reload::Loader;
use crate::control::run as control;
use crate::enforce::config::{KeySource, NodeConfig, RoutingConfig, Secret, TableSource, UpstreamConfig};
use crate::enforce::node;
use crate::enforce::node::Node;
use crate::unit::PoolId;

use super::DemoError;
use super::dialect::Dialect;
use super::ledger::TIERS;
use super::page::MODEL;
use super::tenants::{KEYS_PER_TIER, OUTPUT_COST, key};

/// The nodes' first table must arrive within this.
const READY_WITHIN: Duration = Duration::from_secs(20);
const READY_POLL: Duration = Duration::from_millis(50);

/// Nodes of the demo.
pub const NODES: usize = 2;
pub const POOL: &str = "llm";
pub const SLO: Duration = Duration::from_secs(1);
/// Work a second that the tiers are guaranteed: together less than half of the plant.
pub const GUARANTEES: [f64; TIERS.len()] = [10_240.0, 2_560.0, 640.0];

/// Files of one demo, gone when it ends unless they are to be kept.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    kept: bool,
}

/// What runs, and where.
pub struct Cluster {
    pub directory: Directory,
    pub controller: String,
    pub nodes: Vec<NodeAddress>,
    control: control::Running,
    running: Vec<node::Running>,
}

#[derive(Clone, Debug)]
pub struct NodeAddress {
    pub admin: String,
    pub proxy: String,
}

// === impl Directory ===

impl Directory {
    /// A directory that only this user can read, with the policy and the tenants' keys in it.
    ///
    /// # Errors
    /// When the temporary directory cannot be written.
    pub fn create(dialect: Dialect, replicas: &[String]) -> io::Result<Directory> {
        let parent = std::env::temp_dir();
        let path = (0..1000)
            .map(|number| parent.join(format!("tidegate-demo-{}-{number}", std::process::id())))
            .find_map(|path| match fs::DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => None,
                made => Some(made.map(|()| path)),
            })
            .unwrap_or_else(|| Err(io::Error::other("1000 old demos are in the temporary directory")))?;
        Directory { path, kept: false }.filled(dialect, replicas)
    }

    /// The same where it is named, to be looked at afterwards.
    ///
    /// # Errors
    /// When it is there already, or cannot be made.
    pub fn keep(path: &Path, dialect: Dialect, replicas: &[String]) -> io::Result<Directory> {
        fs::DirBuilder::new()
            .mode(0o700)
            .create(path)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        Directory { path: path.to_owned(), kept: true }.filled(dialect, replicas)
    }

    fn filled(self, dialect: Dialect, replicas: &[String]) -> io::Result<Directory> {
        fs::create_dir(self.policies())?;
        fs::write(self.policies().join("demo.yaml"), policy(dialect, replicas))?;
        fs::write(self.keys(), keyring())?;
        Ok(self)
    }

    pub fn policies(&self) -> PathBuf {
        self.path.join("policies")
    }

    pub fn state(&self) -> PathBuf {
        self.path.join("state")
    }

    pub fn keys(&self) -> PathBuf {
        self.path.join("keys.jsonl")
    }

    pub fn token(&self) -> PathBuf {
        self.state().join("token")
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if !self.kept {
            // It lies in the temporary directory: what cannot be removed now is removed there.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

// === impl Cluster ===

impl Cluster {
    /// Starts the controller and the nodes, and waits until every node has a table.
    ///
    /// # Errors
    /// What kept one of them from starting.
    pub async fn start(replicas: &[String]) -> Result<Cluster, DemoError> {
        Cluster::obeying(Dialect::Vllm, replicas, None).await
    }

    /// The same for replicas with another server's metrics; files stay in `keep`, where one is named.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub async fn obeying(
        dialect: Dialect,
        replicas: &[String],
        keep: Option<&Path>,
    ) -> Result<Cluster, DemoError> {
        let directory = match keep {
            Some(path) => Directory::keep(path, dialect, replicas),
            None => Directory::create(dialect, replicas),
        };
        let directory = directory.map_err(DemoError::Directory)?;
        let control = start_controller(&directory).await?;
        let controller = control.url();
        let mut nodes = Vec::with_capacity(NODES);
        let mut running = Vec::with_capacity(NODES);
        for number in 1..=NODES {
            let node = start_node(&directory, number, &control, replicas).await?;
            nodes.push(NodeAddress {
                admin: format!("http://{}", node.admin),
                proxy: format!("http://{}", node.proxy),
            });
            running.push(node);
        }
        let cluster = Cluster { directory, controller, nodes, control, running };
        cluster.wait_until_ready().await?;
        Ok(cluster)
    }

    /// Until every node is listed in the table it holds: before that it has the reserved part of
    /// `safe` only.
    async fn wait_until_ready(&self) -> Result<(), DemoError> {
        let pool = PoolId::new(POOL);
        let ready = |node: &node::Running| {
            let held = node.cell().held();
            held.is_some_and(|held| {
                held.table.pools.get(&pool).is_some_and(|pool| pool.shares.len() == NODES)
            })
        };
        for _ in 0..(READY_WITHIN.as_millis() / READY_POLL.as_millis()) {
            if self.running.iter().all(ready) {
                return Ok(());
            }
            tokio::time::sleep(READY_POLL).await;
        }
        Err(DemoError::Start(format!("no table reached every node within {} s", READY_WITHIN.as_secs())))
    }

    /// Stops nodes, then the controller.
    pub async fn shutdown(self) {
        let Cluster { control, running, directory, .. } = self;
        for node in running {
            node.shutdown().await;
        }
        control.shutdown().await;
        drop(directory);
    }
}

async fn start_controller(directory: &Directory) -> Result<control::Running, DemoError> {
    let options = control::Options::new(directory.policies(), directory.state(), Loader::checked());
    control::start(options).await.map_err(|error| DemoError::Start(error.to_string()))
}

async fn start_node(
    directory: &Directory,
    number: usize,
    control: &control::Running,
    replicas: &[String],
) -> Result<node::Running, DemoError> {
    let upstream = UpstreamConfig {
        urls: replicas.to_vec(),
        models: vec![MODEL.to_owned()],
        ask_usage: true,
        ..UpstreamConfig::default()
    };
    let routing =
        RoutingConfig { upstreams: BTreeMap::from([("replicas".to_owned(), upstream)]), routes: Vec::new() };
    let name = format!("node-{number}");
    let keys = KeySource::File(directory.keys());
    let mut config = NodeConfig::embedded(&name, TableSource::Http(control.url()), keys, routing);
    config.controller_token =
        Some(Secret::load(&directory.token()).map_err(|error| DemoError::Start(error.to_string()))?);
    Node::start(config, None).await.map_err(|error| DemoError::Start(error.to_string()))
}

/// States no capacity: the controller has nothing but the replicas' metrics to find it.
fn policy(dialect: Dialect, replicas: &[String]) -> String {
    let targets: Vec<String> = replicas.iter().map(|url| format!("{url}/metrics")).collect();
    let [enterprise, starter, free] = GUARANTEES.map(|rate| (rate * 60.0) as u64);
    format!(
        "product: demo
pools:
  {POOL}:
    preset: {dialect}
    targets: [{targets}]
    slo: {slo}s
    output_token_cost: {OUTPUT_COST}
models:
  {MODEL}: {{pool: {POOL}}}
tiers:
  enterprise: {{priority: 1, weight: 4, guarantee: {enterprise} tpm, ceiling: unlimited, key_limits: unlimited}}
  starter: {{priority: 2, weight: 2, guarantee: {starter} tpm, ceiling: 1500k tpm, key_limits: unlimited}}
  free: {{priority: 3, weight: 1, guarantee: {free} tpm, ceiling: 1500k tpm, key_limits: unlimited}}
",
        targets = targets.join(", "),
        slo = SLO.as_secs(),
    )
}

/// A node's keys file: digests only.
fn keyring() -> String {
    let mut lines = String::new();
    for (tier, name) in TIERS.iter().enumerate() {
        for number in 0..KEYS_PER_TIER {
            let digest = Sha256::digest(key(tier, number).as_bytes());
            let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            let _ = writeln!(lines, "{{\"key_sha256\":\"{hex}\",\"tier\":\"{name}\"}}");
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_goes_with_its_demo() {
        let directory = Directory::create(Dialect::Vllm, &["http://127.0.0.1:1".to_owned()]).unwrap();
        let path = directory.path().to_owned();
        let policy = fs::read_to_string(directory.policies().join("demo.yaml")).unwrap();
        assert!(policy.contains("targets: [http://127.0.0.1:1/metrics]"), "{policy}");
        let keys = fs::read_to_string(directory.keys()).unwrap();
        assert!(!keys.contains("demo-free-0") && keys.lines().count() == 12);
        drop(directory);
        assert!(!path.exists());
    }

    #[test]
    fn guarantees_fit_into_half_of_the_plant() {
        assert!(GUARANTEES.iter().sum::<f64>() < 0.5 * 32_000.0);
    }
}
