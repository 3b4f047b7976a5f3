//! The listener's certificate and the token, replaced under a running controller.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::support::{Reply, call, call_on, loader, metric, replica, until};
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tidegate::control::run::{Options, Running, start};
use tidegate::policy::SourcePolicy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const PAGE: &str = "vllm:num_requests_running 3\nvllm:num_requests_waiting 1\n\
                    vllm:prompt_tokens_total 500\nvllm:generation_tokens_total 10\n";

/// A certificate that expires on the first of January, and its key, both PEM.
struct Pair {
    chain: String,
    key: String,
    der: CertificateDer<'static>,
}

impl Pair {
    fn until(year: i32) -> Pair {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_before = date_time_ymd(2025, 1, 1);
        params.not_after = date_time_ymd(year, 1, 1);
        let made = params.self_signed(&key).unwrap();
        Pair { chain: made.pem(), key: key.serialize_pem(), der: made.der().clone() }
    }
}

/// As a careful program does it: beside it, then renamed.
fn put(path: &Path, text: &str) {
    let temporary = path.with_extension("new");
    fs::write(&temporary, text).unwrap();
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(temporary, path).unwrap();
}

struct Place {
    dir: tempfile::TempDir,
    running: Running,
}

impl Place {
    async fn start(change: impl FnOnce(&Path, &mut Options)) -> Place {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("policies")).unwrap();
        fs::write(dir.path().join("policies/p.yaml"), "50000").unwrap();
        let source = SourcePolicy::targets(vec![replica(PAGE).await.to_string()]);
        let loader = loader(source, Duration::from_millis(200));
        let mut options = Options::new(dir.path().join("policies"), dir.path().join("state"), loader);
        options.settle = Duration::from_millis(20);
        change(dir.path(), &mut options);
        let running = start(options).await.unwrap();
        Place { dir, running }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// A connection that trusts only these, and what the server showed.
async fn connect(addr: SocketAddr, trusted: &[&Pair]) -> Result<TlsStream<TcpStream>, std::io::Error> {
    let mut roots = RootCertStore::empty();
    trusted.iter().for_each(|pair| roots.add(pair.der.clone()).unwrap());
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(addr).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), stream).await
}

/// A request on a new connection; any failure of it in words.
async fn healthy(addr: SocketAddr, trusted: &[&Pair]) -> Result<(), String> {
    let mut stream = connect(addr, trusted).await.map_err(|error| format!("connecting: {error}"))?;
    let request = b"GET /-/healthy HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.map_err(|error| format!("asking: {error}"))?;
    stream.flush().await.map_err(|error| format!("asking: {error}"))?;
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer).await;
    if answer.starts_with(b"HTTP/1.1 200 ") { Ok(()) } else { Err(format!("answered: {read:?} {answer:?}")) }
}

fn shown(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

async fn number(addr: SocketAddr, trusted: &[&Pair], name: &str) -> f64 {
    let stream = connect(addr, trusted).await.unwrap();
    let page = call_on(stream, "GET /metrics", &[], b"").await.text();
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name} is not on\n{page}")).parse().unwrap()
}

