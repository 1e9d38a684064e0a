//! From the description of a frame to its bytes.

use std::{net::IpAddr, vec::Vec};

use etherparse::{
    IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpFragOffset, IpNumber,
    Ipv4Header, Ipv6FragmentHeader, Ipv6Header, TcpHeader, UdpHeader,
    icmpv4::{self, DestUnreachableHeader},
    icmpv6::{self, DestUnreachableCode},
};

use super::{Body, Error, Frame};
use crate::packet::tcp_flags;

impl Frame {
    /// The frame as bytes.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.dst_mac);
        bytes.extend(self.src_mac);
        for (tag_type, id) in &self.vlans {
            bytes.extend(tag_type.to_be_bytes());
            bytes.extend(id.to_be_bytes());
        }
        let ether_type: u16 = if self.src.is_ipv4() { 0x0800 } else { 0x86dd };
        bytes.extend(ether_type.to_be_bytes());
        bytes.extend(self.ip_packet());
        bytes.extend(&self.trailer);
        bytes
    }

    /// The IP packet inside.
    #[must_use]
    pub fn ip_packet(&self) -> Vec<u8> {
        let (protocol, body) = self.body();
        let mut bytes = match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let len = body.len() as u16;
                let mut header =
                    Ipv4Header::new(len, self.ttl, protocol, src.octets(), dst.octets())
                        .expect("a payload that IPv4 can carry");
                header.options =
                    self.ip_options.as_slice().try_into().expect("options of whole words");
                header.total_len += self.ip_options.len() as u16;
                header.identification = self.label;
                header.dscp = (self.traffic_class >> 2).try_into().expect("6 bits");
                header.ecn = (self.traffic_class & 3).try_into().expect("2 bits");
                if let Some((offset, more)) = self.fragment {
                    header.dont_fragment = false;
                    header.fragment_offset = IpFragOffset::try_new(offset).expect("13 bits");
                    header.more_fragments = more;
                }
                header.header_checksum = header.calc_header_checksum();
                header.to_bytes().to_vec()
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let fragment = self.fragment.map(|(offset, more)| {
                    let offset = IpFragOffset::try_new(offset).expect("13 bits");
                    Ipv6FragmentHeader::new(protocol, offset, more, 7)
                });
                let extension = if fragment.is_some() { Ipv6FragmentHeader::LEN } else { 0 };
                let header = Ipv6Header {
                    traffic_class: self.traffic_class,
                    flow_label: u32::from(self.label).try_into().expect("20 bits"),
                    payload_length: (body.len() + extension) as u16,
                    next_header: if fragment.is_some() {
                        IpNumber::IPV6_FRAGMENTATION_HEADER
                    } else {
                        protocol
                    },
                    hop_limit: self.ttl,
                    source: src.octets(),
                    destination: dst.octets(),
                };
                let mut bytes = header.to_bytes().to_vec();
                if let Some(fragment) = fragment {
                    bytes.extend(fragment.to_bytes());
                }
                bytes
            }
            _ => panic!("{} and {} are of two families", self.src, self.dst),
        };
        bytes.extend(body);
        bytes
    }

    fn body(&self) -> (IpNumber, Vec<u8>) {
        match &self.body {
            Body::Tcp { flags, seq, ack, window, options, payload } => {
                (IpNumber::TCP, self.tcp_segment(*flags, (*seq, *ack), *window, options, payload))
            }
            Body::Udp { checksum, payload } => {
                (IpNumber::UDP, self.udp_datagram(*checksum, payload))
            }
            Body::IcmpError { error, quoted } => {
                self.icmp(v4_error(*error), v6_error(*error), quoted)
            }
            Body::Echo => {
                let echo = IcmpEchoHeader { id: 1, seq: 1 };
                self.icmp(Icmpv4Type::EchoRequest(echo), Icmpv6Type::EchoRequest(echo), b"ping")
            }
            Body::Other { protocol, payload } => (IpNumber(*protocol), payload.clone()),
        }
    }

    fn tcp_segment(
        &self,
        flags: u8,
        (seq, ack): (u32, u32),
        window: u16,
        options: &[u8],
        payload: &[u8],
    ) -> Vec<u8> {
        let mut header = TcpHeader::new(self.src.port(), self.dst.port(), seq, window);
        header.acknowledgment_number = ack;
        header.fin = flags & tcp_flags::FIN != 0;
        header.syn = flags & tcp_flags::SYN != 0;
        header.rst = flags & tcp_flags::RST != 0;
        header.psh = flags & 8 != 0;
        header.ece = flags & 0x40 != 0;
        header.cwr = flags & 0x80 != 0;
        header.ack = flags & tcp_flags::ACK != 0;
        header.set_options_raw(options).expect("at most 40 bytes of options");
        header.checksum = match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                header.calc_checksum_ipv4_raw(src.octets(), dst.octets(), payload)
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                header.calc_checksum_ipv6_raw(src.octets(), dst.octets(), payload)
            }
            _ => panic!("{} and {} are of two families", self.src, self.dst),
        }
        .expect("a payload that TCP can carry");
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend(payload);
        bytes
    }

    fn udp_datagram(&self, checksum: bool, payload: &[u8]) -> Vec<u8> {
        let mut header = UdpHeader {
            source_port: self.src.port(),
            destination_port: self.dst.port(),
            length: (UdpHeader::LEN + payload.len()) as u16,
            checksum: 0,
        };
        if checksum {
            header.checksum = match (self.src.ip(), self.dst.ip()) {
                (IpAddr::V4(src), IpAddr::V4(dst)) => {
                    header.calc_checksum_ipv4_raw(src.octets(), dst.octets(), payload)
                }
                (IpAddr::V6(src), IpAddr::V6(dst)) => {
                    header.calc_checksum_ipv6_raw(src.octets(), dst.octets(), payload)
                }
                _ => panic!("{} and {} are of two families", self.src, self.dst),
            }
            .expect("a payload that UDP can carry");
        }
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend(payload);
        bytes
    }

    fn icmp(&self, v4: Icmpv4Type, v6: Icmpv6Type, payload: &[u8]) -> (IpNumber, Vec<u8>) {
        let (protocol, mut bytes) = match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let header = Icmpv6Header::with_checksum(v6, src.octets(), dst.octets(), payload)
                    .expect("a payload that ICMPv6 can carry");
                (IpNumber::IPV6_ICMP, header.to_bytes().to_vec())
            }
            _ => (IpNumber::ICMP, Icmpv4Header::with_checksum(v4, payload).to_bytes().to_vec()),
        };
        bytes.extend(payload);
        (protocol, bytes)
    }
}

fn v4_error(error: Error) -> Icmpv4Type {
    match error {
        Error::PortUnreachable => Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port),
        Error::TooBig(next_hop_mtu) => {
            Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded {
                next_hop_mtu,
            })
        }
        Error::TimeExceeded => {
            Icmpv4Type::TimeExceeded(icmpv4::TimeExceededCode::TtlExceededInTransit)
        }
        Error::ParameterProblem(byte) => Icmpv4Type::ParameterProblem(
            icmpv4::ParameterProblemHeader::PointerIndicatesError(byte),
        ),
    }
}

fn v6_error(error: Error) -> Icmpv6Type {
    match error {
        Error::PortUnreachable => Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Port),
        Error::TooBig(mtu) => Icmpv6Type::PacketTooBig { mtu: u32::from(mtu) },
        Error::TimeExceeded => Icmpv6Type::TimeExceeded(icmpv6::TimeExceededCode::HopLimitExceeded),
        Error::ParameterProblem(byte) => {
            Icmpv6Type::ParameterProblem(icmpv6::ParameterProblemHeader {
                code: icmpv6::ParameterProblemCode::ErroneousHeaderField,
                pointer: u32::from(byte),
            })
        }
    }
}
