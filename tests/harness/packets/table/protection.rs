//! Rows of who may not begin a connection, of what is not believed, and of what is no honest packet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_common::{
    reason::Reason,
    service::{FORWARDABLE, LISTENED, PROXIED},
};
use lb_ebpf::{
    fake::{Error, Frame, setup::OUR_MAC},
    family::protocol,
    packet::tcp_flags::{ACK, FIN, RST, SYN},
};

use super::{Case, Steps as _, Talk};

/// Lists, rates, and sources that no packet may have.
pub(super) fn sources(talk: &Talk) -> Vec<Case> {
    let net = &talk.net;
    let (host, whole) = if net.vip.is_ipv4() { (32, 24) } else { (128, 64) };
    let client = net.client.ip();
    let other = net.other_client(7, 40_000);
    let syn_of = |src: SocketAddr| Frame::syn(src, net.vip);
    let seen = |frame: &Frame| net.at_backend(frame, 1, frame.src.port());
    let filtered = |name: &str, prefixes: &[(IpAddr, u32, bool)]| {
        Case::new(name, net.single().filtered(prefixes))
    };
    let limited = |name: &str, burst| Case::new(name, net.single().limited(1, burst));
    let again = |port| SocketAddr::new(client, port);
    let spoofed: &[IpAddr] = if net.vip.is_ipv4() {
        &[
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V4(Ipv4Addr::new(0, 1, 2, 3)),
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V4(Ipv4Addr::new(224, 0, 0, 1)),
            IpAddr::V4(Ipv4Addr::new(240, 0, 0, 1)),
            IpAddr::V4(Ipv4Addr::BROADCAST),
        ]
    } else {
        &[
            IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            IpAddr::V6(Ipv6Addr::LOCALHOST),
            IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)),
            IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0xc000, 0x0209)),
        ]
    };
    let land = net.vip;
    let next_door = net.nat(40_000);
    vec![
        filtered("lists: one that is denied", &[(client, host, false)])
            .drops(&talk.syn(), Reason::Denied)
            .drops(&talk.question(), Reason::Denied)
            .forwards(&syn_of(other), &seen(&syn_of(other)), 1),
        filtered("lists: only who is allowed", &[(client, whole, true)])
            .then(talk, &[talk.syn()])
            .drops(&syn_of(other), Reason::Denied),
        filtered(
            "lists: denied inside what is allowed",
            &[(client, whole, true), (client, host, false)],
        )
        .drops(&talk.syn(), Reason::Denied),
        filtered(
            "lists: allowed inside what is denied",
            &[(client, whole, false), (client, host, true)],
        )
        .then(talk, &[talk.syn(), talk.question()])
        .drops(&syn_of(other), Reason::Denied),
        filtered("lists: a packet of no connection is denied nothing", &[(client, host, false)])
            .resets(
                &talk.up(ACK),
                &Talk::reset(&talk.up(ACK), RST, 0x0102_0708, 0),
                Reason::NoFlow,
            ),
        limited("rate: a burst, and no more", 2)
            .forwards(&syn_of(again(2001)), &seen(&syn_of(again(2001))), 1)
            .forwards(&syn_of(again(2002)), &seen(&syn_of(again(2002))), 1)
            .drops(&syn_of(again(2003)), Reason::RateLimited)
            .reported()
            .forwards(&syn_of(other), &seen(&syn_of(other)), 1),
        limited("rate: what is open goes on, and its SYN may come again", 1)
            .then(talk, &[talk.syn(), talk.syn()])
            .also(talk, &[talk.syn_ack()])
            .then(talk, &[talk.up(ACK).payload(b"data")])
            .also(talk, &[talk.down(ACK).payload(b"answer")]),
        limited("rate: flows of UDP count", 1)
            .then(talk, &[talk.question(), talk.question()])
            .drops(&Frame::udp(again(2001), net.vip, b"x"), Reason::RateLimited)
            .reported(),
        spoofed.iter().fold(talk.single("spoofed: no host sends from there"), |case, src| {
            let src = SocketAddr::new(*src, 40_000);
            case.drops(&Frame::syn(src, net.vip), Reason::Spoofed)
                .drops(&Frame::udp(src, net.vip, b"x"), Reason::Spoofed)
        }),
        talk.single("spoofed: land")
            .drops(&Frame::syn(land, net.vip), Reason::Spoofed)
            .drops(&Frame::syn(next_door, net.vip), Reason::Spoofed)
            .drops(&Frame::udp(land, net.vip, b"x"), Reason::Spoofed),
    ]
}

