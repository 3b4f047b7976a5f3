//! A body as it arrives, decoded and never larger than allowed, whatever it unpacks to.

use std::io::{self, Write};

use flate2::write::MultiGzDecoder;

use crate::bounds::BODY_SMALL_MAX;

/// Set aside for a body that grows large, at once: doubling would leave its halves with the
/// allocator. More than the 32 MiB up to which one keeps what is freed; what is not written to
/// takes no memory.
const LARGE_ROOM: usize = 33 << 20;

/// Takes a body piece by piece.
pub struct Body {
    sink: Sink,
    bytes_max: usize,
}

enum Sink {
    Plain(Bounded),
    // A decoder is far larger than a buffer.
    Gzip(Box<MultiGzDecoder<Bounded>>),
}

/// A buffer that refuses to pass its bound.
struct Bounded {
    bytes: Vec<u8>,
    bytes_max: usize,
    full: bool,
}

/// Why a body cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BodyError {
    TooLarge(usize),
    /// Not what its encoding says, or not all of it.
    Damaged(String),
}

// === impl Body ===

impl Body {
    /// `encoding` is the value of Content-Encoding, if any.
    ///
    /// # Errors
    /// The encoding, when it is another than `gzip` or is one inside another.
    pub fn new(encoding: Option<&str>, bytes_max: usize) -> Result<Body, String> {
        let bounded = Bounded { bytes: Vec::new(), bytes_max, full: false };
        let sink = match encoding.map(str::trim) {
            None => Sink::Plain(bounded),
            Some(plain) if plain.is_empty() || plain.eq_ignore_ascii_case("identity") => Sink::Plain(bounded),
            Some(gzip) if gzip.eq_ignore_ascii_case("gzip") || gzip.eq_ignore_ascii_case("x-gzip") => {
                Sink::Gzip(Box::new(MultiGzDecoder::new(bounded)))
            }
            Some(other) => return Err(other.chars().take(40).collect()),
        };
        Ok(Body { sink, bytes_max })
    }

    /// # Errors
    /// See [`BodyError`]; nothing may be added after one.
    pub fn add(&mut self, piece: &[u8]) -> Result<(), BodyError> {
        let (added, full) = match &mut self.sink {
            Sink::Plain(bounded) => (bounded.write_all(piece), bounded.full),
            Sink::Gzip(decoder) => (decoder.write_all(piece), decoder.get_ref().full),
        };
        self.judged(added, full)
    }

    /// Bytes so far, decoded.
    pub fn len(&self) -> usize {
        match &self.sink {
            Sink::Plain(bounded) => bounded.bytes.len(),
            Sink::Gzip(decoder) => decoder.get_ref().bytes.len(),
        }
    }

    /// The whole body, decoded.
    ///
    /// # Errors
    /// See [`BodyError`].
    pub fn finish(mut self) -> Result<Vec<u8>, BodyError> {
        let (ended, full) = match &mut self.sink {
            Sink::Plain(bounded) => (Ok(()), bounded.full),
            Sink::Gzip(decoder) => {
                let ended = decoder.try_finish();
                (ended, decoder.get_ref().full)
            }
        };
        self.judged(ended, full)?;
        Ok(match self.sink {
            Sink::Plain(bounded) => bounded.bytes,
            Sink::Gzip(mut decoder) => std::mem::take(&mut decoder.get_mut().bytes),
        })
    }

    fn judged(&self, outcome: io::Result<()>, full: bool) -> Result<(), BodyError> {
        match outcome {
            _ if full => Err(BodyError::TooLarge(self.bytes_max)),
            Ok(()) => Ok(()),
            Err(error) => Err(BodyError::Damaged(format!("it is no whole gzip stream ({error})"))),
        }
    }
}

// === impl Bounded ===

impl Write for Bounded {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        if self.full || piece.len() > self.bytes_max.saturating_sub(self.bytes.len()) {
            self.full = true;
            return Err(io::Error::other("full"));
        }
        if self.bytes.len() + piece.len() > BODY_SMALL_MAX && self.bytes.capacity() < LARGE_ROOM {
            self.bytes.reserve_exact(LARGE_ROOM.saturating_sub(self.bytes.len()));
        }
        self.bytes.extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn read(encoding: Option<&str>, pieces: &[&[u8]], bytes_max: usize) -> Result<Vec<u8>, BodyError> {
        let mut body = Body::new(encoding, bytes_max).unwrap();
        for piece in pieces {
            body.add(piece)?;
        }
        body.finish()
    }

    #[test]
    fn what_was_packed_is_what_comes_out_in_pieces_of_any_size() {
        let plain = b"vllm:num_requests_running 3\n".repeat(100);
        let packed = gzip(&plain);
        for size in [1, 7, packed.len()] {
            let pieces: Vec<&[u8]> = packed.chunks(size).collect();
            assert_eq!(read(Some("gzip"), &pieces, 10_000).unwrap(), plain);
        }
        // Two members one after the other are one stream.
        assert_eq!(read(Some("GZIP"), &[&gzip(b"a"), &gzip(b"b")], 10).unwrap(), b"ab");
        assert_eq!(read(Some("identity"), &[b"a", b"b"], 2).unwrap(), b"ab");
    }

    #[test]
    fn a03_a_bomb_ends_at_the_bound_of_what_it_unpacks_to() {
        let bomb = gzip(&vec![b'#'; 1 << 20]);
        assert!(bomb.len() < 2_000);
        assert_eq!(read(Some("gzip"), &[&bomb], 1 << 16), Err(BodyError::TooLarge(1 << 16)));
        assert_eq!(read(Some("gzip"), &[&bomb], 1 << 20).unwrap().len(), 1 << 20);
        assert_eq!(read(None, &[b"ab", b"c"], 2), Err(BodyError::TooLarge(2)));
    }

    #[test]
    fn a03_other_and_chained_encodings_are_refused() {
        for encoding in ["gzip, gzip", "deflate", "br", "zstd", "gzip,identity"] {
            assert_eq!(Body::new(Some(encoding), 10).err().as_deref(), Some(encoding));
        }
        let twice = gzip(&gzip(b"vllm:x 1\n"));
        assert_ne!(read(Some("gzip"), &[&twice], 1000).unwrap(), b"vllm:x 1\n");
    }

    #[test]
    fn a06_a_stream_that_is_cut_or_damaged_is_no_body() {
        let packed = gzip(&b"vllm:num_requests_running 3\n".repeat(50));
        for end in 0..packed.len() {
            let cut = read(Some("gzip"), &[&packed[..end]], 10_000);
            assert!(
                matches!(cut, Err(BodyError::Damaged(_))) || (end == 0 && cut == Ok(Vec::new())),
                "{end} {cut:?}"
            );
        }
        let mut flipped = packed.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 0x10;
        assert!(matches!(read(Some("gzip"), &[&flipped], 10_000), Err(BodyError::Damaged(_))));
        assert!(matches!(read(Some("gzip"), &[b"<html>"], 10_000), Err(BodyError::Damaged(_))));
    }
}
