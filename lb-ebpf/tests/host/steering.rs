//! Steered services: which backend a packet goes to, in every state of its slot.

use std::net::SocketAddr;

use lb_common::{
    backend::{DIRECT, FORWARD, RESOLVED},
    flow::{FlowEntry4, FlowEntry6, state::STEERED},
    reason::Reason,
    service::{LOOK_UP, Slot},
};
use lb_ebpf::{
    fake::{
        Error, FakeTables, Frame, Net, Setup, TICK_NS, Xdp,
        setup::{backend, steered_at},
        tables::tuple,
    },
    family::{Family as _, V4, V6, protocol},
    packet::tcp_flags::{ACK, FIN, RST, SYN},
    tables::{Entry as _, Tables as _},
};

use crate::driver::Host;

/// A service with one slot, that three backends are known for.
fn host(net: Net, slot: Slot) -> Host {
    let net = net.steered();
    Host { net, tables: FakeTables::new(&setup(&net, slot)) }
}

fn setup(net: &Net, slot: Slot) -> Setup {
    let mut setup = Setup::default().vip(net.vip.ip());
    for (id, address) in (1..).zip(net.backends) {
        setup = setup.backend(id, steered_at(address, DIRECT));
    }
    setup.steered(net.vip, protocol::TCP, &[slot]).steered(net.vip, protocol::UDP, &[slot])
}

fn disturbed(backend: u32, base: u32) -> Slot {
    Slot { backend, base }
}

impl Host {
    /// The backend that a frame goes to, unchanged but for its MAC addresses.
    #[track_caller]
    fn steered(&self, frame: &Frame) -> u32 {
        let out = self.forwarded(frame);
        let mut expected = frame.build();
        expected[..12].copy_from_slice(&out[..12]);
        assert_eq!(out, expected, "no byte but the MAC addresses");
        self.backend_of(&out)
    }

    /// The backend that the client's entry names.
    fn entry(&self, carried: u8) -> Option<u32> {
        self.entry_of(self.net.client, carried)
    }

    fn entry_of(&self, client: SocketAddr, carried: u8) -> Option<u32> {
        let (backend, bits) = if self.net.vip.is_ipv4() {
            let key = V4::key(tuple::<V4>(client, self.net.vip), carried);
            self.tables.v4.flows().get(&key).map(|entry| (entry.backend, entry.state))?
        } else {
            let key = V6::key(tuple::<V6>(client, self.net.vip), carried);
            self.tables.v6.flows().get(&key).map(|entry| (entry.backend, entry.state))?
        };
        assert_eq!(bits, STEERED);
        Some(backend)
    }

    fn entries(&self) -> usize {
        self.tables.v4.flows().len() + self.tables.v6.flows().len()
    }

    fn slots(&mut self, slot: Slot) {
        self.tables.set_slot(0, slot);
        self.tables.set_slot(1, slot);
    }

    fn of_client(&self, flags: u8) -> Frame {
        Frame::tcp(self.net.client, self.net.vip, flags)
    }

    fn datagram(&self) -> Frame {
        Frame::udp(self.net.client, self.net.vip, b"question")
    }
}

#[test]
fn in_an_undisturbed_slot_everything_goes_to_its_backend_and_nothing_is_written() {
    for net in Net::both() {
        let host = host(net, Slot::of(2));
        for frame in [
            host.of_client(SYN),
            host.of_client(ACK),
            host.of_client(ACK | 8).payload(b"data").vlan(0x8100, 7),
            host.of_client(FIN | ACK),
            host.of_client(RST),
            host.datagram(),
            host.of_client(ACK).ttl(1),
        ] {
            assert_eq!(host.steered(&frame), 2, "{frame:?}");
        }
        assert_eq!(host.entries(), 0);
        assert_eq!(host.tables.service_stats(0).connections, 1);
        assert_eq!(host.tables.active(2), 0, "their end is not seen");
        assert_eq!(host.tables.backend_stats(2).forward_packets, 7);
    }
}

#[test]
fn in_a_disturbed_slot_new_connections_go_to_the_new_backend_and_stay_there() {
    for net in Net::both() {
        let host = host(net, disturbed(2, 1));
        assert_eq!(host.steered(&host.of_client(SYN)), 2);
        assert_eq!(host.entry(6), Some(2));
        assert_eq!(host.steered(&host.of_client(ACK)), 2);
        assert_eq!(host.steered(&host.of_client(SYN)), 2, "again");
        assert_eq!(host.entries(), 1);
    }
}

