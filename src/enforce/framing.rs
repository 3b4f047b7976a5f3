//! Where one HTTP/1.1 request ends and the next begins, read strictly.
//!
//! The HTTP library reads leniently, as the standard allows: a line may end in a bare LF, a
//! `Transfer-Encoding` beats a `Content-Length`. A proxy in front that reads otherwise sees other
//! requests on the same bytes, and that is how requests are smuggled. What two readers could take
//! for different things is therefore refused here, before the library sees it.
//!
//! Pure and incremental: bytes in, in any pieces; the place of the first bad one out. Of a head
//! only the fields that frame the body are kept.

use crate::bounds::FRAMING_VALUE_BYTES_MAX;

const CONTENT_LENGTH: &[u8] = b"content-length";
const TRANSFER_ENCODING: &[u8] = b"transfer-encoding";
/// As long as the longer of the two names, and one more to tell it from longer ones.
const NAME_BYTES: usize = TRANSFER_ENCODING.len() + 1;

/// A reader of one connection's requests.
#[derive(Debug, Default)]
pub struct Framing {
    at: At,
    /// The line being read follows the last chunk.
    trailer: bool,
    name: Vec<u8>,
    value: Vec<u8>,
    length: Option<u64>,
    chunked: bool,
    /// Of a chunk's size.
    digits: usize,
}

/// What the next byte belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    /// Before a request line; empty lines may precede it.
    #[default]
    Start,
    RequestLine,
    LineStart,
    Name,
    Value,
    /// After the CR of a line of this kind.
    Lf(Line),
    Body(u64),
    ChunkSize(u64),
    ChunkData(u64),
    ChunkCr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// Before a request.
    Empty,
    Request,
    Field,
    /// The last of a head or of trailers.
    End,
    Size(u64),
    Chunk,
}

// === impl Framing ===

