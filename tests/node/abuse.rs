//! Who lies, injects, knocks at the operator's door or exhausts the process: what they get, and
//! that nothing secret comes out anywhere.

use std::net::SocketAddr;
use std::process::Command;

use crate::cli::{Process, addresses, enforce, set_up};
use crate::support::node::*;
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::json;
use tidegate::enforce::accounts::Accounts;
use tidegate::enforce::config::{KeySource, NodeConfig, Secret, TableSource};
use tidegate::enforce::node::Node;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

#[tokio::test]
async fn i04_no_claim_of_a_client_reaches_the_upstream_or_changes_who_it_is() {
    let rig = Rig::start(&table(1, &[])).await;
    let claims = [
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "x-forwarded",
        "X_Forwarded_For",
        "Forwarded",
        "X-Real-IP",
        "True-Client-IP",
        "Client-IP",
        "CF-Connecting-IP",
        "x-tier",
        "X_Tier",
        "x-account",
        "x-tenant",
        "x-envoy-original-path",
        "x-envoy-upstream-rq-timeout-ms",
        "X-RateLimit-Limit-Requests",
        "x_ratelimit_remaining_tokens",
        "x-tidegate-node",
        "X_API_Key",
        "Proxy-Authorization",
        "Keep-Alive",
    ];
    let mut request = rig.chat("", false);
    for name in claims {
        request.headers_mut().append(name, "enterprise".parse().unwrap());
    }
    request.headers_mut().append("x-kept", "1".parse().unwrap());
    let (status, headers, _) = rig.answer(request).await;
    assert_eq!(status, StatusCode::OK);
    assert!(!headers.contains_key("x-ratelimit-limit-requests"), "nothing is limited here: {headers:?}");
    let (_, seen, _) = rig.upstream.seen.lock().unwrap()[0].clone();
    let mut names: Vec<_> = seen.keys().map(|name| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["content-length", "content-type", "host", "x-kept"]);
    // A key of another tier stays in its own, whatever it claims; nobody becomes somebody.
    let mut nobody = rig.chat("", false);
    nobody.headers_mut().remove("authorization");
    for name in claims {
        nobody.headers_mut().append(name, KEY.parse().unwrap());
    }
    assert_eq!(rig.answer(nobody).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(rig.report().rows.len(), 1);
}

/// Names that would break out of a log line, a label, a format or a limit.
fn hostile() -> Vec<String> {
    let mut names: Vec<String> = [
        "{}",
        "{0}{model}%s%n",
        "a\r\nFAKE: log line",
        "a\nFAKE level=ERROR",
        "m\"} 1\ntidegate_enforce_fake_total{x=\"",
        ":",
        "*",
        "../../etc/passwd",
        "\u{1b}[31mFAKE",
        "\u{202e}m",
        "m\u{0}",
        " m",
        "M",
        "",
    ]
    .map(str::to_owned)
    .to_vec();
    names.push("x".repeat(64 << 10));
    names.push("FAKE\n".repeat(10_000));
    names
}

#[tokio::test]
async fn i06_i13_hostile_models_and_keys_are_unknown_and_leave_no_trace() {
    let rig = Rig::start(&table(1, &[(tidegate::unit::Dimension::RequestsPerMinute, key_limit(600))])).await;
    let dir = rig.dir.path();
    set_up(dir, &rig.upstream.url());
    let mut command =
        enforce(dir, &["--config", "node.yaml", "--listen", "127.0.0.1:0", "--log-level", "trace"]);
    command.env("TIDEGATE_TABLE", "table.json").env("TIDEGATE_ADMIN", "127.0.0.1:0");
    let mut process = Process(command.spawn().unwrap());
    let (proxy, admin, lines) = addresses(&mut process);
    let (proxy, admin): (SocketAddr, SocketAddr) = (proxy.parse().unwrap(), admin.parse().unwrap());
    let at = |mut request: Request<Full<Bytes>>| {
        *request.uri_mut() = format!("http://{proxy}/v1/chat/completions").parse().unwrap();
        request
    };
    let deadline = Instant::now() + PATIENCE;
    while rig.get(admin, "/-/ready").await.0 != StatusCode::OK {
        assert!(Instant::now() < deadline, "never ready");
    }
    let series = |page: &str| page.lines().filter(|line| !line.starts_with('#')).count();
    assert_eq!(rig.answer(at(rig.chat("", false))).await.0, StatusCode::OK);
    // An unknown model and an unknown key before, so that their counters are there.
    rig.answer(at(rig.post("/", &json!({"model": "unknown", "messages": []})))).await;
    let before = series(&rig.get(admin, "/metrics").await.2);
    for name in hostile() {
        let body = json!({"model": name, "messages": [{"role": "user", "content": name}]});
        let (status, _, answer) = rig.answer(at(rig.post("/", &body))).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{name:.40}");
        assert!(!answer.contains("FAKE"), "{answer:.200}");
        let mut socket = TcpStream::connect(proxy).await.unwrap();
        let head =
            format!("GET /v1/models HTTP/1.1\r\nhost: a\r\nconnection: close\r\nx-api-key: {name}\r\n\r\n");
        // A head that is cut off or refused half-way may close the connection on its sender.
        let _ = socket.write_all(head.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = timed(socket.read_to_end(&mut answer)).await;
        let answer = String::from_utf8_lossy(&answer);
        let refused = ["HTTP/1.1 401", "HTTP/1.1 400", "HTTP/1.1 431"];
        assert!(answer.is_empty() || refused.iter().any(|status| answer.starts_with(status)), "{answer}");
        assert!(!answer.contains("FAKE"), "{answer:.200}");
    }
    let page = rig.get(admin, "/metrics").await.2;
    assert_eq!(series(&page), before, "no name became a series: {page}");
    assert!(!page.contains("FAKE") && !page.contains("fake"), "{page}");
    assert_eq!(rig.upstream.requests(), 1);
    process.signal("-TERM");
    assert_eq!(process.code().await, Some(0));
    let fake = |line: &String| line.starts_with("FAKE") || line.contains('\u{1b}') || line.len() > 8_192;
    assert_eq!(lines.iter().find(fake), None, "a name became a log line");
}

#[tokio::test]
async fn i08_the_operators_listener_is_for_no_page_and_no_stranger() {
    let rig =
        Rig::with(&table(1, &[]), |config| config.admin_token = Some(Secret::new("canary-operator"))).await;
    let ask = |method: Method, path: &str, headers: &[(&'static str, &'static str)]| {
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", rig.node.admin));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Full::default()).unwrap()
    };
    let (get, post) = (Method::GET, Method::POST);
    let token = ("authorization", "Bearer canary-operator");
    for (method, path, headers, expected) in [
        (&post, "/-/reload", vec![], 401),
        (&post, "/-/reload", vec![("authorization", "Bearer wrong")], 401),
        (&post, "/-/reload", vec![("authorization", "Basic canary-operator")], 401),
        (&post, "/-/reload", vec![token, token], 401),
        (&get, "/-/reload", vec![token], 405),
        (&Method::DELETE, "/v1/table", vec![token], 405),
        (&post, "/metrics", vec![token], 405),
        (&post, "/-/reload", vec![token, ("origin", "http://127.0.0.1:7701")], 403),
        (&post, "/-/reload", vec![token, ("origin", "null")], 403),
        (&post, "/-/reload", vec![token, ("sec-fetch-site", "cross-site")], 403),
        (&get, "/metrics", vec![("sec-fetch-site", "same-origin")], 403),
        (&get, "/v1/table", vec![("origin", "http://evil.example")], 403),
        (&Method::OPTIONS, "/-/reload", vec![("origin", "http://evil.example")], 403),
        (&get, "/-/nothing", vec![token], 404),
        (&get, "/metrics", vec![("sec-fetch-site", "none")], 200),
        (&post, "/-/reload", vec![token], 200),
    ] {
        let (status, answered, body) = rig.answer(ask(method.clone(), path, &headers)).await;
        assert_eq!(status, expected, "{method} {path} {headers:?}: {body}");
        let allowed = answered.keys().any(|name| name.as_str().starts_with("access-control-"));
        assert!(!allowed, "{method} {path}: {answered:?}");
    }
    // Without a token nobody reloads over HTTP.
    let rig = Rig::start(&table(1, &[])).await;
    let mut request = rig.post("/", &json!({}));
    *request.uri_mut() = format!("http://{}/-/reload", rig.node.admin).parse().unwrap();
    assert_eq!(rig.answer(request).await.0, StatusCode::FORBIDDEN);
    // Off loopback it does not start, token or not.
    for address in ["0.0.0.0:0", "[::]:0"] {
        let mut exposed = config(rig.dir.path(), &[rig.upstream.url()]);
        exposed.admin = address.parse().unwrap();
        exposed.admin_token = Some(Secret::new("canary-operator"));
        let error = Node::start(exposed, None).await.err().unwrap().to_string();
        assert!(error.contains("loopback") && !error.contains(CANARY), "{error}");
    }
}

#[test]
fn i10_what_holds_a_secret_does_not_show_it() {
    let secret = || Some(Secret::new("canary-secret"));
    let mut routing = routing(&["http://127.0.0.1:1".to_owned()]);
    routing.upstreams.values_mut().for_each(|upstream| upstream.credential = secret());
    let table = TableSource::File("table.json".into());
    let mut config = NodeConfig::embedded("n", table, KeySource::Inline(keys()), routing);
    (config.controller_token, config.admin_token) = (secret(), secret());
    let bearer = secret().unwrap().bearer().unwrap();
    let ring = Accounts::parse(&keys()).unwrap();
    for shown in [
        format!("{config:?}"),
        format!("{config:#?}"),
        format!("{:?}", secret()),
        format!("{bearer:?}"),
        format!("{ring:?}"),
    ] {
        assert!(!shown.contains(CANARY), "{shown}");
    }
    // A secret in the wrong place is not quoted back.
    let dir = tempfile::TempDir::new().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    file("two", "canary-one canary-two\n");
    let any = "127.0.0.1:0".parse().unwrap();
    for yaml in [
        "keys: k\nadmin_token_file: two\nupstreams: {}\n",
        "keys: k\ncontroller: http://canary-user:canary-word@127.0.0.1:1\nupstreams: {}\n",
    ] {
        let error =
            NodeConfig::load(&file("node.yaml", yaml), "table.json", any, any).unwrap_err().to_string();
        assert!(!error.contains(CANARY), "{error}");
    }
    let mut leaky = routing_with_credential_in_url();
    leaky.caps.connections = 1;
    let error = tokio::runtime::Runtime::new().unwrap().block_on(Node::start(leaky, None)).err().unwrap();
    assert!(!error.to_string().contains(CANARY), "{error}");
}

fn routing_with_credential_in_url() -> NodeConfig {
    let table = TableSource::File("table.json".into());
    let routing = routing(&["http://user:canary-word@127.0.0.1:1".to_owned()]);
    NodeConfig::embedded("n", table, KeySource::Inline(keys()), routing)
}

/// The process's soft limit of file descriptors.
fn limit_descriptors(process: &Process, most: usize) {
    let pid = process.0.id().to_string();
    let status = Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={most}:")]).status();
    assert!(status.expect("prlimit of util-linux").success());
}

#[tokio::test]
async fn d15_without_descriptors_the_node_pauses_and_lives_on() {
    let rig = Rig::start(&table(1, &[])).await;
    let dir = rig.dir.path();
    set_up(dir, &rig.upstream.url());
    let arguments = ["--config", "node.yaml", "--table", "table.json", "--listen", "127.0.0.1:0"];
    let mut process = Process(enforce(dir, &arguments).args(["--admin", "127.0.0.1:0"]).spawn().unwrap());
    let (proxy, admin, lines) = addresses(&mut process);
    let admin = admin.parse().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while rig.get(admin, "/-/ready").await.0 != StatusCode::OK {
        assert!(Instant::now() < deadline, "never ready");
    }
    let mut request = rig.chat("slow", true);
    *request.uri_mut() = format!("http://{proxy}/v1/chat/completions").parse().unwrap();
    let mut open = rig.send(request).await.into_body();
    timed(open.frame()).await.unwrap().unwrap();
    limit_descriptors(&process, 8);
    // Taken by the kernel, and by nobody else yet.
    let mut waiting = Vec::new();
    for _ in 0..20 {
        waiting.push(TcpStream::connect(&proxy).await.unwrap());
    }
    while !lines.recv_timeout(PATIENCE).expect("a line that says so").contains("cannot accept") {}
    for _ in 0..20 {
        timed(open.frame()).await.expect("the open stream goes on").unwrap();
    }
    // One line says it, however often it is tried.
    let said = lines.try_iter().filter(|line| line.contains("cannot accept")).count();
    assert_eq!(said, 0);
    limit_descriptors(&process, 1_024);
    for socket in &mut waiting {
        let head = format!("GET /v1/models HTTP/1.1\r\nhost: a\r\nx-api-key: {KEY}\r\n\r\n");
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        timed(socket.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200", "the listener was never closed");
    }
    drop((open, waiting));
    process.signal("-TERM");
    assert_eq!(process.code().await, Some(0));
}

#[tokio::test]
async fn h10_clients_that_only_hold_connections_lose_them_and_others_get_in() {
    let rig = Rig::with(&table(1, &[]), |config| {
        (config.caps.connections, config.caps.header_seconds, config.caps.keep_alive_seconds) = (4, 1, 1);
    })
    .await;
    // Nothing sent, half a head, one request and then silence: each would hold its place forever.
    let mut silent = Vec::new();
    for sent in ["", "GET / HT", "\r\n\r\n", "GET /v1/models HTTP/1.1\r\nhost: a\r\n\r\n"] {
        let mut socket = TcpStream::connect(rig.node.proxy).await.unwrap();
        socket.write_all(sent.as_bytes()).await.unwrap();
        silent.push(socket);
    }
    assert_eq!(rig.answer(rig.chat("", false)).await.0, StatusCode::OK);
    for mut socket in silent {
        let mut rest = Vec::new();
        let _ = timed(socket.read_to_end(&mut rest)).await;
    }
}

#[tokio::test]
async fn h10_a_client_that_does_not_read_is_cut_off_and_pays() {
    let rig =
        Rig::with(&table(1, &[(tidegate::unit::Dimension::TokensPerMinute, key_limit(1 << 40))]), |config| {
            config.caps.write_seconds = 1;
        })
        .await;
    let mut deaf = TcpStream::connect(rig.node.proxy).await.unwrap();
    let body = json!({"model": "m", "user": "much", "stream": true, "messages": []}).to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nx-api-key: {KEY}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    deaf.write_all(head.as_bytes()).await.unwrap();
    until("the request to arrive", || rig.upstream.requests() == 1).await;
    let (requests, work) = rig.settled().await;
    assert!(requests == 1 && work > 0, "{requests} requests, {work} work");
}
