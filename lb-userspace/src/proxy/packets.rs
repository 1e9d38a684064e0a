//! How many packets a client's connection costs.
//!
//! A connection that is made for one request is little more than its packets, so two are saved, and the
//! client's acknowledgements of them:
//!
//! - *The last answer ends the connection itself.* If all of it is at hand, the kernel is told that more
//!   follows (`MSG_MORE`), and what follows is the end: both leave in one packet. Should it turn out that
//!   something else has to come first, what was held back leaves at once; see [`Packets::settle`].
//! - *A request is acknowledged by its answer*, from a connection's first one on (the listener says so,
//!   see `listener.rs`), where the kernel would send an acknowledgement of its own for it. But a client that
//!   sends a request in pieces may wait for it before it sends the next (RFC 9293, section 3.7.4), and
//!   the kernel would make it wait for up to 40 ms. So a piece is acknowledged at once.

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream};

/// What a client's connection still has to send. One task has it all.
#[derive(Debug, Default)]
pub(super) struct Packets {
    /// What is written next is all that is left to write.
    last: AtomicBool,
    /// Something was written that the kernel holds back.
    held: AtomicBool,
    /// More of a request is waited for.
    waits: AtomicBool,
    /// Pieces of the request that has come last are acknowledged at once.
    acknowledges: AtomicBool,
}

impl Packets {
    /// What is written from now on is the last answer, and all of it is at hand.
    pub(super) fn ends(&self) {
        self.last.store(true, Relaxed);
    }

    /// Another request has come.
    pub(super) fn goes_on(&self) {
        self.last.store(false, Relaxed);
        self.acknowledges.store(false, Relaxed);
    }

    /// More of a request is waited for.
    pub(super) fn wait(&self) {
        self.waits.store(true, Relaxed);
    }

    /// Whether something is held back.
    pub(super) fn holds(&self) -> bool {
        self.held.load(Relaxed)
    }

    /// The end has been sent, and with it what was held back.
    pub(super) fn ended(&self) {
        self.held.store(false, Relaxed);
    }

    /// Writes.
    pub(super) fn write(&self, tcp: &TcpStream, bytes: &[io::IoSlice<'_>]) -> io::Result<usize> {
        if !self.last.load(Relaxed) {
            return tcp.try_write_vectored(bytes);
        }
        let flags = libc::MSG_MORE | libc::MSG_NOSIGNAL;
        let written = tcp.try_io(Interest::WRITABLE, || {
            SockRef::from(tcp).send_vectored_with_flags(bytes, flags)
        })?;
        self.held.store(true, Relaxed);
        Ok(written)
    }

    /// Has the kernel send what is due. To be called when a connection was driven and is not over.
    pub(super) fn settle(&self, tcp: &TcpStream) {
        // That a socket cannot be told so shows in its next use.
        if self.held.load(Relaxed) {
            self.held.store(false, Relaxed);
            // Sends what is held back, also where it was set before (tcp(7)).
            let _ = tcp.set_nodelay(true);
        }
        if self.waits.load(Relaxed) {
            self.waits.store(false, Relaxed);
            // Once is enough: the kernel goes on so until something is answered.
            if !self.acknowledges.swap(true, Relaxed) {
                acknowledge(tcp);
            }
        }
    }
}

/// Has the kernel acknowledge at once what has come, and what comes until something is answered.
pub(super) fn acknowledge(tcp: &TcpStream) {
    // It only makes things slower if it cannot be done.
    let _ = SockRef::from(tcp).set_tcp_quickack(true);
}

#[cfg(test)]
mod tests {
    use std::{
        io::{ErrorKind, IoSlice, Read as _},
        time::{Duration, Instant},
    };

    use super::*;

    /// Nothing here takes as long, unless it never ends.
    const PATIENCE: Duration = Duration::from_mins(1);

    /// By itself the kernel sends after 200 ms what was held back (tcp(7), `TCP_CORK`).
    const BY_ITSELF: Duration = Duration::from_millis(150);

    #[tokio::test]
    async fn what_is_held_back_leaves_when_something_else_is_waited_for() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let begun = Instant::now();
        // A slow machine may be slower than the kernel is.
        loop {
            assert!(begun.elapsed() < PATIENCE, "the kernel is not told to send it");
            let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (mut peer, _) = listener.accept().unwrap();
            peer.set_nonblocking(true).unwrap();
            tcp.writable().await.unwrap();
            let packets = Packets::default();
            packets.ends();
            let written = Instant::now();
            assert_eq!(
                packets.write(&tcp, &[IoSlice::new(b"la"), IoSlice::new(b"st")]).unwrap(),
                4
            );
            assert!(packets.holds());
            let mut bytes = [0; 8];
            match peer.read(&mut bytes) {
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                Ok(_) if written.elapsed() > BY_ITSELF => continue,
                Ok(read) => panic!("{read} bytes are not held back"),
            }
            packets.settle(&tcp);
            assert!(!packets.holds());
            while let Err(error) = peer.read(&mut bytes) {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                assert!(begun.elapsed() < PATIENCE, "it is never sent");
            }
            assert_eq!(&bytes[..4], b"last");
            if written.elapsed() < BY_ITSELF {
                return;
            }
        }
    }

    #[tokio::test]
    async fn what_goes_on_is_not_held_back() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        tcp.writable().await.unwrap();
        let packets = Packets::default();
        packets.ends();
        packets.goes_on();
        packets.write(&tcp, &[IoSlice::new(b"one")]).unwrap();
        assert!(!packets.holds());
    }
}
