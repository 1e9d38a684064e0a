//! What moves a connection, and what must not.

use std::collections::BTreeMap;

use lb_common::{
    backend::{FORWARD, LEASED, RESOLVED},
    flow::state,
    reason::Reason,
    service::{Balance, PARK_SHIFT},
};
use lb_ebpf::{
    Action,
    fake::{
        FakeTables, Frame, Net, Setup, Xdp,
        frame::VLAN,
        run,
        setup::{INGRESS, OUR_MAC, vip_bit},
    },
    family::protocol,
    packet::tcp_flags::{ACK, FIN, RST, SYN},
    tables::Tables,
};

use crate::driver::{Connection, Host};

#[test]
fn a_last_hop_ends_here_and_opens_nothing() {
    for net in Net::both() {
        let host = Host::single(net);
        for ttl in [0, 1] {
            for frame in [Frame::syn(net.client, net.vip), Frame::udp(net.client, net.vip, b"x")] {
                let outcome = host.assert_refused(&frame.ttl(ttl), Reason::TtlExpired);
                assert_eq!(outcome.xdp, Xdp::Drop);
            }
        }
        assert_eq!(host.tables.active(1), 0);
        assert_eq!(host.open_in_tables(1), 0);
        assert_eq!(host.tables.service_stats(0).connections, 0);

        let connection = host.connect(net.client);
        for frame in [host.up(&connection, ACK), host.down(&connection, ACK)] {
            host.assert_refused(&frame.ttl(1), Reason::TtlExpired);
        }
    }
}

#[test]
fn a_backend_with_a_lease_gets_nothing_after_its_end() {
    for net in Net::both() {
        let mut host = Host::single(net);
        host.tables.set_flag(1, LEASED, true);
        let refused = host.assert_refused(&Frame::syn(net.client, net.vip), Reason::NoLease);
        assert_eq!(refused.xdp, Xdp::Drop, "without a lease, nothing passes");
        let now_ns = host.tables.now_ns();
        host.tables.set_lease(1, now_ns + 1);
        let connection = host.connect(net.client);
        let (data, answer) = (host.up(&connection, ACK), host.down(&connection, ACK));
        host.forwarded(&data);
        host.tables.set_lease(1, now_ns);
        host.assert_refused(&data.clone().payload(b"x"), Reason::NoLease);
        host.assert_refused(&Frame::syn(net.other_client(7, 4000), net.vip), Reason::NoLease);
        host.forwarded(&answer);
        // Nothing was ended by that.
        host.tables.set_lease(1, u64::MAX);
        host.forwarded(&data.payload(b"x"));
        assert_eq!(host.tables.active(1), 1);
    }
}

#[test]
fn new_connections_wait_while_a_service_is_parked_and_open_ones_go_on() {
    for net in Net::both() {
        let until = 1000;
        let host = Host { net, tables: FakeTables::new(&net.single().parked(until)) };
        let end = u64::from(until) << PARK_SHIFT;
        host.tables.set_now_ns(end - (20 << PARK_SHIFT));
        for _ in 0..3 {
            let outcome = host.assert_refused(&Frame::syn(net.client, net.vip), Reason::Parked);
            assert_eq!(outcome.xdp, Xdp::Drop);
        }
        assert_eq!((host.tables.active(1), host.open_in_tables(1)), (0, 0));
        let stats = host.tables.service_stats(0);
        assert_eq!((stats.connections, stats.refused), (0, 0), "it is not refused");
        host.tables.set_now_ns(end - 1);
        host.assert_refused(&Frame::syn(net.client, net.vip), Reason::Parked);
        // It is over without anybody's doing.
        host.tables.set_now_ns(end);
        host.connect(net.client);
    }
}

