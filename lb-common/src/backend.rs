//! `BACKENDS`: where the packets of a backend go.

use crate::map_type::map_type;

map_type! {
    /// Value of `BACKENDS`. Its index is the backend's identifier; it is not given to another
    /// backend while a flow still names it.
    pub struct Backend {
        /// Address; IPv4 as an IPv4-mapped IPv6 address.
        pub address: [u8; 16],
        /// Our own address that tunnels to it begin at; of the same family. Zero without [`TUNNEL`].
        pub source: [u8; 16],
        /// Port, host byte order.
        pub port: u16,
        /// Bits: [`IN_USE`], [`FORWARD`], [`RESOLVED`], [`DIRECT`], [`TUNNEL`], [`GUE`], [`LEASED`].
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
        /// Longest IP packet that goes through the tunnel to it, bytes, without what the tunnel adds;
        /// 0 for no limit.
        pub max_packet: u16,
        /// Milliseconds that it may take to answer a SYN before the connection is tried elsewhere;
        /// 0 while that is not known.
        pub patience_ms: u16,
    }
}

/// The entry describes a backend (of the running configuration, or one that has gone and still has
/// flows).
pub const IN_USE: u16 = 1;

/// Packets of its flows are forwarded. Without this bit they are answered with a reset.
pub const FORWARD: u16 = 2;

/// The MAC address of the next hop is known. Without this bit its packets are dropped and counted.
pub const RESOLVED: u16 = 4;

/// Packets go to it as they are, but for the MAC addresses; it answers the client by itself.
pub const DIRECT: u16 = 8;

/// Packets go to it inside another IP packet; it answers the client by itself.
pub const TUNNEL: u16 = 16;

/// With [`TUNNEL`]: inside UDP (Generic UDP Encapsulation, variant 1), not IP in IP.
pub const GUE: u16 = 32;

/// Packets go to it only until the end of its lease ([`crate::lease::LeaseKey::backend`]), and none without
/// one. Only with neither [`DIRECT`] nor [`TUNNEL`].
pub const LEASED: u16 = 64;

#[cfg(test)]
mod tests {
    use super::Backend;

    #[test]
    fn an_entry_is_one_cache_line() {
        assert_eq!(size_of::<Backend>(), 64);
    }
}
