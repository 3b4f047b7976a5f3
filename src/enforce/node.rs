//! A whole node: listeners, followers and reports around one [`Cell`].
//!
//! [`Node::start`] returns once both listeners are bound, so that a demo or a test can embed it.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use crate::bounds::ADMIN_CONNECTIONS_MAX;
use crate::bounds::NODE_CUT_WAIT;
use crate::bounds::NODE_DRAIN;
use crate::bounds::WALL_CLOCK_EVERY;
use crate::enforce::accounts::Accounts;
use crate::enforce::admin::Admin;
use crate::enforce::cell::Cell;
use crate::enforce::client::{HttpClient, client};
use crate::enforce::config::{ConfigError, KeySource, NodeConfig, TableSource};
use crate::enforce::files::{KeysError, follow_keys, follow_secret, follow_table, read_keys};
use crate::enforce::gateway::Gate;
use crate::enforce::patient::Patient;
use crate::enforce::report::Reporter;
use crate::enforce::room::Room;
use crate::enforce::serve::{Bounds, http, serve};
use crate::enforce::shared::{Shared, StateError};
use crate::enforce::strangers::Strangers;
use crate::enforce::upstream::Routing;
use crate::enforce::{follow_http, intake};
use crate::metrics::Page;
use crate::supervise::{Beat, Tasks, Watchdog};
use crate::wire::UsageReport;

/// Starts nodes.
pub struct Node;

/// A node that serves. Dropping it stops everything at once.
pub struct Running {
    pub proxy: SocketAddr,
    pub admin: SocketAddr,
    gate: Arc<Gate>,
    reload: Reload,
    reporter: Option<Reporter>,
    stop: watch::Sender<bool>,
    servers: Tasks,
    followers: Tasks,
}

/// How to read again what a reload replaces.
#[derive(Clone)]
pub struct Reload {
    keys: KeySource,
    /// The configuration file, when there is one.
    config: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("{what} {address}: {error}")]
    Listen { what: &'static str, address: SocketAddr, error: io::Error },
    #[error(
        "admin {0}: the admin listener serves without TLS and may only be on loopback; use 127.0.0.1 or [::1]"
    )]
    AdminExposed(SocketAddr),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error("configuration: {0}")]
    Routing(String),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("TLS: {0}")]
    Tls(String),
}

// === impl Node ===

impl Node {
    /// # Errors
    /// What cannot be read or bound, and what to change.
    pub async fn start(config: NodeConfig, source: Option<PathBuf>) -> Result<Running, NodeError> {
        if !config.admin.ip().is_loopback() {
            return Err(NodeError::AdminExposed(config.admin));
        }
        let accounts = read_keys(&config.keys, &Accounts::default())?;
        let routing = Routing::new(&config.routing).map_err(NodeError::Routing)?;
        let connect = Duration::from_secs(config.caps.connect_seconds.max(1));
        let client = client(connect).map_err(|error| NodeError::Tls(error.to_string()))?;
        let shared = Arc::new(Shared::open(&config)?);
        let (proxy, admin) = (bind("listen", config.listen).await?, bind("admin", config.admin).await?);
        let (proxy_at, admin_at) = (address(&proxy, config.listen), address(&admin, config.admin));
        let gate = Arc::new(Gate {
            shared: Arc::clone(&shared),
            routing: ArcSwap::from_pointee(routing),
            accounts: ArcSwap::from_pointee(accounts),
            client: client.clone(),
            caps: config.caps,
            bodies: intake::room(&config.caps),
            answers: Room::new(config.caps.answers_bytes),
            strangers: Mutex::new(Strangers::new()),
        });
        let reload = Reload { keys: config.keys.clone(), config: source };
        let proxied = Bounds::new(&config.caps, config.caps.connections);
        let administered = Bounds::new(&config.caps, ADMIN_CONNECTIONS_MAX);
        let beats = [proxied.beat.clone(), administered.beat.clone()];
        let (stop, stopped) = watch::channel(false);
        let mut servers = Tasks::new();
        let handler = Arc::clone(&gate);
        servers.vital(
            "proxy",
            serve(proxy, proxied, stopped.clone(), move |request| Arc::clone(&handler).handle(request)),
        );
        let operator = Arc::new(Admin {
            gate: Arc::clone(&gate),
            token: config.admin_token.clone(),
            reload: reload.clone(),
            page: Page::new(config.metrics.max_age),
            detail: config.metrics.detail,
        });
        servers.vital(
            "admin",
            serve(admin, administered, stopped, move |request| Arc::clone(&operator).handle(request)),
        );
        let reporter = config.controller.as_ref().map(|base| Reporter {
            shared: Arc::clone(&shared),
            client: client.clone(),
            base: base.clone(),
            token: config.controller_token.clone(),
        });
        let mut followers = follow(config, &gate, client, reporter.clone());
        followers.vital("watchdog", watch(beats, Arc::clone(&shared)));
        tracing::info!(node = %shared.node, proxy = %proxy_at, admin = %admin_at, "node serves");
        Ok(Running { proxy: proxy_at, admin: admin_at, gate, reload, reporter, stop, servers, followers })
    }
}

