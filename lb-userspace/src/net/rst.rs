//! TCP resets, as frames.

use std::net::{IpAddr, SocketAddr};

const ETHERNET: usize = 14;
const TCP: usize = 20;
const TCP_NUMBER: u8 = 6;
const RST_FLAG: u8 = 4;
const TTL: u8 = 64;

/// A TCP reset, and the way that it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rst {
    /// Interface that it leaves by.
    pub ifindex: u32,
    /// MAC address of that interface.
    pub source_mac: [u8; 6],
    /// MAC address of the next hop.
    pub next_hop: [u8; 6],
    /// Who it seems to come from: the receiver's peer.
    pub src: SocketAddr,
    /// Its receiver.
    pub dst: SocketAddr,
    /// Sequence number: what the receiver has asked for last.
    pub seq: u32,
}

/// The frame of a reset without an acknowledgement, and of the same form as those that the kernel
/// program answers with.
#[must_use]
pub fn frame(rst: &Rst) -> Vec<u8> {
    let mut frame = Vec::with_capacity(ETHERNET + 40 + TCP);
    frame.extend(rst.next_hop);
    frame.extend(rst.source_mac);
    let pseudo = match (rst.src.ip(), rst.dst.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            frame.extend([0x08, 0x00]);
            let at = frame.len();
            // Version and length, length of the whole, no fragments.
            frame.extend([0x45, 0, 0, 20 + TCP as u8, 0, 0, 0x40, 0, TTL, TCP_NUMBER, 0, 0]);
            frame.extend(src.octets());
            frame.extend(dst.octets());
            let check = checksum(&frame[at..]);
            frame[at + 10..at + 12].copy_from_slice(&check);
            [&src.octets()[..], &dst.octets()].concat()
        }
        (src, dst) => {
            let octets = |address: IpAddr| match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            let (src, dst) = (octets(src), octets(dst));
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, TCP as u8, TCP_NUMBER, TTL]);
            frame.extend(src);
            frame.extend(dst);
            [src, dst].concat()
        }
    };
    let tcp = segment(rst.src, rst.dst, rst.seq);
    let covered = [&pseudo[..], &[0, TCP_NUMBER, 0, TCP as u8], &tcp].concat();
    let at = frame.len();
    frame.extend(tcp);
    frame[at + 16..at + 18].copy_from_slice(&checksum(&covered));
    frame
}

fn segment(src: SocketAddr, dst: SocketAddr, seq: u32) -> [u8; TCP] {
    let mut tcp = [0; TCP];
    tcp[..2].copy_from_slice(&src.port().to_be_bytes());
    tcp[2..4].copy_from_slice(&dst.port().to_be_bytes());
    tcp[4..8].copy_from_slice(&seq.to_be_bytes());
    tcp[12] = (TCP as u8 / 4) << 4;
    tcp[13] = RST_FLAG;
    tcp
}

/// RFC 1071, over an even number of bytes.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rst(src: &str, dst: &str) -> Rst {
        Rst {
            ifindex: 1,
            source_mac: [2; 6],
            next_hop: [3; 6],
            src: src.parse().unwrap(),
            dst: dst.parse().unwrap(),
            seq: 0x0102_0304,
        }
    }

    #[test]
    fn a_frame_of_ipv4() {
        let frame = frame(&rst("192.0.2.100:80", "192.0.2.9:40000"));
        assert_eq!(frame.len(), 54);
        assert_eq!(frame[..14], [3, 3, 3, 3, 3, 3, 2, 2, 2, 2, 2, 2, 8, 0]);
        assert_eq!(checksum(&frame[14..34]), [0, 0], "the header's sum");
        assert_eq!(frame[34..48], [0, 80, 0x9c, 0x40, 1, 2, 3, 4, 0, 0, 0, 0, 0x50, 4]);
        let covered = [&frame[26..34], &[0, 6, 0, 20], &frame[34..]].concat();
        assert_eq!(checksum(&covered), [0, 0], "the segment's sum");
    }

    #[test]
    fn a_frame_of_ipv6() {
        let frame = frame(&rst("[2001:db8::100]:80", "[2001:db8::9]:40000"));
        assert_eq!(frame.len(), 74);
        assert_eq!(frame[12..22], [0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64]);
        let covered = [&frame[22..54], &[0, 6, 0, 20], &frame[54..]].concat();
        assert_eq!(checksum(&covered), [0, 0], "the segment's sum");
    }
}
