//! What differs between IPv4 and IPv6, in one place. All else is written once, for both.

use lb_common::{
    flow::{FlowEntry4, FlowEntry6, FlowKey4, FlowKey6, HalfOpen4, HalfOpen6},
    hash,
    reason::Reason,
};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use self::entry::{KeyWords, last_word};
pub use self::{
    address::{Address, Ports, Tuple},
    entry::{ClientSide, ServiceWords},
};
use crate::{
    checksum::{self, Sum, TTL_DECREMENT},
    packet::{Header, Packet, Quote, Words, load16, load32, load128, store16, store32, store128},
    parse,
    tables::{Entry, HalfOpen},
};

mod address;
mod entry;

/// Protocol numbers of IP that the data path knows.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// IPv4 inside another IP packet (RFC 2003).
    pub const IPIP: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 inside another IP packet (RFC 2473).
    pub const IPV6: u8 = 41;
    /// Fragment header of IPv6.
    pub const FRAGMENT: u8 = 44;
    /// `ICMPv6`.
    pub const ICMPV6: u8 = 58;
}

/// What the data path wants to know of an IP header.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// What it carries.
    pub protocol: u8,
    /// Where that begins, from the start of the frame.
    pub l4: usize,
    /// Where that ends by the header's own word, from the start of the frame.
    pub end: usize,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// It is a piece of a larger datagram.
    pub fragment: bool,
}

/// An IP version.
pub trait Family: Sized {
    /// Its addresses.
    type Address: Address;
    /// Key of its flow tables.
    type Key: Copy;
    /// Value of its flow tables.
    type Entry: Entry<Self>;
    /// Value of its half-open table.
    type HalfOpen: HalfOpen<Self>;
    /// Its header, without options.
    type Hdr: Header;
    /// Its ICMP.
    const ICMP: u8;
    /// Whether its ICMP's checksum covers a pseudo-header (RFC 4443, section 2.3).
    const ICMP_PSEUDO_HEADER: bool;
    /// Its Ethernet type, as it lies in the frame.
    const ETHER_TYPE: u16;
    /// Its own protocol number, inside another IP packet.
    const INSIDE: u8;
    /// Its ICMP error for a packet that is too long for the next link: type and code.
    const TOO_BIG: [u8; 2];
    /// What such an error quotes.
    type Quote: Quote;
    /// Largest TCP segment that a link of Ethernet carries, with a header without options.
    const MSS: u16;
    /// A header of zeros.
    const EMPTY: Self::Hdr;

    /// Reads the header at `l3`: [`Reason::Truncated`], or [`Reason::Malformed`] if it is of another
    /// version or shorter than itself.
    fn datagram(packet: &Packet, l3: usize) -> Result<Datagram<Self::Address>, Reason>;
    /// Whether the header has neither options nor fragments and its time to live is above 1.
    fn is_plain(header: &Self::Hdr) -> bool;
    /// Source and destination.
    fn addresses(header: &Self::Hdr) -> (Self::Address, Self::Address);
    /// Place of the destination in `VIPS`, by a load of its own: as [`Address::vip_bit`] says.
    fn vip_place(header: &Self::Hdr) -> u32;
    /// What a plain header is followed by.
    fn carried(header: &Self::Hdr) -> u8;
    /// Length of the packet by the header's own word, the header included.
    fn packet_len(header: &Self::Hdr) -> usize;
    /// Type of service, or traffic class: DSCP and ECN.
    fn traffic_class(header: &Self::Hdr) -> u8;
    /// Whether the checksum of a header without options is right; IPv6 has none.
    fn is_intact(header: &Self::Hdr) -> bool;
    /// Key of a tuple.
    fn key(tuple: Tuple<Self::Address>, protocol: u8) -> Self::Key;
    /// Writes addresses, lowers the time to live, and mends the header's checksum.
    fn rewrite(header: &mut Self::Hdr, entry: &Self::Entry);
    /// Lowers the time to live and mends the header's checksum.
    fn age(header: &mut Self::Hdr);
    /// Writes addresses, as for a packet that an ICMP error quotes, and mends the header's checksum.
    /// Returns what that adds to the sum of the header's bytes.
    fn rewrite_quoted(header: &mut Self::Hdr, src: Self::Address, dst: Self::Address) -> Sum;
    /// Whether `ty` is an ICMP error, which quotes the packet that it is about.
    fn is_icmp_error(ty: u8) -> bool;
    /// Whether an ICMP error says that its packet's destination cannot be reached.
    fn is_unreachable(ty: u8, code: u8) -> bool;
    /// Writes type of service and time to live into a header that [`Family::compose`] wrote, and mends
    /// its checksum.
    fn dress(header: &mut Self::Hdr, tos: u8, ttl: u8);
    /// Writes a header for a packet that carries `len` bytes of a protocol.
    fn compose(
        header: &mut Self::Hdr,
        src: Self::Address,
        dst: Self::Address,
        carried: u8,
        len: u16,
    );
}

