//! The least that a balancer with tunnels must do for a packet: with a flow table, and without.
//!
//! Parse, one look-up of the service, the backend, an outer IP header, one per-CPU counter. Where the
//! backend comes from is the difference: from a flow table as large as the data path's own, or from the
//! hash of the tuple and the service's table. No filter of floating addresses, no flags of services and
//! backends, no state of slots, no MTU, one family and one protocol, one kind of tunnel.

use aya_ebpf::{
    EbpfContext as _,
    bindings::xdp_action,
    btf_maps::{Array, HashMap},
    helpers::bpf_xdp_adjust_head,
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use lb_common::{
    backend::Backend,
    limits::{DEFAULT_BACKENDS, DEFAULT_SERVICES, DEFAULT_SLOTS},
    maglev,
    service::{Service, ServiceKey, Slot},
};
use lb_ebpf::{
    checksum::Sum,
    family::{Address as _, Ports, ServiceWords, Tuple, protocol},
    packet::{
        EthernetHdr, Frame, Header, Macs, TcpHdr, UdpHdr, Words, load16, load32, load128, store16,
        store32, store64, store128,
    },
    parse::{IPV4, IPV6},
    rewrite::Egress,
};
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::{
    nat::{FLOWS, FLOWS6, Key4, Key6, Transport, count},
    packet,
};

// The benchmark puts the data path's own maps in the place of these.

#[btf_map]
static SERVICES: HashMap<ServiceKey, Service, { DEFAULT_SERVICES as usize }> = HashMap::new();

#[btf_map]
static BACKENDS: Array<Backend, { DEFAULT_BACKENDS as usize }> = Array::new();

#[btf_map]
static MAGLEV: Array<Slot, { DEFAULT_SLOTS as usize }> = Array::new();

/// An IPv6 header as it is written.
#[repr(C)]
#[derive(Clone, Copy)]
struct Outer6 {
    start: [u8; 8],
    src: [u8; 16],
    dst: [u8; 16],
}

// SAFETY: repr(C), byte arrays only.
unsafe impl Header for Outer6 {}

/// The identifier in the slot of the tuple.
#[inline(always)]
fn by_hash<A: lb_ebpf::family::Address>(service: &Service, tuple: &Tuple<A>) -> Option<u32> {
    let slot = maglev::slot(tuple.hash(), service.table_len);
    MAGLEV.get(service.table_start.wrapping_add(slot)).map(|slot| slot.backend)
}

#[inline(always)]
fn tunnel4<L: Transport, const TABLE: bool>(ctx: &XdpContext) -> Option<u32> {
    let packet = packet(ctx);
    let frame = packet.header::<Frame<Ipv4Hdr, L>>(0).ok()?;
    let ip = &frame.ip;
    let fragment = load16(&ip.frags) & u16::from_ne_bytes([0x3f, 0xff]) != 0;
    if load16(&frame.ethernet.ether_type) != IPV4
        || ip.vihl != 0x45
        || fragment
        || ip.proto != L::PROTOCOL
    {
        return None;
    }
    let (src, dst) = (load32(&ip.src_addr), load32(&ip.dst_addr));
    let (tos, len) = (ip.tos, u16::from_be(load16(&ip.tot_len)));
    let ports = load32(frame.l4.ports());
    let tuple = Tuple { src, dst, ports: Ports(ports) };
    // SAFETY: no service is removed while the benchmark runs.
    let service = unsafe { SERVICES.get(ServiceWords::new(&tuple, L::PROTOCOL).key()) }?;
    let id = if TABLE {
        let last = u32::from_ne_bytes([L::PROTOCOL, 0, 0, 0]);
        // SAFETY: nor is a flow.
        unsafe { FLOWS.get(&Key4 { src, dst, ports, protocol: last }) }?.backend
    } else {
        by_hash(service, &tuple)?
    };
    let backend = BACKENDS.get(id)?;
    let (from, to) = (u32::from_mapped(&backend.source), u32::from_mapped(&backend.address));
    grow(ctx, size_of::<Ipv4Hdr>())?;

    let packet = self::packet(ctx);
    let ethernet = packet.header::<EthernetHdr>(0).ok()?;
    let Words([lengths, fragment, check, src, dst]) =
        packet.header::<Words<5>>(size_of::<EthernetHdr>()).ok()?;
    store16(&mut ethernet.ether_type, IPV4);
    let length = len.wrapping_add(size_of::<Ipv4Hdr>() as u16);
    let first = (0x45 << 24 | u32::from(tos) << 16 | u32::from(length)).to_be();
    let dont_fragment = u32::from_ne_bytes([0, 0, 0x40, 0]);
    let sum = Sum::ZERO
        .add32(first)
        .add32(dont_fragment)
        .add32(u32::from_ne_bytes([64, protocol::IPIP, 0, 0]))
        .add32(from)
        .add32(to);
    let [high, low] = sum.checksum().to_ne_bytes();
    store32(lengths, first);
    store32(fragment, dont_fragment);
    store32(check, u32::from_ne_bytes([64, protocol::IPIP, high, low]));
    store32(src, from);
    store32(dst, to);
    leave(ethernet, backend)
}

#[inline(always)]
fn tunnel6<L: Transport, const TABLE: bool>(ctx: &XdpContext) -> Option<u32> {
    let packet = packet(ctx);
    let frame = packet.header::<Frame<Ipv6Hdr, L>>(0).ok()?;
    let ip = &frame.ip;
    if load16(&frame.ethernet.ether_type) != IPV6
        || ip.vcf[0] >> 4 != 6
        || ip.next_hdr != L::PROTOCOL
    {
        return None;
    }
    let (src, dst) = (load128(&ip.src_addr), load128(&ip.dst_addr));
    let traffic_class = ip.vcf[0] << 4 | ip.vcf[1] >> 4;
    let len = u16::from_be(load16(&ip.payload_len));
    let ports = load32(frame.l4.ports());
    let tuple = Tuple { src, dst, ports: Ports(ports) };
    // SAFETY: as above.
    let service = unsafe { SERVICES.get(ServiceWords::new(&tuple, L::PROTOCOL).key()) }?;
    let id = if TABLE {
        let last = u32::from_ne_bytes([L::PROTOCOL, 0, 0, 0]);
        // SAFETY: as above.
        unsafe { FLOWS6.get(&Key6 { src, dst, ports, protocol: last }) }?.backend
    } else {
        by_hash(service, &tuple)?
    };
    let backend = BACKENDS.get(id)?;
    grow(ctx, size_of::<Ipv6Hdr>())?;

    let packet = self::packet(ctx);
    let ethernet = packet.header::<EthernetHdr>(0).ok()?;
    let outer = packet.header::<Outer6>(size_of::<EthernetHdr>()).ok()?;
    store16(&mut ethernet.ether_type, IPV6);
    let first = 6 << 28 | u32::from(traffic_class) << 20;
    let length = len.wrapping_add(size_of::<Ipv6Hdr>() as u16);
    let rest = u32::from(length) << 16 | u32::from(protocol::IPV6) << 8 | 64;
    store64(&mut outer.start, (u64::from(first) << 32 | u64::from(rest)).to_be());
    store128(&mut outer.src, load128(&backend.source));
    store128(&mut outer.dst, load128(&backend.address));
    leave(ethernet, backend)
}

/// Makes room for the outer header.
#[inline(always)]
fn grow(ctx: &XdpContext, bytes: usize) -> Option<()> {
    // SAFETY: the context is the kernel's; after the call, no header of the packet is used.
    let result = unsafe { bpf_xdp_adjust_head(ctx.as_ptr().cast(), -(bytes as i32)) };
    (result == 0).then_some(())
}

/// Writes the MAC addresses, counts, and sends the packet back.
#[inline(always)]
fn leave(ethernet: &mut EthernetHdr, backend: &Backend) -> Option<u32> {
    let macs: Macs = Egress::to_backend(backend).macs();
    macs.store(ethernet.macs_mut());
    count()?;
    Some(xdp_action::XDP_TX)
}

macro_rules! floors {
    ($($name:ident: $floor:ident, $transport:ty, $table:literal;)*) => {
        $(
            #[xdp]
            fn $name(ctx: XdpContext) -> u32 {
                $floor::<$transport, $table>(&ctx).unwrap_or(xdp_action::XDP_PASS)
            }
        )*
    };
}

floors! {
    floor_flow_tcp4: tunnel4, TcpHdr, true;
    floor_flow_udp4: tunnel4, UdpHdr, true;
    floor_flow_tcp6: tunnel6, TcpHdr, true;
    floor_flow_udp6: tunnel6, UdpHdr, true;
    floor_hash_tcp4: tunnel4, TcpHdr, false;
    floor_hash_udp4: tunnel4, UdpHdr, false;
    floor_hash_tcp6: tunnel6, TcpHdr, false;
    floor_hash_udp6: tunnel6, UdpHdr, false;
}
