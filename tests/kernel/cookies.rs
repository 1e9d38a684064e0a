//! The kernel's SYN cookies: when it gives them, and to whom.

use std::{fs, net::SocketAddr, net::TcpListener, thread};

use anyhow::{Context as _, Result};
use lb_common::{
    reason::Reason,
    service::{FORWARDABLE, LISTENED, PROXIED},
};
use lb_ebpf::{
    fake::{
        Frame, Net, Xdp, assert_valid,
        frame::SYN_OPTIONS,
        setup::{CLIENT_MAC, OUR_MAC},
    },
    packet::tcp_flags::{ACK, SYN},
};
use lb_tests::kernel::Kernel;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

/// How the node's stack is said to scale windows.
const OWN_SCALE: u8 = 7;

/// In a network namespace of its own, whose settings are its own too.
fn alone(body: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    let inside = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).context("make a namespace")?;
        body()
    };
    thread::scope(|scope| {
        scope.spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// `net.ipv4.tcp_syncookies`: 0 never, 1 when a queue is full, 2 always.
fn give_cookies(when: u8) -> Result<()> {
    fs::write("/proc/sys/net/ipv4/tcp_syncookies", when.to_string()).context("set tcp_syncookies")
}

/// Listens as the proxy does.
fn listen(at: SocketAddr, backlog: i32) -> Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_port(true)?;
    setsockopt(&socket, sockopt::IpFreebind, &true)?;
    socket.bind(&at.into())?;
    socket.listen(backlog)?;
    Ok(socket.into())
}

/// The sequence number in a frame without tags.
fn sequence(net: &Net, frame: &[u8]) -> u32 {
    let l4 = 14 + if net.vip.is_ipv4() { 20 } else { 40 };
    u32::from_be_bytes(frame[l4 + 4..l4 + 8].try_into().expect("four bytes"))
}

#[test]
fn the_kernels_cookies_are_given_for_listeners_and_when_it_would() -> Result<()> {
    alone(|| {
        let mut kernel = Kernel::load_scaled(64, OWN_SCALE)?;
        for net in Net::both() {
            kernel.reset(&net.single().flagged(LISTENED | PROXIED | FORWARDABLE))?;
            let counted = |kernel: &Kernel, reason: Reason| -> Result<u64> {
                Ok(kernel.counters()?.reasons[reason as usize])
            };
            let syn = Frame::syn(net.client, net.vip).build();
            give_cookies(2)?;
            let listener = listen(net.vip, 16)?;
            let outcome = kernel.run(&syn)?;
            assert_eq!(outcome.xdp, Xdp::Transmit);
            assert_eq!(counted(&kernel, Reason::SynCookie)?, 1);
            assert_valid(&outcome.frame);
            let seq = sequence(&net, &outcome.frame);
            // All but the cookie and the time is known. The time's lower bits say what was offered.
            let l4 = if net.vip.is_ipv4() { 34 } else { 54 };
            let stamp = &outcome.frame[l4 + 28..l4 + 32];
            assert_eq!(stamp[3] & 0x3f, 0x17);
            let mss = if net.vip.is_ipv4() { 1460_u16 } else { 1440 }.to_be_bytes();
            let mut options = SYN_OPTIONS;
            options[2..4].copy_from_slice(&mss);
            options[8..12].copy_from_slice(stamp);
            options[12..16].copy_from_slice(&SYN_OPTIONS[8..12]);
            options[19] = OWN_SCALE;
            let expected = Frame::tcp(net.vip, net.client, SYN | ACK)
                .numbers(seq, 0x0102_0305)
                .tcp_options(&options)
                .label(0)
                .link(OUR_MAC, CLIENT_MAC);
            assert_eq!(outcome.frame, expected.build());
            // Another client has another cookie.
            let other = Frame::syn(net.other_client(1, 40_000), net.vip).build();
            assert_ne!(sequence(&net, &kernel.run(&other)?.frame), seq);
            // What the client answers is the node's.
            let next = Frame::tcp(net.client, net.vip, ACK).numbers(0x0102_0305, seq + 1).build();
            assert_eq!(kernel.run(&next)?.xdp, Xdp::Pass);

            // While there is room, and when they are switched off, the listener gets the SYN.
            for when in [1, 0] {
                give_cookies(when)?;
                let before = counted(&kernel, Reason::Proxied)?;
                assert_eq!(kernel.run(&syn)?.xdp, Xdp::Pass, "tcp_syncookies = {when}");
                assert_eq!(counted(&kernel, Reason::Proxied)?, before + 1);
            }

            // Nobody listens any more: the kernel path takes it.
            give_cookies(2)?;
            drop(listener);
            assert_eq!(kernel.run(&syn)?.xdp, Xdp::Transmit);
            assert_eq!(kernel.counters()?.backends[0].1.forward_packets, 1);
        }
        Ok(())
    })
}
