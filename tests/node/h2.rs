//! HTTP/2 is not served: what speaks it hears so and costs one connection.

use std::time::Duration;

use crate::support::node::*;
use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A rapid reset (CVE-2023-44487): streams opened and reset without waiting, in CONTINUATIONs too.
fn flood() -> Vec<u8> {
    let mut bytes = [PREFACE, &frame(4, 0, 0, &[])].concat();
    for stream in (1..20_001).step_by(2) {
        bytes.extend(frame(1, 0, stream, &[0x82, 0x87, 0x84]));
        bytes.extend(frame(9, 4, stream, &[0x41; 16]));
        bytes.extend(frame(3, 0, stream, &8_u32.to_be_bytes()));
    }
    bytes
}

#[tokio::test]
async fn h11_http2_is_refused_with_the_connection_and_others_are_served() {
    let rig = Rig::with(&table(1, &[]), |config| config.caps.connections = 32).await;
    let mut answers = Vec::new();
    for _ in 0..16 {
        let mut socket = TcpStream::connect(rig.node.proxy).await.unwrap();
        // The node may close while it is still being written to.
        let _ = timed(socket.write_all(&flood())).await;
        let mut answer = Vec::new();
        let _ = timed(socket.read_to_end(&mut answer)).await;
        answers.push(answer);
    }
    for answer in &answers {
        let text = String::from_utf8_lossy(answer);
        assert!(
            answer.is_empty() || text.starts_with("HTTP/1.1 4") || text.starts_with("HTTP/1.1 5"),
            "{text}"
        );
        assert!(answer.len() < 1_000, "one answer for ten thousand streams: {text}");
    }
    // An upgrade is another way to ask for it.
    let mut upgrade = rig.chat("", false);
    upgrade.headers_mut().insert("upgrade", "h2c".parse().unwrap());
    upgrade.headers_mut().insert("connection", "upgrade, http2-settings".parse().unwrap());
    assert_eq!(rig.answer(upgrade).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(rig.upstream.requests(), 0, "nothing of it was passed on");
    let begun = tokio::time::Instant::now();
    assert_eq!(rig.answer(rig.chat("", false)).await.0, StatusCode::OK);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}
