//! Who asks which MAC address a floating address has.
//!
//! The node's own stack answers such questions as long as the address is on its interface. While several
//! nodes share the address, it may do so only until the end of its lease, which the daemon renews with
//! every advert: a node whose daemon hangs or is dead falls silent before another node takes over. Only
//! packets that ask come here; the others pay nothing.
//!
//! A lease also says until when the node that had the address before may still tell of connections. Packets
//! of unknown ones end in silence until then: a reset, from here or from the node's own stack, would break a
//! connection that is going to be known. They do so too where the lease is over: who has
//! not heard of the move yet still sends here.

use lb_common::service::mapped;

use crate::{
    packet::{Packet, Words},
    parse::{self, Link},
};

/// An ARP request for IPv4 over Ethernet, from its hardware type to its operation (RFC 826).
const ARP_REQUEST: [[u8; 4]; 2] = [[0, 1, 0x08, 0], [6, 4, 0, 1]];

/// `ICMPv6`, and its neighbour solicitation (RFC 4861, section 4.3).
const ICMPV6: u8 = 58;
const NEIGHBOUR_SOLICITATION: u8 = 135;

/// The address that a frame asks for, IPv4 as an IPv4-mapped IPv6 address. `None`: it asks for none.
#[inline(always)]
pub fn asks_for(packet: &Packet) -> Option<[u8; 16]> {
    let link = Link::parse(packet).ok()?;
    match link.ether_type {
        parse::ARP => {
            let Words([kind, operation, _, _, _, _, target]) =
                packet.header::<Words<7>>(link.l3).ok()?;
            ([*kind, *operation] == ARP_REQUEST).then(|| mapped(*target))
        }
        parse::IPV6 => {
            let Words([_, [_, _, next_header, _]]) = packet.header::<Words<2>>(link.l3).ok()?;
            if *next_header != ICMPV6 {
                return None;
            }
            let Words([[kind, ..], _, a, b, c, d]) =
                packet.header::<Words<6>>(link.l3 + 40).ok()?;
            if *kind != NEIGHBOUR_SOLICITATION {
                return None;
            }
            let mut target = [0; 16];
            let [ta, tb, tc, td] = quarters(&mut target);
            (*ta, *tb, *tc, *td) = (*a, *b, *c, *d);
            Some(target)
        }
        _ => None,
    }
}

/// The address that a packet goes to, IPv4 as an IPv4-mapped IPv6 address. `None`: it is none of IP.
#[inline(always)]
pub fn destination(packet: &Packet) -> Option<[u8; 16]> {
    let link = Link::parse(packet).ok()?;
    match link.ether_type {
        parse::IPV4 => {
            let Words([_, _, _, _, target]) = packet.header::<Words<5>>(link.l3).ok()?;
            Some(mapped(*target))
        }
        parse::IPV6 => {
            let Words([_, _, _, _, _, _, a, b, c, d]) = packet.header::<Words<10>>(link.l3).ok()?;
            let mut target = [0; 16];
            let [ta, tb, tc, td] = quarters(&mut target);
            (*ta, *tb, *tc, *td) = (*a, *b, *c, *d);
            Some(target)
        }
        _ => None,
    }
}

/// The four words of an address.
#[inline(always)]
fn quarters(address: &mut [u8; 16]) -> &mut [[u8; 4]; 4] {
    // SAFETY: 16 bytes are four arrays of 4.
    unsafe { &mut *address.as_mut_ptr().cast() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Frame;

    fn asked(frame: &mut [u8]) -> Option<[u8; 16]> {
        let start = frame.as_mut_ptr() as usize;
        // SAFETY: the frame lives on, and nobody else looks at it meanwhile.
        asks_for(&unsafe { Packet::new(start, start + frame.len(), 1) })
    }

    const VIP6: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

    fn arp() -> Vec<u8> {
        let mut frame = vec![0xff; 12];
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend([2, 0, 0, 0, 0, 9, 192, 0, 2, 9, 0, 0, 0, 0, 0, 0, 192, 0, 2, 100]);
        frame
    }

    fn solicitation() -> Vec<u8> {
        let mut frame = vec![0x33; 12];
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255]);
        frame.extend([0; 32]);
        frame.extend([135, 0, 0, 0, 0, 0, 0, 0]);
        frame.extend(VIP6);
        frame.extend([1, 1, 2, 0, 0, 0, 0, 9]);
        frame
    }

    #[test]
    fn questions_are_understood() {
        assert_eq!(asked(&mut arp()), Some(mapped([192, 0, 2, 100])));
        assert_eq!(asked(&mut solicitation()), Some(VIP6));
        let mut tagged = arp();
        tagged.splice(12..12, [0x81, 0, 0, 5]);
        assert_eq!(asked(&mut tagged), Some(mapped([192, 0, 2, 100])));
    }

    #[test]
    fn packets_say_where_they_go() {
        let client = "192.0.2.9:4000".parse().unwrap();
        let to = |mut frame: Vec<u8>| {
            let start = frame.as_mut_ptr() as usize;
            // SAFETY: as in `asked`.
            destination(&unsafe { Packet::new(start, start + frame.len(), 1) })
        };
        let segment = Frame::syn(client, "192.0.2.100:80".parse().unwrap()).build();
        assert_eq!(to(segment.clone()), Some(mapped([192, 0, 2, 100])));
        assert_eq!(to(segment[..33].to_vec()), None, "an address that is cut off");
        let client = "[2001:db8::9]:4000".parse().unwrap();
        let segment = Frame::syn(client, "[2001:db8::100]:80".parse().unwrap()).build();
        assert_eq!(to(segment.clone()), Some(VIP6));
        assert_eq!(to(segment[..53].to_vec()), None, "an address that is cut off");
        assert_eq!(to(arp()), None);
    }

    #[test]
    fn other_frames_ask_for_nothing() {
        let change = |frame: &dyn Fn() -> Vec<u8>, at: usize, value: u8| {
            let mut frame = frame();
            frame[at] = value;
            asked(&mut frame)
        };
        assert_eq!(change(&arp, 21, 2), None, "an answer");
        assert_eq!(change(&arp, 15, 6), None, "of another link");
        assert_eq!(change(&solicitation, 54, 136), None, "an advertisement");
        assert_eq!(change(&solicitation, 20, 6), None, "a segment");
        let client = "192.0.2.9:4000".parse().unwrap();
        let mut syn = Frame::syn(client, "192.0.2.100:80".parse().unwrap()).build();
        assert_eq!(asked(&mut syn), None);
        for whole in [arp(), solicitation()] {
            // The option of a solicitation may be missing.
            for len in 14..whole.len() - 8 {
                let mut piece = whole[..len].to_vec();
                assert_eq!(asked(&mut piece).is_some(), len >= 78, "{len} bytes");
            }
        }
    }
}
