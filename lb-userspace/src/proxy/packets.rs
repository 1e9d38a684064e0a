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
}

impl Packets {
    /// What is written from now on is the last answer, and all of it is at hand.
    pub(super) fn ends(&self) {
        self.last.store(true, Relaxed);
    }

    /// Another request has come.
    pub(super) fn goes_on(&self) {
        self.last.store(false, Relaxed);
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
            acknowledge(tcp);
        }
    }
}

/// Has the kernel acknowledge at once what has come, and what comes until something is answered.
pub(super) fn acknowledge(tcp: &TcpStream) {
    // It only makes things slower if it cannot be done.
    let _ = SockRef::from(tcp).set_tcp_quickack(true);
}