/// IPv4.
#[derive(Clone, Copy, Debug)]
pub struct V4;

/// IPv6.
#[derive(Clone, Copy, Debug)]
pub struct V6;

/// Flags and offset of an IPv4 header without "don't fragment": not 0 for a fragment.
const FRAGMENT_MASK: u16 = u16::from_ne_bytes([0x3f, 0xff]);

impl Family for V4 {
    type Address = u32;
    type Key = FlowKey4;
    type Entry = FlowEntry4;
    type HalfOpen = HalfOpen4;
    type Hdr = Ipv4Hdr;
    const ICMP: u8 = protocol::ICMP;
    const ICMP_PSEUDO_HEADER: bool = false;
    const ETHER_TYPE: u16 = parse::IPV4;
    const INSIDE: u8 = protocol::IPIP;
    // Destination unreachable, fragmentation needed (RFC 1191, section 4).
    const TOO_BIG: [u8; 2] = [3, 4];
    // 576 bytes in all (RFC 1812, section 4.3.2.3).
    type Quote = Words<137>;
    const MSS: u16 = 1460;
    const EMPTY: Ipv4Hdr = Ipv4Hdr {
        vihl: 0,
        tos: 0,
        tot_len: [0; 2],
        id: [0; 2],
        frags: [0; 2],
        ttl: 0,
        proto: 0,
        check: [0; 2],
        src_addr: [0; 4],
        dst_addr: [0; 4],
    };

    #[inline(always)]
    fn datagram(packet: &Packet, l3: usize) -> Result<Datagram<u32>, Reason> {
        let header = packet.header::<Ipv4Hdr>(l3)?;
        let header_len = usize::from(header.vihl & 0xf) * 4;
        if header.vihl >> 4 != 4 || header_len < size_of::<Ipv4Hdr>() {
            return Err(Reason::Malformed);
        }
        Ok(Datagram {
            src: load32(&header.src_addr),
            dst: load32(&header.dst_addr),
            protocol: header.proto,
            l4: l3 + header_len,
            end: l3 + usize::from(u16::from_be(load16(&header.tot_len))),
            ttl: header.ttl,
            fragment: load16(&header.frags) & FRAGMENT_MASK != 0,
        })
    }

    #[inline(always)]
    fn is_plain(header: &Ipv4Hdr) -> bool {
        header.vihl == 0x45 && load16(&header.frags) & FRAGMENT_MASK == 0 && header.ttl > 1
    }

    #[inline(always)]
    fn addresses(header: &Ipv4Hdr) -> (u32, u32) {
        (load32(&header.src_addr), load32(&header.dst_addr))
    }

    #[inline(always)]
    fn vip_place(header: &Ipv4Hdr) -> u32 {
        let [_, _, last @ ..] = &header.dst_addr;
        hash::vip_place(load16(last))
    }

    #[inline(always)]
    fn carried(header: &Ipv4Hdr) -> u8 {
        header.proto
    }

    #[inline(always)]
    fn packet_len(header: &Ipv4Hdr) -> usize {
        usize::from(u16::from_be(load16(&header.tot_len)))
    }

    #[inline(always)]
    fn traffic_class(header: &Ipv4Hdr) -> u8 {
        header.tos
    }

    #[inline(always)]
    fn is_intact(header: &Ipv4Hdr) -> bool {
        let sum = Sum::ZERO
            .add16(u16::from_ne_bytes([header.vihl, header.tos]))
            .add16(load16(&header.tot_len))
            .add16(load16(&header.id))
            .add16(load16(&header.frags))
            .add16(u16::from_ne_bytes([header.ttl, header.proto]))
            .add16(load16(&header.check))
            .add32(load32(&header.src_addr))
            .add32(load32(&header.dst_addr));
        sum.checksum() == 0
    }

