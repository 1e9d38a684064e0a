//! ICMP errors about translated packets, both ways: byte by byte what the receiver would have got
//! without us, and nothing else touched.

use lb_common::{backend::FORWARD, backend::RESOLVED, reason::Reason};
use lb_ebpf::{
    fake::{Error, Frame, Net, frame::VLAN, setup::CLIENT_MAC, setup::OUR_MAC, setup::backend},
    packet::tcp_flags::ACK,
};

use crate::driver::Host;

const ERRORS: [Error; 4] =
    [Error::PortUnreachable, Error::TooBig(1280), Error::TimeExceeded, Error::ParameterProblem(9)];

/// Bytes of the quoted packet that an error may carry: what RFC 792 demands, a little more, up to the
/// checksum of TCP and with it, all. (Nobody can use half of a checksum; it is left as it is.)
fn quoted_lengths(about: &Frame) -> Vec<usize> {
    let ip = if about.src.is_ipv4() { 20 + about.ip_options.len() } else { 40 };
    vec![ip + 8, ip + 9, ip + 16, ip + 18, ip + 19, ip + 20, 1000]
}

/// Packets between a client and a backend: as the client sends or gets them, and as the backend does.
/// The time to live of each is the same on both sides, as a quoted one's is not changed.
struct Pair {
    at_client: Frame,
    at_backend: Frame,
}

/// A packet that the balancer sent to the backend, of each kind.
fn forward_packets(net: &Net) -> Vec<Pair> {
    let nat = net.nat(net.client.port());
    let mut kinds = vec![
        Frame::tcp(net.client, net.vip, ACK).payload(b"GET / HTTP/1.1\r\n"),
        Frame::udp(net.client, net.vip, b"question"),
    ];
    if net.vip.is_ipv4() {
        kinds.push(Frame::udp(net.client, net.vip, b"question").without_checksum());
        kinds.push(Frame::tcp(net.client, net.vip, ACK).payload(b"GET").ip_options(&[1; 8]));
    }
    kinds
        .into_iter()
        .map(|frame| Pair {
            at_backend: frame.clone().ttl(50).between(nat, net.backends[0]),
            at_client: frame.ttl(50),
        })
        .collect()
}

/// A packet that the balancer sent to the client, of each kind.
fn return_packets(net: &Net) -> Vec<Pair> {
    let nat = net.nat(net.client.port());
    let mut pairs = forward_packets(net);
    for pair in &mut pairs {
        pair.at_client = pair.at_client.clone().between(net.vip, net.client);
        pair.at_backend = pair.at_backend.clone().between(net.backends[0], nat);
    }
    pairs
}

/// A balancer with a TCP connection and a UDP flow of `net.client`; answered or not.
fn host(net: Net, answered: bool) -> Host {
    let host = Host::single(net);
    let connection = host.begin(net.client);
    host.forwarded(&Frame::udp(net.client, net.vip, b"first"));
    if answered {
        host.forwarded(&host.answer(&connection));
        let reply = Frame::udp(net.backends[0], net.nat(net.client.port()), b"reply");
        host.forwarded(&net.sent_by_backend(reply, 1));
    }
    host
}

#[test]
fn from_the_backends_side_to_the_client() {
    for net in Net::both() {
        for answered in [false, true] {
            let host = host(net, answered);
            // From the backend itself, and from a router on the way.
            for sender in [net.backends[0].ip(), net.other_client(7, 0).ip()] {
                for error in ERRORS {
                    for Pair { at_client, at_backend } in forward_packets(&net) {
                        for len in quoted_lengths(&at_client) {
                            let frame = Frame::icmp_error(sender, error, &at_backend, len);
                            let frame = frame.link([9; 6], OUR_MAC);
                            let seen = Frame::icmp_error(net.vip.ip(), error, &at_client, len)
                                .link(OUR_MAC, CLIENT_MAC)
                                .ttl(63);
                            assert_eq!(host.forwarded(&frame), seen.build(), "{error:?} {len}");
                        }
                    }
                }
            }
            assert!(host.tables.backend_stats(1).return_packets > 0);
        }
    }
}

