//! The clocks of the program.
//!
//! Flows are stamped with the kernel's count of ticks: the helper that reads it is turned into a load, where
//! every other clock is a call. It counts whole ticks of `CLOCK_MONOTONIC`, so it is exact to a tick, which
//! is all that ages need. User space learns from [`ballast_clock`] which time a count stands for.

use aya_ebpf::{
    bindings::xdp_action,
    helpers::{bpf_jiffies64, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns},
    macros::xdp,
    programs::XdpContext,
};
use lb_common::clock::Reading;

/// The kernel's count of ticks.
#[inline(always)]
pub(crate) fn ticks() -> u64 {
    // SAFETY: the helper takes no argument.
    unsafe { bpf_jiffies64() }
}

/// `CLOCK_MONOTONIC_COARSE`, nanoseconds.
#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    // SAFETY: the helper takes no argument.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// `CLOCK_MONOTONIC`, nanoseconds.
#[inline(always)]
pub(crate) fn exact_ns() -> u64 {
    // SAFETY: the helper takes no argument.
    unsafe { bpf_ktime_get_ns() }
}

/// Entry point that user space runs: writes a [`Reading`] over the start of the packet.
#[xdp]
fn ballast_clock(ctx: XdpContext) -> u32 {
    let reading = Reading { ticks: ticks(), coarse_ns: now_ns() };
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + size_of::<Reading>() > end {
        return xdp_action::XDP_ABORTED;
    }
    // SAFETY: so many bytes are there; the kernel's verifier allows the unaligned access.
    unsafe { *(start as *mut Reading) = reading };
    xdp_action::XDP_PASS
}
