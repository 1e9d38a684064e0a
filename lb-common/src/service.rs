//! `SERVICES`: a floating address, port and protocol, and how a backend is chosen for it.

use crate::map_type::map_type;

map_type! {
    /// Key of `SERVICES`.
    #[derive(PartialOrd, Ord)]
    pub struct ServiceKey {
        /// The floating address; IPv4 as an IPv4-mapped IPv6 address (`::ffff:a.b.c.d`).
        pub address: [u8; 16],
        /// Port, host byte order.
        pub port: u16,
        /// IP protocol number: 6 or 17.
        pub protocol: u8,
        /// Zero.
        pub reserved: u8,
    }
}

map_type! {
    /// Value of `SERVICES`.
    pub struct Service {
        /// Index into `SERVICE_STATS`, `CURSORS` and `SPENT`.
        pub index: u32,
        /// First slot of the service's table in `MAGLEV`.
        pub table_start: u32,
        /// Slots in the service's table; 0 when no backend can serve.
        pub table_len: u32,
        /// A [`Balance`] as a number.
        pub balance: u32,
        /// First slot, in `MAGLEV`, of the list that names each backend of the table once. Read by
        /// [`Balance::LeastConn`] only.
        pub members_start: u32,
        /// Length of that list.
        pub members_len: u32,
        /// Bits: [`STEERED`], [`FILTERED`], [`SECOND_LIST`], [`LISTENED`], [`PROXIED`],
        /// [`FORWARDABLE`].
        pub flags: u32,
        /// New connections that one source may begin in a second; 0 for any number.
        pub source_rate: u32,
        /// New connections that one source may begin at once, at least 1 if there is a rate.
        pub source_burst: u32,
        /// Backends that a connection may be tried at after the first; 0: connections are not
        /// replayed.
        pub replay_tries: u32,
        /// Share of new connections that may be replayed, in thousandths.
        pub replay_per_mille: u32,
        /// Its new connections wait until then, in units of 2^[`PARK_SHIFT`] nanoseconds of
        /// `CLOCK_MONOTONIC`: their SYNs are dropped, and come again. 0, or a time that is over: they do
        /// not.
        pub parked_until: u32,
    }
}

/// See [`Service::parked_until`]: about a second.
pub const PARK_SHIFT: u32 = 30;

/// Its backends are reached by [`crate::backend::DIRECT`] or [`crate::backend::TUNNEL`]: its table is a
/// Maglev table whose slots steer packets without any entry in `FLOWS`.
pub const STEERED: u32 = 1;

/// `SOURCES` says who may connect.
pub const FILTERED: u32 = 2;

/// With [`FILTERED`]: by the second of the service's two lists, see [`crate::source::list`].
pub const SECOND_LIST: u32 = 4;

/// The node's own stack has connections of the service too, those of the proxy: packets of connections
/// that are not known are theirs.
pub const LISTENED: u32 = 8;

/// With [`LISTENED`]: new connections, once they are admitted, go to the node's own stack.
pub const PROXIED: u32 = 16;

/// With [`PROXIED`]: while nobody on this node listens, new connections are forwarded as if it were not
/// set. The backends understand its clients without the proxy.
pub const FORWARDABLE: u32 = 32;

map_type! {
    /// Value of `MAGLEV`: a slot of a service's table.
    ///
    /// Only steered services know a difference between the two. There, connections that are new since
    /// the slot was last undisturbed go to `backend`, by an entry in `FLOWS`; packets without an entry
    /// go to `base`. While both are the same, and without [`LOOK_UP`], no entry is looked for.
    pub struct Slot {
        /// Identifier of the backend of new connections.
        pub backend: u32,
        /// Identifier of the backend of packets that have no entry; with the bit [`LOOK_UP`], `FLOWS`
        /// has entries for tuples of this slot that differ from it.
        pub base: u32,
    }
}

/// Bit of [`Slot::base`].
pub const LOOK_UP: u32 = 1 << 31;

/// No backend's identifier: in [`Slot::backend`], nobody takes new connections; in [`Slot::base`], no
/// packet without an entry belongs to a connection.
pub const NOBODY: u32 = LOOK_UP - 1;

impl Slot {
    /// An undisturbed slot.
    #[must_use]
    pub const fn of(backend: u32) -> Self {
        Self { backend, base: backend }
    }
}

/// How a new connection's backend is chosen.
///
/// Each method reads the same kind of table, a run of backend identifiers that user space built;
/// they differ in the slot that they take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Balance {
    /// Slot by the hash of the tuple; the table is a Maglev table (Eisenbud et al., NSDI 2016).
    Maglev = 0,
    /// Next slot in turn; the table is a smooth weighted round-robin schedule.
    RoundRobin = 1,
    /// A slot at random; the table is a smooth weighted round-robin schedule.
    Random = 2,
    /// The backend with the fewest open connections for its weight; among equals, the next in turn.
    /// The table is a smooth weighted round-robin schedule; the members are looked through as well.
    LeastConn = 3,
}

impl Balance {
    /// The method that `number` stands for in a map value.
    #[must_use]
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Maglev),
            1 => Some(Self::RoundRobin),
            2 => Some(Self::Random),
            3 => Some(Self::LeastConn),
            _ => None,
        }
    }
}

/// `a.b.c.d` as `::ffff:a.b.c.d`.
#[must_use]
#[inline(always)]
pub const fn mapped(v4: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3]]
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::{Balance, mapped};

    #[test]
    fn methods_come_back_from_their_numbers() {
        for balance in [Balance::Maglev, Balance::RoundRobin, Balance::Random, Balance::LeastConn] {
            assert_eq!(Balance::from_number(balance as u32), Some(balance));
        }
        assert_eq!(Balance::from_number(4), None);
    }

    #[test]
    fn mapped_addresses_are_those_of_std() {
        let address = Ipv4Addr::new(192, 0, 2, 100);
        assert_eq!(mapped(address.octets()), address.to_ipv6_mapped().octets());
    }
}
