//! Samples of steered traffic: its packets leave no flow entries, so the kernel program shows one in
//! [`lb_common::trace::SAMPLE_EVERY`] of each backend's.

use lb_common::trace::Sample;

use crate::{
    packet::{Packet, store32, store128},
    tables::Tables,
    trace::Ends,
};

/// The IP header of a packet that is shown begins before this: a frame with two VLAN tags, and the longest
/// tunnel. For the kernel's verifier.
const L3_END: usize = 128;

/// Counts a packet that is steered to a backend, in place of [`Tables::count_forward`], and samples it
/// if it is its turn. The count is made anyhow; what is added is one comparison.
///
/// `l3` is where the client's IP header begins, and `bytes` the length of the frame as it came.
#[inline(always)]
pub fn count<T: Tables>(tables: &T, packet: &Packet, l3: usize, backend: &u32, bytes: u64) {
    if tables.count_steered(backend, bytes) {
        tables.sample(packet, l3, *backend, bytes);
    }
}

/// What is shown of a packet. `None` if it has no ports: an ICMP error is of no flow.
#[inline(always)]
pub fn sample(
    packet: &Packet,
    l3: usize,
    backend: u32,
    bytes: u32,
    time_ns: u64,
) -> Option<Sample> {
    if l3 >= L3_END {
        return None;
    }
    let Ends { src, dst, ports, protocol, .. } = Ends::at(packet, l3);
    if ports == 0 {
        return None;
    }
    let mut sample = Sample { time_ns, backend, bytes, protocol, ..Sample::ZERO };
    store128(&mut sample.src, src);
    store128(&mut sample.dst, dst);
    store32(&mut sample.ports, ports);
    Some(sample)
}
