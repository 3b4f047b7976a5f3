//! Many watchers on one controller: all have each table, also after it was lost; whoever reads
//! nothing, or is gone without a word, costs the others nothing. `cargo bench --bench watchers` is
//! the long form with figures.

use std::hash::{BuildHasher, Hasher};
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidegate::bounds::FOLLOW_RECONNECT_MAX;
use tidegate::publish::board::{Announced, Board};
use tidegate::publish::server::Server;
use tidegate::publish::tls::{Identity, Presented};
use tidegate::publish::token::Token;
use tidegate::wire::Stamp;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// Watchers of the short form.
const WATCHERS: usize = 300;
/// The promise is 5 s on a machine of its own; this one builds and tests beside.
const ALLOWED: Duration = Duration::from_secs(30);

struct Stand {
    server: Server,
    board: Arc<Board>,
    /// Kept: a board whose reloads nobody takes is another one.
    _reloads: mpsc::Receiver<tidegate::publish::board::ReloadRequest>,
}

async fn stand(addr: SocketAddr) -> Stand {
    let (sender, reloads) = mpsc::channel(1);
    let token = Token::new("0123456789abcdef").unwrap();
    let board = Arc::new(Board::new(token, false, sender, Box::new(Bytes::new)));
    let listener = TcpListener::bind(addr).await.unwrap();
    let server = Server::start(listener, None, Arc::clone(&board)).unwrap();
    Stand { server, board, _reloads: reloads }
}

fn any() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// Bytes of a table.
const BYTES: usize = 64_000;

/// A table that begins with the tick.
fn announce(board: &Board, tick: u64) {
    let table = Bytes::from(format!("{tick:<BYTES$}"));
    let stamp = Stamp { epoch: 1, version: 1, tick };
    board.announce(Announced { stamp, table, status: Bytes::new() });
}

