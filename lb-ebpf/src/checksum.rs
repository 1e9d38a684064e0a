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

    /// The sum in 16 bits. Three steps do for what is less than 2^47, which 32,768 words are.
    #[inline(always)]
    #[must_use]
    pub const fn fold(self) -> u16 {
        let sum = (self.0 & 0xffff) + (self.0 >> 16);
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Sum, TTL_DECREMENT, adjust, adjust_udp};
    use crate::fake::valid::naive_sum;

    /// The sum of bytes, as the data path would make it of their words.
    fn sum(bytes: &[u8]) -> Sum {
        let (words, rest) = bytes.as_chunks::<2>();
        assert!(rest.is_empty());
        words.iter().fold(Sum::ZERO, |sum, word| sum.add16(u16::from_ne_bytes(*word)))
    }

    /// The sum that all full computations agree on, as a native word.
    fn naive(bytes: &[u8]) -> u16 {
        naive_sum(bytes).to_be()
    }

    fn even() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<[u8; 2]>(), 0..60).prop_map(|pairs| pairs.concat())
    }

    proptest! {
        #[test]
        fn words_of_every_width_add_up_the_same(bytes in any::<[u8; 8]>(), before in any::<u16>()) {
            let start = Sum::ZERO.add16(before);
            let word64 = u64::from_ne_bytes(bytes);
            let (low, high) = (word64 as u32, (word64 >> 32) as u32);
            let mut all = before.to_ne_bytes().to_vec();
            all.extend(bytes);
            prop_assert_eq!(start.add64(word64).fold(), naive(&all));
            prop_assert_eq!(start.add32(low).add32(high).fold(), naive(&all));
            prop_assert_eq!(start.add(sum(&bytes)).fold(), naive(&all));
        }

        #[test]
        fn a_sum_is_that_of_its_bytes(bytes in even()) {
            prop_assert_eq!(sum(&bytes).fold(), naive(&bytes));
            prop_assert_eq!(sum(&bytes).checksum(), !naive(&bytes));
        }

        /// What was added can be taken out again (0 and 0xffff are both zero).
        #[test]
        fn subtracting_undoes_adding(one in even(), other in even()) {
            let back = sum(&one).add(sum(&other)).sub(sum(&other)).fold();
            prop_assert_eq!(back % 0xffff, sum(&one).fold() % 0xffff);
        }

        /// The heart of it: a checksum that is adjusted is the one that a full computation gives,
        /// bit for bit.
        #[test]
        fn adjusting_is_computing_anew(
            mut bytes in proptest::collection::vec(any::<[u8; 2]>(), 2..60),
            at in any::<prop::sample::Index>(),
            new in any::<[u8; 2]>(),
        ) {
            // No packet is all zeros, whose checksum alone has two forms.
            bytes[0] = [0x45, 0];
            let at = 1 + at.index(bytes.len() - 1);
            let old_check = sum(&bytes.concat()).checksum();
            let old = std::mem::replace(&mut bytes[at], new);
            let delta = Sum::ZERO
                .add16(u16::from_ne_bytes(new))
                .sub(Sum::ZERO.add16(u16::from_ne_bytes(old)))
                .fold();
            prop_assert_eq!(adjust(old_check, delta), sum(&bytes.concat()).checksum());
        }

        #[test]
        fn udp_never_says_that_it_has_no_checksum(check in 1..=u16::MAX, delta in any::<u16>()) {
            let adjusted = adjust_udp(check, delta);
            prop_assert_ne!(adjusted, 0);
            prop_assert_eq!(adjusted % 0xffff, adjust(check, delta) % 0xffff);
        }
    }

    #[test]
    fn the_largest_sums_fold() {
        let most = (0..1000).fold(Sum::ZERO, |sum, _| sum.add64(u64::MAX).add32(u32::MAX));
        assert_eq!(most.fold(), 0xffff);
        assert_eq!(Sum::ZERO.fold(), 0);
        assert_eq!(adjust(0, 0xffff), 0);
        assert_eq!(adjust_udp(0xffff, 0xffff), 0xffff);
    }

    #[test]
    fn one_hop_less_for_every_time_to_live() {
        for ttl in 1..=u8::MAX {
            for protocol in [6, 17] {
                let check = |ttl| sum(&[0x45, 0, ttl, protocol]).checksum();
                assert_eq!(adjust(check(ttl), TTL_DECREMENT), check(ttl - 1));
            }
        }
    }
}
