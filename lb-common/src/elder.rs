//! `ELDER`: the node that had the floating addresses before this one, and still answers on its own connections.

use crate::map_type::map_type;

map_type! {
    /// The value of `ELDER`.
    pub struct Elder {
        /// `CLOCK_MONOTONIC`, nanoseconds: until then, packets of connections to the proxy that are not this
        /// node's go there. 0: there is no such node.
        pub until_ns: u64,
        /// MAC address of the next hop to it; zeros: it is this node.
        pub mac: [u8; 6],
        /// Zero.
        pub reserved: u16,
    }
}
