//! Frames: what stands in the body of a data datagram, one after another.
//!
//! Each is a type, a length and its content. A type that is not known is passed over, so that a later
//! version may add one.

use super::{MAX_BODY, Reader};
use crate::peer::word::Piece;

/// Bytes of a frame's type and length.
const HEAD: usize = 3;

/// Bytes of the longest content of a [`Frame::Part`], so that it fits a body beside a [`Frame::Beat`] and
/// a [`Frame::Ack`].
pub const MAX_PART: usize = MAX_BODY - 2 * HEAD - BEAT - ACK - HEAD - 8;

/// Bytes of the longest name in a [`Frame::Fence`].
pub const MAX_FENCE_NAME: usize = 256;

const BEAT: usize = 8 + 8 + 4 + 4 + 8 + 16 + 16 + 1 + 4 + 1;
const ACK: usize = 16;

mod kind {
    pub(super) const BEAT: u8 = 1;
    pub(super) const ACK: u8 = 2;
    pub(super) const PART: u8 = 3;
    pub(super) const FENCE: u8 = 4;
    pub(super) const FENCED: u8 = 5;
    pub(super) const WORD: u8 = 6;
}

/// Sent every so often: that the node lives, and how it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beat {
    /// Any clock of the sender's, microseconds.
    pub clock_us: u64,
    /// The `clock_us` of the receiver that came last; 0 if none has.
    pub echo_us: u64,
    /// Microseconds that the sender has had it.
    pub held_us: u32,
    /// Parts that the sender has not got rid of.
    pub backlog: u32,
    /// Milliseconds since its flow tables were created: it has had all connections of its own since then.
    pub table_age_ms: u64,
    /// What the sender tells of itself.
    pub about: About,
}

/// What a node tells of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// Digest of its configuration.
    pub generation: Generation,
    /// Services, and those of them that have a backend to serve.
    pub services: Count,
    /// Backends of all services, and those of them that serve.
    pub backends: Count,
    /// It holds floating addresses.
    pub holds: bool,
    /// For how long it answers on connections of its proxy if another node gets the addresses, or since one
    /// has them; milliseconds. 0: it has none. An older version says nothing of it.
    pub lingers_ms: u32,
    /// It is about to end, and is not dead when it falls silent.
    pub leaves: bool,
}

/// Digest of a configuration: the same for those that say the same.
pub type Generation = [u8; 16];

/// So many of so many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// All of them.
    pub all: u32,
    /// Those that are fit.
    pub fit: u32,
}

/// Which parts have come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ack {
    /// The first number that has not come.
    pub next: u64,
    /// Bit `i`: number `next + 1 + i` has come.
    pub later: u64,
}

