//! The hot path: a plain packet of a known flow, in one look-up.
//!
//! Plain means: no VLAN tag, no IP options, no fragment, and for TCP a segment with an acknowledgement
//! that is neither the first nor a last of its connection. Whatever is not plain, or needs more than rewriting, is left to
//! [`crate::examine`]; that path gives the same result for plain packets too (a property test holds
//! the two together).

use lb_common::{
    backend::{Backend, FORWARD, LEASED, RESOLVED},
    flow::state,
    hash::VIP_STEERED,
    reason::Reason,
    trace::Stage,
};

use crate::{
    Action,
    conntrack::client_side,
    family::{Address, Family, Ports, Tuple, V4, V6, protocol},
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
    /// The packet is decided about, and rewritten.
    fn leave(&self, outcome: Result<Action, Reason>) -> Self::Out;
    /// It leaves by the tunnel to `backend`.
    fn encapsulate(&self, tunnel: Tunnel, backend: &Backend) -> Self::Out;
}

/// The outcome itself.
struct Outcome;

impl Exit for Outcome {
    type Out = Result<Action, Reason>;

    fn leave(&self, outcome: Result<Action, Reason>) -> Self::Out {
        outcome
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
    let ethernet = packet.header::<EthernetHdr>(0).ok()?;
    match load16(&ethernet.ether_type) {
        parse::IPV4 => forward_family::<V4, T, E>(packet, tables, exit),
        parse::IPV6 => forward_family::<V6, T, E>(packet, tables, exit),
        _ => None,
    }
}

#[inline(always)]
fn forward_family<F: Family, T: Tables + Flows<F>, E: Exit>(
    packet: Packet,
    tables: &T,
    exit: &E,
) -> Option<E::Out> {
    // The shorter of the two.
    let udp = packet.header::<Frame<F::Hdr, UdpHdr>>(0).ok()?;
    if !F::is_plain(&udp.ip) {
        return None;
    }
    let vip_bit = F::addresses(&udp.ip).1.vip_bit();
    let vip = tables.vip(vip_bit);
    if vip == 0 {
        // It may ask for a floating address of ours (`gate`), at that address's multicast group.
        if F::ICMP == protocol::ICMPV6 && F::carried(&udp.ip) == protocol::ICMPV6 {
            return None;
        }
        return Some(exit.leave(Err(Reason::NotOurs)));
    }
    let carried = F::carried(&udp.ip);
    if vip & VIP_STEERED != 0
        && steer::may_be(tables, vip_bit, Ports(load32(&udp.l4.ports)), carried)
    {
        return steer::forward::<F, T, E>(&packet, tables, exit, udp);
    }
    // Two copies of what follows: the protocol is a constant in each.
    match carried {
        protocol::TCP => {
            let tcp = packet.header::<Frame<F::Hdr, TcpHdr>>(0).ok()?;
            if tcp.l4.flags & KIND != tcp_flags::ACK {
                return None;
            }
            let Frame { ethernet, ip, l4: TcpHdr { ports, ack, check, .. } } = tcp;
            let headers = Headers { ethernet, ip, ports, ack: Some(ack), check };
            in_flow::<F, T, E>(packet, tables, exit, headers, protocol::TCP)
        }
        protocol::UDP => {
            let Frame { ethernet, ip, l4: UdpHdr { ports, check, .. } } = udp;
            let headers = Headers { ethernet, ip, ports, ack: None, check };
            in_flow::<F, T, E>(packet, tables, exit, headers, protocol::UDP)
        }
        _ => None,
    }
}

/// Control bits that tell a first or last segment from those between, which all have ACK alone.
const KIND: u8 = tcp_flags::SYN | tcp_flags::FIN | tcp_flags::RST | tcp_flags::ACK;

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
    let backend = tables.backend(entry.backend())?;
    let side = entry.state() & (state::RETURN | state::CUT);
    let forward = side == 0;
    if forward {
        // Whether a lease is over, the general way asks.
        if backend.flags & (FORWARD | RESOLVED | LEASED) != FORWARD | RESOLVED
            || client_side(&packet, ethernet) != entry.client_side()
        {
            return None;
        }
    } else if side != state::RETURN || backend.flags & FORWARD == 0 {
        return None;
    }

    tables.stage(Stage::Known);
    let bytes = packet.len() as u64;
    entry.seen(tables.now_ns(), bytes);
    if let Some(ack) = ack {
        entry.set_ack(load32(ack));
    }
    F::rewrite(ip, entry);
    rewrite::l4(ports, check, carried, entry.ports(), entry.l4_delta());
    let egress = if forward {
        tables.count_forward(entry.backend(), bytes);
        Egress::to_backend(backend)
    } else {
        tables.count_return(entry.backend(), bytes);
        Egress::to_client::<F>(entry)
    };
    Some(exit.leave(Ok(egress.leave(&packet, ethernet))))
}
