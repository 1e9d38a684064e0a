//! A TCP connection to a backend, as hyper reads and writes it.
//!
//! It is shared with whoever waits for the answer, so that the kernel can be asked whether the other
//! host is still there.

use std::{
    io,
    mem::MaybeUninit,
    net::Shutdown,
    os::fd::AsRawFd as _,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
    time::Sleep,
};

use super::edge::Edge;
use crate::clock;

/// After so many retransmissions in a row of the same bytes the host counts as silent. The first comes
/// after a round trip and 200 ms at least, the second after twice that: so a host that is there has
/// failed to acknowledge for 600 ms or more.
const SILENT_RETRANSMISSIONS: u8 = 2;

/// A connection whose writes may take only so long.
#[derive(Debug)]
pub(super) struct Stream {
    tcp: Arc<TcpStream>,
    send_timeout: Duration,
    stuck: Option<Pin<Box<Sleep>>>,
    /// What is known of a client's connection.
    edge: Option<Arc<Edge>>,
}

impl Stream {
    pub(super) fn new(tcp: Arc<TcpStream>, send_timeout: Duration) -> Self {
        Self { tcp, send_timeout, stuck: None, edge: None }
    }

    /// That of a client.
    pub(super) fn of_client(tcp: Arc<TcpStream>, send_timeout: Duration, edge: Arc<Edge>) -> Self {
        Self { tcp, send_timeout, stuck: None, edge: Some(edge) }
    }

    /// The socket.
    pub(super) fn tcp(&self) -> &Arc<TcpStream> {
        &self.tcp
    }

    /// Waits for room to write, but not for ever.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Poll::Ready(room) = self.tcp.poll_write_ready(cx) {
            return Poll::Ready(room);
        }
        let timeout = self.send_timeout;
        let stuck = self
            .stuck
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(clock::timer() + timeout)));
        ready!(stuck.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.poll_room(cx))?;
            let written = match &self.edge {
                Some(edge) => edge.packets.write(&self.tcp, bytes),
                None => self.tcp.try_write_vectored(bytes),
            };
            match written {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => {
                    self.stuck = None;
                    return Poll::Ready(written);
                }
            }
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.tcp.poll_read_ready(cx))?;
            let room = buf.remaining();
            match self.tcp.try_read_buf(buf) {
                Ok(read) => {
                    if 0 < read && read < room {
                        // There is no more, so another read would only be told to wait. What comes
                        // from now on, and the end, makes the socket ready anew (epoll(7), EPOLLET).
                        let nothing = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
                        let _ = self.tcp.try_io(Interest::READABLE, nothing);
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.write(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(edge) = &self.edge {
            edge.packets.ended();
        }
        Poll::Ready(SockRef::from(&*self.tcp).shutdown(Shutdown::Write))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

/// Whether the other host does not even acknowledge what it was sent: not the application is slow, the
/// host or the way to it is gone.
pub(super) fn is_silent(tcp: &TcpStream) -> bool {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the descriptor is open as long as `tcp` lives, and the kernel writes no more than
    // `length` bytes, which `info` has.
    let got = unsafe {
        libc::getsockopt(
            tcp.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    // SAFETY: it is made of numbers, so zeros are a value too; the kernel has overwritten some.
    let info = unsafe { info.assume_init() };
    got == 0 && info.tcpi_unacked > 0 && info.tcpi_retransmits >= SILENT_RETRANSMISSIONS
}
