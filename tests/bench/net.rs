//! Who talks to whom.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::{
    packets::Mac,
    plan::{FIRST_PORT, PORT_BITS},
};

/// IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    V4,
    V6,
}

/// The client's, or its router's.
pub(crate) const CLIENT_MAC: Mac = [0x02, 0, 0, 0, 0, 0x09];
/// Ours.
pub(crate) const LOCAL_MAC: Mac = [0x02, 0, 0, 0, 0, 0x11];
/// Of all backends: they stand behind one router.
pub(crate) const BACKEND_MAC: Mac = [0x02, 0, 0, 0, 0, 0x21];

/// Port of the service that chooses by hash, and that known flows belong to.
pub(crate) const PORT: u16 = 80;
/// Port of the service that chooses by the number of connections.
pub(crate) const LEAST_CONN_PORT: u16 = 81;
/// Port that has no service.
pub(crate) const CLOSED_PORT: u16 = 82;
/// Port of the service whose backends are behind tunnels; its floating address is
/// [`Version::steered_vip`].
pub(crate) const TUNNEL_PORT: u16 = 84;
/// Port of the service whose backends are behind tunnels with UDP.
pub(crate) const GUE_PORT: u16 = 85;
/// Port of the service whose backends answer for themselves.
pub(crate) const DIRECT_PORT: u16 = 86;
/// Port of a service whose slots are all disturbed: each new connection makes an entry.
pub(crate) const DISTURBED_PORT: u16 = 87;
/// Port of the backends.
pub(crate) const BACKEND_PORT: u16 = 8080;

/// Number of backends: as many as `least_conn` looks at, and enough ports for a million connections.
pub(crate) const BACKENDS: u32 = 32;

/// Interface that packets of `BPF_PROG_TEST_RUN` come in by: the loopback device.
pub(crate) const IFINDEX: u32 = 1;

impl Version {
    /// The floating address.
    pub(crate) fn vip(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(192, 0, 2, 100).into(),
            Self::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x100).into(),
        }
    }

    /// The floating address of steered services. One of its own, so that translated connections do
    /// not pay for them.
    pub(crate) fn steered_vip(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(192, 0, 2, 101).into(),
            Self::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x101).into(),
        }
    }

    /// The floating address of the service with this port.
    pub(crate) fn listens(self, port: u16) -> IpAddr {
        if (TUNNEL_PORT..=DISTURBED_PORT).contains(&port) { self.steered_vip() } else { self.vip() }
    }

    /// Our own address, which tunnels begin at.
    pub(crate) fn local(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(192, 0, 2, 11).into(),
            Self::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x11).into(),
        }
    }

    /// An address that is not ours.
    pub(crate) fn elsewhere(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(192, 0, 2, 200).into(),
            Self::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x200).into(),
        }
    }

    /// A client, from the ranges for benchmarks (RFC 2544, RFC 5180).
    pub(crate) fn client(self, number: u32) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::from_bits(0xc612_0000 + number).into(),
            Self::V6 => Ipv6Addr::from_bits((0x2001_0002 << 96) + 1 + u128::from(number)).into(),
        }
    }

    /// A backend.
    pub(crate) fn backend(self, number: u32) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::from_bits(0xcb00_7101 + number).into(),
            Self::V6 => {
                Ipv6Addr::from_bits((0x2001_0db8_000b << 80) + 1 + u128::from(number)).into()
            }
        }
    }

    /// Identifier of a backend.
    pub(crate) fn backend_id(self, number: u32) -> u32 {
        match self {
            Self::V4 => number,
            Self::V6 => BACKENDS + number,
        }
    }
}

/// A connection: the client's number and the backend's are the same, and so are the client's port and
/// the one that replies come to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Connection {
    pub(crate) client: SocketAddr,
    pub(crate) listen: SocketAddr,
    pub(crate) nat: SocketAddr,
    pub(crate) backend: SocketAddr,
    pub(crate) backend_id: u32,
}

impl Connection {
    /// The connection of flow `number`, as the trampoline numbers them.
    pub(crate) fn new(version: Version, number: u32) -> Self {
        let party = number >> PORT_BITS;
        let port = (FIRST_PORT + number % (1 << PORT_BITS)) as u16;
        Self {
            client: SocketAddr::new(version.client(party), port),
            listen: SocketAddr::new(version.vip(), PORT),
            nat: SocketAddr::new(version.vip(), port),
            backend: SocketAddr::new(version.backend(party % BACKENDS), BACKEND_PORT),
            backend_id: version.backend_id(party % BACKENDS),
        }
    }
}
