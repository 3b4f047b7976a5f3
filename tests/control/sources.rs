//! How sources are reached and found: logins, certificates, files, names, pairs, pauses.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use std::io::Write;
use tidegate::observe::sources::Sources;
use tidegate::observe::{Outcome, PoolRound};
use tidegate::policy::preset;
use tidegate::policy::source::{Access, Login, Targets, Tls};
use tidegate::policy::{Policy, SourcePolicy};
use tidegate::unit::{Instant, SystemClock};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::program::Program;
use crate::support::prometheus::Prometheus;
use crate::support::{LONG, get, nobody, policy, replica, until};

const PAGE: &str = "vllm:num_requests_running 3\nvllm:num_requests_waiting 1\nvllm:prompt_tokens_total 500\n";
const CANARY: &str = "canary-4f1d2";

/// A server whose answers are made of the requests it gets, and those requests.
struct Stub {
    addr: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
}

type Answer = Arc<dyn Fn(&str) -> Vec<u8> + Send + Sync>;

// === impl Stub ===

impl Stub {
    async fn new(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Stub {
        Stub::with(answer, None).await
    }

    async fn with(
        answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static,
        tls: Option<tokio_rustls::TlsAcceptor>,
    ) -> Stub {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer): (_, Answer) = (Arc::clone(&requests), Arc::new(answer));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (seen, answer, tls) = (Arc::clone(&seen), Arc::clone(&answer), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => answer_one(stream, &seen, &answer).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                answer_one(stream, &seen, &answer).await;
                            }
                        }
                    }
                });
            }
        });
        Stub { addr, requests }
    }

    fn count(&self) -> usize {
        self.requests.lock().unwrap().len()
    }

    fn url(&self) -> String {
        format!("http://{}", self.addr)
    }
}

async fn answer_one(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    seen: &Mutex<Vec<String>>,
    answer: &Answer,
) {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
        if let Some(end) = text.find("\r\n\r\n") {
            let length = text.split("\r\n").find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length.map_or(0, |value| value.parse().unwrap());
            if bytes.len() >= end + 4 + length {
                break;
            }
        }
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
        }
    }
    let request = String::from_utf8_lossy(&bytes).into_owned();
    seen.lock().unwrap().push(request.clone());
    let _ = stream.write_all(&answer(&request)).await;
    let _ = stream.shutdown().await;
}

