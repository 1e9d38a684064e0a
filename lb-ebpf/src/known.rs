//! The hot path: a plain packet of a known flow, in one look-up.
//!
//! Plain means: no VLAN tag, no IP options, no fragment, and for TCP a segment with an acknowledgement
//! that is neither the first nor a last of its connection. Whatever is not plain, or needs more than rewriting, is left to
//! [`crate::examine`]; that path gives the same result for plain packets too (a property test holds
//! the two together).

use lb_common::{
    backend::{Backend, FORWARD, LEASED, RESOLVED},
    flow::state,
    hash::{self, VIP, VIP_STEERED},
    reason::Reason,
    trace::Stage,
};

use network_types::ip::Ipv4Hdr;

use crate::{
    Action,
    family::{Family, Ports, Tuple, V4, V6, protocol},
    packet::{EthernetHdr, Frame, Packet, TcpHdr, UdpHdr, load16, load32, tcp_flags},
    parse,
    rewrite::{self, Egress},
    steer,
    tables::{Entry, Flows, State, Tables},
    tunnel::Tunnel,
};

/// Where a packet goes that the hot path has decided about.
///
/// Each place that decides calls it, with an outcome that is known there. Values that are returned to one
/// place, and told apart again, would cost each packet some nanoseconds.
pub trait Exit {
    /// What the program returns.
    type Out;
    /// The interface that the packet came in by. It is asked late: in a register it would be in the way.
    fn ingress(&self, packet: &Packet) -> u32;
    /// It is rewritten, and leaves by the interface that it came in by.
    fn transmit(&self) -> Self::Out;
    /// It is rewritten, and leaves by another.
    fn redirect(&self, ifindex: u32) -> Self::Out;
    /// It is not forwarded.
    fn pass(&self, reason: Reason) -> Self::Out;
    /// It leaves by IP in IP to `backend`, whose identifier is `id`; its frame has no tags.
    fn encapsulate_plain(&self, tunnel: Tunnel, id: &u32, backend: &Backend) -> Self::Out;
    /// It leaves by the tunnel to `backend`.
    fn encapsulate(&self, tunnel: Tunnel, backend: &Backend) -> Self::Out;
}

/// The outcome itself.
struct Outcome;

impl Exit for Outcome {
    type Out = Result<Action, Reason>;

    fn ingress(&self, packet: &Packet) -> u32 {
        packet.ingress_ifindex
    }

    fn transmit(&self) -> Self::Out {
        Ok(Action::Transmit)
    }

    fn redirect(&self, ifindex: u32) -> Self::Out {
        Ok(Action::Redirect { ifindex })
    }

    fn pass(&self, reason: Reason) -> Self::Out {
        Err(reason)
    }

    fn encapsulate_plain(&self, tunnel: Tunnel, _: &u32, _: &Backend) -> Self::Out {
        Ok(Action::Encapsulate(tunnel))
    }

    fn encapsulate(&self, tunnel: Tunnel, _: &Backend) -> Self::Out {
        Ok(Action::Encapsulate(tunnel))
    }
}

/// Forwards the packet if it is plain and its flow is known; `None` if a closer look is needed.
pub fn forward<T: State>(packet: Packet, tables: &T) -> Option<Result<Action, Reason>> {
    forward_by(packet, tables, &Outcome)
}

/// [`forward`] to an exit.
#[inline(always)]
pub fn forward_by<T: State, E: Exit>(packet: Packet, tables: &T, exit: &E) -> Option<E::Out> {
    // One check for all headers of TCP over IPv4. What is shorter has no TCP, or comes by no wire.
    let frame = packet.header::<Frame<Ipv4Hdr, TcpHdr>>(0).ok()?;
    let ether_type = load16(&frame.ethernet.ether_type);
    if ether_type == parse::IPV4 {
        return forward_family::<V4, T, E>(packet, tables, exit);
    }
    if tables.apart(ether_type.into()) == parse::IPV6.into() {
        return forward_family::<V6, T, E>(packet, tables, exit);
    }
    None
}

