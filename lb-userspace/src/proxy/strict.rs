//! What clients send, held to the letter before hyper reads it. Pure: bytes in, how many may go on out.
//!
//! Request smuggling lives on what two parsers understand differently. hyper is lenient where RFC 9112
//! lets a recipient be; what it hands on is unambiguous, but whoever stood before this proxy may have
//! seen other requests in the same bytes. So everything that is read in two ways is refused here: both
//! `Content-Length` and `Transfer-Encoding`, either of them twice, lines that end with a bare LF, folded
//! lines, spaces around names, chunk sizes with ornaments.
//!
//! ```text
//!   Head ──▶ Body(n) ──▶ Head            by Content-Length
//!     └────▶ Chunked ──▶ Head            by Transfer-Encoding: chunked
//! ```

use super::refuse::Refusal;

mod chunks;
mod head;

use chunks::Chunks;
use head::Framing;
pub(super) use head::{HEAD_BYTES, HEADERS, LINE_BYTES};

/// Where in a client's bytes.
#[derive(Debug)]
enum Place {
    /// In a head, or before one.
    Head,
    /// So many bytes before the end of a body.
    Body(u64),
    /// In a body of chunks.
    Chunked(Chunks),
}

/// Follows the requests of one connection.
#[derive(Debug)]
pub(super) struct Strict {
    place: Place,
    /// A head that is not whole yet. No byte of it goes on before the last one is there.
    held: Vec<u8>,
    /// How much of `held` has been looked through for its end.
    searched: usize,
    heads: u32,
}

impl Default for Strict {
    fn default() -> Self {
        Self { place: Place::Head, held: Vec::new(), searched: 0, heads: 0 }
    }
}

/// What becomes of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fed {
    /// So many may go on.
    pub(super) passed: usize,
    /// After them comes what is refused, and nothing goes on any more.
    pub(super) refusal: Option<Refusal>,
}

impl Strict {
    /// Takes the next bytes. If some were held before, those come first, and the new ones are held too:
    /// what may go on is to be taken from [`Strict::held`].
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Fed {
        if self.held.is_empty() {
            let fed = self.follow(bytes);
            if fed.refusal.is_none() {
                self.held.extend_from_slice(&bytes[fed.passed..]);
            }
            return fed;
        }
        self.held.extend_from_slice(bytes);
        let mut held = std::mem::take(&mut self.held);
        let fed = self.follow(&held);
        if fed.refusal.is_some() {
            held.truncate(fed.passed);
        }
        self.held = held;
        fed
    }

    /// The bytes that are held, to be taken.
    pub(super) fn held(&mut self) -> &mut Vec<u8> {
        &mut self.held
    }

    /// Whether a head has begun and is not whole.
    pub(super) fn is_amid_head(&self) -> bool {
        matches!(self.place, Place::Head) && !self.held.is_empty()
    }

    /// Whether the last request has ended and nothing of the next one has come.
    pub(super) fn is_between(&self) -> bool {
        matches!(self.place, Place::Head) && self.held.is_empty()
    }

    /// Heads that have gone on.
    pub(super) fn heads(&self) -> u32 {
        self.heads
    }

    /// Bytes of a body that may come next whatever they are.
    pub(super) fn free(&self) -> u64 {
        match &self.place {
            Place::Head => 0,
            Place::Body(left) => *left,
            Place::Chunked(chunks) => chunks.free(),
        }
    }

    /// How many of these bytes may go on. The rest is the beginning of a head.
    fn follow(&mut self, bytes: &[u8]) -> Fed {
        let mut passed = 0;
        while passed < bytes.len() {
            match self.step(&bytes[passed..]) {
                Ok(0) => break,
                Ok(taken) => passed += taken,
                Err(refusal) => return Fed { passed, refusal: Some(refusal) },
            }
        }
        Fed { passed, refusal: None }
    }

    /// Takes as much as belongs together: a whole head, or what is there of a body.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        match &mut self.place {
            Place::Head => {
                let Some(end) = head::end(bytes, self.searched)? else {
                    self.searched = bytes.len();
                    return Ok(0);
                };
                self.searched = 0;
                self.place = match head::check(&bytes[..end])? {
                    Framing::None => Place::Head,
                    Framing::Length(length) => Place::Body(length),
                    Framing::Chunked => Place::Chunked(Chunks::default()),
                };
                self.heads += 1;
                Ok(end)
            }
            Place::Body(left) => {
                let taken = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= taken as u64;
                if *left == 0 {
                    self.place = Place::Head;
                }
                Ok(taken)
            }
            Place::Chunked(chunks) => {
                let (taken, done) = chunks.follow(bytes)?;
                if done {
                    self.place = Place::Head;
                }
                Ok(taken)
            }
        }
    }
}

#[cfg(test)]
mod tests;
