//! The data path: what becomes of a packet.
//!
//! [`forward`] is the whole of it, and pure: the packet is a region of memory, the state is a
//! [`State`], and nothing here knows whether it runs in the kernel or under `cargo test`. The BPF
//! program around it (`main.rs`, `program/`) adds maps, helpers, and the one place where an outcome
//! becomes an XDP action.
//!
//! # Architecture invariant
//!
//! This library never imports aya, never allocates, and never panics. (`fake` is no part of it: it is
//! what tests run the data path with.)
#![cfg_attr(not(any(test, feature = "fake")), no_std)]

pub mod admit;
pub mod checksum;
pub mod connect;
pub mod conntrack;
pub mod cookie;
pub mod decap;
#[cfg(feature = "fake")]
pub mod fake;
pub mod family;
pub mod gate;
pub mod icmp;
pub mod known;
pub mod packet;
pub mod parse;
pub mod replay;
pub mod reset;
pub mod rewrite;
pub mod sample;
pub mod select;
pub mod steer;
pub mod tables;
pub mod too_big;
pub mod trace;
pub mod tunnel;
pub mod window;

use family::{Address, Datagram, Family, V4, V6};
use lb_common::reason::Reason;
use packet::Packet;
use parse::{Link, Segment};
use tables::{Flows, State, Tables};
use tunnel::Tunnel;

/// Where a forwarded packet leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// By the interface that it came in by.
    Transmit,
    /// By another.
    Redirect {
        /// That interface.
        ifindex: u32,
    },
    /// Inside another packet, once the frame has grown at its front ([`Tunnel::write`]).
    Encapsulate(Tunnel),
    /// Nowhere yet: its connection is to be tried at another backend. [`replay::choose`] comes next, and
    /// if that does not, [`half_open`] and [`error`] without replay.
    Replay,
    /// To the node's own stack, as the SYN of a connection that is the proxy's. [`cookie::due`] comes next:
    /// it may be answered here ([`Reason::SynCookie`]), or else is [`Reason::Proxied`].
    Listener,
}

/// Decides about a packet and rewrites it. `Err` is no failure: it is the reason why the packet is
/// not forwarded, and says what becomes of it ([`Reason::disposition`]).
#[inline(always)]
pub fn forward<T: State>(packet: Packet, tables: &T) -> Result<Action, Reason> {
    // Nearly every packet belongs to a known flow and is plain; for these the offsets are constants.
    if let Some(outcome) = known::forward(packet, tables) {
        return outcome;
    }
    examine(packet, tables, true)
}

/// All that [`known::forward`] leaves: tags, options, first and last packets, errors.
#[inline(always)]
pub fn examine<T: State>(packet: Packet, tables: &T, may_replay: bool) -> Result<Action, Reason> {
    match Link::parse(&packet)?.ether_type {
        parse::IPV4 => examine_family::<V4, T>(packet, tables, may_replay),
        parse::IPV6 => examine_family::<V6, T>(packet, tables, may_replay),
        _ => Err(Reason::NotIp),
    }
}

/// [`examine`] for a frame that carries a packet of the family.
#[inline(always)]
pub fn examine_family<F: Family, T: Tables + Flows<F>>(
    packet: Packet,
    tables: &T,
    may_replay: bool,
) -> Result<Action, Reason> {
    // Steps that share nothing but the packet: each is a subprogram in the kernel, with a stack of its
    // own.
    steer::steer::<F, T>(packet, tables)
        .or_else(|| follow::<F, T>(packet, tables))
        .or_else(|| half_open::<F, T>(packet, tables, may_replay))
        .or_else(|| error::<F, T>(packet, tables, may_replay))
        .unwrap_or_else(|| {
            connect::note::<F, T>(packet, tables);
            begin::<F, T>(packet, tables)
        })
}

/// Handles packets that are not ours, and packets of connections that are established. `None`: neither.
#[inline(always)]
pub fn follow<F: Family, T: Tables + Flows<F>>(
    packet: Packet,
    tables: &T,
) -> Option<Result<Action, Reason>> {
    match ours::<F, T>(&packet, tables) {
        Ok(Ours::Segment(segment)) => conntrack::in_flow::<F, T>(packet, tables, &segment),
        Ok(Ours::Icmp(..)) => None,
        Err(reason) => Some(Err(reason)),
    }
}

/// Handles packets of connections that are half-open. `None`: none of these.
///
/// Without `may_replay` it is never [`Action::Replay`], and what failed goes to the client.
#[inline(always)]
pub fn half_open<F: Family, T: Tables + Flows<F>>(
    packet: Packet,
    tables: &T,
    may_replay: bool,
) -> Option<Result<Action, Reason>> {
    match ours::<F, T>(&packet, tables) {
        Ok(Ours::Segment(segment)) => {
            conntrack::in_half_open::<F, T>(packet, tables, &segment, may_replay)
        }
        Ok(Ours::Icmp(..)) => None,
        Err(reason) => Some(Err(reason)),
    }
}

/// Handles ICMP. `None`: it is none. `may_replay` is as for [`half_open`].
#[inline(always)]
pub fn error<F: Family, T: Tables + Flows<F>>(
    packet: Packet,
    tables: &T,
    may_replay: bool,
) -> Option<Result<Action, Reason>> {
    match ours::<F, T>(&packet, tables) {
        Ok(Ours::Segment(_)) => None,
        Ok(Ours::Icmp(l3, datagram)) => {
            Some(icmp::translate::<F, T>(packet, tables, l3, &datagram, may_replay))
        }
        Err(reason) => Some(Err(reason)),
    }
}

/// Handles a packet that belongs to no connection, of which [`connect::note`] has taken note: begins
/// one, or refuses.
#[inline(always)]
pub fn begin<F: Family, T: Tables + Flows<F>>(
    packet: Packet,
    tables: &T,
) -> Result<Action, Reason> {
    match ours::<F, T>(&packet, tables)? {
        Ours::Segment(segment) => connect::connect::<F, T>(packet, tables, &segment),
        Ours::Icmp(..) => Err(Reason::IcmpUnrelated),
    }
}

/// The TCP or UDP header of a packet to a floating address; `None`: it is none.
#[inline(always)]
pub fn segment<F: Family, T: Tables>(packet: &Packet, tables: &T) -> Option<Segment<F::Address>> {
    match ours::<F, T>(packet, tables) {
        Ok(Ours::Segment(segment)) => Some(segment),
        _ => None,
    }
}

/// A packet to a floating address.
enum Ours<A> {
    Segment(Segment<A>),
    /// With the place of its IP header.
    Icmp(usize, Datagram<A>),
}

#[inline(always)]
fn ours<F: Family, T: Tables>(packet: &Packet, tables: &T) -> Result<Ours<F::Address>, Reason> {
    let l3 = Link::parse(packet)?.l3;
    let datagram = F::datagram(packet, l3)?;
    if tables.vip(datagram.dst.vip_bit()) == 0 {
        return Err(Reason::NotOurs);
    }
    if datagram.fragment {
        return Err(Reason::Fragment);
    }
    if datagram.protocol == F::ICMP {
        return Ok(Ours::Icmp(l3, datagram));
    }
    Segment::parse::<F>(packet, l3, &datagram).map(Ours::Segment)
}
