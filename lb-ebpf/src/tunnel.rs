//! Puts a packet inside another: IP in IP (RFC 2003, RFC 2473, RFC 4213), or behind a UDP header
//! (Generic UDP Encapsulation, draft-ietf-intarea-gue, variant 1: the IP header follows at once).
//!
//! ```text
//!   before            Ethernet, tags, IP, …
//!   IP in IP          Ethernet, tags, outer IP,      IP, …
//!   GUE               Ethernet, tags, outer IP, UDP, IP, …
//! ```
//!
//! Two steps, with the growing of the frame between them, which only the kernel can do:
//! [`Tunnel::to`] reads all that is needed of the packet, [`Tunnel::write`] writes what is in front of
//! it.
//!
//! The inner packet stays as it is, its time to live too: the balancer stands for the host that the
//! packet is for, and is no router on its way. A loop ends all the same, since it would lead through
//! the backend, which lowers the time to live of what it forwards.

use lb_common::{
    backend::{Backend, GUE},
    reason::Reason,
};

use crate::{
    Action,
    checksum::Sum,
    family::{Address as _, Family, protocol},
    packet::{
        EthernetHdr, Header, Packet, halves, load64, load128, store16, store32, store64, store128,
    },
    parse::{self, ETHERNET_LEN, Link},
    rewrite::Egress,
    sample,
    tables::Tables,
};

pub use lb_common::decap::GUE_PORT;

/// The lowest source port of the outer UDP header: the first dynamic one (RFC 6335, section 6).
const FIRST_PORT: u16 = 49_152;

/// Time to live of the outer header.
const TTL: u8 = 64;

/// "Don't fragment": the outer packet is never longer than its first link takes, and a later link that
/// is narrower is to be heard of.
const DONT_FRAGMENT: u32 = u32::from_ne_bytes([0, 0, 0x40, 0]);

/// A header behind an Ethernet header without tags: checked at once, and reached from one address.
#[repr(C)]
#[derive(Clone, Copy)]
struct Untagged<H> {
    ethernet: EthernetHdr,
    outer: H,
}

// SAFETY: repr(C), of headers, which have alignment 1 and take any bit patterns.
unsafe impl<H: Header> Header for Untagged<H> {}

/// Outer IPv4 header, in the words in which it is written.
#[repr(C)]
#[derive(Clone, Copy)]
struct Outer4 {
    /// Version, length of the header, type of service, length of the packet.
    lengths: [u8; 4],
    /// Identification, flags, offset.
    fragment: [u8; 4],
    /// Time to live, protocol, checksum.
    check: [u8; 4],
    src: [u8; 4],
    dst: [u8; 4],
}

/// Outer IPv6 header.
#[repr(C)]
#[derive(Clone, Copy)]
struct Outer6 {
    /// Version, traffic class, flow label, length of what follows, what follows, hop limit.
    start: [u8; 8],
    src: [u8; 16],
    dst: [u8; 16],
}

/// Outer UDP header.
#[repr(C)]
#[derive(Clone, Copy)]
struct OuterUdp {
    ports: [u8; 4],
    /// Length, and a checksum of zero: none. The inner packet has its own, and receivers of GUE take it
    /// so in IPv6 too (RFC 6935, RFC 6936).
    len_and_check: [u8; 4],
}

// SAFETY: repr(C), byte arrays only.
unsafe impl Header for Outer4 {}
// SAFETY: as above.
unsafe impl Header for Outer6 {}
// SAFETY: as above.
unsafe impl Header for OuterUdp {}

/// A packet that is to leave by a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Identifier of the backend at its other end.
    pub backend: u32,
    /// Bytes by which the frame is to grow at its front.
    pub grows: u32,
    /// Where the IP header begins.
    l3: u32,
    /// Length of the frame, before it grows.
    frame_len: u64,
    /// Length of the inner packet.
    len: u16,
    /// Its protocol number inside another.
    inside: u8,
    /// Its DSCP and ECN.
    traffic_class: u8,
    /// Spreads the flows of a tunnel over the paths that lead to its other end.
    hash: u32,
}

impl Tunnel {
    /// A packet, whose IP header at `l3` is `ip`, to a backend. `hash` is that of its flow.
    #[inline(always)]
    pub fn to<F: Family>(
        packet: &Packet,
        l3: usize,
        ip: &F::Hdr,
        hash: u32,
        id: u32,
        backend: &Backend,
    ) -> Result<Self, Reason> {
        let len = F::packet_len(ip);
        // What the outer header announces must be there.
        if l3 + len > packet.len() {
            return Err(Reason::Malformed);
        }
        if backend.max_packet != 0 && len > usize::from(backend.max_packet) {
            return Err(Reason::TooBig);
        }
        Ok(Self {
            backend: id,
            grows: overhead(backend) as u32,
            l3: l3 as u32,
            frame_len: packet.len() as u64,
            len: len as u16,
            inside: F::INSIDE,
            traffic_class: F::traffic_class(ip),
            hash,
        })
    }

