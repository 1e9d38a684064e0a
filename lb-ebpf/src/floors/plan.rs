//! What the trampoline is told. This file is a module of the benchmark in user space too.

/// Length of every packet. What the headers leave of it is payload.
pub(crate) const PACKET_LEN: usize = 80;

/// Ports that tell apart the flows of one address, as a power of two.
pub(crate) const PORT_BITS: u32 = 15;

/// The lowest of these ports.
pub(crate) const FIRST_PORT: u32 = 16_384;

/// Which packet comes next, and how to make it.
///
/// Flow `i` has the source address `address + (i >> PORT_BITS)`, and the port
/// `FIRST_PORT + i % 2^PORT_BITS`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Source address of the first flow in host byte order: IPv4, or the lower half of IPv6.
    pub(crate) address: u64,
    /// Both ports in host byte order, the source's in the upper half, and 0 for the one that tells the
    /// flows apart.
    pub(crate) ports: u32,
    /// 16 if the source port tells the flows apart, 0 if the destination port does.
    pub(crate) port_shift: u32,
    /// Number of flows.
    pub(crate) flows: u32,
    /// Distance from a flow to the next in line. Below `flows` and without a common divisor, so that
    /// each has its turn once in `flows` runs.
    pub(crate) stride: u32,
    /// The next flow.
    pub(crate) position: u32,
    /// 1 if a packet is made only when the last one is through, and 0 if the processor may begin with
    /// it before. No other number.
    pub(crate) one_by_one: u32,
    /// The packet, but for the source address and the ports.
    pub(crate) packet: [u8; PACKET_LEN],
}
