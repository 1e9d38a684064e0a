//! Names of the maps, the program and the globals, as `bpftool` shows them. Said once, here.

/// The XDP program, and its function's name in the object.
pub const PROGRAM: &str = "ballast";
/// Its second variant, which is in force while a trace runs.
pub const TRACE_PROGRAM: &str = "ballast_trace";

/// The program that user space runs to read the clocks, in the same object.
pub const CLOCK_PROGRAM: &str = "ballast_clock";
/// The global that is 1 in the second variant.
pub const TRACE: &str = "TRACE";
/// The global that says how the node's own stack scales its windows: one more than the shift, or 0 if answers
/// with SYN cookies may not carry timestamps.
pub const OWN_SCALE: &str = "OWN_SCALE";

/// Filter of floating addresses: a byte for each hash of an address. It is data of the program, see
/// [`is_data`].
pub const VIPS: &str = "VIPS";
/// `ServiceKey` to `Service`.
pub const SERVICES: &str = "SERVICES";
/// Backend identifier to `Backend`.
pub const BACKENDS: &str = "BACKENDS";
/// The selection tables of all services, one after another: index to `Slot`.
pub const MAGLEV: &str = "MAGLEV";
/// Flows of IPv4, by the packet's own tuple.
pub const FLOWS: &str = "FLOWS";
/// Flows of IPv6.
pub const FLOWS6: &str = "FLOWS6";
/// IPv4 connections that the backend has not answered yet.
pub const HALF_OPEN: &str = "HALF_OPEN";
/// IPv6 connections that the backend has not answered yet.
pub const HALF_OPEN6: &str = "HALF_OPEN6";
/// Count of packets by `Reason`, per CPU.
pub const REASONS: &str = "REASONS";
/// Counters by service, per CPU.
pub const SERVICE_STATS: &str = "SERVICE_STATS";
/// Counters by backend, per CPU.
pub const BACKEND_STATS: &str = "BACKEND_STATS";
/// What connections show of each backend's fitness, per CPU.
pub const BACKEND_SIGNALS: &str = "BACKEND_SIGNALS";
/// Filter of services, and of those that are steered: a byte for each hash of address, port and protocol. It is data
/// of the program as well.
pub const PORTS: &str = "PORTS";
/// Filter of frames for other hosts: a byte for each two that a MAC address can end with. It is data of the
/// program too.
pub const MACS: &str = "MACS";
/// Who may begin connections: an LPM trie of `Source` behind a prefix length.
pub const SOURCES: &str = "SOURCES";
/// Token buckets: `RateKey` to `Bucket`.
pub const RATES: &str = "RATES";
/// Open connections by backend; mapped into the daemon's memory, so that both sides add atomically.
pub const ACTIVE: &str = "ACTIVE";
/// Round-robin position by service.
pub const CURSORS: &str = "CURSORS";
/// By service index, on each CPU: what is spent of its budget of replays. It is not pinned.
pub const SPENT: &str = "SPENT";
/// Floating address to `Lease`, on nodes that share it.
pub const LEASES: &str = "LEASES";
/// Ring buffer of `Event`.
pub const EVENTS: &str = "EVENTS";
/// Ring buffer of `Sample`.
pub const SAMPLES: &str = "SAMPLES";
/// Ring buffer of `TraceRecord`; not pinned.
pub const TRACES: &str = "TRACES";
/// What each trace wants; not pinned.
pub const TRACE_FILTERS: &str = "TRACE_FILTERS";
/// What became of each trace's packets, per CPU; not pinned.
pub const TRACE_COUNTS: &str = "TRACE_COUNTS";
/// What the program has to know of this node: one `Node`.
pub const NODE: &str = "NODE";
/// Nodes that had the addresses before: two `Elder`s.
pub const ELDER: &str = "ELDER";
/// Ring buffer of connections that have begun and ended, see `news`.
pub const NEWS: &str = "NEWS";
/// `Meta` of the pinned maps.
pub const META: &str = "META";

/// Every map that is pinned, in no particular order.
pub const PINNED: [&str; 25] = [
    VIPS,
    PORTS,
    MACS,
    SERVICES,
    BACKENDS,
    MAGLEV,
    FLOWS,
    FLOWS6,
    HALF_OPEN,
    HALF_OPEN6,
    REASONS,
    SERVICE_STATS,
    BACKEND_STATS,
    BACKEND_SIGNALS,
    SOURCES,
    RATES,
    ACTIVE,
    CURSORS,
    LEASES,
    EVENTS,
    SAMPLES,
    NODE,
    ELDER,
    NEWS,
    META,
];

/// Whether a pinned map is data of the program, which reaches it without a look-up. Each loaded program has
/// its own, and pinned are those of the plain one.
#[must_use]
pub fn is_data(name: &str) -> bool {
    in_object(name) != name
}

/// What the object calls a pinned map. The kernel makes a map with one value of each section of data, whose
/// name has a dot, which the name of a pin may not have.
#[must_use]
pub fn in_object(name: &str) -> &str {
    match name {
        VIPS => ".bss.VIPS",
        PORTS => ".bss.PORTS",
        MACS => ".bss.MACS",
        name => name,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{PINNED, PROGRAM, TRACE_COUNTS, TRACE_FILTERS, TRACE_PROGRAM, TRACES, in_object};

    #[test]
    fn names_are_unique_and_fit_the_kernel() {
        let names: HashSet<_> = PINNED.iter().collect();
        assert_eq!(names.len(), PINNED.len());
        // BPF_OBJ_NAME_LEN is 16, with the zero at the end.
        let others = [PROGRAM, TRACE_PROGRAM, TRACES, TRACE_FILTERS, TRACE_COUNTS];
        assert!(PINNED.iter().chain(&others).all(|name| in_object(name).len() < 16));
    }
}
