//! Turns a packet of one tuple into a packet of another, and sends it on.

use core::mem::offset_of;

use lb_common::{backend::Backend, reason::Reason};

use crate::{
    Action,
    checksum::{adjust, adjust_udp},
    family::{Family, Ports, protocol},
    packet::{EthernetHdr, Macs, Packet, TcpHdr, UdpHdr, load16, store16, store32},
    parse::Segment,
    tables::Entry,
};

/// The link that a packet leaves by.
#[derive(Clone, Copy, Debug)]
pub struct Egress {
    macs: Macs,
    ifindex: u32,
}

impl Egress {
    /// Towards a backend, by the next hop that user space found.
    #[inline(always)]
    pub fn to_backend(backend: &Backend) -> Self {
        const { assert!(offset_of!(Backend, source_mac) == offset_of!(Backend, next_hop) + 6) }
        let start: *const Backend = backend;
        // SAFETY: both addresses, which lie side by side (asserted above).
        let macs = unsafe { &*start.byte_add(offset_of!(Backend, next_hop)).cast() };
        Self { macs: Macs::load(macs), ifindex: backend.ifindex }
    }

    /// Back to a client, by the way that its own packets come. The entry is of that direction.
    #[inline(always)]
    pub fn to_client<F: Family>(entry: &F::Entry) -> Self {
        Self { macs: entry.macs(), ifindex: entry.client_ifindex() }
    }

    /// The MAC addresses of frames that leave.
    #[inline(always)]
    pub fn macs(self) -> Macs {
        self.macs
    }

    /// Writes the MAC addresses and says how the packet leaves.
    #[inline(always)]
    pub fn leave(self, packet: &Packet, ethernet: &mut EthernetHdr) -> Action {
        self.leave_from(packet.ingress_ifindex, ethernet)
    }

    /// The same for a packet that has come in by the interface `ingress`.
    #[inline(always)]
    pub fn leave_from(self, ingress: u32, ethernet: &mut EthernetHdr) -> Action {
        self.macs.store(ethernet.macs_mut());
        if self.ifindex == ingress {
            Action::Transmit
        } else {
            Action::Redirect { ifindex: self.ifindex }
        }
    }
}

/// Writes ports, and mends the checksum, of a TCP or UDP header.
#[inline(always)]
pub fn l4(ports: &mut [u8; 4], check: &mut [u8; 2], carried: u8, new: Ports, delta: u16) {
    store32(ports, new.0);
    let old = load16(check);
    if carried == protocol::TCP {
        store16(check, adjust(old, delta));
    } else if old != 0 {
        store16(check, adjust_udp(old, delta));
    }
}

/// Rewrites the packet as the entry says, and sends it on.
#[inline(always)]
pub fn send<F: Family>(
    packet: &Packet,
    segment: &Segment<F::Address>,
    entry: &F::Entry,
    egress: Egress,
) -> Result<Action, Reason> {
    if segment.ttl <= 1 {
        return Err(Reason::TtlExpired);
    }
    let ethernet = packet.header::<EthernetHdr>(0)?;
    F::rewrite(packet.header::<F::Hdr>(segment.l3)?, entry);
    if segment.protocol == protocol::TCP {
        let tcp = packet.header::<TcpHdr>(segment.l4)?;
        l4(&mut tcp.ports, &mut tcp.check, protocol::TCP, entry.ports(), entry.l4_delta());
    } else {
        let udp = packet.header::<UdpHdr>(segment.l4)?;
        l4(&mut udp.ports, &mut udp.check, protocol::UDP, entry.ports(), entry.l4_delta());
    }
    Ok(egress.leave(packet, ethernet))
}
