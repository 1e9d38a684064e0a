//! The BPF binary: the XDP program around the data path.
//!
//! Three things stand here and nowhere else: the entry points, the one place where an outcome becomes
//! an XDP action, and the counting that makes every packet end in exactly one counter.
#![no_std]
#![no_main]
// For `program::atomic`; the build allows it to this crate by name where the compiler is a stable one.
#![feature(asm_experimental_arch)]

mod program;

use core::ptr::read_volatile;

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    helpers::{bpf_redirect, bpf_xdp_adjust_tail},
    macros::xdp,
    programs::XdpContext,
};
use aya_log_ebpf::error;
use lb_common::reason::{Disposition, Reason};
use lb_ebpf::{
    Action,
    family::{Family, V4, V6},
    packet::Packet,
    parse::{self, Link},
    replay::Step,
};
use program::{maps, tables::Maps};

/// Entry point: the hot path, and a call for everything else.
#[xdp]
fn ballast(ctx: XdpContext) -> u32 {
    let packet = packet(ctx.ctx);
    match lb_ebpf::known::forward(packet, &Maps) {
        Some(Ok(Action::Transmit)) => return xdp_action::XDP_TX,
        // SAFETY: the helper takes plain numbers.
        Some(Ok(Action::Redirect { ifindex })) => {
            return unsafe { bpf_redirect(ifindex, 0) as u32 };
        }
        Some(Err(reason)) => {
            maps::count_reason(reason);
            return xdp_action::XDP_PASS;
        }
        Some(Ok(Action::Replay)) | None => {}
    }
    // A packet of its own, so that the hot path keeps nothing in registers for this one.
    match Link::parse(&self::packet(ctx.ctx)).map(|link| link.ether_type) {
        Ok(parse::IPV4) => {
            let mut action = follow4(ctx.ctx, 1);
            if action == REPLAY {
                action = replay4(ctx.ctx);
                if action == COMPOSE {
                    return compose4(ctx.ctx);
                }
                if action == UNDECIDED {
                    action = follow4(ctx.ctx, 0);
                }
            }
            if action == UNDECIDED { begin4(ctx.ctx) } else { action }
        }
        Ok(parse::IPV6) => {
            let mut action = follow6(ctx.ctx, 1);
            if action == REPLAY {
                action = replay6(ctx.ctx);
                if action == COMPOSE {
                    return compose6(ctx.ctx);
                }
                if action == UNDECIDED {
                    action = follow6(ctx.ctx, 0);
                }
            }
            if action == UNDECIDED { begin6(ctx.ctx) } else { action }
        }
        other => {
            maps::count_reason(other.map_or_else(Reason::from, |_| Reason::NotIp));
            xdp_action::XDP_PASS
        }
    }
}

/// No XDP action: the next subprogram decides.
const UNDECIDED: u32 = u32::MAX;

/// No XDP action: the packet's connection is to be tried at another backend.
const REPLAY: u32 = u32::MAX - 1;

/// No XDP action: the packet is to become the SYN to another backend.
const COMPOSE: u32 = u32::MAX - 2;

