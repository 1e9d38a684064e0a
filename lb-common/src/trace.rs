//! `TRACES` and `SAMPLES`: packets that the kernel program shows to the daemon.
//!
//! Traces are made by the program's second variant only, which is in force while somebody looks; the
//! maps of that variant are not pinned. Samples are made always, of steered services alone: nothing
//! else in the maps tells who uses those.

use crate::map_type::map_type;

/// Bytes of a packet that a trace keeps, from the Ethernet header on: all headers of a packet in a
/// tunnel of IPv6, and TCP options.
pub const TRACED_BYTES: usize = 128;

/// Traces that may run at once: elements of `TRACE_FILTERS` and of `TRACE_COUNTS`.
pub const MAX_TRACES: u32 = 4;

/// Bytes of the `TRACES` ring buffer while a trace runs: about ten thousand records. A power of two and
/// a multiple of the page size.
pub const TRACES_BYTES: u32 = 1 << 22;

/// The same while none runs: the least that the kernel makes.
pub const TRACES_IDLE_BYTES: u32 = 1 << 16;

/// Bytes of the `SAMPLES` ring buffer.
pub const SAMPLES_BYTES: u32 = 1 << 18;

/// One packet in so many of a steered backend is sampled, by each CPU's own count. A power of two.
pub const SAMPLE_EVERY: u64 = 1024;

/// A number that stands for none: of a service, a backend or a reason.
pub const NONE: u32 = u32::MAX;

