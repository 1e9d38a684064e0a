//! The entries of a connection, as the kernel program would have made them.

use std::net::{IpAddr, SocketAddr};

use lb_common::flow::{
    FlowEntry4, FlowEntry6, FlowKey4, FlowKey6, HalfOpen4, HalfOpen6, Syn, state,
};

use super::{Answered, Begun};
use crate::dataplane::flows::{Key, cut::Flow};

/// Where clients are, on this node: what stands in an entry beside the client's own MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    /// The interface.
    pub ifindex: u32,
    /// Our MAC address there.
    pub mac: [u8; 6],
}

/// What an entry is made of.
#[derive(Clone, Copy, Debug)]
pub struct Parts {
    from: [SocketAddr; 2],
    to: [SocketAddr; 2],
    backend: u32,
    state: u32,
    last_seen: u64,
    client_mac: [u8; 6],
    side: Side,
}

/// Keys of entries that can be made here.
pub(in crate::dataplane) trait Synced: Flow {
    fn entry(parts: &Parts) -> Option<Self::Entry>;
    fn client_mac(entry: &Self::Entry) -> [u8; 6];
    /// The acknowledgement number, in network byte order.
    fn ack(entry: &Self::Entry) -> u32;
    /// A value of `HALF_OPEN` that leads to no other backend. In network byte order, `ack` is what the client
    /// has to acknowledge.
    fn answered(entry: Self::Entry, ack: u32) -> Self::HalfOpen;
    /// The same entry with the last packet of `told`, which was at another node, if that was later, and more
    /// bits of state.
    fn refreshed(entry: Self::Entry, told: &Self::Entry, bits: u32) -> Self::Entry;
}

/// The two halves of a connection, the client's first. Of a steered one, both are the same.
pub(in crate::dataplane) struct Halves<K: Key> {
    pub(super) client: (K, K::Entry),
    pub(super) server: (K, K::Entry),
}

impl<K: Synced> Halves<K> {
    /// `None` if the addresses are of other families. `last_seen` is a stamp, as in
    /// [`FlowEntry4::last_seen`].
    pub(super) fn new(begun: &Begun, backend: u32, last_seen: u64, side: Side) -> Option<Self> {
        let &Begun { protocol, client, listen, client_mac, .. } = begun;
        let steered = u32::from(begun.state) & state::STEERED != 0;
        let nat = SocketAddr::new(listen.ip(), begun.nat_port);
        let there = [client, listen];
        let parts = |from, to, state| Parts {
            from,
            to,
            backend,
            state,
            last_seen,
            client_mac: if steered { [0; 6] } else { client_mac },
            side: if steered { Side { ifindex: 0, mac: [0; 6] } } else { side },
        };
        let half = |parts: &Parts| {
            let [src, dst] = parts.from;
            Some((K::new(src, dst, protocol)?, K::entry(parts)?))
        };
        if steered {
            let alone = half(&parts(there, there, begun.state.into()))?;
            return Some(Self { client: alone, server: alone });
        }
        let here = [nat, begun.backend];
        let replies = [begun.backend, nat];
        Some(Self {
            client: half(&parts(there, here, begun.state.into()))?,
            server: half(&parts(replies, [listen, client], state::RETURN))?,
        })
    }
}

macro_rules! synced {
    ($key:ident, $entry:ident, $half_open:ident, $family:ident, $has_header_sum:expr) => {
        impl Synced for $key {
            fn entry(parts: &Parts) -> Option<$entry> {
                let [SocketAddr::$family(src), SocketAddr::$family(dst)] = parts.to else {
                    return None;
                };
                let (ip_delta, l4_delta) = deltas(parts.from, parts.to);
                let (theirs, ours) = (parts.client_mac, parts.side.mac);
                let returns = parts.state & state::RETURN != 0;
                let (src_mac, dst_mac) = if returns { (ours, theirs) } else { (theirs, ours) };
                Some($entry {
                    new_src: src.ip().octets(),
                    new_dst: dst.ip().octets(),
                    new_src_port: src.port().to_be_bytes(),
                    new_dst_port: dst.port().to_be_bytes(),
                    ip_delta: if $has_header_sum { ip_delta } else { 0 },
                    l4_delta,
                    backend: parts.backend,
                    state: parts.state,
                    last_seen: parts.last_seen,
                    bytes: 0,
                    packets: 0,
                    ack: 0,
                    dst_mac,
                    src_mac,
                    client_ifindex: parts.side.ifindex,
                })
            }

            fn client_mac(entry: &$entry) -> [u8; 6] {
                entry.client_mac()
            }

            fn ack(entry: &$entry) -> u32 {
                entry.ack
            }

            fn answered(entry: $entry, ack: u32) -> $half_open {
                // The client's half alone says what it has to acknowledge.
                let ack = if entry.state & state::RETURN == 0 { ack } else { 0 };
                let flow = $entry { ack, state: entry.state | state::ANSWERED, ..entry };
                $half_open { flow, syn: Syn::ZERO }
            }

            fn refreshed(entry: $entry, told: &$entry, bits: u32) -> $entry {
                let state = entry.state | bits;
                let last_seen = entry.last_seen.max(told.last_seen);
                $entry { last_seen, state, packets: 0, bytes: 0, ..entry }
            }
        }
    };
}