#[test]
fn a_client_is_followed_to_another_mac_address_and_interface() {
    for net in Net::both() {
        let host = Host::single(net);
        let connection = host.connect(net.client);
        let data = host.up(&connection, ACK).payload(b"data");
        let answer = host.down(&connection, ACK).payload(b"answer");
        let new_mac = [2, 0, 0, 0, 0, 0x77];
        host.forwarded(&data.clone().link(new_mac, OUR_MAC));
        let seen = net.at_client(&answer, net.client);
        assert_eq!(host.forwarded(&answer), seen.clone().link(OUR_MAC, new_mac).build());

        // The same client behind another interface of ours, first with that interface's MAC address,
        // then with one that both interfaces have.
        for (our_mac, ingress) in [([2, 0, 0, 0, 0, 0x66], INGRESS), ([2, 0, 0, 0, 0, 0x66], 5)] {
            let frame = data.clone().link(new_mac, our_mac).build();
            let (outcome, _) = run(&frame, ingress, &host.tables);
            assert!(matches!(outcome.xdp, Xdp::Transmit | Xdp::Redirect));
            let (outcome, decision) = host.run(&answer);
            let expected = if ingress == INGRESS {
                Action::Transmit
            } else {
                Action::Redirect { ifindex: ingress }
            };
            assert_eq!(decision, Ok(expected));
            assert_eq!(outcome.frame, seen.clone().link(our_mac, new_mac).build());
        }
    }
}

#[test]
fn nothing_goes_to_a_backend_whose_next_hop_is_unknown() {
    for net in Net::both() {
        let mut host = Host::single(net);
        let connection = host.connect(net.client);
        let waiting = host.begin(net.other_client(1, 50_000));
        host.tables.set_flag(1, RESOLVED, false);

        host.assert_refused(&host.up(&connection, ACK), Reason::NoNeighbour);
        host.assert_refused(&host.up(&connection, FIN | ACK), Reason::NoNeighbour);
        host.assert_refused(&Frame::syn(waiting.client, net.vip), Reason::NoNeighbour);
        host.forwarded(&host.down(&connection, ACK));
        assert!(host.tables.take_events().is_empty());

        let refused = host.tables.service_stats(0).refused;
        host.assert_refused(&Frame::syn(net.other_client(2, 50_000), net.vip), Reason::NoNeighbour);
        assert_eq!(host.tables.service_stats(0).refused, refused + 1);
        let events = host.tables.take_events();
        assert_eq!(events.len(), 1);
        assert_eq!((events[0].reason, events[0].backend), (Reason::NoNeighbour as u32, 1));
        host.assert_counts_agree();

        host.tables.set_flag(1, RESOLVED, true);
        host.forwarded(&host.up(&connection, ACK));
    }
}

#[test]
fn a_syn_on_a_closed_connection_starts_anew() {
    for net in Net::both() {
        let host = Host::balanced(net, Balance::RoundRobin);
        let connection = host.connect(net.client);
        host.close(&connection);
        assert_eq!(host.tables.active(1), 0);
        host.forwarded(&host.up(&connection, ACK));

        let again = host.connect(net.client);
        assert_eq!(again, Connection { backend: 2, ..connection }, "by the balance's turn");
        assert_eq!([1, 2].map(|id| host.tables.active(id)), [0, 1]);
        // The old backend's late segment belongs to nothing now.
        host.assert_refused(&host.down(&connection, FIN | ACK), Reason::NoService);

        host.forwarded(&host.up(&again, RST));
        assert_eq!(host.tables.active(2), 0);
        assert_eq!(host.connect(net.client).backend, 3);
        host.assert_counts_agree();
    }
}

#[test]
fn a_syn_on_an_open_connection_goes_to_its_backend() {
    for net in Net::both() {
        let host = Host::balanced(net, Balance::RoundRobin);
        let connection = host.connect(net.client);
        let syn = Frame::syn(net.client, net.vip);
        let seen = net.at_backend(&syn, connection.backend, connection.port);
        assert_eq!(host.forwarded(&syn), seen.build());
        assert_eq!(host.tables.active(connection.backend), 1);
    }
}

#[test]
fn a_refused_connection_is_forgotten() {
    for net in Net::both() {
        let host = Host::balanced(net, Balance::RoundRobin);
        let connection = host.begin(net.client);
        let refusal = host.down(&connection, RST | ACK);
        let seen = net.at_client(&refusal, net.client);
        assert_eq!(host.forwarded(&refusal), seen.build());
        assert_eq!(host.tables.active(1), 0);
        assert_eq!(host.tables.backend_stats(1).answered, 0);
        assert_eq!(host.begin(net.client).backend, 2, "the client's next try is a new connection");

        // The client may give up itself.
        host.forwarded(&Frame::tcp(net.client, net.vip, RST));
        assert_eq!(host.tables.active(2), 0);
        host.assert_counts_agree();
    }
}

