//! The node that had the addresses before this one, and still answers on its proxy's connections.
//!
//! A connection of the proxy is a socket, which does not move with the address. So for as long as that node
//! answers on, a packet of a connection of which this node has no socket goes there, in the frame that it came
//! in with other MAC addresses: both nodes are on one segment. It is asked for nothing unless there is such
//! a node, and never for the first packet of a connection.

use aya_ebpf::{
    bindings::bpf_sock,
    helpers::{bpf_sk_release, bpf_skc_lookup_tcp, bpf_tcp_check_syncookie},
};
use lb_common::{
    elder::{LAST, RELAY},
    reason::Reason,
};
use lb_ebpf::{
    family::{Family, protocol},
    gate,
    packet::{EthernetHdr, Macs, Packet, TcpHdr},
    parse::Segment,
    tables::Flows,
};

use super::{
    clock, maps,
    tables::{Maps, OWN_NETNS},
};

/// `TCP_LISTEN`: what is found where no connection is.
const LISTEN: u32 = 10;

/// No MAC address: this node is the one that answers on.
const NOBODY: [u8; 6] = [0; 6];

/// Whether there is one that still answers.
#[inline(always)]
pub(crate) fn answers() -> bool {
    maps::ELDER
        .get(LAST)
        .is_some_and(|elder| elder.until_ns != 0 && clock::now_ns() < elder.until_ns)
}

/// Makes the packet go there, if it is of a connection that this node does not have, and says what it counts
/// as.
///
/// Never back to where it came from: so two nodes that both have the address send no packet in a circle. A node
/// that does not have it, and may be who answers on, hands on what comes from the node that has it, if a third
/// one answers on too: that one's frames come from this node then, so it hands them on to nobody. Of all else that
/// it does not know it says nothing: whoever has the address knows, and the client sends it again.
#[inline(always)]
pub(crate) fn hand_on<F: Family>(packet: &Packet) -> Reason
where
    Maps: Flows<F>,
{
    let Some(elder) = maps::ELDER.get(LAST) else { return Reason::Proxied };
    let Some(segment) = lb_ebpf::segment::<F, Maps>(packet, &Maps) else { return Reason::Proxied };
    // A socket that has just come about takes the place of its request, and is not found for a moment.
    if segment.protocol != protocol::TCP
        || has_connection::<F>(packet, &segment)
        || has_connection::<F>(packet, &segment)
    {
        return Reason::Proxied;
    }
    if gate::destination(packet).is_none_or(maps::is_closed) {
        return relay(packet);
    }
    let Ok(ethernet) = packet.header::<EthernetHdr>(0) else { return Reason::Proxied };
    if elder.mac == NOBODY {
        return Reason::Proxied;
    }
    let Some(macs) = Macs::load(ethernet.macs()).onward(elder.mac) else { return Reason::Proxied };
    macs.store(ethernet.macs_mut());
    Reason::HandedOn
}

/// The same at a node that does not have the address.
#[inline(always)]
fn relay(packet: &Packet) -> Reason {
    let Some(elder) = maps::ELDER.get(RELAY) else { return Reason::NoLease };
    if elder.until_ns == 0 || clock::now_ns() >= elder.until_ns {
        return Reason::NoLease;
    }
    let Ok(ethernet) = packet.header::<EthernetHdr>(0) else { return Reason::NoLease };
    let macs = Macs::load(ethernet.macs());
    let Some(onward) = macs.onward(elder.mac) else { return Reason::NoLease };
    if !macs.is_from(elder.from) {
        return Reason::NoLease;
    }
    onward.store(ethernet.macs_mut());
    Reason::HandedOn
}

/// Whether a socket of this node has the connection, or is about to: by a SYN cookie, of which only the kernel
/// knows.
#[inline(always)]
fn has_connection<F: Family>(packet: &Packet, segment: &Segment<F::Address>) -> bool {
    /// Without what alignment adds.
    const PORTS: usize = size_of::<u32>();
    // Laid out as `struct bpf_sock_tuple` is.
    let mut tuple = segment.tuple;
    let length = 2 * size_of::<F::Address>() + PORTS;
    let (Ok(ip), Ok(tcp)) =
        (packet.header::<F::Hdr>(segment.l3), packet.header::<TcpHdr>(segment.l4))
    else {
        return true;
    };
    let (ip, tcp): (*mut F::Hdr, *mut TcpHdr) = (ip, tcp);
    let (ip_len, tcp_len) = (size_of::<F::Hdr>() as u32, size_of::<TcpHdr>() as u32);
    // SAFETY: the tuple lies on the stack, and is as long as is said; the socket is given back at once.
    unsafe {
        let context = packet.context as *mut core::ffi::c_void;
        let ends = (&raw mut tuple).cast();
        let socket = bpf_skc_lookup_tcp(context, ends, length as u32, OWN_NETNS, 0);
        if socket.is_null() {
            return false;
        }
        let state = (&raw const (*socket.cast::<bpf_sock>()).state).read_volatile();
        let is_cookie = state == LISTEN
            && bpf_tcp_check_syncookie(socket.cast(), ip.cast(), ip_len, tcp.cast(), tcp_len) == 0;
        bpf_sk_release(socket.cast());
        state != LISTEN || is_cookie
    }
}
