//! A backend refuses, or is silent: its connection is tried at another, and the client sees nothing.
//!
//! While no SYN-ACK has gone to the client, its SYN may go to any backend. Three packets show that one
//! has failed: an RST that acknowledges the SYN, an ICMP error that says that the SYN could not be
//! delivered, and the client's SYN again after the time that the backend has to answer. The packet in
//! hand becomes the SYN to the next backend, rebuilt from what was noted of the first; an XDP program
//! cannot send another. (What nobody sends a packet for, the daemon finds: it lets the program have the
//! client's SYN again.)
//!
//! The backend's half of the half-open pair decides who acts. Whoever sets `GIVEN_UP` there first, and
//! before `ANSWERED` and `RESET`, gives the connection to the next backend; nobody else touches the
//! client's half then. The old backend's half stays as a mark for what that backend may still send.
//!
//! ```text
//!   client's half ──▶ backend A      client's half ──────────▶ backend B
//!   backend A's half                 backend A's half, GIVEN_UP
//!                                    backend B's half: tries 1, tried [A]
//! ```

use lb_common::{
    backend::Backend,
    flow::{MAX_TRIED, state, syn},
    hash,
    limits::DEFAULT_PATIENCE_MS,
    reason::Reason,
    trace::Stage,
};

use crate::{
    Action, Ours,
    connect::client_half,
    conntrack::set_bits,
    family::{Address, Family, Ports, ServiceWords, Tuple, protocol},
    icmp,
    packet::{
        EthernetHdr, Packet, TcpHdr, Truncated, Word, load16, load32, store16, store32, tcp_flags,
    },
    parse::{ETHERNET_LEN, Link, Segment},
    rewrite::{self, Egress},
    select,
    tables::{Entry, Flows, HalfOpen, Signal, Tables},
};

/// Whether a packet of a half-open connection shows that its backend has failed, and the connection may
/// be tried at another. Counts what it shows of the backend.
#[inline(always)]
pub fn is_due<F: Family, T: Tables + Flows<F>>(
    packet: &Packet,
    tables: &T,
    segment: &Segment<F::Address>,
    half: &mut F::HalfOpen,
    backend: &Backend,
) -> bool {
    let Ok(tcp) = packet.header::<TcpHdr>(segment.l4) else { return false };
    // Of either half.
    if half.flow().state() & state::ANSWERED != 0 {
        return false;
    }
    if half.flow().state() & state::RETURN != 0 {
        return refuses(tcp, segment.flags, half)
            && replayable_after::<F, T>(tables, half, Signal::Refused);
    }
    if !segment.starts() {
        return false;
    }
    let Some(scratch) = tables.scratch() else { return false };
    scratch.server = F::key(half.flow().rewritten().reversed(), protocol::TCP);
    let Some(server) = tables.half_open(&scratch.server) else { return false };
    if server.flow().rewritten().reversed() != segment.tuple {
        return false;
    }
    let noted = server.syn_mut();
    if noted.seq != tcp.seq {
        // What was noted is another SYN than the one that is on its way now.
        noted.bits &= !syn::REPLAYABLE;
        return false;
    }
    noted.bits |= syn::RESENT;
    if !is_overdue(backend, tables.clock_ns(), noted.sent_ns) {
        return false;
    }
    if noted.bits & syn::OVERDUE == 0 {
        noted.bits |= syn::OVERDUE;
        tables.signal(server.flow().backend(), Signal::Unanswered);
    }
    noted_replayable::<F>(server)
}

/// Whether a segment of the backend refuses the SYN: an RST that acknowledges it, as the client would
/// demand (RFC 9293, section 3.10.7.3).
#[inline(always)]
fn refuses<H: HalfOpen<F>, F: Family<HalfOpen = H>>(tcp: &TcpHdr, flags: u8, half: &H) -> bool {
    let mask = tcp_flags::RST | tcp_flags::ACK;
    let seq = u32::from_be_bytes(half.syn().seq);
    flags & mask == mask && u32::from_be(load32(&tcp.ack)) == seq.wrapping_add(1)
}

/// Whether a backend has had the time that it has to answer.
#[inline(always)]
fn is_overdue(backend: &Backend, now_ns: u64, sent_ns: u64) -> bool {
    let patience_ms =
        if backend.patience_ms == 0 { DEFAULT_PATIENCE_MS } else { backend.patience_ms };
    now_ns.saturating_sub(sent_ns) >= u64::from(patience_ms) * 1_000_000
}

