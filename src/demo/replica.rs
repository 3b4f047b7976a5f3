//! The HTTP shell of one replica: an OpenAI-compatible server that can die and come back.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::body::{Body as HttpBody, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::{JoinHandle, JoinSet};

use super::dialect::Dialect;
use super::engine::{Engine, Sequence, Shared};
use super::page::MODEL;
use super::prompt::{Body, Size};
use super::wire::Breakable;
use crate::sim::batch::Shape;

const BODY_BYTES_MAX: usize = 1 << 20;
const CONNECTIONS_MAX: usize = 16_384;
/// On answers that are not streamed: when the first token was there, seconds after arrival.
pub const FIRST_TOKEN_HEADER: &str = "x-first-token-seconds";

/// A replica's place in the network, and its process while there is one.
#[derive(Debug)]
pub struct Replica {
    addr: SocketAddr,
    /// Bound and never listening: keeps the port while the replica is dead, and refuses.
    _place: TcpSocket,
    shape: Shape,
    dialect: Dialect,
    shared: Arc<Shared>,
    life: Option<Life>,
}

#[derive(Debug)]
struct Life {
    killed: Arc<AtomicBool>,
    server: JoinHandle<()>,
    engine: JoinHandle<()>,
}

type Reply = Response<Either<Full<Bytes>, Stream>>;

/// One SSE event a token.
struct Stream {
    sequence: Sequence,
    left: u32,
    event: Bytes,
    tail: Bytes,
}

// === impl Replica ===

