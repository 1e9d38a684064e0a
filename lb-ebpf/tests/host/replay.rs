//! A backend fails before it has answered: its connection goes to the next, and the client sees nothing.

use lb_common::{
    backend::{FORWARD, RESOLVED},
    flow::state::GIVEN_UP,
    limits::{DEFAULT_PATIENCE_MS, REPLAY_BUDGET, REPLAY_COST},
    reason::Reason,
    service::Balance,
};
use lb_ebpf::{
    Action,
    fake::{
        Error, FakeTables, Frame, Net, Step, Xdp,
        frame::{VLAN, VLAN_OUTER},
        run,
        setup::INGRESS,
    },
    family::protocol,
    packet::tcp_flags::{ACK, FIN, RST, SYN},
    tables::Tables,
};

use crate::driver::{Connection, Host};

mod limits;
mod races;

/// The clock of [`FakeTables`] when it is new.
const START_NS: u64 = 1_000_000_000_000;

/// Longer than a backend has to answer.
const OVERDUE_NS: u64 = START_NS + DEFAULT_PATIENCE_MS as u64 * 1_000_000;

const ISN: u32 = 0xffff_ffff;

/// Three backends in turn, and connections that may be replayed.
fn host(net: Net, tries: u32) -> Host {
    balanced(net, Balance::RoundRobin, tries)
}

fn balanced(net: Net, balance: Balance, tries: u32) -> Host {
    Host { net, tables: FakeTables::new(&net.setup(balance).replays(tries, 200)) }
}

/// A client's SYN with all that is worth keeping: ECN, a type of service, options.
fn syn(net: &Net) -> Frame {
    Frame::tcp(net.client, net.vip, SYN | 0xc0)
        .numbers(ISN, 0)
        .window(4321)
        .traffic_class(0xb8)
        .tcp_options(&lb_ebpf::fake::frame::SYN_OPTIONS)
}

/// The refusal of a SYN by the backend that got it.
fn refusal(host: &Host, connection: &Connection) -> Frame {
    host.down(connection, RST | ACK).numbers(0, ISN.wrapping_add(1))
}

/// Sends a SYN, and says where it went.
fn begin(host: &Host, syn: &Frame) -> Connection {
    let out = host.forwarded(syn);
    Connection {
        client: host.net.client,
        backend: host.backend_of(&out),
        port: port(host, syn, &out),
    }
}

/// The source port in a frame with as many tags and options as `like`.
fn port(host: &Host, like: &Frame, frame: &[u8]) -> u16 {
    host.port(&frame[like.vlans.len() * 4 + like.ip_options.len()..])
}

/// A frame goes on as the client's SYN, to another backend. Says to which.
#[track_caller]
fn assert_replayed(host: &Host, frame: &Frame, syn: &Frame, before: &[u32]) -> Connection {
    let replayed = host.tables.service_stats(0).replayed;
    let out = host.forwarded(frame);
    let (backend, port) = (host.backend_of(&out), port(host, frame, &out));
    assert!(!before.contains(&backend), "{backend} was tried before: {before:?}");
    // Rebuilt from what was noted: IPv4's identification is not, nor is IPv6's flow label.
    let label = if frame == syn { syn.label } else { 0 };
    let mut seen = host.net.at_backend(syn, backend, port).label(label);
    seen.vlans.clone_from(&frame.vlans);
    if frame != syn {
        seen.ip_options.clear();
    }
    assert_eq!(out, seen.build());
    assert_eq!(host.tables.service_stats(0).replayed, replayed + 1);
    host.assert_counts_agree();
    Connection { client: host.net.client, backend, port }
}

/// The connection is established, and works.
#[track_caller]
fn assert_opens(host: &Host, connection: &Connection) {
    let answer = host.answer(connection);
    let seen = host.net.at_client(&answer, host.net.client);
    assert_eq!(host.forwarded(&answer), seen.build());
    host.assert_counts_agree();
    assert_eq!(host.tables.active(connection.backend), 1);
    host.forwarded(&host.up(connection, ACK).payload(b"question"));
    host.forwarded(&host.down(connection, ACK).payload(b"answer"));
    host.close(connection);
    assert_eq!((1..=3).map(|id| host.tables.active(id)).sum::<u64>(), 0);
}

