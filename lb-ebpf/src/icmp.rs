//! ICMP errors about translated flows.
//!
//! A router or host that could not deliver a packet of ours quotes it. The quoted packet carries the
//! tuple after our rewriting; its reverse is the tuple of the packets that come back on the same
//! side, and so finds the entry that leads to the other side. The error is sent there, with the
//! quoted packet as the receiver once sent it (RFC 5508, section 4). Without this, path MTU discovery
//! fails silently.

use lb_common::{
    backend::{FORWARD, RESOLVED},
    flow::state,
    reason::Reason,
    trace::Stage,
};
use network_types::icmp::Icmpv4Hdr;

use crate::{
    Action,
    checksum::{Sum, adjust, adjust_udp},
    family::{Datagram, Family, Ports, Tuple, protocol},
    packet::{EthernetHdr, Header, Packet, load16, load32, store16, store32},
    replay,
    rewrite::Egress,
    tables::{Entry, Flows, HalfOpen, Signal, Tables},
    window,
};

/// What an ICMP error quotes at least (RFC 792): the ports and four bytes more, which are the sequence
/// number of TCP.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Quoted {
    ports: [u8; 4],
    rest: [u8; 4],
}

/// The quoted TCP header up to its checksum, if the error quotes that much.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct QuotedTcp {
    before: [u8; 16],
    check: [u8; 2],
}

/// The quoted UDP header.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct QuotedUdp {
    before: [u8; 6],
    check: [u8; 2],
}

// SAFETY: repr(C), byte arrays only.
unsafe impl Header for Quoted {}
// SAFETY: as above.
unsafe impl Header for QuotedTcp {}
// SAFETY: as above.
unsafe impl Header for QuotedUdp {}

/// An ICMP error, and what it is about.
pub(crate) struct About<'p, A> {
    icmp: &'p mut Icmpv4Hdr,
    /// Where the quoted packet begins.
    quoted_l3: usize,
    /// Its IP header.
    pub(crate) inner: Datagram<A>,
    quoted: &'p mut Quoted,
    /// Its tuple.
    pub(crate) tuple: Tuple<A>,
}

/// Reads an ICMP error about a packet of a floating address.
#[inline(always)]
pub(crate) fn about<'p, F: Family>(
    packet: &'p Packet,
    outer: &Datagram<F::Address>,
) -> Result<About<'p, F::Address>, Reason> {
    let icmp = packet.header::<Icmpv4Hdr>(outer.l4)?;
    if !F::is_icmp_error(icmp.type_) {
        return Err(Reason::OtherProtocol);
    }
    let quoted_l3 = outer.l4 + size_of::<Icmpv4Hdr>();
    let inner = F::datagram(packet, quoted_l3)?;
    if inner.src != outer.dst || !matches!(inner.protocol, protocol::TCP | protocol::UDP) {
        return Err(Reason::IcmpUnrelated);
    }
    let quoted = packet.header::<Quoted>(inner.l4)?;
    // The quote ends with the packet, whatever the frame holds after it. (After the header was taken:
    // from this the compiler would conclude that it lies within the frame, and drop that check.)
    if inner.l4 + size_of::<Quoted>() > outer.end || outer.end > packet.len() {
        return Err(Reason::Malformed);
    }
    let tuple = Tuple { src: inner.src, dst: inner.dst, ports: Ports(load32(&quoted.ports)) };
    Ok(About { icmp, quoted_l3, inner, quoted, tuple })
}

