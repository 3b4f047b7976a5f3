//! A client's socket, bounded in time and read strictly.
//!
//! Three things a client may not do: begin a head and not end it, stop reading (nobody asks for the
//! next piece of a body that cannot be written, so its request would be held forever), and send
//! what two readers could take for different requests, see [`Framing`].

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::bounds::WRITE_PROGRESS_MIN;
use crate::enforce::framing::Framing;

/// What the HTTP library is given in place of a byte that is refused: bad wherever it stands, and
/// the end of a head, since a head is looked at when it is whole.
const BAD: &[u8] = b"\0\r\n\r\n";

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// From a head's first byte, or the connection's begin, to the head's end.
    pub head: Duration,
    /// To take [`WRITE_PROGRESS_MIN`] bytes.
    pub write: Duration,
}

pub struct Patient<S> {
    socket: S,
    patience: Patience,
    framing: Framing,
    /// What is left to be given of [`BAD`]; nothing is read any more.
    refused: Option<&'static [u8]>,
    head_until: Option<Instant>,
    head_timer: Option<Pin<Box<Sleep>>>,
    /// Set while a write waits.
    write_timer: Option<Pin<Box<Sleep>>>,
    /// Written since the timer was set.
    progress: usize,
}

// === impl Patient ===

impl<S> Patient<S> {
    pub fn new(socket: S, patience: Patience) -> Patient<S> {
        Patient {
            socket,
            patience,
            framing: Framing::default(),
            refused: None,
            head_until: Some(Instant::now() + patience.head),
            head_timer: None,
            write_timer: None,
            progress: 0,
        }
    }

    /// Looks at what was read into the buffer after its first `before` bytes.
    fn inspect(&mut self, buffer: &mut ReadBuf<'_>, before: usize) {
        let fresh = buffer.filled().get(before..).unwrap_or_default();
        let begun = !fresh.is_empty() && self.head_until.is_none();
        if let Err(good) = self.framing.check(fresh) {
            buffer.set_filled(before + good);
            self.refused = Some(BAD);
            self.head_until = None;
            self.refuse(buffer);
        } else if !self.framing.in_head() {
            // The first head of a connection counts from the connection's begin.
            if !fresh.is_empty() {
                self.head_until = None;
            }
        } else if begun {
            self.head_until = Some(Instant::now() + self.patience.head);
        }
    }

    fn refuse(&mut self, buffer: &mut ReadBuf<'_>) {
        let left = self.refused.unwrap_or_default();
        let (now, later) = left.split_at(left.len().min(buffer.remaining()));
        buffer.put_slice(now);
        self.refused = Some(later);
    }

    fn head_is_late(&mut self, context: &mut Context<'_>) -> bool {
        let Some(until) = self.head_until else { return false };
        let timer = self.head_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        if timer.deadline() != until {
            timer.as_mut().reset(until);
        }
        timer.as_mut().poll(context).is_ready()
    }

    fn wrote(
        &mut self,
        context: &mut Context<'_>,
        polled: Poll<io::Result<usize>>,
        wanted: usize,
    ) -> Poll<io::Result<usize>> {
        match &polled {
            Poll::Ready(Ok(bytes)) => {
                self.progress += bytes;
                if *bytes == wanted || self.progress >= WRITE_PROGRESS_MIN {
                    self.write_timer = None;
                }
                polled
            }
            Poll::Ready(Err(_)) => polled,
            Poll::Pending => {
                let wait = self.patience.write;
                let timer = self.write_timer.get_or_insert_with(|| {
                    self.progress = 0;
                    Box::pin(tokio::time::sleep(wait))
                });
                timer.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.refused.is_some() {
            self.refuse(buffer);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        match Pin::new(&mut self.socket).poll_read(context, buffer) {
            Poll::Ready(Ok(())) => {
                self.inspect(buffer, before);
                Poll::Ready(Ok(()))
            }
            Poll::Pending if self.head_is_late(context) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            other => other,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.socket).poll_write(context, bytes);
        self.wrote(context, polled, bytes.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.socket).poll_write_vectored(context, bytes);
        self.wrote(context, polled, bytes.iter().map(|bytes| bytes.len()).sum())
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    async fn pair(patience: Patience) -> (TcpStream, Patient<TcpStream>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, Patient::new(listener.accept().await.unwrap().0, patience))
    }

    #[tokio::test]
    async fn h10_a_client_that_never_reads_is_let_go() {
        let (_deaf, mut socket) = pair(Patience { head: LONG, write: Duration::from_millis(50) }).await;
        let endless = async { while socket.write_all(&[0; 65_536]).await.is_ok() {} };
        tokio::time::timeout(LONG, endless).await.expect("the write must fail");
    }

    #[tokio::test]
    async fn h10_a_client_that_reads_a_little_now_and_then_is_let_go_and_a_steady_one_is_not() {
        for (piece, pause, lives) in [(64, 20, false), (256 << 10, 1, true)] {
            let (mut client, mut socket) = pair(Patience { head: LONG, write: Duration::from_secs(1) }).await;
            let reader = tokio::spawn(async move {
                let mut buffer = vec![0; piece];
                while client.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                }
            });
            let write = async {
                for _ in 0..512 {
                    socket.write_all(&[0; 65_536]).await?;
                }
                io::Result::Ok(())
            };
            let written = tokio::time::timeout(Duration::from_secs(60), write).await.expect("an end");
            assert_eq!(written.is_ok(), lives, "{piece} bytes every {pause} ms");
            reader.abort();
        }
    }

    #[tokio::test]
    async fn i05_what_is_refused_reads_as_bad_and_nothing_after_it_is_read() {
        let (mut client, mut socket) = pair(Patience { head: LONG, write: LONG }).await;
        client.write_all(b"GET / HTTP/1.1\nGET /smuggled HTTP/1.1\r\n\r\n").await.unwrap();
        let mut text = Vec::new();
        tokio::time::timeout(LONG, socket.read_to_end(&mut text)).await.unwrap().unwrap();
        assert_eq!(text, b"GET / HTTP/1.1\0\r\n\r\n");
    }

    #[tokio::test]
    async fn h10_half_a_head_ends_the_connection_and_waiting_between_requests_does_not() {
        let (mut client, mut socket) = pair(Patience { head: Duration::from_millis(100), write: LONG }).await;
        let mut buffer = [0; 64];
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert!(socket.read(&mut buffer).await.unwrap() > 0);
        let idle = tokio::time::timeout(Duration::from_millis(300), socket.read(&mut buffer)).await;
        assert!(idle.is_err(), "an idle connection is not the head's business");
        client.write_all(b"GET / HT").await.unwrap();
        assert!(socket.read(&mut buffer).await.unwrap() > 0);
        let error = tokio::time::timeout(LONG, socket.read(&mut buffer)).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
