//! The rows.

use std::slice;

use lb_common::{
    backend::{FORWARD, RESOLVED},
    reason::Reason,
    service::Balance,
};
use lb_ebpf::{
    fake::{
        Frame, Net, Setup,
        frame::{VLAN, VLAN_OUTER},
        setup::{CLIENT_MAC, OUR_MAC, backend},
    },
    family::protocol,
    packet::tcp_flags::{ACK, FIN, RST, SYN},
};

use super::Case;

mod hosts;
mod icmp;
mod odd;
mod protection;
mod replay;
mod steered;

/// All rows.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in Net::both() {
        let talk = Talk::new(net);
        let rows = [tcp(&talk), refusals(&talk), tags(&talk), changes(&talk), balance(&talk)];
        let rows = rows.into_iter().chain([
            udp(&talk),
            icmp::rows(&talk),
            odd::others(&talk),
            odd::wrong(&talk),
            steered::rows(net),
            protection::sources(&talk),
            protection::proxied(&talk),
            protection::parked(&talk),
            hosts::rows(&talk),
            protection::windows(&talk),
            protection::oddities(&talk),
            replay::rows(&talk),
        ]);
        let family = if net.vip.is_ipv4() { "IPv4" } else { "IPv6" };
        cases.extend(
            rows.flatten().map(|case| Case { name: format!("{family}: {}", case.name), ..case }),
        );
    }
    cases.extend(odd::ipv4_only(&Talk::new(Net::v4())));
    cases.extend(protection::ipv4_only(&Talk::new(Net::v4())));
    cases.extend(protection::ipv6_only(&Talk::new(Net::v6())));
    cases
}

/// The frames of one client's conversation with backend 1, which sees the client's own port.
struct Talk {
    net: Net,
}

impl Talk {
    const fn new(net: Net) -> Self {
        Self { net }
    }

    fn up(&self, flags: u8) -> Frame {
        Frame::tcp(self.net.client, self.net.vip, flags)
    }

    fn syn(&self) -> Frame {
        Frame::syn(self.net.client, self.net.vip)
    }

    fn down(&self, flags: u8) -> Frame {
        let net = &self.net;
        net.sent_by_backend(Frame::tcp(net.backends[0], net.nat(net.client.port()), flags), 1)
    }

    fn syn_ack(&self) -> Frame {
        let net = &self.net;
        net.sent_by_backend(Frame::syn_ack(net.backends[0], net.nat(net.client.port())), 1)
    }

    fn question(&self) -> Frame {
        Frame::udp(self.net.client, self.net.vip, b"question")
    }

    fn reply(&self) -> Frame {
        let net = &self.net;
        net.sent_by_backend(Frame::udp(net.backends[0], net.nat(net.client.port()), b"reply"), 1)
    }

    fn single(&self, name: &str) -> Case {
        Case::new(name, self.net.single())
    }

    /// An established connection.
    fn open(&self, name: &str) -> Case {
        self.single(name)
            .then(self, &[self.syn()])
            .also(self, &[self.syn_ack()])
            .then(self, &[self.up(ACK)])
    }

    /// An established flow of UDP.
    fn open_udp(&self, name: &str) -> Case {
        self.single(name).then(self, &[self.question()]).also(self, &[self.reply()])
    }

    /// The answer to a frame that has no place to go.
    fn reset(frame: &Frame, flags: u8, seq: u32, ack: u32) -> Frame {
        let reset = Frame::tcp(frame.dst, frame.src, flags)
            .numbers(seq, ack)
            .window(0)
            .label(0)
            .link(frame.dst_mac, frame.src_mac);
        Frame { vlans: frame.vlans.clone(), ..reset }
    }
}

/// Steps of a conversation, to write rows in one piece.
trait Steps: Sized {
    /// Frames of the client, which go to backend 1.
    fn then(self, talk: &Talk, frames: &[Frame]) -> Self;
    /// Frames of backend 1, which go to the client.
    fn also(self, talk: &Talk, frames: &[Frame]) -> Self;
}

impl Steps for Case {
    fn then(self, talk: &Talk, frames: &[Frame]) -> Self {
        frames.iter().fold(self, |case, frame| {
            let seen = talk.net.at_backend(frame, 1, talk.net.client.port());
            case.forwards(frame, &seen, 1)
        })
    }

    fn also(self, talk: &Talk, frames: &[Frame]) -> Self {
        frames.iter().fold(self, |case, frame| {
            case.returns(frame, &talk.net.at_client(frame, talk.net.client), 1)
        })
    }
}

