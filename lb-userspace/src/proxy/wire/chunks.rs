//! The chunks of an answer's body (RFC 9112, section 7.1).

use std::io;

use bytes::{Buf as _, Bytes, BytesMut};
use httparse::Status;
use hyper::{
    HeaderMap,
    header::{HeaderName, HeaderValue},
};

/// Most bytes of the extensions of a body together, of one line of them, and of its trailers.
const EXTRA_BYTES: usize = 16 << 10;

/// Longest line of a size without an extension.
const SIZE_BYTES: usize = 18;

/// Most trailers.
const TRAILERS: usize = 100;

/// Where in the chunks.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    place: Place,
    /// Bytes of extensions.
    extra: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Size,
    /// So many bytes of data are left.
    Data(u64),
    /// After the data of a chunk.
    DataEnd,
    Trailers,
    Over,
}

/// A piece of the body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
}

impl Chunks {
    /// Whether the body has ended.
    pub(super) fn is_over(&self) -> bool {
        self.place == Place::Over
    }

    /// The next piece, if it is there.
    pub(super) fn next(&mut self, input: &mut BytesMut) -> io::Result<Option<Piece>> {
        loop {
            match self.place {
                Place::Size => {
                    let Some(size) = self.size(input)? else { return Ok(None) };
                    self.place = if size == 0 { Place::Trailers } else { Place::Data(size) };
                }
                Place::Data(_) if input.is_empty() => return Ok(None),
                Place::Data(left) => {
                    let taken = input.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    let left = left - taken as u64;
                    self.place = if left == 0 { Place::DataEnd } else { Place::Data(left) };
                    return Ok(Some(Piece::Data(input.split_to(taken).freeze())));
                }
                Place::DataEnd => {
                    if !b"\r\n".starts_with(&input[..input.len().min(2)]) {
                        return Err(malformed());
                    }
                    if input.len() < 2 {
                        return Ok(None);
                    }
                    input.advance(2);
                    self.place = Place::Size;
                }
                Place::Trailers => return self.trailers(input),
                Place::Over => return Ok(Some(Piece::End)),
            }
        }
    }

    /// Takes the line that says how long the next chunk is.
    fn size(&mut self, input: &mut BytesMut) -> io::Result<Option<u64>> {
        // httparse takes an empty line for a size of zero.
        if input.first().is_some_and(|first| !first.is_ascii_hexdigit()) {
            return Err(malformed());
        }
        match httparse::parse_chunk_size(input).map_err(|_| malformed())? {
            Status::Complete((length, size)) => {
                ends_with_crlf(&input[..length])?;
                self.extra += length.saturating_sub(SIZE_BYTES);
                if self.extra > EXTRA_BYTES {
                    return Err(malformed());
                }
                input.advance(length);
                Ok(Some(size))
            }
            Status::Partial if input.len() > EXTRA_BYTES => Err(malformed()),
            Status::Partial => Ok(None),
        }
    }

    /// Takes the fields after the last chunk.
    fn trailers(&mut self, input: &mut BytesMut) -> io::Result<Option<Piece>> {
        let mut fields = [httparse::EMPTY_HEADER; TRAILERS];
        let parsed = httparse::parse_headers(input, &mut fields).map_err(|_| malformed())?;
        let Status::Complete((length, fields)) = parsed else {
            return if input.len() > EXTRA_BYTES { Err(malformed()) } else { Ok(None) };
        };
        ends_with_crlf(&input[..length])?;
        let mut trailers = HeaderMap::with_capacity(fields.len());
        for field in fields {
            let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| malformed())?;
            let value = HeaderValue::from_bytes(field.value).map_err(|_| malformed())?;
            trailers.append(name, value);
        }
        input.advance(length);
        self.place = Place::Over;
        Ok(Some(if trailers.is_empty() { Piece::End } else { Piece::Trailers(trailers) }))
    }
}

/// Refuses a line that ends with a bare line feed. httparse takes it, for heads are read so by many (RFC
/// 9112, section 2.2); but among chunks that says where a body ends, and two readers must not see it in two places.
fn ends_with_crlf(lines: &[u8]) -> io::Result<()> {
    let mut feeds = memchr::memchr_iter(b'\n', lines);
    let bare = feeds.any(|at| at == 0 || lines[at - 1] != b'\r');
    if bare { Err(malformed()) } else { Ok(()) }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the chunks of an answer cannot be understood")
}
