//! Packets of connections that the proxy of another node has, which had the address before.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    process::Command,
    thread,
};

use anyhow::{Context as _, Result, ensure};
use lb_common::{
    elder::Elder,
    lease::{Lease, LeaseKey},
    names,
    reason::Reason,
    service::{LISTENED, PROXIED, mapped},
};
use lb_ebpf::{
    fake::{
        Frame, Net, Xdp,
        setup::{CLIENT_MAC, OUR_MAC},
    },
    packet::tcp_flags::{ACK, FIN, RST},
};
use lb_tests::kernel::Kernel;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

const ELDER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x77];
const RELAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x78];

fn socket(bound: SocketAddr) -> Result<Socket> {
    let socket = Socket::new(Domain::for_address(bound), Type::STREAM, Some(Protocol::TCP))?;
    setsockopt(&socket, sockopt::IpFreebind, &true)?;
    socket.set_reuse_address(true)?;
    socket.bind(&bound.into()).context("bind")?;
    Ok(socket)
}

fn counted(kernel: &Kernel, reason: Reason) -> Result<u64> {
    Ok(kernel.counters()?.reasons[reason as usize])
}

/// A namespace that has both addresses on its loopback interface, so that connections between them are real.
fn alone(net: &Net, body: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    let inside = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).context("make a namespace")?;
        let prefix = if net.vip.is_ipv4() { 32 } else { 128 };
        for words in [
            vec!["link", "set", "lo", "up"],
            vec!["address", "add", &format!("{}/{prefix}", net.vip.ip()), "dev", "lo", "nodad"],
            vec!["address", "add", &format!("{}/{prefix}", net.client.ip()), "dev", "lo", "nodad"],
        ] {
            let words = words.into_iter().filter(|word| *word != "nodad" || !net.vip.is_ipv4());
            ensure!(Command::new("ip").args(words).status().context("run ip")?.success());
        }
        body()
    };
    thread::scope(|scope| {
        scope.spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[test]
fn what_this_node_does_not_know_goes_to_who_had_the_address_before() -> Result<()> {
    for net in Net::both() {
        alone(&net, || {
            let mut kernel = Kernel::load(64)?;
            kernel.reset(&net.single().flagged(LISTENED | PROXIED))?;
            let listener: TcpListener = {
                let socket = socket(net.vip)?;
                socket.listen(16)?;
                socket.into()
            };
            let known = {
                let socket = socket(net.client)?;
                socket.connect(&net.vip.into()).context("connect")?;
                TcpStream::from(socket)
            };
            let (mut served, _) = listener.accept()?;
            (&known).write_all(b"x")?;
            served.read_exact(&mut [0])?;
            let of_known = Frame::tcp(net.client, net.vip, ACK).build();
            let stranger = net.other_client(1, 40_000);
            let strange = |flags| Frame::tcp(stranger, net.vip, flags).build();
            let syn = Frame::syn(net.other_client(2, 40_000), net.vip).build();

            // Without such a node all of it is this one's, as ever; nor when its time is over.
            for elder in [Elder::ZERO, Elder { until_ns: 1, mac: ELDER_MAC, ..Elder::ZERO }] {
                kernel.set_elder(elder)?;
                for frame in [&of_known, &strange(ACK), &syn] {
                    let outcome = kernel.run(frame)?;
                    ensure!(outcome.xdp == Xdp::Pass && outcome.frame == *frame, "{outcome:?}");
                }
            }
            ensure!(counted(&kernel, Reason::HandedOn)? == 0);

            kernel.set_elder(Elder { until_ns: u64::MAX, mac: ELDER_MAC, ..Elder::ZERO })?;
            let passed = counted(&kernel, Reason::Proxied)?;
            for frame in [&of_known, &syn] {
                let outcome = kernel.run(frame)?;
                ensure!(outcome.xdp == Xdp::Pass && outcome.frame == *frame, "{outcome:?}");
            }
            ensure!(counted(&kernel, Reason::Proxied)? == passed + 2);
            for flags in [ACK, FIN | ACK, RST] {
                let outcome = kernel.run(&strange(flags))?;
                ensure!(outcome.xdp == Xdp::Transmit, "{flags}: {outcome:?}");
                let onward = Frame::tcp(stranger, net.vip, flags).link(OUR_MAC, ELDER_MAC).build();
                ensure!(outcome.frame == onward, "{flags}: {outcome:?}");
            }
            let tagged = Frame::tcp(stranger, net.vip, ACK).vlan(0x8100, 7);
            let outcome = kernel.run(&tagged.clone().build())?;
            ensure!(outcome.frame == tagged.link(OUR_MAC, ELDER_MAC).build(), "{outcome:?}");
            ensure!(counted(&kernel, Reason::HandedOn)? == 4);

            // Never back to where it came from.
            let back = Frame::tcp(stranger, net.vip, ACK).link(ELDER_MAC, OUR_MAC).build();
            let outcome = kernel.run(&back)?;
            ensure!(outcome.xdp == Xdp::Pass && outcome.frame == back, "{outcome:?}");
            ensure!(CLIENT_MAC != ELDER_MAC, "the frames before came from there");

            // Without the lease this may be the node that answers on: it says nothing of what it does not know.
            let address = match net.vip.ip() {
                IpAddr::V4(address) => mapped(address.octets()),
                IpAddr::V6(address) => address.octets(),
            };
            let over = Lease { until_ns: 1, ..Lease::ZERO };
            kernel.insert(names::LEASES, [(LeaseKey { address }, over)])?;
            for mac in [ELDER_MAC, [0; 6]] {
                kernel.set_elder(Elder { until_ns: u64::MAX, mac, ..Elder::ZERO })?;
                ensure!(kernel.run(&strange(ACK))?.xdp == Xdp::Drop);
                ensure!(kernel.run(&of_known)?.xdp == Xdp::Pass);
            }
            ensure!(counted(&kernel, Reason::NoLease)? == 2);
            // But what comes from who has the address goes to a third node that answers on as well.
            let before = counted(&kernel, Reason::HandedOn)?;
            let handed = |from| Frame::tcp(stranger, net.vip, ACK).link(from, OUR_MAC).build();
            let relay = |until_ns, from| Elder { until_ns, mac: RELAY_MAC, from, ..Elder::ZERO };
            kernel.set_relay(relay(u64::MAX, ELDER_MAC))?;
            let outcome = kernel.run(&handed(ELDER_MAC))?;
            let onward = Frame::tcp(stranger, net.vip, ACK).link(OUR_MAC, RELAY_MAC).build();
            ensure!(outcome.xdp == Xdp::Transmit && outcome.frame == onward, "{outcome:?}");
            ensure!(counted(&kernel, Reason::HandedOn)? == before + 1);
            // From nobody else, nor when its time is over, nor back; and never what this node knows.
            for from in [CLIENT_MAC, RELAY_MAC] {
                ensure!(kernel.run(&handed(from))?.xdp == Xdp::Drop);
            }
            let known = Frame::tcp(net.client, net.vip, ACK).link(ELDER_MAC, OUR_MAC).build();
            ensure!(kernel.run(&known)?.xdp == Xdp::Pass);
            for over in [relay(1, ELDER_MAC), relay(u64::MAX, RELAY_MAC), Elder::ZERO] {
                kernel.set_relay(over)?;
                ensure!(kernel.run(&handed(ELDER_MAC))?.xdp == Xdp::Drop);
                ensure!(kernel.run(&handed(RELAY_MAC))?.xdp == Xdp::Drop);
            }
            kernel.set_relay(relay(u64::MAX, ELDER_MAC))?;
            // With it, and nobody to hand to, it is as ever.
            kernel.insert(
                names::LEASES,
                [(LeaseKey { address }, Lease { until_ns: u64::MAX, ..Lease::ZERO })],
            )?;
            ensure!(kernel.run(&strange(ACK))?.xdp == Xdp::Pass);
            Ok(())
        })?;
    }
    Ok(())
}
