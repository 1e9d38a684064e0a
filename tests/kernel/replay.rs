//! Connections whose backend says nothing: what [`lb_tests::packets`] has no rows for, since it is a matter
//! of the clock.

use anyhow::{Context as _, Result};
use ballast::dataplane::replay::frame::Waiting;
use lb_common::{
    flow::{FlowKey4, FlowKey6, HalfOpen4, HalfOpen6, state},
    names,
    service::Balance,
};
use lb_ebpf::{
    fake::{Counter, Frame, Net, Outcome, Setup, Xdp, setup::backend},
    family::protocol,
};
use lb_tests::{
    kernel::Kernel,
    packets::{DataPath, diff, moved},
};

/// Two backends in turn, with as much patience as there can be: the clock decides nothing here.
fn setup(net: &Net) -> Setup {
    let patient = |id: usize| lb_common::backend::Backend {
        patience_ms: u16::MAX,
        ..backend(net.backends[id])
    };
    Setup::default()
        .vip(net.vip.ip())
        .backend(1, patient(0))
        .backend(2, patient(1))
        .service(net.vip, protocol::TCP, Balance::RoundRobin, &[1, 2])
        .replays(3, 200)
}

fn run(kernel: &mut Kernel, frame: &Frame, expected: &Frame, counter: Counter) -> Result<()> {
    let before = DataPath::counters(kernel)?;
    let Outcome { xdp, frame: got } = DataPath::run(kernel, &frame.build())?;
    let counted = moved(&before, &DataPath::counters(kernel)?);
    let expected = expected.build();
    anyhow::ensure!(xdp == Xdp::Transmit, "{xdp:?}, {counted:?}");
    anyhow::ensure!(got == expected, "{}", diff(&got, &expected));
    anyhow::ensure!(counted == [(counter, 1)], "{counted:?}");
    Ok(())
}

#[test]
fn a_silent_backend_is_given_up_when_its_time_is_over() -> Result<()> {
    let net = Net::v4();
    let mut kernel = Kernel::load(64)?;
    kernel.reset(&setup(&net))?;
    let port = net.client.port();
    let syn = Frame::syn(net.client, net.vip);
    let to_first = net.at_backend(&syn, 1, port);
    run(&mut kernel, &syn, &to_first, Counter::Forward(1)).context("the first SYN")?;
    run(&mut kernel, &syn, &to_first, Counter::Forward(1)).context("the SYN again")?;

    // It was sent when the machine started.
    let halves = kernel.entries::<FlowKey4, HalfOpen4>(names::HALF_OPEN)?;
    let (key, mut half) = halves
        .into_iter()
        .find(|(_, half)| half.flow.state & state::RETURN != 0)
        .context("find the backend's half")?;
    half.syn.sent_ns = 0;
    kernel.insert(names::HALF_OPEN, [(key, half)])?;
    let to_second = net.at_backend(&syn, 2, port);
    run(&mut kernel, &syn, &to_second, Counter::Forward(2)).context("the SYN, too late")?;

    let counters = DataPath::counters(&kernel)?;
    let signals: Vec<_> = counters
        .signals
        .iter()
        .map(|(id, signals)| (*id, signals.attempts, signals.unanswered, signals.answered))
        .collect();
    assert_eq!(signals, [(1, 1, 1, 0), (2, 1, 0, 0)]);
    assert_eq!(counters.services[0].1.replayed, 1);
    assert_eq!(counters.active, [(1, 0), (2, 1)]);

    let answer = net.sent_by_backend(Frame::syn_ack(net.backends[1], net.nat(port)), 2);
    let seen = net.at_client(&answer, net.client);
    run(&mut kernel, &answer, &seen, Counter::Return(2)).context("the answer")?;
    let signals = DataPath::counters(&kernel)?.signals[1].1;
    assert_eq!((signals.answered, signals.handshakes[0]), (1, 1), "and it was timed");
    Ok(())
}

#[test]
fn the_daemon_rebuilds_the_syn_that_the_client_sent() -> Result<()> {
    for net in Net::both() {
        let syn = Frame::syn(net.client, net.vip).traffic_class(0xb8).label(0);
        let mut kernel = Kernel::load(64)?;
        kernel.reset(&setup(&net))?;
        DataPath::run(&mut kernel, &syn.build())?;
        let noted = if net.vip.is_ipv4() {
            let halves = kernel.entries::<FlowKey4, HalfOpen4>(names::HALF_OPEN)?;
            halves.into_values().map(|half| half.syn).find(|syn| syn.sent_ns != 0)
        } else {
            let halves = kernel.entries::<FlowKey6, HalfOpen6>(names::HALF_OPEN6)?;
            halves.into_values().map(|half| half.syn).find(|syn| syn.sent_ns != 0)
        };
        let waiting = Waiting {
            client: net.client,
            listen: net.vip,
            client_mac: syn.src_mac,
            local_mac: syn.dst_mac,
            ifindex: 1,
            backend: 1,
            state: state::RETURN,
            syn: noted.context("find the SYN")?,
        };
        anyhow::ensure!(waiting.frame() == syn.build(), "{}", diff(&waiting.frame(), &syn.build()));
    }
    Ok(())
}