/// Services whose connections the proxy has, and what of the rest stays as it is.
pub(super) fn proxied(talk: &Talk) -> Vec<Case> {
    let net = &talk.net;
    let host = if net.vip.is_ipv4() { 32 } else { 128 };
    let client = net.client.ip();
    let proxied = |name: &str| Case::new(name, net.single().flagged(LISTENED | PROXIED));
    let was_proxied = |name: &str| Case::new(name, net.single().flagged(LISTENED));
    let filtered = net.single().flagged(LISTENED | PROXIED).filtered(&[(client, host, false)]);
    let limited = net.single().flagged(LISTENED | PROXIED).limited(1, 1);
    let orphaned = net.single().flagged(LISTENED | PROXIED | FORWARDABLE);
    let again = |port| Frame::syn(SocketAddr::new(client, port), net.vip);
    vec![
        proxied("proxied: first and later packets are the node's")
            .passes(&talk.syn(), Reason::Proxied)
            .passes(&talk.up(ACK).payload(b"data"), Reason::Proxied)
            .passes(&talk.up(FIN | ACK), Reason::Proxied)
            .passes(&talk.up(RST), Reason::Proxied),
        was_proxied("proxied before: new connections are forwarded, old ones are the node's")
            .passes(&talk.up(ACK), Reason::Proxied)
            .then(talk, &[talk.syn()])
            .also(talk, &[talk.syn_ack()])
            .then(talk, &[talk.up(ACK).payload(b"data")]),
        Case::new("proxied, and nobody listens: new connections are forwarded", orphaned)
            .passes(&talk.up(ACK), Reason::Proxied)
            .then(talk, &[talk.syn()])
            .also(talk, &[talk.syn_ack()])
            .then(talk, &[talk.up(ACK).payload(b"data")]),
        Case::new("proxied: who is denied is denied", filtered).drops(&talk.syn(), Reason::Denied),
        Case::new("proxied: who is limited is limited", limited)
            .passes(&again(2001), Reason::Proxied)
            .drops(&again(2002), Reason::RateLimited)
            .reported(),
    ]
}

/// Services whose new connections wait. Those that are open go on, and who may not come in does not.
pub(super) fn parked(talk: &Talk) -> Vec<Case> {
    let net = &talk.net;
    let host = if net.vip.is_ipv4() { 32 } else { 128 };
    let parked = net.single().parked(u32::MAX);
    let filtered = parked.clone().filtered(&[(net.client.ip(), host, false)]);
    vec![
        Case::new("parked: a SYN is dropped, and the next too", parked)
            .drops(&talk.syn(), Reason::Parked)
            .drops(&talk.syn(), Reason::Parked)
            .resets(
                &talk.up(ACK),
                &Talk::reset(&talk.up(ACK), RST, 0x0102_0708, 0),
                Reason::NoFlow,
            ),
        Case::new("parked: who is denied is denied", filtered).drops(&talk.syn(), Reason::Denied),
        Case::new("parked: not for ever", net.single().parked(1)).then(talk, &[talk.syn()]),
    ]
}

/// What ends a connection, or changes its course, must know where the connection is.
pub(super) fn windows(talk: &Talk) -> Vec<Case> {
    let net = &talk.net;
    // The client's next byte is 1000, the backend's 5000.
    let established = |name: &str| {
        talk.single(name)
            .then(talk, &[talk.syn().numbers(999, 0)])
            .also(talk, &[talk.syn_ack().numbers(4999, 1000)])
            .then(talk, &[talk.up(ACK).numbers(1000, 5000)])
    };
    let up = |seq: u32| talk.up(RST).numbers(seq, 0);
    let down = |seq: u32| talk.down(RST | ACK).numbers(seq, 1000);
    let data = talk.up(ACK).numbers(1000, 5000).payload(b"data");
    let answer = talk.down(ACK).numbers(5000, 1000).payload(b"answer");
    let far = 1000 + (1 << 24);
    let about = |seq: u32| {
        let sent = Frame::tcp(net.nat(net.client.port()), net.backends[0], ACK);
        let sent = sent.numbers(seq, 5000).payload(&[7; 100]).ttl(60);
        Frame::icmp_error(net.backends[0].ip(), Error::TooBig(1400), &sent, 1000)
            .link([4; 6], OUR_MAC)
    };
    vec![
        established("window: an RST of the client, exact").then(talk, &[up(1000)]),
        established("window: an RST of the client, ahead of its acknowledgement")
            .then(talk, &[up(far - 1)]),
        established("window: an RST of the client, just behind")
            .then(talk, &[up(1000_u32.wrapping_sub(1 << 16))]),
        established("window: an RST of the client, too far ahead, and the connection goes on")
            .drops(&up(far), Reason::OutOfWindow)
            .drops(&up(1000 + (1 << 31)), Reason::OutOfWindow)
            .then(talk, std::slice::from_ref(&data))
            .also(talk, std::slice::from_ref(&answer)),
        established("window: an RST of the client, too far behind")
            .drops(&up(999_u32.wrapping_sub(1 << 16)), Reason::OutOfWindow)
            .then(talk, std::slice::from_ref(&data)),
        established("window: an RST of the backend, exact").also(talk, &[down(5000)]),
        established("window: an RST of the backend, too far ahead")
            .drops(&down(5000 + (1 << 24)), Reason::OutOfWindow)
            .then(talk, &[data]),
        talk.single("window: while nothing is acknowledged, an RST is believed")
            .then(talk, &[talk.syn().numbers(999, 0)])
            .also(talk, &[talk.syn_ack().numbers(4999, 1000), down(123_456_789)]),
        established("window: a FIN from nowhere is left to its receiver")
            .then(talk, &[talk.up(FIN | ACK).numbers(far, 5000)])
            .also(talk, &[answer]),
        established("window: an ICMP error about a segment that was never sent")
            .drops(&about(far), Reason::OutOfWindow)
            .drops(&about(1000 + (1 << 31)), Reason::OutOfWindow),
    ]
}

