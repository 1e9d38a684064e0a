//! Connections: how a packet moves the state of the one that it belongs to.
//!
//! ```text
//!            SYN, UDP             ACK of the SYN+ACK, UDP reply     FIN both ways, RST
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
    backend::{Backend, FORWARD, LEASED, RESOLVED},
    flow::{state, syn},
    reason::Reason,
    trace::Stage,
};

use crate::{
    Action,
    family::{ClientSide, Family, protocol},
    packet::{EthernetHdr, Macs, Packet, tcp_flags},
    parse::Segment,
    replay,
    rewrite::{self, Egress},
    tables::{Entry, Flows, HalfOpen, Signal, Tables},
    window,
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
    if entry.state() & state::STEERED != 0 {
        // Of a time when its service was steered.
        tables.remove_flow(&key);
        return None;
    }
    tables.stage(Stage::Follow);
    let Some(backend) = tables.backend(entry.backend()) else {
        return Some(Err(Reason::Inconsistent));
    };
    let gone = backend.flags & FORWARD == 0 || entry.state() & state::CUT != 0;
    let returns = entry.state() & state::RETURN != 0;
    // The client starts anew with a tuple whose connection is over.
    let anew = !returns && segment.starts() && (gone || state::closed(entry.state()));
    let mut ends = if anew || gone || segment.has(tcp_flags::RST) {
        state::RESET
    } else if segment.has(tcp_flags::FIN) {
        if returns { state::BACKEND_FIN } else { state::CLIENT_FIN }
    } else {
        0
    };
    let moved = if returns { None } else { moved::<F>(&packet, entry) };
    if ends != 0 || moved.is_some() {
        let other_key = F::key(entry.rewritten().reversed(), segment.protocol);
        let mut other = other_half::<F, T>(tables, segment, &other_key);
        let paired = other.is_some();
        let expected = other.as_ref().map_or(0, |other| other.ack());
        if !gone && segment.has(tcp_flags::RST | tcp_flags::FIN) {
            let near = window::is_near(segment.seq, expected);
            if !near && segment.has(tcp_flags::RST) {
                return Some(Err(Reason::OutOfWindow));
            }
            // Such a FIN may be sent again late. Its receiver judges it; here it ends nothing.
            if !near {
                ends = 0;
            }
        }
        if returns && ends == state::RESET && !gone {
            tables.signal(entry.backend(), Signal::Reset);
        }
        if let Some(side) = moved {
            entry.set_client_side(side);
            if let Some(other) = &mut other {
                other.set_client_side(side);
            }
        }
        let closed = match other {
            Some(client) if returns => end::<F, T>(tables, client, Some(entry), ends),
            None if returns => false,
            server => end::<F, T>(tables, entry, server, ends),
        };
        if closed {
            tables.tell_ended(if returns { &key } else { &other_key });
        }
        if anew {
            if paired {
                tables.remove_flow(&other_key);
            }
            tables.remove_flow(&key);
            return None;
        }
    }
    if gone {
        return Some(Err(Reason::BackendGone));
    }
    let outcome = relay::<F, T>(&packet, tables, segment, entry, backend);
    if outcome.is_ok() && segment.ack != 0 {
        entry.set_ack(segment.ack);
    }
    Some(outcome)
}

