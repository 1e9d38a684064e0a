//! Packets of steered services (`direct`, `tunnel`): they go to their backend as they are, and its
//! answers go straight to the client.
//!
//! The backend follows from the packet's tuple and the service's table alone: while a slot of the table
//! is undisturbed ([`Slot`]), no flow is looked up and none is written. When backends come and go, user
//! space disturbs only the slots that change hands, and only their flows get entries, until the old ones
//! are over:
//!
//! | slot | packet | goes to | and |
//! |---|---|---|---|
//! | `base` = `backend` | any | `base` | |
//! | other, or [`LOOK_UP`] | TCP SYN | `backend` | its entry says so, or is removed if `base` says the same |
//! | | any other, with an entry | the entry's backend | |
//! | | any other, without | `base` | an entry is made, unless `base` = `backend` |
//!
//! Where that backend is gone, TCP packets are answered with a reset; SYNs and UDP go to `backend`.
//!
//! A connection here is what its packets say: none is counted as open, since its end is not seen, and a
//! client's second SYN is counted as another connection.

use lb_common::{
    backend::{Backend, FORWARD, GUE, RESOLVED, TUNNEL},
    event::Event,
    flow::state,
    hash::{self, VIP_STEERED},
    maglev,
    reason::Reason,
    service::{FILTERED, LOOK_UP, NOBODY, STEERED, Service, Slot},
    trace::Stage,
};

use crate::{
    Action,
    admit::admit,
    family::{Address, Datagram, Family, Ports, ServiceWords, Tuple, protocol},
    icmp,
    known::{Exit, leave, unserved},
    packet::{EthernetHdr, Frame, Packet, TcpHdr, load16, load32, tcp_flags},
    parse::{ETHERNET_LEN, Link, Segment},
    rewrite::Egress,
    sample,
    tables::{Entry as _, Flows, Tables},
    tunnel::Tunnel,
};

/// Whether a packet may be for a steered service. Few others are taken for one.
#[inline(always)]
pub fn may_be<T: Tables>(tables: &T, vip_bit: u32, ports: Ports, carried: u8) -> bool {
    let port = load16(&ports.dst());
    tables.is_steered(hash::port_place(vip_bit, port, carried))
}

/// The hot path: a plain packet that is no SYN, in an undisturbed slot. `None` if a closer look is
/// needed, which [`steer`] takes.
#[inline(always)]
pub fn forward<F: Family, T: Tables, E: Exit>(
    packet: &Packet,
    tables: &T,
    exit: &E,
    frame: &mut Frame<F::Hdr, TcpHdr>,
) -> Option<E::Out> {
    let Frame { ethernet, ip, l4 } = frame;
    // Nothing else would tell: no entry says by which link these packets come. (Or it is for a group.)
    if tables.is_foreign(ethernet.mac_place()) {
        return None;
    }
    let (src, dst) = F::addresses(ip);
    let tuple = Tuple { src, dst, ports: Ports(load32(&l4.ports)) };
    // Two copies, in each of which the protocol is a constant.
    let (slot, hash) = match F::carried(ip) {
        protocol::TCP if l4.flags & tcp_flags::SYN == 0 => {
            at_rest(tables, &tuple, protocol::TCP, STEERED)?
        }
        // Lists are asked about a connection's first packet, which UDP does not mark.
        protocol::UDP => at_rest(tables, &tuple, protocol::UDP, STEERED | FILTERED)?,
        protocol::TCP => return unserved::<F, T, E>(tables, exit, ethernet, ip, l4),
        _ => return None,
    };
    let backend = tables.backend_at(&tables.afresh(slot).backend)?;
    match backend.flags & (FORWARD | RESOLVED | TUNNEL | GUE) {
        PLAIN_TUNNEL => {
            let id = &tables.afresh(slot).backend;
            let tunnel = Tunnel::to::<F>(packet, ETHERNET_LEN, ip, hash, *id, backend).ok()?;
            Some(exit.encapsulate_plain(tunnel, id, backend))
        }
        LINK => {
            let id = &tables.afresh(slot).backend;
            sample::count(tables, packet, ETHERNET_LEN, id, packet.len() as u64);
            let ingress = exit.ingress(packet);
            Some(leave(ingress, ethernet, Egress::to_backend(backend), exit))
        }
        flags if flags & LINK == LINK => {
            let id = slot.backend;
            let tunnel = Tunnel::to::<F>(packet, ETHERNET_LEN, ip, hash, id, backend).ok()?;
            Some(exit.encapsulate(tunnel, backend))
        }
        _ => None,
    }
}

