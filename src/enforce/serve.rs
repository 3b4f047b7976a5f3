//! The HTTP/1.1 server under the proxy and the admin listener: bounded, timed, drained.

use std::convert::Infallible;
use std::future::Future;
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

use crate::enforce::patient::Patient;
use crate::enforce::stream::Body;

const HEADERS_MAX: usize = 64;
const HEAD_BYTES_MAX: usize = 64 << 10;
/// How long requests may take to end once the server stops.
pub const DRAIN: Duration = Duration::from_secs(10);

/// What one listener holds and waits for.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub connections: usize,
    /// A request's head is complete after this, or the connection ends.
    pub header: Duration,
}

/// Serves until `stop` is true, then drains. Dropping the future cuts every connection.
pub async fn serve<H, F>(listener: TcpListener, bounds: Bounds, mut stop: watch::Receiver<bool>, handle: H)
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(bounds.connections));
    let graceful = GracefulShutdown::new();
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => break,
            accepted = accept(&listener, &room) => accepted,
            Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
        };
        // Under a flood of connections there is always one more to accept.
        while tasks.try_join_next().is_some() {}
        let Some((socket, permit)) = accepted else { continue };
        let handle = handle.clone();
        let service = service_fn(move |request| {
            let answer = handle(request);
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let connection = http(bounds.header).serve_connection(TokioIo::new(Patient::new(socket)), service);
        let connection = graceful.watch(connection);
        tasks.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection ended");
            }
            drop(permit);
        });
    }
    drop(listener);
    if tokio::time::timeout(DRAIN, graceful.shutdown()).await.is_err() {
        tracing::warn!(open = tasks.len(), "connections cut after {} s of draining", DRAIN.as_secs());
    }
}

/// How every connection is read, wherever it comes from.
pub fn http(header: Duration) -> http1::Builder {
    let mut http = http1::Builder::new();
    // Without the timer hyper silently has no header timeout.
    http.timer(TokioTimer::new())
        .header_read_timeout(header)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX);
    http
}

async fn accept(listener: &TcpListener, room: &Arc<Semaphore>) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let permit = Arc::clone(room).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((socket, _)) => {
            let _ = socket.set_nodelay(true);
            Some((socket, permit))
        }
        Err(error) => {
            // Out of descriptors, most likely: pause instead of spinning.
            tracing::warn!(%error, "cannot accept a connection");
            tokio::time::sleep(Duration::from_millis(50)).await;
            None
        }
    }
}
