//! `NODE` and `NEWS`: what tells several nodes of each other's connections.
//!
//! `NEWS` is a ring buffer of four kinds of records, told apart by their lengths: [`Begun4`], [`Begun6`],
//! and the key of a backend's direction ([`crate::flow::FlowKey4`] or [`crate::flow::FlowKey6`]) for a
//! connection that has ended. With [`ANSWERED`](crate::flow::state::ANSWERED) in its entry's state, a record
//! of the first two is of a connection that is half open yet: its backend has answered, and what its client
//! has to acknowledge stands in the entry's `ack`.

use crate::{
    flow::{FlowEntry4, FlowEntry6, FlowKey4, FlowKey6},
    map_type::map_type,
};

map_type! {
    /// The value of `NODE`: what the kernel program has to know of this node among the others.
    pub struct Node {
        /// With several nodes, the bits of a port that say whose it is; 0 otherwise.
        pub port_mask: u16,
        /// What these bits are in ports that this node gives out.
        pub port_bits: u16,
        /// Bits: [`TELL`].
        pub flags: u32,
    }
}

/// Somebody reads `NEWS`.
pub const TELL: u32 = 1;

map_type! {
    /// A record of `NEWS`: an IPv4 connection is established, or its backend has answered.
    #[repr(align(8))]
    pub struct Begun4 {
        /// Key of the client's direction.
        pub client: FlowKey4,
        /// Key of the backend's direction; means nothing if the entry is
        /// [`STEERED`](crate::flow::state::STEERED).
        pub server: FlowKey4,
        /// Entry of the backend's direction, or the steered entry.
        pub entry: FlowEntry4,
    }
}

map_type! {
    /// A record of `NEWS`: the same of an IPv6 connection. Fields as in [`Begun4`].
    #[repr(align(8))]
    pub struct Begun6 {
        /// Key of the client's direction.
        pub client: FlowKey6,
        /// Key of the backend's direction.
        pub server: FlowKey6,
        /// Entry of the backend's direction, or the steered entry.
        pub entry: FlowEntry6,
    }
}

/// Bytes of the `NEWS` ring buffer: some ten thousand connections that begin before the daemon looks. A
/// power of two and a multiple of the page size.
pub const NEWS_BYTES: u32 = 1 << 20;

/// Most nodes whose ports are told apart.
pub const MOST_NODES: u16 = 256;

impl Node {
    /// How the ports are shared among so many nodes, of which this is the one with that number, from 0.
    ///
    /// The lowest bits are taken: a client draws its ports from all of a range, so that each of its own
    /// ports leads to another one of the node's. More than [`MOST_NODES`] share as the first ones do.
    #[must_use]
    pub const fn share(number: u16, nodes: u16) -> Self {
        let nodes = if nodes < MOST_NODES { nodes } else { MOST_NODES };
        let mask = if nodes < 2 { 0 } else { nodes.next_power_of_two() - 1 };
        Self { port_mask: mask, port_bits: number & mask, flags: 0 }
    }

    /// The port of this node's that stands in for any port.
    #[must_use]
    #[inline(always)]
    pub const fn port(&self, any: u16) -> u16 {
        any & !self.port_mask | self.port_bits
    }
}

#[cfg(test)]
mod tests {
    use super::{Begun4, Begun6, FlowKey4, FlowKey6, MOST_NODES, Node};
    use crate::limits::FIRST_NAT_PORT;

    #[test]
    fn records_are_told_apart_by_their_lengths() {
        let lengths = [
            size_of::<Begun4>(),
            size_of::<Begun6>(),
            size_of::<FlowKey4>(),
            size_of::<FlowKey6>(),
        ];
        for (at, length) in lengths.iter().enumerate() {
            assert!(!lengths[..at].contains(length), "{lengths:?}");
        }
    }

    #[test]
    fn no_port_belongs_to_two_nodes() {
        for nodes in [1, 2, 3, 5, 16, MOST_NODES, 1000] {
            for number in 0..nodes.min(MOST_NODES) {
                let share = Node::share(number, nodes);
                for any in [FIRST_NAT_PORT, 1025, 40_000, 40_001, u16::MAX] {
                    let port = share.port(any);
                    assert!(port >= FIRST_NAT_PORT);
                    let owners = (0..nodes.min(MOST_NODES))
                        .filter(|other| Node::share(*other, nodes).port(port) == port);
                    assert_eq!(owners.collect::<Vec<_>>(), [number], "{port} of {nodes}");
                }
            }
        }
        assert_eq!(Node::share(0, 1).port(40_001), 40_001, "one node has all");
    }
}
