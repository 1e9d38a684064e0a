//! Connections: how a packet moves the state of the one that it belongs to.
//!
//! ```text
//!            SYN, UDP                SYN+ACK, UDP reply             FIN both ways, RST
//!   (none) ───────────▶ HALF_OPEN ────────────────────▶ FLOWS ─────────────────────────▶ closed
//!                          │ RST, eviction                │ idle too long                   │
//!                          ▼                              ▼                                 ▼
//!                        (none)                         (none)          SYN reuses it, or (none)
//! ```
//!
//! A connection counts as open ([`Tables::open`]) from the first packet until it is closed or
//! forgotten. Each step that ends this is taken by exactly one packet: removing the client's half of
//! a half-open pair, or setting the bit that makes the connection closed, both atomic. What the
//! kernel forgets unasked (eviction) user space finds and corrects.

use lb_common::{
    backend::{Backend, FORWARD, RESOLVED},
    flow::state,
    reason::Reason,
};

use crate::{
    Action,
    family::{ClientSide, Family, protocol},
    packet::{EthernetHdr, Mac, Packet, tcp_flags},
    parse::Segment,
    rewrite::{self, Egress},
    tables::{Entry, Flows, Tables},
};

/// Handles a packet whose tuple is in `FLOWS`. `None`: it is not, or no longer.
#[inline(always)]
pub fn in_flow<F: Family, T: Tables + Flows<F>>(
    packet: Packet,
    tables: &T,
    segment: &Segment<F::Address>,
) -> Option<Result<Action, Reason>> {
    let key = F::key(segment.tuple, segment.protocol);
    let entry = tables.flow(&key)?;
    let Some(backend) = tables.backend(entry.backend()) else {
        return Some(Err(Reason::Inconsistent));
    };
    let gone = backend.flags & FORWARD == 0;
    if entry.state() & state::RETURN == 0
        && segment.starts()
        && (gone || state::closed(entry.state()))
    {
        // The client starts anew with a tuple whose connection is over.
        end::<F, T>(tables, segment.protocol, entry, state::RESET);
        let other = F::key(entry.rewritten().reversed(), segment.protocol);
        tables.remove_flow(&other);
        tables.remove_flow(&key);
        return None;
    }
    if gone {
        end::<F, T>(tables, segment.protocol, entry, state::RESET);
        return Some(Err(Reason::BackendGone));
    }
    if segment.has(tcp_flags::RST) {
        end::<F, T>(tables, segment.protocol, entry, state::RESET);
    } else if segment.has(tcp_flags::FIN) {
        let fin =
            if entry.state() & state::RETURN == 0 { state::CLIENT_FIN } else { state::BACKEND_FIN };
        end::<F, T>(tables, segment.protocol, entry, fin);
    }
    if entry.state() & state::RETURN == 0 {
        follow_client::<F, T>(&packet, tables, segment, entry);
    }
    Some(relay::<F, T>(&packet, tables, segment, entry, backend))
}

/// Handles a packet whose tuple is in `HALF_OPEN`. `None`: it is not, or no longer.
#[inline(always)]
pub fn in_half_open<F: Family, T: Tables + Flows<F>>(
    packet: Packet,
    tables: &T,
    segment: &Segment<F::Address>,
) -> Option<Result<Action, Reason>> {
    let key = F::key(segment.tuple, segment.protocol);
    let entry = tables.half_open(&key)?;
    let id = entry.backend();
    let Some(backend) = tables.backend(id) else {
        return Some(Err(Reason::Inconsistent));
    };
    let forward = entry.state() & state::RETURN == 0;
    if backend.flags & FORWARD == 0 {
        forget::<F, T>(tables, segment, entry);
        // A client that tries again gets another backend.
        return if forward && segment.starts() { None } else { Some(Err(Reason::BackendGone)) };
    }
    let answers = !forward
        && (segment.protocol == protocol::UDP
            || segment.flags & (tcp_flags::SYN | tcp_flags::ACK | tcp_flags::RST)
                == tcp_flags::SYN | tcp_flags::ACK);
    if answers {
        if let Err(reason) = promote::<F, T>(tables, segment, entry) {
            return Some(Err(reason));
        }
        tables.count_answered(id);
    }
    let outcome = relay::<F, T>(&packet, tables, segment, entry, backend);
    if answers || segment.has(tcp_flags::RST) {
        let client = if forward { segment.tuple } else { entry.rewritten().reversed() };
        let other = if forward { entry.rewritten().reversed() } else { segment.tuple };
        let was_there = tables.remove_half_open(&F::key(client, segment.protocol));
        tables.remove_half_open(&F::key(other, segment.protocol));
        if was_there && !answers {
            tables.close(id);
        }
    }
    Some(outcome)
}

/// Stamps, counts, rewrites and sends a packet.
#[inline(always)]
fn relay<F: Family, T: Tables>(
    packet: &Packet,
    tables: &T,
    segment: &Segment<F::Address>,
    entry: &mut F::Entry,
    backend: &Backend,
) -> Result<Action, Reason> {
    let forward = entry.state() & state::RETURN == 0;
    let egress = if !forward {
        Egress::to_client::<F>(entry)
    } else if backend.flags & RESOLVED != 0 {
        Egress::to_backend(backend)
    } else {
        return Err(Reason::NoNeighbour);
    };
    let bytes = packet.len() as u64;
    let action = rewrite::send::<F>(packet, segment, entry, egress)?;
    entry.seen(tables.now_ns(), bytes);
    if forward {
        tables.count_forward(entry.backend(), bytes);
    } else {
        tables.count_return(entry.backend(), bytes);
    }
    Ok(action)
}