#[test]
fn in_a_disturbed_slot_what_has_no_entry_goes_to_the_base_and_is_learned() {
    for net in Net::both() {
        let mut host = host(net, disturbed(2, 1));
        assert_eq!(host.steered(&host.of_client(ACK)), 1);
        assert_eq!(host.steered(&host.datagram()), 1);
        assert_eq!((host.entry(6), host.entry(17)), (Some(1), Some(1)));
        // The base changes; what was learned stays.
        host.slots(disturbed(2, 2 | LOOK_UP));
        assert_eq!(host.steered(&host.of_client(ACK)), 1);
        assert_eq!(host.steered(&host.datagram()), 1);
        // Another slot's worth of disturbance later too.
        host.slots(disturbed(3, 2 | LOOK_UP));
        assert_eq!(host.steered(&host.of_client(FIN | ACK)), 1);
        assert_eq!(host.entries(), 2);
    }
}

#[test]
fn with_a_connection_s_first_packet_its_entry_begins_anew() {
    for net in Net::both() {
        let mut host = host(net, disturbed(2, 1));
        assert_eq!(host.steered(&host.of_client(ACK)), 1);
        assert_eq!(host.steered(&host.of_client(SYN)), 2);
        assert_eq!(host.entry(6), Some(2), "the entry was changed");
        // When the slot's two sides agree, the entry is superfluous.
        host.slots(disturbed(3, 3 | LOOK_UP));
        assert_eq!(host.steered(&host.of_client(ACK)), 2);
        assert_eq!(host.steered(&host.of_client(SYN)), 3);
        assert_eq!(host.entry(6), None);
        assert_eq!(host.steered(&host.of_client(ACK)), 3);
        assert_eq!(host.entries(), 0, "nothing is learned where nothing changes");
    }
}

#[test]
fn an_entry_is_stamped_and_counts() {
    let host = host(Net::v4(), disturbed(2, 1));
    host.steered(&host.of_client(ACK));
    host.tables.set_now_ns(5_000_000_000_000);
    host.steered(&host.of_client(ACK));
    let entries: Vec<FlowEntry4> = host.tables.v4.flows().into_values().collect();
    assert_eq!((entries[0].packets, entries[0].bytes), (2, 108));
    assert_eq!(entries[0].last_seen, 5_000_000_000_000 / TICK_NS);
}

#[test]
fn connections_of_a_backend_that_is_gone_are_reset() {
    for net in Net::both() {
        // In an undisturbed slot, before user space has changed it; as the base; by an entry.
        for (slot, learned) in [
            (Slot::of(1), false),
            (disturbed(2, 1), false),
            (disturbed(2, 1), true),
            (disturbed(2, 2 | LOOK_UP), true),
        ] {
            let mut host = host(net, disturbed(2, 1));
            if learned {
                host.steered(&host.of_client(ACK));
            }
            host.slots(slot);
            host.tables.set_flag(1, FORWARD, false);
            let outcome = host.assert_refused(&host.of_client(ACK), Reason::BackendGone);
            assert_eq!(outcome.xdp, Xdp::Transmit, "{slot:?}: it is answered");
            host.assert_refused(&host.of_client(RST), Reason::BackendGone);
        }
    }
}

#[test]
fn what_begins_while_a_backend_is_gone_goes_to_the_new_one() {
    for net in Net::both() {
        let mut host = host(net, disturbed(2, 1));
        host.steered(&host.datagram());
        host.tables.set_flag(1, FORWARD, false);
        assert_eq!(host.steered(&host.of_client(SYN)), 2);
        assert_eq!(host.steered(&host.datagram()), 2, "a datagram never is refused in vain");
        assert_eq!((host.entry(6), host.entry(17)), (Some(2), Some(2)), "its entry was changed");
        // And one that had no entry.
        let other = net.other_client(5, 999);
        assert_eq!(host.steered(&Frame::udp(other, host.net.vip, b"x")), 2);
        assert_eq!(host.entry_of(other, 17), Some(2));
        // Even when the old one comes back, they stay.
        host.tables.set_flag(1, FORWARD, true);
        assert_eq!(host.steered(&host.datagram()), 2);
        assert_eq!(host.steered(&Frame::udp(other, host.net.vip, b"x")), 2);
    }
}