// === impl Running ===

impl Running {
    /// The limiter and its table; for whoever embeds the node.
    pub fn cell(&self) -> Arc<Cell> {
        Arc::clone(&self.gate.shared.cell)
    }

    /// What the controller would be told now.
    pub fn report(&self) -> UsageReport {
        self.gate.shared.report()
    }

    /// Serves one connection that no listener accepted, until it ends; for whoever embeds the
    /// node, and for the fuzzer.
    pub async fn serve_connection<I>(&self, io: I)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let gate = Arc::clone(&self.gate);
        let bounds = Bounds::new(&gate.caps, 1);
        let service = service_fn(move |request| {
            let answer = Arc::clone(&gate).handle(request);
            async move { Ok::<_, Infallible>(answer.await) }
        });
        if let Err(error) =
            http(bounds.idle).serve_connection(TokioIo::new(Patient::new(io, bounds.patience)), service).await
        {
            tracing::debug!(%error, "connection ended");
        }
    }

    /// Reads keys and configuration again; all of it or nothing.
    ///
    /// # Errors
    /// Names the file and the mistake; what was in force stays.
    pub async fn reload(&self) -> Result<(), String> {
        self.reload.now(&self.gate).await
    }

    /// Resolves only when a task that the node needs has ended by itself, which none ever should;
    /// says which. The node is of no use from here on.
    pub async fn ended(&mut self) -> String {
        tokio::select! {
            reason = self.servers.ended() => reason,
            reason = self.followers.ended() => reason,
        }
    }

    /// Takes no new connection and lets requests end, for at most [`NODE_DRAIN`].
    pub async fn drain(&mut self) {
        let _ = self.stop.send(true);
        let _ = tokio::time::timeout(NODE_DRAIN + Duration::from_secs(1), self.servers.all_ended()).await;
    }

    /// Cuts what is in flight: settled by what was seen of it, while there is still a ledger.
    pub async fn cut(&mut self) {
        self.servers.abort_all();
        self.servers.all_ended().await;
        // A connection ends a moment after the one who served it.
        let cell = self.cell();
        let busy =
            || cell.with(|limiter, _| limiter.pool_counts().iter().any(|(_, pool)| pool.in_flight > 0));
        let over = async {
            while busy() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        if tokio::time::timeout(NODE_CUT_WAIT, over).await.is_err() {
            tracing::warn!("requests in flight are not settled");
        }
    }

    /// Drains, cuts what is left, and says to the controller what was used in the end.
    pub async fn shutdown(mut self) {
        self.drain().await;
        self.cut().await;
        self.followers.abort_all();
        self.gate.shared.desk.keep().await;
        if let Some(reporter) = &self.reporter {
            reporter.last().await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // What still holds the node for a moment must not keep the next one from its state.
        self.gate.shared.release();
    }
}

// === impl Reload ===

impl Reload {
    pub async fn now(&self, gate: &Gate) -> Result<(), String> {
        let outcome = self.read(gate.accounts.load_full()).await;
        match outcome {
            Ok((accounts, routing)) => {
                let keys = accounts.len();
                gate.accounts.store(Arc::new(accounts));
                if let Some(routing) = routing {
                    gate.shared.with_providers(|providers, _| providers.keep(|name| routing.has(name)));
                    gate.routing.store(Arc::new(routing));
                }
                // Whoever reloads has paid, or has another credential.
                gate.shared.with_providers(|providers, _| providers.release());
                // Said once it is true: whoever reads the line may rely on it.
                gate.shared.count.reloads();
                tracing::info!(keys, "reloaded");
                Ok(())
            }
            Err(reason) => {
                gate.shared.count.reload_errors();
                tracing::error!(%reason, "reload refused; what was in force stays");
                Err(reason)
            }
        }
    }

    async fn read(&self, former: Arc<Accounts>) -> Result<(Accounts, Option<Routing>), String> {
        let (keys, config) = (self.keys.clone(), self.config.clone());
        let read = spawn_blocking(move || {
            let accounts = read_keys(&keys, &former).map_err(|error| error.to_string())?;
            let Some(path) = config else { return Ok((accounts, None)) };
            let any = SocketAddr::from(([127, 0, 0, 1], 0));
            let config = NodeConfig::load(&path, "unused", any, any).map_err(|error| error.to_string())?;
            Ok((accounts, Some(Routing::new(&config.routing)?)))
        });
        read.await.unwrap_or_else(|error| Err(error.to_string()))
    }
}

/// What a node reads and tells beside its requests; each begins anew when it breaks.
fn follow(config: NodeConfig, gate: &Arc<Gate>, http: HttpClient, reporter: Option<Reporter>) -> Tasks {
    let mut followers = Tasks::new();
    let (poll, report) = (config.caps.poll(), Duration::from_millis(config.caps.report_ms));
    let (shared, token) = (Arc::clone(&gate.shared), config.controller_token.clone());
    let clocked = Arc::clone(&gate.shared);
    followers.restarted("clock", move || follow_clock(Arc::clone(&clocked)));
    match config.table {
        TableSource::File(path) => {
            followers.restarted("table", move || follow_table(Arc::clone(&shared), path.clone(), poll))
        }
        TableSource::Http(base) => followers.restarted("table", move || {
            follow_http::follow(Arc::clone(&shared), http.clone(), base.clone(), token.clone())
        }),
    }
    if let KeySource::File(path) = config.keys {
        let gate = Arc::clone(gate);
        followers.restarted("keys", move || follow_keys(Arc::clone(&gate), path.clone(), poll));
    }
    let desk = Arc::clone(&gate.shared.desk);
    followers.restarted("jobs", move || Arc::clone(&desk).run());
    for secret in [&config.controller_token, &config.admin_token].into_iter().flatten() {
        let Some(path) = secret.file().map(std::path::Path::to_owned) else { continue };
        let (shared, secret) = (Arc::clone(&gate.shared), secret.clone());
        followers.restarted("token", move || {
            follow_secret(Arc::clone(&shared), secret.clone(), path.clone(), poll)
        });
    }
    if let Some(reporter) = reporter {
        followers.restarted("report", move || reporter.clone().run(report));
    }
    followers
}

/// Between two looks the monotonic clock goes on; a look only notices that the wall clock was set.
async fn follow_clock(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(WALL_CLOCK_EVERY).await;
        shared.tell_time();
    }
}

/// Feeds the service manager's watchdog while both listeners turn and the limiter's lock is free.
async fn watch(listeners: [Beat; 2], shared: Arc<Shared>) {
    Watchdog::from_env().feed_while(listeners.into(), || shared.cell.with(|_, _| ())).await;
}

async fn bind(what: &'static str, address: SocketAddr) -> Result<TcpListener, NodeError> {
    TcpListener::bind(address).await.map_err(|error| NodeError::Listen { what, address, error })
}

fn address(listener: &TcpListener, asked: SocketAddr) -> SocketAddr {
    listener.local_addr().unwrap_or(asked)
}