/// One answer: its status and body.
async fn ask(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    held: u64,
    wait: &str,
) -> std::io::Result<(u16, Vec<u8>)> {
    let head =
        format!("GET /v1/table?wait={wait} HTTP/1.1\r\nhost: x\r\nif-none-match: \"1.1.{held}\"\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    };
    let text = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    let length = text.split("\r\n").find_map(|line| line.strip_prefix("content-length: "));
    let length = if status == 304 { 0 } else { length.unwrap().parse::<usize>().unwrap() };
    while bytes.len() < end + length {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok((status, bytes.split_off(end)))
}

/// As a node: the next table and the next, on a new connection once the old one is lost.
async fn watch(addr: SocketAddr, arrived: mpsc::UnboundedSender<u64>) {
    let mut held = 0;
    loop {
        if let Ok(mut stream) = TcpStream::connect(addr).await {
            while let Ok((status, body)) = ask(&mut stream, held, "10s").await {
                if status == 200 {
                    held = std::str::from_utf8(&body).unwrap().trim().parse().unwrap();
                    assert_eq!(body.len(), BYTES);
                    arrived.send(held).unwrap();
                }
            }
        }
        let random = std::hash::RandomState::new().build_hasher().finish();
        tokio::time::sleep(FOLLOW_RECONNECT_MAX.mul_f64(f64::from(random as u32) / f64::from(u32::MAX)))
            .await;
    }
}

async fn all_have(arrived: &mut mpsc::UnboundedReceiver<u64>, tick: u64) {
    let begun = Instant::now();
    let all = async {
        let mut have = 0;
        while have < WATCHERS {
            have += usize::from(arrived.recv().await.unwrap() == tick);
        }
    };
    tokio::time::timeout(ALLOWED, all).await.unwrap_or_else(|_| panic!("not everyone has table {tick}"));
    println!("{WATCHERS} watchers have table {tick} after {:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f04_hundreds_of_watchers_have_each_table_and_are_all_back_after_a_loss() {
    let Stand { server, board, _reloads } = stand(any()).await;
    let addr = server.addr;
    announce(&board, 1);
    let (sender, mut arrived) = mpsc::unbounded_channel();
    let mut watchers = tokio::task::JoinSet::new();
    for _ in 0..WATCHERS {
        watchers.spawn(watch(addr, sender.clone()));
    }
    all_have(&mut arrived, 1).await;
    announce(&board, 2);
    all_have(&mut arrived, 2).await;
    // Whoever comes back with the table in force is not sent it again.
    let mut stream = TcpStream::connect(addr).await.unwrap();
    assert_eq!(ask(&mut stream, 2, "10ms").await.unwrap(), (304, Vec::new()));
    drop(stream);
    // Everyone loses the controller in the same moment, and its successor has news.
    server.shutdown().await;
    let next = stand(addr).await;
    announce(&next.board, 3);
    all_have(&mut arrived, 3).await;
    assert!(watchers.try_join_next().is_none(), "a watcher ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f04_a_crowd_of_handshakes_takes_turns_and_everyone_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let (sender, _reloads) = mpsc::channel(1);
    let token = Token::new("0123456789abcdef").unwrap();
    let board = Arc::new(Board::new(token, false, sender, Box::new(Bytes::new)));
    let listener = TcpListener::bind(any()).await.unwrap();
    let tls = Presented::new(Identity::read(&cert, &key).unwrap()).config().unwrap();
    let server = Server::start(listener, Some(tls), Arc::clone(&board)).unwrap();
    announce(&board, 1);
    // Some begin a handshake and never go on: they hold no turn for longer than one may take.
    let mut mute = Vec::new();
    for _ in 0..20 {
        mute.push(TcpStream::connect(server.addr).await.unwrap());
    }
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut crowd = tokio::task::JoinSet::new();
    for _ in 0..WATCHERS {
        let (connector, addr) = (connector.clone(), server.addr);
        crowd.spawn(async move {
            let stream = TcpStream::connect(addr).await.unwrap();
            let mut stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
            ask(&mut stream, 0, "1s").await.unwrap().0
        });
    }
    let served = tokio::time::timeout(ALLOWED, crowd.join_all()).await.expect("everyone in time");
    assert_eq!(served, [200; WATCHERS]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f05_a_watcher_that_never_reads_is_dropped_and_the_others_have_their_tables() {
    let stand = stand(any()).await;
    let addr = stand.server.addr;
    announce(&stand.board, 1);
    let mut deaf = TcpStream::connect(addr).await.unwrap();
    let question = "GET /v1/table HTTP/1.1\r\nhost: x\r\n\r\n".repeat(1_000);
    deaf.write_all(question.as_bytes()).await.unwrap();
    // Meanwhile the others are served.
    let mut other = TcpStream::connect(addr).await.unwrap();
    for tick in 2..10 {
        announce(&stand.board, tick);
        let (status, body) =
            tokio::time::timeout(ALLOWED, ask(&mut other, tick - 1, "10s")).await.unwrap().unwrap();
        assert_eq!(status, 200);
        assert!(body.starts_with(format!("{tick} ").as_bytes()));
    }
    let dropped = async {
        while deaf.try_write(b"G").is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(ALLOWED, dropped).await.expect("dropped after 10 s");
}

/// The part below runs in a network of its own, where the machine may be taken off it.
#[test]
fn f09_a_watcher_whose_machine_vanished_is_noticed_by_the_controller() {
    let mut inside = Command::new("unshare");
    inside.env(OUTSIDE, network()).args(["--map-root-user", "--net"]).arg(std::env::current_exe().unwrap());
    inside.args(["--exact", "watchers::inside_a_network_that_goes_silent", "--ignored", "--nocapture"]);
    let output = match inside.output() {
        Ok(output) if !String::from_utf8_lossy(&output.stderr).contains("unshare failed") => output,
        refused => return println!("skipped: this machine allows no network of one's own: {refused:?}"),
    };
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("noticed after"), "{said}");
}

/// Names the network to be left alone.
const OUTSIDE: &str = "TIDEGATE_TEST_NETWORK_OUTSIDE";

fn network() -> String {
    std::fs::read_link("/proc/self/ns/net").unwrap().to_string_lossy().into_owned()
}

#[tokio::test]
#[ignore = "run by the test above, in its network"]
async fn inside_a_network_that_goes_silent() {
    if std::env::var(OUTSIDE).is_ok_and(|outside| outside != network()) {
        go_silent().await;
    }
}

async fn go_silent() {
    let lo = |state: &str| {
        let status = Command::new("ip").args(["link", "set", "lo", state]).status();
        assert!(status.unwrap().success(), "lo {state}");
    };
    lo("up");
    let stand = stand(any()).await;
    announce(&stand.board, 1);
    let alone = Arc::strong_count(&stand.board);
    let mut watcher = TcpStream::connect(stand.server.addr).await.unwrap();
    watcher
        .write_all(b"GET /v1/table?wait=60s HTTP/1.1\r\nhost: x\r\nif-none-match: \"1.1.1\"\r\n\r\n")
        .await
        .unwrap();
    crate::support::until("a watcher", async || (Arc::strong_count(&stand.board) > alone).then_some(()))
        .await;
    lo("down");
    let begun = Instant::now();
    let gone = async {
        while Arc::strong_count(&stand.board) > alone {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(ALLOWED, gone).await.expect("noticed");
    println!("noticed after {:?}", begun.elapsed());
}