#[inline(always)]
fn forward_family<F: Family, T: Tables + Flows<F>, E: Exit>(
    packet: Packet,
    tables: &T,
    exit: &E,
) -> Option<E::Out> {
    // The longer of the two, at once. Datagrams of UDP that are shorter are few, and looked at closer.
    let frame = packet.header::<Frame<F::Hdr, TcpHdr>>(0).ok()?;
    if !F::is_plain(&frame.ip) {
        return None;
    }
    let vip_bit = F::vip_place(&frame.ip);
    let vip = tables.vip(vip_bit);
    // From here on, what is likeliest stands first, in the source and so in the program: the compiler keeps
    // the order, and a jump that is taken costs as much as some instructions.
    let carried = F::carried(&frame.ip);
    if vip != VIP {
        let vip = tables.apart(vip.into());
        if vip == 0 {
            return if F::ICMP == protocol::ICMPV6 && carried == protocol::ICMPV6 {
                // It may ask for a floating address of ours (`gate`), at that address's multicast group.
                None
            } else {
                Some(exit.pass(Reason::NotOurs))
            };
        }
        if vip == VIP_STEERED.into()
            || steer::may_be(tables, vip_bit, Ports(load32(&frame.l4.ports)), carried)
        {
            return steer::forward::<F, T, E>(&packet, tables, exit, frame);
        }
    }
    of_flow::<F, T, E>(packet, tables, exit, frame, carried)
}

/// A packet that may be of a known flow.
// Two copies of what follows: the protocol is a constant in each.
#[inline(always)]
fn of_flow<F: Family, T: Tables + Flows<F>, E: Exit>(
    packet: Packet,
    tables: &T,
    exit: &E,
    frame: &mut Frame<F::Hdr, TcpHdr>,
    carried: u8,
) -> Option<E::Out> {
    let Frame { ethernet, ip, l4 } = frame;
    if carried == protocol::TCP {
        if l4.flags & KIND != tcp_flags::ACK {
            return unserved::<F, T, E>(tables, exit, ethernet, ip, l4);
        }
        let TcpHdr { ports, ack, check, .. } = l4;
        let headers = Headers { ethernet, ip, ports, ack: Some(ack), check };
        return in_flow::<F, T, E>(packet, tables, exit, headers, protocol::TCP);
    }
    if tables.apart(carried.into()) == protocol::UDP.into() {
        let UdpHdr { ports, check, .. } = l4.as_udp();
        let headers = Headers { ethernet, ip, ports, ack: None, check };
        return in_flow::<F, T, E>(packet, tables, exit, headers, protocol::UDP);
    }
    None
}

/// Control bits that tell a first or last segment from those between, which all have ACK alone.
const KIND: u8 = tcp_flags::SYN | tcp_flags::FIN | tcp_flags::RST | tcp_flags::ACK;

/// A segment that begins or ends a connection: nothing more needs to be looked at if it begins one and nobody
/// serves its port. (Any other may be of a connection whose service was removed, or to a port of NAT.)
#[inline(always)]
pub(crate) fn unserved<F: Family, T: Tables, E: Exit>(
    tables: &T,
    exit: &E,
    ethernet: &EthernetHdr,
    ip: &F::Hdr,
    l4: &TcpHdr,
) -> Option<E::Out> {
    if l4.flags & KIND != tcp_flags::SYN || tables.is_foreign(ethernet.mac_place()) {
        return None;
    }
    let [_, _, port @ ..] = &l4.ports;
    let place = hash::port_place(F::vip_place(ip), load16(port), protocol::TCP);
    if tables.is_served(place) { None } else { Some(exit.pass(Reason::NoService)) }
}

/// What is rewritten, and the acknowledgement number of TCP.
struct Headers<'a, F: Family> {
    ethernet: &'a mut EthernetHdr,
    ip: &'a mut F::Hdr,
    ports: &'a mut [u8; 4],
    ack: Option<&'a [u8; 4]>,
    check: &'a mut [u8; 2],
}

