//! Answers a packet that is too long for its tunnel: ICMP "fragmentation needed" (RFC 1191), `ICMPv6`
//! "packet too big" (RFC 4443).
//!
//! Without this answer, path MTU discovery fails, since no router on the way has a narrower link. The
//! packet cannot be sent in fragments from here; one that may be fragmented gets the same answer, which
//! hosts heed all the same.

use lb_common::{backend::TUNNEL, reason::Reason};

use crate::{
    family::{Address, Family, protocol},
    packet::{EthernetHdr, Macs, Packet, Quote as _, Words, store32},
    parse::Link,
    tables::{Flows, Tables},
};

/// Time between two answers of one CPU in the long run, nanoseconds.
pub const INTERVAL_NS: u64 = 1_000_000;

/// Answers that one CPU may send at once.
pub const BURST: u64 = 100;

/// An answer that is due.
#[derive(Clone, Copy, Debug)]
pub struct TooBig<A> {
    src: A,
    dst: A,
    /// Longest packet that gets through.
    mtu: u16,
    /// Where the IP header begins.
    l3: usize,
    /// Bytes by which the frame is to grow at its front.
    pub grows: usize,
    /// Length of the answer's frame.
    pub len: usize,
}

/// The answer to a packet that was not forwarded for [`Reason::TooBig`]; `None` if it must not be
/// answered: it is an ICMP error itself (RFC 1122, section 3.2.2), or too short to be quoted, which
/// it is on no link that may carry IP, or so many have been answered that it is not its turn.
#[inline(always)]
pub fn due<F: Family, T: Tables + Flows<F>>(
    packet: &Packet,
    tables: &T,
) -> Option<TooBig<F::Address>> {
    let l3 = Link::parse(packet).ok()?.l3;
    let datagram = F::datagram(packet, l3).ok()?;
    let is_error = !matches!(datagram.protocol, protocol::TCP | protocol::UDP);
    let quoted = size_of::<F::Quote>();
    if is_error || datagram.end < l3 + quoted || datagram.end > packet.len() {
        return None;
    }
    // The steering has left it there (`steer`).
    let backend = tables.backend(tables.scratch()?.backend)?;
    if backend.flags & TUNNEL == 0 || !tables.may_answer() {
        return None;
    }
    let grows = size_of::<F::Hdr>() + size_of::<IcmpHdr>();
    Some(TooBig {
        src: datagram.dst,
        dst: datagram.src,
        mtu: backend.max_packet,
        l3,
        grows,
        len: l3 + grows + quoted,
    })
}

/// Type, code, checksum; then what each error has of its own.
type IcmpHdr = Words<2>;

impl<A: Address> TooBig<A> {
    /// Brings the Ethernet header and the tags of a frame that has grown at its front by `grows`, and
    /// been cut to `len`, to its new start.
    #[inline(always)]
    pub fn advance(&self, packet: &Packet) -> Result<(), Reason> {
        Ok(Link::advance(packet, self.grows, self.l3)?)
    }

    /// Writes the answer before the packet, after [`Self::advance`].
    #[inline(always)]
    pub fn write<F: Family<Address = A>>(self, packet: &Packet) -> Result<(), Reason> {
        let l3 = self.l3;
        Link::set_type(packet, l3, F::ETHER_TYPE)?;
        let ethernet = packet.header::<EthernetHdr>(0)?;
        Macs::load(ethernet.macs()).reversed().store(ethernet.macs_mut());

        let l4 = l3 + size_of::<F::Hdr>();
        let icmp_len = (size_of::<IcmpHdr>() + size_of::<F::Quote>()) as u16;
        F::compose(packet.header::<F::Hdr>(l3)?, self.src, self.dst, F::ICMP, icmp_len);
        let quote = packet.header::<F::Quote>(l4 + size_of::<IcmpHdr>())?;
        // The MTU is a word of 16 bits after two bytes of zeros, or one of 32.
        let mtu = u32::from(self.mtu).to_be();
        let mut sum = quote.sum().add16(u16::from_ne_bytes(F::TOO_BIG)).add32(mtu);
        if F::ICMP_PSEUDO_HEADER {
            sum = sum
                .add(self.src.sum())
                .add(self.dst.sum())
                .add16(icmp_len.to_be())
                .add16(u16::from(F::ICMP).to_be());
        }
        let [ty, code] = F::TOO_BIG;
        let [high, low] = sum.checksum().to_ne_bytes();
        let Words([first, second]) = packet.header::<IcmpHdr>(l4)?;
        store32(first, u32::from_ne_bytes([ty, code, high, low]));
        store32(second, mtu);
        Ok(())
    }
}

/// Whether another answer may be sent; `paid_ns` is the time up to which answers are paid for
/// (RFC 4443, section 2.4 f; RFC 1812, section 4.3.2.8).
#[inline(always)]
pub fn take_turn(paid_ns: &mut u64, now_ns: u64) -> bool {
    let earliest = now_ns.saturating_sub(BURST * INTERVAL_NS);
    let paid = if *paid_ns > earliest { *paid_ns } else { earliest };
    if paid + INTERVAL_NS > now_ns {
        return false;
    }
    *paid_ns = paid + INTERVAL_NS;
    true
}

#[cfg(test)]
mod tests {
    use super::{BURST, INTERVAL_NS, take_turn};

    const START_NS: u64 = 1_000_000_000_000;

    #[test]
    fn a_burst_is_answered_and_then_one_in_each_interval() {
        let mut paid_ns = 0;
        for _ in 0..BURST {
            assert!(take_turn(&mut paid_ns, START_NS));
        }
        assert!(!take_turn(&mut paid_ns, START_NS));
        assert!(!take_turn(&mut paid_ns, START_NS + INTERVAL_NS - 1));
        assert!(take_turn(&mut paid_ns, START_NS + INTERVAL_NS));
        assert!(!take_turn(&mut paid_ns, START_NS + INTERVAL_NS));
    }

    #[test]
    fn rest_earns_no_more_than_a_burst() {
        let mut paid_ns = 0;
        while take_turn(&mut paid_ns, START_NS) {}
        let later = START_NS + 10 * BURST * INTERVAL_NS;
        let answered = (0..2 * BURST).filter(|_| take_turn(&mut paid_ns, later)).count() as u64;
        assert_eq!(answered, BURST);
    }
}
