//! Resets are exact: a receiver takes them at once (RFC 9293, section 3.10.7.1; RFC 5961, section 3.2).

use lb_common::{backend::FORWARD, reason::Reason, service::Balance};
use lb_ebpf::{
    fake::{
        FakeTables, Frame, Net, Setup, Xdp,
        frame::{VLAN, VLAN_OUTER},
    },
    packet::tcp_flags::{ACK, FIN, RST, SYN},
};

use crate::driver::Host;

/// Sequence number, acknowledgement number and control bits.
type Answer = (u32, u32, u8);

/// Segments, and the answer to each.
fn answers(net: &Net) -> Vec<(Frame, Option<Answer>)> {
    let tcp = |flags| Frame::tcp(net.client, net.vip, flags);
    vec![
        // With ACK: the sequence number is what the sender expects.
        (tcp(ACK).numbers(100, 7000), Some((7000, 0, RST))),
        (tcp(ACK).numbers(100, 0), Some((0, 0, RST))),
        (tcp(ACK).numbers(1, u32::MAX).payload(b"data"), Some((u32::MAX, 0, RST))),
        (tcp(FIN | ACK).numbers(5, 6), Some((6, 0, RST))),
        (tcp(SYN | ACK).numbers(5, 6), Some((6, 0, RST))),
        // Without: all that was sent is acknowledged; SYN and FIN count as one byte each.
        (tcp(0).numbers(9, 0).payload(b"12345"), Some((0, 14, RST | ACK))),
        (tcp(0).numbers(9, 0), Some((0, 9, RST | ACK))),
        (tcp(FIN).numbers(9, 0).payload(b"12345"), Some((0, 15, RST | ACK))),
        (tcp(0).numbers(u32::MAX, 0).payload(b"12"), Some((0, 1, RST | ACK))),
        // A reset is never answered.
        (tcp(RST).numbers(9, 0), None),
        (tcp(RST | ACK).numbers(9, 3), None),
        (tcp(RST | SYN).numbers(9, 3), None),
    ]
}

#[test]
fn a_segment_of_no_connection() {
    for net in Net::both() {
        let host = Host::single(net);
        for (frame, expected) in answers(&net) {
            let outcome = host.assert_refused(&frame, Reason::NoFlow);
            match expected {
                Some((seq, ack, flags)) => {
                    assert_eq!(outcome.xdp, Xdp::Transmit);
                    assert_eq!(outcome.frame, reset(&frame, flags, seq, ack).build(), "{frame:?}");
                }
                None => assert_eq!(outcome.xdp, Xdp::Drop),
            }
        }
    }
}

/// The reset that answers a frame.
fn reset(frame: &Frame, flags: u8, seq: u32, ack: u32) -> Frame {
    let mut reset = Frame::tcp(frame.dst, frame.src, flags)
        .numbers(seq, ack)
        .window(0)
        .link(frame.dst_mac, frame.src_mac)
        .label(0);
    reset.vlans.clone_from(&frame.vlans);
    reset
}

#[test]
fn a_syn_that_no_backend_can_take() {
    for net in Net::both() {
        let setup = net.setup(Balance::Maglev);
        let mut tables = FakeTables::new(&setup);
        tables.set_table(net.vip, 6, &[]);
        tables.set_table(net.vip, 17, &[]);
        let host = Host { net, tables };
        let plain = Frame::syn(net.client, net.vip).numbers(77, 0);
        let mut dressed = vec![
            plain.clone(),
            plain.clone().vlan(VLAN, 5),
            plain.clone().vlan(VLAN_OUTER, 5).vlan(VLAN, 6),
            plain.clone().tcp_options(&[]),
        ];
        if net.vip.is_ipv4() {
            dressed.push(plain.clone().ip_options(&[1, 1, 1, 1]));
            dressed.push(plain.clone().ip_options(&[1; 40]).vlan(VLAN, 5));
        }
        for syn in dressed {
            let outcome = host.assert_refused(&syn, Reason::NoBackend);
            assert_eq!(outcome.xdp, Xdp::Transmit);
            assert_eq!(outcome.frame, reset(&syn, RST | ACK, 0, 78).build(), "{syn:?}");
        }
        let with_data = plain.payload(b"early data");
        let outcome = host.assert_refused(&with_data, Reason::NoBackend);
        assert_eq!(outcome.frame, reset(&with_data, RST | ACK, 0, 88).build());

        let outcome =
            host.assert_refused(&Frame::udp(net.client, net.vip, b"question"), Reason::NoBackend);
        assert_eq!(outcome.xdp, Xdp::Drop, "UDP has no reset");
        assert_eq!(host.tables.service_stats(1).refused, 1);
    }
}

#[test]
fn a_backend_that_may_not_serve() {
    for net in Net::both() {
        let setup: Setup = net.single().change(1, |backend| backend.flags &= !FORWARD);
        let host = Host { net, tables: FakeTables::new(&setup) };
        let syn = Frame::syn(net.client, net.vip).numbers(1, 0);
        let outcome = host.assert_refused(&syn, Reason::NoBackend);
        assert_eq!(outcome.frame, reset(&syn, RST | ACK, 0, 2).build());
        assert_eq!(host.open_in_tables(1), 0);
    }
}

#[test]
fn both_sides_of_a_connection_whose_backend_is_gone() {
    for net in Net::both() {
        let mut host = Host::single(net);
        let connection = host.connect(net.client);
        host.tables.set_flag(1, FORWARD, false);
        for _ in 0..2 {
            let data = host.up(&connection, ACK).numbers(10, 20).payload(b"data");
            let outcome = host.assert_refused(&data, Reason::BackendGone);
            assert_eq!(outcome.frame, reset(&data, RST, 20, 0).build());
            let answer = host.down(&connection, ACK).numbers(20, 14).payload(b"late");
            let outcome = host.assert_refused(&answer, Reason::BackendGone);
            assert_eq!(outcome.frame, reset(&answer, RST, 14, 0).build());
        }
        host.assert_counts_agree();
        assert_eq!(host.open_in_tables(1), 0);
    }
}

#[test]
fn a_datagram_whose_backend_is_gone_gets_another() {
    for net in Net::both() {
        let mut host = Host::balanced(net, Balance::Maglev);
        host.tables.set_table(net.vip, 17, &[1]);
        host.forwarded(&Frame::udp(net.client, net.vip, b"1"));
        let reply = Frame::udp(net.backends[0], net.nat(net.client.port()), b"2");
        let reply = net.sent_by_backend(reply, 1);
        host.forwarded(&reply);
        host.tables.set_flag(1, FORWARD, false);
        let outcome = host.assert_refused(&reply, Reason::BackendGone);
        assert_eq!(outcome.xdp, Xdp::Drop);
        host.tables.set_table(net.vip, 17, &[2]);
        let out = host.forwarded(&Frame::udp(net.client, net.vip, b"3"));
        assert_eq!(host.backend_of(&out), 2);
        host.assert_counts_agree();
    }
}
