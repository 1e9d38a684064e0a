//! `hold-connections TARGET FROM FIRST COUNT`: opens connections to TARGET from the address FROM and
//! its ports FIRST and up, prints how many could be opened, and holds them until its input ends.
//!
//! A program of its own, because a process may have fewer descriptors than a test needs connections.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    os::fd::{AsRawFd as _, OwnedFd},
    sync::Mutex,
    thread,
};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket,
            sockopt,
        },
        time::TimeVal,
    },
};

/// Connections that are being opened at the same time.
const AT_ONCE: usize = 128;

/// Seconds after which a connection is given up: time for some retransmissions of its SYN.
const PATIENCE: i64 = 8;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [target, from, first, count] = &arguments[..] else {
        bail!("usage: hold-connections TARGET FROM FIRST COUNT");
    };
    let SocketAddr::V4(target) = target.parse().context("read TARGET")? else {
        bail!("TARGET is not IPv4");
    };
    let from: Ipv4Addr = from.parse().context("read FROM")?;
    let first: u16 = first.parse().context("read FIRST")?;
    let count: u16 = count.parse().context("read COUNT")?;

    let ports = first..first.checked_add(count).context("the ports end at 65535")?;
    let ports = Mutex::new(ports);
    let next = || ports.lock().ok()?.next();
    let open_all = || {
        let mut held = Vec::new();
        while let Some(port) = next() {
            held.extend(open(target, SocketAddrV4::new(from, port))?);
        }
        Ok::<_, anyhow::Error>(held)
    };
    let held: Vec<OwnedFd> = thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(open_all)).collect();
        let mut held = Vec::new();
        for thread in threads {
            held.extend(thread.join().map_err(|_| anyhow!("a thread panicked"))??);
        }
        Ok::<_, anyhow::Error>(held)
    })?;
    println!("{}", held.len());
    std::io::stdout().flush().context("write")?;
    std::io::stdin().read_to_end(&mut Vec::new()).context("wait for the end")?;
    Ok(())
}

/// A connection, or none if the other side does not answer.
fn open(target: SocketAddrV4, from: SocketAddrV4) -> Result<Option<OwnedFd>> {
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .context("open a socket")?;
    // The kernel takes it as the limit for connecting too.
    setsockopt(&fd, sockopt::SendTimeout, &TimeVal::new(PATIENCE, 0)).context("set a limit")?;
    bind(fd.as_raw_fd(), &SockaddrIn::from(from)).with_context(|| format!("bind to {from}"))?;
    match connect(fd.as_raw_fd(), &SockaddrIn::from(target)) {
        Ok(()) => Ok(Some(fd)),
        Err(Errno::EINPROGRESS | Errno::ETIMEDOUT | Errno::ECONNREFUSED) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("connect to {target}")),
    }
}