    #[inline(always)]
    fn key(tuple: Tuple<u32>, protocol: u8) -> FlowKey4 {
        KeyWords { src: tuple.src, dst: tuple.dst, ports: tuple.ports, last: last_word(protocol) }
            .into()
    }

    #[inline(always)]
    fn rewrite(header: &mut Ipv4Hdr, entry: &FlowEntry4) {
        store32(&mut header.src_addr, u32::from_ne_bytes(entry.new_src));
        store32(&mut header.dst_addr, u32::from_ne_bytes(entry.new_dst));
        header.ttl -= 1;
        let check = checksum::adjust(load16(&header.check), entry.ip_delta);
        store16(&mut header.check, check);
    }

    #[inline(always)]
    fn age(header: &mut Ipv4Hdr) {
        header.ttl -= 1;
        let check = checksum::adjust(load16(&header.check), TTL_DECREMENT);
        store16(&mut header.check, check);
    }

    #[inline(always)]
    fn rewrite_quoted(header: &mut Ipv4Hdr, src: u32, dst: u32) -> Sum {
        let before = load32(&header.src_addr).sum().add(load32(&header.dst_addr).sum());
        let delta = src.sum().add(dst.sum()).sub(before);
        store32(&mut header.src_addr, src);
        store32(&mut header.dst_addr, dst);
        let old = load16(&header.check);
        let new = checksum::adjust(old, delta.fold());
        store16(&mut header.check, new);
        delta.add16(new).add16(!old)
    }

    #[inline(always)]
    fn is_icmp_error(ty: u8) -> bool {
        // Destination unreachable, time exceeded, parameter problem (RFC 792).
        matches!(ty, 3 | 11 | 12)
    }

    #[inline(always)]
    fn is_unreachable(ty: u8, code: u8) -> bool {
        // Destination unreachable, but for "fragmentation needed" (RFC 792).
        ty == 3 && code != 4
    }

    #[inline(always)]
    fn dress(header: &mut Ipv4Hdr, tos: u8, ttl: u8) {
        let delta = Sum::ZERO
            .add16(u16::from_ne_bytes([0, tos]))
            .add16(u16::from_ne_bytes([ttl, 0]))
            .sub(Sum::ZERO.add16(u16::from_ne_bytes([0, header.tos])))
            .sub(Sum::ZERO.add16(u16::from_ne_bytes([header.ttl, 0])));
        header.tos = tos;
        header.ttl = ttl;
        let check = checksum::adjust(load16(&header.check), delta.fold());
        store16(&mut header.check, check);
    }

    #[inline(always)]
    fn compose(header: &mut Ipv4Hdr, src: u32, dst: u32, carried: u8, len: u16) {
        let length = len + size_of::<Ipv4Hdr>() as u16;
        header.vihl = 0x45;
        header.tos = 0;
        store16(&mut header.tot_len, length.to_be());
        store16(&mut header.id, 0);
        header.frags = [0x40, 0];
        header.ttl = 64;
        header.proto = carried;
        store32(&mut header.src_addr, src);
        store32(&mut header.dst_addr, dst);
        let sum = Sum::ZERO
            .add16(u16::from_ne_bytes([0x45, 0]))
            .add16(length.to_be())
            .add16(u16::from_ne_bytes([0x40, 0]))
            .add16(u16::from_ne_bytes([64, carried]))
            .add32(src)
            .add32(dst);
        store16(&mut header.check, sum.checksum());
    }
}

impl Family for V6 {
    type Address = [u64; 2];
    type Key = FlowKey6;
    type Entry = FlowEntry6;
    type HalfOpen = HalfOpen6;
    type Hdr = Ipv6Hdr;
    const ICMP: u8 = protocol::ICMPV6;
    const ICMP_PSEUDO_HEADER: bool = true;
    const ETHER_TYPE: u16 = parse::IPV6;
    const INSIDE: u8 = protocol::IPV6;
    // Packet too big (RFC 4443, section 3.2).
    const TOO_BIG: [u8; 2] = [2, 0];
    // 1280 bytes in all (RFC 4443, section 2.4 c).
    type Quote = Words<308>;
    const MSS: u16 = 1440;
    const EMPTY: Ipv6Hdr = Ipv6Hdr {
        vcf: [0; 4],
        payload_len: [0; 2],
        next_hdr: 0,
        hop_limit: 0,
        src_addr: [0; 16],
        dst_addr: [0; 16],
    };

