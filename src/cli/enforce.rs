//! `tidegate enforce`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use tidegate::enforce::config::NodeConfig;
use tidegate::enforce::node::{Node, Running};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Failure;

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
}

pub fn run(args: Args) -> Result<ExitCode, Failure> {
    let filter = tracing_subscriber::EnvFilter::try_from_env("TIDEGATE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // A second subscriber in one process is refused; the first one serves as well.
    let colour = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colour);
    let _ = log.with_writer(std::io::stderr).try_init();
    let config = NodeConfig::load(&args.config, &args.table, args.listen, args.admin)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut signals = Signals::new()?;
        let running = Node::start(config, Some(args.config)).await?;
        signals.serve(running).await;
        Ok(ExitCode::SUCCESS)
    })
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
    async fn serve(&mut self, running: Running) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => break,
                _ = self.interrupt.recv() => break,
                _ = self.hangup.recv() => {
                    // Refusals are logged and counted where they happen.
                    let _ = running.reload().await;
                }
            }
        }
        tokio::select! {
            () = running.shutdown() => {}
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
