//! Configurations for tests: what user space would write into the maps.

use std::{
    net::{IpAddr, SocketAddr},
    vec,
    vec::Vec,
};

use lb_common::{
    backend::{self, Backend},
    service::{Balance, Service, ServiceKey, Slot, mapped},
};

use super::frame::Frame;
use crate::family::{Address, protocol};

/// The hosts of a test.
#[derive(Clone, Copy, Debug)]
pub struct Net {
    /// A client.
    pub client: SocketAddr,
    /// The floating address and a port of it.
    pub vip: SocketAddr,
    /// Addresses of backends.
    pub backends: [SocketAddr; 3],
}

impl Net {
    /// In IPv4.
    #[must_use]
    pub fn v4() -> Self {
        let at = |last, port| SocketAddr::from(([192, 0, 2, last], port));
        Self {
            client: at(9, 40_000),
            vip: at(100, 80),
            backends: [at(21, 8080), at(22, 8080), at(23, 8080)],
        }
    }

    /// In IPv6.
    #[must_use]
    pub fn v6() -> Self {
        let at = |last, port| SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, last], port));
        Self {
            client: at(9, 40_000),
            vip: at(0x100, 80),
            backends: [at(0x21, 8080), at(0x22, 8080), at(0x23, 8080)],
        }
    }

    /// In both.
    #[must_use]
    pub fn both() -> [Self; 2] {
        [Self::v4(), Self::v6()]
    }

    /// The floating address with another port: what a backend sees as the client.
    #[must_use]
    pub fn nat(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.vip.ip(), port)
    }

    /// Another client: its address ends in `host`.
    #[must_use]
    pub fn other_client(&self, host: u16, port: u16) -> SocketAddr {
        match self.client.ip() {
            IpAddr::V4(_) => {
                let [a, b] = host.to_be_bytes();
                SocketAddr::from(([198, 18, a, b], port))
            }
            IpAddr::V6(_) => SocketAddr::from(([0x2001, 0xdb8, 0, 9, 0, 0, 0, host], port)),
        }
    }

    /// A client's frame as backend `id` (1 to 3) gets it, from a port of the floating address.
    #[must_use]
    pub fn at_backend(&self, frame: &Frame, id: u32, port: u16) -> Frame {
        let address = self.backends[id as usize - 1];
        frame
            .clone()
            .between(self.nat(port), address)
            .link(OUR_MAC, backend(address).next_hop)
            .ttl(frame.ttl - 1)
    }

    /// A backend's frame as the client gets it.
    #[must_use]
    pub fn at_client(&self, frame: &Frame, client: SocketAddr) -> Frame {
        frame.clone().between(self.vip, client).link(OUR_MAC, CLIENT_MAC).ttl(frame.ttl - 1)
    }

    /// Gives a frame the MAC addresses of one that backend `id` (1 to 3) sends to us.
    #[must_use]
    pub fn sent_by_backend(&self, frame: Frame, id: u32) -> Frame {
        frame.link(backend(self.backends[id as usize - 1]).next_hop, OUR_MAC)
    }

    /// The service on `vip` with the three backends, by TCP and by UDP, and a table that names each
    /// backend once.
    #[must_use]
    pub fn setup(&self, balance: Balance) -> Setup {
        let mut setup = Setup::default().vip(self.vip.ip());
        for (id, address) in (1..).zip(self.backends) {
            setup = setup.backend(id, backend(address));
        }
        setup.service(self.vip, protocol::TCP, balance, &[1, 2, 3]).service(
            self.vip,
            protocol::UDP,
            balance,
            &[1, 2, 3],
        )
    }

    /// As [`Net::setup`], with the first backend alone.
    #[must_use]
    pub fn single(&self) -> Setup {
        Setup::default()
            .vip(self.vip.ip())
            .backend(1, backend(self.backends[0]))
            .service(self.vip, protocol::TCP, Balance::Maglev, &[1])
            .service(self.vip, protocol::UDP, Balance::Maglev, &[1])
    }
}

