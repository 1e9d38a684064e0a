//! A new connection: a service, a backend, a port, and two half-open entries.

use lb_common::{
    backend::{FORWARD, LEASED, RESOLVED},
    event::Event,
    flow::{Syn, state, syn},
    hash,
    limits::{FIRST_NAT_PORT, NAT_PORTS, PORT_TRIES},
    maglev,
    reason::Reason,
    service::{FORWARDABLE, LISTENED, PARK_SHIFT, PROXIED, Service, ServiceKey},
    trace::Stage,
};

use crate::{
    Action, Ours,
    admit::admit,
    conntrack::client_side,
    family::{Address, Family, Ports, ServiceWords, Tuple, protocol},
    packet::{EthernetHdr, Packet, TcpHdr, Truncated, Word},
    parse::{ETHERNET_LEN, Segment},
    rewrite::{self, Egress},
    select::select,
    tables::{Entry, Flows, HalfOpen, Scratch, Signal, Tables},
};

/// After so many ports in use, one whose connection is closed is as good as a free one.
const POLITE_TRIES: u32 = 16;

/// Notes in the scratch what it takes to send a client's SYN again; what is none leaves nothing there.
///
/// A subprogram of its own in the kernel: it has a path for each length that the options may have.
#[inline(always)]
pub fn note<F: Family, T: Tables + Flows<F>>(packet: Packet, tables: &T) {
    let Some(scratch) = tables.scratch() else { return };
    let noted = scratch.half.syn_mut();
    *noted = Syn::ZERO;
    let Ok(Ours::Segment(segment)) = crate::ours::<F, T>(&packet, tables) else { return };
    if segment.protocol == protocol::TCP && segment.starts() {
        // Whatever is cut off is found by who parses the packet next.
        let _ = note_syn::<F, T>(&packet, tables, &segment, noted);
    }
}

#[inline(always)]
fn note_syn<F: Family, T: Tables>(
    packet: &Packet,
    tables: &T,
    segment: &Segment<F::Address>,
    noted: &mut Syn,
) -> Result<(), Truncated> {
    let tcp = packet.header::<TcpHdr>(segment.l4)?;
    let options_len = (usize::from(tcp.data_offset >> 4) * 4).saturating_sub(size_of::<TcpHdr>());
    noted.sent_ns = tables.clock_ns();
    noted.seq = tcp.seq;
    noted.window = tcp.window;
    noted.flags = tcp.flags;
    noted.options_len = options_len as u8;
    noted.ttl = segment.ttl.saturating_sub(1);
    noted.bits = tcp.data_offset << 4;
    if segment.l3 != ETHERNET_LEN {
        noted.bits |= syn::TAGGED;
    }
    noted.tos = F::traffic_class(packet.header::<F::Hdr>(segment.l3)?);
    let (words, _) = noted.options.as_chunks_mut::<4>();
    let mut at = 0;
    for word in words {
        if at < options_len {
            let Word(bytes) = packet.header::<Word>(segment.l4 + size_of::<TcpHdr>() + at)?;
            *word = *bytes;
        }
        at += 4;
    }
    Ok(())
}

/// Gives the packet's tuple a backend, or says why not. The scratch holds what [`note`] left there.
#[inline(always)]
pub fn connect<F: Family, T: Tables + Flows<F>>(
    packet: Packet,
    tables: &T,
    segment: &Segment<F::Address>,
) -> Result<Action, Reason> {
    tables.stage(Stage::Connect);
    let key = ServiceWords::new(&segment.tuple, segment.protocol);
    let service = tables.service(key.key()).ok_or(Reason::NoService)?;
    if !segment.starts() {
        let is_listened = service.flags & LISTENED != 0;
        return Err(if is_listened { Reason::Proxied } else { Reason::NoFlow });
    }
    let hash = segment.tuple.hash();
    let mut chosen = None;
    let outcome = match admit::<F, T>(tables, &service, &segment.tuple, segment.protocol) {
        Ok(()) if is_proxied(tables, &packet, &service, key.key()) => {
            tables.count_connection(service.index, u32::MAX);
            return if segment.protocol == protocol::TCP {
                Ok(Action::Listener)
            } else {
                Err(Reason::Proxied)
            };
        }
        Ok(()) if is_parked(&service, tables.now_ns()) => return Err(Reason::Parked),
        Ok(()) => {
            chosen = select(tables, &service, hash);
            match chosen {
                Some(id) => open::<F, T>(packet, tables, segment, &service, id, hash),
                None => Err(Reason::NoBackend),
            }
        }
        Err(reason) => Err(reason),
    };
    match outcome {
        Ok(action) => {
            tables.count_connection(service.index, chosen.unwrap_or(u32::MAX));
            Ok(action)
        }
        Err(reason) => {
            tables.count_refused(service.index);
            if matches!(
                reason,
                Reason::PortsExhausted
                    | Reason::TableFull
                    | Reason::NoNeighbour
                    | Reason::RateLimited
            ) {
                tables.report(Event {
                    time_ns: tables.now_ns(),
                    reason: reason as u32,
                    service: service.index,
                    backend: chosen.unwrap_or(u32::MAX),
                    reserved: 0,
                });
            }
            Err(reason)
        }
    }
}

