//! What one of several nodes does otherwise: it tells of its connections, and shares the ports.

use std::collections::HashSet;

use lb_common::{
    backend::DIRECT,
    flow::state,
    limits::FIRST_NAT_PORT,
    news::{Begun4, Begun6, Node, TELL},
    service::{LOOK_UP, Slot},
};
use lb_ebpf::{
    fake::{FakeTables, Frame, Net, News, Setup, setup::steered_at},
    family::protocol,
    packet::tcp_flags::{ACK, FIN, RST},
};

use crate::driver::{Connection, Host};

fn telling(net: Net) -> Host {
    let host = Host::single(net);
    host.tables.set_node(Node { flags: TELL, ..Node::ZERO });
    host
}

/// What is told of a connection before it is established: its keys, and what its client has to acknowledge.
fn assert_answered(host: &Host, connection: &Connection, news: &News) {
    let (ack, expected, backend, bits, port) = match news {
        News::Begun4(Begun4 { client, server, entry }) => {
            let expected = host.tables.v4.half_open()[client].ack;
            (entry.ack, expected, entry.backend, entry.state, server.dst_port)
        }
        News::Begun6(Begun6 { client, server, entry }) => {
            let expected = host.tables.v6.half_open()[client].ack;
            (entry.ack, expected, entry.backend, entry.state, server.dst_port)
        }
        other => panic!("{other:?}"),
    };
    assert_eq!((backend, bits), (connection.backend, state::RETURN | state::ANSWERED));
    assert_eq!(port, connection.port.to_be_bytes());
    assert!(ack == expected && ack != 0, "{ack:#x} instead of {expected:#x}");
}

/// What is told of a connection: that its backend has answered, if it is of TCP, and then both of its keys,
/// as they stand in the table.
fn assert_begun(host: &Host, connection: &Connection, news: &[News]) {
    let is_answer = |news: &News| match news {
        News::Begun4(Begun4 { entry, .. }) => entry.state & state::ANSWERED != 0,
        News::Begun6(Begun6 { entry, .. }) => entry.state & state::ANSWERED != 0,
        News::Ended4(_) | News::Ended6(_) => false,
    };
    let answers = news.iter().take_while(|news| is_answer(news)).count();
    assert!(answers <= 1, "{news:?}");
    match &news[answers..] {
        [News::Begun4(Begun4 { client, server, entry })] => {
            let flows = host.tables.v4.flows();
            assert_eq!(flows[server].new_dst, client.src);
            assert_eq!((flows[client].new_dst, flows[client].state), (server.src, 0));
            assert_eq!((entry.backend, entry.state), (connection.backend, state::RETURN));
            assert_eq!(server.dst_port, connection.port.to_be_bytes());
        }
        [News::Begun6(Begun6 { client, server, entry })] => {
            let flows = host.tables.v6.flows();
            assert_eq!(flows[server].new_dst, client.src);
            assert_eq!((flows[client].new_dst, flows[client].state), (server.src, 0));
            assert_eq!((entry.backend, entry.state), (connection.backend, state::RETURN));
            assert_eq!(server.dst_port, connection.port.to_be_bytes());
        }
        other => panic!("{other:?}"),
    }
}

fn assert_ended(connection: &Connection, news: &[News]) {
    let port = match news {
        [News::Ended4(server)] => server.dst_port,
        [News::Ended6(server)] => server.dst_port,
        other => panic!("{other:?}"),
    };
    assert_eq!(port, connection.port.to_be_bytes(), "the key of the backend's direction");
}

#[test]
fn a_connection_is_told_when_it_is_established_and_when_it_is_over() {
    for net in Net::both() {
        let host = telling(net);
        let connection = host.begin(net.client);
        host.forwarded(&host.answer(&connection));
        let news = host.tables.take_news();
        assert_eq!(news.len(), 1, "{news:?}");
        assert_answered(&host, &connection, &news[0]);
        host.forwarded(&host.answer(&connection));
        assert_eq!(host.tables.take_news(), [], "once");
        host.forwarded(&host.up(&connection, ACK));
        assert_begun(&host, &connection, &host.tables.take_news());
        host.forwarded(&host.up(&connection, ACK));
        host.forwarded(&host.down(&connection, ACK));
        host.forwarded(&host.up(&connection, FIN | ACK));
        assert_eq!(host.tables.take_news(), []);
        host.forwarded(&host.down(&connection, FIN | ACK));
        assert_ended(&connection, &host.tables.take_news());
        host.forwarded(&host.up(&connection, ACK));
        host.forwarded(&host.down(&connection, FIN | ACK));
        assert_eq!(host.tables.take_news(), [], "once");
    }
}