    /// Writes what is in front of the inner packet of a frame without VLAN tags by IP in IP, after the frame
    /// has grown by [`plain_overhead`]; counts the packet, and says how it leaves. What [`Self::write`]
    /// asks is known here. `id` is the backend's identifier.
    #[inline(always)]
    pub fn write_plain<T: Tables, const IPV4: bool>(
        self,
        packet: &Packet,
        tables: &T,
        id: &u32,
        backend: &Backend,
    ) -> Result<Action, Reason> {
        let ethernet = if IPV4 {
            let Untagged { ethernet, outer } = packet.header::<Untagged<Outer4>>(0)?;
            store16(&mut ethernet.ether_type, parse::IPV4);
            self.write_v4(outer, backend, self.inside, self.len);
            ethernet
        } else {
            let Untagged { ethernet, outer } = packet.header::<Untagged<Outer6>>(0)?;
            store16(&mut ethernet.ether_type, parse::IPV6);
            self.write_v6(outer, backend, self.inside, self.len);
            ethernet
        };
        let inner = ETHERNET_LEN + plain_overhead::<IPV4>();
        sample::count(tables, packet, inner, id, self.frame_len);
        Ok(Egress::to_backend(backend).leave(packet, ethernet))
    }

    /// Brings the VLAN tags of a frame that has grown to its new start.
    #[inline(always)]
    pub fn advance(&self, packet: &Packet) -> Result<(), Reason> {
        if self.l3 as usize != ETHERNET_LEN {
            Link::advance(packet, self.grows as usize, self.l3 as usize)?;
        }
        Ok(())
    }

    /// Writes what is in front of the inner packet, after [`Self::advance`]; counts the packet, and
    /// says how it leaves.
    #[inline(always)]
    pub fn write<T: Tables>(
        self,
        packet: &Packet,
        tables: &T,
        backend: &Backend,
    ) -> Result<Action, Reason> {
        let l3 = self.l3 as usize;
        let gue = backend.flags & GUE != 0;
        let (carried, len) = if gue {
            (protocol::UDP, self.len.wrapping_add(size_of::<OuterUdp>() as u16))
        } else {
            (self.inside, self.len)
        };
        let l4 = if is_v4(backend) {
            Link::set_type(packet, l3, parse::IPV4)?;
            self.write_v4(packet.header(l3)?, backend, carried, len);
            l3 + size_of::<Outer4>()
        } else {
            Link::set_type(packet, l3, parse::IPV6)?;
            self.write_v6(packet.header(l3)?, backend, carried, len);
            l3 + size_of::<Outer6>()
        };
        if gue {
            self.write_udp(packet.header(l4)?, len);
        }
        let inner = l3 + self.grows as usize;
        sample::count(tables, packet, inner, &self.backend, self.frame_len);
        Ok(Egress::to_backend(backend).leave(packet, packet.header::<EthernetHdr>(0)?))
    }

    /// The ECN bits are copied, as in the "normal mode" of RFC 6040.
    #[inline(always)]
    fn write_v4(self, outer: &mut Outer4, backend: &Backend, carried: u8, len: u16) {
        let length = len.wrapping_add(size_of::<Outer4>() as u16);
        // As numbers, and not byte by byte: the compiler makes one instruction of the change of order.
        let lengths =
            (0x45 << 24 | u32::from(self.traffic_class) << 16 | u32::from(length)).to_be();
        let (src, dst) = (v4(&backend.source), v4(&backend.address));
        let check = Sum::ZERO
            .add32(lengths)
            .add32(DONT_FRAGMENT)
            .add32(u32::from_ne_bytes([TTL, carried, 0, 0]))
            .add32(src)
            .add32(dst)
            .checksum();
        let [high, low] = check.to_ne_bytes();
        store32(&mut outer.lengths, lengths);
        store32(&mut outer.fragment, DONT_FRAGMENT);
        store32(&mut outer.check, u32::from_ne_bytes([TTL, carried, high, low]));
        store32(&mut outer.src, src);
        store32(&mut outer.dst, dst);
    }

    /// The flow label is a hash of the flow (RFC 6438, section 4).
    #[inline(always)]
    fn write_v6(self, outer: &mut Outer6, backend: &Backend, carried: u8, len: u16) {
        let label = self.hash & 0xf_ffff;
        let first = 6 << 28 | u32::from(self.traffic_class) << 20 | label;
        let rest = u32::from(len) << 16 | u32::from(carried) << 8 | u32::from(TTL);
        store64(&mut outer.start, (u64::from(first) << 32 | u64::from(rest)).to_be());
        store128(&mut outer.src, load128(&backend.source));
        store128(&mut outer.dst, load128(&backend.address));
    }

    #[inline(always)]
    fn write_udp(self, outer: &mut OuterUdp, len: u16) {
        let [a, b] = (FIRST_PORT | self.hash as u16 >> 2).to_be_bytes();
        let [c, d] = GUE_PORT.to_be_bytes();
        let [high, low] = len.to_be_bytes();
        store32(&mut outer.ports, u32::from_ne_bytes([a, b, c, d]));
        store32(&mut outer.len_and_check, u32::from_ne_bytes([high, low, 0, 0]));
    }
}

/// What IP in IP adds to a packet, bytes.
#[must_use]
#[inline(always)]
pub const fn plain_overhead<const IPV4: bool>() -> usize {
    if IPV4 { size_of::<Outer4>() } else { size_of::<Outer6>() }
}

/// What a tunnel to the backend adds to a packet, bytes.
#[inline(always)]
pub fn overhead(backend: &Backend) -> usize {
    let outer = if is_v4(backend) { size_of::<Outer4>() } else { size_of::<Outer6>() };
    if backend.flags & GUE == 0 { outer } else { outer + size_of::<OuterUdp>() }
}

/// Whether the backend's address is of IPv4. Its first half tells: no host has an IPv6 address that
/// begins with eight zeros.
#[inline(always)]
pub fn is_v4(backend: &Backend) -> bool {
    let (high, _) = halves(&backend.address);
    load64(high) == 0
}

/// The IPv4 address in a mapped one.
#[inline(always)]
fn v4(mapped: &[u8; 16]) -> u32 {
    u32::from_mapped(mapped)
}
