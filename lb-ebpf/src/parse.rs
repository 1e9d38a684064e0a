//! From the frame to the tuple.

use lb_common::reason::Reason;

use crate::{
    family::{Datagram, Family, Ports, Tuple, protocol},
    packet::{EthernetHdr, Packet, TcpHdr, Truncated, UdpHdr, VlanTag, load16, load32, tcp_flags},
};

/// Ethernet type of IPv4, as it lies in the frame.
pub const IPV4: u16 = 0x0800_u16.to_be();
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
        let (ports, flags, header_len) = match datagram.protocol {
            protocol::TCP => {
                let tcp = packet.header::<TcpHdr>(l4)?;
                let header_len = usize::from(tcp.data_offset >> 4) * 4;
                if header_len < size_of::<TcpHdr>() {
                    return Err(Reason::Malformed);
                }
                (load32(&tcp.ports), tcp.flags, header_len)
            }
            protocol::UDP => {
                let udp = packet.header::<UdpHdr>(l4)?;
                if usize::from(u16::from_be(load16(&udp.len))) < size_of::<UdpHdr>() {
                    return Err(Reason::Malformed);
                }
                (load32(&udp.ports), 0, size_of::<UdpHdr>())
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
            ttl: datagram.ttl,
            l3,
            l4,
            payload_len: datagram.end - (l4 + header_len),
        })
    }

    /// Whether it asks for a new connection. Every UDP datagram may.
    #[inline(always)]
    pub fn starts(&self) -> bool {
        self.protocol == protocol::UDP
            || self.flags & (tcp_flags::SYN | tcp_flags::ACK | tcp_flags::RST) == tcp_flags::SYN
    }

    /// Whether it is TCP and has any of these control bits.
    #[inline(always)]
    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }
}