#[test]
fn from_the_clients_side_to_the_backend() {
    for net in Net::both() {
        for answered in [false, true] {
            let host = host(net, answered);
            for sender in [net.client.ip(), net.other_client(7, 0).ip()] {
                for error in ERRORS {
                    for Pair { at_client, at_backend } in return_packets(&net) {
                        for len in quoted_lengths(&at_client) {
                            let frame = Frame::icmp_error(sender, error, &at_client, len);
                            let seen = Frame::icmp_error(net.vip.ip(), error, &at_backend, len)
                                .between((net.vip.ip(), 0).into(), net.backends[0])
                                .link(OUR_MAC, backend(net.backends[0]).next_hop)
                                .ttl(63);
                            assert_eq!(host.forwarded(&frame), seen.build(), "{error:?} {len}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn in_a_vlan_and_with_ip_options() {
    for net in Net::both() {
        let host = host(net, true);
        for Pair { at_client, at_backend } in forward_packets(&net) {
            let mut dresses: Vec<fn(Frame) -> Frame> = vec![|frame| frame.vlan(VLAN, 7)];
            if net.vip.is_ipv4() {
                dresses.push(|frame| frame.ip_options(&[1; 12]));
                dresses.push(|frame| frame.ip_options(&[1; 40]).vlan(VLAN, 7));
            }
            for dress in dresses {
                let sender = net.backends[0].ip();
                let frame =
                    dress(Frame::icmp_error(sender, Error::TooBig(1400), &at_backend, 1000));
                let seen = Frame::icmp_error(net.vip.ip(), Error::TooBig(1400), &at_client, 1000);
                let seen = dress(seen).link(OUR_MAC, CLIENT_MAC).ttl(63);
                assert_eq!(host.forwarded(&frame.link([9; 6], OUR_MAC)), seen.build());
            }
        }
    }
}

#[test]
fn bytes_after_the_packet_are_no_part_of_the_quote() {
    // A quote that ends before the checksum of TCP, with a trailer where that would be.
    for net in Net::both() {
        let host = host(net, true);
        let pair = &forward_packets(&net)[0];
        let ip = if net.vip.is_ipv4() { 20 } else { 40 };
        for len in [ip + 8, ip + 16] {
            let error = Error::TimeExceeded;
            let trailer = [0xaa; 30];
            let frame = Frame::icmp_error(net.backends[0].ip(), error, &pair.at_backend, len);
            let seen = Frame::icmp_error(net.vip.ip(), error, &pair.at_client, len)
                .link(OUR_MAC, CLIENT_MAC)
                .ttl(63);
            assert_eq!(host.forwarded(&frame.trailer(&trailer)), seen.trailer(&trailer).build());
        }
        // One that ends before the ports is malformed, whatever the trailer holds.
        let quoted = pair.at_backend.ip_packet();
        for len in [ip, ip + 4, ip + 7] {
            let frame =
                Frame::icmp_error(net.backends[0].ip(), Error::TimeExceeded, &pair.at_backend, len);
            host.assert_refused(&frame.trailer(&quoted[len..]), Reason::Malformed);
        }
    }
}

#[test]
fn what_is_not_about_our_flows_passes() {
    for net in Net::both() {
        let host = host(net, true);
        let sender = net.backends[0].ip();
        let about = |frame: Frame| Frame::icmp_error(sender, Error::TimeExceeded, &frame, 1000);
        let nat = net.nat(net.client.port());

        let unknown = Frame::tcp(net.nat(1), net.backends[0], ACK);
        host.assert_refused(&about(unknown), Reason::IcmpUnrelated);
        let other = Frame::other(net.vip.ip(), sender, 132, &[0; 20]);
        host.assert_refused(&about(other), Reason::IcmpUnrelated);
        // A quoted packet that somebody else sent: nobody may speak about it to us.
        let forged = Frame::tcp(nat, net.backends[0], ACK);
        let forged = Frame::icmp_error(sender, Error::TimeExceeded, &forged, 1000)
            .between((sender, 0).into(), net.vip);
        host.forwarded(&forged);
        let foreign = Frame::tcp(net.client, net.backends[0], ACK);
        let foreign = Frame::icmp_error(sender, Error::TimeExceeded, &foreign, 1000)
            .between((sender, 0).into(), net.vip);
        host.assert_refused(&foreign, Reason::IcmpUnrelated);

        host.assert_refused(&Frame::echo(net.client.ip(), net.vip.ip()), Reason::OtherProtocol);
        let not_ours = Frame::tcp(net.backends[1], net.backends[0], ACK);
        host.assert_refused(&about(not_ours), Reason::NotOurs);
    }
}

#[test]
fn the_same_conditions_hold_as_for_packets() {
    for net in Net::both() {
        let mut host = host(net, true);
        let to_client = Frame::icmp_error(
            net.backends[0].ip(),
            Error::TimeExceeded,
            &forward_packets(&net)[0].at_backend,
            1000,
        );
        let to_backend = Frame::icmp_error(
            net.client.ip(),
            Error::TimeExceeded,
            &return_packets(&net)[0].at_client,
            1000,
        );
        for last_hop in [to_client.clone().ttl(1), to_backend.clone().ttl(1)] {
            host.assert_refused(&last_hop, Reason::TtlExpired);
        }
        host.tables.set_flag(1, RESOLVED, false);
        host.forwarded(&to_client);
        host.assert_refused(&to_backend, Reason::NoNeighbour);
        host.tables.set_flag(1, FORWARD, false);
        host.assert_refused(&to_client, Reason::IcmpUnrelated);
        host.assert_refused(&to_backend, Reason::IcmpUnrelated);
    }
}
