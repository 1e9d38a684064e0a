//! Ports of the floating address for connections to one backend.

use std::collections::HashSet;

use lb_common::{
    limits::{FIRST_NAT_PORT, NAT_PORTS},
    reason::Reason,
};
use lb_ebpf::{
    fake::{Frame, Net},
    packet::tcp_flags::RST,
};

use crate::driver::Host;

#[test]
fn a_client_keeps_its_own_port_if_it_can() {
    for net in Net::both() {
        let host = Host::single(net);
        for port in [1024, 1025, 40_000, u16::MAX] {
            assert_eq!(host.begin(net.other_client(port, port)).port, port);
        }
        // Ports below are the system's.
        for port in [1, 80, 1023] {
            assert!(host.begin(net.other_client(port, port)).port >= FIRST_NAT_PORT);
        }
        let taken = host.begin(net.other_client(2, 40_000));
        assert_ne!(taken.port, 40_000, "another client has it");
    }
}

#[test]
fn sixty_thousand_clients_with_one_port_get_one_each() {
    for net in Net::both() {
        let host = Host::single(net);
        let mut ports = HashSet::new();
        for number in 0..60_000 {
            let connection = host.connect(net.other_client(number, 40_000));
            assert!(connection.port >= FIRST_NAT_PORT);
            assert!(ports.insert(connection.port), "port {} twice", connection.port);
        }
        assert_eq!(host.tables.service_stats(0).refused, 0);
        assert!(host.tables.take_events().is_empty());
    }
}

#[test]
fn when_all_ports_are_taken_it_says_so_until_some_are_free() {
    for net in Net::both() {
        let host = Host::single(net);
        let mut connections = Vec::new();
        for port in FIRST_NAT_PORT..=u16::MAX {
            connections.push(host.connect(net.other_client(1, port)));
        }
        assert_eq!(connections.len(), NAT_PORTS as usize);

        let late = net.other_client(2, 40_000);
        host.assert_refused(&Frame::syn(late, net.vip), Reason::PortsExhausted);
        assert_eq!(host.tables.service_stats(0).refused, 1);
        let events = host.tables.take_events();
        assert_eq!(events.len(), 1);
        assert_eq!(
            (events[0].reason, events[0].service, events[0].backend),
            (Reason::PortsExhausted as u32, 0, 1)
        );
        // UDP has ports of its own.
        host.forwarded(&Frame::udp(late, net.vip, b"question"));

        // Closed ones give way.
        for connection in connections.iter().step_by(2) {
            host.forwarded(&host.up(connection, RST));
        }
        let mut taken = HashSet::new();
        for number in 0..1000 {
            let connection = host.connect(net.other_client(3, 2000 + number));
            assert!(taken.insert(connection.port));
            assert_eq!((connection.port - FIRST_NAT_PORT) % 2, 0, "one of those that were closed");
        }
        host.assert_counts_agree();
        assert_eq!(host.open_in_tables(1), u64::from(NAT_PORTS / 2) + 1000 + 1);
        // Those that are open still are whole.
        for connection in connections.iter().skip(1).step_by(2).take(1000) {
            let answer = host.down(connection, 16);
            let seen = net.at_client(&answer, connection.client);
            assert_eq!(host.forwarded(&answer), seen.build());
        }
    }
}

#[test]
fn a_closed_port_of_another_client_is_left_alone_while_there_are_others() {
    let net = Net::v4();
    let host = Host::single(net);
    let old = host.connect(net.other_client(1, 40_000));
    host.close(&old);
    // The backend may be in TIME-WAIT with it, and would take another client's SYN for an old one.
    assert_ne!(host.connect(net.other_client(2, 40_000)).port, old.port);
    // The same client's goes by the same port: its numbers follow those of its old connection.
    assert_eq!(host.connect(net.other_client(1, 40_000)).port, old.port);
}

#[test]
fn a_retransmission_tries_other_ports_than_the_first_packet() {
    let net = Net::v4();
    let host = Host::single(net);
    // 300 are free: half of all searches find none.
    for port in (FIRST_NAT_PORT..=u16::MAX).filter(|port| port % 215 != 0) {
        host.connect(net.other_client(1, port));
    }
    let syn = |number: u16| Frame::syn(net.other_client(2 + number, 1025), net.vip);
    let found_at_once = |number: u16| host.run(&syn(number)).1.is_ok();
    let unlucky = (0..50).find(|number| !found_at_once(*number)).expect("one without luck");
    assert!(!found_at_once(unlucky), "the same moment, the same ports");
    let tries = (1..50_u64).find(|second| {
        host.tables.set_now_ns((2000 + second) * 1_000_000_000);
        found_at_once(unlucky)
    });
    assert!(tries.is_some());
}
