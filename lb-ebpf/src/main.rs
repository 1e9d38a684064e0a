//! The BPF binary: the XDP program around the data path.
//!
//! Three things stand here and nowhere else: the entry points, the one place where an outcome becomes
//! an XDP action, and the counting that makes every packet end in exactly one counter.
#![no_std]
#![no_main]
// For `program::atomic`; the build allows it to this crate by name where the compiler is a stable one.
#![feature(asm_experimental_arch)]

mod program;

use core::{hint::black_box, ptr::read_volatile};

use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    helpers::{bpf_redirect, bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
    macros::xdp,
    programs::XdpContext,
};
use aya_log_ebpf::error;
use lb_common::{
    backend::Backend,
    reason::{Disposition, Reason},
};
use lb_ebpf::{
    Action,
    family::{Family, V4, V6},
    known,
    packet::Packet,
    parse::{self, Link},
    replay::Step,
    tables::{Flows, Tables as _},
    tunnel::{Tunnel, is_v4, plain_overhead},
};
use program::{elder, maps, tables::Maps, trace};

/// Entry point: the hot path, and a call for everything else.
#[xdp]
fn ballast(ctx: XdpContext) -> u32 {
    let exit = HotExit::<false>(ctx.ctx);
    match known::forward_by(packet(ctx.ctx), &Maps::<false>, &exit) {
        Some(action) => action,
        None => examine::<false>(ctx.ctx),
    }
}

/// Entry point of the second variant, which shows what it does (`program/trace.rs`). Its hot path is a
/// subprogram, so that what it shares with the first has as much stack here as there.
#[xdp]
fn ballast_trace(ctx: XdpContext) -> u32 {
    trace::trace_begin(ctx.ctx);
    let mut action = trace_known(ctx.ctx);
    if action == UNDECIDED {
        action = examine::<true>(ctx.ctx);
    }
    trace::trace_end(ctx.ctx, action);
    action
}

/// The hot path of the second variant.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn trace_known(ctx: *mut xdp_md) -> u32 {
    known::forward_by(packet(ctx), &Maps::<true>, &HotExit::<true>(ctx)).unwrap_or(UNDECIDED)
}

/// What the hot path leaves.
#[inline(always)]
fn examine<const TRACEABLE: bool>(ctx: *mut xdp_md) -> u32 {
    // A packet of its own, so that the hot path keeps nothing in registers for this one.
    match Link::parse(&packet(ctx)).map(|link| link.ether_type) {
        Ok(parse::IPV4) => decide4(ctx),
        Ok(parse::IPV6 | parse::ARP) if gate(ctx) != 0 => xdp_action::XDP_DROP,
        Ok(parse::IPV6) => decide6(ctx),
        other => {
            count_reason::<TRACEABLE>(other.map_or_else(Reason::from, |_| Reason::NotIp));
            xdp_action::XDP_PASS
        }
    }
}

/// Counts a packet that is not forwarded.
#[inline(always)]
fn count_reason<const TRACEABLE: bool>(reason: Reason) {
    if TRACEABLE {
        maps::count_reason(reason);
    } else {
        maps::count_reason_untraced(reason);
    }
}

/// Whether the frame asks for an address that this node may not answer for any more: then it is counted.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn gate(ctx: *mut xdp_md) -> u32 {
    let closed = lb_ebpf::gate::asks_for(&packet(ctx)).is_some_and(maps::is_closed);
    if closed {
        maps::count_reason(Reason::NoLease);
    }
    u32::from(closed)
}

/// The end of the hot path.
struct HotExit<const TRACEABLE: bool>(*mut xdp_md);

impl<const TRACEABLE: bool> known::Exit for HotExit<TRACEABLE> {
    type Out = u32;

    #[inline(always)]
    fn ingress(&self, _: &Packet) -> u32 {
        // SAFETY: the kernel's context. Volatile, so that it is read here and not where the packet is.
        unsafe { read_volatile(&raw const (*self.0).ingress_ifindex) }
    }

    #[inline(always)]
    fn transmit(&self) -> u32 {
        xdp_action::XDP_TX
    }

    #[inline(always)]
    fn redirect(&self, ifindex: u32) -> u32 {
        // SAFETY: the helper takes plain numbers.
        unsafe { bpf_redirect(ifindex, 0) as u32 }
    }

    #[inline(always)]
    fn pass(&self, reason: Reason) -> u32 {
        count_reason::<TRACEABLE>(reason);
        xdp_action::XDP_PASS
    }

    #[inline(always)]
    fn encapsulate_plain(&self, tunnel: Tunnel, id: &u32, backend: &Backend) -> u32 {
        // Two copies, each with constants for what the other asks.
        if is_v4(backend) {
            encapsulate_plain::<TRACEABLE, true>(self.0, tunnel, id, backend)
        } else {
            encapsulate_plain::<TRACEABLE, false>(self.0, tunnel, id, backend)
        }
    }