/// Forwards the packet if its flow is known.
// To the compiler, each look-up is a call that leaves it four registers. So what is only needed after
// a look-up is not read before it.
#[inline(always)]
fn in_flow<F: Family, T: Tables + Flows<F>, E: Exit>(
    packet: Packet,
    tables: &T,
    exit: &E,
    headers: Headers<'_, F>,
    carried: u8,
) -> Option<E::Out> {
    let Headers { ethernet, ip, ports, ack, check } = headers;
    let (src, dst) = F::addresses(ip);
    let key = F::key(Tuple { src, dst, ports: Ports(load32(ports)) }, carried);
    let entry = tables.flow(&key)?;
    let headers = Headers { ethernet, ip, ports, ack, check };
    // Two copies again: what is told here is not told anew for each thing that differs.
    let side = entry.state() & (state::RETURN | state::CUT);
    if side == 0 {
        relay::<F, T, E, true>(&packet, tables, exit, headers, carried, entry)
    } else if side == state::RETURN {
        relay::<F, T, E, false>(&packet, tables, exit, headers, carried, entry)
    } else {
        None
    }
}

/// Forwards the packet as its flow's entry says, to the backend or to the client.
#[inline(always)]
fn relay<F: Family, T: Tables + Flows<F>, E: Exit, const FORTH: bool>(
    packet: &Packet,
    tables: &T,
    exit: &E,
    headers: Headers<'_, F>,
    carried: u8,
    entry: &mut F::Entry,
) -> Option<E::Out> {
    let backend = tables.backend_at(tables.afresh(entry).backend_at())?;
    let needed = if FORTH { FORWARD | RESOLVED } else { FORWARD };
    let asked = if FORTH { needed | LEASED } else { needed };
    let flags = backend.flags & asked;
    if flags == needed {
        return hand_on::<F, T, E, FORTH>(packet, tables, exit, headers, carried, entry, backend);
    }
    // A copy of what follows: the call that asks for the lease would cost the other one registers. One that
    // is over, the general way finds.
    if FORTH
        && tables.apart(flags.into()) == (needed | LEASED).into()
        && !tables.is_lease_over(entry.backend())
    {
        return hand_on::<F, T, E, FORTH>(packet, tables, exit, headers, carried, entry, backend);
    }
    None
}

/// [`relay`] to or from a backend that packets may go to.
#[inline(always)]
fn hand_on<F: Family, T: Tables + Flows<F>, E: Exit, const FORTH: bool>(
    packet: &Packet,
    tables: &T,
    exit: &E,
    headers: Headers<'_, F>,
    carried: u8,
    entry: &mut F::Entry,
    backend: &Backend,
) -> Option<E::Out> {
    let Headers { ethernet, ip, ports, ack, check } = headers;
    let ingress = exit.ingress(packet);
    if FORTH && !is_by_link_of::<F>(ingress, ethernet, entry) {
        return None;
    }
    tables.stage(Stage::Known);
    let bytes = packet.len() as u64;
    entry.seen(tables.ticks(), bytes);
    if let Some(ack) = ack {
        entry.set_ack(load32(ack));
    }
    F::rewrite(ip, entry);
    rewrite::l4(ports, check, carried, entry.ports(), entry.l4_delta());
    let (ingress, egress) = if FORTH {
        tables.count_forward_at(tables.afresh(entry).backend_at(), bytes);
        // The same, by the comparison above.
        (entry.client_ifindex(), Egress::to_backend(backend))
    } else {
        tables.count_return_at(tables.afresh(entry).backend_at(), bytes);
        (ingress, Egress::to_client::<F>(entry))
    };
    Some(leave(ingress, ethernet, egress, exit))
}

/// Whether a client's packet has come by the link that its flow's entry has.
// Of our own MAC address the last two bytes do, which are one word with the client's: it changes as a whole,
// and only with the interface.
#[inline(always)]
fn is_by_link_of<F: Family>(ingress: u32, ethernet: &EthernetHdr, entry: &F::Entry) -> bool {
    ingress == entry.client_ifindex() && ethernet.upper_macs() == entry.upper_macs()
}

/// Sends the packet on, which has come in by `ingress`.
#[inline(always)]
pub fn leave<E: Exit>(
    ingress: u32,
    ethernet: &mut EthernetHdr,
    egress: Egress,
    exit: &E,
) -> E::Out {
    match egress.leave_from(ingress, ethernet) {
        Action::Redirect { ifindex } => exit.redirect(ifindex),
        _ => exit.transmit(),
    }
}
