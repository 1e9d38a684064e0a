//! Answers SYNs for listeners of this node that are short of room, with SYN cookies (RFC 4987, section 3.6).
//!
//! The proxy's connections are the node's own. In a SYN flood the node's stack would make cookies too, for
//! each SYN after all that it does with a packet. Here the same cookie costs a tenth. The kernel says
//! whether it is time for cookies, as it does for itself (`net.ipv4.tcp_syncookies`: never, while the
//! listener's queue is full, always), makes them, and takes the client's acknowledgement, of which nothing
//! is special to us.
//!
//! A cookie has room for the largest segment alone. What else the SYN offers, window scaling and selective
//! acknowledgements, comes back with the client's timestamps if they are as the kernel writes them into its
//! own answers. It adds a secret number to each client's, which is not known here, unless it is told not to
//! (`net.ipv4.tcp_timestamps = 2`); with that number, connections of a flood's time have to do without.

use lb_common::flow::{MAX_TCP_OPTIONS, Syn};

use crate::{
    Ours,
    family::{Address, Family, Ports, Tuple, protocol},
    packet::{EthernetHdr, Macs, Packet, TcpHdr, Word, load32, store16, store32, tcp_flags},
    parse::Link,
    tables::{Flows, HalfOpen as _, Tables},
};

/// Window of the answer: what Linux offers a new connection.
const WINDOW: u16 = 64_240;

/// In a timestamp: no window scaling.
const NO_SCALE: u8 = 0xf;

/// Largest shift of a window (RFC 7323, section 2.3).
const MOST_SCALE: u8 = 14;

/// In a timestamp, above the shift: selective acknowledgements.
const SELECTIVE: u8 = 1 << 4;

/// Bits of a timestamp that hold what the SYN offers.
const OFFER_BITS: u32 = 6;

/// What a SYN offers, as far as an answer takes it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Largest segment; 0: not said.
    pub mss: u16,
    /// Shift of its windows; 15: they are not scaled.
    pub scale: u8,
    /// Whether it knows selective acknowledgements.
    pub selective: bool,
    /// Whether it has a timestamp.
    pub stamped: bool,
    /// That, network byte order.
    // No `Option`: the compiler keeps what a `None` leaves undefined on the stack, which the kernel refuses.
    pub timestamp: u32,
}

impl Offer {
    /// Reads a SYN's options. Each is found where the systems that there are put it: the first of a word, or
    /// aligned to the end of one. What stands elsewhere is not taken up, which harms nothing.
    #[inline(always)]
    #[must_use]
    pub fn of(options: &[u8; MAX_TCP_OPTIONS]) -> Self {
        let mut offer =
            Self { mss: 0, scale: NO_SCALE, selective: false, stamped: false, timestamp: 0 };
        let (words, _) = options.as_chunks::<4>();
        // Words that belong to the option before.
        let mut inside = 0;
        for word in words {
            if inside > 0 {
                if inside == 2 {
                    (offer.stamped, offer.timestamp) = (true, load32(word));
                }
                inside -= 1;
                continue;
            }
            match *word {
                [2, 4, high, low] => offer.mss = u16::from_be_bytes([high, low]),
                [1, 3, 3, shift] => {
                    offer.scale = if shift > MOST_SCALE { MOST_SCALE } else { shift }
                }
                [1, 1, 4, 2] | [4, 2, 0, 0] => offer.selective = true,
                [4, 2, 8, 10] => {
                    offer.selective = true;
                    inside = 2;
                }
                [1, 1, 8, 10] => inside = 2,
                // The end, or something else: what follows might be its inside.
                _ => break,
            }
        }
        offer
    }

    /// The timestamp that tells its sender's acknowledgement, and so the node's stack, what was offered: the
    /// last one that is not in the future (`cookie_init_timestamp` of Linux).
    #[inline(always)]
    fn stamp(&self, now_ms: u32) -> u32 {
        let bits = self.scale | if self.selective { SELECTIVE } else { 0 };
        let stamp = now_ms >> OFFER_BITS << OFFER_BITS | u32::from(bits);
        if stamp > now_ms { stamp.wrapping_sub(1 << OFFER_BITS) } else { stamp }
    }
}

/// The kernel's cookie for a SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie {
    /// Sequence number of the answer.
    pub seq: u32,
    /// Largest segment that it holds: at most what was offered.
    pub mss: u16,
}

/// What the kernel is told of a SYN: headers, and the one option that goes into the cookie.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Question<F: Family> {
    /// IP header; of it, version and addresses are read.
    pub ip: F::Hdr,
    /// TCP header.
    pub tcp: TcpHdr,
    /// Largest segment, or no option.
    pub option: [u8; 4],
}

impl<F: Family> Question<F> {
    /// Length of the TCP header with its option.
    pub const TCP_LEN: usize = size_of::<TcpHdr>() + size_of::<[u8; 4]>();
}

