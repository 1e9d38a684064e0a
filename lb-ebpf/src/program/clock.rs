//! The clock that flows are stamped with.
//!
//! `CLOCK_MONOTONIC_COARSE`: exact to a tick, which is all that ages need. But even that is a call,
//! which for a packet of a known flow would cost a tenth of all. The kernel counts ticks in a variable,
//! and turns the helper that reads it into a load; so the clock is asked once in each tick.

use core::cell::UnsafeCell;

use aya_ebpf::helpers::{bpf_jiffies64, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns};

/// What the clock said in a tick.
struct Reading {
    tick: u64,
    now_ns: u64,
}

/// The last reading of any CPU.
struct Last(UnsafeCell<Reading>);

// SAFETY: its words are read and written one by one, each whole. A CPU that gets a tick of one reading
// and the time of another is wrong by a tick.
unsafe impl Sync for Last {}

static LAST: Last = Last(UnsafeCell::new(Reading { tick: 0, now_ns: 0 }));

/// Nanoseconds. In the first packets of a tick it may be those of the tick before: the kernel moves
/// the counter of ticks first.
#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    let last = LAST.0.get();
    // SAFETY: the helpers take no argument; the static is always there, and shared as said above.
    unsafe {
        let tick = bpf_jiffies64();
        if (&raw const (*last).tick).read_volatile() == tick {
            return (&raw const (*last).now_ns).read_volatile();
        }
        // Nobody has asked in this tick. The tick is written last, so that nobody takes an older time for its
        // own, and read again, since to keep it would cost all packets a register.
        let now_ns = bpf_ktime_get_coarse_ns();
        (&raw mut (*last).now_ns).write_volatile(now_ns);
        (&raw mut (*last).tick).write_volatile(bpf_jiffies64());
        now_ns
    }
}

/// `CLOCK_MONOTONIC`, nanoseconds.
#[inline(always)]
pub(crate) fn exact_ns() -> u64 {
    // SAFETY: the helper takes no argument.
    unsafe { bpf_ktime_get_ns() }
}
