//! Counters, per CPU; user space sums them.

use crate::map_type::map_type;

map_type! {
    /// Value of `SERVICE_STATS`.
    pub struct ServiceStats {
        /// New connections (UDP: new tuples) that were given a backend.
        pub connections: u64,
        /// New connections refused: no backend, no port, no room, not allowed.
        pub refused: u64,
        /// Times that a connection was tried at another backend.
        pub replayed: u64,
        /// Times that it was not, although the backend failed: too many tries, no other backend, or the
        /// share of replayed connections was used up.
        pub not_replayed: u64,
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

/// Number of classes of handshake times.
pub const HANDSHAKE_CLASSES: usize = 24;

map_type! {
    /// Value of `BACKEND_SIGNALS`: what connections show of a backend's fitness.
    pub struct BackendSignals {
        /// SYNs that were sent to it, each connection once.
        pub attempts: u64,
        /// SYN-ACKs from it.
        pub answered: u64,
        /// RSTs from it in answer to a SYN.
        pub refused: u64,
        /// ICMP errors about a SYN to it.
        pub unreachable: u64,
        /// SYNs that it had not answered in time: the client has sent it again, or it was replayed.
        pub unanswered: u64,
        /// RSTs from it in established connections.
        pub resets: u64,
        /// Handshakes by the time until the SYN-ACK: class `i` counts those below 2^i microseconds and
        /// not below 2^(i-1); the last class, all that are longer.
        pub handshakes: [u32; HANDSHAKE_CLASSES],
    }
}

/// The class of a handshake in [`BackendSignals::handshakes`].
#[must_use]
#[inline(always)]
pub const fn handshake_class(time_ns: u64) -> usize {
    let micros = time_ns / 1000;
    let class = (u64::BITS - micros.leading_zeros()) as usize;
    if class < HANDSHAKE_CLASSES { class } else { HANDSHAKE_CLASSES - 1 }
}

map_type! {
    /// Value of `META`.
    pub struct Meta {
        /// [`crate::limits::ABI_VERSION`] of whoever created the maps.
        pub abi_version: u32,
        /// When that was: `CLOCK_MONOTONIC`, seconds, and at least 1. 0 in maps of a version that did not
        /// say.
        pub created_s: u32,
    }
}

#[cfg(test)]
mod tests {
    use super::{HANDSHAKE_CLASSES, handshake_class};

    #[test]
    fn a_class_ends_at_a_power_of_two() {
        assert_eq!(handshake_class(0), 0);
        assert_eq!(handshake_class(999), 0);
        for class in 1..HANDSHAKE_CLASSES - 1 {
            let first_ns = (1 << (class - 1)) * 1000;
            assert_eq!(handshake_class(first_ns), class);
            assert_eq!(handshake_class(2 * first_ns - 1), class);
        }
        assert_eq!(handshake_class(u64::MAX), HANDSHAKE_CLASSES - 1);
    }
}