fn tcp(talk: &Talk) -> Vec<Case> {
    let data = talk.up(ACK | 8).payload(b"GET / HTTP/1.1\r\n\r\n");
    let answer = talk.down(ACK | 8).payload(&[0x5a; 1401]);
    let timestamps = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
    vec![
        talk.single("TCP: a SYN opens").then(talk, &[talk.syn()]),
        talk.single("TCP: a SYN again takes the same way").then(talk, &[talk.syn(), talk.syn()]),
        talk.single("TCP: a SYN with data").then(talk, &[talk.syn().payload(b"early")]),
        talk.open("TCP: the answer finds its way back"),
        talk.open("TCP: data both ways")
            .then(talk, &[talk.up(ACK), data.clone()])
            .also(talk, &[talk.down(ACK), answer.clone(), answer.clone()])
            .then(talk, &[talk.up(ACK)]),
        talk.open("TCP: data with options")
            .then(talk, &[data.clone().tcp_options(&timestamps)])
            .also(talk, &[answer.clone().tcp_options(&timestamps)]),
        talk.open("TCP: every control bit that means no end")
            .then(talk, &[talk.up(0), talk.up(8), talk.up(ACK | 8)])
            .also(talk, &[talk.down(0), talk.down(8), talk.down(ACK | 8)]),
        talk.open("TCP: an orderly end")
            .then(talk, &[talk.up(FIN | ACK)])
            .also(talk, &[talk.down(ACK), talk.down(FIN | ACK)])
            .then(talk, &[talk.up(ACK)]),
        talk.open("TCP: after an orderly end the tuple is used anew")
            .then(talk, &[talk.up(FIN | ACK)])
            .also(talk, &[talk.down(FIN | ACK)])
            .then(talk, &[talk.up(ACK), talk.syn().numbers(99, 0)])
            .also(talk, &[talk.syn_ack()]),
        talk.open("TCP: after a reset by the client too")
            .then(talk, &[talk.up(RST), talk.syn()])
            .also(talk, &[talk.syn_ack()]),
        talk.open("TCP: after a reset by the backend too")
            .also(talk, &[talk.down(RST | ACK)])
            .then(talk, &[talk.syn()])
            .also(talk, &[talk.syn_ack()]),
        talk.open("TCP: both halves hear a late SYN-ACK").also(talk, &[talk.syn_ack()]),
        talk.single("TCP: a refusal is passed on, and forgotten")
            .then(talk, &[talk.syn()])
            .also(talk, &[talk.down(RST | ACK)])
            .passes(&talk.down(RST | ACK), Reason::NoService)
            .then(talk, &[talk.syn()]),
        talk.single("TCP: a challenge is passed on, and is no answer")
            .then(talk, &[talk.syn()])
            .also(talk, &[talk.down(ACK)])
            .then(talk, &[talk.up(RST)])
            .drops(&talk.up(RST), Reason::NoFlow),
        talk.open("TCP: the last hop but one")
            .then(talk, &[data.ttl(2)])
            .also(talk, &[answer.ttl(2)]),
    ]
}

fn refusals(talk: &Talk) -> Vec<Case> {
    let net = &talk.net;
    let syn = talk.syn().numbers(77, 0);
    let empty = Setup::default()
        .vip(net.vip.ip())
        .service(net.vip, protocol::TCP, Balance::RoundRobin, &[])
        .service(net.vip, protocol::UDP, Balance::RoundRobin, &[]);
    let unfit = net.single().change(1, |backend| backend.flags &= !FORWARD);
    let unresolved = net.single().change(1, |backend| backend.flags &= !RESOLVED);
    let data = talk.up(ACK).numbers(10, 2000).payload(b"data");
    let syn_ack = talk.up(SYN | ACK).numbers(10, 2000);
    let silent = talk.up(FIN).numbers(10, 0).payload(b"data");
    vec![
        talk.single("a segment of no connection is reset").resets(
            &data,
            &Talk::reset(&data, RST, 2000, 0),
            Reason::NoFlow,
        ),
        talk.single("a SYN-ACK to a service is reset").resets(
            &syn_ack,
            &Talk::reset(&syn_ack, RST, 2000, 0),
            Reason::NoFlow,
        ),
        talk.single("a segment without ACK is reset by its length").resets(
            &silent,
            &Talk::reset(&silent, RST | ACK, 0, 15),
            Reason::NoFlow,
        ),
        talk.single("a reset is not answered").drops(&talk.up(RST), Reason::NoFlow),
        Case::new("a SYN without a backend is reset", empty.clone()).resets(
            &syn,
            &Talk::reset(&syn, RST | ACK, 0, 78),
            Reason::NoBackend,
        ),
        Case::new("a datagram without a backend is dropped", empty)
            .drops(&talk.question(), Reason::NoBackend),
        Case::new("a SYN to a backend that may not serve is reset", unfit.clone()).resets(
            &syn,
            &Talk::reset(&syn, RST | ACK, 0, 78),
            Reason::NoBackend,
        ),
        Case::new("a SYN to a backend that may not serve, in a VLAN", unfit).resets(
            &syn.clone().vlan(VLAN_OUTER, 3).vlan(VLAN, 4),
            &Talk::reset(&syn.clone().vlan(VLAN_OUTER, 3).vlan(VLAN, 4), RST | ACK, 0, 78),
            Reason::NoBackend,
        ),
        Case::new("a SYN without a next hop is dropped, and reported", unresolved.clone())
            .drops(&syn, Reason::NoNeighbour)
            .reported(),
        Case::new("a datagram without a next hop is dropped, and reported", unresolved)
            .drops(&talk.question(), Reason::NoNeighbour)
            .reported(),
        talk.single("a SYN on its last hop ends, and opens nothing")
            .drops(&syn.clone().ttl(1), Reason::TtlExpired)
            .drops(&syn.ttl(0), Reason::TtlExpired)
            .resets(
                &talk.up(ACK),
                &Talk::reset(&talk.up(ACK), RST, 0x0102_0708, 0),
                Reason::NoFlow,
            ),
        talk.open("data on its last hop ends")
            .drops(&talk.up(ACK).ttl(1), Reason::TtlExpired)
            .drops(&talk.down(ACK).ttl(1), Reason::TtlExpired),
    ]
}