/// Translates an ICMP error, or says why the packet is none of ours. With `may_replay`, one that says
/// that a SYN could not be delivered is [`Action::Replay`].
#[inline(always)]
pub fn translate<F: Family, T: Tables + Flows<F>>(
    packet: Packet,
    tables: &T,
    l3: usize,
    outer: &Datagram<F::Address>,
    may_replay: bool,
) -> Result<Action, Reason> {
    tables.stage(Stage::Icmp);
    let About { icmp, quoted_l3, inner, quoted, tuple } = about::<F>(&packet, outer)?;
    let key = F::key(tuple.reversed(), inner.protocol);
    let entry = if let Some(entry) = tables.flow(&key) {
        entry
    } else {
        let half = tables.half_open(&key).ok_or(Reason::IcmpUnrelated)?;
        if state::given_up(half.flow().state()) {
            return Err(Reason::LateAnswer);
        }
        // With the SYN's own sequence number, so that nobody makes it up (RFC 5927, section 4.1).
        if may_replay
            && half.flow().state() & state::RETURN != 0
            && inner.protocol == protocol::TCP
            && F::is_unreachable(icmp.type_, icmp.code)
            && quoted.rest == half.syn().seq
            && replay::replayable_after::<F, T>(tables, half, Signal::Unreachable)
        {
            return Ok(Action::Replay);
        }
        half.flow_mut()
    };
    // The entry is of packets that come from where the quoted one went: its acknowledgements are about
    // just such packets (RFC 5927, section 4.1).
    if inner.protocol == protocol::TCP && !window::is_near(load32(&quoted.rest), entry.ack()) {
        return Err(Reason::OutOfWindow);
    }
    let backend = tables.backend(entry.backend()).ok_or(Reason::Inconsistent)?;
    if backend.flags & FORWARD == 0 {
        return Err(Reason::IcmpUnrelated);
    }
    let forward = entry.state() & state::RETURN == 0;
    let egress = if !forward {
        Egress::to_client::<F>(entry)
    } else if backend.flags & RESOLVED != 0 {
        Egress::to_backend(backend)
    } else {
        return Err(Reason::NoNeighbour);
    };
    if outer.ttl <= 1 {
        return Err(Reason::TtlExpired);
    }

    let to = entry.rewritten();
    let from = to.reversed();
    // The quoted packet went the other way.
    let header_delta = F::rewrite_quoted(packet.header::<F::Hdr>(quoted_l3)?, from.src, from.dst);
    let ports_delta = Sum::ZERO.add32(from.ports.0).sub(Sum::ZERO.add32(tuple.ports.0));
    store32(&mut quoted.ports, from.ports.0);
    let l4_delta = from.sum().sub(tuple.sum());
    let check_delta = quoted_check(&packet, &inner, outer.end, l4_delta.fold());
    let mut delta = header_delta.add(ports_delta).add(check_delta);

    let ip = packet.header::<F::Hdr>(l3)?;
    let address_delta = F::rewrite_quoted(ip, to.src, to.dst);
    F::age(ip);
    if F::ICMP_PSEUDO_HEADER {
        delta = delta.add(address_delta);
    }
    let check = adjust(load16(&icmp.check), delta.fold());
    store16(&mut icmp.check, check);

    let bytes = packet.len() as u64;
    if forward {
        tables.count_forward(entry.backend(), bytes);
    } else {
        tables.count_return(entry.backend(), bytes);
    }
    Ok(egress.leave(&packet, packet.header::<EthernetHdr>(0)?))
}

/// Mends the checksum of the quoted packet, if it is quoted, and returns what that adds to the sum.
/// The quote ends at `end`.
#[inline(always)]
fn quoted_check<A>(packet: &Packet, inner: &Datagram<A>, end: usize, delta: u16) -> Sum {
    let l4 = inner.l4;
    let (check, new) = if inner.protocol == protocol::TCP {
        let Ok(tcp) = packet.header::<QuotedTcp>(l4) else { return Sum::ZERO };
        if l4 + size_of::<QuotedTcp>() > end {
            return Sum::ZERO;
        }
        let new = adjust(load16(&tcp.check), delta);
        (&mut tcp.check, new)
    } else {
        let Ok(udp) = packet.header::<QuotedUdp>(l4) else { return Sum::ZERO };
        if load16(&udp.check) == 0 {
            return Sum::ZERO;
        }
        let new = adjust_udp(load16(&udp.check), delta);
        (&mut udp.check, new)
    };
    let old = load16(check);
    store16(check, new);
    Sum::ZERO.add16(new).add16(!old)
}