/// The undisturbed slot of a tuple, and its hash, if its service has of these flags [`STEERED`] alone.
#[inline(always)]
fn at_rest<'a, A: Address, T: Tables>(
    tables: &'a T,
    tuple: &Tuple<A>,
    carried: u8,
    mask: u32,
) -> Option<(&'a Slot, u32)> {
    let service = tables.service(ServiceWords::new(tuple, carried).key())?;
    if service.flags & mask != STEERED {
        return None;
    }
    tables.stage(Stage::Steer);
    let hash = tuple.hash();
    let slot = slot(tables, &service, hash)?;
    (slot.base == slot.backend).then_some((slot, hash))
}

/// Flags of a backend that packets can go to, as they are.
const LINK: u16 = FORWARD | RESOLVED;

/// Flags of one that they go to by IP in IP.
const PLAIN_TUNNEL: u16 = LINK | TUNNEL;

/// Handles a packet for a steered service, or an ICMP error about one that it sent. `None`: it is none.
///
/// It is the first to look closer at a packet, so it finds those for other hosts.
///
/// Fragments are none, as for other services: only the first would show its ports.
#[inline(always)]
pub fn steer<F: Family, T: Tables + Flows<F>>(
    packet: Packet,
    tables: &T,
) -> Option<Result<Action, Reason>> {
    let ethernet = packet.header::<EthernetHdr>(0).ok()?;
    if tables.is_foreign(ethernet.mac_place()) && !ethernet.is_for_group() {
        return Some(Err(Reason::OtherHost));
    }
    let l3 = Link::parse(&packet).ok()?.l3;
    let datagram = F::datagram(&packet, l3).ok()?;
    if tables.vip(datagram.dst.vip_bit()) & VIP_STEERED == 0 || datagram.fragment {
        return None;
    }
    if datagram.protocol == F::ICMP {
        return error::<F, T>(&packet, tables, l3, &datagram);
    }
    let segment = Segment::parse::<F>(&packet, l3, &datagram).ok()?;
    let service = service(tables, &segment.tuple, segment.protocol)?;
    tables.stage(Stage::Steer);
    if (begins(&segment) || segment.protocol == protocol::UDP && service.flags & FILTERED != 0)
        && let Err(reason) = admit::<F, T>(tables, &service, &segment.tuple, segment.protocol)
    {
        tables.count_refused(service.index);
        if matches!(reason, Reason::RateLimited) {
            tables.report(Event {
                time_ns: tables.now_ns(),
                reason: reason as u32,
                service: service.index,
                backend: u32::MAX,
                reserved: 0,
            });
        }
        return Some(Err(reason));
    }
    let hash = segment.tuple.hash();
    let chosen = choose::<F, T>(&packet, tables, &segment, &service, hash);
    let outcome = match chosen {
        Ok(id) => send::<F, T>(&packet, tables, l3, hash, id),
        Err(reason) => Err(reason),
    };
    match outcome {
        Ok(_) if begins(&segment) => {
            tables.count_connection(service.index, chosen.unwrap_or(u32::MAX));
        }
        Err(reason @ (Reason::NoBackend | Reason::NoNeighbour)) if segment.starts() => {
            tables.count_refused(service.index);
            if matches!(reason, Reason::NoNeighbour) {
                tables.report(Event {
                    time_ns: tables.now_ns(),
                    reason: reason as u32,
                    service: service.index,
                    backend: chosen.unwrap_or(u32::MAX),
                    reserved: 0,
                });
            }
        }
        _ => {}
    }
    Some(outcome)
}

/// Whether the segment is the first of a connection. A datagram does not tell.
#[inline(always)]
fn begins<A: Copy>(segment: &Segment<A>) -> bool {
    segment.protocol == protocol::TCP && segment.starts()
}

/// The steered service that packets of the tuple are for.
#[inline(always)]
fn service<A: Address, T: Tables>(tables: &T, tuple: &Tuple<A>, carried: u8) -> Option<Service> {
    if !may_be(tables, tuple.dst.vip_bit(), tuple.ports, carried) {
        return None;
    }
    let service = tables.service(ServiceWords::new(tuple, carried).key())?;
    if service.flags & STEERED == 0 { None } else { Some(service) }
}

/// The slot of a hash.
#[inline(always)]
fn slot<'a, T: Tables>(tables: &'a T, service: &Service, hash: u32) -> Option<&'a Slot> {
    if service.table_len == 0 {
        return None;
    }
    tables.slot(service.table_start.wrapping_add(maglev::slot(hash, service.table_len)))
}

