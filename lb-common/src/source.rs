//! `SOURCES` and `RATES`: who may begin connections, and how many.

use crate::{map_type::map_type, service::SECOND_LIST};

map_type! {
    /// Key of `SOURCES`, behind the length of its prefix in bits: a source address in a list.
    ///
    /// The longest prefix decides. A list that has none for an address refuses it, so each list has a
    /// shortest one, of [`LIST_BITS`] bits, for all others.
    #[derive(PartialOrd, Ord)]
    pub struct Source {
        /// A list of a service ([`list`]), or [`FLOATING`].
        pub list: u32,
        /// The address; IPv4 as an IPv4-mapped IPv6 address.
        pub address: [u8; 16],
    }
}

/// Bits of a prefix that are the number of the list.
pub const LIST_BITS: u32 = 32;

/// Bits of a whole key.
pub const SOURCE_BITS: u32 = LIST_BITS + 128;

/// Value of `SOURCES`: the source may begin connections.
pub const ALLOW: u32 = 1;

/// Value of `SOURCES`: it may not.
pub const DENY: u32 = 2;

/// The list of our floating addresses, which no packet from outside begins at. Its values mean
/// nothing.
pub const FLOATING: u32 = u32::MAX;

/// The list that a service of this index refers to, if its flags have [`crate::service::FILTERED`]. Each
/// service has the numbers of two, so that one can be written while the other is in use.
#[must_use]
#[inline(always)]
pub const fn list(index: u32, flags: u32) -> u32 {
    index * 2 + (flags & SECOND_LIST != 0) as u32
}

map_type! {
    /// Key of `RATES`.
    pub struct RateKey {
        /// Index of the service.
        pub service: u32,
        /// The source: an IPv4 address, mapped, or the first 64 bits of an IPv6 address.
        pub address: [u8; 16],
    }
}

map_type! {
    /// Value of `RATES`: a token bucket, as the time at which it is full again.
    pub struct Bucket {
        /// `CLOCK_MONOTONIC_COARSE`, nanoseconds.
        pub full_ns: u64,
    }
}

#[cfg(test)]
mod tests {
    use super::{FLOATING, list};
    use crate::{
        limits::MOST_SERVICES,
        service::{FILTERED, SECOND_LIST},
    };

    #[test]
    fn no_two_lists_have_the_same_number() {
        assert_eq!(list(3, FILTERED), 6);
        assert_eq!(list(3, FILTERED | SECOND_LIST), 7);
        assert_eq!(list(4, FILTERED), 8);
        assert!(list(MOST_SERVICES - 1, SECOND_LIST) < FLOATING);
    }
}
