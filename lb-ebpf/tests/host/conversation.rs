//! Whole conversations: what each side sees of the other.

use lb_common::{
    flow::state,
    service::Balance,
    stats::{BackendStats, ServiceStats},
};
use lb_ebpf::{
    Action,
    fake::{
        FakeTables, Frame, Net, TICK_NS, Xdp,
        frame::{VLAN, VLAN_OUTER},
    },
    packet::tcp_flags::{ACK, FIN},
    tables::Tables,
};

use crate::driver::Host;

/// Makes a frame look different.
type Dress = fn(Frame) -> Frame;

/// Ways in which the same conversation may look on the wire.
fn dresses(net: &Net) -> Vec<(&'static str, Dress)> {
    let mut dresses: Vec<(&'static str, Dress)> = vec![
        ("plain", |frame| frame),
        ("one tag", |frame| frame.vlan(VLAN, 100)),
        ("two tags", |frame| frame.vlan(VLAN_OUTER, 100).vlan(VLAN, 200)),
        ("last hop but one", |frame| frame.ttl(2)),
        ("padded", |frame| frame.trailer(&[0; 6])),
    ];
    if net.vip.is_ipv4() {
        dresses.push(("IP options", |frame| frame.ip_options(&[7, 7, 4, 0, 0, 0, 0, 0])));
        dresses.push(("tag and options", |frame| frame.vlan(VLAN, 1).ip_options(&[1; 40])));
    }
    dresses
}

#[test]
fn tcp_from_syn_to_the_last_ack() {
    for net in Net::both() {
        for (name, dress) in dresses(&net) {
            let host = Host::single(net);
            let (client, backend, nat) = (net.client, net.backends[0], net.nat(net.client.port()));
            let up = |frame: Frame| {
                let frame = dress(frame);
                let seen = net.at_backend(&frame, 1, net.client.port());
                assert_eq!(host.forwarded(&frame), seen.build(), "{name}");
            };
            let down = |frame: Frame| {
                let frame = dress(net.sent_by_backend(frame, 1));
                assert_eq!(host.forwarded(&frame), net.at_client(&frame, client).build(), "{name}");
            };

            assert_eq!(host.tables.active(1), 0);
            up(Frame::syn(client, net.vip));
            up(Frame::syn(client, net.vip));
            assert_eq!(host.tables.active(1), 1, "a retransmission opens nothing");
            down(Frame::syn_ack(backend, nat));
            up(Frame::tcp(client, net.vip, ACK));
            up(Frame::tcp(client, net.vip, ACK).payload(b"GET / HTTP/1.1\r\n\r\n"));
            down(Frame::tcp(backend, nat, ACK).payload(b"HTTP/1.1 200 OK\r\n\r\n"));
            down(Frame::tcp(backend, nat, ACK | 8).payload(&[0x55; 1001]));
            up(Frame::tcp(client, net.vip, ACK)
                .tcp_options(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]));
            down(Frame::syn_ack(backend, nat));
            assert_eq!(host.tables.active(1), 1);
            up(Frame::tcp(client, net.vip, FIN | ACK));
            up(Frame::tcp(client, net.vip, FIN | ACK));
            assert_eq!(host.tables.active(1), 1, "one side has more to say");
            down(Frame::tcp(backend, nat, ACK).payload(b"more"));
            down(Frame::tcp(backend, nat, FIN | ACK));
            assert_eq!(host.tables.active(1), 0);
            up(Frame::tcp(client, net.vip, ACK));
            down(Frame::tcp(backend, nat, FIN | ACK));
            assert_eq!(host.tables.active(1), 0, "a retransmission closes nothing");

            let stats = host.tables.backend_stats(1);
            assert_eq!((stats.connections, stats.answered), (1, 1), "{name}");
            assert_eq!((stats.forward_packets, stats.return_packets), (8, 7), "{name}");
            let service = host.tables.service_stats(0);
            assert_eq!(service, ServiceStats { connections: 1, ..ServiceStats::ZERO });
            assert_eq!(host.tables.v4.half_open().len() + host.tables.v6.half_open().len(), 0);
            host.assert_counts_agree();
        }
    }
}

#[test]
fn counters_count_frames_and_their_bytes() {
    let net = Net::v4();
    let host = Host::single(net);
    let connection = host.connect(net.client);
    let before = host.tables.backend_stats(1);
    let question = host.up(&connection, ACK).payload(&[1; 100]);
    let answer = host.down(&connection, ACK).payload(&[2; 1000]);
    host.forwarded(&question);
    host.forwarded(&question);
    host.forwarded(&answer);
    let after = host.tables.backend_stats(1);
    let expected = BackendStats {
        forward_packets: before.forward_packets + 2,
        forward_bytes: before.forward_bytes + 2 * (14 + 20 + 20 + 100),
        return_packets: before.return_packets + 1,
        return_bytes: before.return_bytes + 14 + 20 + 20 + 1000,
        ..before
    };
    assert_eq!(after, expected);
}

