//! `tidegate control`: the daemon's flags and signals.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use tidegate::bounds::JOURNAL_BYTES_MAX;
use tidegate::bounds::SERVER_CONNECTIONS_MAX;
use tidegate::bounds::SETTLED_AFTER;
use tidegate::control::reload::Loader;
use tidegate::control::run::{Options, Running, StartError, start};
use tidegate::metrics::{Detail, PageOptions};
use tidegate::supervise;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Failure;
use super::descriptors;
use super::log::LogArgs;

#[derive(clap::Args)]
pub struct Args {
    /// Directory of policy files; read again on change, on SIGHUP and on POST /-/reload
    #[arg(long, value_name = "DIR", env = "TIDEGATE_POLICIES")]
    policies: PathBuf,

    /// Where to listen; off loopback TLS and a token are required
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:7600", env = "TIDEGATE_LISTEN")]
    listen: SocketAddr,

    /// Directory for the journal, the last table and the token; one controller each
    #[arg(long, value_name = "DIR", default_value = "tidegate-state", env = "TIDEGATE_STATE")]
    state: PathBuf,

    /// File with the token that reports and reloads need [default: STATE/token, made when absent]
    #[arg(long, value_name = "FILE", env = "TIDEGATE_TOKEN_FILE")]
    token_file: Option<PathBuf>,

    /// Certificate chain of the listener, PEM
    #[arg(long, value_name = "FILE", requires = "tls_key", env = "TIDEGATE_TLS_CERT")]
    tls_cert: Option<PathBuf>,

    /// Key of the listener's certificate, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert", env = "TIDEGATE_TLS_KEY")]
    tls_key: Option<PathBuf>,

    /// Rows on /metrics: full (every model and tier), tier (summed over models), or pool (none)
    #[arg(long, value_name = "LEVEL", default_value = "full", env = "TIDEGATE_METRICS_DETAIL")]
    metrics_detail: Detail,

    #[command(flatten)]
    log: LogArgs,
}

/// A signal that came.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Came {
    Reload,
    Stop,
}

struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

pub fn run(args: Args) -> Result<ExitCode, Failure> {
    args.log.init()?;
    let mut options = Options {
        policies: args.policies,
        loader: Loader::checked(),
        state: args.state,
        listen: args.listen,
        tls: args.tls_cert.zip(args.tls_key),
        token_file: args.token_file,
        journal_bytes_max: JOURNAL_BYTES_MAX,
        collect: None,
        metrics: PageOptions { detail: args.metrics_detail, ..PageOptions::default() },
        settle: SETTLED_AFTER,
        connections_max: SERVER_CONNECTIONS_MAX,
    };
    let connections = descriptors::connections(SERVER_CONNECTIONS_MAX, 1);
    options.connections_max = connections;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let code = runtime.block_on(serve(options));
    // A write that hangs does not hold the process.
    runtime.shutdown_background();
    code
}

async fn serve(options: Options) -> Result<ExitCode, Failure> {
    let mut signals = Signals::new()?;
    let mut running = match start(options).await {
        Ok(running) => running,
        Err(StartError::Usage(reason)) => {
            eprintln!("tidegate: {reason}");
            return Ok(ExitCode::from(2));
        }
        Err(error) => return Err(error.into()),
    };
    supervise::ready();
    loop {
        tokio::select! {
            came = signals.next() => match came {
                // Its outcome is in the log.
                Came::Reload => drop(running.reload().await),
                Came::Stop => return Ok(stop(running, signals).await),
            },
            reason = running.ended() => return Err(reason.into()),
        }
    }
}

/// Drains; a second signal quits.
async fn stop(running: Running, mut signals: Signals) -> ExitCode {
    tracing::info!("stopping");
    supervise::stopping();
    let drained = running.shutdown();
    tokio::pin!(drained);
    loop {
        tokio::select! {
            () = &mut drained => return ExitCode::SUCCESS,
            came = signals.next() => if came == Came::Stop {
                tracing::warn!("stopped without draining");
                return ExitCode::FAILURE;
            },
        }
    }
}

// === impl Signals ===

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> Came {
        tokio::select! {
            _ = self.hangup.recv() => Came::Reload,
            _ = self.terminate.recv() => Came::Stop,
            _ = self.interrupt.recv() => Came::Stop,
        }
    }
}