const SUCCESSFUL: &str = "tidegate_publish_credential_last_reload_successful{credential=\"certificate\"}";
const FAILURES: &str = "tidegate_publish_credential_reload_failures_total{credential=\"certificate\"}";
const NOT_AFTER: &str =
    "tidegate_publish_certificate_not_after_timestamp_seconds{credential=\"certificate\"}";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_replaced_under_load_without_a_failure_and_a_bad_one_is_not() {
    let (old, new) = (Arc::new(Pair::until(2030)), Arc::new(Pair::until(2031)));
    let place = Place::start(|dir, options| {
        put(&dir.join("cert.pem"), &old.chain);
        put(&dir.join("key.pem"), &old.key);
        options.tls = Some((dir.join("cert.pem"), dir.join("key.pem")));
    })
    .await;
    let addr = place.running.addr;
    let both = [&*old, &*new];
    assert_eq!(number(addr, &both, NOT_AFTER).await, 1_893_456_000.0);
    // Somebody who stays connected, and somebody who connects all the time.
    let staying = connect(addr, &both).await.unwrap();
    let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let load = {
        let (old, new, stop, made) =
            (Arc::clone(&old), Arc::clone(&new), Arc::clone(&stop), Arc::clone(&made));
        tokio::spawn(async move {
            let mut failed = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                if let Err(error) = healthy(addr, &[&old, &new]).await {
                    failed.push(error);
                }
                made.fetch_add(1, Ordering::Relaxed);
            }
            failed
        })
    };
    // A pair that does not belong together stays outside, and says so.
    put(&place.path("cert.pem"), &new.chain);
    until("the refusal", async || (number(addr, &both, FAILURES).await >= 1.0).then_some(())).await;
    until("the gauge", async || (number(addr, &both, SUCCESSFUL).await == 0.0).then_some(())).await;
    assert_eq!(shown(&connect(addr, &both).await.unwrap()), old.der);
    // Its other half makes it good.
    put(&place.path("key.pem"), &new.key);
    until("the new certificate", async || {
        (shown(&connect(addr, &both).await.unwrap()) == new.der).then_some(())
    })
    .await;
    until("its expiry", async || (number(addr, &both, NOT_AFTER).await == 1_924_992_000.0).then_some(()))
        .await;
    assert_eq!(number(addr, &both, SUCCESSFUL).await, 1.0);
    // Nonsense, emptiness and absence leave it there.
    let failures = number(addr, &both, FAILURES).await;
    for (at, harm) in ["nonsense", ""].iter().enumerate() {
        put(&place.path("cert.pem"), harm);
        until("a refusal", async || {
            (number(addr, &both, FAILURES).await > failures + at as f64).then_some(())
        })
        .await;
    }
    fs::remove_file(place.path("key.pem")).unwrap();
    until("a refusal", async || (number(addr, &both, FAILURES).await > failures + 2.0).then_some(())).await;
    assert_eq!(shown(&connect(addr, &both).await.unwrap()), new.der);
    assert_eq!(call_on(staying, "GET /-/healthy", &[], b"").await.status, 200);
    stop.store(true, Ordering::Relaxed);
    let failed = load.await.unwrap();
    assert!(failed.is_empty(), "{failed:?}");
    eprintln!("{} connections, none failed", made.load(Ordering::Relaxed));
    // Whoever trusts only the old one is not served with the new.
    assert!(connect(addr, &[&old]).await.is_err());
    place.running.shutdown().await;
}

#[tokio::test]
async fn a_token_is_replaced_without_a_moment_in_which_neither_is_admitted() {
    let (old, new) = ("old-0123456789abcdef", "new-0123456789abcdef");
    let place = Place::start(|dir, options| {
        put(&dir.join("token"), old);
        options.token_file = Some(dir.join("token"));
    })
    .await;
    let addr = place.running.addr;
    let reload = async |token: &str| -> Reply {
        let header = format!("Bearer {token}");
        call(addr, "POST /-/reload", &[("authorization", &header)], b"").await
    };
    assert_eq!((reload(old).await.status, reload(new).await.status), (200, 401));
    put(&place.path("token"), &format!("{new}\n{old}\n"));
    until("both", async || (reload(new).await.status == 200).then_some(())).await;
    assert_eq!(reload(old).await.status, 200);
    put(&place.path("token"), new);
    until("the new one alone", async || (reload(old).await.status == 401).then_some(())).await;
    assert_eq!(reload(new).await.status, 200);
    // One that others may read is no secret: what is in force stays.
    let failures = "tidegate_publish_credential_reload_failures_total{credential=\"token\"}";
    put(&place.path("token"), old);
    fs::set_permissions(place.path("token"), fs::Permissions::from_mode(0o644)).unwrap();
    until("the refusal", async || (metric(addr, failures).await >= 1.0).then_some(())).await;
    assert_eq!((reload(old).await.status, reload(new).await.status), (401, 200));
    place.running.shutdown().await;
}
