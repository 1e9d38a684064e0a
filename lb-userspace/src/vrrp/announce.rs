//! Tells the neighbours on the link whose MAC address a floating address has.
//!
//! Gratuitous ARP for IPv4 and unsolicited neighbour advertisements for IPv6, written by hand to a
//! packet socket: no other socket sends ARP, or an advertisement from an address that the kernel may
//! not have yet.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::AsFd,
};

use socket2::Socket;
use tokio::io::{Interest, unix::AsyncFd};

pub use crate::net::inject::Sender;
use crate::net::inject::{link_address, packet_socket};

/// `ETH_P_ARP`.
const ARP: u16 = 0x0806;

/// `ETH_P_IPV6`.
const IPV6: u16 = 0x86dd;

/// An ARP packet for Ethernet and IPv4, with its Ethernet header (RFC 826).
pub type ArpFrame = [u8; 42];

/// An unsolicited neighbour advertisement with its Ethernet and IPv6 headers.
pub type AdvertisementFrame = [u8; 86];

const BROADCAST: [u8; 6] = [0xff; 6];
const REQUEST: u16 = 1;
const REPLY: u16 = 2;

/// Gratuitous ARP, as a request (RFC 5227 §3, an announcement) and as a reply (RFC 5944 §4.6): some
/// switches and hosts learn from one form only.
pub fn gratuitous_arp(mac: [u8; 6], address: Ipv4Addr) -> [ArpFrame; 2] {
    [
        // RFC 5227 §2.1.1: the target's MAC address of a request is ignored and should be zero.
        arp(REQUEST, mac, address, [0; 6], address),
        // RFC 5944 §4.6: in a reply it is the announced one too. Linux takes no other for gratuitous.
        arp(REPLY, mac, address, mac, address),
    ]
}

/// An ARP probe (RFC 5227 §2.1.1): asks who has `address` without claiming it.
pub fn arp_probe(mac: [u8; 6], address: Ipv4Addr) -> ArpFrame {
    arp(REQUEST, mac, Ipv4Addr::UNSPECIFIED, [0; 6], address)
}

fn arp(
    operation: u16,
    sender: [u8; 6],
    sender_ip: Ipv4Addr,
    target: [u8; 6],
    target_ip: Ipv4Addr,
) -> ArpFrame {
    let mut frame = Frame::<42>::new(BROADCAST, sender, ARP);
    frame.put(&[0, 1, 0x08, 0, 6, 4]); // Ethernet, IPv4, lengths of their addresses
    frame.put(&operation.to_be_bytes());
    frame.put(&sender);
    frame.put(&sender_ip.octets());
    frame.put(&target);
    frame.put(&target_ip.octets());
    frame.bytes
}

/// The MAC address of whoever says in this frame that it has `address`.
pub fn arp_claim(frame: &[u8], address: Ipv4Addr) -> Option<[u8; 6]> {
    let arp = frame.get(14..42)?;
    let is_arp = frame[12..14] == ARP.to_be_bytes() && arp[..6] == [0, 1, 0x08, 0, 6, 4];
    let claims = is_arp && arp[14..18] == address.octets();
    claims.then(|| [arp[8], arp[9], arp[10], arp[11], arp[12], arp[13]])
}

