//! Sequence numbers: whether one may belong to a connection.
//!
//! Who spoofs a segment from afar sees no packet of the connection, and has to guess. What ends a
//! connection, or changes how it goes on, is believed only if its sequence number is near what its
//! receiver has last asked for. The receiver itself is exact about it (RFC 5961, section 3); the window
//! here has to be as wide as whatever may be on the way.

/// How far a sequence number may lie behind what the receiver asked for: a segment sent again, or
/// overtaken by its acknowledgement.
const BEHIND: u32 = 1 << 16;

/// How far it may lie ahead: what is on the way, and not acknowledged yet.
const AHEAD: u32 = 1 << 24;

/// Whether a sequence number is near an acknowledgement number of the other side. Both are in network
/// byte order. Near 0 are all: nothing is known yet.
#[inline(always)]
pub const fn is_near(seq: u32, ack: u32) -> bool {
    let distance = u32::from_be(seq).wrapping_sub(u32::from_be(ack));
    ack == 0 || distance.wrapping_add(BEHIND) < AHEAD + BEHIND
}

/// What a backend may have sent before the client's first acknowledgement: more than any first window
/// (RFC 6928).
const FIRST: u32 = 1 << 16;

/// Whether an acknowledgement number can be the first of a client, which has been sent a SYN and is to
/// acknowledge `expected`. Both are in network byte order. A guess hits with 1 in 65,536.
#[inline(always)]
pub const fn is_first(ack: u32, expected: u32) -> bool {
    u32::from_be(ack).wrapping_sub(u32::from_be(expected)) < FIRST
}

#[cfg(test)]
mod tests {
    use super::{AHEAD, BEHIND, FIRST, is_first, is_near};

    #[test]
    fn the_first_acknowledgement_is_of_the_syn_or_a_little_more() {
        for expected in [1_u32, 0, u32::MAX, 0x0506_0708] {
            let at = |more: u32| is_first(expected.wrapping_add(more).to_be(), expected.to_be());
            assert!(at(0) && at(1) && at(FIRST - 1));
            assert!(!at(FIRST) && !at(u32::MAX) && !at(1 << 31));
        }
    }

    #[test]
    fn the_window_lies_around_the_acknowledgement() {
        for ack in [1_u32, 0x0506_0708, 0x7fff_ffff, u32::MAX, 0xffff_0000, BEHIND] {
            let at = |distance: u32| is_near(ack.wrapping_add(distance).to_be(), ack.to_be());
            assert!(at(0) && at(1) && at(AHEAD - 1), "{ack:#x}");
            assert!(at(0_u32.wrapping_sub(BEHIND)), "{ack:#x}");
            assert!(!at(AHEAD) && !at(1 << 31), "{ack:#x}");
            assert!(!at(0_u32.wrapping_sub(BEHIND + 1)), "{ack:#x}");
        }
    }

    #[test]
    fn without_an_acknowledgement_all_are_near() {
        assert!(is_near(0, 0) && is_near(u32::MAX, 0) && is_near(0x8000_0000, 0));
    }
}
