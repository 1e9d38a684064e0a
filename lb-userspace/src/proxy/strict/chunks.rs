//! The chunks of a body (RFC 9112, section 7.1).

use super::head;
use crate::proxy::refuse::Refusal;

/// Longest size line with its extensions, and longest trailer section.
const EXTENSION_BYTES: usize = 256;
const TRAILER_BYTES: usize = 8 << 10;

/// Most digits of a size: 2^60 bytes are no chunk.
const DIGITS: u32 = 15;

/// Where in the chunks.
#[derive(Debug)]
pub(super) struct Chunks {
    place: Place,
    size: u64,
    digits: u32,
    /// Bytes of extensions, or of trailers.
    extra: usize,
    line: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Size,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// In a trailer line, or the empty line at the end.
    Trailer,
    TrailerLf,
}

impl Default for Chunks {
    fn default() -> Self {
        Self { place: Place::Size, size: 0, digits: 0, extra: 0, line: Vec::new() }
    }
}

impl Chunks {
    /// Bytes of data that may come next whatever they are.
    pub(super) fn free(&self) -> u64 {
        if self.place == Place::Data { self.size } else { 0 }
    }

    /// How many of the bytes are part of the body, and whether they end it.
    pub(super) fn follow(&mut self, bytes: &[u8]) -> Result<(usize, bool), Refusal> {
        let mut at = 0;
        while at < bytes.len() {
            if self.place == Place::Data {
                let rest = bytes.len() - at;
                let taken = rest.min(usize::try_from(self.size).unwrap_or(usize::MAX));
                self.size -= taken as u64;
                at += taken;
                if self.size == 0 {
                    self.place = Place::DataCr;
                }
                continue;
            }
            let byte = bytes[at];
            at += 1;
            if self.step(byte)? {
                return Ok((at, true));
            }
        }
        Ok((at, false))
    }

    /// Takes a byte that is no data; says whether it is the last.
    fn step(&mut self, byte: u8) -> Result<bool, Refusal> {
        self.place = match (self.place, byte) {
            (Place::Size, _) if byte.is_ascii_hexdigit() && self.digits < DIGITS => {
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                self.size = self.size * 16 + u64::from(digit);
                self.digits += 1;
                Place::Size
            }
            (Place::Size, b';') if self.digits > 0 => Place::Extension,
            (Place::Size, b'\r') if self.digits > 0 => Place::SizeLf,
            (Place::Extension, b'\r') => Place::SizeLf,
            (Place::Extension, b'\t' | b' '..=b'~') if self.extra < EXTENSION_BYTES => {
                self.extra += 1;
                Place::Extension
            }
            (Place::SizeLf, b'\n') => {
                self.extra = 0;
                self.digits = 0;
                if self.size == 0 { Place::Trailer } else { Place::Data }
            }
            (Place::DataCr, b'\r') => Place::DataLf,
            (Place::DataLf, b'\n') => Place::Size,
            (Place::Trailer, b'\r') => Place::TrailerLf,
            (Place::Trailer, _) if byte != b'\n' && self.extra < TRAILER_BYTES => {
                self.extra += 1;
                self.line.push(byte);
                Place::Trailer
            }
            (Place::TrailerLf, b'\n') => {
                if self.line.is_empty() {
                    return Ok(true);
                }
                trailer(&self.line)?;
                self.line.clear();
                Place::Trailer
            }
            _ => return Err(Refusal::Chunk),
        };
        Ok(false)
    }
}

/// A trailer must be a field, and none that says how long a message is or whom it is for (RFC 9110,
/// section 6.5.1).
fn trailer(line: &[u8]) -> Result<(), Refusal> {
    let (name, _) = head::field(line).map_err(|_| Refusal::Chunk)?;
    let forbidden: [&[u8]; 4] = [b"content-length", b"transfer-encoding", b"host", b"connection"];
    if forbidden.iter().any(|it| name.eq_ignore_ascii_case(it)) {
        return Err(Refusal::Chunk);
    }
    Ok(())
}
