//! The other end of a tunnel: takes packets out of what they were wrapped in.
//!
//! For backends whose kernel has no tunnel of its own. What is inside goes to the host's own stack, as if
//! it had come so: IP in IP (RFC 2003), IPv6 in either (RFC 2473, RFC 4213), and both in UDP to port 6080
//! (Generic UDP Encapsulation, variant 1). One layer is removed, never two.
//!
//! An outer UDP checksum is not looked at: what is inside has its own (RFC 6935 and RFC 6936 say so of
//! IPv6, where the outer one may be missing).

use lb_common::decap::{Count, GUE_PORT};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::{
    checksum::{self, Sum},
    family::{Address as _, Family, V4, V6, protocol},
    packet::{
        EthernetHdr, Macs, Packet, Truncated, UdpHdr, Words, load16, load32, store16, store32,
    },
    parse::{self, ETHERNET_LEN, Link},
};

/// What the program knows of the host that it runs on.
pub trait Host {
    /// Whether the address is one of the host's. IPv4 as an IPv4-mapped IPv6 address.
    fn is_local(&self, address: [u8; 16]) -> bool;
    /// Whether tunnels may begin there. IPv4 as above.
    fn is_allowed(&self, address: [u8; 16]) -> bool;
}

/// A frame whose outer headers are to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// How many bytes are to be cut off at its start.
    pub bytes: u32,
    /// What it is counted as.
    pub count: Count,
}

/// Looks at a frame. If it is in a tunnel that ends here, writes the Ethernet header, with the tags,
/// where the frame is going to begin; otherwise says what it is, and leaves it as it is.
#[inline(always)]
pub fn decapsulate<H: Host>(packet: &Packet, host: &H) -> Result<Cut, Count> {
    let link = Link::parse(packet).map_err(|_| Count::Other)?;
    match link.ether_type {
        parse::IPV4 => outer::<V4, H>(packet, link.l3, host),
        parse::IPV6 => outer::<V6, H>(packet, link.l3, host),
        _ => Err(Count::Other),
    }
}

/// What is between the outer header and the packet inside.
#[derive(Clone, Copy)]
struct Wrapping {
    /// Bytes of it.
    len: usize,
    /// The version that is announced; 0 if that is the packet's own business.
    version: u8,
    /// Length of the UDP datagram by its own word; 0 without one.
    udp_len: usize,
    count: Count,
}

impl From<Truncated> for Count {
    fn from(_: Truncated) -> Self {
        Self::Malformed
    }
}

#[inline(always)]
fn outer<F: Family, H: Host>(packet: &Packet, l3: usize, host: &H) -> Result<Cut, Count> {
    let datagram = F::datagram(packet, l3).map_err(|_| Count::Other)?;
    let header_len = size_of::<F::Hdr>();
    // From here on offsets are sums of constants and of where the tags end, for the verifier's sake.
    let is_plain = datagram.l4 == l3 + header_len;
    let wrapping = match datagram.protocol {
        protocol::IPIP => Wrapping { len: 0, version: 4, udp_len: 0, count: Count::Ipip },
        protocol::IPV6 => Wrapping { len: 0, version: 6, udp_len: 0, count: Count::Ipip },
        protocol::UDP if is_plain && !datagram.fragment => {
            let udp = packet.header::<UdpHdr>(l3 + header_len).map_err(|_| Count::Other)?;
            let [_, _, high, low] = udp.ports;
            if u16::from_be_bytes([high, low]) != GUE_PORT {
                return Err(Count::Other);
            }
            Wrapping {
                len: size_of::<UdpHdr>(),
                version: 0,
                udp_len: usize::from(u16::from_be_bytes(udp.len)),
                count: Count::Gue,
            }
        }
        _ => return Err(Count::Other),
    };
    if !host.is_local(datagram.dst.mapped()) {
        return Err(Count::Other);
    }
    if datagram.fragment {
        return Err(Count::Fragment);
    }
    if !is_plain {
        return Err(Count::Options);
    }
    let header = packet.header::<F::Hdr>(l3)?;
    if !F::is_intact(header) {
        return Err(Count::Checksum);
    }
    if datagram.end > packet.len() || datagram.end < datagram.l4 + wrapping.len {
        return Err(Count::Malformed);
    }
    let bytes = header_len + wrapping.len;
    let inner = l3 + bytes;
    // The shortest header that may follow. The version is in its first byte.
    let version = packet.header::<Ipv4Hdr>(inner)?.vihl >> 4;
    if wrapping.udp_len != 0 {
        // The first two bits are the variant; 0 has a header of its own, and may be for somebody else.
        if version >> 2 != 1 {
            return Err(Count::Other);
        }
        if wrapping.udp_len != datagram.end - datagram.l4 {
            return Err(Count::Malformed);
        }
    } else if version != wrapping.version {
        return Err(Count::Malformed);
    }
    if !host.is_allowed(datagram.src.mapped()) {
        return Err(Count::Denied);
    }
    let ecn = F::traffic_class(header) & ECN;
    let ether_type = match version {
        4 => inner4(packet, inner, datagram.end, ecn)?,
        6 => inner6(packet, inner, datagram.end, ecn)?,
        _ => return Err(Count::Malformed),
    };
    move_link(packet, l3, bytes, ether_type)?;
    Ok(Cut { bytes: bytes as u32, count: wrapping.count })
}

