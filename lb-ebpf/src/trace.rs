//! What a trace shows of a packet, and which packets it wants.

use lb_common::trace::{NONE, TraceFilter, TraceRecord, filter};

use crate::{
    family::{Address, Family, V4, V6, protocol},
    packet::{Packet, TcpHdr, UdpHdr, load32, load128},
    parse::{self, Link},
};

/// Who sends to whom, of a packet of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Source address, as in `SERVICES`, in words: bytes one by one would each take a register.
    pub src: [u64; 2],
    /// Destination address.
    pub dst: [u64; 2],
    /// Ports as they lie in the packet, source first; 0 without TCP and UDP.
    pub ports: u32,
    /// IP protocol number.
    pub protocol: u8,
    /// TCP's control bits; 0 without TCP.
    pub flags: u8,
}

impl Ends {
    /// Of a packet that is not IP.
    pub const NONE: Self = Self { src: [0; 2], dst: [0; 2], ports: 0, protocol: 0, flags: 0 };

    /// Reads a packet as far as it goes.
    #[inline(always)]
    pub fn of(packet: &Packet) -> Self {
        match Link::parse(packet) {
            Ok(Link { ether_type: parse::IPV4, l3 }) => Self::of_family::<V4>(packet, l3),
            Ok(Link { ether_type: parse::IPV6, l3 }) => Self::of_family::<V6>(packet, l3),
            _ => Self::NONE,
        }
    }

    /// Reads the packet whose IP header is at `l3`, wherever it lies.
    #[inline(always)]
    pub fn at(packet: &Packet, l3: usize) -> Self {
        match packet.header::<[u8; 2]>(l3) {
            Ok([first, _]) if *first >> 4 == 4 => Self::of_family::<V4>(packet, l3),
            Ok([first, _]) if *first >> 4 == 6 => Self::of_family::<V6>(packet, l3),
            _ => Self::NONE,
        }
    }

    #[inline(always)]
    fn of_family<F: Family>(packet: &Packet, l3: usize) -> Self {
        let Ok(datagram) = F::datagram(packet, l3) else { return Self::NONE };
        let (src, dst) = (load128(&datagram.src.mapped()), load128(&datagram.dst.mapped()));
        let mut ends = Self { src, dst, protocol: datagram.protocol, ..Self::NONE };
        // Only the first fragment has ports, and nobody would know which that is.
        if datagram.fragment {
            return ends;
        }
        match datagram.protocol {
            protocol::TCP => {
                if let Ok(tcp) = packet.header::<TcpHdr>(datagram.l4) {
                    (ends.ports, ends.flags) = (load32(&tcp.ports), tcp.flags);
                }
            }
            protocol::UDP => {
                if let Ok(udp) = packet.header::<UdpHdr>(datagram.l4) {
                    ends.ports = load32(&udp.ports);
                }
            }
            _ => {}
        }
        ends
    }
}

/// Whether a trace wants a packet, all that is known of it being in the record.
#[inline(always)]
pub fn wants(filter: &TraceFilter, record: &TraceRecord) -> bool {
    let host = |address| under(address, &filter.host, &filter.host_mask);
    filter.flags & filter::ACTIVE != 0
        && under(&record.before_src, &filter.from, &filter.from_mask)
        && under(&record.before_dst, &filter.to, &filter.to_mask)
        && (host(&record.before_src)
            || host(&record.before_dst)
            || host(&record.after_src)
            || host(&record.after_dst))
        && (filter.flags & filter::SERVICE == 0 || of_service(filter, record))
        && (filter.flags & filter::BACKEND == 0 || record.backend == filter.backend)
        && (filter.flags & filter::REASON == 0 || record.reason == filter.reason)
        && (filter.flags & filter::REFUSED == 0 || record.reason != NONE)
}

/// Whether the packet is the service's: by its backend, or by the address that it came to.
#[inline(always)]
fn of_service(filter: &TraceFilter, record: &TraceRecord) -> bool {
    let [_, _, a, b] = record.before_ports;
    record.service == filter.service
        || under(&record.before_dst, &filter.listen, &[0xff; 16])
            && [a, b] == filter.listen_port
            && record.before_protocol == filter.listen_protocol
}

/// Whether the address and the prefix are the same under the mask.
#[inline(always)]
fn under(address: &[u8; 16], prefix: &[u8; 16], mask: &[u8; 16]) -> bool {
    let ([a, b], [c, d], [e, f]) = (load128(address), load128(prefix), load128(mask));
    (a ^ c) & e | (b ^ d) & f == 0
}
