//! Map values from addresses, flags and next hops.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use lb_common::{
    backend::{self, Backend},
    hash,
    limits::VIP_WORDS,
    service::{ServiceKey, mapped},
};

use super::DesiredBackend;
use crate::{config::Protocol, net::NextHops};

/// The key of the service that listens there.
pub fn service_key(listen: SocketAddr, protocol: Protocol) -> ServiceKey {
    let protocol = match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    };
    ServiceKey { address: bytes(listen.ip()), port: listen.port(), protocol, reserved: 0 }
}

/// An address as it stands in the maps.
fn bytes(address: IpAddr) -> [u8; 16] {
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
pub(super) fn backend(wanted: &DesiredBackend, service: u32, next_hops: &NextHops) -> Backend {
    let fresh = Backend {
        address: bytes(wanted.address.ip()),
        port: wanted.address.port(),
        flags: backend::IN_USE | if wanted.forward { backend::FORWARD } else { 0 },
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
    backend
}

/// `VIPS` for these addresses.
pub(super) fn vip_words(addresses: impl Iterator<Item = IpAddr>) -> Vec<u64> {
    let mut words = vec![0; VIP_WORDS as usize];
    for address in addresses {
        let bit = match address {
            IpAddr::V4(v4) => hash::vip_bit4(u32::from_ne_bytes(v4.octets())),
            IpAddr::V6(v6) => {
                let [high, low] = halves(v6.octets());
                hash::vip_bit6(u64::from_ne_bytes(high), u64::from_ne_bytes(low))
            }
        };
        let (element, shift) = hash::vip_place(bit);
        words[element as usize] |= u64::from(hash::VIP) << shift;
    }
    words
}

fn halves(bytes: [u8; 16]) -> [[u8; 8]; 2] {
    let mut halves = [[0; 8]; 2];
    for (index, byte) in bytes.into_iter().enumerate() {
        halves[index / 8][index % 8] = byte;
    }
    halves
}

/// Every bit of both; nothing stands for no bit.
pub(super) fn union(a: Option<&[u64]>, b: &[u64]) -> Vec<u64> {
    match a {
        Some(a) => a.iter().zip(b).map(|(a, b)| a | b).collect(),
        None => b.to_vec(),
    }
}
