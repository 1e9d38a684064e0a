//! The sockets that adverts go by.
//!
//! A raw socket gets whatever arrives for protocol 112, with the time at which the kernel received it.
//! While the process does not run, adverts wait there: see `machine`, *a late Backup*.

use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::AsRawFd,
    time::Duration,
};

use nix::{
    cmsg_space,
    errno::Errno,
    sys::{
        socket::{
            ControlMessageOwned, MsgFlags, SockaddrIn6, SockaddrStorage, recvmsg, setsockopt,
            sockopt::{Ipv6RecvHopLimit, Ipv6RecvPacketInfo, RcvBufForce, ReceiveTimestampns},
        },
        time::TimeSpec,
    },
};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};
use tokio::io::{Interest, unix::AsyncFd};

use super::packet::{Envelope, GROUP_V4, GROUP_V6, HOP_LIMIT, PROTOCOL};
use crate::clock;

/// Bytes of adverts that wait to be read. What the kernel counts for each is about a kilobyte, so that
/// adverts of ten routers at 10 ms fit for some seconds.
const BUFFER: usize = 1 << 22;

/// The longest advert: 255 addresses of IPv6, and an IPv4 header with options.
const LONGEST: usize = 8 + 255 * 16 + 60;

/// RFC 2474 class selector 6, network control, as other routers send it.
const TRAFFIC_CLASS: u32 = 0xc0;

/// An advert as it arrived.
#[derive(Debug)]
pub(super) struct Received {
    /// Who sent it, and to whom.
    pub(super) envelope: Envelope,
    /// The VRRP message.
    pub(super) message: Vec<u8>,
    /// When the kernel received it, on the monotonic clock.
    pub(super) at: Duration,
}

/// Sends and receives the adverts of one family on one interface.
#[derive(Debug)]
pub(super) struct AdvertSocket {
    receiver: AsyncFd<Socket>,
    sender: Socket,
    own: IpAddr,
    ifindex: u32,
}

impl AdvertSocket {
    /// Joins the group on the interface. Adverts will come from `own`, an address of the interface.
    /// Needs `CAP_NET_RAW`, and a tokio runtime.
    pub(super) fn open(interface: &str, ifindex: u32, own: IpAddr) -> io::Result<Self> {
        let is_v4 = own.is_ipv4();
        let domain = if is_v4 { Domain::IPV4 } else { Domain::IPV6 };
        // A socket that is bound to an address does not receive what is sent to the group.
        let [receiver, sender] = [0, 1].map(|_| raw(domain, interface));
        let (receiver, sender) = (receiver?, sender?);
        match own {
            IpAddr::V4(own) => {
                let on = InterfaceIndexOrAddress::Index(ifindex);
                receiver.join_multicast_v4_n(&GROUP_V4, &on)?;
                sender.set_multicast_if_v4(&own)?;
                sender.set_multicast_loop_v4(false)?;
                sender.set_multicast_ttl_v4(HOP_LIMIT.into())?;
                sender.set_ttl_v4(HOP_LIMIT.into())?;
                sender.set_tos_v4(TRAFFIC_CLASS)?;
            }
            IpAddr::V6(_) => {
                receiver.join_multicast_v6(&GROUP_V6, ifindex)?;
                setsockopt(&receiver, Ipv6RecvPacketInfo, &true)?;
                setsockopt(&receiver, Ipv6RecvHopLimit, &true)?;
                sender.set_multicast_if_v6(ifindex)?;
                sender.set_multicast_loop_v6(false)?;
                sender.set_multicast_hops_v6(HOP_LIMIT.into())?;
                sender.set_unicast_hops_v6(HOP_LIMIT.into())?;
                sender.set_tclass_v6(TRAFFIC_CLASS)?;
            }
        }
        sender.bind(&scoped(own, ifindex).into())?;
        // Nobody reads it; it would only fill up.
        sender.set_recv_buffer_size(0)?;
        setsockopt(&receiver, ReceiveTimestampns, &true)?;
        // Without CAP_NET_ADMIN the usual size has to do.
        let _ = setsockopt(&receiver, RcvBufForce, &BUFFER);
        // SAFETY: the socket is open, and only dropped with the `AsyncFd` that owns it; nothing here
        // replaces its descriptor.
        let receiver = unsafe { AsyncFd::register_with_interest(receiver, Interest::READABLE) }?;
        Ok(Self { receiver, sender, own, ifindex })
    }

    /// Whether it is on this interface, with this source.
    pub(super) fn is_on(&self, ifindex: u32, own: IpAddr) -> bool {
        (self.ifindex, self.own) == (ifindex, own)
    }