/// Counts a backend's failure, of which `half` is the half, and says whether the connection may be tried
/// at another.
#[inline(always)]
pub fn replayable_after<F: Family, T: Tables>(
    tables: &T,
    half: &F::HalfOpen,
    failure: Signal,
) -> bool {
    tables.signal(half.flow().backend(), failure);
    noted_replayable::<F>(half)
}

#[inline(always)]
fn noted_replayable<F: Family>(server: &F::HalfOpen) -> bool {
    let ended = state::GIVEN_UP | state::ANSWERED | state::RESET;
    server.syn().bits & syn::REPLAYABLE != 0 && server.flow().state() & ended == 0
}

/// A packet of a backend that was given up. Its first answer still tells how long it takes.
#[inline(always)]
pub fn late<F: Family, T: Tables + Flows<F>>(
    tables: &T,
    segment: &Segment<F::Address>,
    half: &mut F::HalfOpen,
) {
    let mask = tcp_flags::SYN | tcp_flags::ACK | tcp_flags::RST;
    if segment.flags & mask == tcp_flags::SYN | tcp_flags::ACK
        && set_bits::<F, T>(tables, half.flow_mut(), state::ANSWERED) & state::ANSWERED == 0
    {
        let took_ns = tables.clock_ns().wrapping_sub(half.syn().sent_ns);
        let known = half.syn().bits & syn::RESENT == 0;
        tables.signal(half.flow().backend(), Signal::Answered(known.then_some(took_ns)));
    }
}

/// What is left to do with the packet in hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It was the client's SYN, and is on its way.
    Send(Action),
    /// [`compose`] makes the SYN of it. First it gets this length: in front, where every driver leaves
    /// room for headers, and not at its end, where there is none if it was short.
    Compose {
        /// Bytes.
        len: usize,
    },
}

/// Type and VLAN tags of a frame: what lies between its MAC addresses and its IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tags {
    /// Where the IP header begins.
    pub l3: usize,
    /// The bytes from the first type on, as many as there are.
    pub bytes: [[u8; 2]; 5],
}

impl Tags {
    /// None.
    pub const NONE: Self = Self { l3: 0, bytes: [[0; 2]; 5] };

    #[inline(always)]
    fn read(packet: &Packet, l3: usize) -> Option<Self> {
        let mut tags = Self { l3, bytes: [[0; 2]; 5] };
        tags.bytes[0] = packet.header::<EthernetHdr>(0).ok()?.ether_type;
        if l3 >= ETHERNET_LEN + 4 {
            let Word([a, b, c, d]) = *packet.header::<Word>(ETHERNET_LEN).ok()?;
            (tags.bytes[1], tags.bytes[2]) = ([a, b], [c, d]);
        }
        if l3 >= ETHERNET_LEN + 8 {
            let Word([a, b, c, d]) = *packet.header::<Word>(ETHERNET_LEN + 4).ok()?;
            (tags.bytes[3], tags.bytes[4]) = ([a, b], [c, d]);
        }
        Some(tags)
    }

    /// Writes them, and says where the IP header begins: one of three constants, since the kernel's
    /// verifier would not know the number again.
    #[inline(always)]
    fn write(&self, packet: &Packet) -> Result<usize, Truncated> {
        packet.header::<EthernetHdr>(0)?.ether_type = self.bytes[0];
        if self.l3 == ETHERNET_LEN {
            return Ok(ETHERNET_LEN);
        }
        let [_, [a, b], [c, d], [e, f], [g, h]] = self.bytes;
        packet.header::<Word>(ETHERNET_LEN)?.0 = [a, b, c, d];
        if self.l3 == ETHERNET_LEN + 4 {
            return Ok(ETHERNET_LEN + 4);
        }
        packet.header::<Word>(ETHERNET_LEN + 4)?.0 = [e, f, g, h];
        Ok(ETHERNET_LEN + 8)
    }
}

/// What a packet that was [`Action::Replay`] says of its connection.
struct InHand<A> {
    /// The tuple of the replies.
    replies: Tuple<A>,
    /// Its segment, if it is the client's SYN.
    syn: Option<Segment<A>>,
}

#[inline(always)]
fn in_hand<F: Family, T: Tables + Flows<F>>(
    packet: &Packet,
    tables: &T,
) -> Option<InHand<F::Address>> {
    Some(match crate::ours::<F, T>(packet, tables).ok()? {
        Ours::Segment(segment) if segment.starts() => {
            let client = tables.half_open(&F::key(segment.tuple, protocol::TCP))?;
            let replies = client.flow().rewritten().reversed();
            InHand { replies, syn: Some(segment) }
        }
        Ours::Segment(segment) => InHand { replies: segment.tuple, syn: None },
        Ours::Icmp(_, outer) => {
            let replies = icmp::about::<F>(packet, &outer).ok()?.tuple.reversed();
            InHand { replies, syn: None }
        }
    })
}