#[test]
fn only_an_answer_establishes_a_connection() {
    for net in Net::both() {
        let host = Host::single(net);
        let connection = host.begin(net.client);
        // A challenge (RFC 5961, section 4) from a backend that remembers the port.
        for flags in [ACK, FIN | ACK] {
            host.forwarded(&host.down(&connection, flags));
            assert_eq!(host.tables.backend_stats(1).answered, 0);
        }
        // Whoever begins a connection does it with a service.
        host.assert_refused(&host.down(&connection, SYN), Reason::NoService);
        let ack = host.up(&connection, ACK);
        host.forwarded(&ack);
        assert_eq!(host.tables.backend_stats(1).answered, 0);
        host.forwarded(&host.answer(&connection));
        host.forwarded(&host.answer(&connection));
        assert_eq!(host.tables.backend_stats(1).answered, 1);
        let established = || host.tables.v4.flows().len() + host.tables.v6.flows().len();
        // Whoever has got the answer knows what to acknowledge; others have to guess.
        for guess in [0x0102_0304, 0x0103_0305, 0, u32::MAX] {
            host.forwarded(&ack.clone().numbers(0x0102_0305, guess));
            assert_eq!(established(), 0, "{guess:#x}");
        }
        host.forwarded(&ack.numbers(0x0102_0400, 0x0102_0305));
        assert_eq!(established(), 2);
        host.assert_counts_agree();
        // What each side has asked for last.
        let v4 = host.tables.v4.flows();
        let v6 = host.tables.v6.flows();
        let v4 = v4.values().map(|entry| (entry.state, u32::from_be(entry.ack)));
        let v6 = v6.values().map(|entry| (entry.state, u32::from_be(entry.ack)));
        let acks: BTreeMap<u32, u32> = v4.chain(v6).collect();
        assert_eq!(acks, BTreeMap::from([(0, 0x0102_0305), (state::RETURN, 0x0102_0400)]));
    }
}

#[test]
fn a_half_open_connection_whose_backend_is_gone_gets_another() {
    for net in Net::both() {
        let mut host = Host::balanced(net, Balance::RoundRobin);
        let connection = host.begin(net.client);
        assert_eq!(connection.backend, 1);
        host.tables.set_flag(1, FORWARD, false);
        let again = host.begin(net.client);
        assert_eq!(again.backend, 2);
        assert_eq!([1, 2].map(|id| host.tables.active(id)), [0, 1]);
        host.assert_refused(&host.answer(&connection), Reason::NoService);

        // What is no first segment is reset.
        host.tables.set_flag(2, FORWARD, false);
        host.assert_refused(&host.up(&again, ACK), Reason::BackendGone);
        assert_eq!(host.tables.active(2), 0);
        let last = host.begin(net.client);
        assert_eq!(last.backend, 3);
        host.tables.set_flag(3, FORWARD, false);
        host.assert_refused(&host.answer(&last), Reason::BackendGone);
        host.assert_counts_agree();
    }
}

#[test]
fn a_syn_on_a_connection_whose_backend_is_gone_starts_anew() {
    for net in Net::both() {
        let mut host = Host::balanced(net, Balance::RoundRobin);
        let connection = host.connect(net.client);
        host.tables.set_flag(connection.backend, FORWARD, false);
        let again = host.connect(net.client);
        assert_eq!((again.backend, again.port), (2, connection.port));
        host.assert_counts_agree();
        assert_eq!([1, 2].map(|id| host.tables.active(id)), [0, 1]);
    }
}