    #[inline(always)]
    fn encapsulate(&self, tunnel: Tunnel, backend: &Backend) -> u32 {
        encapsulate_to::<TRACEABLE>(self.0, tunnel, backend)
    }
}

// What a subprogram says besides an XDP action.

/// The next subprogram decides.
const UNDECIDED: u32 = 16;
/// To be answered with a TCP reset.
const RESET: u32 = 17;
/// To be answered with an ICMP error.
const TOO_BIG: u32 = 18;
/// Something is wrong with the maps.
const INCONSISTENT: u32 = 19;
/// The packet's connection is to be tried at another backend.
const REPLAY: u32 = 20;
/// The packet is the SYN of a connection to a listener of the node.
const LISTENER: u32 = 21;
/// The packet may be of a connection that the proxy of another node has.
const STRANGE: u32 = 22;
/// The packet is to become the SYN to another backend, of as many bytes as are added to this number.
const COMPOSE: u32 = 1 << 16;

// Subprograms, so that the hot path has the registers and the instruction cache to itself, and that
// each has its own stack of 512 bytes less the hot path's. The signature is what the verifier needs
// to see: LLVM would split a reference to the context.
macro_rules! subprograms {
    (
        $family:ty,
        $decide:ident,
        $steer:ident,
        $follow:ident,
        $half_open:ident,
        $error:ident,
        $choose:ident,
        $replay:ident,
        $compose:ident,
        $begin:ident,
        $cookie:ident,
        $hand_on:ident,
        $note:ident,
        $reset:ident,
        $too_big:ident
    ) => {
        /// Asks one subprogram after the other.
        #[inline(always)]
        fn $decide(ctx: *mut xdp_md) -> u32 {
            let mut code = $steer(ctx);
            if code == UNDECIDED {
                code = $follow(ctx);
            }
            if code == UNDECIDED {
                code = $half_open(ctx, 1);
            }
            if code == UNDECIDED {
                code = $error(ctx, 1);
            }
            if code == REPLAY {
                code = if $choose(ctx) == 0 { UNDECIDED } else { $replay(ctx) };
                if code >= COMPOSE {
                    code = $compose(ctx, code - COMPOSE);
                } else if code == UNDECIDED {
                    code = $half_open(ctx, 0);
                    if code == UNDECIDED {
                        code = $error(ctx, 0);
                    }
                }
            }
            if code == UNDECIDED {
                code = $begin(ctx);
            }
            match code {
                LISTENER => $cookie(ctx),
                STRANGE => $hand_on(ctx),
                RESET => $reset(ctx),
                TOO_BIG => $too_big(ctx),
                INCONSISTENT => complain(ctx),
                action => action,
            }
        }

        /// Packets of steered services that are not plain, or whose slot is disturbed.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $steer(ctx: *mut xdp_md) -> u32 {
            match lb_ebpf::steer::steer::<$family, Maps>(packet(ctx), &Maps) {
                Some(Ok(Action::Encapsulate(tunnel))) => encapsulate(ctx, tunnel),
                Some(outcome) => finish(outcome),
                None => UNDECIDED,
            }
        }

        /// What the hot path leaves of established connections.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $follow(ctx: *mut xdp_md) -> u32 {
            match lb_ebpf::follow::<$family, Maps>(packet(ctx), &Maps) {
                Some(outcome) => finish(outcome),
                None => UNDECIDED,
            }
        }

        /// Half-open connections.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $half_open(ctx: *mut xdp_md, may_replay: u32) -> u32 {
            match lb_ebpf::half_open::<$family, Maps>(packet(ctx), &Maps, may_replay != 0) {
                Some(outcome) => finish(outcome),
                None => UNDECIDED,
            }
        }

        /// ICMP errors.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $error(ctx: *mut xdp_md, may_replay: u32) -> u32 {
            match lb_ebpf::error::<$family, Maps>(packet(ctx), &Maps, may_replay != 0) {
                Some(outcome) => finish(outcome),
                None => UNDECIDED,
            }
        }

        /// The next backend of a connection whose backend has failed; 0 if there is none.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $choose(ctx: *mut xdp_md) -> u32 {
            u32::from(lb_ebpf::replay::choose::<$family, Maps>(packet(ctx), &Maps))
        }

        /// Connections whose next backend is chosen.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $replay(ctx: *mut xdp_md) -> u32 {
            match lb_ebpf::replay::give::<$family, Maps>(packet(ctx), &Maps) {
                Some(Ok(Step::Send(action))) => finish(Ok(action)),
                Some(Ok(Step::Compose { len })) => COMPOSE + len as u32,
                Some(Err(reason)) => finish(Err(reason)),
                None => UNDECIDED,
            }
        }

        /// The SYN to another backend.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $compose(ctx: *mut xdp_md, len: u32) -> u32 {
            let has_len = reshape(ctx, len);
            let composed = lb_ebpf::replay::compose::<$family, Maps>(packet(ctx), &Maps, has_len);
            finish(composed)
        }

        /// New connections.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $begin(ctx: *mut xdp_md) -> u32 {
            $note(ctx);
            let outcome = lb_ebpf::begin::<$family, Maps>(packet(ctx), &Maps);
            if matches!(outcome, Err(Reason::NoFlow | Reason::NoService)) && be_silent(ctx) != 0 {
                return xdp_action::XDP_DROP;
            }
            if matches!(outcome, Err(Reason::Proxied)) && elder::answers() {
                return STRANGE;
            }
            finish(outcome)
        }

        /// Packets of the proxy's connections, while another node still has some.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $hand_on(ctx: *mut xdp_md) -> u32 {
            let reason = elder::hand_on::<$family>(&packet(ctx));
            maps::count_reason(reason);
            match reason {
                Reason::HandedOn => xdp_action::XDP_TX,
                Reason::NoLease => xdp_action::XDP_DROP,
                _ => xdp_action::XDP_PASS,
            }
        }

        /// SYNs for the node's own listeners.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $cookie(ctx: *mut xdp_md) -> u32 {
            cookie::<$family>(ctx)
        }

        /// Answers with a TCP reset where the packet allows it.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $reset(ctx: *mut xdp_md) -> u32 {
            reset::<$family>(ctx).unwrap_or(xdp_action::XDP_DROP)
        }

        /// Answers a packet that is too long for its tunnel.
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $too_big(ctx: *mut xdp_md) -> u32 {
            too_big::<$family>(ctx).unwrap_or(xdp_action::XDP_DROP)
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

subprograms!(
    V4, decide4, steer4, follow4, half_open4, error4, choose4, replay4, compose4, begin4, cookie4,
    hand_on4, note4, reset4, too_big4
);
subprograms!(
    V6, decide6, steer6, follow6, half_open6, error6, choose6, replay6, compose6, begin6, cookie6,
    hand_on6, note6, reset6, too_big6
);

/// Whether it is not for this node, or too early, to say that a packet's connection is unknown: then it is
/// counted.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn be_silent(ctx: *mut xdp_md) -> u32 {
    let reason = lb_ebpf::gate::destination(&packet(ctx)).and_then(maps::silence);
    if let Some(reason) = reason {
        maps::count_reason(reason);
    }
    u32::from(reason.is_some())
}

