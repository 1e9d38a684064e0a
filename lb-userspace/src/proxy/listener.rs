//! The listening sockets.

use std::{io, net::SocketAddr, time::Duration};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

/// Connections that wait until a worker takes them; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Silence after which the kernel asks a client whether it is still there.
const KEEPALIVE: Duration = Duration::from_mins(2);

/// A socket that listens there, whether this node has the address or not: it may get it at any time.
/// Several may listen at one place; the kernel spreads connections over them.
pub(super) fn bind(listen: SocketAddr) -> io::Result<std::net::TcpListener> {
    let domain = Domain::for_address(listen);
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if listen.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // One option for both families (ip(7)).
    setsockopt(&socket, sockopt::IpFreebind, &true)?;
    // Connections are born with what their listener has.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
    socket.bind(&listen.into())?;
    socket.listen(BACKLOG)?;
    let socket = socket.into();
    answer_acknowledges(&socket);
    Ok(socket)
}

/// Has the answers to requests acknowledge them; see `packets.rs`. To be called after `listen`, which
/// begins that anew.
pub(super) fn answer_acknowledges(listener: &std::net::TcpListener) {
    // Connections have one packet more without it.
    let _ = SockRef::from(listener).set_tcp_quickack(false);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_nobody_has_can_be_listened_on_twice() {
        for listen in ["198.51.100.7:0", "[2001:db8::7]:0"] {
            let one = bind(listen.parse().unwrap()).unwrap();
            bind(one.local_addr().unwrap()).unwrap();
        }
    }
}
