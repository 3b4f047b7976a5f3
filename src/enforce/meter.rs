//! Reads what a response used while it passes by: server-sent events or one JSON body.
//!
//! Incremental and bounded: of a stream at most one line is kept, of a JSON body at most
//! [`ANSWER_JSON_BYTES_MAX`]. Usage that never comes is made up for by the events counted.

use crate::bounds::ANSWER_JSON_BYTES_MAX;
use crate::bounds::STREAM_LINE_BYTES_MAX;
use crate::bounds::USAGE_TOKENS_MAX;
use crate::enforce::room::Part;
use bytes::Bytes;
use serde::Deserialize;

#[derive(Debug)]
pub struct Meter {
    kind: Kind,
    usage: Usage,
    /// Content events seen.
    events: u64,
    /// The stream said that it is over, whatever its connection does.
    over: bool,
    /// Its events have names.
    named: bool,
    /// For what is kept of the body.
    part: Part,
}

#[derive(Debug)]
enum Kind {
    Events {
        line: Vec<u8>,
        /// The line so far is too long and only passed on.
        skipping: bool,
        /// Keep the usage event from the client, who did not ask for it.
        hide: bool,
        /// A hidden line's empty line goes too.
        swallow: bool,
    },
    Json {
        body: Vec<u8>,
        whole: bool,
    },
    Opaque,
}

/// Tokens as far as the upstream has said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Uncached.
    pub input: Option<u64>,
    /// Input that the upstream had cached.
    pub cached: Option<u64>,
    pub output: Option<u64>,
}

#[derive(Deserialize)]
struct Event {
    usage: Option<Reported>,
    /// Where Anthropic's first event has it.
    message: Option<Message>,
    /// Where the last event of OpenAI's responses has it.
    response: Option<Message>,
    choices: Option<Vec<serde::de::IgnoredAny>>,
}

#[derive(Deserialize)]
struct Message {
    usage: Option<Reported>,
}

/// Both vocabularies; some servers write both at once, which an alias would take for a mistake.
#[derive(Deserialize)]
struct Reported {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    prompt_tokens_details: Option<Details>,
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    input_tokens_details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    cached_tokens: Option<u64>,
}

// === impl Meter ===

impl Meter {
    /// For a response of this content type. What is encoded cannot be read, nor counted.
    pub fn new(content_type: Option<&str>, encoded: bool, hide_usage: bool, part: Part) -> Meter {
        let kind =
            content_type.filter(|_| !encoded).map(|value| value.split(';').next().unwrap_or(value).trim());
        let kind = match kind {
            Some(kind) if kind.eq_ignore_ascii_case("text/event-stream") => {
                Kind::Events { line: Vec::new(), skipping: false, hide: hide_usage, swallow: false }
            }
            Some(kind) if kind.eq_ignore_ascii_case("application/json") => {
                Kind::Json { body: Vec::new(), whole: true }
            }
            _ => Kind::Opaque,
        };
        Meter { kind, usage: Usage::default(), events: 0, over: false, named: false, part }
    }

    /// Looks at a piece of the body; what comes back goes to the client.
    pub fn feed(&mut self, piece: Bytes) -> Bytes {
        let Meter { kind, usage, events, over, named, part } = self;
        match kind {
            Kind::Opaque => piece,
            Kind::Json { body, whole } => {
                let bytes = body.len() + piece.len();
                *whole = *whole && bytes <= ANSWER_JSON_BYTES_MAX && part.resize(bytes);
                if *whole {
                    body.extend_from_slice(&piece);
                } else {
                    *body = Vec::new();
                    part.resize(0);
                }
                piece
            }
            Kind::Events { line, skipping, hide, swallow } => {
                let mut out = Vec::new();
                for some in piece.split_inclusive(|byte| *byte == b'\n') {
                    if *skipping {
                        out.extend_from_slice(some);
                        *skipping = !some.ends_with(b"\n");
                        continue;
                    }
                    line.extend_from_slice(some);
                    if !line.ends_with(b"\n") {
                        if line.len() > STREAM_LINE_BYTES_MAX || !part.resize(line.len()) {
                            *skipping = true;
                            out.append(line);
                        }
                        continue;
                    }
                    let empty = matches!(line.as_slice(), b"\n" | b"\r\n");
                    let seen = look(line, usage);
                    *named |= line.starts_with(b"event:");
                    *events += u64::from(seen == Seen::Content);
                    *over |= matches!(seen, Seen::UsageOnly | Seen::Done);
                    let hidden = *hide && (seen == Seen::UsageOnly || (empty && *swallow));
                    *swallow = *hide && seen == Seen::UsageOnly;
                    if !hidden {
                        out.extend_from_slice(line);
                    }
                    line.clear();
                }
                if line.is_empty() {
                    // One long line is no reason to hold on to its memory.
                    *line = Vec::new();
                    part.resize(0);
                }
                // Only a filtered stream waits for the end of a line.
                if *hide { out.into() } else { piece }
            }
        }
    }

