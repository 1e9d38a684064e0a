//! A new connection: a service, a backend, a port, and two half-open entries.

use lb_common::{
    backend::{FORWARD, RESOLVED},
    event::Event,
    flow::state,
    hash,
    limits::{FIRST_NAT_PORT, NAT_PORTS, PORT_TRIES},
    maglev,
    reason::Reason,
};

use crate::{
    Action,
    admit::admit,
    conntrack::client_side,
    family::{Address, Family, Ports, ServiceWords, Tuple},
    packet::{EthernetHdr, Packet},
    parse::Segment,
    rewrite::{self, Egress},
    select::select,
    tables::{Entry, Flows, Scratch, Tables},
};

/// After so many ports in use, one whose connection is closed is as good as a free one.
const POLITE_TRIES: u32 = 16;

/// Gives the packet's tuple a backend, or says why not.
#[inline(always)]
pub fn connect<F: Family, T: Tables + Flows<F>>(
    packet: Packet,
    tables: &T,
    segment: &Segment<F::Address>,
) -> Result<Action, Reason> {
    let key = ServiceWords::new(&segment.tuple, segment.protocol);
    let service = tables.service(key.key()).ok_or(Reason::NoService)?;
    if !segment.starts() {
        return Err(Reason::NoFlow);
    }
    let hash = segment.tuple.hash();
    let mut chosen = None;
    let outcome = match admit::<F, T>(tables, &service, &segment.tuple, segment.protocol) {
        Ok(()) => {
            chosen = select(tables, &service, hash);
            match chosen {
                Some(id) => open::<F, T>(packet, tables, segment, id, hash),
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

/// Opens a connection to a backend and sends it the packet.
#[inline(always)]
fn open<F: Family, T: Tables + Flows<F>>(
    packet: Packet,
    tables: &T,
    segment: &Segment<F::Address>,
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
    let mut attempt = 0;
    while !tables.take_port(attempt) {
        attempt += 1;
        if attempt == PORT_TRIES {
            return Err(Reason::PortsExhausted);
        }
    }

    let scratch = tables.scratch().ok_or(Reason::Inconsistent)?;
    scratch.client = F::key(segment.tuple, segment.protocol);
    scratch.entry = F::Entry::new(segment.tuple, scratch.replies.reversed(), id, 0);
    scratch.entry.set_client_side(scratch.side);
    scratch.entry.seen(tables.now_ns(), packet.len() as u64);
    if tables.insert_half_open(&scratch.client, &scratch.entry).is_err() {
        tables.remove_half_open(&scratch.server);
        return Err(Reason::TableFull);
    }
    tables.open(id);
    let action = rewrite::send::<F>(&packet, segment, &scratch.entry, Egress::to_backend(backend))?;
    tables.count_forward(id, packet.len() as u64);
    Ok(action)
}

/// Tries to take a port of the floating address for the replies, by entering their tuple in
/// `HALF_OPEN`. Takes its arguments from the scratch, and leaves the tuple in `replies` and its key in
/// `server`. False if the port is in use.
///
/// The client's own port comes first: then a client that uses a port anew meets its own old
/// connection at the backend, whose TIME-WAIT its sequence numbers and timestamps are made for
/// (RFC 6191), and never another client's. Then come ports in no order.
#[inline(always)]
pub fn take_port<F: Family, T: Tables + Flows<F>>(tables: &T, attempt: u32) -> bool {
    let Some(scratch) = tables.scratch() else { return false };
    let now_ns = tables.now_ns();
    let own = u16::from_be_bytes(scratch.tuple.ports.src());
    let candidate = if attempt == 0 && own >= FIRST_NAT_PORT {
        own
    } else {
        // A linear congruential sequence (Knuth, TAOCP vol. 2, 3.3.4, table 1, line 26), which the
        // clock moves on, so that a retransmitted SYN finds other ports.
        let next = scratch.seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        scratch.seed = next ^ (now_ns >> 20) as u32;
        FIRST_NAT_PORT.wrapping_add(maglev::slot(scratch.seed, NAT_PORTS) as u16)
    };
    // Or the replies would be taken for packets to a service (`steer`).
    let vip_bit = scratch.replies.dst.vip_bit();
    let steered = hash::steered_bit(vip_bit, candidate.to_be(), scratch.protocol);
    if tables.is_steered(steered) {
        return false;
    }
    scratch.replies.ports = Ports::new(scratch.replies.ports.src(), candidate.to_be_bytes());
    scratch.server = F::key(scratch.replies, scratch.protocol);
    if !is_free::<F, T>(tables, scratch, attempt) {
        return false;
    }
    scratch.entry =
        F::Entry::new(scratch.replies, scratch.tuple.reversed(), scratch.backend, state::RETURN);
    scratch.entry.set_client_side(scratch.side);
    scratch.entry.seen(now_ns, 0);
    tables.insert_half_open(&scratch.server, &scratch.entry).is_ok()
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