fn tags(talk: &Talk) -> Vec<Case> {
    let tagged = |name: &str, dress: fn(Frame) -> Frame| {
        talk.single(name)
            .then(talk, &[dress(talk.syn())])
            .also(talk, &[dress(talk.syn_ack())])
            .then(talk, &[dress(talk.up(ACK).payload(b"data"))])
            .also(talk, &[dress(talk.down(ACK).payload(b"answer"))])
            .then(talk, &[dress(talk.up(FIN | ACK))])
            .also(talk, &[dress(talk.down(FIN | ACK))])
    };
    let three = talk.syn().vlan(VLAN_OUTER, 1).vlan(VLAN, 2).vlan(VLAN, 3);
    vec![
        tagged("tags: one", |frame| frame.vlan(VLAN, 100)),
        tagged("tags: two", |frame| frame.vlan(VLAN_OUTER, 100).vlan(VLAN, 200)),
        tagged("tags: two of the inner kind", |frame| frame.vlan(VLAN, 100).vlan(VLAN, 200)),
        tagged("tags: an outer one alone", |frame| frame.vlan(VLAN_OUTER, 100)),
        tagged("padding stays where it is", |frame| frame.trailer(&[0xee; 9])),
        talk.single("tags: three are too many").passes(&three, Reason::NotIp),
    ]
}

fn changes(talk: &Talk) -> Vec<Case> {
    let net = &talk.net;
    let fit = backend(net.backends[0]);
    let gone = lb_common::backend::Backend { flags: fit.flags & !FORWARD, ..fit };
    let lost = lb_common::backend::Backend { flags: fit.flags & !RESOLVED, ..fit };
    let elsewhere = lb_common::backend::Backend { next_hop: [2, 9, 9, 9, 9, 9], ..fit };
    let data = talk.up(ACK).numbers(10, 2000);
    let answer = talk.down(ACK).numbers(2000, 10);
    let moved = [2, 0, 0, 0, 0, 0x77];
    let redirected = net.single().change(1, |backend| backend.ifindex = 77);
    let seen = |frame: &Frame| net.at_backend(frame, 1, net.client.port());
    let other = |frame: &Frame| net.at_backend(frame, 2, net.client.port());
    let two = net.setup(Balance::RoundRobin);
    vec![
        talk.open("a connection whose backend is gone is reset, on both sides")
            .resets(&data, &Talk::reset(&data, RST, 2000, 0), Reason::BackendGone)
            .after_change(1, gone)
            .resets(&answer, &Talk::reset(&answer, RST, 10, 0), Reason::BackendGone)
            .drops(&talk.up(RST), Reason::BackendGone),
        talk.open("a connection whose backend is gone begins anew with a SYN")
            .resets(
                &talk.syn(),
                &Talk::reset(&talk.syn(), RST | ACK, 0, 0x0102_0305),
                Reason::NoBackend,
            )
            .after_change(1, gone)
            .then(talk, &[talk.syn()])
            .after_change(1, fit),
        Case::new("a half-open connection whose backend is gone gets another", two)
            .forwards(&talk.syn(), &seen(&talk.syn()), 1)
            .forwards(&talk.syn(), &other(&talk.syn()), 2)
            .after_change(1, gone)
            .passes(&talk.syn_ack(), Reason::NoService),
        talk.open_udp("a flow whose backend is gone")
            .drops(&talk.reply(), Reason::BackendGone)
            .after_change(1, gone)
            .drops(&talk.question(), Reason::NoBackend),
        talk.open("a connection whose next hop is lost waits")
            .drops(&data, Reason::NoNeighbour)
            .after_change(1, lost)
            .also(talk, slice::from_ref(&answer))
            .then(talk, slice::from_ref(&data))
            .after_change(1, fit),
        talk.open("a backend's new next hop is taken at once")
            .forwards(&data, &seen(&data).link(OUR_MAC, [2, 9, 9, 9, 9, 9]), 1)
            .after_change(1, elsewhere),
        talk.open("a client is followed to another MAC address")
            .forwards(&data.clone().link(moved, OUR_MAC), &seen(&data), 1)
            .returns(&answer, &net.at_client(&answer, net.client).link(OUR_MAC, moved), 1)
            .then(talk, slice::from_ref(&data))
            .also(talk, slice::from_ref(&answer)),
        talk.open("our own new MAC address is used for answers")
            .forwards(&data.clone().link(CLIENT_MAC, moved), &seen(&data), 1)
            .returns(&answer, &net.at_client(&answer, net.client).link(moved, CLIENT_MAC), 1),
        Case::new("out by another interface", redirected)
            .redirects(&talk.syn(), &seen(&talk.syn()), 1)
            .also(talk, &[talk.syn_ack()])
            .redirects(&data, &seen(&data), 1)
            .also(talk, &[answer])
            .redirects(&talk.up(FIN | ACK), &seen(&talk.up(FIN | ACK)), 1),
    ]
}