    /// What was held back when the body ends.
    pub fn finish(&mut self) -> Bytes {
        match &mut self.kind {
            Kind::Events { line, hide, .. } => {
                let rest = std::mem::take(line);
                self.events += u64::from(look(&rest, &mut self.usage) == Seen::Content);
                if *hide { rest.into() } else { Bytes::new() }
            }
            Kind::Json { body, .. } => {
                let body = std::mem::take(body);
                if let Ok(event) = serde_json::from_slice::<Event>(&body) {
                    self.usage.merge(event);
                }
                Bytes::new()
            }
            Kind::Opaque => Bytes::new(),
        }
    }

    /// The JSON body so far, where there is one and all of it is kept.
    pub fn json(&self) -> Option<&[u8]> {
        match &self.kind {
            Kind::Json { body, whole: true } => Some(body),
            _ => None,
        }
    }

    /// What the upstream reported so far.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// Output tokens seen, at least: an event carries one or more.
    pub fn output_seen(&self) -> u64 {
        self.events.max(self.usage.output.unwrap_or(0))
    }

    /// Content events seen.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Whether a stream's terminal event has passed: what is known then is final, also when the
    /// client does not wait for the connection's end.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Whether events of the stream have names.
    pub fn is_named(&self) -> bool {
        self.named
    }

