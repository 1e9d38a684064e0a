//! `LEASES`: until when this node may answer for a floating address.

use crate::map_type::map_type;

map_type! {
    /// Key of `LEASES`.
    pub struct LeaseKey {
        /// The floating address; IPv4 as an IPv4-mapped IPv6 address.
        pub address: [u8; 16],
    }
}

map_type! {
    /// Value of `LEASES`.
    pub struct Lease {
        /// `CLOCK_MONOTONIC`, nanoseconds. From then on, questions for the address are not answered.
        pub until_ns: u64,
        /// `CLOCK_MONOTONIC`, nanoseconds. Until then, the node that had the address before may still tell
        /// of connections that are not known here.
        pub told_ns: u64,
    }
}