/// Chooses the next backend for the connection of a packet that was [`Action::Replay`], and enters its
/// half. False if there is none: then [`crate::half_open`] or [`crate::error`] has to look at the packet
/// again, without replay. [`give`] comes next.
///
/// Two steps that share nothing but the packet and the scratch: each is a subprogram in the kernel, with
/// a stack of its own.
#[inline(always)]
pub fn choose<F: Family, T: Tables + Flows<F>>(packet: Packet, tables: &T) -> bool {
    let Some(InHand { replies, syn }) = in_hand::<F, T>(&packet, tables) else { return false };
    if syn.is_some_and(|segment| segment.ttl <= 1) {
        return false;
    }
    let Some(server) = tables.half_open(&F::key(replies, protocol::TCP)) else { return false };
    if server.flow().state() & state::RETURN == 0 || !noted_replayable::<F>(server) {
        return false;
    }
    match next::<F, T>(tables, server) {
        Next::Backend => true,
        Next::Later => {
            // A silent backend has as much time again.
            server.syn_mut().sent_ns = tables.clock_ns();
            tables.count_not_replayed(server.syn().service);
            false
        }
        Next::Never => {
            server.syn_mut().bits &= !syn::REPLAYABLE;
            tables.count_not_replayed(server.syn().service);
            false
        }
    }
}

/// Gives the connection of a packet to the backend that [`choose`] has chosen. `None`: somebody else was
/// faster, and it is as if none had been chosen.
#[inline(always)]
pub fn give<F: Family, T: Tables + Flows<F>>(
    packet: Packet,
    tables: &T,
) -> Option<Result<Step, Reason>> {
    tables.stage(Stage::Replay);
    let scratch = tables.scratch()?;
    let given = match in_hand::<F, T>(&packet, tables) {
        Some(InHand { replies, syn }) => hand_over::<F, T>(packet, tables, replies, syn.as_ref()),
        None => None,
    };
    if given.is_none() {
        tables.remove_half_open(&scratch.server);
    }
    given
}

/// Where a connection may go.
enum Next {
    /// To the backend in the scratch.
    Backend,
    /// The budget is used up.
    Later,
    /// There is no other backend, or too many were tried.
    Never,
}

/// Chooses the next backend, takes a port there, and enters its half. Leaves all that describes the
/// connection in the scratch.
#[inline(always)]
fn next<F: Family, T: Tables + Flows<F>>(tables: &T, server: &F::HalfOpen) -> Next {
    let client = server.flow().rewritten().reversed();
    let Some(service) = tables.service(ServiceWords::new(&client, protocol::TCP).key()) else {
        return Next::Never;
    };
    let noted = *server.syn();
    let tries = usize::from(noted.tries);
    if u32::from(noted.tries) >= service.replay_tries || tries >= MAX_TRIED {
        return Next::Never;
    }
    let Some(scratch) = tables.scratch() else { return Next::Never };
    scratch.tuple = client;
    scratch.side = server.flow().client_side();
    scratch.protocol = protocol::TCP;
    scratch.seed = hash::mix(u64::from(client.hash()), u64::from(noted.tries));
    scratch.service = service;
    let syn = scratch.half.syn_mut();
    *syn = noted;
    // The last one first: at places that are constants, since an older verifier (Linux 6.1) forgets that
    // a number of tries is less than the room.
    let [first, second, third, _] = noted.tried;
    syn.tried = [server.flow().backend(), first, second, third];
    syn.tries = noted.tries + 1;
    syn.bits &= !(syn::RESENT | syn::OVERDUE);
    syn.sent_ns = tables.clock_ns();
    let Some(id) = select::another::<F, T>(tables) else { return Next::Never };
    let Some(backend) = tables.backend(id) else { return Next::Never };
    if !tables.spend_replay(service.index) {
        return Next::Later;
    }
    let Some(scratch) = tables.scratch() else { return Next::Never };
    scratch.backend = id;
    scratch.replies = Tuple {
        src: F::Address::from_mapped(&backend.address),
        dst: client.dst,
        ports: Ports::new(backend.port.to_be_bytes(), [0; 2]),
    };
    if tables.find_port() { Next::Backend } else { Next::Later }
}