impl Replica {
    /// Takes a port and starts.
    ///
    /// # Errors
    /// When loopback has no port to give.
    pub fn start(shape: Shape, dialect: Dialect, shared: Arc<Shared>) -> io::Result<Replica> {
        let place = socket(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let addr = place.local_addr()?;
        let mut replica = Replica { addr, _place: place, shape, dialect, shared, life: None };
        replica.revive()?;
        Ok(replica)
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub fn alive(&self) -> bool {
        self.life.is_some()
    }

    /// As a power cut: the port refuses, every connection is reset, every sequence is lost.
    pub fn kill(&mut self) {
        if let Some(life) = self.life.take() {
            life.killed.store(true, Ordering::Relaxed);
            life.server.abort();
            life.engine.abort();
        }
    }

    /// A new process at the old address; its counters begin at zero.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub fn revive(&mut self) -> io::Result<()> {
        if self.life.is_some() {
            return Ok(());
        }
        let listener = socket(self.addr)?.listen(1024)?;
        let engine =
            Engine::new(self.shape, self.dialect, Arc::clone(&self.shared)).map_err(io::Error::other)?;
        let engine = Arc::new(engine);
        let killed = Arc::new(AtomicBool::new(false));
        self.life = Some(Life {
            killed: Arc::clone(&killed),
            server: tokio::spawn(serve(listener, Arc::clone(&engine), killed)),
            engine: tokio::spawn(engine.run()),
        });
        Ok(())
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Sockets that do not listen may share a port under SO_REUSEADDR, one more may listen on it.
fn socket(addr: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    Ok(socket)
}

async fn serve(listener: TcpListener, engine: Arc<Engine>, killed: Arc<AtomicBool>) {
    // Dropped with this task, and all connections with it.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) if connections.len() < CONNECTIONS_MAX => stream,
            Ok(_) => continue,
            Err(_) => {
                // Out of descriptors, usually: the next accept would fail at once.
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let io = TokioIo::new(Breakable::new(stream, Arc::clone(&killed)));
        let engine = Arc::clone(&engine);
        let service = service_fn(move |request| {
            let engine = Arc::clone(&engine);
            async move { Ok::<_, Infallible>(answer(request, engine).await) }
        });
        connections.spawn(async move {
            // A client that breaks off is its own affair.
            let _ = http1::Builder::new().timer(TokioTimer::new()).serve_connection(io, service).await;
        });
    }
}

async fn answer(request: Request<Incoming>, engine: Arc<Engine>) -> Reply {
    let path = request.uri().path();
    let chat = path == "/v1/chat/completions";
    match (request.method(), path) {
        (&Method::GET, "/metrics") => match engine.metrics() {
            Ok(text) => reply(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text),
            Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        },
        (&Method::GET, "/health") => reply(StatusCode::OK, "text/plain", Vec::new()),
        (&Method::GET, "/v1/models") => {
            json_reply(&json!({"object": "list", "data": [{"id": MODEL, "object": "model"}]}))
        }
        (&Method::POST, "/v1/chat/completions" | "/v1/completions") => complete(request, engine, chat).await,
        _ => problem(StatusCode::NOT_FOUND, "no such path"),
    }
}

async fn complete(request: Request<Incoming>, engine: Arc<Engine>, chat: bool) -> Reply {
    let bytes = match Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return problem(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let body: Body = match serde_json::from_slice(&bytes) {
        Ok(body) => body,
        Err(error) => return problem(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let size = body.size();
    let Ok(sequence) = engine.submit(size) else {
        return problem(StatusCode::SERVICE_UNAVAILABLE, "the queue is full");
    };
    if body.stream {
        return stream(sequence, size, chat);
    }
    whole(sequence, size, chat).await
}

async fn whole(mut sequence: Sequence, size: Size, chat: bool) -> Reply {
    let first = sequence.tokens.recv().await;
    let mut count = u32::from(first.is_some());
    while sequence.tokens.recv().await.is_some() {
        count += 1;
    }
    let Some(first) = first.filter(|_| count == size.output) else {
        return problem(StatusCode::INTERNAL_SERVER_ERROR, "the replica is going down");
    };
    let text = "tide ".repeat(count as usize);
    let choice = if chat {
        json!({"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}})
    } else {
        json!({"index": 0, "finish_reason": "stop", "text": text})
    };
    let object = if chat { "chat.completion" } else { "text_completion" };
    let mut reply = json_reply(&json!({
        "id": "demo", "object": object, "created": 0, "model": MODEL,
        "choices": [choice], "usage": usage(size),
    }));
    let seconds = format!("{:.6}", first.seconds_since(sequence.arrived));
    if let Ok(seconds) = HeaderValue::from_str(&seconds) {
        reply.headers_mut().insert(FIRST_TOKEN_HEADER, seconds);
    }
    reply
}

fn stream(sequence: Sequence, size: Size, chat: bool) -> Reply {
    let object = if chat { "chat.completion.chunk" } else { "text_completion" };
    let event = |choices: serde_json::Value, usage: serde_json::Value| {
        let chunk = json!({
            "id": "demo", "object": object, "created": 0, "model": MODEL,
            "choices": choices, "usage": usage,
        });
        format!("data: {chunk}\n\n")
    };
    let choice = |finish: Option<&str>| {
        if chat {
            let delta = json!({"role": "assistant", "content": "tide "});
            json!([{"index": 0, "finish_reason": finish, "delta": delta}])
        } else {
            json!([{"index": 0, "finish_reason": finish, "text": "tide "}])
        }
    };
    let nothing = serde_json::Value::Null;
    let tail = event(choice(Some("stop")), nothing.clone()) + &event(json!([]), usage(size));
    let body = Stream {
        sequence,
        left: size.output,
        event: Bytes::from(event(choice(None), nothing)),
        tail: Bytes::from(tail + "data: [DONE]\n\n"),
    };
    let mut reply = Response::new(Either::Right(body));
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    reply
}

fn usage(size: Size) -> serde_json::Value {
    json!({
        "prompt_tokens": size.prompt,
        "completion_tokens": size.output,
        "total_tokens": u64::from(size.prompt) + u64::from(size.output),
    })
}

fn problem(status: StatusCode, message: &str) -> Reply {
    let body = json!({"error": {"message": message, "type": "server_error", "code": status.as_u16()}});
    reply(status, "application/json", body.to_string().into_bytes())
}

fn json_reply(body: &serde_json::Value) -> Reply {
    reply(StatusCode::OK, "application/json", body.to_string().into_bytes())
}

fn reply(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Reply {
    let mut reply = Response::new(Either::Left(Full::new(Bytes::from(body))));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}

// === impl Stream ===

impl HttpBody for Stream {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        match self.sequence.tokens.poll_recv(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => Poll::Ready(Some(Err(io::Error::other("the replica is going down")))),
            Poll::Ready(Some(_)) => {
                self.left -= 1;
                let event = if self.left == 0 { &self.tail } else { &self.event };
                Poll::Ready(Some(Ok(Frame::data(event.clone()))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }
}
