//! The least that a balancer with NAT and a flow table must do for a packet of a known flow.
//!
//! Parse, one look-up in a table of the same type, size, key and value as the data path's own,
//! rewrite addresses, ports, both checksums, time to live and MAC addresses, count in one per-CPU
//! counter. No floating addresses, no backends, no time stamps, no statistics of the flow, one
//! family and one protocol: what those cost the data path is what the comparison shows.

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{LruHashMap, PerCpuArray},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use lb_common::{
    flow::{FlowEntry4, FlowEntry6, FlowKey4, FlowKey6},
    limits::DEFAULT_FLOWS,
};
use lb_ebpf::{
    checksum::{adjust, adjust_udp},
    family::{Ports, V4, V6, protocol},
    packet::{
        EthernetHdr, Frame, Header, Macs, TcpHdr, UdpHdr, load16, load32, load128, store16,
        store32, store128,
    },
    parse::{IPV4, IPV6},
    tables::Entry,
};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::packet;

// The benchmark puts the data path's own tables in the place of these, so that both find the same
// flows at the same addresses.

#[btf_map]
pub(crate) static FLOWS: LruHashMap<Key4, FlowEntry4, { DEFAULT_FLOWS as usize }> =
    LruHashMap::new();

#[btf_map]
pub(crate) static FLOWS6: LruHashMap<Key6, FlowEntry6, { DEFAULT_FLOWS as usize }> =
    LruHashMap::new();

/// `FlowKey4` in words.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Key4 {
    pub(crate) src: u32,
    pub(crate) dst: u32,
    pub(crate) ports: u32,
    pub(crate) protocol: u32,
}

/// `FlowKey6` in words.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Key6 {
    pub(crate) src: [u64; 2],
    pub(crate) dst: [u64; 2],
    pub(crate) ports: u32,
    pub(crate) protocol: u32,
}

const _: () = assert!(size_of::<Key4>() == size_of::<FlowKey4>());
const _: () = assert!(size_of::<Key6>() == size_of::<FlowKey6>());

#[btf_map]
static COUNT: PerCpuArray<u64, 1> = PerCpuArray::new();

/// TCP or UDP.
pub(crate) trait Transport: Header {
    const PROTOCOL: u8;
    fn ports(&mut self) -> &mut [u8; 4];
    fn mend(&mut self, delta: u16);
}

impl Transport for TcpHdr {
    const PROTOCOL: u8 = protocol::TCP;

    #[inline(always)]
    fn ports(&mut self) -> &mut [u8; 4] {
        &mut self.ports
    }

    #[inline(always)]
    fn mend(&mut self, delta: u16) {
        let check = adjust(load16(&self.check), delta);
        store16(&mut self.check, check);
    }
}

impl Transport for UdpHdr {
    const PROTOCOL: u8 = protocol::UDP;

    #[inline(always)]
    fn ports(&mut self) -> &mut [u8; 4] {
        &mut self.ports
    }

    #[inline(always)]
    fn mend(&mut self, delta: u16) {
        let check = load16(&self.check);
        if check != 0 {
            store16(&mut self.check, adjust_udp(check, delta));
        }
    }
}

#[inline(always)]
fn nat4<L: Transport>(ctx: &XdpContext) -> Option<u32> {
    let packet = packet(ctx);
    let frame = packet.header::<Frame<Ipv4Hdr, L>>(0).ok()?;
    let ip = &mut frame.ip;
    let fragment = load16(&ip.frags) & u16::from_ne_bytes([0x3f, 0xff]) != 0;
    if load16(&frame.ethernet.ether_type) != IPV4
        || ip.vihl != 0x45
        || fragment
        || ip.ttl <= 1
        || ip.proto != L::PROTOCOL
    {
        return None;
    }
    let key = Key4 {
        src: load32(&ip.src_addr),
        dst: load32(&ip.dst_addr),
        ports: load32(frame.l4.ports()),
        protocol: u32::from_ne_bytes([L::PROTOCOL, 0, 0, 0]),
    };
    // SAFETY: no flow is removed while the benchmark runs.
    let entry = unsafe { FLOWS.get(&key) }?;
    store32(&mut ip.src_addr, load32(&entry.new_src));
    store32(&mut ip.dst_addr, load32(&entry.new_dst));
    ip.ttl -= 1;
    let check = adjust(load16(&ip.check), entry.ip_delta);
    store16(&mut ip.check, check);
    store32(frame.l4.ports(), Ports::new(entry.new_src_port, entry.new_dst_port).0);
    frame.l4.mend(entry.l4_delta);
    leave(&mut frame.ethernet, Entry::<V4>::macs(entry))
}