/// Whether new connections of the service wait.
#[inline(always)]
fn is_parked(service: &Service, now_ns: u64) -> bool {
    ((now_ns >> PARK_SHIFT) as u32) < service.parked_until
}

/// Whether a new connection is the proxy's. One whose daemon was killed has left its flag behind, but not
/// its sockets.
#[inline(always)]
fn is_proxied<T: Tables>(tables: &T, packet: &Packet, service: &Service, key: &ServiceKey) -> bool {
    service.flags & PROXIED != 0
        && (service.flags & FORWARDABLE == 0 || tables.has_listener(packet, key))
}

/// Opens a connection to a backend and sends it the packet.
#[inline(always)]
fn open<F: Family, T: Tables + Flows<F>>(
    packet: Packet,
    tables: &T,
    segment: &Segment<F::Address>,
    service: &Service,
    id: u32,
    hash: u32,
) -> Result<Action, Reason> {
    let backend = tables.backend(id).ok_or(Reason::Inconsistent)?;
    if backend.flags & FORWARD == 0 {
        return Err(Reason::NoBackend);
    }
    if backend.flags & RESOLVED == 0 {
        return Err(Reason::NoNeighbour);
    }
    if backend.flags & LEASED != 0 && tables.is_lease_over(id) {
        return Err(Reason::NoLease);
    }
    // Before anything is opened that this packet could not use.
    if segment.ttl <= 1 {
        return Err(Reason::TtlExpired);
    }
    let scratch = tables.scratch().ok_or(Reason::Inconsistent)?;
    scratch.tuple = segment.tuple;
    scratch.replies = Tuple {
        src: F::Address::from_mapped(&backend.address),
        dst: segment.tuple.dst,
        ports: Ports::new(backend.port.to_be_bytes(), [0; 2]),
    };
    scratch.side = client_side(&packet, packet.header::<EthernetHdr>(0)?);
    scratch.backend = id;
    scratch.seed = hash;
    scratch.protocol = segment.protocol;
    let tcp = segment.protocol == protocol::TCP;
    let noted = scratch.half.syn_mut();
    noted.service = service.index;
    // With data it is TCP Fast Open (RFC 7413): a backend that refuses may have done something with
    // it all the same.
    if tcp && service.replay_tries > 0 && segment.payload_len == 0 {
        noted.bits |= syn::REPLAYABLE;
    }
    if !tables.find_port() {
        return Err(Reason::PortsExhausted);
    }

    let scratch = tables.scratch().ok_or(Reason::Inconsistent)?;
    scratch.client = F::key(segment.tuple, segment.protocol);
    client_half::<F>(scratch, tables.ticks(), packet.len() as u64);
    if tables.insert_half_open(&scratch.client, &scratch.half).is_err() {
        tables.remove_half_open(&scratch.server);
        return Err(Reason::TableFull);
    }
    tables.open(id);
    if tcp {
        tables.signal(id, Signal::Attempt);
        if service.replay_tries > 0 {
            tables.earn_replays(service.index, u64::from(service.replay_per_mille));
        }
    }
    let egress = Egress::to_backend(backend);
    let action = rewrite::send::<F>(&packet, segment, scratch.half.flow(), egress)?;
    tables.count_forward(id, packet.len() as u64);
    Ok(action)
}