macro_rules! stages {
    ($( $(#[$doc:meta])* $name:ident, $label:literal; )*) => {
        /// The step of the data path that decided about a packet.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Stage {
            $( $(#[$doc])* $name, )*
        }

        impl Stage {
            /// All stages, in the order of their numbers.
            pub const ALL: &'static [Self] = &[ $( Self::$name, )* ];

            /// The name in a trace.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $( Self::$name => $label, )* }
            }
        }
    };
}

// A new one goes to its place in a packet's way: the numbers are in no pinned map.
stages! {
    /// Parsing, and the filter of floating addresses.
    Filter, "filter";
    /// A plain packet of a known flow.
    Known, "known";
    /// Steering without translation.
    Steer, "steer";
    /// An ICMP error.
    Icmp, "icmp";
    /// A packet of a known flow that needs a closer look.
    Follow, "follow";
    /// A packet of a connection that its backend has not answered yet.
    HalfOpen, "half_open";
    /// A connection that is tried at another backend.
    Replay, "replay";
    /// The service's lists and rates.
    Admit, "admit";
    /// A new connection.
    Connect, "connect";
}

/// Bits of [`TraceFilter::flags`].
pub mod filter {
    /// The element is in use.
    pub const ACTIVE: u32 = 1;
    /// Only packets of the service.
    pub const SERVICE: u32 = 2;
    /// Only packets to and from the backend.
    pub const BACKEND: u32 = 4;
    /// Only packets that were not forwarded for the reason.
    pub const REASON: u32 = 8;
    /// Only packets that were not forwarded, for any reason.
    pub const REFUSED: u32 = 16;
}

map_type! {
    /// Value of `TRACE_FILTERS`: which packets a trace wants. An address matches a prefix if both are
    /// the same under the mask; IPv4 addresses are IPv4-mapped.
    pub struct TraceFilter {
        /// Prefix of the source, as the packet comes.
        pub from: [u8; 16],
        /// Its mask.
        pub from_mask: [u8; 16],
        /// Prefix of the destination, as the packet comes.
        pub to: [u8; 16],
        /// Its mask.
        pub to_mask: [u8; 16],
        /// Prefix of any of the four addresses, as the packet comes and as it leaves.
        pub host: [u8; 16],
        /// Its mask.
        pub host_mask: [u8; 16],
        /// With [`filter::SERVICE`]: the floating address of the service.
        pub listen: [u8; 16],
        /// Its port, as it lies in the packet.
        pub listen_port: [u8; 2],
        /// Its IP protocol number.
        pub listen_protocol: u8,
        /// Zero.
        pub reserved: u8,
        /// With [`filter::SERVICE`]: its index.
        pub service: u32,
        /// With [`filter::BACKEND`]: its identifier.
        pub backend: u32,
        /// With [`filter::REASON`]: a [`crate::reason::Reason`] as a number.
        pub reason: u32,
        /// One packet in so many of those that match, by each CPU's own count; 0 and 1 for all.
        pub one_in: u32,
        /// Bits, see [`filter`].
        pub flags: u32,
    }
}

map_type! {
    /// Value of `TRACE_COUNTS`, per CPU: what became of a trace's packets.
    pub struct TraceCounts {
        /// Packets that matched, before one in so many was taken.
        pub matched: u64,
        /// Records that found no room in `TRACES`.
        pub lost: u64,
    }
}

/// A packet has not been forwarded.
pub const NOT_FORWARDED: u32 = 0;
/// A packet has been forwarded to a backend.
pub const TO_BACKEND: u32 = 1;
/// A packet has been forwarded from a backend.
pub const FROM_BACKEND: u32 = 2;

map_type! {
    /// A record of `TRACES`.
    pub struct TraceRecord {
        /// `CLOCK_MONOTONIC`, nanoseconds.
        pub time_ns: u64,
        /// Source address as the packet came; IPv4-mapped for IPv4, zeros for a packet that is not IP.
        pub before_src: [u8; 16],
        /// Destination address as it came.
        pub before_dst: [u8; 16],
        /// Source address as it leaves.
        pub after_src: [u8; 16],
        /// Destination address as it leaves.
        pub after_dst: [u8; 16],
        /// Ports as it came, network byte order, source first; zeros without TCP and UDP.
        pub before_ports: [u8; 4],
        /// Ports as it leaves.
        pub after_ports: [u8; 4],
        /// IP protocol number as it came.
        pub before_protocol: u8,
        /// IP protocol number as it leaves.
        pub after_protocol: u8,
        /// TCP's control bits as it came; 0 without TCP.
        pub before_flags: u8,
        /// TCP's control bits as it leaves.
        pub after_flags: u8,
        /// Length of the frame as it came, bytes.
        pub before_len: u32,
        /// Length of the frame as it leaves, bytes.
        pub after_len: u32,
        /// Bits of the traces that want it, by index into `TRACE_FILTERS`.
        pub wanted: u32,
        /// Number of the CPU.
        pub cpu: u32,
        /// Interface that it came by.
        pub ifindex: u32,
        /// A [`Stage`] as a number.
        pub stage: u32,
        /// XDP action: 1 drop, 2 pass, 3 transmit, 4 redirect.
        pub action: u32,
        /// A [`crate::reason::Reason`] as a number, or [`NONE`] if it was forwarded.
        pub reason: u32,
        /// The backend that was looked at last, or [`NONE`].
        pub backend: u32,
        /// Index of that backend's service, or [`NONE`].
        pub service: u32,
        /// [`NOT_FORWARDED`], [`TO_BACKEND`] or [`FROM_BACKEND`].
        pub direction: u32,
        /// Its first bytes as it came; zeros after its end.
        pub before: [u8; TRACED_BYTES],
        /// Its first bytes as it leaves; zeros after its end.
        pub after: [u8; TRACED_BYTES],
    }
}

map_type! {
    /// A record of `SAMPLES`: one packet of [`SAMPLE_EVERY`] to a steered backend.
    pub struct Sample {
        /// `CLOCK_MONOTONIC_COARSE`, nanoseconds.
        pub time_ns: u64,
        /// The client; IPv4 as an IPv4-mapped IPv6 address.
        pub src: [u8; 16],
        /// The floating address.
        pub dst: [u8; 16],
        /// Ports, network byte order, the client's first.
        pub ports: [u8; 4],
        /// Backend identifier.
        pub backend: u32,
        /// Length of this packet's frame, bytes.
        pub bytes: u32,
        /// IP protocol number.
        pub protocol: u8,
        /// Zeros.
        pub reserved: [u8; 3],
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{SAMPLE_EVERY, Stage, TraceRecord};

    #[test]
    fn numbers_are_the_places_in_the_list() {
        for (index, stage) in Stage::ALL.iter().enumerate() {
            assert_eq!(*stage as usize, index);
        }
        let labels: HashSet<_> = Stage::ALL.iter().map(|stage| stage.label()).collect();
        assert_eq!(labels.len(), Stage::ALL.len());
    }

    #[test]
    fn records_keep_the_alignment_of_a_ring_buffer() {
        assert_eq!(size_of::<TraceRecord>() % 8, 0);
        assert_eq!(align_of::<TraceRecord>(), 8);
        assert!(SAMPLE_EVERY.is_power_of_two());
    }
}
