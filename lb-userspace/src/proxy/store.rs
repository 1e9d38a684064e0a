//! Listening sockets that outlive the daemon, in the service manager's store.
//!
//! Clients of most services are forwarded by the kernel while no daemon is there. Those of a service that
//! nobody but the proxy can take ([`config::Proxy::is_only`](crate::config::Proxy::is_only)) would be
//! refused. So their sockets are given to systemd (`FDSTORE`, `sd_notify(3)`), which holds them open and
//! hands them to the next daemon: whoever connects meanwhile waits in their queue.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd as _, FromRawFd as _},
    sync::atomic::{AtomicBool, Ordering},
};

use sd_notify::NotifyState;

/// What the names of our sockets begin with.
const PREFIX: &str = "proxy_";

/// What an earlier daemon has left.
#[derive(Debug, Default)]
pub(super) struct Store(Vec<(SocketAddr, TcpListener)>);

impl Store {
    /// Takes what there is; the first call in a process gets it.
    pub(super) fn open() -> Self {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        if TAKEN.swap(true, Ordering::Relaxed) {
            return Self::default();
        }
        let found = match sd_notify::listen_fds_with_names() {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "take the sockets of an earlier daemon");
                return Self::default();
            }
        };
        let ours = found.filter(|(_, name)| name.starts_with(PREFIX)).filter_map(|(number, _)| {
            // SAFETY: the service manager has opened it for this process (`sd_listen_fds(3)`), and this
            // function is the only one that takes it, once.
            let socket = unsafe { TcpListener::from_raw_fd(number) };
            // What is no socket is of no use.
            let address = socket.local_addr().ok()?;
            socket.set_nonblocking(true).ok()?;
            Some((address, socket))
        });
        Self(ours.collect())
    }

    /// Those that listen there.
    pub(super) fn take(&mut self, listen: SocketAddr) -> Vec<TcpListener> {
        let (taken, left) =
            std::mem::take(&mut self.0).into_iter().partition(|(address, _)| *address == listen);
        self.0 = left;
        let taken: Vec<(SocketAddr, TcpListener)> = taken;
        taken.into_iter().map(|(_, socket)| socket).collect()
    }

    /// Closes the others: nobody would take their connections.
    pub(super) fn clear(&mut self) {
        for (address, _) in std::mem::take(&mut self.0) {
            forget(address);
        }
    }
}

/// Has sockets kept for the next daemon. Without a service manager that does, nothing happens.
pub(super) fn keep(listen: SocketAddr, sockets: &[TcpListener]) {
    let name = name(listen);
    for socket in sockets {
        // A listening socket is never done, whatever poll(2) says.
        let state =
            [NotifyState::FdStore, NotifyState::FdName(&name), NotifyState::Custom("FDPOLL=0")];
        warn(listen, sd_notify::notify_with_fds(&state, &[socket.as_fd()]));
    }
}

/// Has sockets kept no longer.
pub(super) fn forget(listen: SocketAddr) {
    let name = name(listen);
    let state = [NotifyState::FdStoreRemove, NotifyState::FdName(&name)];
    warn(listen, sd_notify::notify(&state));
}

fn warn(listen: SocketAddr, result: io::Result<()>) {
    if let Err(error) = result {
        tracing::warn!(%error, %listen, "have the service manager keep the sockets");
    }
}

/// The sockets of one service have one name. It may have no colon.
fn name(listen: SocketAddr) -> String {
    format!("{PREFIX}{listen}").replace(':', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_found_by_their_address() {
        let one = TcpListener::bind("127.0.0.1:0").unwrap();
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = one.local_addr().unwrap();
        let mut store = Store(vec![(address, one), (other.local_addr().unwrap(), other)]);
        assert_eq!(store.take(address).len(), 1);
        assert_eq!(store.take(address).len(), 0);
        assert_eq!(store.0.len(), 1);
        store.clear();
        assert!(store.0.is_empty());
    }

    #[test]
    fn names_are_fit_for_systemd() {
        let name = name("[2001:db8::100]:443".parse().unwrap());
        assert_eq!(name, "proxy_[2001_db8__100]_443");
    }
}
