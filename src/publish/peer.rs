//! The other end of a connection, as the operating system watches it: how much it may leave unread,
//! and how it is noticed that nobody is there any more.
//!
//! A watcher waits for minutes without a byte in either direction. Without this a machine that lost
//! its power would hold its connection for ever, and a reader that stopped up to 4 MiB of memory.

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use crate::bounds::PEER_IDLE_MAX;
use crate::bounds::PEER_PROBE_WAIT;
use crate::bounds::PEER_PROBES_MAX;
use crate::bounds::SERVER_READER_WAIT;
use crate::bounds::SERVER_UNSENT_BYTES_MAX;

/// Bounds what an accepted connection may cost. An option that the system does not know costs only
/// its bound.
pub fn bound(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let _ = socket.set_tcp_nodelay(true);
    // Linux counts its own overhead in and doubles what is asked for.
    let _ = socket.set_send_buffer_size((SERVER_UNSENT_BYTES_MAX / 2) as usize);
    let asked = TcpKeepalive::new().with_time(PEER_IDLE_MAX).with_interval(PEER_PROBE_WAIT);
    let _ = socket.set_tcp_keepalive(&asked.with_retries(PEER_PROBES_MAX));
    // Also for what is unsent when the connection is closed: it goes, and its memory with it.
    #[cfg(target_os = "linux")]
    let _ = socket.set_tcp_user_timeout(Some(SERVER_READER_WAIT));
}