/// Takes the connection from the backend that sends `replies`, and gives it to the one in the scratch.
#[inline(always)]
fn hand_over<F: Family, T: Tables + Flows<F>>(
    packet: Packet,
    tables: &T,
    replies: Tuple<F::Address>,
    syn_in_hand: Option<&Segment<F::Address>>,
) -> Option<Result<Step, Reason>> {
    let scratch = tables.scratch()?;
    let id = scratch.backend;
    let backend = tables.backend(id)?;
    let server = tables.half_open(&F::key(replies, protocol::TCP))?;
    let old = server.flow().backend();
    let before = set_bits::<F, T>(tables, server.flow_mut(), state::GIVEN_UP);
    if before & (state::GIVEN_UP | state::ANSWERED | state::RESET) != 0 {
        // Another CPU was faster.
        if before & state::GIVEN_UP == 0 {
            set_bits::<F, T>(tables, server.flow_mut(), state::KEPT);
        }
        return None;
    }
    let service = scratch.service.index;
    let options_len = usize::from(scratch.half.syn().options_len);
    scratch.client = F::key(scratch.tuple, protocol::TCP);
    client_half::<F>(scratch, tables.ticks(), packet.len() as u64);
    if tables.replace_half_open(&scratch.client, &scratch.half).is_err() {
        // The kernel has evicted the client's half.
        tables.remove_half_open(&scratch.server);
        return Some(Err(Reason::TableFull));
    }
    tables.close(old);
    tables.open(id);
    tables.count_replayed(service, id);
    tables.signal(id, Signal::Attempt);
    let Some(segment) = syn_in_hand else {
        let link = Link::parse(&packet).ok()?;
        scratch.tags = Tags::read(&packet, link.l3)?;
        let len = link.l3 + size_of::<F::Hdr>() + size_of::<TcpHdr>() + options_len;
        return Some(Ok(Step::Compose { len }));
    };
    let egress = Egress::to_backend(backend);
    let sent = rewrite::send::<F>(&packet, segment, scratch.half.flow(), egress);
    Some(sent.map(|action| {
        tables.count_forward(id, packet.len() as u64);
        Step::Send(action)
    }))
}

/// Writes the SYN that [`give`] left in the tables over the packet in hand, which has the length that it
/// asked for. A packet that could not be given it is left as it is, and counted as cut off; the daemon
/// sends the SYN then.
///
/// A step of its own, with a [`Packet`] of its own, for the reason that [`crate::reset::Reset`] has.
#[inline(always)]
pub fn compose<F: Family, T: Tables + Flows<F>>(
    packet: Packet,
    tables: &T,
    has_len: bool,
) -> Result<Action, Reason> {
    let scratch = tables.scratch().ok_or(Reason::Inconsistent)?;
    let backend = tables.backend(scratch.backend).ok_or(Reason::Inconsistent)?;
    let half = tables.half_open(&scratch.server).ok_or(Reason::TableFull)?;
    if !has_len {
        half.syn_mut().sent_ns = 0;
        return Err(Reason::Truncated);
    }
    let syn = half.syn();
    let tuple = scratch.replies.reversed();
    let options_len = usize::from(syn.options_len);
    let tcp_len = (size_of::<TcpHdr>() + options_len) as u16;
    let l3 = scratch.tags.write(&packet)?;
    let ip = packet.header::<F::Hdr>(l3)?;
    F::compose(ip, tuple.src, tuple.dst, protocol::TCP, tcp_len);
    F::dress(ip, syn.tos, syn.ttl);
    let l4 = l3 + size_of::<F::Hdr>();
    let tcp = packet.header::<TcpHdr>(l4)?;
    let data_offset = ((tcp_len / 4) << 4) as u8 | syn.bits >> 4;
    store32(&mut tcp.ports, tuple.ports.0);
    store32(&mut tcp.seq, load32(&syn.seq));
    store32(&mut tcp.ack, 0);
    tcp.data_offset = data_offset;
    tcp.flags = syn.flags;
    store16(&mut tcp.window, load16(&syn.window));
    tcp.urgent = [0; 2];
    let mut sum = tuple
        .sum()
        .add16(u16::from(protocol::TCP).to_be())
        .add16(tcp_len.to_be())
        .add32(load32(&syn.seq))
        .add16(u16::from_ne_bytes([data_offset, syn.flags]))
        .add16(load16(&syn.window));
    let (words, _) = syn.options.as_chunks::<4>();
    let mut at = 0;
    for word in words {
        if at < options_len {
            let Word(bytes) = packet.header::<Word>(l4 + size_of::<TcpHdr>() + at)?;
            store32(bytes, load32(word));
            sum = sum.add32(load32(word));
        }
        at += 4;
    }
    store16(&mut tcp.check, sum.checksum());
    let action = Egress::to_backend(backend).leave(&packet, packet.header::<EthernetHdr>(0)?);
    tables.count_forward(scratch.backend, packet.len() as u64);
    Ok(action)
}