    pub fn is_events(&self) -> bool {
        matches!(self.kind, Kind::Events { .. })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Seen {
    Nothing,
    Content,
    /// OpenAI's last event: usage, and no choices.
    UsageOnly,
    Done,
}

fn look(line: &[u8], usage: &mut Usage) -> Seen {
    let Some(data) = line.strip_prefix(b"data:") else {
        return Seen::Nothing;
    };
    let data = data.trim_ascii();
    if data.is_empty() {
        return Seen::Nothing;
    }
    if data == b"[DONE]" {
        return Seen::Done;
    }
    if !contains(data, b"\"usage\"") {
        return Seen::Content;
    }
    let Ok(event) = serde_json::from_slice::<Event>(data) else {
        return Seen::Content;
    };
    let no_choices = event.choices.as_ref().is_some_and(Vec::is_empty);
    let reported = event.usage.is_some() || event.message.is_some() || event.response.is_some();
    let only = event.usage.is_some() && no_choices;
    let content = event.choices.as_ref().is_some_and(|choices| !choices.is_empty());
    usage.merge(event);
    match (only, content || !reported) {
        (true, _) => Seen::UsageOnly,
        (false, true) => Seen::Content,
        (false, false) => Seen::Nothing,
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

// === impl Usage ===

impl Usage {
    /// Later reports replace earlier ones, field by field.
    fn merge(&mut self, event: Event) {
        let nested = event.message.or(event.response).and_then(|message| message.usage);
        for reported in [nested, event.usage].into_iter().flatten() {
            let details = reported.prompt_tokens_details.or(reported.input_tokens_details);
            let cached = details.and_then(|details| details.cached_tokens).unwrap_or(0);
            if let Some(input) = reported.prompt_tokens.or(reported.input_tokens) {
                let input = input.min(USAGE_TOKENS_MAX);
                // A part is not more than the whole.
                let cached = cached.min(input);
                self.input = Some(input - cached);
                self.cached = Some(cached);
            }
            if let Some(output) = reported.completion_tokens.or(reported.output_tokens) {
                self.output = Some(output.min(USAGE_TOKENS_MAX));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::enforce::room::Room;

    use super::*;

    const STREAM: &str = concat!(
        "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\"b\"}}],\"usage\":null}\r\n\r\n",
        ": comment\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":5,",
        "\"prompt_tokens_details\":{\"cached_tokens\":4}}}\n\n",
        "data: [DONE]\n\n"
    );

    fn run(hide: bool, size: usize) -> (String, Meter) {
        let mut meter =
            Meter::new(Some("text/event-stream; charset=utf-8"), false, hide, Room::new(1 << 24).part());
        let mut out = Vec::new();
        for piece in STREAM.as_bytes().chunks(size) {
            out.extend_from_slice(&meter.feed(Bytes::copy_from_slice(piece)));
        }
        out.extend_from_slice(&meter.finish());
        (String::from_utf8(out).unwrap(), meter)
    }

    #[test]
    fn usage_is_found_at_every_cut_and_the_stream_is_not_changed() {
        for size in 1..STREAM.len() {
            let (out, meter) = run(false, size);
            assert_eq!(out, STREAM);
            assert_eq!(meter.usage(), Usage { input: Some(5), cached: Some(4), output: Some(5) });
            assert_eq!(meter.output_seen(), 5);
            assert_eq!(meter.events, 2);
        }
    }

    #[test]
    fn usage_the_client_did_not_ask_for_is_hidden_at_every_cut() {
        let usage = STREAM.find("data: {\"choices\":[],").unwrap()..STREAM.find("data: [DONE]").unwrap();
        let expected = [&STREAM[..usage.start], &STREAM[usage.end..]].concat();
        for size in 1..STREAM.len() {
            let (out, meter) = run(true, size);
            assert_eq!(out, expected);
            assert_eq!(meter.usage().output, Some(5));
        }
    }

    #[test]
    fn anthropic_usage_comes_in_two_events() {
        let mut meter = Meter::new(Some("text/event-stream"), false, false, Room::new(1 << 24).part());
        for event in [
            "event: message_start\ndata: {\"message\":{\"usage\":{\"input_tokens\":7,\"output_tokens\":1}}}\n\n",
            "data: {\"delta\":{\"text\":\"x\"}}\n\n",
            "data: {\"delta\":{},\"usage\":{\"output_tokens\":30}}\n\n",
        ] {
            meter.feed(Bytes::from(event));
        }
        assert_eq!(meter.usage(), Usage { input: Some(7), cached: Some(0), output: Some(30) });
    }

    #[test]
    fn usage_of_the_responses_api_and_of_servers_that_write_both_vocabularies() {
        let mut meter = Meter::new(Some("text/event-stream"), false, false, Room::new(1 << 24).part());
        for event in [
            "data: {\"type\":\"response.created\",\"response\":{\"usage\":null}}\n\n",
            "data: {\"type\":\"response.output_text.delta\",\"delta\":\"x\"}\n\n",
            "data: {\"type\":\"response.completed\",\"response\":{\"usage\":{\"input_tokens\":9,\"output_tokens\":30,\
             \"input_tokens_details\":{\"cached_tokens\":2}}}}\n\n",
        ] {
            meter.feed(Bytes::from(event));
        }
        assert_eq!(meter.usage(), Usage { input: Some(7), cached: Some(2), output: Some(30) });
        assert_eq!(meter.events, 1);
        let mut both = Meter::new(Some("application/json"), false, false, Room::new(1 << 24).part());
        both.feed(Bytes::from_static(
            b"{\"usage\":{\"prompt_tokens\":3,\"input_tokens\":3,\"completion_tokens\":4,\"output_tokens\":4}}",
        ));
        both.finish();
        assert_eq!(both.usage(), Usage { input: Some(3), cached: Some(0), output: Some(4) });
    }

    #[test]
    fn a_stream_is_over_at_its_last_event_and_not_before() {
        let (_, meter) = run(false, 1_000);
        assert!(meter.is_over());
        let mut meter = Meter::new(Some("text/event-stream"), false, false, Room::new(1 << 24).part());
        meter.feed(Bytes::from_static(b"data: {\"choices\":[{}]}\n\ndata: [DON"));
        assert!(!meter.is_over());
        meter.feed(Bytes::from_static(b"E]\r\n"));
        assert!(meter.is_over());
    }

    #[test]
    fn json_bodies_absurd_numbers_and_endless_lines() {
        let mut meter = Meter::new(Some("application/json"), false, false, Room::new(1 << 24).part());
        meter.feed(Bytes::from_static(b"{\"choices\":[{}],\"usage\":{\"prompt_tokens\":3,"));
        meter.feed(Bytes::from_static(b"\"completion_tokens\":18446744073709551615}}"));
        meter.finish();
        assert_eq!(meter.usage(), Usage { input: Some(3), cached: Some(0), output: Some(USAGE_TOKENS_MAX) });
        let mut endless = Meter::new(Some("text/event-stream"), false, true, Room::new(1 << 24).part());
        let mut passed = 0;
        for _ in 0..100 {
            passed += endless.feed(Bytes::from(vec![b'x'; 10_000])).len();
        }
        passed += endless.finish().len();
        assert_eq!(passed, 1_000_000);
    }

    #[test]
    fn h12_answers_that_find_no_room_pass_unread_and_give_theirs_back() {
        let room = Room::new(1_000);
        let json = || Meter::new(Some("application/json"), false, false, room.part());
        let (mut large, mut small) = (json(), json());
        let usage = Bytes::from_static(b"{\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4}}");
        assert_eq!(large.feed(Bytes::from(vec![b' '; 990])).len(), 990);
        assert_eq!(small.feed(usage.clone()), usage, "passed on all the same");
        small.finish();
        assert_eq!(small.usage(), Usage::default());
        large.feed(Bytes::from(vec![b' '; 990]));
        let mut next = json();
        next.feed(usage.clone());
        next.finish();
        assert_eq!(next.usage(), Usage { input: Some(3), cached: Some(0), output: Some(4) });
        let mut stream = Meter::new(Some("text/event-stream"), false, true, room.part());
        let endless = Bytes::from(vec![b'x'; 2_000]);
        assert_eq!(stream.feed(endless.clone()), endless);
        drop((large, small, next, stream));
        assert!(room.part().resize(1_000));
    }
}