/// Handles a packet whose tuple is in `HALF_OPEN`. `None`: it is not, or no longer.
///
/// With `may_replay`, a packet that shows that the backend has failed is [`Action::Replay`].
#[inline(always)]
pub fn in_half_open<F: Family, T: Tables + Flows<F>>(
    packet: Packet,
    tables: &T,
    segment: &Segment<F::Address>,
    may_replay: bool,
) -> Option<Result<Action, Reason>> {
    let key = F::key(segment.tuple, segment.protocol);
    let half = tables.half_open(&key)?;
    tables.stage(Stage::HalfOpen);
    let state = half.flow().state();
    let forward = state & state::RETURN == 0;
    if state::given_up(state) {
        replay::late::<F, T>(tables, segment, half);
        return Some(Err(Reason::LateAnswer));
    }
    let id = half.flow().backend();
    let Some(backend) = tables.backend(id) else {
        return Some(Err(Reason::Inconsistent));
    };
    if backend.flags & FORWARD == 0 {
        forget::<F, T>(tables, segment, half);
        // A client that tries again gets another backend.
        return if forward && segment.starts() { None } else { Some(Err(Reason::BackendGone)) };
    }
    if may_replay
        && segment.protocol == protocol::TCP
        && replay::is_due::<F, T>(&packet, tables, segment, half, backend)
    {
        return Some(Ok(Action::Replay));
    }
    let step = match step::<F, T>(tables, segment, half) {
        Ok(step) => step,
        Err(reason) => return Some(Err(reason)),
    };
    let promoted = if step == Step::Establishes {
        match promote::<F, T>(&packet, tables, segment, half.flow()) {
            Ok(promoted) => promoted,
            Err(reason) => return Some(Err(reason)),
        }
    } else {
        false
    };
    let ends = promoted || segment.has(tcp_flags::RST);
    if ends && !promoted && !end_half_open::<F, T>(tables, segment, half) {
        // Another CPU has just given the connection to another backend. The client is told nothing
        // of this one; a client that has given up will say so to the other.
        if !forward {
            return Some(Err(Reason::LateAnswer));
        }
        return Some(relay::<F, T>(&packet, tables, segment, half.flow_mut(), backend));
    }
    let outcome = relay::<F, T>(&packet, tables, segment, half.flow_mut(), backend);
    if step == Step::Answers || (promoted && !forward) {
        tables.count_answered(id);
    }
    if step == Step::Answers {
        let took_ns = tables.clock_ns().wrapping_sub(half.syn().sent_ns);
        let known = half.syn().bits & syn::RESENT == 0;
        tables.signal(id, Signal::Answered(known.then_some(took_ns)));
        // `step` has left the client's key there.
        if let Some(scratch) = tables.scratch() {
            scratch.server = F::key(segment.tuple, segment.protocol);
            scratch.entry.copy(half.flow(), state::RETURN | state::ANSWERED);
            scratch.entry.set_ack(next(segment.seq));
            tables.tell_begun();
        }
    }
    if ends {
        let other = half.flow().rewritten().reversed();
        let (client, server) =
            if forward { (segment.tuple, other) } else { (other, segment.tuple) };
        let Some(scratch) = tables.scratch() else { return Some(Err(Reason::Inconsistent)) };
        scratch.client = F::key(client, segment.protocol);
        scratch.server = F::key(server, segment.protocol);
        let was_there = tables.remove_half_open(&scratch.client);
        tables.remove_half_open(&scratch.server);
        if promoted {
            if was_there {
                tables.tell_begun();
            } else {
                // Meanwhile a reset has ended the connection, and its end is counted.
                tables.remove_flow(&scratch.client);
                tables.remove_flow(&scratch.server);
            }
        } else if was_there {
            tables.close(id);
            if !forward && state & state::ANSWERED != 0 {
                tables.signal(id, Signal::Reset);
            }
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
    } else if backend.flags & RESOLVED == 0 {
        return Err(Reason::NoNeighbour);
    } else if backend.flags & LEASED != 0 && tables.is_lease_over(entry.backend()) {
        return Err(Reason::NoLease);
    } else {
        Egress::to_backend(backend)
    };
    let bytes = packet.len() as u64;
    let action = rewrite::send::<F>(packet, segment, entry, egress)?;
    entry.seen(tables.ticks(), bytes);
    if forward {
        tables.count_forward(entry.backend(), bytes);
    } else {
        tables.count_return(entry.backend(), bytes);
    }
    Ok(action)
}

/// What a packet does to its half-open connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Nothing, or it ends it.
    None,
    /// It is the backend's first answer to a SYN.
    Answers,
    /// The connection is established by it.
    Establishes,
}

