//! What the program tells of connections, and that another node goes on with what it makes of that.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use ballast::dataplane::sync::{Answered, Begun, Change, Ended, Side, entry, record};
use lb_common::{
    flow::{FlowEntry4, FlowEntry6, FlowKey4, FlowKey6, state},
    names,
    news::{Node, TELL},
    service::Balance,
};
use lb_ebpf::{
    fake::{
        Frame, Net, Xdp,
        setup::{CLIENT_MAC, INGRESS, OUR_MAC},
    },
    packet::tcp_flags::{ACK, FIN, RST},
};
use lb_tests::{kernel::Kernel, packets::diff};

const SIDE: Side = Side { ifindex: INGRESS, mac: OUR_MAC };

fn transmits(kernel: &Kernel, frame: &Frame) -> Result<Vec<u8>> {
    let outcome = kernel.run(&frame.build())?;
    ensure!(outcome.xdp == Xdp::Transmit, "{:?} for {frame:?}", outcome.xdp);
    Ok(outcome.frame)
}

/// What was told since the last call.
fn told(kernel: &mut Kernel) -> Result<Vec<Change>> {
    let news = kernel.take_news()?;
    let change = |record: &Vec<u8>| record::change(record, &|_| None).context("read a record");
    news.iter().map(change).collect()
}

/// An entry without what each packet changes.
fn still4(entry: FlowEntry4) -> FlowEntry4 {
    FlowEntry4 { last_seen: 0, bytes: 0, packets: 0, ack: 0, ..entry }
}

fn still6(entry: FlowEntry6) -> FlowEntry6 {
    FlowEntry6 { last_seen: 0, bytes: 0, packets: 0, ack: 0, ..entry }
}

/// Makes the entries that another node makes of a connection, after checking that they are those that
/// stand in the table of the first.
fn hand_over(from: &Kernel, to: &mut Kernel, begun: &Begun) -> Result<()> {
    if begun.client.is_ipv4() {
        let halves = entry::halves4(begun, 1, SIDE).context("make the entries")?;
        let flows = from.entries::<FlowKey4, FlowEntry4>(names::FLOWS)?;
        for (key, entry) in halves {
            ensure!(still4(flows[&key]) == entry, "{:?} and {entry:?}", flows[&key]);
        }
        return to.insert(names::FLOWS, halves);
    }
    let halves = entry::halves6(begun, 1, SIDE).context("make the entries")?;
    let flows = from.entries::<FlowKey6, FlowEntry6>(names::FLOWS6)?;
    for (key, entry) in halves {
        ensure!(still6(flows[&key]) == entry, "{:?} and {entry:?}", flows[&key]);
    }
    to.insert(names::FLOWS6, halves)
}

/// Two nodes with nothing but their configuration, which tell each other.
fn begin(net: &Net, nodes: [&mut Kernel; 2]) -> Result<()> {
    for (number, node) in (0..).zip(nodes) {
        node.reset(&net.setup(Balance::RoundRobin))?;
        node.set_node(Node { flags: TELL, ..Node::share(number, 2) })?;
    }
    Ok(())
}

#[test]
fn another_node_goes_on_with_a_connection() -> Result<()> {
    let (mut first, mut second) = (Kernel::load(64)?, Kernel::load(64)?);
    for net in Net::both() {
        begin(&net, [&mut first, &mut second])?;
        let (client, backend) = (net.client, net.backends[0]);
        let nat = net.nat(client.port());
        let down = |frame: Frame| net.sent_by_backend(frame, 1);
        transmits(&first, &Frame::syn(client, net.vip).numbers(999, 0))?;
        transmits(&first, &down(Frame::syn_ack(backend, nat).numbers(4999, 1000)))?;
        let answered = told(&mut first)?;
        transmits(&first, &Frame::tcp(client, net.vip, ACK).numbers(1000, 5000))?;
        let begun = Begun {
            protocol: 6,
            state: 0,
            client,
            listen: net.vip,
            backend,
            nat_port: nat.port(),
            client_mac: CLIENT_MAC,
            idle_ms: 0,
        };
        ensure!(answered == [Change::Answered(Answered { begun, ack: 5000 })], "{answered:?}");
        let news = told(&mut first)?;
        ensure!(news == [Change::Begun(begun)], "{news:?}");
        hand_over(&first, &mut second, &begun)?;

        // Either side goes on at the other node, each with its first packet there.
        let answer = down(Frame::tcp(backend, nat, ACK).numbers(5000, 1000).payload(b"hello"));
        let expected = net.at_client(&answer, client).build();
        for kernel in [&first, &second] {
            let got = transmits(kernel, &answer)?;
            ensure!(got == expected, "{}", diff(&got, &expected));
        }
        let question = Frame::tcp(client, net.vip, ACK).numbers(1000, 5005).payload(b"question");
        let expected = net.at_backend(&question, 1, client.port()).build();
        for kernel in [&first, &second] {
            let got = transmits(kernel, &question)?;
            ensure!(got == expected, "{}", diff(&got, &expected));
        }

        // A port of the first node's is none of the second's.
        let other = net.other_client(1, client.port());
        let sent = transmits(&second, &Frame::syn(other, net.vip))?;
        let expected = net.at_backend(&Frame::syn(other, net.vip), 1, client.port() + 1);
        ensure!(sent == expected.build(), "{}", diff(&sent, &expected.build()));

        // It ends where it goes on.
        ensure!(told(&mut second)?.is_empty());
        transmits(&second, &Frame::tcp(client, net.vip, FIN | ACK).numbers(1008, 5005))?;
        transmits(&second, &down(Frame::tcp(backend, nat, FIN | ACK).numbers(5005, 1009)))?;
        let ended = Change::Ended(Ended { protocol: 6, backend, nat });
        let news = told(&mut second)?;
        ensure!(news == [ended], "{news:?}");
        transmits(&first, &Frame::tcp(client, net.vip, RST).numbers(1008, 0))?;
        let news = told(&mut first)?;
        ensure!(news == [ended], "{news:?}");
    }
    Ok(())
}

