//! Map values from addresses, flags and next hops.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use lb_common::{
    backend::{self, Backend},
    hash,
    limits::{PORTS_BYTES, VIP_BYTES},
    service::{ServiceKey, mapped},
};

use super::DesiredBackend;
use crate::{
    config::{Encapsulation, Forwarding, Protocol, tunnel_bytes},
    net::{NextHop, NextHops},
};

/// The key of the service that listens there.
pub fn service_key(listen: SocketAddr, protocol: Protocol) -> ServiceKey {
    let protocol = match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    };
    ServiceKey { address: bytes(listen.ip()), port: listen.port(), protocol, reserved: 0 }
}

/// An address as it stands in the maps.
pub(super) fn bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// An address from the maps.
pub(super) fn address(bytes: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(bytes).to_canonical()
}

/// Where a backend of the maps listens.
pub(super) fn backend_address(backend: &Backend) -> SocketAddr {
    SocketAddr::new(address(backend.address), backend.port)
}

/// The entry of a configured backend.
pub(super) fn backend(
    wanted: &DesiredBackend,
    service: u32,
    forwarding: Forwarding,
    next_hops: &NextHops,
) -> Backend {
    let way = match forwarding {
        Forwarding::Nat => 0,
        Forwarding::Direct => backend::DIRECT,
        Forwarding::Tunnel(Encapsulation::Ipip) => backend::TUNNEL,
        Forwarding::Tunnel(Encapsulation::Gue) => backend::TUNNEL | backend::GUE,
    };
    let fresh = Backend {
        address: bytes(wanted.address.ip()),
        port: wanted.address.port(),
        flags: backend::IN_USE
            | way
            | if wanted.forward { backend::FORWARD } else { 0 }
            | if wanted.leased { backend::LEASED } else { 0 },
        weight: wanted.weight,
        service,
        patience_ms: wanted.patience_ms,
        ..Backend::ZERO
    };
    with_next_hop(fresh, wanted.address.ip(), next_hops)
}

/// The entry of a backend that is configured no longer.
pub(super) fn retired(
    written: Backend,
    address: SocketAddr,
    cut: bool,
    next_hops: &NextHops,
) -> Backend {
    let mut retired = written;
    if cut {
        retired.flags &= !backend::FORWARD;
    }
    // Without news its next hop stays as it was: somebody may have ceased to watch it.
    if next_hops.contains_key(&address.ip()) {
        retired = with_next_hop(retired, address.ip(), next_hops);
    }
    retired
}

fn with_next_hop(mut backend: Backend, address: IpAddr, next_hops: &NextHops) -> Backend {
    let hop = next_hops.get(&address);
    let mac = hop.and_then(|hop| hop.mac);
    backend.flags &= !backend::RESOLVED;
    if mac.is_some() {
        backend.flags |= backend::RESOLVED;
    }
    backend.ifindex = hop.map_or(0, |hop| hop.ifindex);
    backend.source_mac = hop.map_or([0; 6], |hop| hop.source_mac);
    backend.next_hop = mac.unwrap_or([0; 6]);
    if backend.flags & backend::TUNNEL != 0 {
        backend.source = hop.and_then(|hop| hop.source).map_or([0; 16], bytes);
        backend.max_packet = hop.map_or(0, |hop| max_packet(hop, address, backend.flags));
        // Without an address of ours no tunnel can begin.
        if backend.source == [0; 16] {
            backend.flags &= !backend::RESOLVED;
        }
    }
    backend
}

/// Longest packet that goes through the tunnel to `address`; 0 for no limit.
fn max_packet(hop: &NextHop, address: IpAddr, flags: u16) -> u16 {
    if hop.mtu == 0 {
        return 0;
    }
    let gue = flags & backend::GUE != 0;
    let encapsulation = if gue { Encapsulation::Gue } else { Encapsulation::Ipip };
    let bytes = tunnel_bytes(address.is_ipv4(), encapsulation);
    u16::try_from(hop.mtu.saturating_sub(bytes).max(1)).unwrap_or(u16::MAX)
}

/// `VIPS` for these services, of which those of `steered` are steered, and for addresses that may have none.
pub(super) fn vip_filter(
    addresses: impl Iterator<Item = IpAddr>,
    services: impl Iterator<Item = ServiceKey>,
    steered: &BTreeSet<ServiceKey>,
) -> Vec<u8> {
    let mut filter = vec![0; VIP_BYTES];
    for key in services {
        let flags = if steered.contains(&key) { hash::VIP_STEERED } else { hash::VIP };
        filter[vip_bit(address(key.address)) as usize] |= flags;
    }
    for address in addresses {
        let flags = &mut filter[vip_bit(address) as usize];
        if *flags == 0 {
            *flags = hash::VIP;
        }
    }
    filter
}

/// `PORTS` for these services, of which those of `steered` are steered.
pub(super) fn ports_filter(
    services: impl Iterator<Item = ServiceKey>,
    steered: &BTreeSet<ServiceKey>,
) -> Vec<u8> {
    let mut filter = vec![0; PORTS_BYTES];
    for key in services {
        let vip_bit = vip_bit(address(key.address));
        let place = hash::port_place(vip_bit, key.port.to_be(), key.protocol);
        let bits = if steered.contains(&key) { hash::PORT_STEERED } else { 0 };
        filter[place as usize] |= hash::PORT_SERVED | bits;
    }
    filter
}

fn vip_bit(address: IpAddr) -> u32 {
    let last = match address {
        IpAddr::V4(v4) => v4.octets().last_chunk().copied(),
        IpAddr::V6(v6) => v6.octets().last_chunk().copied(),
    };
    hash::vip_place(u16::from_ne_bytes(last.unwrap_or_default()))
}

/// Bytes of filters that are compared at once: hardly any of them differ.
const CHUNK: usize = 256;

/// Every bit of both; nothing stands for no bit.
pub(super) fn union(a: Option<&[u8]>, b: &[u8]) -> Vec<u8> {
    let mut both = b.to_vec();
    let chunks = both.chunks_mut(CHUNK).zip(a.unwrap_or_default().chunks(CHUNK));
    for (both, a) in chunks.filter(|(both, a)| *both != *a) {
        for (both, a) in both.iter_mut().zip(a) {
            *both |= a;
        }
    }
    both
}