#[test]
fn it_is_over_by_a_reset_of_either_side_and_by_a_new_beginning() {
    for net in Net::both() {
        let host = telling(net);
        for (number, by_client) in [(1, true), (2, false)] {
            let connection = host.connect(net.other_client(number, 40_000));
            assert_begun(&host, &connection, &host.tables.take_news());
            let reset =
                if by_client { host.up(&connection, RST) } else { host.down(&connection, RST) };
            host.forwarded(&reset);
            assert_ended(&connection, &host.tables.take_news());
        }
        // The backend is cut off: the client's next packet is answered with a reset.
        let connection = host.connect(net.other_client(3, 40_000));
        let _ = host.tables.take_news();
        host.forwarded(&host.up(&connection, FIN | ACK));
        host.forwarded(&host.up(&connection, RST));
        assert_ended(&connection, &host.tables.take_news());
        let again = host.connect(net.other_client(3, 40_000));
        assert_begun(&host, &again, &host.tables.take_news());
    }
}

#[test]
fn flows_of_udp_are_told_with_the_first_reply() {
    for net in Net::both() {
        let host = telling(net);
        let sent = host.forwarded(&Frame::udp(net.client, net.vip, b"question"));
        assert_eq!(host.tables.take_news(), []);
        let port = host.port(&sent);
        let answer = Frame::udp(net.backends[0], net.nat(port), b"answer");
        host.forwarded(&net.sent_by_backend(answer, 1));
        let connection = Connection { client: net.client, backend: 1, port };
        assert_begun(&host, &connection, &host.tables.take_news());
    }
}

#[test]
fn recorded_connections_of_steered_services_are_told() {
    for net in Net::both() {
        let net = net.steered();
        let slot = Slot { backend: 2, base: 1 | LOOK_UP };
        let setup = Setup::default()
            .vip(net.vip.ip())
            .backend(1, steered_at(net.backends[0], DIRECT))
            .backend(2, steered_at(net.backends[1], DIRECT))
            .steered(net.vip, protocol::TCP, &[slot]);
        let host = Host { net, tables: FakeTables::new(&setup) };
        host.tables.set_node(Node { flags: TELL, ..Node::ZERO });
        host.forwarded(&Frame::syn(net.client, net.vip));
        let news = host.tables.take_news();
        let entry = match news[..] {
            [News::Begun4(Begun4 { entry, .. })] => (entry.state, entry.backend),
            [News::Begun6(Begun6 { entry, .. })] => (entry.state, entry.backend),
            ref other => panic!("{other:?}"),
        };
        assert_eq!(entry, (state::STEERED, 2));
    }
}

#[test]
fn a_node_alone_tells_nothing() {
    for net in Net::both() {
        let host = Host::single(net);
        let connection = host.connect(net.client);
        host.close(&connection);
        assert_eq!(host.tables.take_news(), []);
    }
}

#[test]
fn two_nodes_give_out_no_port_twice() {
    for net in Net::both() {
        let hosts = [0, 1].map(|number| {
            let host = Host::single(net);
            host.tables.set_node(Node::share(number, 2));
            host
        });
        // A client's own port stands for the nearest one of the node.
        for (host, wanted) in hosts.iter().zip([50_002, 50_003]) {
            assert_eq!(host.begin(net.other_client(60_000, 50_003)).port, wanted);
        }
        let mut ports = HashSet::from([50_002, 50_003]);
        for number in 0..30_000 {
            for host in &hosts {
                let connection = host.connect(net.other_client(number, 40_000));
                assert!(connection.port >= FIRST_NAT_PORT);
                assert!(ports.insert(connection.port), "port {} twice", connection.port);
            }
        }
    }
}