#[test]
fn a_refusal_becomes_the_syn_to_the_next() {
    for net in Net::both() {
        let host = host(net, 3);
        let syn = syn(&net);
        let first = begin(&host, &syn);
        let second = assert_replayed(&host, &refusal(&host, &first), &syn, &[first.backend]);
        let tried = [first.backend, second.backend];
        let third = assert_replayed(&host, &refusal(&host, &second), &syn, &tried);
        assert_opens(&host, &third);
        for connection in [first, second] {
            let signals = host.tables.signals(connection.backend);
            assert_eq!((signals.attempts, signals.refused, signals.answered), (1, 1, 0));
        }
        let signals = host.tables.signals(third.backend);
        assert_eq!((signals.attempts, signals.refused, signals.answered), (1, 0, 1));
        assert_eq!(signals.handshakes.iter().sum::<u32>(), 1);
        assert_eq!(host.tables.service_stats(0).connections, 1);
    }
}

#[test]
fn in_every_dress() {
    for net in Net::both() {
        let mut dressed = vec![
            syn(&net),
            syn(&net).tcp_options(&[]),
            syn(&net).tcp_options(&[1; 40]),
            syn(&net).tcp_options(&[2, 4, 5, 0xb4]),
            syn(&net).trailer(&[0; 6]),
            Frame::tcp(net.client, net.vip, SYN).numbers(ISN, 0),
        ];
        if net.vip.is_ipv4() {
            dressed.push(syn(&net).ip_options(&[1; 40]));
        }
        for syn in dressed {
            for vlans in [vec![], vec![(VLAN, 7)], vec![(VLAN_OUTER, 7), (VLAN, 8)]] {
                // A backend's refusal, short, padded, or with an explanation.
                for (payload, trailer) in [(0, 0), (0, 6), (100, 0)] {
                    let host = host(net, 3);
                    let mut syn = syn.clone();
                    syn.vlans.clone_from(&vlans);
                    let first = begin(&host, &syn);
                    let mut refusal = refusal(&host, &first)
                        .payload(&vec![b'x'; payload])
                        .trailer(&vec![0; trailer]);
                    refusal.vlans.clone_from(&vlans);
                    syn.trailer.clear();
                    assert_replayed(&host, &refusal, &syn, &[first.backend]);
                }
            }
        }
    }
}

#[test]
fn the_bits_that_are_still_free_are_kept() {
    // Accurate ECN (RFC 9768) has one next to the data offset.
    for net in Net::both() {
        let host = host(net, 3);
        let mut frame = syn(&net).build();
        let at = 14 + if net.vip.is_ipv4() { 20 } else { 40 } + 12;
        frame[at] |= 1;
        // The checksum counts the bit too.
        let sum = u16::from_be_bytes([frame[at + 4], frame[at + 5]]);
        let sum = if sum >= 0x100 { sum - 0x100 } else { sum.wrapping_sub(0x101) };
        frame[at + 4..at + 6].copy_from_slice(&sum.to_be_bytes());
        let (out, _) = host.run_bytes(&frame);
        let first = Connection {
            client: net.client,
            backend: host.backend_of(&out.frame),
            port: host.port(&out.frame),
        };
        let out = host.forwarded(&refusal(&host, &first));
        assert_eq!(out[at], frame[at]);
    }
}

#[test]
fn a_refusal_of_something_else_is_passed_on() {
    for net in Net::both() {
        for (flags, ack) in [(RST, 0), (RST | ACK, 77), (RST, ISN.wrapping_add(1))] {
            let host = host(net, 3);
            let first = begin(&host, &syn(&net));
            let reset = host.down(&first, flags).numbers(0, ack);
            let seen = net.at_client(&reset, net.client);
            assert_eq!(host.forwarded(&reset), seen.build());
            assert_eq!(host.tables.service_stats(0).replayed, 0);
            assert_eq!(host.tables.signals(first.backend).refused, 0);
            host.assert_counts_agree();
            assert_eq!(host.tables.active(first.backend), 0);
        }
    }
}