#[inline(always)]
fn nat6<L: Transport>(ctx: &XdpContext) -> Option<u32> {
    let packet = packet(ctx);
    let frame = packet.header::<Frame<Ipv6Hdr, L>>(0).ok()?;
    let ip = &mut frame.ip;
    if load16(&frame.ethernet.ether_type) != IPV6
        || ip.vcf[0] >> 4 != 6
        || ip.hop_limit <= 1
        || ip.next_hdr != L::PROTOCOL
    {
        return None;
    }
    let key = Key6 {
        src: load128(&ip.src_addr),
        dst: load128(&ip.dst_addr),
        ports: load32(frame.l4.ports()),
        protocol: u32::from_ne_bytes([L::PROTOCOL, 0, 0, 0]),
    };
    // SAFETY: as above.
    let entry = unsafe { FLOWS6.get(&key) }?;
    store128(&mut ip.src_addr, load128(&entry.new_src));
    store128(&mut ip.dst_addr, load128(&entry.new_dst));
    ip.hop_limit -= 1;
    store32(frame.l4.ports(), Ports::new(entry.new_src_port, entry.new_dst_port).0);
    frame.l4.mend(entry.l4_delta);
    leave(&mut frame.ethernet, Entry::<V6>::macs(entry))
}

/// Writes the MAC addresses, counts, and sends the packet back.
#[inline(always)]
fn leave(ethernet: &mut EthernetHdr, macs: Macs) -> Option<u32> {
    macs.store(ethernet.macs_mut());
    count()?;
    Some(xdp_action::XDP_TX)
}

/// Counts a packet.
#[inline(always)]
pub(crate) fn count() -> Option<()> {
    let count = COUNT.get_ptr_mut(0)?;
    // SAFETY: this CPU's own element.
    unsafe { *count += 1 };
    Some(())
}

/// Parses, and changes the MAC addresses over.
#[inline(always)]
fn swap<L: Transport>(ctx: &XdpContext) -> Option<u32> {
    let packet = packet(ctx);
    let frame = packet.header::<Frame<Ipv4Hdr, L>>(0).ok()?;
    if load16(&frame.ethernet.ether_type) != IPV4
        || frame.ip.vihl != 0x45
        || frame.ip.proto != L::PROTOCOL
    {
        return None;
    }
    let ethernet = &mut frame.ethernet;
    Macs::load(ethernet.macs()).reversed().store(ethernet.macs_mut());
    Some(xdp_action::XDP_TX)
}

#[xdp]
fn floor_swap(ctx: XdpContext) -> u32 {
    swap::<TcpHdr>(&ctx).unwrap_or(xdp_action::XDP_PASS)
}

#[xdp]
fn floor_nat_tcp4(ctx: XdpContext) -> u32 {
    nat4::<TcpHdr>(&ctx).unwrap_or(xdp_action::XDP_PASS)
}

#[xdp]
fn floor_nat_udp4(ctx: XdpContext) -> u32 {
    nat4::<UdpHdr>(&ctx).unwrap_or(xdp_action::XDP_PASS)
}

#[xdp]
fn floor_nat_tcp6(ctx: XdpContext) -> u32 {
    nat6::<TcpHdr>(&ctx).unwrap_or(xdp_action::XDP_PASS)
}

#[xdp]
fn floor_nat_udp6(ctx: XdpContext) -> u32 {
    nat6::<UdpHdr>(&ctx).unwrap_or(xdp_action::XDP_PASS)
}