/// Says what should never be.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn complain(ctx: *mut xdp_md) -> u32 {
    // The log's macro does not read the context; the verifier wants to see what an argument is for.
    let packet = packet(ctx);
    error!(&XdpContext::new(ctx), "a map entry is missing, for a packet of {} bytes", packet.len());
    xdp_action::XDP_DROP
}

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
        .within(ctx as usize)
    }
}

/// Turns an outcome into an XDP action, or into what has to be done for one.
#[inline(always)]
fn finish(outcome: Result<Action, Reason>) -> u32 {
    match outcome {
        Ok(Action::Transmit) => xdp_action::XDP_TX,
        // SAFETY: the helper takes plain numbers.
        Ok(Action::Redirect { ifindex }) => unsafe { bpf_redirect(ifindex, 0) as u32 },
        // Only steered services have tunnels: their subprogram knows what to do.
        Ok(Action::Encapsulate(_)) => xdp_action::XDP_ABORTED,
        Ok(Action::Replay) => REPLAY,
        Ok(Action::Listener) => LISTENER,
        Err(reason) => {
            maps::count_reason(reason);
            match reason.disposition() {
                Disposition::Pass => xdp_action::XDP_PASS,
                Disposition::Reset => RESET,
                Disposition::TooBig => TOO_BIG,
                Disposition::Drop if matches!(reason, Reason::Inconsistent) => INCONSISTENT,
                // `cookie` and `hand_on` alone give these reasons.
                Disposition::Drop | Disposition::Cookie | Disposition::HandOn => {
                    xdp_action::XDP_DROP
                }
            }
        }
    }
}

/// Answers a SYN for the proxy with a cookie, if the proxy's listener is short of room. Where another node has
/// the address, that one answers.
#[inline(always)]
fn cookie<F: Family>(ctx: *mut xdp_md) -> u32
where
    Maps: Flows<F>,
{
    let closed = lb_ebpf::gate::destination(&packet(ctx)).is_none_or(maps::is_closed);
    let due = if closed { None } else { lb_ebpf::cookie::due::<F, Maps>(&packet(ctx), &Maps) };
    let Some(answer) = due else {
        maps::count_reason(Reason::Proxied);
        return xdp_action::XDP_PASS;
    };
    maps::count_reason(Reason::SynCookie);
    match answer.write::<F>(&packet(ctx)) {
        Some(len) if resize(ctx, len) => xdp_action::XDP_TX,
        _ => xdp_action::XDP_DROP,
    }
}

