//! `BACKENDS`: where the packets of a backend go.

use crate::map_type::map_type;

map_type! {
    /// Value of `BACKENDS`. Its index is the backend's identifier; it is not given to another
    /// backend while a flow still names it.
    pub struct Backend {
        /// Address; IPv4 as an IPv4-mapped IPv6 address.
        pub address: [u8; 16],
        /// Port, host byte order.
        pub port: u16,
        /// Bits: [`IN_USE`], [`FORWARD`], [`RESOLVED`].
        pub flags: u16,
        /// Relative share of connections, 1 and up.
        pub weight: u32,
        /// Index of its service, as in [`crate::service::Service::index`].
        pub service: u32,
        /// Interface that leads to it.
        pub ifindex: u32,
        /// MAC address of the next hop towards it.
        pub next_hop: [u8; 6],
        /// MAC address of our interface that leads to it.
        pub source_mac: [u8; 6],
    }
}

/// The entry describes a backend (of the running configuration, or one that has gone and still has
/// flows).
pub const IN_USE: u16 = 1;

/// Packets of its flows are forwarded. Without this bit they are answered with a reset.
pub const FORWARD: u16 = 2;

/// The MAC address of the next hop is known. Without this bit its packets are dropped and counted.
pub const RESOLVED: u16 = 4;
