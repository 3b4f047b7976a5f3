//! `requests.txt` against a node: what is answered, whether the connection lives, and that the
//! upstream sees exactly the requests that were admitted.

use crate::support::node::*;
use serde_json::json;
use tidegate::enforce::framing::Framing;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

struct Case {
    name: &'static str,
    statuses: Vec<&'static str>,
    open: bool,
    served: usize,
    bytes: Vec<u8>,
}

fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for line in include_str!("requests.txt").lines().filter(|line| !line.starts_with('#')) {
        if let Some((name, expected)) = line.strip_prefix('[').and_then(|line| line.split_once(']')) {
            let mut words: Vec<_> = expected.split_whitespace().collect();
            let served = words.pop().unwrap().parse().unwrap();
            let open = match words.pop().unwrap() {
                "open" => true,
                "close" => false,
                other => panic!("{name}: {other}"),
            };
            cases.push(Case { name, statuses: words, open, served, bytes: Vec::new() });
        } else if let Some(case) = cases.last_mut() {
            unescape(&line.replace("{key}", KEY), &mut case.bytes);
        }
    }
    cases
}

fn unescape(text: &str, out: &mut Vec<u8>) {
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.extend_from_slice(before.as_bytes());
        let (byte, taken) = match after.as_bytes()[0] {
            b'r' => (b'\r', 1),
            b'n' => (b'\n', 1),
            b'x' => (u8::from_str_radix(&after[1..3], 16).unwrap(), 3),
            other => panic!("\\{} in {text}", char::from(other)),
        };
        out.push(byte);
        rest = &after[taken..];
    }
    out.extend_from_slice(rest.as_bytes());
}

/// A good request, and the last of its connection.
fn last() -> Vec<u8> {
    let body = json!({"model": "m"}).to_string();
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nx-api-key: {KEY}\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// The statuses of all answers until the connection ends.
async fn converse(rig: &Rig, bytes: &[u8], piece: usize) -> (Vec<String>, String) {
    let (mut reader, mut writer) = TcpStream::connect(rig.node.proxy).await.unwrap().into_split();
    writer.as_ref().set_nodelay(true).unwrap();
    let send = async {
        for piece in bytes.chunks(piece) {
            // The other side may have closed already, which is what is asked of it.
            if writer.write_all(piece).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let mut answer = Vec::new();
    let receive = async {
        let mut buffer = [0; 4_096];
        while let Ok(read @ 1..) = reader.read(&mut buffer).await {
            answer.extend_from_slice(&buffer[..read]);
        }
    };
    timed(futures_util::future::join(send, receive)).await;
    let text = String::from_utf8_lossy(&answer).into_owned();
    let statuses = text.split("HTTP/1.").skip(1).map(|answer| answer[2..5].to_owned()).collect();
    (statuses, text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i05_the_upstream_sees_exactly_the_admitted_requests() {
    let rig = Rig::start(&table(1, &[])).await;
    let cases = cases();
    assert!(cases.len() >= 60, "{}", cases.len());
    for case in &cases {
        let bytes = [case.bytes.as_slice(), &last()].concat();
        let mut expected = case.statuses.clone();
        expected.extend(case.open.then_some("200"));
        // In one piece, byte by byte, and cut inside of lines.
        for piece in [usize::MAX, 1, 7] {
            let before = rig.upstream.requests();
            let (statuses, text) = converse(&rig, &bytes, piece).await;
            // A connection that closes may take its last answer along while more is sent to it.
            let optional = expected.last().is_some_and(|status| status.ends_with('?'));
            let cut = !case.open && (optional || piece == 1);
            let wanted: Vec<_> = expected.iter().map(|status| status.trim_end_matches('?')).collect();
            let answered = statuses == wanted || cut && statuses == wanted[..wanted.len() - 1];
            assert!(answered, "{} by {piece}: {text}", case.name);
            rig.settled().await;
            let served = rig.upstream.requests() - before;
            assert_eq!(served, case.served + usize::from(case.open), "{} by {piece}: {text}", case.name);
        }
    }
    for (_, headers, body) in rig.upstream.seen.lock().unwrap().iter() {
        assert_eq!(&body[..], br#"{"model":"m"}"#);
        assert_eq!(headers["content-length"], "13");
        for name in ["transfer-encoding", "x-tier", "x-api-key", "trailer"] {
            assert!(!headers.contains_key(name), "{name}: {headers:?}");
        }
    }
}

#[test]
fn i05_every_request_that_is_served_is_framed_strictly() {
    for case in cases() {
        let framed = Framing::default().check(&case.bytes);
        if case.open {
            assert_eq!(framed, Ok(()), "{}", case.name);
        }
    }
}