#[test]
fn a_full_flow_table_leaves_nothing_behind() {
    for net in Net::both() {
        for room in 0..2 {
            let host = Host::single(net);
            let connection = host.begin(net.client);
            host.forwarded(&host.answer(&connection));
            host.tables.v4.limit(room, usize::MAX);
            host.tables.v6.limit(room, usize::MAX);
            host.assert_refused(&host.up(&connection, ACK), Reason::TableFull);
            assert_eq!(host.tables.v4.flows().len() + host.tables.v6.flows().len(), 0);
            host.assert_counts_agree();
            host.tables.v4.limit(2, usize::MAX);
            host.tables.v6.limit(2, usize::MAX);
            host.forwarded(&host.up(&connection, ACK));
            host.assert_counts_agree();
        }
    }
}

#[test]
fn a_full_half_open_table_refuses_and_says_so() {
    for net in Net::both() {
        for (room, reason) in [(1, Reason::TableFull), (0, Reason::PortsExhausted)] {
            let host = Host::single(net);
            host.tables.v4.limit(usize::MAX, room);
            host.tables.v6.limit(usize::MAX, room);
            host.assert_refused(&Frame::syn(net.client, net.vip), reason);
            assert_eq!(host.tables.v4.half_open().len() + host.tables.v6.half_open().len(), 0);
            assert_eq!(host.tables.active(1), 0);
            assert_eq!(host.tables.take_events().len(), 1);
        }
    }
}

#[test]
fn an_address_that_only_looks_floating_passes() {
    // `VIPS` is a filter by a hash: other addresses share the floating one's bit.
    let net = Net::v4();
    let bit = vip_bit(net.vip.ip());
    let stranger = (0..=u32::MAX)
        .map(|number| std::net::Ipv4Addr::from(0x0a00_0000 + number))
        .find(|address| vip_bit((*address).into()) == bit)
        .expect("an address with the same bit");
    let stranger = std::net::SocketAddr::from((stranger, 80));
    let host = Host::single(net);
    assert_ne!(host.tables.vip(vip_bit(stranger.ip())), 0);
    for (frame, reason) in [
        (Frame::syn(net.client, stranger), Reason::NoService),
        (Frame::tcp(net.client, stranger, ACK), Reason::NoService),
        (Frame::udp(net.client, stranger, b"x"), Reason::NoService),
        (Frame::tcp(net.client, stranger, ACK).ttl(1), Reason::NoService),
        (Frame::tcp(net.client, stranger, ACK).fragment(0, true), Reason::Fragment),
        (Frame::echo(net.client.ip(), stranger.ip()), Reason::OtherProtocol),
    ] {
        let (found, outcome) = host.refused(&frame);
        assert_eq!(found, reason);
        assert_eq!(outcome.xdp, Xdp::Pass);
    }
}

#[test]
fn what_no_service_wants_passes() {
    for net in Net::both() {
        let host = Host::single(net);
        for frame in [
            Frame::syn(net.client, net.nat(22)),
            Frame::tcp(net.client, net.nat(22), ACK),
            Frame::udp(net.client, net.nat(53), b"question"),
        ] {
            host.assert_refused(&frame, Reason::NoService);
        }
        // Replies from elsewhere than the backend belong to no flow.
        let connection = host.connect(net.client);
        let foreign = Frame::tcp(net.backends[1], net.nat(connection.port), ACK);
        host.assert_refused(&foreign, Reason::NoService);
    }
}

#[test]
fn services_of_both_protocols_and_families_are_apart() {
    let [v4, v6] = Net::both();
    let mut setup: Setup = v4.single();
    setup = setup
        .vip(v6.vip.ip())
        .backend(2, lb_ebpf::fake::setup::backend(v6.backends[0]))
        .service(v6.vip, protocol::TCP, Balance::Maglev, &[2]);
    let host = Host { net: v4, tables: FakeTables::new(&setup) };
    host.forwarded(&Frame::syn(v4.client, v4.vip));
    host.forwarded(&Frame::udp(v4.client, v4.vip, b"x"));
    host.forwarded(&Frame::syn(v6.client, v6.vip).vlan(VLAN, 3));
    host.assert_refused(&Frame::udp(v6.client, v6.vip, b"x"), Reason::NoService);
    assert_eq!([1, 2].map(|id| host.tables.active(id)), [2, 1]);
    assert_eq!([0, 1, 2].map(|index| host.tables.service_stats(index).connections), [1; 3]);
}