/// An unsolicited neighbour advertisement to all nodes on the link (RFC 4861 §7.2.6), with the
/// override flag. `router` sets the router flag: VRRP asks for it (RFC 9568 §6.4.1), as its addresses
/// are routers; a host that serves an address itself leaves it out.
pub fn neighbour_advertisement(
    mac: [u8; 6],
    address: Ipv6Addr,
    router: bool,
) -> AdvertisementFrame {
    const HEADERS: usize = 14 + 40;
    const LENGTH: u16 = 32;
    const ICMPV6: u8 = 58;
    const HOP_LIMIT: u8 = 255; // RFC 4861 §7.1.2: others are ignored
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    // RFC 2464 §7.
    let mut frame = Frame::<86>::new([0x33, 0x33, 0, 0, 0, 1], mac, IPV6);
    frame.put(&[0x60, 0, 0, 0]);
    frame.put(&LENGTH.to_be_bytes());
    frame.put(&[ICMPV6, HOP_LIMIT]);
    frame.put(&address.octets());
    frame.put(&ALL_NODES.octets());
    frame.put(&[136, 0, 0, 0]); // type, code, checksum
    frame.put(&[if router { 0xa0 } else { 0x20 }, 0, 0, 0]); // router, override
    frame.put(&address.octets());
    frame.put(&[2, 1]); // target link-layer address, in units of 8 bytes
    frame.put(&mac);
    let mut bytes = frame.bytes;
    // RFC 4443 §2.3: over the pseudo-header too.
    let mut sum = u32::from(LENGTH) + u32::from(ICMPV6);
    // Both addresses of the IPv6 header, then the message.
    for pair in bytes[HEADERS - 32..].chunks_exact(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    bytes[HEADERS + 2..HEADERS + 4].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    bytes
}

/// A frame that is filled from the front.
struct Frame<const N: usize> {
    bytes: [u8; N],
    length: usize,
}

impl<const N: usize> Frame<N> {
    fn new(destination: [u8; 6], source: [u8; 6], ethertype: u16) -> Self {
        let mut frame = Self { bytes: [0; N], length: 0 };
        frame.put(&destination);
        frame.put(&source);
        frame.put(&ethertype.to_be_bytes());
        frame
    }

    fn put(&mut self, part: &[u8]) {
        self.bytes[self.length..self.length + part.len()].copy_from_slice(part);
        self.length += part.len();
    }
}

/// Hears the ARP packets that arrive at an interface.
#[derive(Debug)]
pub struct ArpListener(AsyncFd<Socket>);

impl ArpListener {
    /// Listens from now on.
    pub fn open(ifindex: u32) -> io::Result<Self> {
        // Bound before it has a protocol, so that it never hears another interface.
        let socket = packet_socket(0)?;
        socket.bind(&link_address(ifindex, ARP))?;
        // SAFETY: the socket is open, and only dropped with the `AsyncFd` that owns it; nothing here
        // replaces its descriptor.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Self(socket))
    }

    /// The next packet, with its Ethernet header. Cancelling loses nothing.
    pub async fn next(&self) -> io::Result<Vec<u8>> {
        loop {
            let mut ready = self.0.readable().await?;
            let read = ready.try_io(|socket| {
                let mut frame = [0; 128];
                let length = nix::unistd::read(socket.get_ref().as_fd(), &mut frame)?;
                Ok(frame[..length].to_vec())
            });
            if let Ok(result) = read {
                return result;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAC: [u8; 6] = [0x02, 0x00, 0x5e, 0x10, 0x20, 0x30];
    const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
    }

    #[test]
    fn gratuitous_arp_byte_for_byte() {
        let [request, reply] = gratuitous_arp(MAC, VIP);
        let ethernet = "ffffffffffff02005e1020300806";
        let sender = "02005e102030c0000264";
        assert_eq!(
            hex(&request),
            format!("{ethernet}0001080006040001{sender}000000000000c0000264")
        );
        assert_eq!(hex(&reply), format!("{ethernet}0001080006040002{sender}02005e102030c0000264"));
    }

    #[test]
    fn a_probe_claims_nothing() {
        let probe = arp_probe(MAC, VIP);
        assert_eq!(
            hex(&probe),
            "ffffffffffff02005e10203008060001080006040001\
             02005e1020300000000000000000 0000c0000264"
                .replace(' ', "")
        );
        assert_eq!(arp_claim(&probe, VIP), None);
        for frame in gratuitous_arp(MAC, VIP) {
            assert_eq!(arp_claim(&frame, VIP), Some(MAC));
            assert_eq!(arp_claim(&frame, Ipv4Addr::new(192, 0, 2, 101)), None);
        }
    }

    /// RFC 1071: the sum of a whole message with its right checksum is all ones.
    fn sum(parts: &[&[u8]]) -> u16 {
        let mut sum = 0_u64;
        for pair in parts.concat().chunks(2) {
            sum += u64::from(pair[0]) << 8 | u64::from(pair[1]);
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn neighbour_advertisement_byte_for_byte() {
        let vip: Ipv6Addr = "2001:db8::100".parse().unwrap();
        let frame = neighbour_advertisement(MAC, vip, false);
        let address = "20010db8000000000000000000000100";
        let (before, after) = (hex(&frame[..56]), hex(&frame[58..]));
        assert_eq!(
            before,
            format!(
                "33330000000102005e10203086dd6000000000203aff{address}\
                 ff0200000000000000000000000000018800"
            )
        );
        assert_eq!(after, format!("20000000{address}020102005e102030"));
        assert_eq!(neighbour_advertisement(MAC, vip, true)[58], 0xa0);
    }

    proptest! {
        #[test]
        fn the_checksum_is_right(mac: [u8; 6], address: u128, router: bool) {
            let address = Ipv6Addr::from(address);
            let frame = neighbour_advertisement(mac, address, router);
            let pseudo = [0, 0, 0, 32, 0, 0, 0, 58];
            prop_assert_eq!(sum(&[&frame[22..54], &pseudo, &frame[54..]]), 0xffff);
        }

        #[test]
        fn any_frame_is_read_safely(frame in proptest::collection::vec(any::<u8>(), 0..80)) {
            arp_claim(&frame, VIP);
        }

        #[test]
        fn a_truncated_frame_claims_nothing(length in 0..42_usize) {
            prop_assert_eq!(arp_claim(&gratuitous_arp(MAC, VIP)[0][..length], VIP), None);
        }
    }
}