/// Sends a packet through its tunnel.
#[inline(always)]
fn encapsulate(ctx: *mut xdp_md, tunnel: Tunnel) -> u32 {
    match Maps::<true>.backend(tunnel.backend) {
        Some(backend) => encapsulate_to::<true>(ctx, tunnel, backend),
        None => {
            maps::count_reason(Reason::Inconsistent);
            xdp_action::XDP_DROP
        }
    }
}

/// [`encapsulate_to`] by IP in IP, for a frame without tags.
#[inline(always)]
fn encapsulate_plain<const TRACEABLE: bool, const IPV4: bool>(
    ctx: *mut xdp_md,
    tunnel: Tunnel,
    id: &u32,
    backend: &Backend,
) -> u32 {
    // SAFETY: as in `encapsulate_to`.
    let grown = unsafe { bpf_xdp_adjust_head(ctx, -(plain_overhead::<IPV4>() as i32)) } == 0;
    let outcome = if grown {
        tunnel.write_plain::<Maps<TRACEABLE>, IPV4>(&packet(ctx), &Maps::<TRACEABLE>, id, backend)
    } else {
        Err(Reason::Inconsistent)
    };
    encapsulated::<TRACEABLE>(outcome)
}

/// Grows the frame at its front, and sends it with what belongs there.
#[inline(always)]
fn encapsulate_to<const TRACEABLE: bool>(
    ctx: *mut xdp_md,
    tunnel: Tunnel,
    backend: &Backend,
) -> u32 {
    // SAFETY: the context is the kernel's; after the call, no header of the packet is used.
    let grown = unsafe { bpf_xdp_adjust_head(ctx, -(tunnel.grows as i32)) } == 0;
    // Every driver leaves room enough (`XDP_PACKET_HEADROOM` is 256).
    let outcome = if grown {
        tunnel
            .advance(&packet(ctx))
            .and_then(|()| tunnel.write(&packet(ctx), &Maps::<TRACEABLE>, backend))
    } else {
        Err(Reason::Inconsistent)
    };
    encapsulated::<TRACEABLE>(outcome)
}

/// Sends a packet that has got its outer header.
#[inline(always)]
fn encapsulated<const TRACEABLE: bool>(outcome: Result<Action, Reason>) -> u32 {
    match outcome {
        // SAFETY: the helper takes plain numbers.
        Ok(Action::Redirect { ifindex }) => unsafe { bpf_redirect(ifindex, 0) as u32 },
        Ok(_) => xdp_action::XDP_TX,
        Err(reason) => {
            count_reason::<TRACEABLE>(reason);
            xdp_action::XDP_DROP
        }
    }
}

/// Answers with an ICMP error where the packet allows it: in front of the packet, of which so much stays
/// as the error quotes.
#[inline(always)]
fn too_big<F: Family>(ctx: *mut xdp_md) -> Option<u32>
where
    Maps: Flows<F>,
{
    let due = lb_ebpf::too_big::due::<F, Maps>(&packet(ctx), &Maps)?;
    // SAFETY: the context is the kernel's; after the calls, no header of the packet is used.
    unsafe {
        if bpf_xdp_adjust_head(ctx, -(due.grows as i32)) != 0 {
            return None;
        }
        let surplus = black_box(packet(ctx).len()) as i32 - due.len as i32;
        if bpf_xdp_adjust_tail(ctx, -surplus) != 0 {
            return None;
        }
    }
    due.advance(&packet(ctx)).ok()?;
    due.write::<F>(&packet(ctx)).ok()?;
    Some(xdp_action::XDP_TX)
}

/// Answers with a TCP reset where the packet allows it.
#[inline(always)]
fn reset<F: Family>(ctx: *mut xdp_md) -> Option<u32> {
    let due = lb_ebpf::reset::due::<F>(&packet(ctx))?;
    let len = due.write::<F>(&packet(ctx))?;
    resize(ctx, len).then_some(xdp_action::XDP_TX)
}

/// Gives the frame another length: adds to its front, or takes from its end. False if it has no room.
#[inline(always)]
fn reshape(ctx: *mut xdp_md, len: u32) -> bool {
    let growth = len as i32 - black_box(packet(ctx).len()) as i32;
    if growth <= 0 {
        return resize(ctx, len as usize);
    }
    // SAFETY: as in `resize`.
    unsafe { bpf_xdp_adjust_head(ctx, -growth) == 0 }
}

/// Gives the frame another length, by its end. False if it has no room for that.
#[inline(always)]
fn resize(ctx: *mut xdp_md, len: usize) -> bool {
    let growth = len as i32 - black_box(packet(ctx).len()) as i32;
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
