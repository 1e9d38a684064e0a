//! Rows of steered services: `direct` and `tunnel`.

use std::net::SocketAddr;

use lb_common::{
    backend::{Backend, DIRECT, FORWARD, GUE, RESOLVED, TUNNEL},
    reason::Reason,
    service::{LOOK_UP, Slot},
};
use lb_ebpf::{
    fake::{
        Error, Frame, Net, Setup, Xdp,
        frame::{VLAN, VLAN_OUTER},
        setup::{CLIENT_MAC, OUR_MAC, steered_at},
    },
    family::protocol,
    packet::tcp_flags::{ACK, FIN, RST, SYN},
    tunnel::overhead,
};

use super::{Case, Talk};

/// Frames of a client of a steered service.
struct Steered {
    net: Net,
}

/// MTU of the link to the backends, in rows where it matters.
const MTU: u16 = 1500;

impl Steered {
    fn up(&self, flags: u8) -> Frame {
        Frame::tcp(self.net.client, self.net.vip, flags)
    }

    fn syn(&self) -> Frame {
        Frame::syn(self.net.client, self.net.vip)
    }

    fn question(&self) -> Frame {
        Frame::udp(self.net.client, self.net.vip, b"question")
    }

    /// Services by TCP and UDP with one slot each, and these backends, from number 1 on.
    fn setup(&self, slot: Slot, backends: &[Backend]) -> Setup {
        let mut setup = Setup::default().vip(self.net.vip.ip());
        for (id, backend) in (1..).zip(backends) {
            setup = setup.backend(id, *backend);
        }
        setup.steered(self.net.vip, protocol::TCP, &[slot]).steered(
            self.net.vip,
            protocol::UDP,
            &[slot],
        )
    }

    fn direct(&self) -> Vec<Backend> {
        self.net.backends.iter().map(|address| steered_at(*address, DIRECT)).collect()
    }

    /// One backend, with every slot.
    fn single(&self, name: &str, backend: Backend) -> Case {
        Case::new(name, self.setup(Slot::of(1), &[backend]))
    }

    /// Services whose slot is disturbed, and three backends.
    fn disturbed(&self, name: &str, backend: u32, base: u32) -> Case {
        Case::new(name, self.setup(Slot { backend, base }, &self.direct()))
    }
}

/// A frame with the MAC addresses of one that leaves to a backend.
fn moved(frame: &Frame, backend: &Backend) -> Frame {
    frame.clone().link(backend.source_mac, backend.next_hop)
}

trait Direct: Sized {
    fn direct(self, frames: &[Frame], id: u32) -> Self;
    fn inside(self, frames: &[Frame]) -> Self;
    fn redirects_inside(self, frames: &[Frame]) -> Self;
}

impl Direct for Case {
    /// Frames that go to a backend as they are.
    fn direct(self, frames: &[Frame], id: u32) -> Self {
        frames.iter().fold(self, |case, frame| {
            let (_, backend) = case.setup.backends[id as usize - 1];
            case.forwards(frame, &moved(frame, &backend), id)
        })
    }

    /// Frames that go to the first backend through its tunnel.
    fn inside(self, frames: &[Frame]) -> Self {
        frames.iter().fold(self, |case, frame| case.forwards_inside(frame, 1))
    }

    /// The same, by another interface.
    fn redirects_inside(self, frames: &[Frame]) -> Self {
        let mut case = self.inside(frames);
        for step in &mut case.steps {
            step.xdp = Xdp::Redirect;
        }
        case
    }
}

/// All rows of a family.
pub(super) fn rows(net: Net) -> Vec<Case> {
    let steered = Steered { net: net.steered() };
    let mut rows = direct(&steered);
    rows.extend(slots(&steered));
    rows.extend(gone(&steered));
    rows.extend(guarded(&steered));
    for (outer, address) in [
        ("IPv4", SocketAddr::from(([203, 0, 113, 21], 80))),
        ("IPv6", SocketAddr::from(([0x2001, 0xdb8, 0xb, 0, 0, 0, 0, 0x21], 80))),
    ] {
        for (kind, flags) in [("IP in IP", TUNNEL), ("GUE", TUNNEL | GUE)] {
            let mut backend = steered_at(address, flags);
            backend.max_packet = MTU - overhead(&backend) as u16;
            rows.extend(
                tunnel(&steered, backend)
                    .into_iter()
                    .map(|case| Case { name: format!("{kind}, {outer}: {}", case.name), ..case }),
            );
        }
    }
    rows
}

