//! Sends whole frames by packet sockets: what the kernel's own protocols would not send, such as an
//! announcement of an address, or a reset in the name of somebody else.

use std::io;

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

/// Sends frames on any interface of its network namespace.
#[derive(Debug)]
pub struct Sender(Socket);

impl Sender {
    /// Opens a socket in the network namespace of this thread. It receives nothing.
    pub fn open() -> io::Result<Self> {
        packet_socket(0).map(Self)
    }

    /// Sends `frame` as it is. A full queue of the interface is an error, not a wait.
    pub fn send(&self, ifindex: u32, frame: &[u8]) -> io::Result<()> {
        let ethertype = u16::from_be_bytes([frame[12], frame[13]]);
        self.0.send_to(frame, &link_address(ifindex, ethertype)).map(|_| ())
    }
}

/// Sends one frame, as [`Sender::send`] does, by a socket of its own.
pub fn send(ifindex: u32, frame: &[u8]) -> io::Result<()> {
    Sender::open()?.send(ifindex, frame)
}

/// A packet socket that receives the packets of one Ethernet type, or of none for 0.
pub(crate) fn packet_socket(protocol: i32) -> io::Result<Socket> {
    // socket2 adds SOCK_CLOEXEC.
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(protocol)))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The address of an interface, for packets of an Ethernet type.
pub(crate) fn link_address(ifindex: u32, ethertype: u16) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: `sockaddr_ll` is a socket address of the kernel's: no larger than the storage, and all
    // zeros are a valid value of it.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = ethertype.to_be();
    address.sll_ifindex = ifindex as i32;
    // SAFETY: the storage holds an address of family AF_PACKET, of the length given.
    unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) }
}