impl Framing {
    /// Reads on.
    ///
    /// # Errors
    /// The index of the first byte that no strict reader accepts. Nothing may be read after it.
    pub fn check(&mut self, bytes: &[u8]) -> Result<(), usize> {
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            // A body's bytes say nothing and are most of what passes.
            if let At::Body(left) | At::ChunkData(left) = self.at {
                let here = left.min((bytes.len() - at) as u64);
                self.at = self.after(left - here);
                at += usize::try_from(here).unwrap_or(usize::MAX);
                continue;
            }
            self.at = self.step(*byte).ok_or(at)?;
            at += 1;
        }
        Ok(())
    }

    /// Part of a head has come, and the rest of it has not.
    pub fn in_head(&self) -> bool {
        let field = matches!(
            self.at,
            At::LineStart | At::Name | At::Value | At::Lf(Line::Empty | Line::Field | Line::End)
        );
        matches!(self.at, At::RequestLine | At::Lf(Line::Request)) || field && !self.trailer
    }

    fn after(&self, left: u64) -> At {
        match (self.at, left) {
            (At::Body(_), 0) => At::Start,
            (At::Body(_), left) => At::Body(left),
            (_, 0) => At::ChunkCr,
            (_, left) => At::ChunkData(left),
        }
    }

    fn step(&mut self, byte: u8) -> Option<At> {
        match (self.at, byte) {
            (At::Start, b'\r') => Some(At::Lf(Line::Empty)),
            (At::Start | At::RequestLine, 0x21..=0x7e) => Some(At::RequestLine),
            (At::RequestLine, b' ' | 0x80..) => Some(At::RequestLine),
            (At::RequestLine, b'\r') => Some(At::Lf(Line::Request)),
            (At::LineStart, b'\r') => Some(At::Lf(Line::End)),
            // A line that begins with a blank would continue the one before it.
            (At::LineStart | At::Name, _) if is_token(byte) => {
                if self.at == At::LineStart {
                    self.name.clear();
                    self.value.clear();
                }
                if self.name.len() < NAME_BYTES {
                    self.name.push(byte.to_ascii_lowercase());
                }
                Some(At::Name)
            }
            (At::Name, b':') => Some(At::Value),
            (At::Value, b'\r') => Some(At::Lf(Line::Field)),
            (At::Value, b'\t' | b' '..=0x7e | 0x80..) => {
                if self.frames() {
                    self.value.push(byte.to_ascii_lowercase());
                }
                (self.value.len() <= FRAMING_VALUE_BYTES_MAX).then_some(At::Value)
            }
            (At::Lf(line), b'\n') => self.line(line),
            (At::ChunkSize(size), _) if byte.is_ascii_hexdigit() => {
                let digit = u64::from(char::from(byte).to_digit(16)?);
                self.digits += 1;
                // Extensions of chunks are refused with everything else that is no digit.
                size.checked_mul(16).map(|size| At::ChunkSize(size | digit))
            }
            (At::ChunkSize(size), b'\r') if self.digits > 0 => Some(At::Lf(Line::Size(size))),
            (At::ChunkCr, b'\r') => Some(At::Lf(Line::Chunk)),
            _ => None,
        }
    }

    /// A line is complete.
    fn line(&mut self, line: Line) -> Option<At> {
        match line {
            Line::Empty => Some(At::Start),
            Line::Request => {
                *self = Framing::default();
                Some(At::LineStart)
            }
            Line::Field => self.field().then_some(At::LineStart),
            Line::End if self.trailer => {
                self.trailer = false;
                Some(At::Start)
            }
            Line::End => match (self.length, self.chunked) {
                (Some(_), true) => None,
                (_, true) => Some(self.chunk()),
                (Some(length), false) if length > 0 => Some(At::Body(length)),
                _ => Some(At::Start),
            },
            Line::Size(0) => {
                self.trailer = true;
                Some(At::LineStart)
            }
            Line::Size(size) => Some(At::ChunkData(size)),
            Line::Chunk => Some(self.chunk()),
        }
    }

    fn chunk(&mut self) -> At {
        self.digits = 0;
        At::ChunkSize(0)
    }

    fn frames(&self) -> bool {
        self.name == CONTENT_LENGTH || self.name == TRANSFER_ENCODING
    }

    /// Whether a field may stand where it does: what frames a body, once and in the head.
    fn field(&mut self) -> bool {
        if !self.frames() {
            return true;
        }
        let value = self.value.trim_ascii();
        if self.trailer || self.chunked || self.length.is_some() {
            return false;
        }
        if self.name == TRANSFER_ENCODING {
            self.chunked = value == b"chunked";
            return self.chunked;
        }
        let number = std::str::from_utf8(value).ok().filter(|text| !text.starts_with('+'));
        self.length = number.and_then(|text| text.parse().ok());
        self.length.is_some()
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &[&str] = &[
        "GET / HTTP/1.1\r\n\r\n",
        "\r\nGET /a?b HTTP/1.1\r\nhost: a\r\nX: \tb\u{e9} \r\nempty:\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length:  3 \r\n\r\n\0\n\r",
        "POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n1\r\n\n\r\n0A\r\n0123456789\r\n000\r\nx: y\r\n\r\n",
    ];

    #[test]
    fn i05_requests_are_followed_through_every_cut() {
        let all = GOOD.concat();
        for size in 1..all.len() {
            let mut framing = Framing::default();
            for piece in all.as_bytes().chunks(size) {
                framing.check(piece).unwrap();
            }
            assert_eq!(framing.at, At::Start, "cut in {size}");
            assert!(!framing.in_head());
        }
    }

    #[test]
    fn i05_what_two_readers_could_take_for_two_things_is_refused_at_its_byte() {
        // The bad byte follows the bar.
        for bad in [
            "GET / HTTP/1.1|\nhost: a\r\n\r\n",
            "GET / HTTP/1.1\r|\r\n",
            "GET /|\u{1}",
            "| GET / HTTP/1.1",
            "|\nGET",
            "GET /|\0 HTTP/1.1\r\n",
            "GET / HTTP/1.1\r\n| folded: a\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a\r\n|\tb\r\n\r\n",
            "GET / HTTP/1.1\r\nhost| : a\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a|\0\r\n",
            "GET / HTTP/1.1\r\nhost: a|\n\r\n",
            "GET / HTTP/1.1\r\n|: a\r\n",
            "GET / HTTP/1.1\r\nhost|\r\n",
            "P / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r|\n\r\n",
            "P / HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 1\r|\n\r\n",
            "P / HTTP/1.1\r\ncontent-length: 1\r\nCONTENT-LENGTH: 1\r|\n\r\n",
            "P / HTTP/1.1\r\ncontent-length: +1\r|\n\r\n",
            "P / HTTP/1.1\r\ncontent-length: 1, 1\r|\n\r\n",
            "P / HTTP/1.1\r\ncontent-length: 0x1\r|\n\r\n",
            "P / HTTP/1.1\r\ncontent-length:\r|\n\r\n",
            "P / HTTP/1.1\r\ncontent-length: 18446744073709551616\r|\n\r\n",
            "P / HTTP/1.1\r\ntransfer-encoding: gzip, chunked\r|\n\r\n",
            "P / HTTP/1.1\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r|\n\r\n",
            "P / HTTP/1.1\r\ntransfer-encoding: xchunked\r|\n\r\n",
            "P / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n|\r\n",
            "P / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1|;a=b\r\n",
            "P / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1|\nx\r\n",
            "P / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx|x",
            "P / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0x|",
            "P / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1000000000000000|0",
            "P / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\ncontent-length: 1\r|\n",
        ] {
            let (before, after) = bad.split_once('|').unwrap();
            let whole = [before, after].concat();
            let expected = if bad.contains("0x|") { before.len() - 1 } else { before.len() };
            assert_eq!(Framing::default().check(whole.as_bytes()), Err(expected), "{bad:?}");
        }
    }

    #[test]
    fn h10_a_head_is_open_from_its_first_byte_to_its_last() {
        let mut framing = Framing::default();
        let head = "GET / HTTP/1.1\r\na: b\r\ncontent-length: 1\r\n\r\n";
        assert!(!framing.in_head());
        for byte in head.bytes().take(head.len() - 1) {
            framing.check(&[byte]).unwrap();
            assert!(framing.in_head());
        }
        framing.check(b"\n").unwrap();
        assert!(!framing.in_head(), "the body has its own deadline");
    }
}
