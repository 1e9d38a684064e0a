//! The kernel forgets single entries when a table is full. What is left of one connection must not touch
//! another that has taken its port or tuple.

use std::net::SocketAddr;

use lb_common::{flow::state, reason::Reason};
use lb_ebpf::{
    fake::{
        Net,
        setup::{CLIENT_MAC, OUR_MAC},
        tables::tuple,
    },
    family::{Family, V4, protocol},
    packet::tcp_flags::{ACK, RST},
};

use crate::driver::{Connection, Host};

/// Key of the client's half of a connection.
fn client_key(net: &Net, connection: &Connection) -> <V4 as Family>::Key {
    V4::key(tuple::<V4>(connection.client, net.vip), protocol::TCP)
}

/// Key of the backend's half.
fn server_key(net: &Net, connection: &Connection) -> <V4 as Family>::Key {
    let backend = net.backends[connection.backend as usize - 1];
    V4::key(tuple::<V4>(backend, net.nat(connection.port)), protocol::TCP)
}

/// A connection of `net.client` whose backend's half is forgotten, and another client's
/// connection that took its port then.
fn port_taken(host: &Host) -> (Connection, Connection) {
    let net = host.net;
    let left = host.connect(net.client);
    assert!(host.tables.v4.evict_flow(&server_key(&net, &left)));
    let other = host.connect(net.other_client(1, net.client.port()));
    assert_eq!(other.port, left.port, "the other client's own port is free");
    (left, other)
}

fn assert_alive(host: &Host, connection: &Connection) {
    let flows = host.tables.v4.flows();
    for key in [client_key(&host.net, connection), server_key(&host.net, connection)] {
        let entry = flows.get(&key).expect("both halves");
        assert!(!state::closed(entry.state), "still open");
        assert_eq!(entry.client_mac(), CLIENT_MAC);
    }
    host.forwarded(&host.up(connection, ACK));
    let answer = host.down(connection, ACK);
    let seen = host.net.at_client(&answer, connection.client);
    assert_eq!(host.forwarded(&answer), seen.build());
}

#[test]
fn its_end_is_not_the_others() {
    let host = Host::single(Net::v4());
    let (left, other) = port_taken(&host);
    host.forwarded(&host.up(&left, RST));
    assert_alive(&host, &other);
    host.assert_counts_agree();
}

#[test]
fn its_new_start_does_not_remove_the_other() {
    let host = Host::single(Net::v4());
    let (left, other) = port_taken(&host);
    host.forwarded(&host.up(&left, RST));
    let again = host.connect(left.client);
    assert_ne!(again.port, other.port);
    assert_alive(&host, &other);
    assert_alive(&host, &again);
    host.assert_counts_agree();
}

#[test]
fn its_move_does_not_move_the_other() {
    let host = Host::single(Net::v4());
    let (left, other) = port_taken(&host);
    host.forwarded(&host.up(&left, ACK).link([8; 6], OUR_MAC));
    assert_alive(&host, &other);
}

#[test]
fn its_ports_reuse_does_not_remove_the_clients_new_connection() {
    let net = Net::v4();
    let host = Host::single(net);
    // Holds the client's own port, so that the client gets another.
    let holder = host.connect(net.other_client(1, net.client.port()));
    let old = host.connect(net.client);
    assert_ne!(old.port, net.client.port());
    host.close(&old);
    host.close(&holder);
    assert!(host.tables.v4.evict_flow(&client_key(&net, &old)));
    assert!(host.tables.v4.evict_flow(&server_key(&net, &holder)));
    let new = host.connect(net.client);
    assert_eq!(new.port, net.client.port());
    // The same address comes by the port that the old connection left behind.
    let neighbour = SocketAddr::new(net.client.ip(), old.port);
    assert_eq!(host.connect(neighbour).port, old.port);
    assert_alive(&host, &new);
    host.assert_counts_agree();
}

#[test]
fn of_a_half_open_one() {
    let net = Net::v4();
    for evict_client in [true, false] {
        let host = Host::single(net);
        let first = host.begin(net.client);
        let key = if evict_client { client_key(&net, &first) } else { server_key(&net, &first) };
        assert!(host.tables.v4.evict_half_open(&key));
        let again = host.begin(net.client);
        if evict_client {
            assert_ne!(again.port, first.port, "the old port is still held");
            host.forwarded(&host.answer(&again));
        } else {
            // Its answers find no way back; user space finds the orphan and forgets it.
            host.assert_refused(&host.answer(&again), Reason::NoService);
        }
    }
}