synced!(FlowKey4, FlowEntry4, HalfOpen4, V4, true);
synced!(FlowKey6, FlowEntry6, HalfOpen6, V6, false);

/// An entry with its key.
type Half<K> = (K, <K as Key>::Entry);

/// The entries of an IPv4 connection, the client's first; `None` if it is of IPv6.
pub fn halves4(begun: &Begun, backend: u32, side: Side) -> Option<[(FlowKey4, FlowEntry4); 2]> {
    let halves: Halves<FlowKey4> = Halves::new(begun, backend, 0, side)?;
    let both: [Half<FlowKey4>; 2] = [halves.client, halves.server];
    Some(both)
}

/// The entries of an IPv6 connection, the client's first; `None` if it is of IPv4.
pub fn halves6(begun: &Begun, backend: u32, side: Side) -> Option<[(FlowKey6, FlowEntry6); 2]> {
    let halves: Halves<FlowKey6> = Halves::new(begun, backend, 0, side)?;
    let both: [Half<FlowKey6>; 2] = [halves.client, halves.server];
    Some(both)
}

/// The entries of an IPv4 connection that is half open, the client's first; `None` if it is of IPv6.
pub fn answered4(
    answered: &Answered,
    backend: u32,
    side: Side,
) -> Option<[(FlowKey4, HalfOpen4); 2]> {
    let halves = halves4(&answered.begun, backend, side)?;
    Some(halves.map(|(key, entry)| (key, FlowKey4::answered(entry, answered.ack.to_be()))))
}

/// The entries of an IPv6 connection that is half open, the client's first; `None` if it is of IPv4.
pub fn answered6(
    answered: &Answered,
    backend: u32,
    side: Side,
) -> Option<[(FlowKey6, HalfOpen6); 2]> {
    let halves = halves6(&answered.begun, backend, side)?;
    Some(halves.map(|(key, entry)| (key, FlowKey6::answered(entry, answered.ack.to_be()))))
}

/// What the rewriting adds to the ones' complement sum of an IPv4 header, the lower time to live
/// included, and to that of a TCP or UDP checksum (RFC 1624).
fn deltas(from: [SocketAddr; 2], to: [SocketAddr; 2]) -> (u16, u16) {
    /// One less in the time to live, which is the first byte of its word.
    const TTL: u16 = !u16::from_ne_bytes([1, 0]);
    let addresses =
        |ends: [SocketAddr; 2]| fold(ends.iter().map(|end| address_sum(end.ip())).sum());
    let ports = |ends: [SocketAddr; 2]| -> u64 {
        ends.iter().map(|end| u64::from(end.port().to_be())).sum()
    };
    let all = |ends| fold(u64::from(addresses(ends)) + ports(ends));
    let ip = u64::from(addresses(to)) + u64::from(!addresses(from));
    let l4 = u64::from(all(to)) + u64::from(!all(from));
    (fold(ip + u64::from(TTL)), fold(l4))
}

/// The sum of an address's words, as they lie in the packet (RFC 1071 allows either byte order).
fn address_sum(address: IpAddr) -> u64 {
    let sum = |bytes: &[u8]| -> u64 {
        let (words, _) = bytes.as_chunks::<2>();
        words.iter().map(|word| u64::from(u16::from_ne_bytes(*word))).sum()
    };
    match address {
        IpAddr::V4(address) => sum(&address.octets()),
        IpAddr::V6(address) => sum(&address.octets()),
    }
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
