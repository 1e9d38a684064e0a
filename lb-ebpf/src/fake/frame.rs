//! Frames, described by their fields and built with correct lengths and checksums.

use std::{
    net::{IpAddr, SocketAddr},
    vec::Vec,
};

use crate::packet::tcp_flags;

mod build;

/// A frame before it is bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Source MAC address.
    pub src_mac: [u8; 6],
    /// Destination MAC address.
    pub dst_mac: [u8; 6],
    /// Types and identifiers of the VLAN tags, outermost first.
    pub vlans: Vec<(u16, u16)>,
    /// Source address and port.
    pub src: SocketAddr,
    /// Destination address and port.
    pub dst: SocketAddr,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Identification of the IPv4 header; the flow label of IPv6.
    pub label: u16,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Options of the IPv4 header: a multiple of 4 bytes, at most 40.
    pub ip_options: Vec<u8>,
    /// Offset in units of 8 bytes, and whether more fragments follow.
    pub fragment: Option<(u16, bool)>,
    /// What the IP packet carries.
    pub body: Body,
    /// Bytes after the IP packet.
    pub trailer: Vec<u8>,
}

/// What an IP packet carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// A TCP segment.
    Tcp {
        /// Control bits.
        flags: u8,
        /// Sequence number.
        seq: u32,
        /// Acknowledgement number.
        ack: u32,
        /// Window.
        window: u16,
        /// Options: a multiple of 4 bytes, at most 40.
        options: Vec<u8>,
        /// Data.
        payload: Vec<u8>,
    },
    /// A UDP datagram.
    Udp {
        /// Whether the checksum is filled in (IPv4 lets it be left out).
        checksum: bool,
        /// Data.
        payload: Vec<u8>,
    },
    /// An ICMP error.
    IcmpError {
        /// Which.
        error: Error,
        /// The packet that it is about, from its IP header on, or the start of it.
        quoted: Vec<u8>,
    },
    /// An ICMP echo request.
    Echo,
    /// Something else.
    Other {
        /// Its protocol number.
        protocol: u8,
        /// Its bytes.
        payload: Vec<u8>,
    },
}

/// An ICMP error, of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Nothing listens on the port.
    PortUnreachable,
    /// Too big for the next link, whose MTU this is.
    TooBig(u16),
    /// The time to live has ended on the way.
    TimeExceeded,
    /// A header field is wrong; this byte of it.
    ParameterProblem(u8),
}

/// Type of a VLAN tag that stands alone, or inside.
pub const VLAN: u16 = 0x8100;
/// Type of an outer VLAN tag.
pub const VLAN_OUTER: u16 = 0x88a8;

impl Frame {
    fn new(src: SocketAddr, dst: SocketAddr, body: Body) -> Self {
        assert_eq!(src.is_ipv4(), dst.is_ipv4(), "{src} and {dst} are of two families");
        Self {
            src_mac: [2, 0, 0, 0, 0, 0xc],
            dst_mac: [2, 0, 0, 0, 0, 0xb],
            vlans: Vec::new(),
            src,
            dst,
            ttl: 64,
            label: 0x1234,
            traffic_class: 0,
            ip_options: Vec::new(),
            fragment: None,
            body,
            trailer: Vec::new(),
        }
    }

    /// A TCP segment with these control bits and nothing in it.
    #[must_use]
    pub fn tcp(src: SocketAddr, dst: SocketAddr, flags: u8) -> Self {
        let body = Body::Tcp {
            flags,
            seq: 0x0102_0304,
            ack: if flags & tcp_flags::ACK == 0 { 0 } else { 0x0102_0708 },
            window: 0xfaf0,
            options: Vec::new(),
            payload: Vec::new(),
        };
        Self::new(src, dst, body)
    }

    /// The first segment of a connection, with the options that Linux sends.
    #[must_use]
    pub fn syn(src: SocketAddr, dst: SocketAddr) -> Self {
        Self::tcp(src, dst, tcp_flags::SYN).tcp_options(&SYN_OPTIONS)
    }

    /// The answer to [`Frame::syn`].
    #[must_use]
    pub fn syn_ack(src: SocketAddr, dst: SocketAddr) -> Self {
        Self::tcp(src, dst, tcp_flags::SYN | tcp_flags::ACK).tcp_options(&SYN_OPTIONS)
    }