#[test]
fn an_error_about_the_syn_becomes_the_syn_to_the_next() {
    for net in Net::both() {
        let router = net.other_client(7, 0).ip();
        for quoted in [if net.vip.is_ipv4() { 28 } else { 48 }, 1000] {
            let host = host(net, 3);
            let syn = syn(&net);
            let first = begin(&host, &syn);
            let about = net.at_backend(&syn, first.backend, first.port);
            let error = |error, about: &Frame| {
                let frame = Frame::icmp_error(router, error, about, quoted);
                net.sent_by_backend(frame, first.backend)
            };
            // Of another packet than the SYN, or not about its delivery.
            for other in [
                error(Error::PortUnreachable, &about.clone().numbers(ISN.wrapping_add(9), 0)),
                error(Error::TooBig(1280), &about),
                error(Error::TimeExceeded, &about),
            ] {
                let (_, decision) = host.run(&other);
                assert_eq!(decision, Ok(Action::Transmit));
                assert_eq!(host.tables.service_stats(0).replayed, 0);
            }
            let unreachable = error(Error::PortUnreachable, &about);
            let second = assert_replayed(&host, &unreachable, &syn, &[first.backend]);
            let signals = host.tables.signals(first.backend);
            assert_eq!((signals.attempts, signals.unreachable, signals.refused), (1, 1, 0));
            // Again, about the one that was given up.
            host.assert_refused(&unreachable, Reason::LateAnswer);
            assert_opens(&host, &second);
        }
    }
}

#[test]
fn a_silent_backend_is_given_up_when_its_time_is_over() {
    for net in Net::both() {
        let host = host(net, 3);
        let syn = syn(&net);
        let first = begin(&host, &syn);
        let again = net.at_backend(&syn, first.backend, first.port).build();
        host.tables.set_now_ns(OVERDUE_NS - 1);
        assert_eq!(host.forwarded(&syn), again, "there is time still");
        assert_eq!(host.tables.signals(first.backend).unanswered, 0);
        host.tables.set_now_ns(OVERDUE_NS);
        let second = assert_replayed(&host, &syn, &syn, &[first.backend]);
        let signals = host.tables.signals(first.backend);
        assert_eq!((signals.attempts, signals.unanswered), (1, 1));

        // The first answers after all: it is told that nobody waits, once and again.
        let late = host.answer(&first).numbers(99, ISN.wrapping_add(1));
        for _ in 0..2 {
            let outcome = host.assert_refused(&late, Reason::LateAnswer);
            assert_eq!(outcome.xdp, Xdp::Transmit);
            let mut reset = Frame::tcp(late.dst, late.src, RST)
                .numbers(ISN.wrapping_add(1), 0)
                .window(0)
                .label(0);
            reset = reset.link(late.dst_mac, late.src_mac);
            assert_eq!(outcome.frame, reset.build());
        }
        // Which still says that it lives. How long it took is not known: the SYN was sent twice.
        let signals = host.tables.signals(first.backend);
        assert_eq!((signals.answered, signals.handshakes.iter().sum::<u32>()), (1, 0));
        let outcome = host.assert_refused(&refusal(&host, &first), Reason::LateAnswer);
        assert_eq!(outcome.xdp, Xdp::Drop, "a reset is not answered");
        assert_opens(&host, &second);
    }
}

#[test]
fn a_late_answer_tells_how_long_it_took() {
    let net = Net::v4();
    let host = host(net, 3);
    let first = begin(&host, &syn(&net));
    let error = Frame::icmp_error(
        net.other_client(7, 0).ip(),
        Error::PortUnreachable,
        &net.at_backend(&syn(&net), first.backend, first.port),
        28,
    );
    let second = assert_replayed(
        &host,
        &net.sent_by_backend(error, first.backend),
        &syn(&net),
        &[first.backend],
    );
    host.tables.set_now_ns(START_NS + 3_000_000);
    host.assert_refused(&host.answer(&first), Reason::LateAnswer);
    let signals = host.tables.signals(first.backend);
    assert_eq!(signals.handshakes[lb_common::stats::handshake_class(3_000_000)], 1);
    assert_opens(&host, &second);
}