/// Lists and rates, and sources that no packet may have.
fn guarded(steered: &Steered) -> Vec<Case> {
    let (net, backend) = (&steered.net, steered.direct()[0]);
    let bits = if net.vip.is_ipv4() { 32 } else { 128 };
    let setup = || steered.setup(Slot::of(1), &[backend]);
    let land = Frame::syn(net.vip, net.vip);
    let foreign = |frame: Frame| frame.link(CLIENT_MAC, [2, 0, 0, 0, 1, 0xb]);
    vec![
        Case::new("steered: another host's frame", setup().with_macs(&[OUR_MAC]))
            .passes(&foreign(Frame::syn(net.client, net.vip)), Reason::OtherHost)
            .passes(&foreign(Frame::tcp(net.client, net.vip, ACK)), Reason::OtherHost)
            .passes(&foreign(Frame::udp(net.client, net.vip, b"x")), Reason::OtherHost),
        Case::new("steered: a denied source", setup().filtered(&[(net.client.ip(), bits, false)]))
            .drops(&steered.syn(), Reason::Denied)
            .drops(&steered.question(), Reason::Denied)
            .direct(&[steered.up(ACK)], 1),
        Case::new("steered: a rate, which datagrams do not count against", setup().limited(1, 1))
            .direct(&[steered.syn(), steered.question(), steered.question()], 1)
            .drops(&steered.syn(), Reason::RateLimited)
            .reported()
            .direct(&[steered.up(ACK)], 1),
        Case::new("steered: land", setup()).drops(&land, Reason::Spoofed),
    ]
}

fn direct(steered: &Steered) -> Vec<Case> {
    let backend = steered.direct()[0];
    let redirected = Backend { ifindex: 77, ..backend };
    let data = steered.up(ACK | 8).payload(b"GET / HTTP/1.1\r\n\r\n");
    let router = steered.net.other_client(7, 0).ip();
    let answer = Frame::tcp(steered.net.vip, steered.net.client, ACK).payload(&[1; 64]);
    let error = Frame::icmp_error(router, Error::TooBig(1280), &answer, 1000);
    let mut rows = vec![
        steered.single("direct: a connection", backend).direct(
            &[
                steered.syn(),
                steered.up(ACK),
                data.clone(),
                steered.up(FIN | ACK),
                steered.up(RST),
                steered.up(SYN | ACK),
                steered.up(0),
            ],
            1,
        ),
        steered.single("direct: a question", backend).direct(&[steered.question()], 1),
        steered.single("direct: in a VLAN", backend).direct(
            &[
                steered.syn().vlan(VLAN, 7),
                data.clone().vlan(VLAN_OUTER, 7).vlan(VLAN, 8),
                steered.question().vlan(VLAN, 7),
            ],
            1,
        ),
        steered
            .single("direct: the time to live stays", backend)
            .direct(&[data.clone().ttl(1), data.clone().ttl(2), data.clone().ttl(255)], 1),
        steered.single("direct: padding, options, DSCP and ECN stay", backend).direct(
            &[
                steered.up(ACK).trailer(&[0xee; 6]),
                data.clone().tcp_options(&[1; 12]),
                data.clone().traffic_class(0xb9),
            ],
            1,
        ),
        steered
            .single("direct: by another interface", redirected)
            .redirects(&steered.syn(), &moved(&steered.syn(), &redirected), 1)
            .redirects(&data, &moved(&data, &redirected), 1),
        steered
            .single("direct: an error about an answer goes to the backend", backend)
            .direct(&[error.clone(), error.vlan(VLAN, 7)], 1),
        steered.single("direct: an error about nothing of ours", backend).passes(
            &Frame::icmp_error(
                router,
                Error::TimeExceeded,
                &Frame::tcp(steered.net.nat(9), steered.net.client, ACK),
                1000,
            ),
            Reason::IcmpUnrelated,
        ),
        steered
            .single("direct: fragments", backend)
            .passes(&data.clone().fragment(0, true), Reason::Fragment)
            .passes(&data.clone().fragment(8, false), Reason::Fragment),
        steered
            .single("direct: other ports and protocols", backend)
            .passes(&Frame::syn(steered.net.client, steered.net.nat(22)), Reason::NoService)
            .passes(
                &Frame::echo(steered.net.client.ip(), steered.net.vip.ip()),
                Reason::OtherProtocol,
            ),
    ];
    if steered.net.vip.is_ipv4() {
        rows.push(
            steered
                .single("direct: IP options stay", backend)
                .direct(&[data.ip_options(&[1; 20]), steered.syn().ip_options(&[7, 4, 4, 0])], 1),
        );
    }
    rows
}

