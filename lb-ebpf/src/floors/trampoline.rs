//! The program that is repeated in place of the one under test.
//!
//! `BPF_PROG_TEST_RUN` runs a program again and again on the same memory, which the program itself has
//! changed. So each run starts here: the packet gets its length and its headers back, now those of the
//! next flow, and a tail call leads on to the program under test.

use aya_ebpf::{
    EbpfContext as _,
    bindings::xdp_action,
    btf_maps::{Array, ProgramArray},
    helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use lb_ebpf::packet::{Header, Words, load32};

use crate::{
    packet,
    plan::{FIRST_PORT, PACKET_LEN, PORT_BITS, Plan},
};

#[btf_map]
static PLAN: Array<Plan, 1> = Array::new();

/// The program under test. With one slot and a constant index, the call becomes a plain jump.
#[btf_map]
static UNDER_TEST: ProgramArray<1> = ProgramArray::new();

/// A whole packet.
#[repr(C)]
#[derive(Clone, Copy)]
struct Bytes([u8; PACKET_LEN]);

// SAFETY: a byte array.
unsafe impl Header for Bytes {}

impl Bytes {
    /// Writes a word at `at`.
    #[inline(always)]
    fn set<T>(&mut self, at: usize, word: T) {
        const { assert!(size_of::<T>() <= 8) };
        // SAFETY: callers give constants within the packet (the verifier would refuse others); the
        // kernel accepts unaligned stores.
        unsafe { *self.0.as_mut_ptr().wrapping_add(at).cast::<T>() = word };
    }

    /// Copies a word at `at`.
    #[inline(always)]
    fn copy<T: Copy>(&mut self, from: &[u8; PACKET_LEN], at: usize) {
        // SAFETY: as above.
        self.set(at, unsafe { *from.as_ptr().wrapping_add(at).cast::<T>() });
    }
}

// A load that needs the bytes of two stores which are still on their way to the cache has to wait
// for both. Packets of an interface were stored long ago. So that the benchmark does not measure this,
// headers are restored field by field: no field that a data path reads is written by two stores.

#[xdp]
fn trampoline4(ctx: XdpContext) -> u32 {
    again(&ctx, |to, from, address, ports| {
        to.copy::<u64>(from, 14);
        to.copy::<u32>(from, 22);
        to.set(26, (address as u32).to_be());
        to.copy::<u32>(from, 30);
        to.set(34, ports);
        to.copy::<u64>(from, 38);
        to.copy::<u32>(from, 46);
        to.copy::<u32>(from, 50);
    })
}

#[xdp]
fn trampoline6(ctx: XdpContext) -> u32 {
    again(&ctx, |to, from, address, ports| {
        to.copy::<u64>(from, 14);
        to.copy::<u64>(from, 22);
        to.set(30, address.to_be());
        to.copy::<u64>(from, 38);
        to.copy::<u64>(from, 46);
        to.set(54, ports);
        to.copy::<u64>(from, 58);
        to.copy::<u32>(from, 66);
        to.copy::<u32>(from, 70);
    })
}

/// Makes the next packet, and runs the program under test on it.
#[inline(always)]
fn again(ctx: &XdpContext, write: impl FnOnce(&mut Bytes, &[u8; PACKET_LEN], u64, u32)) -> u32 {
    // What the last run wrote first: where the packet leaves to, which it had to look up.
    let done = packet(ctx);
    let Ok(Words([last])) = done.header::<Words<1>>(0) else { return xdp_action::XDP_ABORTED };
    let last = load32(last);
    // What is longer has grown at its front, by an outer header; what is shorter was cut at its end.
    let surplus = done.len() as i32 - PACKET_LEN as i32;
    // SAFETY: the context is the kernel's, and no pointer into the packet is held.
    let restored = unsafe {
        match surplus {
            0 => 0,
            1.. => bpf_xdp_adjust_head(ctx.as_ptr().cast(), surplus),
            _ => bpf_xdp_adjust_tail(ctx.as_ptr().cast(), -surplus),
        }
    };
    if restored != 0 {
        return xdp_action::XDP_ABORTED;
    }
    let packet = packet(ctx);
    let Ok(to) = packet.header::<Bytes>(0) else { return xdp_action::XDP_ABORTED };
    let Some(plan) = PLAN.get_ptr_mut(0) else { return xdp_action::XDP_ABORTED };
    // SAFETY: user space leaves the plan alone while the program runs.
    let plan = unsafe { &mut *plan };

    let mut flow = plan.position;
    if plan.one_by_one != 0 {
        // Adds 0, which the processor cannot know before it has the word.
        flow += last & plan.one_by_one >> 1;
    }
    let next = flow + plan.stride;
    plan.position = if next >= plan.flows { next - plan.flows } else { next };
    let address = plan.address + u64::from(flow >> PORT_BITS);
    let port = FIRST_PORT + flow % (1 << PORT_BITS);
    let ports = (plan.ports + (port << (plan.port_shift & 16))).to_be();

    to.copy::<u64>(&plan.packet, 0);
    to.copy::<u32>(&plan.packet, 8);
    to.copy::<u16>(&plan.packet, 12);
    write(to, &plan.packet, address, ports);
    // SAFETY: what runs next is the program under test; nothing here is used after it.
    unsafe { UNDER_TEST.tail_call(ctx, 0) };
    // The slot is empty.
    xdp_action::XDP_ABORTED
}