    /// A UDP datagram.
    #[must_use]
    pub fn udp(src: SocketAddr, dst: SocketAddr, payload: &[u8]) -> Self {
        Self::new(src, dst, Body::Udp { checksum: true, payload: payload.to_vec() })
    }

    /// An ICMP error from `src` to the sender of the packet that `about` describes; it quotes the
    /// first `quoted_bytes` of it.
    #[must_use]
    pub fn icmp_error(src: IpAddr, error: Error, about: &Self, quoted_bytes: usize) -> Self {
        let mut quoted = about.ip_packet();
        quoted.truncate(quoted_bytes);
        let dst = SocketAddr::new(about.src.ip(), 0);
        Self::new(SocketAddr::new(src, 0), dst, Body::IcmpError { error, quoted })
    }

    /// An ICMP echo request.
    #[must_use]
    pub fn echo(src: IpAddr, dst: IpAddr) -> Self {
        Self::new(SocketAddr::new(src, 0), SocketAddr::new(dst, 0), Body::Echo)
    }

    /// A packet of another protocol.
    #[must_use]
    pub fn other(src: IpAddr, dst: IpAddr, protocol: u8, payload: &[u8]) -> Self {
        let body = Body::Other { protocol, payload: payload.to_vec() };
        Self::new(SocketAddr::new(src, 0), SocketAddr::new(dst, 0), body)
    }

    /// With other MAC addresses: source, destination.
    #[must_use]
    pub fn link(self, src_mac: [u8; 6], dst_mac: [u8; 6]) -> Self {
        Self { src_mac, dst_mac, ..self }
    }

    /// With one more VLAN tag inside those that it has: its type and identifier.
    #[must_use]
    pub fn vlan(mut self, tag_type: u16, id: u16) -> Self {
        self.vlans.push((tag_type, id));
        self
    }

    /// Between other hosts.
    #[must_use]
    pub fn between(self, src: SocketAddr, dst: SocketAddr) -> Self {
        Self { src, dst, ..self }
    }

    /// With another time to live.
    #[must_use]
    pub fn ttl(self, ttl: u8) -> Self {
        Self { ttl, ..self }
    }

    /// With another identification, or flow label.
    #[must_use]
    pub fn label(self, label: u16) -> Self {
        Self { label, ..self }
    }

    /// With DSCP and ECN.
    #[must_use]
    pub fn traffic_class(self, traffic_class: u8) -> Self {
        Self { traffic_class, ..self }
    }

    /// With options in the IPv4 header.
    #[must_use]
    pub fn ip_options(self, options: &[u8]) -> Self {
        Self { ip_options: options.to_vec(), ..self }
    }

    /// As a fragment: offset in units of 8 bytes, and whether more follow.
    #[must_use]
    pub fn fragment(self, offset: u16, more: bool) -> Self {
        Self { fragment: Some((offset, more)), ..self }
    }

    /// With bytes after the IP packet, as short frames are padded.
    #[must_use]
    pub fn trailer(self, trailer: &[u8]) -> Self {
        Self { trailer: trailer.to_vec(), ..self }
    }

    /// With other sequence and acknowledgement numbers.
    #[must_use]
    pub fn numbers(mut self, new_seq: u32, new_ack: u32) -> Self {
        if let Body::Tcp { seq, ack, .. } = &mut self.body {
            (*seq, *ack) = (new_seq, new_ack);
        }
        self
    }

    /// With another window.
    #[must_use]
    pub fn window(mut self, new: u16) -> Self {
        if let Body::Tcp { window, .. } = &mut self.body {
            *window = new;
        }
        self
    }

    /// With TCP options.
    #[must_use]
    pub fn tcp_options(mut self, new: &[u8]) -> Self {
        if let Body::Tcp { options, .. } = &mut self.body {
            *options = new.to_vec();
        }
        self
    }

    /// With data.
    #[must_use]
    pub fn payload(mut self, new: &[u8]) -> Self {
        if let Body::Tcp { payload, .. } | Body::Udp { payload, .. } = &mut self.body {
            *payload = new.to_vec();
        }
        self
    }

    /// UDP without a checksum.
    #[must_use]
    pub fn without_checksum(mut self) -> Self {
        if let Body::Udp { checksum, .. } = &mut self.body {
            *checksum = false;
        }
        self
    }
}

/// MSS 1460, SACK permitted, timestamps, window scale 7.
pub const SYN_OPTIONS: [u8; 20] = [2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 1, 2, 3, 0, 0, 0, 0, 1, 3, 3, 7];
