//! `EVENTS`: what the kernel program tells the daemon, at most once a second for each reason and CPU.

use crate::map_type::map_type;

map_type! {
    /// A record of the ring buffer.
    pub struct Event {
        /// `CLOCK_MONOTONIC_COARSE`, nanoseconds.
        pub time_ns: u64,
        /// A [`crate::reason::Reason`] as a number.
        pub reason: u32,
        /// Index of the service.
        pub service: u32,
        /// Backend identifier, or `u32::MAX` where there is none.
        pub backend: u32,
        /// Zero.
        pub reserved: u32,
    }
}