/// What a packet does to its half-open connection, of which `half` is its own half.
///
/// A flow of UDP is established by the first reply. A TCP connection is by the client's
/// acknowledgement of the backend's SYN: the backend answers whoever sends SYNs, but only a client that
/// has got the answer knows what to acknowledge. So a flood from spoofed sources stays in this table.
#[inline(always)]
fn step<F: Family, T: Tables + Flows<F>>(
    tables: &T,
    segment: &Segment<F::Address>,
    half: &mut F::HalfOpen,
) -> Result<Step, Reason> {
    let forward = half.flow().state() & state::RETURN == 0;
    if segment.protocol == protocol::UDP {
        return Ok(if forward { Step::None } else { Step::Establishes });
    }
    let kind = segment.flags & (tcp_flags::SYN | tcp_flags::ACK | tcp_flags::RST);
    if forward {
        let answered = half.flow().state() & state::ANSWERED != 0;
        let is_first = kind == tcp_flags::ACK && window::is_first(segment.ack, half.flow().ack());
        return Ok(if answered && is_first { Step::Establishes } else { Step::None });
    }
    if kind != tcp_flags::SYN | tcp_flags::ACK {
        return Ok(Step::None);
    }
    // From here on, nobody gives the connection to another backend.
    let before = set_bits::<F, T>(tables, half.flow_mut(), state::ANSWERED);
    if state::given_up(before) {
        return Err(Reason::LateAnswer);
    }
    let scratch = tables.scratch().ok_or(Reason::Inconsistent)?;
    scratch.client = F::key(half.flow().rewritten().reversed(), segment.protocol);
    if let Some(client) = tables.half_open(&scratch.client)
        && client.flow().rewritten().reversed() == segment.tuple
    {
        // What the client is to acknowledge stands in its half.
        client.flow_mut().set_ack(next(segment.seq));
        set_bits::<F, T>(tables, client.flow_mut(), state::ANSWERED);
    }
    Ok(if before & state::ANSWERED == 0 { Step::Answers } else { Step::None })
}

/// The sequence number after one, both in network byte order.
#[inline(always)]
const fn next(seq: u32) -> u32 {
    u32::from_be(seq).wrapping_add(1).to_be()
}

/// Makes a half-open connection, of which `entry` is the packet's own half, an established one. Says
/// whether this packet did: another CPU may be doing the same for a copy of it.
#[inline(always)]
fn promote<F: Family, T: Tables + Flows<F>>(
    packet: &Packet,
    tables: &T,
    segment: &Segment<F::Address>,
    entry: &F::Entry,
) -> Result<bool, Reason> {
    let forward = entry.state() & state::RETURN == 0;
    let other = entry.rewritten().reversed();
    let (client, server) = if forward { (segment.tuple, other) } else { (other, segment.tuple) };
    let scratch = tables.scratch().ok_or(Reason::Inconsistent)?;
    let (ticks, bytes) = (tables.ticks(), packet.len() as u64);
    scratch.client = F::key(client, segment.protocol);
    scratch.server = F::key(server, segment.protocol);
    let halves = (tables.half_open(&scratch.client), tables.half_open(&scratch.server));
    let (Some(client_half), Some(server_half)) = halves else {
        // Another CPU was first, or one was pushed out of the table: then the connection is over.
        let known = tables.flow(&scratch.client).is_some();
        return if known { Ok(false) } else { Err(Reason::NoFlow) };
    };
    let ends = if segment.has(tcp_flags::FIN) { state::CLIENT_FIN } else { 0 };
    // With what the halves have counted, and this packet.
    scratch.entry.copy(client_half.flow(), ends);
    scratch.entry.set_ack(segment.ack);
    if forward {
        scratch.entry.seen(ticks, bytes);
    }
    let promoted = tables.insert_flow(&scratch.client, &scratch.entry).is_ok();
    if !promoted && tables.flow(&scratch.client).is_none() {
        return Err(Reason::TableFull);
    }
    // It has acknowledged all that came before this packet.
    scratch.entry.copy(server_half.flow(), state::RETURN);
    scratch.entry.set_ack(segment.seq);
    if !forward {
        scratch.entry.seen(ticks, bytes);
    }
    if tables.insert_flow(&scratch.server, &scratch.entry).is_err()
        && tables.flow(&scratch.server).is_none()
    {
        tables.remove_flow(&scratch.client);
        return Err(Reason::TableFull);
    }
    Ok(promoted)
}