/// The client's answer to the backend's comes to another node than its SYN did.
#[test]
fn another_node_goes_on_in_the_middle_of_a_handshake() -> Result<()> {
    let (mut first, mut second) = (Kernel::load(64)?, Kernel::load(64)?);
    for net in Net::both() {
        begin(&net, [&mut first, &mut second])?;
        let (client, backend) = (net.client, net.backends[0]);
        let nat = net.nat(client.port());
        let syn = Frame::syn(client, net.vip).numbers(999, 0);
        let syn_ack = net.sent_by_backend(Frame::syn_ack(backend, nat).numbers(4999, 1000), 1);
        transmits(&first, &syn)?;
        let expected = transmits(&first, &syn_ack)?;
        let news = told(&mut first)?;
        let [Change::Answered(answered)] = news[..] else { anyhow::bail!("{news:?}") };
        let ack = Frame::tcp(client, net.vip, ACK).numbers(1000, 5000);
        if client.is_ipv4() {
            let halves = entry::answered4(&answered, 1, SIDE).context("make the entries")?;
            second.insert(names::HALF_OPEN, halves)?;
        } else {
            let halves = entry::answered6(&answered, 1, SIDE).context("make the entries")?;
            second.insert(names::HALF_OPEN6, halves)?;
        }
        // Who has not heard of the answer sends once more, and so does the backend.
        let again = transmits(&second, &syn)?;
        let sent = net.at_backend(&syn, 1, client.port()).build();
        ensure!(again == sent, "{}", diff(&again, &sent));
        let answer = transmits(&second, &syn_ack)?;
        ensure!(answer == expected, "{}", diff(&answer, &expected));
        ensure!(told(&mut second)?.is_empty(), "nobody is told of it twice");
        // Who guesses gets nothing established.
        transmits(&second, &Frame::tcp(client, net.vip, ACK).numbers(1000, 900_000))?;
        ensure!(told(&mut second)?.is_empty());
        let sent = transmits(&second, &ack)?;
        let wanted = net.at_backend(&ack, 1, client.port()).build();
        ensure!(sent == wanted, "{}", diff(&sent, &wanted));
        let news = told(&mut second)?;
        ensure!(news == [Change::Begun(answered.begun)], "{news:?}");
    }
    Ok(())
}

#[test]
fn another_node_goes_on_with_a_flow_of_udp() -> Result<()> {
    let (mut first, mut second) = (Kernel::load(64)?, Kernel::load(64)?);
    for net in Net::both() {
        first.reset(&net.single())?;
        first.set_node(Node { flags: TELL, ..Node::ZERO })?;
        second.reset(&net.single())?;
        let nat: SocketAddr = net.nat(net.client.port());
        transmits(&first, &Frame::udp(net.client, net.vip, b"question"))?;
        let answer = net.sent_by_backend(Frame::udp(net.backends[0], nat, b"answer"), 1);
        let expected = transmits(&first, &answer)?;
        let news = told(&mut first)?;
        let [Change::Begun(begun)] = news[..] else { anyhow::bail!("{news:?}") };
        hand_over(&first, &mut second, &begun)?;
        let got = transmits(&second, &answer)?;
        ensure!(got == expected, "{}", diff(&got, &expected));
    }
    Ok(())
}

/// The entry of a steered connection is as the program makes it.
#[test]
fn steered_connections_have_one_entry() -> Result<()> {
    let net = Net::v4();
    let begun = Begun {
        protocol: 6,
        state: state::STEERED as u8,
        client: net.client,
        listen: net.vip,
        backend: net.backends[0],
        nat_port: 0,
        client_mac: CLIENT_MAC,
        idle_ms: 0,
    };
    let [one, same] = entry::halves4(&begun, 3, SIDE).context("make the entry")?;
    ensure!(one == same);
    let (key, entry) = one;
    ensure!((key.src, key.dst) == (entry.new_src, entry.new_dst));
    ensure!((entry.backend, entry.state) == (3, state::STEERED));
    ensure!((entry.client_mac(), entry.client_ifindex) == ([0; 6], 0));
    Ok(())
}