/// Makes a half-open connection, of which `entry` is the backend's half, an established one.
#[inline(always)]
fn promote<F: Family, T: Tables + Flows<F>>(
    tables: &T,
    segment: &Segment<F::Address>,
    entry: &F::Entry,
) -> Result<(), Reason> {
    let client_tuple = entry.rewritten().reversed();
    let scratch = tables.scratch().ok_or(Reason::Inconsistent)?;
    scratch.client = F::key(client_tuple, segment.protocol);
    scratch.server = F::key(segment.tuple, segment.protocol);
    scratch.entry = F::Entry::new(client_tuple, segment.tuple.reversed(), entry.backend(), 0);
    scratch.entry.set_client_side(entry.client_side());
    scratch.entry.seen(tables.now_ns(), 0);
    // Another CPU may have done the same for a copy of this packet; then both are there already.
    if tables.insert_flow(&scratch.client, &scratch.entry).is_err()
        && tables.flow(&scratch.client).is_none()
    {
        return Err(Reason::TableFull);
    }
    // The backend's half stays as it is.
    scratch.entry = *entry;
    if tables.insert_flow(&scratch.server, &scratch.entry).is_err()
        && tables.flow(&scratch.server).is_none()
    {
        tables.remove_flow(&scratch.client);
        return Err(Reason::TableFull);
    }
    Ok(())
}

/// Notes in a connection, of which `entry` is one half, that a side has ended it.
#[inline(always)]
fn end<F: Family, T: Tables + Flows<F>>(tables: &T, carried: u8, entry: &mut F::Entry, bit: u32) {
    let other = tables.flow(&F::key(entry.rewritten().reversed(), carried));
    if entry.state() & state::RETURN == 0 {
        end_client_half::<F, T>(tables, entry, other, bit);
    } else if let Some(client) = other {
        end_client_half::<F, T>(tables, client, Some(entry), bit);
    }
}

#[inline(always)]
fn end_client_half<F: Family, T: Tables>(
    tables: &T,
    client: &mut F::Entry,
    backend: Option<&mut F::Entry>,
    bit: u32,
) {
    let before = set_bits::<F, T>(tables, client, bit);
    if state::closed(before | bit) && !state::closed(before) {
        tables.close(client.backend());
        // The backend's half is told too, since it is what stands in the way of reusing the port.
        if let Some(backend) = backend {
            set_bits::<F, T>(tables, backend, state::RESET);
        }
    }
}

/// Sets bits in an entry's state and returns what it was, in one atomic step.
///
/// BPF's atomic operations are of 64 bits, so the word taken is the backend's identifier and the
/// state together; no bit is ever set in the identifier.
#[inline(always)]
fn set_bits<F: Family, T: Tables>(tables: &T, entry: &mut F::Entry, bits: u32) -> u32 {
    let before = tables.set_bits(entry.backend_and_state(), join(0, bits));
    let [_, _, _, _, a, b, c, d] = before.to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

/// The two fields as one word, as they lie in memory.
#[inline(always)]
const fn join(backend: u32, state: u32) -> u64 {
    let [a, b, c, d] = backend.to_ne_bytes();
    let [e, f, g, h] = state.to_ne_bytes();
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

/// Removes both halves of a half-open connection.
#[inline(always)]
fn forget<F: Family, T: Tables + Flows<F>>(
    tables: &T,
    segment: &Segment<F::Address>,
    entry: &F::Entry,
) {
    let backend = entry.backend();
    let other = entry.rewritten().reversed();
    let (client, server) = if entry.state() & state::RETURN == 0 {
        (segment.tuple, other)
    } else {
        (other, segment.tuple)
    };
    tables.remove_half_open(&F::key(server, segment.protocol));
    if tables.remove_half_open(&F::key(client, segment.protocol)) {
        tables.close(backend);
    }
}

/// Follows a client (or the router before it) to a new MAC address or interface.
#[inline(always)]
fn follow_client<F: Family, T: Tables + Flows<F>>(
    packet: &Packet,
    tables: &T,
    segment: &Segment<F::Address>,
    entry: &mut F::Entry,
) {
    let Ok(ethernet) = packet.header::<EthernetHdr>(0) else { return };
    let side = client_side(packet, ethernet);
    if side != entry.client_side() {
        entry.set_client_side(side);
        if let Some(other) = tables.flow(&F::key(entry.rewritten().reversed(), segment.protocol)) {
            other.set_client_side(side);
        }
    }
}

/// The link that a packet came by.
#[inline(always)]
pub fn client_side(packet: &Packet, ethernet: &EthernetHdr) -> ClientSide {
    ClientSide {
        mac: Mac::load(&ethernet.src),
        local_mac: Mac::load(&ethernet.dst),
        ifindex: packet.ingress_ifindex,
    }
}