    #[inline(always)]
    fn datagram(packet: &Packet, l3: usize) -> Result<Datagram<[u64; 2]>, Reason> {
        let header = packet.header::<Ipv6Hdr>(l3)?;
        if header.vcf[0] >> 4 != 6 {
            return Err(Reason::Malformed);
        }
        let l4 = l3 + size_of::<Ipv6Hdr>();
        Ok(Datagram {
            src: load128(&header.src_addr),
            dst: load128(&header.dst_addr),
            protocol: header.next_hdr,
            l4,
            end: l4 + usize::from(u16::from_be(load16(&header.payload_len))),
            ttl: header.hop_limit,
            fragment: header.next_hdr == protocol::FRAGMENT,
        })
    }

    #[inline(always)]
    fn is_plain(header: &Ipv6Hdr) -> bool {
        header.vcf[0] >> 4 == 6 && header.hop_limit > 1
    }

    #[inline(always)]
    fn addresses(header: &Ipv6Hdr) -> ([u64; 2], [u64; 2]) {
        (load128(&header.src_addr), load128(&header.dst_addr))
    }

    #[inline(always)]
    fn vip_place(header: &Ipv6Hdr) -> u32 {
        let [_, _, _, _, _, _, _, _, _, _, _, _, _, _, last @ ..] = &header.dst_addr;
        hash::vip_place(load16(last))
    }

    #[inline(always)]
    fn carried(header: &Ipv6Hdr) -> u8 {
        header.next_hdr
    }

    #[inline(always)]
    fn packet_len(header: &Ipv6Hdr) -> usize {
        size_of::<Ipv6Hdr>() + usize::from(u16::from_be(load16(&header.payload_len)))
    }

    #[inline(always)]
    fn traffic_class(header: &Ipv6Hdr) -> u8 {
        header.vcf[0] << 4 | header.vcf[1] >> 4
    }

    #[inline(always)]
    fn is_intact(_: &Ipv6Hdr) -> bool {
        true
    }

    #[inline(always)]
    fn key(tuple: Tuple<[u64; 2]>, protocol: u8) -> FlowKey6 {
        KeyWords { src: tuple.src, dst: tuple.dst, ports: tuple.ports, last: last_word(protocol) }
            .into()
    }

    #[inline(always)]
    fn rewrite(header: &mut Ipv6Hdr, entry: &FlowEntry6) {
        store128(&mut header.src_addr, load128(&entry.new_src));
        store128(&mut header.dst_addr, load128(&entry.new_dst));
        header.hop_limit -= 1;
    }

    #[inline(always)]
    fn age(header: &mut Ipv6Hdr) {
        header.hop_limit -= 1;
    }

    #[inline(always)]
    fn rewrite_quoted(header: &mut Ipv6Hdr, src: [u64; 2], dst: [u64; 2]) -> Sum {
        let before = load128(&header.src_addr).sum().add(load128(&header.dst_addr).sum());
        store128(&mut header.src_addr, src);
        store128(&mut header.dst_addr, dst);
        src.sum().add(dst.sum()).sub(before)
    }

    #[inline(always)]
    fn is_icmp_error(ty: u8) -> bool {
        // Destination unreachable, packet too big, time exceeded, parameter problem (RFC 4443).
        matches!(ty, 1..=4)
    }

    #[inline(always)]
    fn is_unreachable(ty: u8, _code: u8) -> bool {
        // Destination unreachable (RFC 4443, section 3.1).
        ty == 1
    }

    #[inline(always)]
    fn dress(header: &mut Ipv6Hdr, tos: u8, ttl: u8) {
        header.vcf[0] = 0x60 | tos >> 4;
        header.vcf[1] = header.vcf[1] & 0xf | tos << 4;
        header.hop_limit = ttl;
    }

    #[inline(always)]
    fn compose(header: &mut Ipv6Hdr, src: [u64; 2], dst: [u64; 2], carried: u8, len: u16) {
        header.vcf = [0x60, 0, 0, 0];
        store16(&mut header.payload_len, len.to_be());
        header.next_hdr = carried;
        header.hop_limit = 64;
        store128(&mut header.src_addr, src);
        store128(&mut header.dst_addr, dst);
    }
}
