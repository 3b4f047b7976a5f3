//! The HTTP/1.1 server under the proxy and the admin listener: bounded, timed, drained.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use crate::bounds::ACCEPT_PAUSE_MAX;
use crate::bounds::ACCEPT_PAUSE_MIN;
use crate::bounds::HEAD_BYTES_MAX;
use crate::bounds::HEADERS_MAX;
use crate::bounds::NODE_DRAIN;
use crate::enforce::config::Caps;
use crate::enforce::patient::{Patience, Patient};
use crate::enforce::stream::Body;
use crate::supervise::{Beat, failpoint};

/// What one listener holds and waits for.
#[derive(Clone, Debug)]
pub struct Bounds {
    pub connections: usize,
    /// Between requests.
    pub idle: Duration,
    pub patience: Patience,
    /// Shows that the listener's loop turns.
    pub beat: Beat,
}

// === impl Bounds ===

impl Bounds {
    pub fn new(caps: &Caps, connections: usize) -> Bounds {
        let seconds = |count: u64| Duration::from_secs(count.max(1));
        Bounds {
            connections,
            idle: seconds(caps.keep_alive_seconds),
            patience: Patience { head: seconds(caps.header_seconds), write: seconds(caps.write_seconds) },
            beat: Beat::default(),
        }
    }
}

/// Where a request's connection comes from, among its extensions.
#[derive(Clone, Copy, Debug)]
pub struct Source(pub IpAddr);

/// Serves until `stop` is true, then drains. Dropping the future cuts every connection.
pub async fn serve<H, F>(listener: TcpListener, bounds: Bounds, mut stop: watch::Receiver<bool>, handle: H)
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(bounds.connections));
    let graceful = GracefulShutdown::new();
    let mut tasks = JoinSet::new();
    let mut failed = 0_u32;
    loop {
        bounds.beat.turned();
        failpoint("accept", "node");
        let accepted = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            accepted = accept(&listener, &room) => accepted,
            () = bounds.beat.due() => continue,
            Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
        };
        // Under a flood of connections there is always one more to accept.
        while tasks.try_join_next().is_some() {}
        let (socket, source, permit) = match accepted {
            Ok(accepted) => accepted,
            // Out of descriptors, most likely: those who are in live on, and the rest wait their turn.
            Err(error) => {
                if failed == 0 {
                    tracing::warn!(%error, "cannot accept connections; trying again");
                }
                failed = failed.saturating_add(1);
                tokio::time::sleep((ACCEPT_PAUSE_MIN * failed).min(ACCEPT_PAUSE_MAX)).await;
                continue;
            }
        };
        if failed > 0 {
            tracing::info!(failed, "connections are accepted again");
            failed = 0;
        }
        let handle = handle.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(Source(source));
            let answer = handle(request);
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let socket = TokioIo::new(Patient::new(socket, bounds.patience));
        let connection = http(bounds.idle).serve_connection(socket, service);
        let connection = graceful.watch(connection);
        tasks.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection ended");
            }
            drop(permit);
        });
    }
    drop(listener);
    if tokio::time::timeout(NODE_DRAIN, graceful.shutdown()).await.is_err() {
        tracing::warn!(open = tasks.len(), "connections cut after {} s of draining", NODE_DRAIN.as_secs());
    }
}

/// How every connection is read, wherever it comes from.
pub fn http(idle: Duration) -> http1::Builder {
    let mut http = http1::Builder::new();
    // Without the timer hyper silently has no such timeout. It runs from the end of an answer to
    // the end of the next head; the head's own, shorter time is the socket's business.
    http.timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX);
    http
}

async fn accept(
    listener: &TcpListener,
    room: &Arc<Semaphore>,
) -> io::Result<(TcpStream, IpAddr, OwnedSemaphorePermit)> {
    let permit = Arc::clone(room).acquire_owned().await.map_err(io::Error::other)?;
    let (socket, from) = listener.accept().await?;
    let _ = socket.set_nodelay(true);
    Ok((socket, from.ip(), permit))
}
