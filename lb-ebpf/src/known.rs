//! The hot path: a plain packet of a known flow, in one look-up.
//!
//! Plain means: no VLAN tag, no IP options, no fragment, and for TCP neither the first nor a last
//! packet of its connection. Whatever is not plain, or needs more than rewriting, is left to
//! [`crate::examine`]; that path gives the same result for plain packets too (a property test holds
//! the two together).

use lb_common::{
    backend::{FORWARD, RESOLVED},
    flow::state,
    reason::Reason,
};

use crate::{
    Action,
    conntrack::client_side,
    family::{Address, Family, Ports, Tuple, V4, V6, protocol},
    packet::{EthernetHdr, Packet, TcpHdr, UdpHdr, load16, load32, tcp_flags},
    parse::{self, ETHERNET_LEN},
    rewrite,
    tables::{Entry, Flows, State, Tables},
};

/// Forwards the packet if it is plain and its flow is known; `None` if a closer look is needed.
#[inline(always)]
pub fn forward<T: State>(packet: Packet, tables: &T) -> Option<Result<Action, Reason>> {
    let ethernet = packet.header::<EthernetHdr>(0).ok()?;
    match load16(&ethernet.ether_type) {
        parse::IPV4 => forward_family::<V4, T>(packet, tables, ethernet),
        parse::IPV6 => forward_family::<V6, T>(packet, tables, ethernet),
        _ => None,
    }
}

#[inline(always)]
fn forward_family<F: Family, T: Tables + Flows<F>>(
    packet: Packet,
    tables: &T,
    ethernet: &mut EthernetHdr,
) -> Option<Result<Action, Reason>> {
    let ip = packet.header::<F::Hdr>(ETHERNET_LEN).ok()?;
    let (src, dst, carried) = F::plain(ip)?;
    if !tables.is_vip(dst.vip_bit()) {
        return Some(Err(Reason::NotOurs));
    }
    let l4 = const { ETHERNET_LEN + size_of::<F::Hdr>() };
    let (ports, check) = match carried {
        protocol::TCP => {
            let tcp = packet.header::<TcpHdr>(l4).ok()?;
            if tcp.flags & (tcp_flags::SYN | tcp_flags::FIN | tcp_flags::RST) != 0 {
                return None;
            }
            (&mut tcp.ports, &mut tcp.check)
        }
        protocol::UDP => {
            let udp = packet.header::<UdpHdr>(l4).ok()?;
            (&mut udp.ports, &mut udp.check)
        }
        _ => return None,
    };

    let key = F::key(Tuple { src, dst, ports: Ports(load32(ports)) }, carried);
    let entry = tables.flow(&key)?;
    let backend = tables.backend(entry.backend())?;
    let bytes = packet.len() as u64;
    let egress = if entry.state() & state::RETURN == 0 {
        if backend.flags & (FORWARD | RESOLVED) != FORWARD | RESOLVED
            || client_side(&packet, ethernet) != entry.client_side()
        {
            return None;
        }
        tables.count_forward(entry.backend(), bytes);
        rewrite::Egress::to_backend(backend)
    } else {
        if backend.flags & FORWARD == 0 {
            return None;
        }
        tables.count_return(entry.backend(), bytes);
        rewrite::Egress::to_client(entry.client_side())
    };
    entry.seen(tables.now_ns(), bytes);
    F::rewrite(ip, entry);
    rewrite::l4(ports, check, carried, entry.ports(), entry.l4_delta());
    Some(Ok(egress.leave(&packet, ethernet)))
}
