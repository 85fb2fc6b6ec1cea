//! HTTP/1.1 chunked framing (RFC 9112 §7.1), both directions.

use bytes::Bytes;

/// The chunk that ends a body.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Bytes of chunk extensions and trailers that are skipped before giving up.
const MAX_SKIPPED: u32 = 8 * 1024;

/// One chunk with its framing. An empty `body` gives no bytes: an empty chunk would end the stream.
#[must_use]
pub fn chunk(body: &[u8]) -> Bytes {
    if body.is_empty() {
        return Bytes::new();
    }
    let mut out = Vec::with_capacity(body.len() + 12);
    out.extend_from_slice(format!("{:x}\r\n", body.len()).as_bytes());
    out.extend_from_slice(body);
    out.extend_from_slice(b"\r\n");
    out.into()
}

/// The body's framing is broken; the connection is of no further use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// The size is not a hexadecimal number below 2^60.
    #[error("a chunk's size is not a hexadecimal number")]
    Size,
    /// A line end is missing.
    #[error("a chunk is not ended by CR LF")]
    LineEnd,
    /// Extensions or trailers are too long.
    #[error("chunk extensions or trailers exceed 8 KiB")]
    TooLong,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Size { digits: u8 },
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    Trailer,
    TrailerLf,
    EndLf,
    End,
}

/// Strips chunked framing incrementally, without copying.
#[derive(Debug, Clone)]
pub struct ChunkDecoder {
    state: State,
    left: u64,
    skipped: u32,
}

impl Default for ChunkDecoder {
    fn default() -> Self {
        Self { state: State::Size { digits: 0 }, left: 0, skipped: 0 }
    }
}

impl ChunkDecoder {
    /// At the start of a body.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the body has ended; what follows in the input is the next response.
    #[must_use]
    pub fn is_end(&self) -> bool {
        self.state == State::End
    }

    /// The next piece of the body, taken off the front of `input`; `None` when the input is used up or the body ended.
    ///
    /// # Errors
    /// [`ChunkError`] when the framing is broken.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<&'a [u8]>, ChunkError> {
        while self.state != State::End {
            if self.state == State::Data {
                let take = usize::try_from(self.left).unwrap_or(usize::MAX).min(input.len());
                if take == 0 {
                    return Ok(None);
                }
                let (piece, rest) = input.split_at(take);
                *input = rest;
                self.left -= take as u64;
                if self.left == 0 {
                    self.state = State::DataCr;
                }
                return Ok(Some(piece));
            }
            let Some((&byte, rest)) = input.split_first() else { return Ok(None) };
            *input = rest;
            self.state = self.step(byte)?;
        }
        Ok(None)
    }

    fn step(&mut self, byte: u8) -> Result<State, ChunkError> {
        Ok(match (self.state, byte) {
            (State::Size { digits }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                if digits == 15 {
                    return Err(ChunkError::Size);
                }
                self.left = self.left << 4 | u64::from((byte as char).to_digit(16).unwrap_or(0));
                State::Size { digits: digits + 1 }
            }
            (State::Size { digits: 0 }, _) => return Err(ChunkError::Size),
            (State::Size { .. } | State::Extension, b'\r') => State::SizeLf,
            (State::Size { .. }, b';' | b' ' | b'\t') => State::Extension,
            (State::Size { .. }, _) => return Err(ChunkError::Size),
            (State::Extension, b'\n') => return Err(ChunkError::LineEnd),
            (State::Extension, _) => self.skip(State::Extension)?,
            (State::SizeLf, b'\n') if self.left == 0 => State::TrailerStart,
            (State::SizeLf, b'\n') => State::Data,
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => {
                self.skipped = 0;
                State::Size { digits: 0 }
            }
            (State::TrailerStart, b'\r') => State::EndLf,
            (State::TrailerStart | State::Trailer, b'\n') => return Err(ChunkError::LineEnd),
            (State::Trailer, b'\r') => State::TrailerLf,
            (State::TrailerStart | State::Trailer, _) => self.skip(State::Trailer)?,
            (State::TrailerLf, b'\n') => State::TrailerStart,
            (State::EndLf, b'\n') => State::End,
            _ => return Err(ChunkError::LineEnd),
        })
    }

    fn skip(&mut self, next: State) -> Result<State, ChunkError> {
        self.skipped += 1;
        if self.skipped > MAX_SKIPPED { Err(ChunkError::TooLong) } else { Ok(next) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(parts: &[&[u8]]) -> Result<(Vec<u8>, bool), ChunkError> {
        let (mut decoder, mut body) = (ChunkDecoder::new(), Vec::new());
        for part in parts {
            let mut input = *part;
            while let Some(piece) = decoder.next(&mut input)? {
                body.extend_from_slice(piece);
            }
        }
        Ok((body, decoder.is_end()))
    }

    #[test]
    fn extensions_and_trailers_are_skipped_and_the_next_response_is_left() {
        let mut input: &[u8] = b"3;a=\"b\"\r\nabc\r\n0\r\nX: y\r\n\r\nHTTP/1.1";
        let mut decoder = ChunkDecoder::new();
        assert_eq!(decoder.next(&mut input), Ok(Some(&b"abc"[..])));
        assert_eq!(decoder.next(&mut input), Ok(None));
        assert!(decoder.is_end());
        assert_eq!(input, b"HTTP/1.1");
    }

    #[test]
    fn broken_framing_is_an_error() {
        assert_eq!(decode(&[b"\r\n"]), Err(ChunkError::Size));
        assert_eq!(decode(&[b"-1\r\n"]), Err(ChunkError::Size));
        assert_eq!(decode(&[b"1000000000000000\r\n"]), Err(ChunkError::Size));
        assert_eq!(decode(&[b"1\nx"]), Err(ChunkError::Size));
        assert_eq!(decode(&[b"1\r\nxy"]), Err(ChunkError::LineEnd));
        assert_eq!(decode(&[b"1;", &[b'x'; 9000]]), Err(ChunkError::TooLong));
        assert!(chunk(b"").is_empty());
    }

    proptest! {
        #[test]
        fn round_trip_at_any_split(bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..5), at in any::<prop::sample::Index>()) {
            let mut wire: Vec<u8> = bodies.iter().flat_map(|b| chunk(b)).collect();
            wire.extend_from_slice(LAST_CHUNK);
            let (a, b) = wire.split_at(at.index(wire.len()));
            prop_assert_eq!(decode(&[a, b]), Ok((bodies.concat(), true)));
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&[&bytes]);
        }
    }
}