    /// Waits until something is there. Cancelling loses nothing.
    pub(super) async fn readable(&self) -> io::Result<()> {
        loop {
            let mut ready = self.receiver.readable().await?;
            if !self.is_empty() {
                return Ok(());
            }
            ready.clear_ready();
        }
    }

    fn is_empty(&self) -> bool {
        let mut byte = [0];
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        nix::sys::socket::recv(self.receiver.as_raw_fd(), &mut byte, flags) == Err(Errno::EAGAIN)
    }

    /// The next packet that is there, if it can be read at all.
    pub(super) fn receive(&self) -> io::Result<Option<Received>> {
        let mut bytes = [0; LONGEST];
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let mut space = cmsg_space!(TimeSpec, libc::in6_pktinfo, libc::c_int);
        let flags = MsgFlags::MSG_DONTWAIT;
        loop {
            let fd = self.receiver.as_raw_fd();
            let read = match recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut space), flags) {
                Ok(read) => read,
                Err(Errno::EAGAIN) => return Ok(None),
                // ENETDOWN is told once, when the interface goes down.
                Err(Errno::EINTR | Errno::ENETDOWN) => continue,
                Err(error) => return Err(error.into()),
            };
            let now = clock::monotonic();
            let mut at = now;
            let (mut destination, mut hop_limit) = (None, 0);
            for message in read.cmsgs()? {
                match message {
                    ControlMessageOwned::ScmTimestampns(stamp) => {
                        let nanos = stamp.tv_sec() as u64 * 1_000_000_000 + stamp.tv_nsec() as u64;
                        at = clock::from_wall(nanos).min(now);
                    }
                    ControlMessageOwned::Ipv6PacketInfo(info) => {
                        destination = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr));
                    }
                    ControlMessageOwned::Ipv6HopLimit(limit) => hop_limit = limit as u8,
                    _ => {}
                }
            }
            let source = read.address.as_ref().and_then(SockaddrStorage::as_sockaddr_in6);
            let source = source.map(SockaddrIn6::ip);
            let length = read.bytes;
            let packet = &parts[0][..length.min(LONGEST)];
            if self.own.is_ipv4() {
                if let Some((envelope, message)) = take_header(packet) {
                    return Ok(Some(Received { envelope, message: message.to_vec(), at }));
                }
            } else if let (Some(source), Some(destination)) = (source, destination) {
                let envelope =
                    Envelope { source: source.into(), destination: destination.into(), hop_limit };
                return Ok(Some(Received { envelope, message: packet.to_vec(), at }));
            }
        }
    }

    /// Sends a message to a group or a node. A full queue is an error, not a wait.
    pub(super) fn send(&self, message: &[u8], to: IpAddr) -> io::Result<()> {
        self.sender.send_to(message, &scoped(to, self.ifindex).into()).map(drop)
    }
}

fn raw(domain: Domain, interface: &str) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(i32::from(PROTOCOL))))?;
    socket.set_nonblocking(true)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    Ok(socket)
}

/// A link-local address needs its interface.
fn scoped(address: IpAddr, ifindex: u32) -> SocketAddr {
    match address {
        IpAddr::V4(address) => SocketAddr::from((address, 0)),
        IpAddr::V6(address) => SocketAddrV6::new(address, 0, 0, ifindex).into(),
    }
}

/// A raw socket of IPv4 gives the header too. The kernel has checked it, its checksum and length.
fn take_header(packet: &[u8]) -> Option<(Envelope, &[u8])> {
    let header = packet.first_chunk::<20>()?;
    let length = usize::from(header[0] & 0x0f) * 4;
    let address = |at: usize| IpAddr::from([0, 1, 2, 3].map(|byte| header[at + byte]));
    let envelope = Envelope { source: address(12), destination: address(16), hop_limit: header[8] };
    Some((envelope, packet.get(length..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_taken_off_with_its_options() {
        let mut packet = [0; 40];
        packet[..20].copy_from_slice(&[
            0x46, 0xc0, 0, 40, 0, 0, 0, 0, 255, 112, 0, 0, 192, 0, 2, 11, 224, 0, 0, 18,
        ]);
        packet[24] = 0x31;
        let (envelope, message) = take_header(&packet).unwrap();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!((envelope.source, envelope.destination), (ip("192.0.2.11"), ip("224.0.0.18")));
        assert_eq!((envelope.hop_limit, message.len(), message[0]), (255, 16, 0x31));
        for length in 0..20 {
            assert!(take_header(&packet[..length]).is_none());
        }
        packet[0] = 0x4f;
        assert!(take_header(&packet).is_none(), "a header longer than the packet");
    }
}
