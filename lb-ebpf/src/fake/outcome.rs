//! What became of a packet, as the BPF program says it.

use std::vec::Vec;

use lb_common::reason::{Disposition, Reason};

use super::tables::FakeTables;
use crate::{Action, forward, packet::Packet, reset};

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

/// Does with a frame what the BPF program does (`main.rs`): decides, counts, answers with a reset.
/// Gives also the decision itself.
pub fn run(
    frame: &[u8],
    ingress_ifindex: u32,
    tables: &FakeTables,
) -> (Outcome, Result<Action, Reason>) {
    let mut frame = frame.to_vec();
    // SAFETY: the buffer is not touched but through the packet while that is in use.
    let packet = unsafe {
        let range = frame.as_mut_ptr_range();
        Packet::new(range.start as usize, range.end as usize, ingress_ifindex)
    };
    let decision = forward(packet, tables);
    let xdp = match decision {
        Ok(Action::Transmit) => Xdp::Transmit,
        Ok(Action::Redirect { .. }) => Xdp::Redirect,
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
