//! Configurations for tests: what user space would write into the maps.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    vec,
    vec::Vec,
};

use lb_common::{
    backend::{self, Backend},
    hash,
    limits::{MAC_BYTES, PORTS_BYTES, VIP_BYTES},
    service::{Balance, FILTERED, STEERED, Service, ServiceKey, Slot, mapped},
    source::{self, ALLOW, DENY, FLOATING, LIST_BITS, SOURCE_BITS, Source},
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

    /// With backends that listen on the floating address's own port, as those of steered services do.
    #[must_use]
    pub fn steered(mut self) -> Self {
        for backend in &mut self.backends {
            backend.set_port(self.vip.port());
        }
        self
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

/// As [`backend`], reached by `flags`: [`backend::DIRECT`], or [`backend::TUNNEL`] with or without
/// [`backend::GUE`], which begins at [`tunnel_source`].
#[must_use]
pub fn steered_at(address: SocketAddr, flags: u16) -> Backend {
    let backend = backend(address);
    let source = if flags & backend::TUNNEL == 0 { [0; 16] } else { tunnel_source(address) };
    Backend { source, flags: backend.flags | flags, ..backend }
}

/// The balancer's own address of the family of a backend's.
#[must_use]
pub fn tunnel_source(address: SocketAddr) -> [u8; 16] {
    match address {
        SocketAddr::V4(_) => mapped([192, 0, 2, 11]),
        SocketAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x11).octets(),
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
    /// `SOURCES`, by length of the prefix in bits, list and address.
    pub sources: Vec<((u32, Source), u32)>,
    /// MAC addresses of the node's interfaces; none if they are not known.
    pub macs: Vec<[u8; 6]>,
}

impl Setup {
    /// With a floating address.
    #[must_use]
    pub fn vip(mut self, address: IpAddr) -> Self {
        self.vip_bits.push(vip_bit(address));
        let source = Source { list: FLOATING, address: mapped_ip(address) };
        self.sources.push(((SOURCE_BITS, source), 0));
        self
    }

    /// With lists for all services so far: these prefixes are allowed or not, and others are if none is
    /// allowed by name.
    #[must_use]
    pub fn filtered(mut self, prefixes: &[(IpAddr, u32, bool)]) -> Self {
        let others = prefixes.iter().all(|(.., allowed)| !allowed);
        for (_, service) in &mut self.services {
            service.flags |= FILTERED;
            let list = source::list(service.index, service.flags);
            let verdict = |allowed| if allowed { ALLOW } else { DENY };
            let all = Source { list, address: [0; 16] };
            self.sources.push(((LIST_BITS, all), verdict(others)));
            self.sources.extend(prefixes.iter().map(|(address, length, allowed)| {
                let source = Source { list, address: mapped_ip(*address) };
                let before = if address.is_ipv4() { 96 } else { 0 };
                ((LIST_BITS + before + length, source), verdict(*allowed))
            }));
        }
        self
    }

    /// With a limit for each source, in all services so far.
    #[must_use]
    pub fn limited(mut self, rate: u32, burst: u32) -> Self {
        for (_, service) in &mut self.services {
            (service.source_rate, service.source_burst) = (rate, burst);
        }
        self
    }

    /// With these flags, in all services so far.
    #[must_use]
    pub fn flagged(mut self, flags: u32) -> Self {
        for (_, service) in &mut self.services {
            service.flags |= flags;
        }
        self
    }

    /// With new connections that wait until then, in all services so far.
    #[must_use]
    pub fn parked(mut self, until: u32) -> Self {
        for (_, service) in &mut self.services {
            service.parked_until = until;
        }
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

    /// With a steered service whose table is `slots`.
    #[must_use]
    pub fn steered(mut self, listen: SocketAddr, protocol: u8, slots: &[Slot]) -> Self {
        let service = Service {
            index: self.services.len() as u32,
            table_start: self.slots.len() as u32,
            table_len: slots.len() as u32,
            balance: Balance::Maglev as u32,
            flags: STEERED,
            ..Service::ZERO
        };
        self.slots.extend(slots);
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

    /// `VIPS` and `PORTS`, all of their bytes.
    #[must_use]
    pub fn filters(&self) -> (Vec<u8>, Vec<u8>) {
        let (mut vips, mut ports) = (vec![0; VIP_BYTES], vec![0; PORTS_BYTES]);
        for (key, service) in &self.services {
            let (vip_bit, place) = places(key);
            ports[place as usize] |= hash::PORT_SERVED;
            if service.flags & STEERED == 0 {
                vips[vip_bit as usize] |= hash::VIP;
            } else {
                vips[vip_bit as usize] |= hash::VIP_STEERED;
                ports[place as usize] |= hash::PORT_STEERED;
            }
        }
        for bit in &self.vip_bits {
            if vips[*bit as usize] == 0 {
                vips[*bit as usize] = hash::VIP;
            }
        }
        (vips, ports)
    }

    /// On a node whose interfaces have these MAC addresses.
    #[must_use]
    pub fn with_macs(mut self, macs: &[[u8; 6]]) -> Self {
        self.macs = macs.to_vec();
        self
    }

    /// `MACS`, all of its bytes: zeros if the node's addresses are not known.
    #[must_use]
    pub fn mac_filter(&self) -> Vec<u8> {
        let mut bytes = vec![u8::from(!self.macs.is_empty()); MAC_BYTES];
        for [.., e, f] in &self.macs {
            bytes[hash::mac_place(u16::from_ne_bytes([*e, *f])) as usize] = 0;
        }
        bytes
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

/// A service's places: its address's in `VIPS`, and its own in `PORTS`.
fn places(key: &ServiceKey) -> (u32, u32) {
    let vip_bit = match Ipv6Addr::from(key.address).to_ipv4_mapped() {
        Some(address) => vip_bit(address.into()),
        None => <[u64; 2]>::from_mapped(&key.address).vip_bit(),
    };
    (vip_bit, hash::port_place(vip_bit, key.port.to_be(), key.protocol))
}

/// Key of a service in `SERVICES`.
#[must_use]
pub fn service_key(listen: SocketAddr, protocol: u8) -> ServiceKey {
    ServiceKey { address: mapped_ip(listen.ip()), port: listen.port(), protocol, reserved: 0 }
}
