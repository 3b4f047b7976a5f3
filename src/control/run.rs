//! The daemon, from its options to its last answer: takes the state directory, goes on where
//! the last one stopped, listens, turns, drains.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::bounds::JOURNAL_BYTES_MAX;
use crate::bounds::SERVER_CONNECTIONS_MAX;
use crate::bounds::SETTLED_AFTER;
use crate::control::credentials::{Follow, Source};
use crate::control::disk::{Disk, Writer};
use crate::control::history;
use crate::control::metrics::{Metrics, Seen};
use crate::control::outlet::{Published, RunsKept, Store};
use crate::control::reload::{Loaded, Loader, Reloader, fingerprint};
use crate::control::resume::{First, first_policy, resume};
use crate::control::runs::{Opened, RUNS_FILE, Runs};
use crate::control::settle::Settling;
use crate::control::standing::{Origin, Standing};
use crate::control::turn::Turns;
use crate::control::{Controller, State};
use crate::metrics::PageOptions;
use crate::observe::sources::Sources;
use crate::policy::load::{self, Contents};
use crate::publish::board::{Board, ReloadRequest, Reloaded};
use crate::publish::lock::StateLock;
use crate::publish::server::Server;
use crate::publish::tls::{Identity, Presented};
use crate::publish::token::{TOKEN_FILE, Token};
use crate::supervise::{Tasks, Watchdog};
use crate::unit::{Clock, SystemClock};

#[derive(Clone, Debug)]
pub struct Options {
    /// Directory of policy files.
    pub policies: PathBuf,
    pub loader: Loader,
    /// Directory that belongs to this controller alone; made when absent.
    pub state: PathBuf,
    pub listen: SocketAddr,
    /// PEM files: certificate chain and key.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Made in the state directory unless stated.
    pub token_file: Option<PathBuf>,
    pub journal_bytes_max: u64,
    /// Without state, how long node reports are collected before the first tick; the policy's
    /// interval unless stated.
    pub collect: Option<Duration>,
    /// What `/metrics` shows.
    pub metrics: PageOptions,
    /// An edit counts once two reads this far apart are equal.
    pub settle: Duration,
    /// Most connections at a time.
    pub connections_max: usize,
}

/// Why a controller did not start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// The options do not go together.
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Failed(String),
}

/// A controller at work.
#[derive(Debug)]
pub struct Running {
    pub addr: SocketAddr,
    pub token: Token,
    scheme: &'static str,
    board: Arc<Board>,
    server: Server,
    stop: watch::Sender<bool>,
    turns: JoinHandle<Result<(), String>>,
    reloader: Tasks,
}

// === impl Options ===

impl Options {
    /// On a free port of loopback.
    pub fn new(policies: impl Into<PathBuf>, state: impl Into<PathBuf>, loader: Loader) -> Options {
        Options {
            policies: policies.into(),
            loader,
            state: state.into(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            tls: None,
            token_file: None,
            journal_bytes_max: JOURNAL_BYTES_MAX,
            collect: None,
            metrics: PageOptions::fresh(),
            settle: SETTLED_AFTER,
            connections_max: SERVER_CONNECTIONS_MAX,
        }
    }

    fn check(&self) -> Result<(), StartError> {
        let alone = self.listen.ip().is_loopback();
        if !alone && (self.tls.is_none() || self.token_file.is_none()) {
            return Err(StartError::Usage(format!(
                "listening on {} would show tables to the network in the clear and let anyone write: \
                 give --tls-cert, --tls-key and --token-file, or listen on 127.0.0.1",
                self.listen
            )));
        }
        Ok(())
    }
}

/// Starts a controller; returns once it listens.
///
/// # Errors
/// See [`StartError`]; nothing is left running.
pub async fn start(options: Options) -> Result<Running, StartError> {
    options.check()?;
    let identity = identity(&options)?;
    let (mut lock, token) = take(&options)?;
    let metrics = Metrics::new(options.metrics).map_err(failed)?;
    let seen = fingerprint(&options.policies);
    let contents = load::read(&options.policies);
    let directory = contents.digest();
    let resumed = resume(&options.state, options.journal_bytes_max).map_err(failed)?;
    let Opened { mut runs, unclean } = Runs::open(&options.state, resumed.now);
    let loader = options.loader.without(runs.quarantined(), &options.state.join(RUNS_FILE));
    let first = policy(contents, &options, &loader, &runs, &metrics)?;
    let unheard = |error| failed(format!("{} cannot be listened on: {error}", options.listen));
    let listener = TcpListener::bind(options.listen).await.map_err(unheard)?;

    let (reloads, requests) = mpsc::channel(16);
    let (rollback, rollbacks) = mpsc::channel(1);
    let (accepted, policies) = watch::channel(Arc::new(first.loaded));
    let page = metrics.clone();
    let reads_need_token = !options.listen.ip().is_loopback();
    let mut board = Board::new(token.clone(), reads_need_token, reloads, Box::new(move || page.page()));
    board.rollbacks = Some(rollback);
    let board = Arc::new(board);
    let standing = standing(&board, &options.state, &policies.borrow(), first.refused.as_deref());
    let (presented, tls) = present(identity, &metrics)?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let shown = Arc::clone(&board);
    let server = Server::start_bounded(listener, tls, shown, options.connections_max).map_err(failed)?;
    let addr = server.addr;
    if let Err(error) = lock.announce(&addr.to_string()) {
        tracing::warn!(%error, "the lock file could not be written");
    }
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::starting_at(resumed.now));
    let settling = Settling::new(directory, seen, options.settle, clock.now());
    let (stop, stopped) = watch::channel(false);
    let disk = Disk::new(options.state.clone(), resumed.journal, lock);
    let collect = resumed.hear_nodes.then_some(options.collect);
    let mut state = resumed.state.unwrap_or_default();
    // From here on whatever ends this process badly is on the record.
    let digest = policies.borrow().policy.digest.clone();
    state.stamp.epoch = runs.begin(&digest, resumed.now, state.stamp.epoch, unclean);
    let runs = RunsKept { stored: runs.save(&options.state).map(|()| runs.clone()).ok(), wanted: runs };
    let from = Begin { state, collect, runs, good: first.good };
    let shared = (&board, &metrics, &standing);
    let turns = turns(from, disk, policies, &clock, shared).map_err(failed)?;
    let turns = tokio::spawn(first_listen(turns, stopped));
    let mut reloader = Tasks::new();
    follow(credentials(&options, presented, &board), &mut reloader, options.settle, (&clock, &metrics));
    let reloads = Reloader {
        dir: options.policies,
        state: options.state.clone(),
        loader,
        clock,
        metrics,
        board: Arc::clone(&board),
        standing,
        accepted,
        requests,
        rollbacks,
        settling,
    };
    reloader.vital("reload", reloads.run());
    tracing::info!(%addr, scheme, state = %options.state.display(), "listening");
    Ok(Running { addr, token, scheme, board, server, stop, turns, reloader })
}

