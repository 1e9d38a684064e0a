//! Frames of HTTP/2 as they pass, known by their heads alone (RFC 9113, section 4.1). Pure: bytes in, what
//! they begin and end out.

/// How a client begins (RFC 9113, section 3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame's head.
const HEAD: usize = 9;

/// What is read of the payload of those frames whose payload matters: up to the code of a `GOAWAY`.
const PAYLOAD: usize = 8;

/// Types of frames (RFC 9113, section 6).
pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;

/// Flags: `END_STREAM` of data and heads, `ACK` of settings and pings.
pub(super) const END_STREAM: u8 = 1;
pub(super) const ACK: u8 = 1;

/// A frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    /// Bytes of its payload.
    pub(super) length: u32,
    pub(super) stream: u32,
    /// The error of a `RST_STREAM` or `GOAWAY`.
    pub(super) code: Option<u32>,
    /// A head of one field alone, and a short one.
    pub(super) bare: bool,
}

/// Follows the frames of one direction.
#[derive(Debug)]
pub(super) struct Frames {
    /// The head, and the beginning of a payload that matters.
    held: [u8; HEAD + PAYLOAD],
    have: usize,
    /// Bytes of a payload that do not matter.
    skip: u32,
}

impl Default for Frames {
    fn default() -> Self {
        Self { held: [0; HEAD + PAYLOAD], have: 0, skip: 0 }
    }
}

impl Frames {
    /// Takes the next bytes, and tells of each frame once its head is there, and the code of one that has
    /// a code.
    pub(super) fn feed(&mut self, mut bytes: &[u8], mut tell: impl FnMut(Frame)) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let skipped = bytes.len().min(self.skip as usize);
                self.skip -= skipped as u32;
                bytes = &bytes[skipped..];
                continue;
            }
            let wanted = self.wanted();
            let taken = bytes.len().min(wanted - self.have);
            self.held[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have == self.wanted() {
                let frame = self.frame();
                self.skip = frame.length - (self.have - HEAD) as u32;
                self.have = 0;
                tell(frame);
            }
        }
    }

    /// Whether the last frame is whole and nothing of the next one has passed.
    pub(super) fn is_between(&self) -> bool {
        self.have == 0 && self.skip == 0
    }

    /// How many bytes are held before a frame is told of.
    fn wanted(&self) -> usize {
        if self.have < HEAD {
            return HEAD;
        }
        let Frame { kind, length, .. } = self.frame();
        let payload = match kind {
            RST_STREAM => 4,
            GOAWAY => PAYLOAD,
            HEADERS if length as usize <= PAYLOAD => PAYLOAD,
            _ => 0,
        };
        HEAD + payload.min(length as usize)
    }

    /// The frame whose head is held.
    fn frame(&self) -> Frame {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3, payload @ ..] = self.held;
        let held = self.have.saturating_sub(HEAD);
        let [_, _, _, _, c0, c1, c2, c3] = payload;
        let code = match kind {
            RST_STREAM if held == 4 => Some([payload[0], payload[1], payload[2], payload[3]]),
            GOAWAY if held == PAYLOAD => Some([c0, c1, c2, c3]),
            _ => None,
        };
        let length = u32::from_be_bytes([0, l0, l1, l2]);
        let bare = kind == HEADERS
            && held == length as usize
            && is_one_field(&self.held[HEAD..HEAD + held]);
        Frame {
            kind,
            flags,
            length,
            // The first bit is reserved.
            stream: u32::from_be_bytes([s0, s1, s2, s3]) & (u32::MAX >> 1),
            code: code.map(u32::from_be_bytes),
            bare,
        }
    }
}

/// Whether fields of HPACK are one alone (RFC 7541, section 6): one of a table, or one whose name is.
fn is_one_field(fields: &[u8]) -> bool {
    match *fields {
        // A size of the table may come before it.
        [0x20..=0x3f, ref fields @ ..] => is_one_field(fields),
        [0x80..=0xfe] => true,
        [0x01..=0x0e | 0x11..=0x1e | 0x41..=0x7e, length, ref value @ ..] => {
            usize::from(length & 0x7f) == value.len()
        }
        _ => false,
    }
}