/// Copies the Ethernet header and the tags to where the frame is going to begin.
#[inline(always)]
fn move_link(packet: &Packet, l3: usize, bytes: usize, ether_type: u16) -> Result<(), Truncated> {
    let macs = Macs::load(packet.header::<EthernetHdr>(0)?.macs_mut());
    // All is read before anything is written: two tags reach into the new start.
    let Words([outer_tag, inner_tag]) = packet.header::<Words<2>>(MACS_LEN)?;
    let (outer_tag, inner_tag) = (load32(outer_tag), load32(inner_tag));
    macs.store(packet.header::<EthernetHdr>(bytes)?.macs_mut());
    if l3 > ETHERNET_LEN {
        let Words([tag]) = packet.header::<Words<1>>(bytes + MACS_LEN)?;
        store32(tag, outer_tag);
    }
    if l3 > ETHERNET_LEN + 4 {
        let Words([tag]) = packet.header::<Words<1>>(bytes + MACS_LEN + 4)?;
        store32(tag, inner_tag);
    }
    store16(packet.header::<[u8; 2]>(bytes + l3 - 2)?, ether_type);
    Ok(())
}

/// Both MAC addresses.
const MACS_LEN: usize = 12;

/// The ECN field: the lower bits of type of service and traffic class (RFC 3168, section 5).
const ECN: u8 = 3;
const NOT_ECT: u8 = 0;
const ECT_1: u8 = 1;
const ECT_0: u8 = 2;
const CE: u8 = 3;

/// The ECN field of what is taken out (RFC 6040, section 4.2); `None` if it must be dropped.
#[inline(always)]
const fn combined(outer: u8, inner: u8) -> Option<u8> {
    match (outer, inner) {
        (CE, NOT_ECT) => None,
        (CE, _) => Some(CE),
        (ECT_1, ECT_0) => Some(ECT_1),
        _ => Some(inner),
    }
}

/// Checks the IPv4 header inside, which must fit before `end`, and marks it.
#[inline(always)]
fn inner4(packet: &Packet, at: usize, end: usize, outer_ecn: u8) -> Result<u16, Count> {
    let header = packet.header::<Ipv4Hdr>(at)?;
    let header_len = usize::from(header.vihl & 0xf) * 4;
    let len = V4::packet_len(header);
    if header_len < size_of::<Ipv4Hdr>() || len < header_len || at + len > end {
        return Err(Count::Malformed);
    }
    let ecn = header.tos & ECN;
    let new = combined(outer_ecn, ecn).ok_or(Count::Congestion)?;
    if new != ecn {
        let tos = header.tos & !ECN | new;
        let old = Sum::ZERO.add16(u16::from_ne_bytes([header.vihl, header.tos]));
        let delta = Sum::ZERO.add16(u16::from_ne_bytes([header.vihl, tos])).sub(old);
        let check = checksum::adjust(load16(&header.check), delta.fold());
        header.tos = tos;
        store16(&mut header.check, check);
    }
    Ok(parse::IPV4)
}

/// The same for IPv6.
#[inline(always)]
fn inner6(packet: &Packet, at: usize, end: usize, outer_ecn: u8) -> Result<u16, Count> {
    let header = packet.header::<Ipv6Hdr>(at)?;
    if at + V6::packet_len(header) > end {
        return Err(Count::Malformed);
    }
    let ecn = header.vcf[1] >> 4 & ECN;
    let new = combined(outer_ecn, ecn).ok_or(Count::Congestion)?;
    header.vcf[1] = header.vcf[1] & !(ECN << 4) | new << 4;
    Ok(parse::IPV6)
}

#[cfg(test)]
mod tests {
    use super::{CE, ECT_0, ECT_1, NOT_ECT, combined};

    #[test]
    fn marks_are_combined_as_rfc_6040_says() {
        // Section 4.2, figure 4: a row for what is inside, a column for what is outside.
        for (inner, row) in [
            (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
            (ECT_0, [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)]),
            (ECT_1, [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)]),
            (CE, [Some(CE), Some(CE), Some(CE), Some(CE)]),
        ] {
            for (outer, expected) in [NOT_ECT, ECT_0, ECT_1, CE].into_iter().zip(row) {
                assert_eq!(combined(outer, inner), expected, "outer {outer}, inner {inner}");
            }
        }
    }
}
