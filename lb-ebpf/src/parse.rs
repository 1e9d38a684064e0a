//! From the frame to the tuple.

use lb_common::reason::Reason;

use crate::{
    family::{Datagram, Family, Ports, Tuple, protocol},
    packet::{
        EthernetHdr, Packet, TcpHdr, Truncated, UdpHdr, VlanTag, Words, load16, load32, store16,
        store32, tcp_flags,
    },
};

/// Ethernet type of IPv4, as it lies in the frame.
pub const IPV4: u16 = 0x0800_u16.to_be();
/// Ethernet type of ARP, as it lies in the frame.
pub const ARP: u16 = 0x0806_u16.to_be();
/// Ethernet type of IPv6, as it lies in the frame.
pub const IPV6: u16 = 0x86dd_u16.to_be();
/// IEEE 802.1Q tag.
const VLAN: u16 = 0x8100_u16.to_be();
/// IEEE 802.1ad outer tag.
const VLAN_OUTER: u16 = 0x88a8_u16.to_be();

/// Length of the Ethernet header without tags.
pub const ETHERNET_LEN: usize = size_of::<EthernetHdr>();

impl From<Truncated> for Reason {
    fn from(_: Truncated) -> Self {
        Self::Truncated
    }
}

/// The link layer of a frame.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// What the frame carries, as it lies in the frame.
    pub ether_type: u16,
    /// Where that begins.
    pub l3: usize,
}

impl Link {
    /// Reads the Ethernet header and up to two VLAN tags. The tags stay where they are: a packet
    /// leaves in the VLAN that it came in.
    #[inline(always)]
    pub fn parse(packet: &Packet) -> Result<Self, Truncated> {
        let ethernet = packet.header::<EthernetHdr>(0)?;
        let mut link = Self { ether_type: load16(&ethernet.ether_type), l3: ETHERNET_LEN };
        if matches!(link.ether_type, VLAN | VLAN_OUTER) {
            link = link.inside(packet)?;
            if link.ether_type == VLAN {
                link = link.inside(packet)?;
            }
        }
        Ok(link)
    }

    /// Copies the Ethernet header and the tags of a frame that now begins `grown` bytes earlier, at least
    /// as many as they take, to its new start. `l3` is where the IP header began. The type before what is
    /// new stays to be written, by another [`Packet`] (see `reset::Reset`).
    #[inline(always)]
    pub fn advance(packet: &Packet, grown: usize, l3: usize) -> Result<(), Truncated> {
        // The nearest bytes first: from a check of farther ones the compiler would conclude that these
        // are there.
        let Words([a, b, c, tag, inner_tag]) = packet.header::<Words<5>>(0)?;
        // In ascending order, so that what overlaps is read before it is written.
        let Words([from_a, from_b, from_c]) = packet.header::<Words<3>>(grown)?;
        store32(a, load32(from_a));
        store32(b, load32(from_b));
        store32(c, load32(from_c));
        // From here on the words are a type, and the identifier that follows it.
        if l3 > ETHERNET_LEN {
            let Words([from]) = packet.header::<Words<1>>(grown + 12)?;
            store32(tag, load32(from));
        }
        if l3 > ETHERNET_LEN + size_of::<VlanTag>() {
            let Words([from]) = packet.header::<Words<1>>(grown + 16)?;
            store32(inner_tag, load32(from));
        }
        Ok(())
    }

    /// Writes the type of what begins at `l3`: the last word before it.
    #[inline(always)]
    pub fn set_type(packet: &Packet, l3: usize, ether_type: u16) -> Result<(), Truncated> {
        let last = packet.header::<[u8; 2]>(l3 - 2)?;
        store16(last, ether_type);
        Ok(())
    }

    #[inline(always)]
    fn inside(self, packet: &Packet) -> Result<Self, Truncated> {
        let tag = packet.header::<VlanTag>(self.l3)?;
        Ok(Self { ether_type: load16(&tag.ether_type), l3: self.l3 + size_of::<VlanTag>() })
    }
}

/// A TCP segment or UDP datagram.
#[derive(Clone, Copy, Debug)]
pub struct Segment<A> {
    /// Who sends to whom.
    pub tuple: Tuple<A>,
    /// [`protocol::TCP`] or [`protocol::UDP`].
    pub protocol: u8,
    /// TCP's control bits; 0 for UDP.
    pub flags: u8,
    /// TCP's sequence number, network byte order; 0 for UDP.
    pub seq: u32,
    /// TCP's acknowledgement number, network byte order; 0 without one, and for UDP.
    pub ack: u32,
    /// Time to live of the packet.
    pub ttl: u8,
    /// Where the IP header begins.
    pub l3: usize,
    /// Where the TCP or UDP header begins.
    pub l4: usize,
    /// Bytes after that header.
    pub payload_len: usize,
}

impl<A: Copy> Segment<A> {
    /// Reads the header at `datagram.l4`.
    #[inline(always)]
    pub fn parse<F: Family<Address = A>>(
        packet: &Packet,
        l3: usize,
        datagram: &Datagram<A>,
    ) -> Result<Self, Reason> {
        let l4 = datagram.l4;
        let (ports, flags, seq, ack, header_len) = match datagram.protocol {
            protocol::TCP => {
                let tcp = packet.header::<TcpHdr>(l4)?;
                let header_len = usize::from(tcp.data_offset >> 4) * 4;
                if header_len < size_of::<TcpHdr>() {
                    return Err(Reason::Malformed);
                }
                let acks = tcp.flags & tcp_flags::ACK != 0;
                let ack = if acks { load32(&tcp.ack) } else { 0 };
                (load32(&tcp.ports), tcp.flags, load32(&tcp.seq), ack, header_len)
            }
            protocol::UDP => {
                let udp = packet.header::<UdpHdr>(l4)?;
                let len = usize::from(u16::from_be(load16(&udp.len)));
                if len < size_of::<UdpHdr>() {
                    return Err(Reason::Malformed);
                }
                (load32(&udp.ports), 0, 0, 0, len)
            }
            _ => return Err(Reason::OtherProtocol),
        };
        // The IP header must leave room for the headers inside, and the frame for what the IP header
        // announces.
        if l4 + header_len > datagram.end || datagram.end > packet.len() {
            return Err(Reason::Malformed);
        }
        Ok(Self {
            tuple: Tuple { src: datagram.src, dst: datagram.dst, ports: Ports(ports) },
            protocol: datagram.protocol,
            flags,
            seq,
            ack,
            ttl: datagram.ttl,
            l3,
            l4,
            payload_len: datagram.end - (l4 + header_len),
        })
    }

    /// Whether it asks for a new connection. Every UDP datagram may. A SYN that is a FIN as well is no
    /// honest question.
    #[inline(always)]
    pub fn starts(&self) -> bool {
        const KIND: u8 = tcp_flags::SYN | tcp_flags::ACK | tcp_flags::RST | tcp_flags::FIN;
        self.protocol == protocol::UDP || self.flags & KIND == tcp_flags::SYN
    }

    /// Whether it is TCP and has any of these control bits.
    #[inline(always)]
    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }
}