fn slots(steered: &Steered) -> Vec<Case> {
    let (syn, ack) = (steered.syn(), steered.up(ACK));
    let looked_up = |backend| Slot { backend, base: backend | LOOK_UP };
    vec![
        steered
            .disturbed("a disturbed slot: a new connection goes to the new backend", 2, 1)
            .direct(&[syn.clone(), ack.clone(), steered.up(FIN | ACK)], 2),
        steered
            .disturbed("a disturbed slot: an old connection stays", 2, 1)
            .direct(&[ack.clone(), steered.question()], 1)
            .direct(std::slice::from_ref(&ack), 1)
            .after_slot(0, looked_up(2))
            .direct(&[steered.up(FIN | ACK)], 1),
        steered
            .disturbed("a disturbed slot: an old tuple begins anew", 2, 1)
            .direct(std::slice::from_ref(&ack), 1)
            .direct(&[syn.clone(), ack.clone()], 2)
            .direct(std::slice::from_ref(&syn), 3)
            .after_slot(0, looked_up(3))
            .direct(std::slice::from_ref(&ack), 3),
        steered
            .disturbed("a slot with entries to look up: what has none", 2, 2 | LOOK_UP)
            .direct(&[ack.clone(), syn, steered.question()], 2),
        steered
            .disturbed("a slot that is undisturbed again", 2, 1)
            .direct(std::slice::from_ref(&ack), 1)
            .direct(&[ack], 2)
            .after_slot(0, Slot::of(2)),
    ]
}

fn gone(steered: &Steered) -> Vec<Case> {
    let backends = steered.direct();
    let without = |id: usize, flag: u16| Backend {
        flags: backends[id - 1].flags & !flag,
        ..backends[id - 1]
    };
    let syn = steered.syn().numbers(77, 0);
    let data = steered.up(ACK).numbers(10, 2000).payload(b"data");
    let refused = Talk::reset(&syn, RST | ACK, 0, 78);
    vec![
        steered
            .single("steered: a connection whose backend is gone is reset", without(1, FORWARD))
            .resets(&data, &Talk::reset(&data, RST, 2000, 0), Reason::BackendGone)
            .drops(&steered.up(RST), Reason::BackendGone),
        steered
            .single("steered: a new connection without a backend is reset", without(1, FORWARD))
            .resets(&syn, &refused, Reason::NoBackend)
            .drops(&steered.question(), Reason::NoBackend),
        Case::new(
            "steered: no backend at all",
            Setup::default().vip(steered.net.vip.ip()).steered(steered.net.vip, protocol::TCP, &[]),
        )
        .resets(&syn, &refused, Reason::NoBackend)
        .resets(&data, &Talk::reset(&data, RST, 2000, 0), Reason::NoBackend),
        steered
            .disturbed("steered: datagrams leave a base that is gone", 2, 1)
            .direct(&[steered.question()], 1)
            .direct(&[steered.question()], 2)
            .after_change(1, without(1, FORWARD))
            .direct(&[steered.question()], 2)
            .after_change(1, backends[0]),
        steered
            .disturbed("steered: connections of a base that is gone are reset", 2, 1)
            .direct(std::slice::from_ref(&data), 1)
            .resets(&data, &Talk::reset(&data, RST, 2000, 0), Reason::BackendGone)
            .after_change(1, without(1, FORWARD))
            .direct(&[syn.clone(), data.clone()], 2),
        steered
            .single("steered: no next hop", without(1, RESOLVED))
            .drops(&data, Reason::NoNeighbour)
            .drops(&syn, Reason::NoNeighbour)
            .reported(),
    ]
}