/// The state directory, for this controller alone, and the token that is in it or elsewhere.
fn take(options: &Options) -> Result<(StateLock, Token), StartError> {
    std::fs::create_dir_all(&options.state)
        .map_err(|error| failed(format!("state directory {}: {error}", options.state.display())))?;
    let lock = StateLock::take(&options.state, &options.listen.to_string()).map_err(failed)?;
    let token = match &options.token_file {
        Some(path) => Token::read(path),
        None => Token::read_or_create(&options.state),
    };
    Ok((lock, token.map_err(failed)?))
}

fn failed(error: impl ToString) -> StartError {
    StartError::Failed(error.to_string())
}

/// The policy to start with: the directory's or a held one, unless it is bad or quarantined and
/// another is stored.
fn policy(
    contents: Contents,
    options: &Options,
    loader: &Loader,
    runs: &Runs,
    metrics: &Metrics,
) -> Result<First, StartError> {
    let first = match (first_policy(contents.clone(), &options.state, loader), runs.quarantined()) {
        (Ok(first), _) => first,
        // Nothing to go back to: serving under it, for as long as it holds, beats not serving.
        (Err(reason), Some(digest)) => {
            tracing::error!(digest, reason, "a quarantined policy is started again: there is no other");
            first_policy(contents, &options.state, &options.loader).map_err(StartError::Failed)?
        }
        (Err(reason), None) => return Err(StartError::Failed(reason)),
    };
    metrics.reloaded(first.refused.is_none());
    metrics.quarantined(runs.quarantined().is_some_and(|digest| digest != first.loaded.policy.digest));
    if let Some(diagnostics) = &first.refused {
        tracing::error!(diagnostics, "policy refused; started with the last good one");
    }
    if let Origin::Rollback { to } = first.loaded.origin {
        metrics.held(true);
        tracing::warn!(to, "an operator's rollback is held; an edit or a reload of the directory ends it");
    }
    for warning in &first.loaded.warnings {
        tracing::warn!("{warning}");
    }
    Ok(first)
}

fn standing(board: &Arc<Board>, state: &Path, loaded: &Loaded, refused: Option<&str>) -> Arc<Standing> {
    let kept = history::kept(state).unwrap_or_else(|error| {
        tracing::warn!(error, "former policies cannot be read; there is none to go back to");
        Vec::new()
    });
    let kept = kept.into_iter().map(|kept| kept.since).collect();
    let standing = Standing::new(Arc::clone(board), kept);
    standing.accepted(&loaded.policy.digest, loaded.origin.clone(), Vec::new());
    if let Some(diagnostics) = refused {
        standing.refused(diagnostics);
    }
    Arc::new(standing)
}

fn identity(options: &Options) -> Result<Option<Identity>, StartError> {
    options.tls.as_ref().map(|(cert, key)| Identity::read(cert, key)).transpose().map_err(failed)
}

type Tls = (Option<Arc<Presented>>, Option<Arc<rustls::ServerConfig>>);

