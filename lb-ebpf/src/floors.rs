//! Programs that the data path's cost is measured against, and the trampoline that measures it.
//!
//! `cargo xtask bench` loads them; the daemon has nothing to do with them.
#![no_std]
#![no_main]

#[path = "floors/live.rs"]
mod live;
#[path = "floors/nat.rs"]
mod nat;
#[path = "floors/plan.rs"]
mod plan;
#[path = "floors/trampoline.rs"]
mod trampoline;
#[path = "floors/tunnel.rs"]
mod tunnel;

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use lb_ebpf::packet::Packet;

/// The least that any program does: what the trampoline itself costs.
#[xdp]
fn floor_tx(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

/// The frame that the kernel handed us.
#[inline(always)]
fn packet(ctx: &XdpContext) -> Packet {
    // SAFETY: the kernel passes a valid context, whose `data` and `data_end` delimit memory that is
    // ours while the program runs.
    unsafe { Packet::new(ctx.data(), ctx.data_end(), 0) }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program that can get here, so none ever does.
    loop {}
}