#[test]
fn entries_are_stamped_by_either_path() {
    let net = Net::v4();
    let host = Host::single(net);
    let connection = host.connect(net.client);
    for (now_ns, frame) in [
        (5 * TICK_NS, host.up(&connection, ACK)),
        (6 * TICK_NS, host.up(&connection, ACK).vlan(VLAN, 1)),
    ] {
        host.tables.set_now_ns(now_ns);
        host.forwarded(&frame);
        let flows = host.tables.v4.flows();
        let entry = flows.values().find(|e| e.state & state::RETURN == 0).expect("the flow");
        assert_eq!(entry.last_seen, now_ns / TICK_NS);
    }
}

#[test]
fn udp_is_a_flow_from_the_first_reply() {
    for net in Net::both() {
        for (name, dress) in dresses(&net) {
            let host = Host::single(net);
            let (client, backend, nat) = (net.client, net.backends[0], net.nat(net.client.port()));
            let question = dress(Frame::udp(client, net.vip, b"question"));
            let reply = dress(net.sent_by_backend(Frame::udp(backend, nat, b"reply"), 1));
            let flows = || host.tables.v4.flows().len() + host.tables.v6.flows().len();
            let half_open = || host.tables.v4.half_open().len() + host.tables.v6.half_open().len();

            for _ in 0..3 {
                let seen = net.at_backend(&question, 1, client.port());
                assert_eq!(host.forwarded(&question), seen.build(), "{name}");
                assert_eq!((half_open(), flows()), (2, 0));
            }
            for _ in 0..3 {
                let seen = net.at_client(&reply, client);
                assert_eq!(host.forwarded(&reply), seen.build(), "{name}");
                assert_eq!((half_open(), flows()), (0, 2));
                host.forwarded(&question);
            }
            assert_eq!(host.tables.active(1), 1);
            let stats = host.tables.backend_stats(1);
            assert_eq!((stats.connections, stats.answered), (1, 1));
        }
    }
}

#[test]
fn udp_without_a_checksum_keeps_none() {
    let net = Net::v4();
    let host = Host::single(net);
    let question = Frame::udp(net.client, net.vip, b"question").without_checksum();
    for _ in 0..2 {
        let seen = net.at_backend(&question, 1, net.client.port());
        assert_eq!(host.forwarded(&question), seen.build());
        let reply = Frame::udp(net.backends[0], net.nat(net.client.port()), b"answer");
        let reply = net.sent_by_backend(reply.without_checksum(), 1);
        assert_eq!(host.forwarded(&reply), net.at_client(&reply, net.client).build());
    }
}

#[test]
fn a_udp_checksum_that_comes_out_as_zero_is_sent_as_ones() {
    for net in Net::both() {
        let host = Host::single(net);
        // Among all values of two bytes of data is one for which the new checksum is 0.
        let mut seen_ones = 0;
        for number in 0..=u16::MAX {
            let frame = Frame::udp(net.client, net.vip, &number.to_be_bytes());
            let expected = net.at_backend(&frame, 1, net.client.port()).build();
            let check = expected.len() - 4;
            if expected[check..check + 2] == [0xff, 0xff] {
                assert_eq!(host.forwarded(&frame), expected);
                seen_ones += 1;
            }
        }
        assert_eq!(seen_ones, 1);
    }
}

#[test]
fn out_by_another_interface_and_back() {
    for net in Net::both() {
        let setup = net.single().change(1, |backend| backend.ifindex = 7);
        let host = Host { net, tables: FakeTables::new(&setup) };
        let port = net.client.port();
        let syn = Frame::syn(net.client, net.vip);
        let (outcome, decision) = host.run(&syn);
        assert_eq!(decision, Ok(Action::Redirect { ifindex: 7 }));
        assert_eq!(outcome.xdp, Xdp::Redirect);
        assert_eq!(outcome.frame, net.at_backend(&syn, 1, port).build());

        let answer = net.sent_by_backend(Frame::syn_ack(net.backends[0], net.nat(port)), 1);
        let counted = host.tables.counted();
        let (outcome, decision) = lb_ebpf::fake::run(&answer.build(), 7, &host.tables);
        assert_eq!(decision, Ok(Action::Redirect { ifindex: 1 }), "back to the client's interface");
        assert_eq!(outcome.frame, net.at_client(&answer, net.client).build());
        assert_eq!(host.tables.counted(), counted + 1);

        let (_, decision) = host.run(&Frame::tcp(net.client, net.vip, ACK));
        assert_eq!(decision, Ok(Action::Redirect { ifindex: 7 }), "the hot path too");
    }
}

#[test]
fn connections_do_not_mix() {
    for net in Net::both() {
        let host = Host::balanced(net, Balance::RoundRobin);
        let connections: Vec<_> = (0..300)
            .map(|host_number| host.connect(net.other_client(host_number, 50_000)))
            .collect();
        for (index, connection) in connections.iter().enumerate() {
            assert_eq!(connection.backend, index as u32 % 3 + 1);
            let data = host.up(connection, ACK).payload(&index.to_be_bytes());
            let seen = net.at_backend(&data, connection.backend, connection.port);
            assert_eq!(host.forwarded(&data), seen.build());
            let answer = host.down(connection, ACK).payload(&index.to_le_bytes());
            let seen = net.at_client(&answer, connection.client);
            assert_eq!(host.forwarded(&answer), seen.build());
        }
        host.assert_counts_agree();
        assert_eq!([1, 2, 3].map(|id| host.tables.active(id)), [100; 3]);
    }
}
