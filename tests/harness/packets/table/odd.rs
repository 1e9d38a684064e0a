//! Rows of what is not ours, not whole, or rare.

use std::slice;

use lb_common::reason::Reason;
use lb_ebpf::{
    fake::{
        Error, Frame,
        frame::VLAN,
        setup::{CLIENT_MAC, OUR_MAC},
    },
    packet::tcp_flags::{ACK, FIN, RST, SYN},
};

use super::{Case, Steps as _, Talk};

/// What the data path leaves to the node.
pub(super) fn others(talk: &Talk) -> Vec<Case> {
    let net = &talk.net;
    let mut arp = talk.question().build();
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    let sctp = Frame::other(net.client.ip(), net.vip.ip(), 132, &[0; 40]);
    vec![
        talk.single("not ours")
            .passes(&Frame::syn(net.client, net.backends[0]), Reason::NotOurs)
            .passes(&Frame::tcp(net.client, net.backends[0], ACK), Reason::NotOurs)
            .passes(&Frame::udp(net.client, net.backends[0], b"x").vlan(VLAN, 5), Reason::NotOurs),
        talk.single("ours, but no service there")
            .passes(&Frame::syn(net.client, net.nat(22)), Reason::NoService)
            .passes(&Frame::tcp(net.client, net.nat(22), ACK), Reason::NoService)
            .passes(&Frame::udp(net.client, net.nat(53), b"x"), Reason::NoService),
        talk.single("another protocol").passes(&sctp, Reason::OtherProtocol),
        talk.open("fragments")
            .passes(&talk.up(ACK).payload(&[1; 64]).fragment(0, true), Reason::Fragment)
            .passes(&talk.up(ACK).payload(&[1; 64]).fragment(8, true), Reason::Fragment)
            .passes(&talk.up(ACK).payload(&[1; 64]).fragment(8, false), Reason::Fragment)
            .passes(&talk.down(ACK).payload(&[1; 64]).fragment(0, true), Reason::Fragment),
        talk.single("not IP").passes_bytes(arp, Reason::NotIp),
        talk.open("an answer from another than the backend").passes(
            &Frame::tcp(net.backends[1], net.nat(net.client.port()), ACK),
            Reason::NoService,
        ),
    ]
}

/// What is cut off, or contradicts itself.
pub(super) fn wrong(talk: &Talk) -> Vec<Case> {
    let v4 = talk.net.vip.is_ipv4();
    let (l3, l4) = if v4 { (14, 34) } else { (14, 54) };
    let changed = |frame: Frame, at: usize, bytes: &[u8]| {
        let mut frame = frame.build();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    let cut = |frame: Frame, len: usize| {
        let mut frame = frame.build();
        frame.truncate(len);
        frame
    };
    let length_at = l3 + if v4 { 2 } else { 4 };
    vec![
        talk.single("cut off in the IP header")
            .passes_bytes(cut(talk.syn(), l4 - 1), Reason::Truncated)
            .passes_bytes(cut(talk.syn(), 14), Reason::Truncated),
        talk.single("cut off in a tag")
            .passes_bytes(cut(talk.syn().vlan(VLAN, 1), 17), Reason::Truncated),
        talk.open("cut off in the TCP header")
            .passes_bytes(cut(talk.up(ACK), l4 + 19), Reason::Truncated)
            .passes_bytes(cut(talk.syn(), l4 + 4), Reason::Truncated),
        talk.single("cut off in the TCP options")
            .passes_bytes(cut(talk.syn(), l4 + 30), Reason::Malformed),
        talk.open_udp("cut off in the UDP header")
            .passes_bytes(cut(talk.question(), l4 + 7), Reason::Truncated),
        talk.single("another IP version than the frame says")
            .passes_bytes(changed(talk.syn(), l3, &[0x55]), Reason::Malformed),
        talk.single("a TCP header shorter than itself")
            .passes_bytes(changed(talk.syn(), l4 + 12, &[0x40]), Reason::Malformed),
        talk.single("a TCP header longer than the packet")
            .passes_bytes(changed(talk.up(SYN), l4 + 12, &[0xf0]), Reason::Malformed),
        talk.single("a UDP length shorter than its header")
            .passes_bytes(changed(talk.question(), l4 + 4, &[0, 7]), Reason::Malformed),
        talk.single("an IP length longer than the frame")
            .passes_bytes(changed(talk.syn(), length_at, &[0x10, 0]), Reason::Malformed),
        talk.single("an IP length shorter than its header")
            .passes_bytes(changed(talk.syn(), length_at, &[0, 0]), Reason::Malformed),
    ]
}

/// What IPv6 does not have.
pub(super) fn ipv4_only(talk: &Talk) -> Vec<Case> {
    let net = &talk.net;
    let options = [7, 7, 4, 0, 0, 0, 0, 0];
    let bare = talk.question().without_checksum();
    let bare_reply = talk.reply().without_checksum();
    let data = talk.up(ACK).numbers(1, 2).payload(b"data").ip_options(&options);
    let mut short = talk.syn().build();
    short[14] = 0x44;
    let about = Frame::udp(net.nat(net.client.port()), net.backends[0], b"question").ttl(60);
    let about = about.without_checksum();
    let error = Frame::icmp_error(net.backends[0].ip(), Error::PortUnreachable, &about, 1000);
    let seen = about.clone().between(net.client, net.vip);
    let seen = Frame::icmp_error(net.vip.ip(), Error::PortUnreachable, &seen, 1000);
    vec![
        Case { name: "IPv4: UDP without a checksum keeps none".into(), ..talk.single("") }
            .then(talk, slice::from_ref(&bare))
            .also(talk, slice::from_ref(&bare_reply))
            .then(talk, &[bare])
            .also(talk, &[bare_reply]),
        talk.single("IPv4: options stay, on the way in")
            .then(talk, &[talk.syn().ip_options(&options)])
            .also(talk, &[talk.syn_ack().ip_options(&[1; 40])])
            .then(talk, &[data.clone(), talk.up(FIN | ACK).ip_options(&[1; 4])]),
        talk.single("IPv4: options are not repeated in a reset").resets(
            &data,
            &Talk::reset(&data, RST, 2, 0),
            Reason::NoFlow,
        ),
        talk.single("IPv4: a header shorter than itself").passes_bytes(short, Reason::Malformed),
        talk.open_udp("IPv4: an error that quotes UDP without a checksum").returns(
            &error.link([4; 6], OUR_MAC),
            &seen.link(OUR_MAC, CLIENT_MAC).ttl(63),
            1,
        ),
    ]
}
