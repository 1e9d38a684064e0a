//! Who asks for a floating address gets no answer from a node whose lease is over, nor does a packet go to a
//! backend whose lease is.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    backend::LEASED,
    lease::{Lease, LeaseKey},
    names,
    reason::Reason,
    service::mapped,
};
use lb_ebpf::{
    fake::{Frame, Net, Xdp, setup::backend},
    packet::tcp_flags::ACK,
};
use lb_tests::kernel::Kernel;

const FLOWS: u32 = 64;

/// IPv4 and IPv6 floating addresses of the test's own.
const VIP: [u8; 4] = [192, 0, 2, 200];
const VIP6: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0];

fn arp_request(target: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 9, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend([2, 0, 0, 0, 0, 9, 192, 0, 2, 9, 0, 0, 0, 0, 0, 0]);
    frame.extend(target);
    frame
}

/// To the address's multicast group, or to itself (a neighbour that checks what it knows).
fn solicitation(target: [u8; 16], to_group: bool) -> Vec<u8> {
    let mut group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0];
    group[13..].copy_from_slice(&target[13..]);
    let mut frame = vec![0x33; 6];
    frame.extend([2, 0, 0, 0, 0, 9, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255]);
    frame.extend([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
    frame.extend(if to_group { group } else { target });
    frame.extend([135, 0, 0, 0, 0, 0, 0, 0]);
    frame.extend(target);
    frame.extend([1, 1, 2, 0, 0, 0, 0, 9]);
    frame
}

#[test]
fn a_question_is_answered_only_within_the_lease() -> anyhow::Result<()> {
    let mut kernel = Kernel::load(FLOWS)?;
    kernel.reset(&Net::v6().single())?;
    let keys = [mapped(VIP), VIP6].map(|address| LeaseKey { address });
    let far = Lease { until_ns: u64::MAX, told_ns: 0, given_away: 0 };
    let over = Lease { until_ns: 1, told_ns: 0, given_away: 0 };
    let refused = |kernel: &Kernel| -> anyhow::Result<u64> {
        Ok(kernel.counters()?.reasons[Reason::NoLease as usize])
    };
    for (frame, key) in [
        (arp_request(VIP), keys[0]),
        (solicitation(VIP6, true), keys[1]),
        (solicitation(VIP6, false), keys[1]),
    ] {
        kernel.remove::<LeaseKey, Lease>(names::LEASES, |_, _| true)?;
        assert_eq!(kernel.run(&frame)?.xdp, Xdp::Pass, "without a lease, none is needed");
        kernel.insert(names::LEASES, [(key, far)])?;
        assert_eq!(kernel.run(&frame)?.xdp, Xdp::Pass, "within the lease");
        let before = refused(&kernel)?;
        kernel.insert(names::LEASES, [(key, over)])?;
        assert_eq!(kernel.run(&frame)?.xdp, Xdp::Drop, "after it");
        assert_eq!(refused(&kernel)?, before + 1);
    }
    // Other questions are none of its business.
    assert_eq!(kernel.run(&arp_request([192, 0, 2, 11]))?.xdp, Xdp::Pass);
    let mut answer = arp_request(VIP);
    answer[21] = 2;
    assert_eq!(kernel.run(&answer)?.xdp, Xdp::Pass);
    Ok(())
}

/// A node that has just taken an address does not know yet what the other one is about to tell.
#[test]
fn what_is_not_known_yet_is_not_refused() -> anyhow::Result<()> {
    let mut kernel = Kernel::load(FLOWS)?;
    for net in Net::both() {
        kernel.reset(&net.single())?;
        let address = match net.vip.ip() {
            IpAddr::V4(address) => mapped(address.octets()),
            IpAddr::V6(address) => address.octets(),
        };
        let key = LeaseKey { address };
        let backend = net.backends[0];
        let reply_to = SocketAddr::new(net.vip.ip(), 50_000);
        let frames = [
            // In mid-connection, from the client and from the backend; and a datagram of the backend.
            (Frame::tcp(net.client, net.vip, ACK), Reason::NoFlow),
            (Frame::tcp(backend, reply_to, ACK), Reason::NoService),
            (Frame::udp(backend, reply_to, b"late"), Reason::NoService),
        ];
        let counted = |kernel: &Kernel, reason: Reason| -> anyhow::Result<u64> {
            Ok(kernel.counters()?.reasons[reason as usize])
        };
        for (frame, later) in frames {
            let frame = frame.build();
            let far = u64::MAX;
            for (until_ns, told_ns, reason) in [
                (far, far, Reason::NotYetTold),
                (far, 1, later),
                (1, 1, Reason::NoLease),
                (1, far, Reason::NoLease),
            ] {
                kernel
                    .insert(names::LEASES, [(key, Lease { until_ns, told_ns, given_away: 0 })])?;
                let before = counted(&kernel, reason)?;
                let xdp = kernel.run(&frame)?.xdp;
                assert_eq!(xdp == Xdp::Drop, reason != later, "{reason:?}: {xdp:?}");
                assert_eq!(counted(&kernel, reason)?, before + 1, "{reason:?}");
            }
        }
        // A new connection has nobody to be told by.
        kernel.insert(
            names::LEASES,
            [(key, Lease { until_ns: u64::MAX, told_ns: u64::MAX, given_away: 0 })],
        )?;
        assert_eq!(kernel.run(&Frame::syn(net.client, net.vip).build())?.xdp, Xdp::Transmit);
    }
    Ok(())
}

#[test]
fn a_backend_gets_packets_only_within_its_lease() -> anyhow::Result<()> {
    let mut kernel = Kernel::load(FLOWS)?;
    for net in Net::both() {
        kernel.reset(&net.single().change(1, |it| it.flags |= LEASED))?;
        let server = backend(net.backends[0]);
        let key = LeaseKey::backend(&server.address, server.port);
        kernel.remove::<LeaseKey, Lease>(names::LEASES, |_, _| true)?;
        let syn = Frame::syn(net.client, net.vip).build();
        let refused = |kernel: &Kernel| -> anyhow::Result<u64> {
            Ok(kernel.counters()?.reasons[Reason::NoLease as usize])
        };
        assert_eq!(kernel.run(&syn)?.xdp, Xdp::Drop, "there is none");
        assert_eq!(refused(&kernel)?, 1);
        kernel.insert(
            names::LEASES,
            [(key, Lease { until_ns: u64::MAX, told_ns: 0, given_away: 0 })],
        )?;
        let sent = kernel.run(&syn)?;
        assert_eq!(sent.xdp, Xdp::Transmit, "within it");
        let l4 = if net.vip.is_ipv4() { 34 } else { 54 };
        let port = u16::from_be_bytes([sent.frame[l4], sent.frame[l4 + 1]]);
        let answer = Frame::syn_ack(net.backends[0], net.nat(port));
        kernel.run(&net.sent_by_backend(answer, 1).build())?;
        let data = Frame::tcp(net.client, net.vip, ACK).build();
        for _ in 0..2 {
            assert_eq!(kernel.run(&data)?.xdp, Xdp::Transmit, "of a connection");
        }
        kernel.insert(names::LEASES, [(key, Lease { until_ns: 1, told_ns: 0, given_away: 0 })])?;
        assert_eq!(kernel.run(&data)?.xdp, Xdp::Drop, "after it");
        assert_eq!(refused(&kernel)?, 2);
    }
    Ok(())
}
