//! Words: short messages of the rest of the daemon, which go as they are and are not repeated. One that
//! does not fit a datagram goes in several; if one of those is lost, so is the word.

use super::wire::{MAX_BODY, frame::Frame};

/// Bytes of the longest part: what fits a body beside the head of its frame.
pub const MAX_PIECE: usize = MAX_BODY - 3 - 6;

/// Parts of the longest word.
const MOST_PIECES: usize = 64;

/// Bytes of the longest word.
pub const MAX_WORD: usize = MAX_PIECE * MOST_PIECES;

/// A part of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Counts the words of a session.
    pub number: u32,
    /// Which part, from 0.
    pub index: u8,
    /// Of so many.
    pub of: u8,
    /// Its content, at most [`MAX_PIECE`] bytes.
    pub content: &'a [u8],
}

/// The frames of a word; none if it is longer than [`MAX_WORD`].
pub fn split(number: u32, word: &[u8]) -> Vec<Frame<'_>> {
    if word.len() > MAX_WORD {
        return Vec::new();
    }
    // An empty word has one part.
    let of = word.len().div_ceil(MAX_PIECE).max(1) as u8;
    let content = |index: u8| {
        let begin = usize::from(index) * MAX_PIECE;
        &word[begin..word.len().min(begin + MAX_PIECE)]
    };
    (0..of).map(|index| Frame::Word(Piece { number, index, of, content: content(index) })).collect()
}

/// Puts words together again. Their parts come one after the other, so one word is in hand at a time; one
/// whose parts are mixed with those of another is as lost.
#[derive(Debug, Default)]
pub struct Assembly {
    number: u32,
    of: u8,
    pieces: std::collections::BTreeMap<u8, Vec<u8>>,
}

impl Assembly {
    /// Takes a part; gives the word if that is whole now.
    pub fn take(&mut self, piece: Piece<'_>) -> Option<Vec<u8>> {
        let Piece { number, index, of, content } = piece;
        if index >= of || usize::from(of) > MOST_PIECES {
            return None;
        }
        if (self.number, self.of) != (number, of) {
            *self = Self { number, of, ..Self::default() };
        }
        self.pieces.insert(index, content.to_vec());
        if self.pieces.len() < usize::from(of) {
            return None;
        }
        Some(std::mem::take(self).pieces.into_values().flatten().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::wire::frame::frames;

    /// The parts as they come out of datagrams.
    fn carry(number: u32, word: &[u8], assembly: &mut Assembly) -> Vec<Option<Vec<u8>>> {
        let mut out = Vec::new();
        for frame in split(number, word) {
            let mut body = Vec::new();
            assert!(frame.write(&mut body), "an empty body has room");
            for frame in frames(&body) {
                let Frame::Word(piece) = frame else { panic!("{frame:?}") };
                out.push(assembly.take(piece));
            }
        }
        out
    }

    #[test]
    fn words_of_every_length_arrive() {
        let mut assembly = Assembly::default();
        let lengths = [0, 1, MAX_PIECE - 1, MAX_PIECE, MAX_PIECE + 1, 5000, MAX_WORD];
        for (number, len) in (0..).zip(lengths) {
            let word: Vec<u8> = (0..len).map(|byte| byte as u8).collect();
            let mut out = carry(number, &word, &mut assembly);
            assert_eq!(out.pop().flatten(), Some(word), "{len} bytes");
            assert!(out.iter().all(Option::is_none), "{len} bytes");
        }
        assert!(split(9, &vec![0; MAX_WORD + 1]).is_empty());
    }

    #[test]
    fn a_word_that_lacks_a_part_is_lost_and_the_next_is_not() {
        let mut assembly = Assembly::default();
        let piece = |number, index, content| Piece { number, index, of: 2, content };
        assert_eq!(assembly.take(piece(1, 0, b"a")), None);
        assert_eq!(assembly.take(piece(2, 1, b"d")), None);
        assert_eq!(assembly.take(piece(2, 0, b"c")), Some(b"cd".to_vec()), "in any order");
        assert_eq!(assembly.take(piece(3, 2, b"e")), None, "there is no such part");
        assert_eq!(assembly.take(Piece { number: 4, index: 0, of: 255, content: b"" }), None);
    }
}