#[test]
fn with_no_backend_that_serves_new_connections_are_refused() {
    for net in Net::both() {
        for slot in [Slot::of(1), disturbed(1, 2), disturbed(1, 1 | LOOK_UP)] {
            let mut host = host(net, slot);
            host.tables.set_flag(1, FORWARD, false);
            host.tables.set_flag(2, FORWARD, false);
            let outcome = host.assert_refused(&host.of_client(SYN), Reason::NoBackend);
            assert_eq!(outcome.xdp, Xdp::Transmit);
            host.assert_refused(&host.datagram(), Reason::NoBackend);
            assert_eq!(host.tables.service_stats(0).refused, 1);
            assert_eq!(host.tables.service_stats(1).refused, 1);
            assert_eq!(host.entries(), 0);
        }
        let host = Host {
            net: net.steered(),
            tables: FakeTables::new(
                &Setup::default()
                    .vip(net.vip.ip())
                    .steered(net.steered().vip, protocol::TCP, &[])
                    .steered(net.steered().vip, protocol::UDP, &[]),
            ),
        };
        host.assert_refused(&host.of_client(SYN), Reason::NoBackend);
        host.assert_refused(&host.of_client(ACK), Reason::NoBackend);
        host.assert_refused(&host.datagram(), Reason::NoBackend);
    }
}

#[test]
fn without_a_next_hop_packets_wait_and_user_space_hears_of_new_ones() {
    for net in Net::both() {
        let mut host = host(net, Slot::of(1));
        host.tables.set_flag(1, RESOLVED, false);
        host.assert_refused(&host.of_client(ACK), Reason::NoNeighbour);
        assert!(host.tables.take_events().is_empty());
        host.assert_refused(&host.of_client(SYN), Reason::NoNeighbour);
        let events = host.tables.take_events();
        assert_eq!((events[0].backend, events[0].service), (1, 0));
    }
}

#[test]
fn a_full_table_stops_no_packet() {
    for net in Net::both() {
        let host = host(net, disturbed(2, 1));
        host.tables.v4.limit(0, 0);
        host.tables.v6.limit(0, 0);
        assert_eq!(host.steered(&host.of_client(ACK)), 1);
        assert_eq!(host.steered(&host.of_client(SYN)), 2);
        assert_eq!(host.entries(), 0);
    }
}

#[test]
fn entries_of_another_time_are_replaced() {
    for net in Net::both() {
        let net = net.steered();
        let host = host(net, disturbed(2, 1));
        // The service was one of NAT before, …
        if net.vip.is_ipv4() {
            let tuple = tuple::<V4>(net.client, net.vip);
            host.tables.v4.put_flow(V4::key(tuple, 6), FlowEntry4::new(tuple, tuple, 3, 0));
        } else {
            let tuple = tuple::<V6>(net.client, net.vip);
            host.tables.v6.put_flow(V6::key(tuple, 6), FlowEntry6::new(tuple, tuple, 3, 0));
        }
        assert_eq!(host.steered(&host.of_client(ACK)), 1);
        assert_eq!(host.entry(6), Some(1));
        // … and now is again.
        let nat = Host::single(net);
        if net.vip.is_ipv4() {
            let tuple = tuple::<V4>(net.client, net.vip);
            let key = V4::key(tuple, 6);
            nat.tables.v4.put_flow(key, FlowEntry4::new(tuple, tuple, 1, STEERED));
        } else {
            let tuple = tuple::<V6>(net.client, net.vip);
            let key = V6::key(tuple, 6);
            nat.tables.v6.put_flow(key, FlowEntry6::new(tuple, tuple, 1, STEERED));
        }
        nat.assert_refused(&nat.of_client(ACK), Reason::NoFlow);
        assert_eq!(nat.entries(), 0);
        nat.connect(net.client);
        nat.assert_counts_agree();
    }
}

