//! Counters, per CPU; user space sums them.

use crate::map_type::map_type;

map_type! {
    /// Value of `SERVICE_STATS`.
    pub struct ServiceStats {
        /// New connections (UDP: new tuples) that were given a backend.
        pub connections: u64,
        /// New connections refused: no backend, no port, no room.
        pub refused: u64,
    }
}

map_type! {
    /// Value of `BACKEND_STATS`.
    pub struct BackendStats {
        /// New connections given to it.
        pub connections: u64,
        /// Connections that it answered.
        pub answered: u64,
        /// Packets forwarded to it.
        pub forward_packets: u64,
        /// Bytes forwarded to it, Ethernet header included.
        pub forward_bytes: u64,
        /// Packets from it forwarded to clients.
        pub return_packets: u64,
        /// Bytes from it forwarded to clients, Ethernet header included.
        pub return_bytes: u64,
    }
}

map_type! {
    /// Value of `META`.
    pub struct Meta {
        /// [`crate::limits::ABI_VERSION`] of whoever created the maps.
        pub abi_version: u32,
        /// Zero.
        pub reserved: u32,
    }
}