/// The backend of a packet. Writes the entry that the slot asks for.
#[inline(always)]
fn choose<F: Family, T: Tables + Flows<F>>(
    packet: &Packet,
    tables: &T,
    segment: &Segment<F::Address>,
    service: &Service,
    hash: u32,
) -> Result<u32, Reason> {
    let slot = *slot(tables, service, hash).ok_or(Reason::NoBackend)?;
    let gone = if segment.starts() { Reason::NoBackend } else { Reason::BackendGone };
    if slot.base == slot.backend {
        return if serves(tables, slot.backend)? { Ok(slot.backend) } else { Err(gone) };
    }
    let base = slot.base & !LOOK_UP;
    let changes = base != slot.backend;
    let scratch = tables.scratch().ok_or(Reason::Inconsistent)?;
    scratch.client = F::key(segment.tuple, segment.protocol);
    let entry = match tables.flow(&scratch.client) {
        Some(entry) if entry.state() & state::STEERED == 0 => {
            // Of a time when the service was not steered.
            tables.remove_flow(&scratch.client);
            None
        }
        entry => entry,
    };
    let held = entry.as_ref().map_or(base, |entry| entry.backend());
    let anew = begins(segment) || (segment.protocol == protocol::UDP && !serves(tables, held)?);
    let chosen = if anew { slot.backend } else { held };
    if !serves(tables, chosen)? {
        return Err(gone);
    }
    let (ticks, bytes) = (tables.ticks(), packet.len() as u64);
    match entry {
        Some(_) if anew && !changes => {
            tables.remove_flow(&scratch.client);
        }
        Some(entry) => {
            if anew {
                entry.set_backend(chosen);
            }
            entry.seen(ticks, bytes);
        }
        None if changes => {
            scratch.entry = F::Entry::new(segment.tuple, segment.tuple, chosen, state::STEERED);
            scratch.entry.seen(ticks, bytes);
            // Without the entry, the packet goes its way all the same; a later one makes it.
            if tables.insert_flow(&scratch.client, &scratch.entry).is_ok() {
                tables.tell_begun();
            }
        }
        None => {}
    }
    Ok(chosen)
}

/// Whether packets are forwarded to the backend. To [`NOBODY`], none are.
#[inline(always)]
fn serves<T: Tables>(tables: &T, id: u32) -> Result<bool, Reason> {
    if id == NOBODY {
        return Ok(false);
    }
    let backend = tables.backend(id).ok_or(Reason::Inconsistent)?;
    Ok(backend.flags & FORWARD != 0)
}

/// Sends a packet to a backend.
#[inline(always)]
fn send<F: Family, T: Tables + Flows<F>>(
    packet: &Packet,
    tables: &T,
    l3: usize,
    hash: u32,
    id: u32,
) -> Result<Action, Reason> {
    let backend: &Backend = tables.backend(id).ok_or(Reason::Inconsistent)?;
    if backend.flags & RESOLVED == 0 {
        return Err(Reason::NoNeighbour);
    }
    if backend.flags & TUNNEL == 0 {
        sample::count(tables, packet, l3, &id, packet.len() as u64);
        return Ok(Egress::to_backend(backend).leave(packet, packet.header::<EthernetHdr>(0)?));
    }
    let ip = packet.header::<F::Hdr>(l3)?;
    let tunnel = Tunnel::to::<F>(packet, l3, ip, hash, id, backend);
    if matches!(tunnel, Err(Reason::TooBig)) {
        // For the answer (`too_big`).
        tables.scratch().ok_or(Reason::Inconsistent)?.backend = id;
    }
    tunnel.map(Action::Encapsulate)
}

/// Handles an ICMP error: about a packet that a backend of a steered service sent, it goes there.
#[inline(always)]
fn error<F: Family, T: Tables + Flows<F>>(
    packet: &Packet,
    tables: &T,
    l3: usize,
    outer: &Datagram<F::Address>,
) -> Option<Result<Action, Reason>> {
    let about = icmp::about::<F>(packet, outer).ok()?;
    let (tuple, carried) = (about.tuple.reversed(), about.inner.protocol);
    let service = service(tables, &tuple, carried)?;
    tables.stage(Stage::Steer);
    let hash = tuple.hash();
    let Some(slot) = slot(tables, &service, hash) else {
        return Some(Err(Reason::IcmpUnrelated));
    };
    let mut id = slot.base & !LOOK_UP;
    if slot.base != slot.backend
        && let Some(entry) = tables.flow(&F::key(tuple, carried))
        && entry.state() & state::STEERED != 0
    {
        id = entry.backend();
    }
    Some(match serves(tables, id) {
        Ok(true) => send::<F, T>(packet, tables, l3, hash, id),
        Ok(false) => Err(Reason::IcmpUnrelated),
        Err(reason) => Err(reason),
    })
}
