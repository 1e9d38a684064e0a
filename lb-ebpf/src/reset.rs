//! Answers a TCP packet with a reset, in the packet's own memory.

use crate::{
    family::{Address, Datagram, Family, Ports, V4, V6, protocol},
    packet::{EthernetHdr, Macs, Packet, TcpHdr, load32, store16, store32, tcp_flags},
    parse::{self, Link},
};

/// A reset that is due.
///
/// Reading the packet and writing the answer are two steps, each with a [`Packet`] of its own: the
/// compiler concludes from the checks of the first that those of the second cannot fail, and drops
/// them; the kernel's verifier, which draws no such conclusion, would then refuse the program.
#[derive(Clone, Copy, Debug)]
pub struct Reset<A> {
    src: A,
    dst: A,
    ports: Ports,
    seq: u32,
    ack: u32,
    flags: u8,
}

/// The answer to a packet of the family `F`; `None` if it must not be answered: it is a reset itself,
/// or no TCP.
///
/// The sequence number is the one that the sender expects (RFC 9293, section 3.10.7.1), so that the
/// reset is exact in the sense of RFC 5961, section 3.2, and takes effect at once.
#[inline(always)]
pub fn due<F: Family>(packet: &Packet) -> Option<Reset<F::Address>> {
    let l3 = Link::parse(packet).ok()?.l3;
    let datagram = F::datagram(packet, l3).ok()?;
    if datagram.protocol != protocol::TCP || datagram.fragment {
        return None;
    }
    let (ports, seq, ack, flags) = reply_to(packet, &datagram)?;
    Some(Reset { src: datagram.dst, dst: datagram.src, ports, seq, ack, flags })
}

impl<A: Address> Reset<A> {
    /// Writes the reset over the packet that it answers, and returns the length of the frame, which
    /// is never longer than before.
    #[inline(always)]
    pub fn write<F: Family<Address = A>>(self, packet: &Packet) -> Option<usize> {
        let ethernet = packet.header::<EthernetHdr>(0).ok()?;
        Macs::load(ethernet.macs()).reversed().store(ethernet.macs_mut());

        // Options of the packet's IP header are not repeated, so the TCP header may move forward.
        let l3 = Link::parse(packet).ok()?.l3;
        let l4 = l3 + size_of::<F::Hdr>();
        let tcp_len = size_of::<TcpHdr>() as u16;
        let ip = packet.header::<F::Hdr>(l3).ok()?;
        F::compose(ip, self.src, self.dst, protocol::TCP, tcp_len);
        let tcp = packet.header::<TcpHdr>(l4).ok()?;
        store32(&mut tcp.ports, self.ports.0);
        store32(&mut tcp.seq, self.seq.to_be());
        store32(&mut tcp.ack, self.ack.to_be());
        tcp.data_offset = 5 << 4;
        tcp.flags = self.flags;
        tcp.window = [0; 2];
        tcp.urgent = [0; 2];
        let sum = self
            .src
            .sum()
            .add(self.dst.sum())
            .add16(u16::from(protocol::TCP).to_be())
            .add16(tcp_len.to_be())
            .add32(self.ports.0)
            .add32(self.seq.to_be())
            .add32(self.ack.to_be())
            .add16(u16::from_ne_bytes([5 << 4, self.flags]));
        store16(&mut tcp.check, sum.checksum());
        Some(l4 + size_of::<TcpHdr>())
    }
}

/// [`due`] and [`Reset::write`] for a packet of either family.
pub fn answer(packet: &Packet) -> Option<usize> {
    match Link::parse(packet).ok()?.ether_type {
        parse::IPV4 => due::<V4>(packet)?.write::<V4>(packet),
        parse::IPV6 => due::<V6>(packet)?.write::<V6>(packet),
        _ => None,
    }
}

/// Ports, sequence number, acknowledgement number and control bits of the answer.
#[inline(always)]
fn reply_to<A>(packet: &Packet, datagram: &Datagram<A>) -> Option<(Ports, u32, u32, u8)> {
    let tcp = packet.header::<TcpHdr>(datagram.l4).ok()?;
    if tcp.flags & tcp_flags::RST != 0 {
        return None;
    }
    let ports = Ports(load32(&tcp.ports)).reversed();
    if tcp.flags & tcp_flags::ACK != 0 {
        return Some((ports, u32::from_be(load32(&tcp.ack)), 0, tcp_flags::RST));
    }
    let header_len = usize::from(tcp.data_offset >> 4) * 4;
    let payload = datagram.end.saturating_sub(datagram.l4 + header_len) as u32;
    let seq = u32::from_be(load32(&tcp.seq));
    let control =
        u32::from(tcp.flags & tcp_flags::SYN != 0) + u32::from(tcp.flags & tcp_flags::FIN != 0);
    let ack = seq.wrapping_add(payload).wrapping_add(control);
    Some((ports, 0, ack, tcp_flags::RST | tcp_flags::ACK))
}