/// A cookie that is due.
#[derive(Clone, Copy, Debug)]
pub struct Answer<A> {
    tuple: Tuple<A>,
    ack: u32,
    cookie: Cookie,
    offer: Offer,
    /// Shift of our windows.
    scale: u8,
    stamp: u32,
}

/// The answer to a SYN for the proxy, of which [`crate::connect::note`] has taken note; `None` if the node's
/// own stack is to have it.
#[inline(always)]
pub fn due<F: Family, T: Tables + Flows<F>>(
    packet: &Packet,
    tables: &T,
) -> Option<Answer<F::Address>> {
    let Ok(Ours::Segment(segment)) = crate::ours::<F, T>(packet, tables) else { return None };
    let noted: &Syn = tables.scratch()?.half.syn();
    let mut offer = Offer::of(&noted.options);
    let [high, low] = offer.mss.to_be_bytes();
    let question = Question::<F> {
        ip: header::<F>(&segment.tuple),
        tcp: TcpHdr {
            ports: segment.tuple.ports.0.to_ne_bytes(),
            seq: segment.seq.to_ne_bytes(),
            ack: [0; 4],
            data_offset: (Question::<F>::TCP_LEN as u8) << 2,
            flags: tcp_flags::SYN,
            window: [0; 2],
            check: [0; 2],
            urgent: [0; 2],
        },
        option: if offer.mss == 0 { [1; 4] } else { [2, 4, high, low] },
    };
    let cookie = tables.cookie(packet, &segment.tuple, &question)?;
    let scale = tables.own_scale();
    let mut stamp = 0;
    offer.stamped &= scale.is_some();
    if offer.stamped {
        stamp = offer.stamp((tables.clock_ns() / 1_000_000) as u32);
    }
    let ack = u32::from_be(segment.seq).wrapping_add(1).to_be();
    let tuple = segment.tuple.reversed();
    Some(Answer { tuple, ack, cookie, offer, scale: scale.unwrap_or(0), stamp })
}

#[inline(always)]
fn header<F: Family>(tuple: &Tuple<F::Address>) -> F::Hdr {
    let mut header = F::EMPTY;
    F::compose(&mut header, tuple.src, tuple.dst, protocol::TCP, 0);
    header
}

impl<A: Address> Answer<A> {
    /// Writes the answer over the SYN, and returns the length of its frame, which is never longer: each
    /// option of it was one of the SYN's.
    #[inline(always)]
    pub fn write<F: Family<Address = A>>(self, packet: &Packet) -> Option<usize> {
        let ethernet = packet.header::<EthernetHdr>(0).ok()?;
        Macs::load(ethernet.macs()).reversed().store(ethernet.macs_mut());
        // Options of the SYN's IP header are not repeated.
        let l3 = Link::parse(packet).ok()?.l3;
        let l4 = l3 + size_of::<F::Hdr>();
        let start = l4 + size_of::<TcpHdr>();
        let mut sum = self
            .tuple
            .src
            .sum()
            .add(self.tuple.dst.sum())
            .add16(u16::from(protocol::TCP).to_be())
            .add32(self.tuple.ports.0)
            .add32(self.cookie.seq.to_be())
            .add32(self.ack)
            .add16(WINDOW.to_be());
        let mut end = start;
        let mut put = |word: u32| {
            let Word(bytes) = packet.header::<Word>(end).ok()?;
            store32(bytes, word);
            sum = sum.add32(word);
            end += size_of::<Word>();
            Some(())
        };
        if self.offer.mss != 0 {
            let mss = if self.cookie.mss > F::MSS { F::MSS } else { self.cookie.mss };
            let [high, low] = mss.to_be_bytes();
            put(u32::from_ne_bytes([2, 4, high, low]))?;
        }
        if self.offer.stamped {
            let [a, b] = if self.offer.selective { [4, 2] } else { [1, 1] };
            put(u32::from_ne_bytes([a, b, 8, 10]))?;
            put(self.stamp.to_be())?;
            put(self.offer.timestamp)?;
            if self.offer.scale != NO_SCALE {
                put(u32::from_ne_bytes([1, 3, 3, self.scale]))?;
            }
        }
        let tcp_len = end - l4;
        let data_offset = (tcp_len as u8) << 2;
        let flags = tcp_flags::SYN | tcp_flags::ACK;
        let sum =
            sum.add16((tcp_len as u16).to_be()).add16(u16::from_ne_bytes([data_offset, flags]));
        let ip = packet.header::<F::Hdr>(l3).ok()?;
        F::compose(ip, self.tuple.src, self.tuple.dst, protocol::TCP, tcp_len as u16);
        let tcp = packet.header::<TcpHdr>(l4).ok()?;
        let Ports(ports) = self.tuple.ports;
        store32(&mut tcp.ports, ports);
        store32(&mut tcp.seq, self.cookie.seq.to_be());
        store32(&mut tcp.ack, self.ack);
        tcp.data_offset = data_offset;
        tcp.flags = flags;
        store16(&mut tcp.window, WINDOW.to_be());
        tcp.urgent = [0; 2];
        store16(&mut tcp.check, sum.checksum());
        Some(end)
    }
}
