//! What became of a packet, as the BPF program says it.

use std::{vec, vec::Vec};

use lb_common::{
    reason::{Disposition, Reason},
    trace::Stage,
};

use super::tables::FakeTables;
use crate::{
    Action, cookie, examine,
    family::{Family, V4, V6},
    forward,
    packet::Packet,
    parse::{self, Link},
    replay::{self, Step},
    reset,
    tables::{Flows, Tables as _},
    too_big,
};

/// An XDP action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Xdp {
    /// `XDP_DROP`.
    Drop,
    /// `XDP_PASS`.
    Pass,
    /// `XDP_TX`.
    Transmit,
    /// `XDP_REDIRECT`.
    Redirect,
}

/// The one counter that a packet ends in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Forwarded to this backend.
    Forward(u32),
    /// From this backend, forwarded to its client.
    Return(u32),
    /// Not forwarded.
    Reason(Reason),
}

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The action.
    pub xdp: Xdp,
    /// The packet after it.
    pub frame: Vec<u8>,
}

/// Bytes that a frame can grow by at its front: as many as the kernel says that a driver leaves
/// (`XDP_PACKET_HEADROOM`).
const HEADROOM: usize = 256;

/// Answers a packet that was too long. Gives the place of the answer in the buffer.
fn too_big<F: Family>(
    tables: &FakeTables,
    start: usize,
    end: usize,
    packet: &mut impl FnMut(usize, usize) -> Packet,
) -> Option<(usize, usize)>
where
    FakeTables: Flows<F>,
{
    let due = too_big::due::<F, _>(&packet(start, end), tables)?;
    let start = start - due.grows;
    let end = start + due.len;
    due.advance(&packet(start, end)).ok()?;
    due.write::<F>(&packet(start, end)).ok()?;
    Some((start, end))
}

/// Gives a frame's connection to the next backend, if that is to be: the decision, and where the frame
/// is in the buffer then.
fn replay<F: Family>(
    tables: &FakeTables,
    start: usize,
    end: usize,
    packet: &mut impl FnMut(usize, usize) -> Packet,
) -> Option<(Result<Action, Reason>, usize, usize)>
where
    FakeTables: Flows<F>,
{
    if !replay::choose::<F, _>(packet(start, end), tables) {
        return None;
    }
    match replay::give::<F, _>(packet(start, end), tables)? {
        Ok(Step::Send(action)) => Some((Ok(action), start, end)),
        Ok(Step::Compose { len }) => {
            let growth = len.saturating_sub(end - start);
            let (start, end) = (start - growth, start - growth + len);
            Some((replay::compose::<F, _>(packet(start, end), tables, true), start, end))
        }
        Err(reason) => Some((Err(reason), start, end)),
    }
}

/// Answers a SYN for a listener of the node: the reason why it is not forwarded, and the place of the answer's
/// end in the buffer.
fn answer<F: Family>(
    tables: &FakeTables,
    start: usize,
    end: usize,
    packet: &mut impl FnMut(usize, usize) -> Packet,
) -> (Reason, usize)
where
    FakeTables: Flows<F>,
{
    let Some(due) = cookie::due::<F, _>(&packet(start, end), tables) else {
        return (Reason::Proxied, end);
    };
    let len = due.write::<F>(&packet(start, end)).expect("no longer than the SYN");
    (Reason::SynCookie, start + len)
}

/// Does with a frame what the BPF program does (`main.rs`): decides, gives connections to another
/// backend, counts, answers with a reset or an ICMP error, puts it inside another packet. Gives also the
/// decision itself.
pub fn run(
    frame: &[u8],
    ingress_ifindex: u32,
    tables: &FakeTables,
) -> (Outcome, Result<Action, Reason>) {
    let mut buffer = vec![0x5a; HEADROOM];
    buffer.extend(frame);
    let mut start = HEADROOM;
    // SAFETY: each packet is the last that is used, and the buffer is not touched but through it.
    let mut packet = |start: usize, end: usize| unsafe {
        let buffer = buffer.as_mut_ptr() as usize;
        Packet::new(buffer + start, buffer + end, ingress_ifindex)
    };
    tables.stage(Stage::Filter);
    let mut end = HEADROOM + frame.len();
    let mut decision = forward(packet(start, end), tables);
    if decision == Ok(Action::Replay) {
        let link = Link::parse(&packet(start, end)).map(|link| link.ether_type);
        let replayed = match link {
            Ok(parse::IPV4) => replay::<V4>(tables, start, end, &mut packet),
            _ => replay::<V6>(tables, start, end, &mut packet),
        };
        decision = match replayed {
            Some((decision, first, last)) => {
                (start, end) = (first, last);
                decision
            }
            None => examine(packet(start, end), tables, false),
        };
    }
    if decision == Ok(Action::Listener) {
        let link = Link::parse(&packet(start, end)).map(|link| link.ether_type);
        let (reason, last) = match link {
            Ok(parse::IPV4) => answer::<V4>(tables, start, end, &mut packet),
            _ => answer::<V6>(tables, start, end, &mut packet),
        };
        (decision, end) = (Err(reason), last);
    }
    if let Ok(Action::Encapsulate(tunnel)) = decision {
        start -= tunnel.grows as usize;
        let packet = packet(start, end);
        let backend = tables.backend(tunnel.backend).expect("it was there before");
        decision = tunnel.advance(&packet).and_then(|()| tunnel.write(&packet, tables, backend));
    }
    let xdp = match decision {
        Ok(Action::Redirect { .. }) => Xdp::Redirect,
        Ok(Action::Replay) => panic!("the second look asks for a replay again"),
        Ok(_) => Xdp::Transmit,
        Err(reason) => {
            tables.count_reason(reason);
            match reason.disposition() {
                Disposition::Pass => Xdp::Pass,
                Disposition::Drop => Xdp::Drop,
                Disposition::Cookie | Disposition::HandOn => Xdp::Transmit,
                Disposition::TooBig => {
                    let link = Link::parse(&packet(start, end)).ok();
                    let answered = match link.map(|link| link.ether_type) {
                        Some(parse::IPV4) => too_big::<V4>(tables, start, end, &mut packet),
                        Some(parse::IPV6) => too_big::<V6>(tables, start, end, &mut packet),
                        _ => None,
                    };
                    match answered {
                        Some((first, last)) => {
                            (start, end) = (first, last);
                            Xdp::Transmit
                        }
                        None => Xdp::Drop,
                    }
                }
                Disposition::Reset => match reset::answer(&packet(start, end)) {
                    Some(len) => {
                        end = start + len;
                        Xdp::Transmit
                    }
                    None => Xdp::Drop,
                },
            }
        }
    };
    (Outcome { xdp, frame: buffer[start..end].to_vec() }, decision)
}