/// The other half of the segment's connection, by its key.
///
/// The kernel evicts entries one by one. Where the other half is gone, another connection may have
/// taken its place since; that one leads elsewhere, and is not touched.
#[inline(always)]
fn other_half<'t, F: Family, T: Tables + Flows<F>>(
    tables: &'t T,
    segment: &Segment<F::Address>,
    key: &F::Key,
) -> Option<&'t mut F::Entry> {
    let other = tables.flow(key)?;
    if other.rewritten().reversed() == segment.tuple { Some(other) } else { None }
}

/// Sets state bits of a connection. The packet that closes it also counts that: then the answer is true.
#[inline(always)]
fn end<F: Family, T: Tables>(
    tables: &T,
    client: &mut F::Entry,
    server: Option<&mut F::Entry>,
    bits: u32,
) -> bool {
    let before = set_bits::<F, T>(tables, client, bits);
    let closes = state::closed(before | bits) && !state::closed(before);
    if closes {
        tables.close(client.backend());
        // The backend's half is told too, since it is what stands in the way of reusing the port.
        if let Some(server) = server {
            set_bits::<F, T>(tables, server, state::RESET);
        }
    }
    closes
}

/// Sets bits in an entry's state and returns what it was, in one atomic step.
///
/// BPF's atomic operations are of 64 bits, so the word taken is the backend's identifier and the
/// state together; no bit is ever set in the identifier.
#[inline(always)]
pub fn set_bits<F: Family, T: Tables>(tables: &T, entry: &mut F::Entry, bits: u32) -> u32 {
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

/// Marks a half-open connection, of which `half` is one half, as one that ends. False if it is being
/// given to another backend, and lives on.
#[inline(always)]
fn end_half_open<F: Family, T: Tables + Flows<F>>(
    tables: &T,
    segment: &Segment<F::Address>,
    half: &mut F::HalfOpen,
) -> bool {
    let server = if half.flow().state() & state::RETURN == 0 {
        let Some(scratch) = tables.scratch() else { return true };
        scratch.server = F::key(half.flow().rewritten().reversed(), segment.protocol);
        match tables.half_open(&scratch.server) {
            Some(server) if server.flow().rewritten().reversed() == segment.tuple => server,
            // Without the backend's half, nobody gives it away.
            _ => return true,
        }
    } else {
        half
    };
    !state::given_up(set_bits::<F, T>(tables, server.flow_mut(), state::RESET))
}

/// Removes both halves of a half-open connection.
#[inline(always)]
fn forget<F: Family, T: Tables + Flows<F>>(
    tables: &T,
    segment: &Segment<F::Address>,
    half: &mut F::HalfOpen,
) {
    if !end_half_open::<F, T>(tables, segment, half) {
        return;
    }
    let backend = half.flow().backend();
    let other = half.flow().rewritten().reversed();
    let (client, server) = if half.flow().state() & state::RETURN == 0 {
        (segment.tuple, other)
    } else {
        (other, segment.tuple)
    };
    tables.remove_half_open(&F::key(server, segment.protocol));
    if tables.remove_half_open(&F::key(client, segment.protocol)) {
        tables.close(backend);
    }
}

/// Where the client (or the router before it) now is, if its MAC address or interface is another than
/// before.
#[inline(always)]
fn moved<F: Family>(packet: &Packet, entry: &F::Entry) -> Option<ClientSide> {
    let side = client_side(packet, packet.header::<EthernetHdr>(0).ok()?);
    if side == entry.client_side() { None } else { Some(side) }
}

/// The link that a packet came by.
#[inline(always)]
pub fn client_side(packet: &Packet, ethernet: &EthernetHdr) -> ClientSide {
    ClientSide { macs: Macs::load(ethernet.macs()), ifindex: packet.ingress_ifindex }
}