fn tunnel(steered: &Steered, backend: Backend) -> Vec<Case> {
    let data = steered.up(ACK | 8).payload(b"GET / HTTP/1.1\r\n\r\n");
    let header = if steered.net.vip.is_ipv4() { 20 } else { 40 };
    // A whole IP packet of so many bytes.
    let long = |len: u16| steered.up(ACK).payload(&vec![0x5a; usize::from(len) - header - 20]);
    let longest = backend.max_packet;
    let quoted = if steered.net.vip.is_ipv4() { 548 } else { 1232 };
    let answer_to = |frame: &Frame| {
        let answer = Frame::icmp_error(steered.net.vip.ip(), Error::TooBig(longest), frame, quoted);
        let vlans = frame.vlans.clone();
        Frame { vlans, ..answer.link(OUR_MAC, CLIENT_MAC).label(0) }
    };
    let tagged = long(longest + 1).vlan(VLAN_OUTER, 3).vlan(VLAN, 4);
    let datagram = Frame::udp(
        steered.net.client,
        steered.net.vip,
        &vec![1; usize::from(longest) + 1 - header - 8],
    );
    let router = steered.net.other_client(7, 0).ip();
    let sent = Frame::tcp(steered.net.vip, steered.net.client, ACK).payload(&[1; 64]);
    let error = Frame::icmp_error(router, Error::TooBig(1280), &sent, 1000);
    let long_error =
        Frame::icmp_error(router, Error::TooBig(1280), &sent.payload(&[1; 1600]), 1500);
    let mut cut = data.build();
    cut.truncate(cut.len() - 1);
    let unlimited = Backend { max_packet: 0, ..backend };
    let mut rows = vec![
        steered.single("a connection", backend).inside(&[
            steered.syn(),
            steered.up(ACK),
            data.clone(),
            steered.up(FIN | ACK),
            steered.up(RST),
        ]),
        steered.single("questions", backend).inside(&[
            steered.question(),
            Frame::udp(steered.net.client, steered.net.vip, b""),
            Frame::udp(steered.net.client, steered.net.vip, b"odd"),
        ]),
        steered.single("in a VLAN", backend).inside(&[
            steered.syn().vlan(VLAN, 7),
            data.clone().vlan(VLAN, 7),
            data.clone().vlan(VLAN_OUTER, 7).vlan(VLAN, 8),
            steered.question().vlan(VLAN, 7).vlan(VLAN, 8),
        ]),
        steered.single("DSCP and ECN are copied, the time to live is not", backend).inside(&[
            data.clone().traffic_class(0xb9).ttl(3),
            data.clone().traffic_class(0x03).ttl(1),
            data.clone().traffic_class(0xff).vlan(VLAN, 7),
        ]),
        steered
            .single("padding is no part of the packet", backend)
            .inside(&[steered.up(ACK).trailer(&[0xee; 6]), data.clone().tcp_options(&[1; 12])]),
        steered
            .single("an error about an answer goes to the backend", backend)
            .forwards_error(&error, &steered.up(ACK), 1)
            .forwards_error(&error.clone().vlan(VLAN, 7), &steered.up(ACK), 1),
        steered.single("a packet that just fits", backend).inside(&[long(longest)]),
        steered
            .single("a packet that is too long is answered", backend)
            .resets(&long(longest + 1), &answer_to(&long(longest + 1)), Reason::TooBig)
            .resets(&tagged, &answer_to(&tagged), Reason::TooBig)
            .resets(&datagram, &answer_to(&datagram), Reason::TooBig),
        steered
            .single("an error that is too long is not", backend)
            .drops(&long_error, Reason::TooBig),
        steered.single("without a limit", unlimited).inside(&[long(1500), long(2000)]),
        steered.single("cut off", backend).passes_bytes(cut, Reason::Malformed),
        steered
            .single("by another interface", Backend { ifindex: 77, ..backend })
            .redirects_inside(&[data.clone(), steered.syn().vlan(VLAN, 9)]),
    ];
    if steered.net.vip.is_ipv4() {
        rows.push(
            steered
                .single("IP options stay inside", backend)
                .inside(&[data.ip_options(&[1; 20]), steered.syn().ip_options(&[7, 4, 4, 0])]),
        );
        rows.push(
            steered
                .single("UDP without a checksum stays so", backend)
                .inside(&[steered.question().without_checksum()]),
        );
    }
    rows
}
