//! Rows of ICMP.

use lb_common::reason::Reason;
use lb_ebpf::{
    fake::{
        Error, Frame,
        setup::{CLIENT_MAC, OUR_MAC, backend},
    },
    packet::tcp_flags::ACK,
};

use super::{Case, Steps as _, Talk};

/// Errors about translated packets, and what is none.
pub(super) fn rows(talk: &Talk) -> Vec<Case> {
    let net = &talk.net;
    let router = net.other_client(7, 0).ip();
    let nat = net.nat(net.client.port());
    // What we sent to the backend, and what the client had sent; as routers on either side saw them.
    let to_backend = Frame::tcp(nat, net.backends[0], ACK).payload(&[1; 64]).ttl(60);
    let from_client = to_backend.clone().between(net.client, net.vip);
    let to_client = to_backend.clone().between(net.vip, net.client);
    let from_backend = to_backend.clone().between(net.backends[0], nat);
    let udp_to_backend = Frame::udp(nat, net.backends[0], b"question").ttl(60);
    let udp_from_client = udp_to_backend.clone().between(net.client, net.vip);
    let whole = 1000;
    let least = if net.vip.is_ipv4() { 28 } else { 48 };
    let back = |error, about: &Frame, seen: &Frame, len| {
        let frame = Frame::icmp_error(router, error, about, len).link([4; 6], OUR_MAC);
        let after = Frame::icmp_error(net.vip.ip(), error, seen, len);
        (frame, after.link(OUR_MAC, CLIENT_MAC).ttl(63))
    };
    let forth = |error, len| {
        let frame = Frame::icmp_error(router, error, &to_client, len);
        let after = Frame::icmp_error(net.vip.ip(), error, &from_backend, len)
            .between((net.vip.ip(), 0).into(), net.backends[0])
            .link(OUR_MAC, backend(net.backends[0]).next_hop);
        (frame, after.ttl(63))
    };
    let returns = |case: Case, (frame, after): (Frame, Frame)| case.returns(&frame, &after, 1);
    let forwards = |case: Case, (frame, after): (Frame, Frame)| case.forwards(&frame, &after, 1);
    let too_big = Error::TooBig(1280);
    let unknown =
        Frame::icmp_error(router, too_big, &Frame::tcp(net.nat(9), net.client, ACK), whole);
    let half_open = talk.single("ICMP: about a half-open connection").then(talk, &[talk.syn()]);
    let trailing = {
        let (frame, after) = back(Error::TimeExceeded, &to_backend, &from_client, least);
        (frame.trailer(&[0xaa; 40]), after.trailer(&[0xaa; 40]))
    };
    vec![
        returns(
            talk.open("ICMP: too big, to the client"),
            back(too_big, &to_backend, &from_client, whole),
        ),
        returns(
            talk.open("ICMP: with no more quoted than must be, to the client"),
            back(Error::TimeExceeded, &to_backend, &from_client, least),
        ),
        returns(talk.open("ICMP: bytes after the quote are no part of it"), trailing),
        returns(
            talk.open("ICMP: a parameter problem, to the client"),
            back(Error::ParameterProblem(8), &to_backend, &from_client, whole),
        ),
        forwards(talk.open("ICMP: too big, to the backend"), forth(too_big, whole)),
        forwards(
            talk.open("ICMP: little quoted, to the backend"),
            forth(Error::TimeExceeded, least),
        ),
        returns(half_open, back(Error::PortUnreachable, &to_backend, &from_client, whole)),
        returns(
            talk.open_udp("ICMP: nobody listens on the port"),
            back(Error::PortUnreachable, &udp_to_backend, &udp_from_client, whole),
        ),
        talk.open("ICMP: about nothing that we know").passes(&unknown, Reason::IcmpUnrelated),
        talk.open("ICMP: on its last hop")
            .drops(&forth(too_big, whole).0.ttl(1), Reason::TtlExpired),
        talk.single("ICMP: ping")
            .passes(&Frame::echo(net.client.ip(), net.vip.ip()), Reason::OtherProtocol),
    ]
}