fn http(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head =
        format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn page() -> Vec<u8> {
    http("200 OK", "content-type: text/plain\r\n", PAGE.as_bytes())
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn sources(source: SourcePolicy) -> Sources {
    let clock = Arc::new(SystemClock::starting_at(Instant(1_000_000_000_000)));
    Sources::new(clock, &whole(source)).unwrap()
}

fn whole(source: SourcePolicy) -> Policy {
    policy(source, Duration::from_secs(2), 1000, "d")
}

fn direct(url: String, access: Access) -> SourcePolicy {
    SourcePolicy::Direct { targets: Targets { fixed: vec![url], ..Targets::default() }, access }
}

async fn round(sources: &mut Sources) -> PoolRound {
    let round = sources.observe_round().await.remove("gpu").unwrap();
    assert!(!format!("{round:?}").contains(CANARY), "a secret is shown");
    round
}

/// The reason why the only replica is not up, or why the source failed; none when it is up.
fn trouble(round: &PoolRound) -> Option<String> {
    if let Some(failed) = &round.failed {
        return Some(failed.clone());
    }
    match &round.replicas[..] {
        [one] => match &one.outcome {
            Outcome::Up(_) => None,
            Outcome::Down(reason) | Outcome::Silent(reason) => Some(reason.clone()),
        },
        other => panic!("{other:?}"),
    }
}

fn path(dir: &Path, name: &str) -> String {
    dir.join(name).to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_token_is_sent_followed_when_it_rotates_and_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    let file = path(dir.path(), "token");
    let stub = Stub::new(|request| match request.contains(&format!("authorization: Bearer {CANARY}\r\n")) {
        true => page(),
        false => http("404 Not Found", "", b""),
    })
    .await;
    let login = Some(Login::Token { kind: "Bearer".to_owned(), file: file.clone() });
    let access = Access { login, tls: Tls::default() };
    let mut sources = sources(direct(stub.url(), access));
    // Nobody is asked without what was to be sent along.
    let told = trouble(&round(&mut sources).await).unwrap();
    assert!(told.starts_with(&file) && stub.count() == 0, "{told}");
    std::fs::write(&file, format!("{CANARY}\n")).unwrap();
    assert_eq!(trouble(&round(&mut sources).await), None);
    // What cannot be used leaves the last good one, and is said.
    for bad in [&b""[..], b"two words\n", b"\xff\xfe\n", &vec![b'x'; (1 << 20) + 1]] {
        std::fs::write(&file, bad).unwrap();
        let after = round(&mut sources).await;
        assert_eq!(trouble(&after), None, "{bad:?}");
        assert!(after.warnings[0].contains("the last good one is still used"), "{after:?}");
    }
    std::fs::remove_file(&file).unwrap();
    assert_eq!(trouble(&round(&mut sources).await), None);
    std::fs::write(&file, "another").unwrap();
    assert_eq!(trouble(&round(&mut sources).await).as_deref(), Some("HTTP 404"));
    let last = stub.requests.lock().unwrap().last().unwrap().clone();
    assert!(last.contains("authorization: Bearer another\r\n"), "{last}");
}

#[tokio::test]
async fn basic_auth_reaches_a_prometheus() {
    let dir = tempfile::tempdir().unwrap();
    let file = path(dir.path(), "password");
    std::fs::write(&file, "open sesame\n").unwrap();
    let stub = Stub::new(|request| {
        // base64 of `tidegate:open sesame`
        let good = request.contains("authorization: Basic dGlkZWdhdGU6b3BlbiBzZXNhbWU=\r\n");
        if good { vector(&[("a:1", "j", 1.0, 99.0)], "") } else { http("401 Unauthorized", "", b"who?") }
    })
    .await;
    let login = Some(Login::Basic { username: "tidegate".to_owned(), password_file: file });
    let access = Access { login, tls: Tls::default() };
    let mut sources = sources(SourcePolicy::Prometheus { servers: vec![stub.url()], access });
    assert_eq!(trouble(&round(&mut sources).await), None);
}

struct Authority {
    cert: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

// === impl Authority ===

impl Authority {
    fn new() -> Authority {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = params.self_signed(&key).unwrap();
        Authority { cert, issuer: rcgen::Issuer::new(params, key) }
    }

    fn sign(&self, name: &str) -> (rcgen::Certificate, rcgen::KeyPair) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    fn roots(&self) -> Arc<rustls::RootCertStore> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.cert.der().clone()).unwrap();
        Arc::new(roots)
    }
}

#[tokio::test]
async fn tls_takes_an_authority_a_name_and_a_client_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (Authority::new(), Authority::new());
    let (cert, key) = ours.sign("gpu.internal");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(ours.roots(), provider.clone())
            .build()
            .unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let stub = Stub::with(|_| page(), Some(Arc::new(config).into())).await;
    let (client, client_key) = ours.sign("tidegate");
    let file = |name: &str, text: String| {
        std::fs::write(dir.path().join(name), text).unwrap();
        path(dir.path(), name)
    };
    let good = Tls {
        ca_file: Some(file("ca.pem", ours.cert.pem())),
        cert_file: Some(file("client.pem", client.pem())),
        key_file: Some(file("client.key", client_key.serialize_pem())),
        server_name: Some("gpu.internal".to_owned()),
    };
    let url = format!("https://{}/metrics", stub.addr);
    let read = async |tls: Tls| {
        let mut sources = sources(direct(url.clone(), Access { login: None, tls }));
        trouble(&round(&mut sources).await)
    };
    assert_eq!(read(good.clone()).await, None);
    let bad = [
        (Tls { server_name: None, ..good.clone() }, "certificate"),
        (Tls { server_name: Some("other".to_owned()), ..good.clone() }, "certificate"),
        (Tls { ca_file: Some(file("other.pem", theirs.cert.pem())), ..good.clone() }, "certificate"),
        (Tls { ca_file: None, ..good.clone() }, "certificate"),
        (Tls { cert_file: None, key_file: None, ..good.clone() }, ""),
        (
            Tls { ca_file: Some(file("empty.pem", CANARY.to_owned())), ..good.clone() },
            "empty.pem: no certificate in PEM",
        ),
        (
            Tls { key_file: Some(file("not.key", CANARY.to_owned())), ..good.clone() },
            "not.key: no private key in PEM",
        ),
    ];
    for (tls, reason) in bad {
        let told = read(tls.clone()).await.unwrap_or_else(|| panic!("{tls:?}"));
        assert!(told.contains(reason), "{told} / {reason}");
    }
    // A certificate that is renewed is used without a restart.
    let mut sources = sources(direct(url.clone(), Access { login: None, tls: good }));
    assert_eq!(trouble(&round(&mut sources).await), None);
    let (stranger, stranger_key) = theirs.sign("stranger");
    file("client.pem", stranger.pem());
    file("client.key", stranger_key.serialize_pem());
    assert!(trouble(&round(&mut sources).await).is_some(), "the old certificate was sent");
    file("client.pem", client.pem());
    file("client.key", client_key.serialize_pem());
    assert_eq!(trouble(&round(&mut sources).await), None);
}