#[test]
fn a_backend_has_the_time_that_was_found_out() {
    let net = Net::v4();
    let setup = net
        .setup(Balance::RoundRobin)
        .replays(3, 200)
        .change(1, |backend| backend.patience_ms = 50);
    let host = Host { net, tables: FakeTables::new(&setup) };
    let syn = syn(&net);
    let first = begin(&host, &syn);
    assert_eq!(first.backend, 1);
    host.tables.set_now_ns(START_NS + 49_999_999);
    host.forwarded(&syn);
    assert_eq!(host.tables.service_stats(0).replayed, 0);
    host.tables.set_now_ns(START_NS + 50_000_000);
    let second = assert_replayed(&host, &syn, &syn, &[1]);
    // The time counts anew for the next, which has its own.
    host.tables.set_now_ns(START_NS + 50_000_000 + 199_999_999);
    host.forwarded(&syn);
    assert_eq!(host.tables.service_stats(0).replayed, 1);
    host.tables.set_now_ns(START_NS + 50_000_000 + 200_000_000);
    assert_replayed(&host, &syn, &syn, &[1, second.backend]);
}

#[test]
fn another_syn_is_not_the_one_that_was_noted() {
    let net = Net::v4();
    let host = host(net, 3);
    let first = begin(&host, &syn(&net));
    host.tables.set_now_ns(OVERDUE_NS);
    // The client has begun anew, with another number.
    let other = syn(&net).numbers(55, 0);
    assert_eq!(host.forwarded(&other), net.at_backend(&other, first.backend, first.port).build());
    // The SYN that could be sent is no longer the client's: what comes is passed on.
    let reset = refusal(&host, &first);
    assert_eq!(host.forwarded(&reset), net.at_client(&reset, net.client).build());
    assert_eq!(host.tables.service_stats(0).replayed, 0);
    host.assert_counts_agree();
}

#[test]
fn a_backend_that_was_given_up_and_is_gone() {
    for net in Net::both() {
        let mut host = host(net, 3);
        let syn = syn(&net);
        let first = begin(&host, &syn);
        let refusal_frame = refusal(&host, &first);
        let second = assert_replayed(&host, &refusal_frame, &syn, &[first.backend]);
        host.tables.set_flag(first.backend, FORWARD, false);
        host.assert_refused(&host.answer(&first), Reason::LateAnswer);
        host.assert_refused(&host.down(&first, FIN | ACK), Reason::LateAnswer);
        assert_opens(&host, &second);
    }
}

#[test]
fn out_by_another_interface() {
    let net = Net::v4();
    let mut setup = net.setup(Balance::RoundRobin).replays(3, 200);
    for id in [2, 3] {
        setup = setup.change(id, |backend| backend.ifindex = 7);
    }
    let host = Host { net, tables: FakeTables::new(&setup) };
    let first = begin(&host, &syn(&net));
    let (_, decision) = host.run(&refusal(&host, &first));
    assert_eq!(decision, Ok(Action::Redirect { ifindex: 7 }));
}

#[test]
fn datagrams_are_not_replayed() {
    for net in Net::both() {
        let host = host(net, 3);
        let question = Frame::udp(net.client, net.vip, b"question");
        let out = host.forwarded(&question);
        let id = host.backend_of(&out);
        let about = net.at_backend(&question, id, net.client.port());
        let error = Frame::icmp_error(
            net.backends[id as usize - 1].ip(),
            Error::PortUnreachable,
            &about,
            64,
        );
        let (_, decision) = host.run(&net.sent_by_backend(error, id));
        assert_eq!(decision, Ok(Action::Transmit));
        assert_eq!(host.tables.service_stats(1).replayed, 0);
        assert_eq!(host.tables.signals(id).attempts, 0);
        assert_eq!(protocol::UDP, 17);
    }
}