/// A `GOAWAY` with this error, which says that streams up to the last one were looked at.
pub(super) fn go_away(last: u32, code: u32) -> [u8; HEAD + PAYLOAD] {
    let mut frame = [0; HEAD + PAYLOAD];
    frame[2] = PAYLOAD as u8;
    frame[3] = GOAWAY;
    frame[HEAD..HEAD + 4].copy_from_slice(&last.to_be_bytes());
    frame[HEAD + 4..].copy_from_slice(&code.to_be_bytes());
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All frames of these bytes, fed in pieces of so many.
    fn frames(bytes: &[u8], pieces: usize) -> (Vec<Frame>, bool) {
        let (mut followed, mut told) = (Frames::default(), Vec::new());
        for piece in bytes.chunks(pieces) {
            followed.feed(piece, |frame| told.push(frame));
        }
        (told, followed.is_between())
    }

    #[test]
    fn frames_are_told_however_they_come() {
        let mut bytes = vec![0, 0, 5, DATA, END_STREAM, 0x80, 0, 0, 3];
        bytes.extend(b"hello");
        bytes.extend([0, 0, 4, RST_STREAM, 0, 0, 0, 0, 5, 0, 0, 0, 8]);
        bytes.extend(go_away(7, 11));
        bytes.extend([0, 0, 0, SETTINGS, ACK, 0, 0, 0, 0]);
        // Others say what they are by their length already: it is for whoever understands them to refuse.
        bytes.extend([0, 0, 2, RST_STREAM, 0, 0, 0, 0, 5, 1, 2]);
        bytes.extend([0, 0, 9, GOAWAY, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, b'x']);
        // A status alone; a status and another field; a date alone, whose name is longer than that.
        bytes.extend([0, 0, 5, HEADERS, END_STREAM | 4, 0, 0, 0, 7, 0x48, 0x83, 0x69, 0x90, 0x7f]);
        bytes.extend([0, 0, 1, HEADERS, END_STREAM | 4, 0, 0, 0, 7, 0xbe]);
        bytes.extend([0, 0, 2, HEADERS, END_STREAM | 4, 0, 0, 0, 7, 0x88, 0xbe]);
        bytes.extend([0, 0, 9, HEADERS, END_STREAM | 4, 0, 0, 0, 7, 0x61, 7, 1, 2, 3, 4, 5, 6, 7]);
        let frame = |kind, flags, length, stream, code| {
            let bare = kind == HEADERS && (length == 1 || length == 5);
            Frame { kind, flags, length, stream, code, bare }
        };
        let all = [
            frame(DATA, END_STREAM, 5, 3, None),
            frame(RST_STREAM, 0, 4, 5, Some(8)),
            frame(GOAWAY, 0, 8, 0, Some(11)),
            frame(SETTINGS, ACK, 0, 0, None),
            frame(RST_STREAM, 0, 2, 5, None),
            frame(GOAWAY, 0, 9, 0, Some(1)),
            frame(HEADERS, END_STREAM | 4, 5, 7, None),
            frame(HEADERS, END_STREAM | 4, 1, 7, None),
            frame(HEADERS, END_STREAM | 4, 2, 7, None),
            frame(HEADERS, END_STREAM | 4, 9, 7, None),
        ];
        for pieces in 1..=bytes.len() {
            assert_eq!(frames(&bytes, pieces), (all.to_vec(), true), "in pieces of {pieces}");
        }
        for end in 0..bytes.len() {
            let (told, _) = frames(&bytes[..end], 3);
            assert!(all.starts_with(&told), "{end}");
        }
        assert!(!frames(&bytes[..bytes.len() - 1], 3).1);
    }
}