// Subprograms, so that the hot path has the registers and the instruction cache to itself, and that
// each has its own stack of 512 bytes less the hot path's. The signature is what the verifier needs
// to see: LLVM would split a reference to the context.
macro_rules! subprograms {
    (
        $family:ty,
        $follow:ident,
        $replay:ident,
        $compose:ident,
        $begin:ident,
        $note:ident
    ) => {
        /// What the hot path leaves of known connections.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $follow(ctx: *mut xdp_md, may_replay: u32) -> u32 {
            match lb_ebpf::follow::<$family, Maps>(packet(ctx), &Maps, may_replay != 0) {
                Some(Ok(Action::Replay)) => REPLAY,
                Some(outcome) => finish::<$family>(ctx, outcome),
                None => UNDECIDED,
            }
        }

        /// Connections whose backend has failed.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $replay(ctx: *mut xdp_md) -> u32 {
            let len = packet(ctx).len();
            // If it cannot grow, it is found too short.
            resize(ctx, lb_ebpf::replay::room::<$family>().max(len));
            match lb_ebpf::replay::give::<$family, Maps>(packet(ctx), &Maps) {
                Some(Ok(Step::Compose)) => COMPOSE,
                given => {
                    if !resize(ctx, len) {
                        return xdp_action::XDP_DROP;
                    }
                    match given {
                        Some(Ok(Step::Send(action))) => finish::<$family>(ctx, Ok(action)),
                        Some(Err(reason)) => finish::<$family>(ctx, Err(reason)),
                        _ => UNDECIDED,
                    }
                }
            }
        }

        /// The SYN to another backend.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $compose(ctx: *mut xdp_md) -> u32 {
            match lb_ebpf::replay::compose::<$family, Maps>(packet(ctx), &Maps) {
                Ok((action, len)) => {
                    if !resize(ctx, len) {
                        return xdp_action::XDP_DROP;
                    }
                    finish::<$family>(ctx, Ok(action))
                }
                Err(reason) => finish::<$family>(ctx, Err(reason)),
            }
        }

        /// New connections.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $begin(ctx: *mut xdp_md) -> u32 {
            $note(ctx);
            finish::<$family>(ctx, lb_ebpf::begin::<$family, Maps>(packet(ctx), &Maps))
        }

        /// What is kept of a new connection's first packet.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $note(ctx: *mut xdp_md) -> u32 {
            lb_ebpf::connect::note::<$family, Maps>(packet(ctx), &Maps);
            0
        }
    };
}

subprograms!(V4, follow4, replay4, compose4, begin4, note4);
subprograms!(V6, follow6, replay6, compose6, begin6, note6);

/// The frame that the kernel handed us.
#[inline(always)]
fn packet(ctx: *mut xdp_md) -> Packet {
    // SAFETY: the kernel passes a valid context, whose `data` and `data_end` delimit memory that is
    // ours while the program runs. The volatile reads make each `Packet` one of its own to the
    // compiler (see `reset::Reset`).
    unsafe {
        Packet::new(
            read_volatile(&raw const (*ctx).data) as usize,
            read_volatile(&raw const (*ctx).data_end) as usize,
            (*ctx).ingress_ifindex,
        )
    }
}

/// Turns an outcome into an XDP action.
#[inline(always)]
fn finish<F: Family>(ctx: *mut xdp_md, outcome: Result<Action, Reason>) -> u32 {
    match outcome {
        Ok(Action::Transmit) => xdp_action::XDP_TX,
        // SAFETY: the helper takes plain numbers.
        Ok(Action::Redirect { ifindex }) => unsafe { bpf_redirect(ifindex, 0) as u32 },
        // Taken out before, by whoever may get it.
        Ok(Action::Replay) => xdp_action::XDP_ABORTED,
        Err(reason) => {
            maps::count_reason(reason);
            match reason.disposition() {
                Disposition::Pass => xdp_action::XDP_PASS,
                Disposition::Reset => reset::<F>(ctx),
                Disposition::TooBig => xdp_action::XDP_DROP,
                Disposition::Drop => {
                    if matches!(reason, Reason::Inconsistent) {
                        error!(&XdpContext::new(ctx), "a map entry is missing");
                    }
                    xdp_action::XDP_DROP
                }
            }
        }
    }
}

/// Answers with a TCP reset where the packet allows it.
#[inline(always)]
fn reset<F: Family>(ctx: *mut xdp_md) -> u32 {
    let Some(due) = lb_ebpf::reset::due::<F>(&packet(ctx)) else { return xdp_action::XDP_DROP };
    let Some(len) = due.write::<F>(&packet(ctx)) else { return xdp_action::XDP_DROP };
    if resize(ctx, len) { xdp_action::XDP_TX } else { xdp_action::XDP_DROP }
}

/// Gives the frame another length, by its end. False if it has no room for that.
#[inline(always)]
fn resize(ctx: *mut xdp_md, len: usize) -> bool {
    let growth = len as i32 - packet(ctx).len() as i32;
    // SAFETY: the context is the kernel's; after the call, no header of the packet is used.
    growth == 0 || unsafe { bpf_xdp_adjust_tail(ctx, growth) } == 0
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program that can get here, so none ever does.
    loop {}
}

/// The kernel gives the clock and tail helpers used here to programs of any licence, but the log's
/// only to those that say GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
