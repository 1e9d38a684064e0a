//! The BPF binary that notes what kind of reset a socket gets: the stack tells user space only that there
//! was one.
//!
//! It runs as a filter of single sockets, for each packet that reaches them, and lets all through.
#![no_std]
#![no_main]

use aya_ebpf::{
    EbpfContext as _,
    btf_maps::LruHashMap,
    helpers::bpf_get_socket_cookie,
    macros::{btf_map, socket_filter},
    programs::SkBuffContext,
};
use lb_common::resets::{ACKNOWLEDGING, BARE, MOST};

#[btf_map]
static RESETS: LruHashMap<u64, u32, { MOST as usize }> = LruHashMap::new();

/// Where the flags of TCP are: the packet begins with its header here.
const FLAGS: usize = 13;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// The whole packet.
const ALL: i64 = u32::MAX as i64;

/// Entry point.
#[socket_filter]
fn ballast_resets(ctx: SkBuffContext) -> i64 {
    let Ok(flags) = ctx.load::<u8>(FLAGS) else { return ALL };
    if flags & RST != 0 {
        // SAFETY: the context is the kernel's.
        let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
        let kind = if flags & ACK == 0 { BARE } else { ACKNOWLEDGING };
        // SAFETY: the number is copied at once.
        let before = unsafe { RESETS.get(&cookie) }.copied().unwrap_or(0);
        // It fails only if there is no memory; then nothing is known, and nothing is concluded.
        let _ = RESETS.insert(&cookie, &(before | kind), 0);
    }
    ALL
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
