//! The clock that flows are stamped with.

use crate::map_type::map_type;

map_type! {
    /// What the kernel's clocks say at one moment.
    #[repr(align(8))]
    pub struct Reading {
        /// The kernel's count of ticks (jiffies, in 64 bits).
        pub ticks: u64,
        /// `CLOCK_MONOTONIC_COARSE`, nanoseconds: the time of the last tick.
        pub coarse_ns: u64,
    }
}
