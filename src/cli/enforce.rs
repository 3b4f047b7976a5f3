//! `tidegate enforce`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use tidegate::enforce::config::NodeConfig;
use tidegate::enforce::node::{Node, NodeError, Running};
use tidegate::supervise;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Failure;
use super::descriptors;
use super::log::LogArgs;

#[derive(clap::Args)]
pub struct Args {
    /// The controller's URL, or a file that it publishes.
    #[arg(long, env = "TIDEGATE_TABLE", value_name = "URL|FILE")]
    table: String,
    /// Keys, upstreams, state; YAML.
    #[arg(long, env = "TIDEGATE_CONFIG", value_name = "FILE")]
    config: PathBuf,
    /// Where clients connect.
    #[arg(long, env = "TIDEGATE_LISTEN", default_value = "127.0.0.1:7700")]
    listen: SocketAddr,
    /// Metrics, health, the table in force; loopback only.
    #[arg(long, env = "TIDEGATE_ADMIN", default_value = "127.0.0.1:7701")]
    admin: SocketAddr,

    #[command(flatten)]
    log: LogArgs,
}

pub fn run(args: Args) -> Result<ExitCode, Failure> {
    args.log.init()?;
    let mut config = NodeConfig::load(&args.config, &args.table, args.listen, args.admin)?;
    // A request holds its client's connection and one to a replica.
    config.caps.connections = descriptors::connections(config.caps.connections, 2);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let code = runtime.block_on(serve(config, args.config));
    // A table being written gets its moment; a disk that hangs does not hold the process.
    runtime.shutdown_timeout(Duration::from_secs(2));
    code
}

async fn serve(config: NodeConfig, source: PathBuf) -> Result<ExitCode, Failure> {
    let mut signals = Signals::new()?;
    match Node::start(config, Some(source)).await {
        Ok(running) => {
            supervise::ready();
            signals.serve(running).await
        }
        Err(error @ NodeError::AdminExposed(_)) => {
            eprintln!("tidegate: {error}");
            Ok(ExitCode::from(2))
        }
        Err(error) => Err(error.into()),
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

// === impl Signals ===

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Until asked to stop, then drains; a second request to stop is obeyed at once.
    async fn serve(&mut self, mut running: Running) -> Result<ExitCode, Failure> {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => break,
                _ = self.interrupt.recv() => break,
                reason = running.ended() => return Err(reason.into()),
                _ = self.hangup.recv() => {
                    // Refusals are logged and counted where they happen.
                    let _ = running.reload().await;
                }
            }
        }
        tracing::info!("stopping");
        supervise::stopping();
        tokio::select! {
            () = running.drain() => {}
            () = self.stop() => {
                running.cut().await;
                tracing::warn!("stopped without draining");
                return Ok(ExitCode::FAILURE);
            }
        }
        tokio::select! {
            () = running.shutdown() => Ok(ExitCode::SUCCESS),
            () = self.stop() => Ok(ExitCode::FAILURE),
        }
    }

    /// Asked to stop.
    async fn stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
