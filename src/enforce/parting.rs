//! The end that a node puts to a stream of server-sent events: after a whole event, with one that
//! says why.
//!
//! The words are those of the dialect. How the event is made follows the stream: where its events
//! have names, as Anthropic's and those of OpenAI's responses do, it is named `error`; where they
//! have none, as in OpenAI's chat completions, it is data alone. Clients of both raise it as an
//! error. (WHATWG HTML, 9.2: an event ends with an empty line.)

use bytes::Bytes;

use crate::enforce::limiter::Quotas;
use crate::enforce::purse::Past;
use crate::enforce::render::Moment;
use crate::enforce::ticket::Request;
use crate::enforce::voice::Voice;
use crate::wire::LimitTable;

/// How far a stream may be passed on, and with what it ends.
#[derive(Clone, Debug)]
pub struct Parting {
    event: Bytes,
    tail: Tail,
}

/// The last bytes of a stream that were passed on: enough for an empty line after another.
#[derive(Clone, Copy, Debug)]
pub struct Tail([u8; 3]);

// === impl Parting ===

impl Parting {
    /// `named`: whether the stream's events have names. `sent` was passed on last.
    pub fn new(table: &LimitTable, past: &Past, moment: Moment, named: bool, sent: Tail) -> Parting {
        let Past { refusal, model, tier } = past;
        let voice = Voice::of(Some(table), model.as_str(), tier.as_str());
        let request = Request::new(model.as_str(), tier.as_str(), [0; 32]);
        let words = voice.words(refusal, &request, &Quotas::default(), moment);
        let words = words.map(http::Response::into_body).unwrap_or_default();
        let mut event = Vec::from(if named { &b"event: error\n"[..] } else { b"" });
        for line in words.split(|byte| *byte == b'\n') {
            event.extend_from_slice(b"data: ");
            event.extend_from_slice(line);
            event.push(b'\n');
        }
        event.push(b'\n');
        Parting { event: event.into(), tail: sent }
    }

    /// A piece of the stream up to the end of its last whole event, and the parting event; none
    /// while an event is under way at its end, when all of it has to be passed on.
    pub fn end(&mut self, piece: &Bytes) -> Option<Bytes> {
        let Tail(tail) = self.tail;
        let all = [&tail[..], piece].concat();
        let ends = |end: usize| {
            let before = all.get(..end).unwrap_or_default();
            before.ends_with(b"\n\n") || before.ends_with(b"\n\r\n")
        };
        // What is in the tail was passed on already.
        let end = (tail.len()..=all.len()).rev().find(|end| ends(*end));
        let Some(end) = end else {
            self.tail.pass(piece);
            return None;
        };
        let whole = all.get(tail.len()..end).unwrap_or_default();
        Some([whole, &self.event].concat().into())
    }
}

// === impl Tail ===

impl Default for Tail {
    /// Nothing was sent, so nothing is under way.
    fn default() -> Tail {
        Tail(*b"\n\n\n")
    }
}

impl Tail {
    pub fn pass(&mut self, piece: &[u8]) {
        let all = [&self.0[..], piece].concat();
        if let Some(last) = all.last_chunk() {
            self.0 = *last;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_ends_after_a_whole_event_wherever_its_pieces_end() {
        let stream = "data: a\n\nevent: x\r\ndata: b\r\n\r\n: c\n\ndata: d\n\n";
        let bounds: Vec<usize> = vec![0, 9, 30, 35, stream.len()];
        for begin in 0..stream.len() {
            for end in begin + 1..=stream.len() {
                let (mut tail, event) = (Tail::default(), Bytes::from_static(b"!"));
                tail.pass(&stream.as_bytes()[..begin]);
                let mut parting = Parting { event, tail };
                let piece = Bytes::copy_from_slice(&stream.as_bytes()[begin..end]);
                let expected = bounds.iter().rfind(|bound| (begin..=end).contains(*bound));
                let told = parting.end(&piece).map(|told| String::from_utf8(told.to_vec()).unwrap());
                assert_eq!(
                    told,
                    expected.map(|bound| format!("{}!", &stream[begin..*bound])),
                    "{begin} {end}"
                );
            }
        }
    }
}