/// The name of something to cut off, and which time.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fence {
    /// What is to be cut off. At most [`MAX_FENCE_NAME`] bytes.
    pub name: String,
    /// Counts up: an older one means nothing any more.
    pub generation: u64,
}

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// See [`Beat`].
    Beat(Beat),
    /// See [`Ack`].
    Ack(Ack),
    /// A part of the stream: its number, from 0, and its content.
    Part(u64, &'a [u8]),
    /// A wish to cut something off.
    Fence(Fence),
    /// It is cut off.
    Fenced(Fence),
    /// A part of a word.
    Word(Piece<'a>),
}

impl Frame<'_> {
    /// Writes the frame at the end of `body`. False, and nothing is written, if there is no room.
    #[must_use]
    pub fn write(&self, body: &mut Vec<u8>) -> bool {
        let before = body.len();
        body.push(match self {
            Self::Beat(_) => kind::BEAT,
            Self::Ack(_) => kind::ACK,
            Self::Part(..) => kind::PART,
            Self::Fence(_) => kind::FENCE,
            Self::Fenced(_) => kind::FENCED,
            Self::Word(_) => kind::WORD,
        });
        body.extend_from_slice(&[0; 2]);
        match self {
            Self::Beat(beat) => {
                body.extend_from_slice(&beat.clock_us.to_be_bytes());
                body.extend_from_slice(&beat.echo_us.to_be_bytes());
                body.extend_from_slice(&beat.held_us.to_be_bytes());
                body.extend_from_slice(&beat.backlog.to_be_bytes());
                body.extend_from_slice(&beat.table_age_ms.to_be_bytes());
                body.extend_from_slice(&beat.about.generation);
                for Count { all, fit } in [beat.about.services, beat.about.backends] {
                    body.extend_from_slice(&all.to_be_bytes());
                    body.extend_from_slice(&fit.to_be_bytes());
                }
                body.push(u8::from(beat.about.holds));
                body.extend_from_slice(&beat.about.lingers_ms.to_be_bytes());
                body.push(u8::from(beat.about.leaves));
            }
            Self::Ack(ack) => {
                body.extend_from_slice(&ack.next.to_be_bytes());
                body.extend_from_slice(&ack.later.to_be_bytes());
            }
            Self::Part(number, content) => {
                body.extend_from_slice(&number.to_be_bytes());
                body.extend_from_slice(content);
            }
            Self::Fence(fence) | Self::Fenced(fence) => {
                body.extend_from_slice(&fence.generation.to_be_bytes());
                body.extend_from_slice(fence.name.as_bytes());
            }
            Self::Word(piece) => {
                body.extend_from_slice(&piece.number.to_be_bytes());
                body.extend_from_slice(&[piece.index, piece.of]);
                body.extend_from_slice(piece.content);
            }
        }
        if body.len() > MAX_BODY {
            body.truncate(before);
            return false;
        }
        let len = (body.len() - before - HEAD) as u16;
        body[before + 1..before + HEAD].copy_from_slice(&len.to_be_bytes());
        true
    }
}

/// The frames of a body, until the first that is not whole.
pub fn frames(body: &[u8]) -> impl Iterator<Item = Frame<'_>> {
    let mut reader = Reader::new(body);
    std::iter::from_fn(move || {
        loop {
            let kind = reader.byte()?;
            let len = reader.u16()?;
            let mut content = Reader::new(reader.bytes(usize::from(len))?);
            match kind {
                kind::BEAT => return read_beat(&mut content).map(Frame::Beat),
                kind::ACK => {
                    let (next, later) = (content.u64()?, content.u64()?);
                    return Some(Frame::Ack(Ack { next, later }));
                }
                kind::PART => return Some(Frame::Part(content.u64()?, content.rest())),
                kind::FENCE => return read_fence(&mut content).map(Frame::Fence),
                kind::FENCED => return read_fence(&mut content).map(Frame::Fenced),
                kind::WORD => {
                    let (number, index, of) = (content.u32()?, content.byte()?, content.byte()?);
                    let content = content.rest();
                    return Some(Frame::Word(Piece { number, index, of, content }));
                }
                _ => {}
            }
        }
    })
}

fn read_beat(reader: &mut Reader<'_>) -> Option<Beat> {
    let (clock_us, echo_us) = (reader.u64()?, reader.u64()?);
    let (held_us, backlog) = (reader.u32()?, reader.u32()?);
    let table_age_ms = reader.u64()?;
    let generation = reader.array()?;
    let mut count = || Some(Count { all: reader.u32()?, fit: reader.u32()? });
    let (services, backends) = (count()?, count()?);
    let holds = reader.byte()? != 0;
    let lingers_ms = reader.u32().unwrap_or(0);
    let leaves = reader.byte().unwrap_or(0) != 0;
    let about = About { generation, services, backends, holds, lingers_ms, leaves };
    Some(Beat { clock_us, echo_us, held_us, backlog, table_age_ms, about })
}

fn read_fence(reader: &mut Reader<'_>) -> Option<Fence> {
    let generation = reader.u64()?;
    let name = reader.rest();
    if name.len() > MAX_FENCE_NAME {
        return None;
    }
    Some(Fence { name: String::from_utf8(name.to_vec()).ok()?, generation })
}
