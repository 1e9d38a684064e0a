//! Ports running out, with tables and a verifier's bounds of the real size.

use lb_common::{
    flow::{FlowEntry4, FlowKey4, HalfOpen4, state::RETURN},
    limits::{FIRST_NAT_PORT, NAT_PORTS},
    names,
    reason::Reason,
};
use lb_ebpf::{
    fake::{Frame, Net, Xdp, tables::tuple},
    family::{Family as _, V4, protocol},
    tables::Entry as _,
};
use lb_tests::{kernel::Kernel, packets::DataPath as _};

/// The backend's halves of connections that hold these ports.
fn holders(
    net: &Net,
    ports: impl Iterator<Item = u16>,
) -> impl Iterator<Item = (FlowKey4, FlowEntry4)> {
    ports.map(|port| {
        let replies = tuple::<V4>(net.backends[0], net.nat(port));
        let to_client = tuple::<V4>(net.vip, net.other_client(1, port));
        (V4::key(replies, protocol::TCP), FlowEntry4::new(replies, to_client, 1, RETURN))
    })
}

#[test]
fn when_all_ports_are_taken_the_kernel_says_so() -> anyhow::Result<()> {
    let net = Net::v4();
    let mut kernel = Kernel::load(NAT_PORTS * 4)?;
    kernel.reset(&net.single())?;
    kernel.insert(names::FLOWS, holders(&net, FIRST_NAT_PORT..=u16::MAX))?;

    let syn = Frame::syn(net.client, net.vip).build();
    assert_eq!(kernel.run(&syn)?.xdp, Xdp::Drop);
    let counters = kernel.counters()?;
    assert_eq!(counters.reasons[Reason::PortsExhausted as usize], 1);
    assert_eq!(counters.services[0].1.refused, 1);
    assert_eq!(counters.active, [(1, 0)]);
    assert_eq!(kernel.take_reports()?, [Reason::PortsExhausted as u32]);
    assert!(kernel.entries::<FlowKey4, HalfOpen4>(names::HALF_OPEN)?.is_empty());

    // UDP has ports of its own.
    assert_eq!(kernel.run(&Frame::udp(net.client, net.vip, b"x").build())?.xdp, Xdp::Transmit);
    Ok(())
}

#[test]
fn with_few_ports_left_the_kernel_finds_them() -> anyhow::Result<()> {
    let net = Net::v4();
    let mut kernel = Kernel::load(NAT_PORTS * 4)?;
    kernel.reset(&net.single())?;
    // 60,000 connections.
    kernel.insert(names::FLOWS, holders(&net, (FIRST_NAT_PORT..=u16::MAX).take(60_000)))?;
    let mut found = 0;
    for number in 0..200 {
        let syn = Frame::syn(net.other_client(number, 2000), net.vip).build();
        found += usize::from(kernel.run(&syn)?.xdp == Xdp::Transmit);
    }
    // One port in 14 is free, and the ports that are tried follow the clock: each client has a chance of
    // about 1 in 10,000 to find none (and to find one when it asks again). Four of 200 would be no accident.
    assert!(found > 196, "only {found} of 200 clients found a port");
    assert_eq!(kernel.entries::<FlowKey4, HalfOpen4>(names::HALF_OPEN)?.len(), 2 * found);
    Ok(())
}