/// Takes a port for the replies: enters the backend's half, as the scratch describes it. False if all that
/// were tried are in use.
#[inline(always)]
pub fn find_port<F: Family, T: Tables + Flows<F>>(tables: &T) -> bool {
    let mut attempt = 0;
    while attempt < PORT_TRIES {
        if tables.take_port(attempt) {
            return true;
        }
        attempt += 1;
    }
    false
}

/// Makes `half` of the scratch the client's half of the connection that the scratch describes.
#[inline(always)]
pub fn client_half<F: Family>(scratch: &mut Scratch<F>, ticks: u64, bytes: u64) {
    let flow = scratch.half.flow_mut();
    *flow = F::Entry::new(scratch.tuple, scratch.replies.reversed(), scratch.backend, 0);
    flow.set_client_side(scratch.side);
    flow.seen(ticks, bytes);
    *scratch.half.syn_mut() = Syn::ZERO;
}

/// Tries to take a port of the floating address for the replies, by entering their tuple in
/// `HALF_OPEN`. Takes its arguments from the scratch (in `half` the SYN alone), and leaves the tuple in `replies` and its key in
/// `server`. False if the port is in use.
///
/// The client's own port comes first: then a client that uses a port anew meets its own old
/// connection at the backend, whose TIME-WAIT its sequence numbers and timestamps are made for
/// (RFC 6191), and never another client's. Then come ports in no order. Of several nodes, each takes the
/// nearest port of its own share instead ([`lb_common::news::Node::share`]).
#[inline(always)]
pub fn take_port<F: Family, T: Tables + Flows<F>>(tables: &T, attempt: u32) -> bool {
    let Some(scratch) = tables.scratch() else { return false };
    let (ticks, node) = (tables.ticks(), tables.node());
    let own = u16::from_be_bytes(scratch.tuple.ports.src());
    let candidate = if attempt == 0 && own >= FIRST_NAT_PORT {
        own
    } else {
        // A linear congruential sequence (Knuth, TAOCP vol. 2, 3.3.4, table 1, line 26), which the
        // clock moves on, so that a retransmitted SYN finds other ports.
        let next = scratch.seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        scratch.seed = next ^ ticks as u32;
        FIRST_NAT_PORT.wrapping_add(maglev::slot(scratch.seed, NAT_PORTS) as u16)
    };
    // With several nodes, no two of them give out the same port.
    let candidate = node.port(candidate);
    // Or the replies would be taken for packets to a service (`steer`).
    let vip_bit = scratch.replies.dst.vip_bit();
    let steered = hash::port_place(vip_bit, candidate.to_be(), scratch.protocol);
    if tables.is_steered(steered) {
        return false;
    }
    scratch.replies.ports = Ports::new(scratch.replies.ports.src(), candidate.to_be_bytes());
    scratch.server = F::key(scratch.replies, scratch.protocol);
    if !is_free::<F, T>(tables, scratch, attempt) {
        return false;
    }
    let flow = scratch.half.flow_mut();
    *flow =
        F::Entry::new(scratch.replies, scratch.tuple.reversed(), scratch.backend, state::RETURN);
    flow.set_client_side(scratch.side);
    flow.seen(ticks, 0);
    tables.insert_half_open(&scratch.server, &scratch.half).is_ok()
}

/// Whether no connection holds the replies' tuple `scratch.server`. A closed one is removed to make
/// room, if it is the same client's, or if free ports are scarce.
#[inline(always)]
fn is_free<F: Family, T: Tables + Flows<F>>(
    tables: &T,
    scratch: &mut Scratch<F>,
    attempt: u32,
) -> bool {
    let Some(entry) = tables.flow(&scratch.server) else { return true };
    if !state::closed(entry.state()) {
        return false;
    }
    let old = entry.rewritten().reversed();
    if old.src != scratch.tuple.src && attempt < POLITE_TRIES {
        return false;
    }
    scratch.client = F::key(old, scratch.protocol);
    // If its other half was evicted, the client may have begun another connection since.
    if let Some(client) = tables.flow(&scratch.client)
        && client.rewritten().reversed() == scratch.replies
    {
        tables.remove_flow(&scratch.client);
    }
    tables.remove_flow(&scratch.server);
    true
}
