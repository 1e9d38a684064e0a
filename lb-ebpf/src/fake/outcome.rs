//! What became of a packet, as the BPF program says it.

use std::vec::Vec;

use lb_common::reason::{Disposition, Reason};

use super::tables::FakeTables;
use crate::{
    Action, examine,
    family::{Family, V4, V6},
    forward,
    packet::Packet,
    parse::{self, Link},
    replay::{self, Step},
    reset,
    tables::Flows,
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

/// Does with a frame what the BPF program does (`main.rs`): decides, gives connections to another
/// backend, counts, answers with a reset. Gives also the decision itself.
pub fn run(
    frame: &[u8],
    ingress_ifindex: u32,
    tables: &FakeTables,
) -> (Outcome, Result<Action, Reason>) {
    let mut frame = frame.to_vec();
    let mut decision = forward(view(&mut frame, ingress_ifindex), tables);
    if decision == Ok(Action::Replay) {
        let replayed = match Link::parse(&view(&mut frame, ingress_ifindex)).map(|l| l.ether_type) {
            Ok(parse::IPV4) => replay::<V4>(&mut frame, ingress_ifindex, tables),
            _ => replay::<V6>(&mut frame, ingress_ifindex, tables),
        };
        decision =
            replayed.unwrap_or_else(|| examine(view(&mut frame, ingress_ifindex), tables, false));
    }
    let packet = view(&mut frame, ingress_ifindex);
    let xdp = match decision {
        Ok(Action::Transmit) => Xdp::Transmit,
        Ok(Action::Redirect { .. }) => Xdp::Redirect,
        Ok(Action::Replay) => panic!("the second look asks for a replay again"),
        Err(reason) => {
            tables.count_reason(reason);
            match reason.disposition() {
                Disposition::Pass => Xdp::Pass,
                Disposition::Drop | Disposition::TooBig => Xdp::Drop,
                Disposition::Reset => match reset::answer(&packet) {
                    Some(len) => {
                        frame.truncate(len);
                        Xdp::Transmit
                    }
                    None => Xdp::Drop,
                },
            }
        }
    };
    (Outcome { xdp, frame }, decision)
}

/// Gives the connection of a frame to the next backend, if that is to be.
fn replay<F: Family>(
    frame: &mut Vec<u8>,
    ingress_ifindex: u32,
    tables: &FakeTables,
) -> Option<Result<Action, Reason>>
where
    FakeTables: Flows<F>,
{
    let len = frame.len();
    frame.resize(len.max(replay::room::<F>()), 0);
    let given = replay::give::<F, _>(view(frame, ingress_ifindex), tables);
    if given == Some(Ok(Step::Compose)) {
        let composed = replay::compose::<F, _>(view(frame, ingress_ifindex), tables);
        return Some(composed.map(|(action, len)| {
            frame.truncate(len);
            action
        }));
    }
    frame.truncate(len);
    match given? {
        Ok(Step::Send(action)) => Some(Ok(action)),
        Ok(Step::Compose) => None,
        Err(reason) => Some(Err(reason)),
    }
}

fn view(frame: &mut [u8], ingress_ifindex: u32) -> Packet {
    let range = frame.as_mut_ptr_range();
    // SAFETY: the buffer is not touched but through the packet while that is in use.
    unsafe { Packet::new(range.start as usize, range.end as usize, ingress_ifindex) }
}
