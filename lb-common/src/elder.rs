//! `ELDER`: nodes that had the floating addresses before, and still answer on their own connections.

use crate::map_type::map_type;

/// Index of the node to which this one hands on while it has the addresses: who had them last.
pub const LAST: u32 = 0;
/// Index of the node to which this one hands on what who has the addresses now hands to it.
pub const RELAY: u32 = 1;
/// Entries of `ELDER`.
pub const ELDERS: u32 = 2;

map_type! {
    /// A value of `ELDER`.
    pub struct Elder {
        /// `CLOCK_MONOTONIC`, nanoseconds: until then, packets of connections to the proxy that are not this
        /// node's go there. 0: there is no such node.
        pub until_ns: u64,
        /// MAC address of the next hop to it; zeros: it is this node.
        pub mac: [u8; 6],
        /// Of [`RELAY`]: the only MAC address from which frames are handed on there.
        pub from: [u8; 6],
        /// Zero.
        pub reserved: u32,
    }
}
