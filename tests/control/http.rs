//! The controller's endpoints over real sockets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::{LONG, call, call_on, get};
use bytes::Bytes;
use tidegate::publish::board::{Announced, Board, ReloadRequest};
use tidegate::publish::server::Server;
use tidegate::publish::tls::{Identity, Presented};
use tidegate::publish::token::Token;
use tidegate::wire::Stamp;
use tokio::sync::mpsc;

const TOKEN: &str = "canary-89abcdef0123456789abcdef";

struct Stand {
    server: Server,
    board: Arc<Board>,
    reloads: mpsc::Receiver<ReloadRequest>,
}

async fn stand(reads_need_token: bool) -> Stand {
    let (sender, reloads) = mpsc::channel(1);
    let page = Box::new(|| Bytes::from_static(b"up 1\n"));
    let board = Arc::new(Board::new(Token::new(TOKEN).unwrap(), reads_need_token, sender, page));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Server::start(listener, None, Arc::clone(&board)).unwrap();
    Stand { server, board, reloads }
}

fn announce(board: &Board, version: u64, tick: u64) {
    let stamp = Stamp { epoch: 1, version, tick };
    let table = Bytes::from(format!("{{\"version\":{version},\"tick\":{tick}}}"));
    board.announce(Announced { stamp, table, status: Bytes::from("{\"reason\":\"why\"}") });
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

#[tokio::test]
async fn a_table_has_a_tag_and_is_not_sent_twice() {
    let stand = stand(false).await;
    let addr = stand.server.addr;
    let early = get(addr, "/v1/table").await;
    assert_eq!((early.status, early.headers["retry-after"].as_str()), (503, "1"));
    assert_eq!(early.json()["error"]["reason"], "no table has been published yet");
    assert_eq!((get(addr, "/-/ready").await.status, get(addr, "/-/healthy").await.status), (503, 200));
    assert_eq!(get(addr, "/v1/status").await.status, 503);

    announce(&stand.board, 4, 9);
    let table = get(addr, "/v1/table").await;
    assert_eq!((table.status, table.etag().as_str()), (200, "\"1.4.9\""));
    assert_eq!(table.json()["version"], 4);
    for held in ["\"1.4.9\"", "W/\"1.4.9\"", "\"other\", \"1.4.9\"", "*"] {
        let same = call(addr, "GET /v1/table", &[("if-none-match", held)], b"").await;
        assert_eq!((same.status, same.body.len(), same.etag().as_str()), (304, 0, "\"1.4.9\""), "{held}");
    }
    let other = call(addr, "GET /v1/table", &[("if-none-match", "\"1.4.8\"")], b"").await;
    assert_eq!(other.status, 200);
    let head = call(addr, "HEAD /v1/table", &[], b"").await;
    assert_eq!((head.status, head.body.len(), head.etag().as_str()), (200, 0, "\"1.4.9\""));
    assert_eq!(get(addr, "/-/ready").await.status, 200);
    assert_eq!(get(addr, "/v1/status").await.json()["reason"], "why");
    assert_eq!(get(addr, "/metrics").await.text(), "up 1\n");
    stand.server.shutdown().await;
}

#[tokio::test]
async fn a_long_poll_ends_with_a_newer_table_and_only_then() {
    let stand = stand(false).await;
    let addr = stand.server.addr;
    announce(&stand.board, 4, 9);
    let held = [("if-none-match", "\"1.4.9\"")];
    let waiting: Vec<_> = (0..20)
        .map(|_| tokio::spawn(async move { call(addr, "GET /v1/table?wait=30s", &held, b"").await }))
        .collect();
    let begun = Instant::now();
    let unchanged = call(addr, "GET /v1/table?wait=300ms", &held, b"").await;
    assert_eq!(unchanged.status, 304);
    assert!(begun.elapsed() >= Duration::from_millis(300));
    assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
    // An older stamp ends no wait: whoever holds a later table must not spin.
    announce(&stand.board, 3, 10);
    let begun = Instant::now();
    let older = call(addr, "GET /v1/table?wait=200ms", &held, b"").await;
    assert_eq!(older.status, 200);
    assert!(begun.elapsed() >= Duration::from_millis(200));
    announce(&stand.board, 4, 10);
    for waiting in waiting {
        let newer = tokio::time::timeout(LONG, waiting).await.unwrap().unwrap();
        assert_eq!((newer.status, newer.etag().as_str()), (200, "\"1.4.10\""));
    }
    let bad = get(addr, "/v1/table?wait=soon").await;
    assert_eq!(bad.status, 400);
    assert_eq!(bad.json()["error"]["remedy"], "write `?wait=30s`, at most 60s");
    stand.server.shutdown().await;
}

#[tokio::test]
async fn a_stopping_server_sends_its_watchers_home() {
    let stand = stand(false).await;
    let addr = stand.server.addr;
    announce(&stand.board, 4, 9);
    let held = [("if-none-match", "\"1.4.9\"")];
    let waiting = tokio::spawn(async move { call(addr, "GET /v1/table?wait=60s", &held, b"").await });
    // Until the request is being waited upon.
    crate::support::until("a watcher", async || (Arc::strong_count(&stand.board) > 3).then_some(())).await;
    let begun = Instant::now();
    stand.server.shutdown().await;
    assert_eq!(waiting.await.unwrap().status, 304);
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert!(tokio::net::TcpStream::connect(addr).await.is_err());
}

#[tokio::test]
async fn a_report_needs_the_token_a_size_and_a_shape() {
    let stand = stand(false).await;
    let addr = stand.server.addr;
    let report =
        br#"{"schema":1,"node":"n1","instance":7,"uptime_ms":5,"applied":null,"rows":[],"pools":{}}"#;
    for wrong in [vec![], vec![("authorization", "Bearer 0123456789abcdef")], vec![("authorization", TOKEN)]]
    {
        let refused = call(addr, "POST /v1/usage", &wrong, report).await;
        assert_eq!((refused.status, refused.headers["www-authenticate"].as_str()), (401, "Bearer"));
        assert!(!refused.text().contains(TOKEN));
    }
    assert!(stand.board.inbox.drain().is_empty());
    let token = bearer(TOKEN);
    let auth = [("authorization", token.as_str())];
    assert_eq!(call(addr, "POST /v1/usage", &auth, report).await.status, 204);
    let reports = stand.board.inbox.drain();
    assert_eq!((reports.len(), reports[0].node.as_str(), reports[0].instance), (1, "n1", 7));

    // Another process under that name, then the first one again.
    let other = String::from_utf8_lossy(report).replace("\"instance\":7", "\"instance\":8");
    assert_eq!(call(addr, "POST /v1/usage", &auth, other.as_bytes()).await.status, 204);
    let taken = call(addr, "POST /v1/usage", &auth, report).await;
    assert_eq!(taken.status, 409);
    assert!(taken.text().contains("name of its own"), "{}", taken.text());
    assert_eq!(stand.board.inbox.drain().len(), 1);

    let large = vec![b' '; (1 << 20) + 1];
    assert_eq!(call(addr, "POST /v1/usage", &auth, &large).await.status, 413);
    let broken = call(addr, "POST /v1/usage", &auth, b"{\"schema\":1,\n\"node\":1}").await;
    assert_eq!(broken.status, 400);
    assert!(broken.text().contains("at line 2 column 8"), "{}", broken.text());
    let later = other.replace("{\"schema\":1", "{\"later\":{},\"schema\":1");
    assert_eq!(call(addr, "POST /v1/usage", &auth, later.as_bytes()).await.status, 204);
    assert_eq!(stand.board.inbox.drain().len(), 1);
    let required = other.replace("{\"schema\"", "{\"requires\":[\"x\"],\"schema\"");
    let refused = call(addr, "POST /v1/usage", &auth, required.as_bytes()).await;
    assert!(refused.status == 400 && refused.text().contains("requires `x`"), "{}", refused.text());
    assert!(stand.board.inbox.drain().is_empty());

    let wrong_method = get(addr, "/v1/usage").await;
    assert_eq!((wrong_method.status, wrong_method.headers["allow"].as_str()), (405, "POST"));
    assert_eq!(get(addr, "/").await.status, 404);
    stand.server.shutdown().await;
}

#[tokio::test]
async fn a_reload_answers_with_what_came_of_it() {
    let mut stand = stand(false).await;
    let addr = stand.server.addr;
    assert_eq!(call(addr, "POST /-/reload", &[], b"").await.status, 401);
    assert!(stand.reloads.try_recv().is_err());
    let mut reloads = stand.reloads;
    tokio::spawn(async move {
        reloads.recv().await.unwrap().send(Ok("policy abc is in force".to_owned())).unwrap();
        reloads.recv().await.unwrap().send(Err("a.yaml:3:1: no such tier".to_owned())).unwrap();
    });
    let token = bearer(TOKEN);
    let auth = [("authorization", token.as_str())];
    let good = call(addr, "POST /-/reload", &auth, b"").await;
    assert_eq!((good.status, good.text().as_str()), (200, "policy abc is in force\n"));
    let bad = call(addr, "POST /-/reload", &auth, b"").await;
    assert_eq!((bad.status, &bad.json()["error"]["reason"]), (400, &"a.yaml:3:1: no such tier".into()));
    stand.server.shutdown().await;
}

#[tokio::test]
async fn i08_orders_without_the_token_from_web_pages_or_by_another_method_are_refused() {
    let mut stand = stand(false).await;
    let addr = stand.server.addr;
    let token = bearer(TOKEN);
    let auth = ("authorization", token.as_str());
    let half = bearer(&TOKEN[..TOKEN.len() - 1]);
    for path in ["/-/reload", "/-/rollback", "/-/rollback?to=1", "/v1/usage"] {
        let post = format!("POST {path}");
        for wrong in [
            vec![],
            vec![("authorization", half.as_str())],
            vec![("authorization", TOKEN)],
            vec![("authorization", "Basic eDp5")],
            vec![("cookie", "token=canary-0123456789abcdef")],
            // Which of two counts is not ours to guess.
            vec![auth, ("authorization", half.as_str())],
            vec![auth, auth],
        ] {
            let refused = call(addr, &post, &wrong, b"{}").await;
            assert_eq!((refused.status, refused.headers["www-authenticate"].as_str()), (401, "Bearer"));
            assert!(!refused.text().contains(TOKEN));
        }
        // A browser says for whom it sends; the token does not help then.
        for (name, value) in [
            ("origin", "https://evil.example"),
            ("origin", "null"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
            ("sec-fetch-site", "same-origin"),
        ] {
            let refused = call(addr, &post, &[auth, (name, value)], b"{}").await;
            assert_eq!(refused.status, 403, "{path} {name}: {value}");
            assert_eq!(call(addr, &post, &[(name, value)], b"{}").await.status, 403);
        }
        for method in ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"] {
            let refused = call(addr, &format!("{method} {path}"), &[auth], b"").await;
            assert_eq!((refused.status, refused.headers["allow"].as_str()), (405, "POST"), "{method} {path}");
            assert!(!refused.headers.contains_key("access-control-allow-origin"));
        }
    }
    assert!(stand.reloads.try_recv().is_err(), "an order got through");
    assert!(stand.board.inbox.drain().is_empty());
    stand.server.shutdown().await;
}

#[tokio::test]
async fn off_loopback_reading_takes_the_token_too() {
    let stand = stand(true).await;
    let addr = stand.server.addr;
    announce(&stand.board, 4, 9);
    let token = bearer(TOKEN);
    for path in ["/v1/table", "/v1/status", "/metrics"] {
        assert_eq!(get(addr, path).await.status, 401, "{path}");
        let head = format!("GET {path}");
        assert_eq!(call(addr, &head, &[("authorization", &token)], b"").await.status, 200, "{path}");
    }
    assert_eq!(get(addr, "/-/healthy").await.status, 200);
    assert_eq!(get(addr, "/-/ready").await.status, 200);
    stand.server.shutdown().await;
}

#[tokio::test]
async fn the_listener_speaks_tls() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    assert!(Identity::read(&key, &cert).unwrap_err().contains("key.pem"));

    let (sender, _reloads) = mpsc::channel(1);
    let board = Arc::new(Board::new(Token::new(TOKEN).unwrap(), true, sender, Box::new(Bytes::new)));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tls = Presented::new(Identity::read(&cert, &key).unwrap()).config().unwrap();
    let server = Server::start(listener, Some(tls), board).unwrap();

    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = tokio::net::TcpStream::connect(server.addr).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    assert_eq!(call_on(stream, "GET /-/healthy", &[], b"").await.status, 200);
    // In the clear there is no answer.
    let mut plain = tokio::net::TcpStream::connect(server.addr).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut plain, b"GET /-/healthy HTTP/1.1\r\n\r\n").await.unwrap();
    let mut bytes = Vec::new();
    let _ = tokio::io::AsyncReadExt::read_to_end(&mut plain, &mut bytes).await;
    assert!(!bytes.starts_with(b"HTTP"));
    server.shutdown().await;
}