#[test]
fn lists_and_rates_hold_for_steered_services() {
    for net in Net::both() {
        let net = net.steered();
        let whole = if net.vip.is_ipv4() { 32 } else { 128 };
        let client = net.client.ip();

        let allowed = setup(&net, Slot::of(2)).filtered(&[(client, whole, true)]);
        let host = Host { net, tables: FakeTables::new(&allowed) };
        assert_eq!(host.steered(&host.datagram()), 2);
        assert_eq!(host.steered(&host.of_client(SYN)), 2);

        let denied = setup(&net, Slot::of(2)).filtered(&[(client, whole, false)]);
        let host = Host { net, tables: FakeTables::new(&denied) };
        host.assert_refused(&host.datagram(), Reason::Denied);
        host.assert_refused(&host.of_client(SYN), Reason::Denied);
        // Which connections are open, nobody knows here.
        assert_eq!(host.steered(&host.of_client(ACK)), 2);

        let limited = setup(&net, Slot::of(2)).limited(1, 1);
        let host = Host { net, tables: FakeTables::new(&limited) };
        assert_eq!(host.steered(&host.of_client(SYN)), 2);
        host.assert_refused(&host.of_client(SYN), Reason::RateLimited);
        assert_eq!(host.steered(&host.of_client(ACK)), 2);
    }
}

#[test]
fn other_services_of_the_address_are_as_before() {
    for net in Net::both() {
        let steered = net.steered();
        let setup = setup(&steered, Slot::of(2)).service(
            net.nat(81),
            protocol::TCP,
            lb_common::service::Balance::Maglev,
            &[3],
        );
        let setup = setup.change(3, |entry| *entry = backend(net.backends[2]));
        let host = Host { net, tables: FakeTables::new(&setup) };
        let syn = Frame::syn(net.client, net.nat(81));
        let out = host.forwarded(&syn);
        assert_eq!(out, net.at_backend(&syn, 3, net.client.port()).build());
        host.assert_refused(&Frame::syn(net.client, net.nat(22)), Reason::NoService);
    }
}

#[test]
fn translated_connections_never_get_a_port_that_is_steered() {
    for net in Net::both() {
        // The steered port is the client's own, which would be the first choice.
        let port = 5000;
        let setup = net.single().steered(net.nat(port), protocol::TCP, &[Slot::of(1)]);
        let host = Host { net, tables: FakeTables::new(&setup) };
        for number in 0..50 {
            let out = host.forwarded(&Frame::syn(net.other_client(number, port), net.vip));
            assert_ne!(host.port(&out), port);
        }
        // By UDP it is free.
        let out = host.forwarded(&Frame::udp(net.other_client(1, port), net.vip, b"x"));
        assert_eq!(host.port(&out), port);
    }
}

#[test]
fn errors_about_a_backend_s_answers_go_to_that_backend() {
    for net in Net::both() {
        let mut host = host(net, disturbed(2, 1));
        let router = net.other_client(7, 0).ip();
        let answer = Frame::tcp(host.net.vip, net.client, ACK).payload(&[1; 64]);
        let error = Frame::icmp_error(router, Error::TooBig(1280), &answer, 1000);
        assert_eq!(host.steered(&error), 1, "as its packets would");
        assert_eq!(host.entries(), 0, "an error teaches nothing");
        host.steered(&host.of_client(SYN));
        assert_eq!(host.steered(&error), 2, "by its entry");
        host.slots(Slot::of(3));
        assert_eq!(host.steered(&error), 3);
        let datagram = Frame::udp(host.net.vip, net.client, b"answer");
        let error = Frame::icmp_error(router, Error::PortUnreachable, &datagram, 1000);
        assert_eq!(host.steered(&error), 3);

        host.tables.set_flag(3, FORWARD, false);
        host.assert_refused(&error, Reason::IcmpUnrelated);
        host.tables.set_flag(3, FORWARD, true);
        host.tables.set_flag(3, RESOLVED, false);
        host.assert_refused(&error, Reason::NoNeighbour);
        let stranger = Frame::tcp(net.nat(4711), net.client, ACK);
        let error = Frame::icmp_error(router, Error::TooBig(1280), &stranger, 1000);
        host.assert_refused(&error, Reason::IcmpUnrelated);
        host.assert_refused(&Frame::echo(router, net.vip.ip()), Reason::OtherProtocol);
    }
}

#[test]
fn fragments_are_left_to_the_node() {
    for net in Net::both() {
        let host = host(net, Slot::of(1));
        for (offset, more) in [(0, true), (8, true), (8, false)] {
            let frame = host.of_client(ACK).payload(&[1; 64]).fragment(offset, more);
            host.assert_refused(&frame, Reason::Fragment);
        }
    }
}
