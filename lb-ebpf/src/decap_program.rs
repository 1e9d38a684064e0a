//! The BPF binary of the decapsulator: maps, helpers and the entry point around [`lb_ebpf::decap`].
#![no_std]
#![no_main]

use core::ptr::read_volatile;

use aya_ebpf::{
    bindings::{BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NOT_FWDED, xdp_action, xdp_md},
    btf_maps::{LpmTrie, PerCpuArray, lpm_trie::Key},
    helpers::{bpf_fib_lookup, bpf_xdp_adjust_head},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use lb_common::decap::{Count, MAX_SOURCES, Source};
use lb_ebpf::{
    decap::{self, Host},
    packet::Packet,
};

#[btf_map]
static DECAP_SOURCES: LpmTrie<Source, u32, { MAX_SOURCES as usize }> = LpmTrie::new();

#[btf_map]
static DECAP_COUNTS: PerCpuArray<u64, { Count::ALL.len() }> = PerCpuArray::new();

/// Entry point.
#[xdp]
fn ballast_decap(ctx: XdpContext) -> u32 {
    let outcome = decap::decapsulate(&packet(ctx.ctx), &Kernel { ctx: ctx.ctx });
    let count = match outcome {
        // SAFETY: the context is the kernel's; after the call, no header of the packet is used.
        Ok(cut) => match unsafe { bpf_xdp_adjust_head(ctx.ctx, cut.bytes as i32) } {
            0 => cut.count,
            // The frame is longer than what is cut off, so this cannot be.
            _ => Count::Malformed,
        },
        Err(count) => count,
    };
    if let Some(counter) = DECAP_COUNTS.get_ptr_mut(count as u32) {
        // SAFETY: this CPU's own counter, and a program is not preempted by itself.
        unsafe { *counter += 1 };
    }
    if count.passes() { xdp_action::XDP_PASS } else { xdp_action::XDP_DROP }
}

/// What the kernel knows of the host.
struct Kernel {
    ctx: *mut xdp_md,
}

/// Address families, as the kernel's routing table takes them.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// `struct bpf_fib_lookup`, with the addresses as bytes.
#[repr(C, align(4))]
struct FibLookup {
    family: u8,
    l4_protocol: u8,
    ports: [u8; 4],
    tot_len: u16,
    ifindex: u32,
    tos: u32,
    src: [u8; 16],
    dst: [u8; 16],
    rest: [u8; 16],
}

impl Host for Kernel {
    /// By the routing table. A host that does not forward takes all that is sent to its MAC address for
    /// its own, and the stack looks at what comes out.
    #[inline(always)]
    fn is_local(&self, address: [u8; 16]) -> bool {
        let [.., a, b, c, d] = address;
        let v4 = address[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
        let mut dst = address;
        if v4 {
            dst[..4].copy_from_slice(&[a, b, c, d]);
        }
        let mut lookup = FibLookup {
            family: if v4 { AF_INET } else { AF_INET6 },
            l4_protocol: 0,
            ports: [0; 4],
            tot_len: 0,
            // SAFETY: the kernel passes a valid context.
            ifindex: unsafe { (*self.ctx).ingress_ifindex },
            tos: 0,
            src: [0; 16],
            dst,
            rest: [0; 16],
        };
        const { assert!(size_of::<FibLookup>() == 64) }
        // SAFETY: the structure is of the size and layout that the helper takes.
        let result = unsafe {
            bpf_fib_lookup(
                self.ctx.cast(),
                (&raw mut lookup).cast(),
                size_of::<FibLookup>() as i32,
                0,
            )
        };
        result == i64::from(BPF_FIB_LKUP_RET_NOT_FWDED)
            || result == i64::from(BPF_FIB_LKUP_RET_FWD_DISABLED)
    }

    #[inline(always)]
    fn is_allowed(&self, address: [u8; 16]) -> bool {
        DECAP_SOURCES.get(&Key::new(128, Source { address })).is_some()
    }
}

/// The frame that the kernel handed us.
#[inline(always)]
fn packet(ctx: *mut xdp_md) -> Packet {
    // SAFETY: the kernel passes a valid context, whose `data` and `data_end` delimit memory that is ours
    // while the program runs. The volatile reads make each `Packet` one of its own to the compiler.
    unsafe {
        Packet::new(
            read_volatile(&raw const (*ctx).data) as usize,
            read_volatile(&raw const (*ctx).data_end) as usize,
            (*ctx).ingress_ifindex,
        )
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program that can get here, so none ever does.
    loop {}
}

/// As the balancer's own program.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