fn balance(talk: &Talk) -> Vec<Case> {
    let net = &talk.net;
    // Each client has a port of its own, so each keeps it.
    let clients: Vec<_> = (0..6).map(|n| net.other_client(n, 20_000 + n)).collect();
    let goes = |case: Case, client: usize, id: u32| {
        let syn = Frame::syn(clients[client], net.vip);
        case.forwards(&syn, &net.at_backend(&syn, id, clients[client].port()), id)
    };
    let order = |name: &str, setup: Setup, ids: &[u32]| {
        (0..).zip(ids).fold(Case::new(name, setup), |case, (client, id)| goes(case, client, *id))
    };
    let heavy = net.setup(Balance::LeastConn).change(2, |backend| backend.weight = 3);
    let end = Frame::tcp(clients[1], net.vip, RST);
    let in_turn = net.setup(Balance::RoundRobin);
    let mut table = Setup::default().vip(net.vip.ip());
    for (id, address) in (1..).zip(net.backends) {
        table = table.backend(id, backend(address));
    }
    let table = table.service(net.vip, protocol::TCP, Balance::RoundRobin, &[3, 1, 1, 2]);
    vec![
        order("round robin: in turn", in_turn, &[1, 2, 3, 1, 2, 3]),
        order("round robin: by the table", table, &[3, 1, 1, 2, 3, 1]),
        order("least_conn: the emptiest", net.setup(Balance::LeastConn), &[1, 2, 3, 1, 2, 3]),
        order("least_conn: for its weight", heavy, &[1, 2, 3, 2, 2]),
        goes(
            order("least_conn: where one has ended", net.setup(Balance::LeastConn), &[1, 2, 3])
                .forwards(&end, &net.at_backend(&end, 2, clients[1].port()), 2),
            3,
            2,
        ),
        order("maglev: one backend has every slot", net.single(), &[1, 1, 1, 1, 1, 1]),
    ]
}

fn udp(talk: &Talk) -> Vec<Case> {
    let net = &talk.net;
    let empty = Frame::udp(net.client, net.vip, b"");
    let odd = Frame::udp(net.client, net.vip, b"odd");
    vec![
        talk.single("UDP: a question").then(talk, &[talk.question(), talk.question()]),
        talk.open_udp("UDP: a reply, and on")
            .then(talk, &[talk.question(), empty, odd])
            .also(talk, &[talk.reply(), talk.reply()]),
        talk.open_udp("UDP: apart from TCP with the same ports")
            .resets(&talk.up(ACK), &Talk::reset(&talk.up(ACK), RST, 0x0102_0708, 0), Reason::NoFlow)
            .passes(&talk.down(ACK), Reason::NoService),
        talk.single("UDP: in a VLAN").then(talk, &[talk.question().vlan(VLAN, 9)]),
        talk.single("UDP: on its last hop").drops(&talk.question().ttl(1), Reason::TtlExpired),
    ]
}
