//! What a frame is to look like inside a tunnel, built with other code than that under test.

use std::{net::Ipv6Addr, vec::Vec};

use etherparse::{IpNumber, Ipv4Header, Ipv6Header, UdpHeader};
use lb_common::backend::{Backend, GUE};

use super::{Frame, tables::tuple};
use crate::{
    family::{V4, V6},
    tunnel::GUE_PORT,
};

/// The frame as the backend at the other end of its tunnel gets it.
///
/// # Panics
///
/// When the frame does not fit into a packet of IP.
#[must_use]
pub fn inside(frame: &Frame, backend: &Backend) -> Vec<u8> {
    inside_as_flow(frame, backend, flow_hash(frame))
}

/// As [`inside`], for a packet that belongs to a flow whose tuple is not its own: an ICMP error.
///
/// # Panics
///
/// As [`inside`].
#[must_use]
pub fn inside_as_flow(frame: &Frame, backend: &Backend, hash: u32) -> Vec<u8> {
    let inner = frame.ip_packet();
    let inner_protocol = if frame.src.is_ipv4() { IpNumber::IPV4 } else { IpNumber::IPV6 };
    // DSCP and ECN, from the inner packet's own bytes.
    let tos = if frame.src.is_ipv4() { inner[1] } else { inner[0] << 4 | inner[1] >> 4 };
    let (protocol, mut body) = if backend.flags & GUE == 0 {
        (inner_protocol, Vec::new())
    } else {
        let udp = UdpHeader {
            source_port: 0xc000 | (hash as u16 >> 2),
            destination_port: GUE_PORT,
            length: (UdpHeader::LEN + inner.len()) as u16,
            checksum: 0,
        };
        (IpNumber::UDP, udp.to_bytes().to_vec())
    };
    body.extend(&inner);

    let mut bytes = Vec::new();
    bytes.extend(backend.next_hop);
    bytes.extend(backend.source_mac);
    for (tag_type, id) in &frame.vlans {
        bytes.extend(tag_type.to_be_bytes());
        bytes.extend(id.to_be_bytes());
    }
    let (src, dst) = (Ipv6Addr::from(backend.source), Ipv6Addr::from(backend.address));
    if let (Some(src), Some(dst)) = (src.to_ipv4_mapped(), dst.to_ipv4_mapped()) {
        let len = body.len() as u16;
        let mut header = Ipv4Header::new(len, 64, protocol, src.octets(), dst.octets())
            .expect("a payload that IPv4 can carry");
        header.dscp = (tos >> 2).try_into().expect("6 bits");
        header.ecn = (tos & 3).try_into().expect("2 bits");
        header.dont_fragment = true;
        header.header_checksum = header.calc_header_checksum();
        bytes.extend([0x08, 0x00]);
        bytes.extend(header.to_bytes());
    } else {
        let header = Ipv6Header {
            traffic_class: tos,
            flow_label: (hash & 0xf_ffff).try_into().expect("20 bits"),
            payload_length: body.len() as u16,
            next_header: protocol,
            hop_limit: 64,
            source: src.octets(),
            destination: dst.octets(),
        };
        bytes.extend([0x86, 0xdd]);
        bytes.extend(header.to_bytes());
    }
    bytes.extend(body);
    bytes.extend(&frame.trailer);
    bytes
}

/// The hash of a frame's own tuple.
#[must_use]
pub fn flow_hash(frame: &Frame) -> u32 {
    if frame.src.is_ipv4() {
        tuple::<V4>(frame.src, frame.dst).hash()
    } else {
        tuple::<V6>(frame.src, frame.dst).hash()
    }
}
