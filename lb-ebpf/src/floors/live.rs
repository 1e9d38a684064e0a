//! Programs for whole frames on real interfaces: they are sent, switched, bounced and counted.
//!
//! The trampoline makes each frame and `live_send` sends it, when the kernel is told to run the
//! trampoline on live frames. A frame's memory is used again as the last receiver left it; the
//! trampoline writes all of the headers, so nothing of that is left.

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{Array, HashMap, PerCpuArray},
    helpers::bpf_redirect,
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use lb_ebpf::packet::EthernetHdr;

use crate::packet;

/// Where `live_send` sends to.
#[btf_map]
static SEND_TO: Array<u32, 1> = Array::new();

/// MAC address, as the first six bytes of a native word, to the switch's port.
#[btf_map]
static SWITCH_PORTS: HashMap<u64, u32, 8> = HashMap::new();

/// The MAC addresses that `live_bounce` writes: destination and source.
#[btf_map]
static BOUNCE: Array<[u8; 12], 1> = Array::new();

/// Frames that arrived.
#[btf_map]
static ARRIVED: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Sends the frame.
#[xdp]
fn live_send(_ctx: XdpContext) -> u32 {
    let Some(ifindex) = SEND_TO.get(0) else { return xdp_action::XDP_ABORTED };
    // SAFETY: the helper takes plain numbers.
    unsafe { bpf_redirect(*ifindex, 0) as u32 }
}

/// Sends the frame on by its destination; what it does not know goes to the bridge behind it.
#[xdp]
fn live_switch(ctx: XdpContext) -> u32 {
    let packet = packet(&ctx);
    let Ok(ethernet) = packet.header::<EthernetHdr>(0) else { return xdp_action::XDP_PASS };
    let [a, b, c, d, e, f] = ethernet.dst;
    let mac = u64::from_ne_bytes([a, b, c, d, e, f, 0, 0]);
    // SAFETY: copied at once.
    let Some(ifindex) = unsafe { SWITCH_PORTS.get(&mac) }.copied() else {
        return xdp_action::XDP_PASS;
    };
    // SAFETY: the helper takes plain numbers.
    unsafe { bpf_redirect(ifindex, 0) as u32 }
}

/// The least that a balancer does to a frame: new MAC addresses.
#[xdp]
fn live_bounce(ctx: XdpContext) -> u32 {
    let packet = packet(&ctx);
    let Ok(ethernet) = packet.header::<EthernetHdr>(0) else { return xdp_action::XDP_PASS };
    let Some(macs) = BOUNCE.get(0) else { return xdp_action::XDP_ABORTED };
    *ethernet.macs_mut() = *macs;
    xdp_action::XDP_TX
}

/// Counts the frame, and ends it.
#[xdp]
fn live_sink(_ctx: XdpContext) -> u32 {
    if let Some(count) = ARRIVED.get_ptr_mut(0) {
        // SAFETY: this CPU's own element.
        unsafe { *count += 1 };
    }
    xdp_action::XDP_DROP
}