#[tokio::test]
async fn a_packed_page_is_asked_for_and_read() {
    let stub = Stub::new(|request| {
        assert!(request.contains("accept-encoding: gzip\r\n"), "{request}");
        http("200 OK", "content-encoding: gzip\r\n", &gzip(PAGE.as_bytes()))
    })
    .await;
    let mut sources = sources(SourcePolicy::targets(vec![stub.url()]));
    assert_eq!(trouble(&round(&mut sources).await), None);
}

#[tokio::test]
async fn a03_a_gzip_bomb_fails_at_the_cap() {
    let bomb = http("200 OK", "content-encoding: gzip\r\n", &gzip(&vec![b'#'; 64 << 20]));
    assert!(bomb.len() < 100_000);
    let stub = Stub::new(move |_| bomb.clone()).await;
    let mut sources = sources(SourcePolicy::targets(vec![stub.url()]));
    let told = until("the bomb", async || {
        let told = trouble(&round(&mut sources).await).unwrap();
        // A machine that is busy elsewhere may take longer than a scrape.
        told.contains("has more than").then_some(told)
    });
    assert_eq!(told.await, "the answer has more than 16777216 bytes");
}

#[tokio::test]
async fn file_sd_is_followed_and_a_bad_file_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (replica(PAGE).await.to_string(), replica(PAGE).await.to_string());
    let file = dir.path().join("gpu-a.json");
    let pattern = path(dir.path(), "gpu-*.json");
    let targets = Targets { file_sd: vec![pattern.clone()], ..Targets::default() };
    let mut sources = sources(SourcePolicy::Direct { targets, access: Access::default() });
    let empty = round(&mut sources).await;
    assert_eq!(trouble(&empty), Some(format!("file_sd {pattern}: there is no such file")));
    std::fs::write(&file, format!(r#"[{{"targets":["{one}","{two}"],"labels":{{"env":"x"}}}}]"#)).unwrap();
    let up = |round: &PoolRound| {
        round.replicas.iter().filter(|reading| matches!(reading.outcome, Outcome::Up(_))).count()
    };
    assert_eq!(up(&round(&mut sources).await), 2);
    for bad in ["", "[{\"targets\":[\"", "{}", "[{\"targets\":[\"no port\"]}]"] {
        std::fs::write(&file, bad).unwrap();
        for _ in 0..3 {
            let after = round(&mut sources).await;
            assert_eq!((up(&after), after.replicas.len()), (2, 2), "{bad}: {after:?}");
        }
        assert!(!round(&mut sources).await.warnings.is_empty(), "{bad} is not told");
    }
    std::fs::remove_file(&file).unwrap();
    let gone = round(&mut sources).await;
    assert_eq!((up(&gone), gone.replicas.len()), (2, 2), "{gone:?}");
    // One that leaves the file, read twice running, is gone; the other stays.
    std::fs::write(&file, format!(r#"[{{"targets":["{one}"]}}]"#)).unwrap();
    let still = round(&mut sources).await;
    assert_eq!((up(&still), still.replicas.len()), (2, 2), "{still:?}");
    let left = round(&mut sources).await;
    assert_eq!((up(&left), left.replicas.len()), (1, 2), "{left:?}");
    let down = Outcome::Down("it is not a target any more".to_owned());
    assert!(left.replicas.iter().any(|reading| reading.replica.as_str() == two && reading.outcome == down));
    assert_eq!(round(&mut sources).await.replicas.len(), 1);
    // A second file of the pattern adds to it; whoever comes back is no longer gone.
    std::fs::write(dir.path().join("gpu-b.json"), format!(r#"[{{"targets":["{two}","{one}"]}}]"#)).unwrap();
    let both = round(&mut sources).await;
    assert_eq!((up(&both), both.replicas.len()), (2, 2), "{both:?}");
}

#[tokio::test]
async fn names_are_looked_up_and_one_that_fails_is_told() {
    let one = replica(PAGE).await;
    let dns = |names: Vec<String>| {
        let targets = Targets { dns: names, ..Targets::default() };
        sources(SourcePolicy::Direct { targets, access: Access::default() })
    };
    let mut sources = dns(vec![format!("localhost:{}", one.port())]);
    let round = until("the lookup", async || {
        let round = round(&mut sources).await;
        (round.failed.is_none()).then_some(round)
    })
    .await;
    let found = round.replicas.iter().find(|reading| reading.replica.as_str() == one.to_string());
    assert!(matches!(found.unwrap().outcome, Outcome::Up(_)), "{round:?}");
    let mut nowhere = dns(vec!["no-such-name.invalid:8000".to_owned()]);
    let told = until("the failure", async || {
        self::round(&mut nowhere).await.failed.filter(|reason| reason.contains("no-such-name.invalid:8000: "))
    });
    told.await;
}

/// An answer to every query: instance, job, value, time of the sample; evaluated at 100.
fn vector(series: &[(&str, &str, f64, f64)], more: &str) -> Vec<u8> {
    let mut result = Vec::new();
    for (instance, job, value, at) in series {
        for (part, number) in [("value", value), ("at", at)] {
            let metric = serde_json::json!({"instance": instance, "job": job, "tidegate_part": part});
            result.push(serde_json::json!({"metric": metric, "value": [100.0, number.to_string()]}));
        }
    }
    let result = serde_json::Value::from(result);
    let body = format!(
        "{{\"status\":\"success\",\"data\":{{\"resultType\":\"vector\",\"result\":{result}}}{more}}}"
    );
    http("200 OK", "content-type: application/json\r\n", body.as_bytes())
}

/// Gauges come without the time of their sample.
fn answers(
    series: &'static [(&'static str, &'static str, f64, f64)],
) -> impl Fn(&str) -> Vec<u8> + Send + Sync {
    move |request| {
        if request.contains("tidegate_part") {
            return vector(series, "");
        }
        let result: Vec<_> = series
            .iter()
            .map(|(instance, job, ..)| {
                serde_json::json!({"metric": {"instance": instance, "job": job}, "value": [100.0, "2"]})
            })
            .collect();
        let result = serde_json::Value::from(result);
        let body = format!(
            "{{\"status\":\"success\",\"data\":{{\"resultType\":\"vector\",\"result\":{result}}},\
             \"warnings\":[\"results are partial\"]}}"
        );
        http("200 OK", "", body.as_bytes())
    }
}

fn work(round: &PoolRound) -> Vec<(String, f64)> {
    let up = |reading: &tidegate::observe::Reading| match &reading.outcome {
        Outcome::Up(signals) => Some((reading.replica.as_str().to_owned(), signals.work_done.unwrap())),
        _ => None,
    };
    round.replicas.iter().filter_map(up).collect()
}

#[tokio::test]
async fn an_instance_under_two_jobs_is_one_replica_and_warnings_are_told() {
    let stub = Stub::new(answers(&[
        ("a:1", "old", 500.0, 95.0),
        ("a:1", "new", 520.0, 99.0),
        ("b:1", "new", 7.0, 99.0),
    ]));
    let stub = stub.await;
    let mut sources = sources(SourcePolicy::prometheus(stub.url()));
    let round = round(&mut sources).await;
    assert_eq!(work(&round), [("a:1".to_owned(), 520.0), ("b:1".to_owned(), 7.0)]);
    let Outcome::Up(signals) = &round.replicas[0].outcome else { panic!("{round:?}") };
    assert_eq!(signals.running, Some(2.0), "the two jobs were added up");
    assert_eq!(round.warnings, ["results are partial", "`a:1` is scraped by several jobs and counted once"]);
}

#[tokio::test]
async fn two_servers_are_a_pair_and_one_is_enough() {
    let one = Stub::new(answers(&[("a:1", "j", 500.0, 99.0), ("b:1", "j", 10.0, 90.0)])).await;
    let two =
        Stub::new(answers(&[("a:1", "j", 480.0, 97.0), ("b:1", "j", 12.0, 98.0), ("c:1", "j", 3.0, 99.0)]))
            .await;
    let pair =
        |servers: Vec<String>| sources(SourcePolicy::Prometheus { servers, access: Access::default() });
    let wanted = [("a:1".to_owned(), 500.0), ("b:1".to_owned(), 12.0), ("c:1".to_owned(), 3.0)];
    let mut both = pair(vec![one.url(), two.url()]);
    assert_eq!(work(&round(&mut both).await), wanted);
    let mut half = pair(vec![one.url(), format!("http://{}", nobody().await)]);
    let round = round(&mut half).await;
    assert_eq!((work(&round).len(), round.failed.clone()), (2, None));
    assert!(round.warnings[0].contains("connection refused"), "{round:?}");
}

#[tokio::test]
async fn a11_a_source_that_refuses_is_left_alone_and_asked_again() {
    let away = Stub::new(|_| page()).await;
    let html = b"<html>log in</html>";
    let refusals: Vec<(Vec<u8>, &str)> = vec![
        (http("401 Unauthorized", "", html), "HTTP 401"),
        (http("403 Forbidden", "", b""), "HTTP 403"),
        (http("429 Too Many Requests", "retry-after: 2\r\n", b""), "HTTP 429"),
        (http("500 Internal Server Error", "", html), "HTTP 500"),
        (
            http("302 Found", "location: http://169.254.169.254/latest/meta-data\r\n", b""),
            "redirects are not followed",
        ),
        (http("307 Temporary", &format!("location: {}\r\n", away.url()), b""), "redirects are not followed"),
        (http("200 OK", "content-type: text/html\r\n", html), ""),
    ];
    let mut cases = tokio::task::JoinSet::new();
    for (refusal, reason) in refusals {
        for prometheus in [true, false] {
            cases.spawn(refused_until_well(refusal.clone(), reason, prometheus));
        }
    }
    while let Some(case) = cases.join_next().await {
        case.unwrap();
    }
    assert_eq!(away.count(), 0, "a redirect was followed");
}

async fn refused_until_well(refusal: Vec<u8>, reason: &'static str, prometheus: bool) {
    let well = Arc::new(Mutex::new(false));
    let switch = Arc::clone(&well);
    let good = answers(&[("a:1", "j", 500.0, 99.0)]);
    let stub = Stub::new(move |request| match (*switch.lock().unwrap(), prometheus) {
        (true, true) => good(request),
        (true, false) => page(),
        (false, _) => refusal.clone(),
    })
    .await;
    let source = match prometheus {
        true => SourcePolicy::prometheus(stub.url()),
        false => SourcePolicy::targets(vec![stub.url()]),
    };
    let mut sources = sources(source);
    let told = trouble(&round(&mut sources).await).unwrap();
    assert!(told.contains(reason), "{told}");
    // A page of HTML is what many servers show by mistake; only a Prometheus has its reader.
    if prometheus || !reason.is_empty() {
        let asked = stub.count();
        let told = trouble(&round(&mut sources).await).unwrap();
        assert!(told.starts_with("it refused; asked again in "), "{told}");
        assert_eq!(stub.count(), asked, "it was asked again at once");
    }
    *well.lock().unwrap() = true;
    let begun = std::time::Instant::now();
    while trouble(&round(&mut sources).await).is_some() {
        assert!(begun.elapsed() < LONG, "{reason}: it is not asked again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a11_retry_after_is_waited_for() {
    let stub = Stub::new(|_| http("429 Too Many Requests", "retry-after: 30\r\n", b"")).await;
    let mut sources = sources(SourcePolicy::targets(vec![stub.url()]));
    assert_eq!(trouble(&round(&mut sources).await).as_deref(), Some("HTTP 429"));
    let told = trouble(&round(&mut sources).await).unwrap();
    let seconds: u64 = told.rsplit(' ').nth(1).unwrap().parse().unwrap();
    assert!((29..=46).contains(&seconds), "{told}");
}

/// Every query of every preset, and what it reads, on a server that has its own opinion of PromQL.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_prometheus_reads_every_preset() {
    let dir = tempfile::tempdir().unwrap();
    let pages = [
        ("vllm", "vllm-0.32.0-preempting", 6.0),
        ("sglang", "sglang-documented", 82.0),
        ("trtllm", "trtllm-documented", 64.0),
        ("tgi", "tgi-documented", 32.0),
        ("llamacpp", "llamacpp-under-load", 4.0),
        ("triton", "triton-trtllm-documented", 28.0),
        ("dynamo", "dynamo-frontend-documented", 57.0),
        ("ray-serve", "ray-serve-documented", 9.0),
    ];
    let mut targets = Vec::new();
    for (_, name, _) in pages {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/captures/{name}.prom"));
        targets.push(replica(&std::fs::read_to_string(path).unwrap()).await.to_string());
    }
    let Some(prometheus) = Prometheus::scraping(dir.path(), &targets).await else { return };
    for (at, (name, _, running)) in pages.into_iter().enumerate() {
        for selector in [String::new(), format!("job=\"fleet\",instance=\"{}\"", targets[at])] {
            let mut policy = whole(SourcePolicy::prometheus(prometheus.url()));
            let known = preset::prometheus(name, &selector).unwrap();
            policy.pools.get_mut("gpu").unwrap().signals = known.signals;
            let clock = Arc::new(SystemClock::starting_at(Instant(1_000_000_000_000)));
            let mut sources = Sources::new(clock, &policy).unwrap();
            let signals = until(name, async || {
                let round = round(&mut sources).await;
                let mine = round.replicas.iter().find(|reading| reading.replica.as_str() == targets[at])?;
                match &mine.outcome {
                    Outcome::Up(signals) if signals.waiting.is_some() => Some(*signals),
                    _ => None,
                }
            })
            .await;
            assert_eq!(signals.running, Some(running), "{name}");
            assert!(signals.work_done.is_some_and(|work| work > 0.0), "{name} {signals:?}");
        }
    }
}

/// A line of /proc/PID/status, in KiB.
fn memory(program: &Program, name: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse().unwrap()
}

/// What is too large in one way or another: a page beside a good answer, or the other way round.
fn oversized() -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let answer = |text: String| http("200 OK", "", text.as_bytes());
    let well = vector(&[("a:1", "j", 500.0, 99.0)], "");
    let member = gzip(&vec![b'#'; 1 << 20]);
    let labelled: String = (0..1_000_000).map(|at| format!("a{{b=\"{at:x}\"}} 1\n")).collect();
    let mapped: String =
        (0..400_000).map(|at| format!("vllm:num_requests_running{{e=\"{at:x}\"}} 1\n")).collect();
    let series: String = (0..250_000)
        .map(|at| format!("{{\"metric\":{{\"instance\":\"{at:x}\"}},\"value\":[1,\"1\"]}},"))
        .collect();
    let series = format!(
        "{{\"status\":\"success\",\"data\":{{\"resultType\":\"vector\",\"result\":[{}]}}}}",
        series.trim_end_matches(',')
    );
    let announced = b"HTTP/1.1 200 OK\r\ncontent-length: 1073741824\r\n\r\n#\n".to_vec();
    let endless =
        [b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n".as_slice(), &vec![b'#'; 64 << 20]].concat();
    let bomb = http("200 OK", "content-encoding: gzip\r\n", &member.repeat(1024));
    let chained = http("200 OK", "content-encoding: gzip, gzip\r\n", &gzip(&member));
    let page = |what, body| (what, body, well.clone());
    vec![
        page("an announced gigabyte", announced),
        page("a body without end", endless.clone()),
        page("a gigabyte in a megabyte of gzip", bomb.clone()),
        page("gzip in gzip", chained),
        page("a million series", answer(labelled)),
        page("many series of one signal", answer(mapped)),
        ("an answer without end", self::page(), endless),
        ("an answer of a gigabyte in a megabyte of gzip", self::page(), bomb),
        ("many series in an answer", self::page(), answer(series)),
    ]
}

/// One source that is read directly, one Prometheus, and beside them a replica that is well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a03_a09_memory_is_bounded_whatever_a_source_sends() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("policies")).unwrap();
    let now = Arc::new(Mutex::new((page(), vector(&[("a:1", "j", 500.0, 99.0)], ""))));
    let (for_pages, for_queries) = (Arc::clone(&now), Arc::clone(&now));
    let pages = Stub::new(move |_| for_pages.lock().unwrap().0.clone()).await;
    let queries = Stub::new(move |_| for_queries.lock().unwrap().1.clone()).await;
    let well = replica(PAGE).await;
    let text = format!(
        "product: chat\ninterval: 1s\npools:\n  gpu: {{preset: vllm, slo: 1s, targets: [http://{well}, {}]}}\n  \
         far: {{preset: vllm, slo: 1s, prometheus: {}}}\nmodels:\n  m: {{pool: gpu}}\n  n: {{pool: far}}\ntiers:\n  \
         free: {{priority: 1, weight: 1, guarantee: 6k tpm, ceiling: 40k tpm, key_limits: unlimited}}\n",
        pages.url(),
        queries.url()
    );
    std::fs::write(dir.path().join("policies/chat.yaml"), text).unwrap();
    let program = Program::start(dir.path(), "127.0.0.1:0");
    let asked = |count: usize| {
        let (pages, queries) = (&pages, &queries);
        let (first, second) = (pages.count() + count, queries.count() + count);
        until("some rounds", async move || {
            (pages.count() >= first && queries.count() >= second).then_some(())
        })
    };
    asked(4).await;
    let before = memory(&program, "VmRSS:");
    // From here on the high-water mark is of what follows.
    std::fs::write(format!("/proc/{}/clear_refs", program.child.id()), "5").unwrap();
    for (what, as_page, as_answer) in oversized() {
        *now.lock().unwrap() = (as_page, as_answer);
        asked(2).await;
        let peak = memory(&program, "VmHWM:");
        eprintln!("{what}: {} KiB above {before} KiB", peak.saturating_sub(before));
        // A Prometheus has seven answers at a time, on threads whose allocators keep what they had.
        let most = if what.contains("answer") { 96 << 10 } else { 32 << 10 };
        assert!(peak.saturating_sub(before) <= most, "{what}: from {before} to {peak} KiB");
    }
    let status = get(program.addr, "/v1/status").await.text();
    assert!(status.contains(&well.to_string()), "the replica that is well is not read: {status}");
}
