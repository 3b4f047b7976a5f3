//! The controller's listener: connections are counted, timed and, at the end, drained.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::bounds::SERVER_CONNECTIONS_MAX;
use crate::bounds::SERVER_DRAIN;
use crate::bounds::SERVER_HANDSHAKES_MAX;
use crate::bounds::SERVER_HEADER_WAIT;
use crate::bounds::SERVER_READER_WAIT;
use crate::publish::board::Board;
use crate::publish::http::answer;
use crate::publish::patience::Patient;
use crate::publish::peer;
use crate::supervise::failpoint;

/// A running listener.
#[derive(Debug)]
pub struct Server {
    pub addr: SocketAddr,
    stop: oneshot::Sender<()>,
    accepting: tokio::task::JoinHandle<()>,
    board: Arc<Board>,
}

/// TLS, for a bounded number of newcomers at a time: thousands at once would all be late.
#[derive(Clone)]
struct Handshakes {
    tls: TlsAcceptor,
    turns: Arc<Semaphore>,
}

// === impl Server ===

impl Server {
    /// Serves `board` on a bound listener until [`Server::shutdown`].
    ///
    /// # Errors
    /// When the listener has no address.
    pub fn start(
        listener: TcpListener,
        tls: Option<Arc<ServerConfig>>,
        board: Arc<Board>,
    ) -> std::io::Result<Server> {
        Server::start_bounded(listener, tls, board, SERVER_CONNECTIONS_MAX)
    }

    /// With so many connections at a time.
    ///
    /// # Errors
    /// When the listener has no address.
    pub fn start_bounded(
        listener: TcpListener,
        tls: Option<Arc<ServerConfig>>,
        board: Arc<Board>,
        connections_max: usize,
    ) -> std::io::Result<Server> {
        let addr = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let tls = tls.map(Handshakes::new);
        let accepting = tokio::spawn(accept(listener, tls, Arc::clone(&board), stopped, connections_max));
        Ok(Server { addr, stop, accepting, board })
    }

    /// Resolves when it accepts no more although nobody stopped it.
    pub async fn ended(&mut self) {
        let _ = (&mut self.accepting).await;
    }

    /// Accepts nothing more, answers whoever waits, and gives the rest [`SERVER_DRAIN`] to finish.
    pub async fn shutdown(self) {
        self.board.close();
        let _ = self.stop.send(());
        if !self.accepting.is_finished() {
            let _ = self.accepting.await;
        }
    }
}

async fn accept(
    listener: TcpListener,
    tls: Option<Handshakes>,
    board: Arc<Board>,
    mut stopped: oneshot::Receiver<()>,
    connections_max: usize,
) {
    let graceful = GracefulShutdown::new();
    let slots = Arc::new(Semaphore::new(connections_max));
    loop {
        failpoint("accept", "control");
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await.ok()?;
            Some((slot, listener.accept().await))
        };
        tokio::select! {
            _ = &mut stopped => break,
            next = next => match next {
                Some((slot, Ok((stream, _)))) => {
                    let (tls, board, watcher) = (tls.clone(), Arc::clone(&board), graceful.watcher());
                    tokio::spawn(connection(stream, tls, board, watcher, slot));
                }
                // Out of descriptors: those in use come back; the listener stays.
                Some((_, Err(error))) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                None => break,
            },
        }
    }
    drop(listener);
    let _ = tokio::time::timeout(SERVER_DRAIN, graceful.shutdown()).await;
}

async fn connection(
    stream: TcpStream,
    tls: Option<Handshakes>,
    board: Arc<Board>,
    watcher: Watcher,
    slot: OwnedSemaphorePermit,
) {
    peer::bound(&stream);
    let stream = Patient::new(stream, SERVER_READER_WAIT);
    match tls {
        None => serve(stream, board, watcher).await,
        Some(tls) => {
            if let Ok(Some(stream)) = tokio::time::timeout(SERVER_HEADER_WAIT, tls.accept(stream)).await {
                serve(stream, board, watcher).await;
            }
        }
    }
    drop(slot);
}

async fn serve<S>(stream: S, board: Arc<Board>, watcher: Watcher)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let service = service_fn(move |request| {
        let board = Arc::clone(&board);
        async move { Ok::<_, Infallible>(answer(board, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(SERVER_HEADER_WAIT)
        .max_buf_size(16 << 10)
        .max_headers(64)
        .serve_connection(TokioIo::new(stream), service);
    // A client that breaks off is its own affair.
    let _ = watcher.watch(connection).await;
}

// === impl Handshakes ===

impl Handshakes {
    fn new(config: Arc<ServerConfig>) -> Handshakes {
        Handshakes { tls: config.into(), turns: Arc::new(Semaphore::new(SERVER_HANDSHAKES_MAX)) }
    }

    async fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> Option<TlsStream<S>> {
        let _turn = self.turns.acquire().await.ok()?;
        self.tls.accept(stream).await.ok()
    }
}