/// What no honest host sends.
pub(super) fn oddities(talk: &Talk) -> Vec<Case> {
    let v4 = talk.net.vip.is_ipv4();
    let (l3, l4) = if v4 { (14, 34) } else { (14, 54) };
    let changed = |frame: &Frame, at: usize, bytes: &[u8]| {
        let mut frame = frame.build();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    let both = Frame::tcp(talk.net.client, talk.net.vip, SYN | FIN);
    let null = talk.up(0);
    let xmas = talk.up(FIN | 0x28);
    let length_at = l3 + if v4 { 2 } else { 4 };
    vec![
        talk.single("flags: SYN and FIN begin nothing").resets(
            &both,
            &Talk::reset(&both, RST | ACK, 0, 0x0102_0306),
            Reason::NoFlow,
        ),
        talk.single("flags: SYN and RST begin nothing").drops(&talk.up(SYN | RST), Reason::NoFlow),
        talk.single("flags: none").resets(
            &null,
            &Talk::reset(&null, RST | ACK, 0, 0x0102_0304),
            Reason::NoFlow,
        ),
        talk.single("flags: a Christmas tree").resets(
            &xmas,
            &Talk::reset(&xmas, RST | ACK, 0, 0x0102_0305),
            Reason::NoFlow,
        ),
        talk.open("flags: none, in a connection, is left to its receiver")
            .then(talk, &[null, talk.up(ACK)]),
        talk.open("flags: a SYN in a connection is left to its receiver")
            .then(talk, &[talk.syn(), talk.up(ACK)])
            .also(talk, &[talk.down(ACK)]),
        talk.single("a UDP length longer than the packet")
            .passes_bytes(changed(&talk.question(), l4 + 4, &[0, 17]), Reason::Malformed),
        talk.single("a UDP length shorter than the packet is left to the receiver")
            .forwards_wrong(changed(&talk.question(), l4 + 4, &[0, 12]), 1),
        talk.open("a length shorter than the frame is padding")
            .then(talk, &[talk.up(ACK).payload(b"data").trailer(&[9; 18])]),
        talk.open("the hot path leaves the length to the receiver")
            .forwards_wrong(changed(&talk.up(ACK), length_at, &[0x10, 0]), 1),
        talk.open("a wrong TCP checksum stays wrong")
            .forwards_wrong(changed(&talk.up(ACK), l4 + 16, &[0x12, 0x34]), 1),
    ]
}

/// What IPv6 does not have.
pub(super) fn ipv4_only(talk: &Talk) -> Vec<Case> {
    let mut wrong = talk.up(ACK).build();
    wrong[24] ^= 0x55;
    let denied = talk.net.single().filtered(&[(talk.net.client.ip(), 32, false)]);
    vec![
        talk.open("IPv4: a wrong header checksum stays wrong").forwards_wrong(wrong, 1),
        talk.single("IPv4: a first fragment begins nothing")
            .passes(&talk.syn().fragment(0, true), Reason::Fragment),
        Case::new("IPv4: options hide no source that is denied", denied)
            .drops(&talk.syn().ip_options(&[1; 8]), Reason::Denied),
    ]
}

/// What IPv4 does not have.
pub(super) fn ipv6_only(talk: &Talk) -> Vec<Case> {
    let net = &talk.net;
    let behind = |header: u8| {
        // An extension header of 8 bytes, and TCP behind it.
        let mut payload = vec![protocol::TCP, 0, 1, 4, 0, 0, 0, 0];
        payload.extend_from_slice(&talk.syn().build()[54..]);
        Frame::other(net.client.ip(), net.vip.ip(), header, &payload)
    };
    vec![
        talk.single("IPv6: extension headers are left to the node")
            .passes(&behind(0), Reason::OtherProtocol)
            .passes(&behind(43), Reason::OtherProtocol)
            .passes(&behind(60), Reason::OtherProtocol),
    ]
}
