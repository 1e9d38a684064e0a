//! One frame of each kind that the data path tells apart.

use std::{vec, vec::Vec};

use super::{
    frame::{Error, Frame, VLAN, VLAN_OUTER},
    setup::Net,
};
use crate::packet::tcp_flags::{ACK, FIN, RST, SYN};

/// Frames of both directions of one connection, between `net.client` and the first backend, by TCP and
/// by UDP, and of much that is no part of it. The connection has the client's own port at the backend.
#[must_use]
pub fn fixtures(net: &Net) -> Vec<(&'static str, Vec<u8>)> {
    let mut fixtures: Vec<_> =
        from_client(net).into_iter().map(|(name, frame)| (name, frame.build())).collect();
    fixtures.extend(
        from_backend(net)
            .into_iter()
            .map(|(name, frame)| (name, net.sent_by_backend(frame, 1).build())),
    );
    let mut arp = Frame::udp(net.client, net.vip, &[0; 20]).build();
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    fixtures.push(("not IP", arp));
    let mut other_version = Frame::syn(net.client, net.vip).build();
    other_version[14] ^= 0x20;
    fixtures.push(("another IP version than the frame says", other_version));
    fixtures
}

fn from_client(net: &Net) -> Vec<(&'static str, Frame)> {
    let (client, vip) = (net.client, net.vip);
    let data = Frame::tcp(client, vip, ACK).payload(b"GET / HTTP/1.1\r\n");
    let returned = Frame::tcp(vip, client, ACK).payload(b"HTTP/1.1 200 OK\r\n");
    let mut frames = vec![
        ("SYN", Frame::syn(client, vip)),
        ("SYN with data", Frame::syn(client, vip).payload(b"early")),
        ("ACK", Frame::tcp(client, vip, ACK)),
        ("data", data.clone()),
        ("data of an odd length", data.clone().payload(b"odd")),
        ("data with options", data.clone().tcp_options(&[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2])),
        ("FIN", Frame::tcp(client, vip, FIN | ACK)),
        ("RST", Frame::tcp(client, vip, RST)),
        ("no control bits", Frame::tcp(client, vip, 0)),
        ("all control bits", Frame::tcp(client, vip, FIN | SYN | RST | ACK)),
        ("last hop", data.clone().ttl(1)),
        ("tagged", data.clone().vlan(VLAN, 7)),
        ("tagged twice", data.clone().vlan(VLAN_OUTER, 7).vlan(VLAN, 8)),
        ("tagged twice, both inner tags", Frame::syn(client, vip).vlan(VLAN, 7).vlan(VLAN, 8)),
        ("first fragment", data.clone().fragment(0, true)),
        ("last fragment", data.clone().fragment(8, false)),
        ("padded", Frame::tcp(client, vip, ACK).trailer(&[0; 6])),
        ("datagram", Frame::udp(client, vip, b"question")),
        ("empty datagram", Frame::udp(client, vip, b"")),
        ("tagged datagram", Frame::udp(client, vip, b"question").vlan(VLAN, 7)),
        ("port unreachable", Frame::icmp_error(client.ip(), Error::PortUnreachable, &returned, 28)),
        ("packet too big", Frame::icmp_error(client.ip(), Error::TooBig(1280), &returned, 500)),
        ("ping", Frame::echo(client.ip(), vip.ip())),
        ("SCTP", Frame::other(client.ip(), vip.ip(), 132, &[0x9c, 0x40, 0, 80, 0, 0, 0, 0])),
        ("no service there", Frame::syn(client, net.nat(81))),
        ("not ours", Frame::syn(client, net.backends[0])),
    ];
    if net.client.is_ipv4() {
        let udp = Frame::udp(client, vip, b"question").without_checksum();
        frames.push(("datagram without checksum", udp));
        frames.push(("IP options", data.clone().ip_options(&[1, 1, 1, 0])));
        frames.push(("all IP options", Frame::syn(client, vip).ip_options(&[1; 40])));
    }
    frames
}

fn from_backend(net: &Net) -> Vec<(&'static str, Frame)> {
    let (backend, nat) = (net.backends[0], net.nat(net.client.port()));
    let sent = Frame::tcp(nat, backend, ACK).payload(b"GET / HTTP/1.1\r\n").ttl(63);
    let sent_udp = Frame::udp(nat, backend, b"question").ttl(63);
    let whole = 1000;
    vec![
        ("SYN-ACK", Frame::syn_ack(backend, nat)),
        ("refusal", Frame::tcp(backend, nat, RST | ACK)),
        ("answer", Frame::tcp(backend, nat, ACK).payload(b"HTTP/1.1 200 OK\r\n")),
        ("answer and FIN", Frame::tcp(backend, nat, FIN | ACK).payload(b"bye")),
        ("reply", Frame::udp(backend, nat, b"answer")),
        ("from nobody we know", Frame::tcp(net.backends[2], nat, ACK)),
        ("unreachable", Frame::icmp_error(backend.ip(), Error::PortUnreachable, &sent_udp, whole)),
        ("too big", Frame::icmp_error(net.backends[1].ip(), Error::TooBig(1400), &sent, whole)),
        ("expired", Frame::icmp_error(net.backends[1].ip(), Error::TimeExceeded, &sent, 48)),
        ("problem", Frame::icmp_error(backend.ip(), Error::ParameterProblem(6), &sent, whole)),
    ]
}
