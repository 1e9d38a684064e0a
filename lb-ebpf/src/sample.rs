//! Samples of steered traffic: its packets leave no flow entries, so the kernel program shows one in
//! [`lb_common::trace::SAMPLE_EVERY`] of each backend's.

use lb_common::trace::Sample;

use crate::{
    family::{Address, Tuple},
    tables::Tables,
};

/// Counts a packet that is steered to a backend, in place of [`Tables::count_forward`], and samples it
/// if it is its turn. The count is made anyhow; what is added is one comparison.
#[inline(always)]
pub fn count_steered<A: Address, T: Tables>(
    tables: &T,
    tuple: Tuple<A>,
    protocol: u8,
    backend: u32,
    bytes: u64,
) {
    if tables.count_steered(backend, bytes) {
        let [a, b] = tuple.ports.src();
        let [c, d] = tuple.ports.dst();
        tables.sample(Sample {
            time_ns: tables.now_ns(),
            src: tuple.src.mapped(),
            dst: tuple.dst.mapped(),
            ports: [a, b, c, d],
            backend,
            bytes: bytes as u32,
            protocol,
            reserved: [0; 3],
        });
    }
}