fn present(identity: Option<Identity>, metrics: &Metrics) -> Result<Tls, StartError> {
    let Some(identity) = identity else { return Ok((None, None)) };
    metrics.certificate(identity.not_after);
    let presented = Presented::new(identity);
    let config = presented.config().map_err(failed)?;
    Ok((Some(presented), Some(config)))
}

fn follow(
    sources: Vec<Source>,
    tasks: &mut Tasks,
    settle: Duration,
    (clock, metrics): (&Arc<dyn Clock>, &Metrics),
) {
    for source in sources {
        metrics.credential_read(source.credential(), true);
        let follow = Follow::new(source, settle, Arc::clone(clock), metrics.clone());
        tasks.vital("credentials", follow.run());
    }
}

/// What is followed in files: the certificate, where there is one, and the token.
fn credentials(options: &Options, presented: Option<Arc<Presented>>, board: &Arc<Board>) -> Vec<Source> {
    let token = options.token_file.clone().unwrap_or_else(|| options.state.join(TOKEN_FILE));
    let mut sources = vec![Source::Token { file: token, board: Arc::clone(board) }];
    if let (Some((chain, key)), Some(presented)) = (options.tls.clone(), presented) {
        sources.push(Source::Certificate { chain, key, presented });
    }
    sources
}

/// Where the loop begins.
struct Begin {
    state: State,
    /// The state is lost, or a part of it: how long to collect reports, if that is stated.
    collect: Option<Option<Duration>>,
    runs: RunsKept,
    good: Option<Loaded>,
}

/// How long to collect reports, and the loop that follows.
struct Prepared {
    collect: Duration,
    turns: Turns,
}

fn turns(
    from: Begin,
    disk: Disk,
    accepted: watch::Receiver<Arc<Loaded>>,
    clock: &Arc<dyn Clock>,
    (board, metrics, standing): (&Arc<Board>, &Metrics, &Arc<Standing>),
) -> Result<Prepared, String> {
    let in_force = Arc::clone(&accepted.borrow());
    let policy = Arc::clone(&in_force.policy);
    let sources = Sources::new(Arc::clone(clock), &policy)?;
    let collect = from.collect.map_or(Duration::ZERO, |stated| stated.unwrap_or(policy.interval));
    let turns = Turns {
        controller: Controller::new(policy, from.state.clone()),
        in_force,
        good: from.good.map(Arc::new),
        initial: from.state,
        standing: Arc::clone(standing),
        alarm: 0.0,
        clock: Arc::clone(clock),
        sources,
        board: Arc::clone(board),
        metrics: metrics.clone(),
        seen: Seen::default(),
        accepted,
        writer: Writer::start().map_err(|error| format!("no thread for the state directory: {error}"))?,
        store: Store::Idle(disk),
        runs: from.runs,
        policy_since: clock.now(),
        published: Published::default(),
    };
    Ok(Prepared { collect, turns })
}

/// Without state the nodes know how far versions had come: they are heard before the first tick.
async fn first_listen(prepared: Prepared, mut stopped: watch::Receiver<bool>) -> Result<(), String> {
    let mut watchdog = Watchdog::from_env();
    let collected = tokio::time::sleep(prepared.collect);
    tokio::pin!(collected);
    loop {
        tokio::select! {
            _ = stopped.wait_for(|stop| *stop) => break,
            () = &mut collected => break,
            () = watchdog.hungry() => watchdog.feed(),
        }
    }
    prepared.turns.run(stopped, watchdog).await
}

// === impl Running ===

impl Running {
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.addr)
    }

    /// Reads the policy directory now.
    ///
    /// # Errors
    /// Every diagnostic; the last good policy stays in force.
    pub async fn reload(&self) -> Reloaded {
        let stopped = || "the controller is stopping".to_owned();
        let (respond, response): (ReloadRequest, _) = oneshot::channel();
        self.board.reloads.send(respond).await.map_err(|_| stopped())?;
        response.await.map_err(|_| stopped())?
    }

    /// Resolves only when the loop, or a task that it needs, has ended by itself, which none ever
    /// should; says why. The process is of no use from here on.
    pub async fn ended(&mut self) -> String {
        tokio::select! {
            turns = &mut self.turns => match turns {
                Ok(Ok(())) => "the control loop has stopped".to_owned(),
                Ok(Err(reason)) => reason,
                Err(error) => format!("the control loop broke: {error}"),
            },
            reason = self.reloader.ended() => reason,
            () = self.server.ended() => "the listener has stopped".to_owned(),
        }
    }

    /// Finishes the turn, answers whoever waits and drains the rest, ten seconds at most.
    pub async fn shutdown(self) {
        self.stop.send_replace(true);
        drop(self.reloader);
        let turns = async {
            if !self.turns.is_finished() {
                let _ = self.turns.await;
            }
        };
        let drained = async { tokio::join!(turns, self.server.shutdown()) };
        let _ = tokio::time::timeout(crate::bounds::SERVER_DRAIN, drained).await;
    }
}