/// MAC address of whoever sends the client's packets; [`super::Frame`] starts with it.
pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xc];
/// MAC address of the balancer.
pub const OUR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xb];
/// The interface that packets come in by, in tests. In a test run without a context the kernel says
/// that it is the loopback, whose index is 1 in every network namespace.
pub const INGRESS: u32 = 1;

/// A backend that is fit to serve, on the interface that packets come in by. Its MAC address ends in
/// the last byte of its address.
#[must_use]
pub fn backend(address: SocketAddr) -> Backend {
    let [.., last] = mapped_ip(address.ip());
    Backend {
        address: mapped_ip(address.ip()),
        port: address.port(),
        flags: backend::IN_USE | backend::FORWARD | backend::RESOLVED,
        weight: 1,
        service: 0,
        ifindex: INGRESS,
        next_hop: [2, 0, 0, 0, 1, last],
        source_mac: OUR_MAC,
        ..Backend::ZERO
    }
}

/// An address as map types have it.
#[must_use]
pub fn mapped_ip(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => mapped(address.octets()),
        IpAddr::V6(address) => address.octets(),
    }
}

/// Bit of an address in `VIPS`.
#[must_use]
pub fn vip_bit(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(address) => u32::from_ne_bytes(address.octets()).vip_bit(),
        IpAddr::V6(address) => <[u64; 2]>::from_mapped(&address.octets()).vip_bit(),
    }
}

/// What the maps hold before the first packet.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Bits of `VIPS`.
    pub vip_bits: Vec<u32>,
    /// Entries of `SERVICES`.
    pub services: Vec<(ServiceKey, Service)>,
    /// Entries of `BACKENDS`.
    pub backends: Vec<(u32, Backend)>,
    /// `MAGLEV`, from slot 0 on.
    pub slots: Vec<Slot>,
}

impl Setup {
    /// With a floating address.
    #[must_use]
    pub fn vip(mut self, address: IpAddr) -> Self {
        self.vip_bits.push(vip_bit(address));
        self
    }

    /// With a backend.
    #[must_use]
    pub fn backend(mut self, id: u32, backend: Backend) -> Self {
        self.backends.push((id, backend));
        self
    }

    /// With a service whose table is `table`; the services' indices count from 0.
    #[must_use]
    pub fn service(
        mut self,
        listen: SocketAddr,
        protocol: u8,
        balance: Balance,
        table: &[u32],
    ) -> Self {
        let mut members = vec![];
        for id in table {
            if !members.contains(id) {
                members.push(*id);
            }
        }
        let service = Service {
            index: self.services.len() as u32,
            table_start: self.slots.len() as u32,
            table_len: table.len() as u32,
            balance: balance as u32,
            members_start: (self.slots.len() + table.len()) as u32,
            members_len: members.len() as u32,
            ..Service::ZERO
        };
        self.slots.extend(table.iter().chain(&members).map(|id| Slot::of(*id)));
        self.services.push((service_key(listen, protocol), service));
        self
    }

    /// With connections that are tried at so many other backends, and a budget for that.
    #[must_use]
    pub fn replays(mut self, tries: u32, per_mille: u32) -> Self {
        for (_, service) in &mut self.services {
            (service.replay_tries, service.replay_per_mille) = (tries, per_mille);
        }
        self
    }

    /// With a backend changed.
    ///
    /// # Panics
    ///
    /// When there is no backend `id`.
    #[must_use]
    pub fn change(mut self, id: u32, change: impl FnOnce(&mut Backend)) -> Self {
        let (_, backend) =
            self.backends.iter_mut().find(|(other, _)| *other == id).expect("a backend of it");
        change(backend);
        self
    }
}

/// Key of a service in `SERVICES`.
#[must_use]
pub fn service_key(listen: SocketAddr, protocol: u8) -> ServiceKey {
    ServiceKey { address: mapped_ip(listen.ip()), port: listen.port(), protocol, reserved: 0 }
}
