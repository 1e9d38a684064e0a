//! Internet checksums (RFC 1071) and their incremental update (RFC 1624).
//!
//! A ones' complement sum does not depend on the byte order in which its words are read, so all of
//! this works on native words, as they lie in the packet.

/// A ones' complement sum in the making, not yet folded to 16 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// Nothing yet.
    pub const ZERO: Self = Self(0);

    /// Adds a 16-bit word.
    #[inline(always)]
    #[must_use]
    pub const fn add16(self, word: u16) -> Self {
        Self(self.0 + word as u64)
    }

    /// Adds the two 16-bit words of a 32-bit word.
    #[inline(always)]
    #[must_use]
    pub const fn add32(self, word: u32) -> Self {
        Self(self.0 + word as u64)
    }

    /// Adds the four 16-bit words of a 64-bit word.
    #[inline(always)]
    #[must_use]
    pub const fn add64(self, word: u64) -> Self {
        self.add32(word as u32).add32((word >> 32) as u32)
    }

    /// Adds another sum.
    #[inline(always)]
    #[must_use]
    pub const fn add(self, other: Self) -> Self {
        Self(self.0 + other.fold() as u64)
    }

    /// Subtracts another sum: in ones' complement, adds its complement.
    #[inline(always)]
    #[must_use]
    pub const fn sub(self, other: Self) -> Self {
        Self(self.0 + !other.fold() as u64)
    }

    /// The sum in 16 bits.
    #[inline(always)]
    #[must_use]
    pub const fn fold(self) -> u16 {
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        sum as u16
    }

    /// The checksum over what was added: the complement of the sum.
    #[inline(always)]
    #[must_use]
    pub const fn checksum(self) -> u16 {
        !self.fold()
    }
}

/// The checksum after the data that it covers changed by `delta` (RFC 1624, equation 3).
#[inline(always)]
#[must_use]
pub const fn adjust(checksum: u16, delta: u16) -> u16 {
    let sum = !checksum as u32 + delta as u32;
    !((sum & 0xffff) + (sum >> 16)) as u16
}

/// As [`adjust`], for UDP: a checksum that comes out as 0 is sent as 0xffff, since 0 says that there
/// is none (RFC 768).
#[inline(always)]
#[must_use]
pub const fn adjust_udp(checksum: u16, delta: u16) -> u16 {
    match adjust(checksum, delta) {
        0 => 0xffff,
        adjusted => adjusted,
    }
}

/// What one less in the time to live adds to the sum of an IPv4 header.
pub const TTL_DECREMENT: u16 = !u16::from_ne_bytes([1, 0]);
