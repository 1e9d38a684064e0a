//! Connections that user space has ended: both sides are answered with resets that are exact.

use anyhow::{Result, ensure};
use ballast::net::rst::{self, Rst};
use lb_common::{
    flow::{FlowEntry4, FlowEntry6, FlowKey4, FlowKey6, state},
    names,
    reason::Reason,
    service::Balance,
};
use lb_ebpf::{
    fake::{
        Frame, Net, Xdp,
        setup::{CLIENT_MAC, INGRESS, OUR_MAC},
    },
    packet::tcp_flags::{ACK, RST, SYN},
};
use lb_tests::{
    kernel::Kernel,
    packets::{DataPath as _, diff},
};

/// Marks all flows as user space does.
fn cut_all(kernel: &mut Kernel) -> Result<()> {
    let bits = state::RESET | state::CUT;
    let v4 = kernel.entries::<FlowKey4, FlowEntry4>(names::FLOWS)?;
    let v4 =
        v4.into_iter().map(|(key, entry)| (key, FlowEntry4 { state: entry.state | bits, ..entry }));
    kernel.insert(names::FLOWS, v4)?;
    let v6 = kernel.entries::<FlowKey6, FlowEntry6>(names::FLOWS6)?;
    let v6 =
        v6.into_iter().map(|(key, entry)| (key, FlowEntry6 { state: entry.state | bits, ..entry }));
    kernel.insert(names::FLOWS6, v6)
}

/// The acknowledgement numbers in the flow tables, of clients and of backends.
fn acks(kernel: &Kernel) -> Result<Vec<(u32, u32)>> {
    let v4 = kernel.entries::<FlowKey4, FlowEntry4>(names::FLOWS)?;
    let v6 = kernel.entries::<FlowKey6, FlowEntry6>(names::FLOWS6)?;
    let of = |state: u32, ack: u32| (state & state::RETURN, u32::from_be(ack));
    let v4 = v4.values().map(|entry| of(entry.state, entry.ack));
    let v6 = v6.values().map(|entry| of(entry.state, entry.ack));
    let mut acks: Vec<_> = v4.chain(v6).collect();
    acks.sort_unstable();
    Ok(acks)
}

#[test]
fn a_connection_that_was_ended_is_answered_with_exact_resets() -> Result<()> {
    let mut kernel = Kernel::load(64)?;
    for net in Net::both() {
        kernel.reset(&net.setup(Balance::RoundRobin))?;
        let (client, nat, backend) = (net.client, net.nat(net.client.port()), net.backends[0]);
        let down = |frame: Frame| net.sent_by_backend(frame, 1);
        let transmits = |kernel: &mut Kernel, frame: &Frame| -> Result<Vec<u8>> {
            let outcome = kernel.run(&frame.build())?;
            ensure!(outcome.xdp == Xdp::Transmit, "{:?} for {frame:?}", outcome.xdp);
            Ok(outcome.frame)
        };
        transmits(&mut kernel, &Frame::syn(client, net.vip).numbers(999, 0))?;
        transmits(&mut kernel, &down(Frame::syn_ack(backend, nat).numbers(4999, 1000)))?;
        transmits(&mut kernel, &Frame::tcp(client, net.vip, ACK).numbers(1000, 5000))?;
        let answer = Frame::tcp(backend, nat, ACK).numbers(5000, 1000).payload(b"hello");
        transmits(&mut kernel, &down(answer))?;
        let data = Frame::tcp(client, net.vip, ACK).numbers(1000, 5005).payload(b"question");
        transmits(&mut kernel, &data)?;
        ensure!(acks(&kernel)? == [(0, 5005), (state::RETURN, 1000)], "{:?}", acks(&kernel)?);

        cut_all(&mut kernel)?;
        let before = kernel.counters()?;
        let reset = |frame: &Frame, seq: u32| {
            let reset = Frame::tcp(frame.dst, frame.src, RST).numbers(seq, 0).window(0).label(0);
            reset.link(frame.dst_mac, frame.src_mac).build()
        };
        for (frame, seq) in
            [(data, 5005), (down(Frame::tcp(backend, nat, ACK).numbers(5005, 1008)), 1008)]
        {
            let got = transmits(&mut kernel, &frame)?;
            let expected = reset(&frame, seq);
            ensure!(got == expected, "{}", diff(&got, &expected));
        }
        let gone = Reason::BackendGone as usize;
        let after = kernel.counters()?;
        ensure!(after.reasons[gone] == before.reasons[gone] + 2);
        // User space has counted the end; the packets do not count it again.
        ensure!(after.active == before.active);

        // The client begins anew, at the next backend.
        let syn = Frame::tcp(client, net.vip, SYN);
        let got = transmits(&mut kernel, &syn)?;
        let expected = net.at_backend(&syn, 2, client.port()).build();
        ensure!(got == expected, "{}", diff(&got, &expected));
    }
    Ok(())
}

/// What user space sends has the form of what the kernel program answers.
#[test]
fn a_reset_from_user_space_is_the_same_frame() {
    for net in Net::both() {
        let frame = rst::frame(&Rst {
            ifindex: INGRESS,
            source_mac: OUR_MAC,
            next_hop: CLIENT_MAC,
            src: net.vip,
            dst: net.client,
            seq: 0x0102_0304,
        });
        let expected = Frame::tcp(net.vip, net.client, RST).window(0).label(0);
        let expected = expected.link(OUR_MAC, CLIENT_MAC).build();
        assert!(frame == expected, "{}", diff(&frame, &expected));
    }
}
