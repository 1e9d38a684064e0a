//! Packets that leave inside others, and the answers to those that are too long for it.

use std::net::SocketAddr;

use lb_common::{
    backend::{Backend, DIRECT, FORWARD, GUE, RESOLVED, TUNNEL},
    limits::DEFAULT_BACKENDS,
    reason::Reason,
    service::{LOOK_UP, Slot},
};
use lb_ebpf::{
    Action, examine,
    fake::{
        Error, FakeTables, Frame, Net, Setup, Xdp,
        frame::{VLAN, VLAN_OUTER},
        outer::inside,
        setup::{CLIENT_MAC, INGRESS, OUR_MAC, steered_at},
    },
    family::protocol,
    known,
    packet::{
        Packet,
        tcp_flags::{ACK, FIN, RST, SYN},
    },
    too_big::BURST,
    tunnel::overhead,
};
use proptest::prelude::*;

use crate::driver::Host;

/// Backends behind tunnels of each kind, and one without.
fn kinds() -> Vec<Backend> {
    let v4 = SocketAddr::from(([203, 0, 113, 21], 80));
    let v6 = SocketAddr::from(([0x2001, 0xdb8, 0xb, 0, 0, 0, 0, 0x21], 80));
    let mut kinds = vec![steered_at(v4, DIRECT)];
    for address in [v4, v6] {
        kinds.push(steered_at(address, TUNNEL));
        kinds.push(steered_at(address, TUNNEL | GUE));
    }
    kinds
}

fn setup(net: &Net, slot: Slot, backends: [Backend; 2]) -> Setup {
    Setup::default()
        .vip(net.vip.ip())
        .backend(1, backends[0])
        .backend(2, backends[1])
        .steered(net.vip, protocol::TCP, &[slot])
        .steered(net.vip, protocol::UDP, &[slot])
}

fn host(net: Net, backend: Backend) -> Host {
    let net = net.steered();
    Host { net, tables: FakeTables::new(&setup(&net, Slot::of(1), [backend; 2])) }
}

#[test]
fn overheads_are_those_of_the_headers() {
    let overheads: Vec<_> = kinds()[1..].iter().map(overhead).collect();
    assert_eq!(overheads, [20, 28, 40, 48]);
}

#[test]
fn the_flows_of_a_tunnel_are_told_apart_outside() {
    // By the outer source port of GUE, and by the flow label of IPv6.
    for net in Net::both() {
        for backend in &kinds()[2..] {
            let host = host(net, *backend);
            let v4 = overhead(backend) == 28;
            let at = if v4 { 34..36 } else { 15..18 };
            let seen: std::collections::HashSet<_> = (0..100)
                .map(|number| {
                    let client = host.net.other_client(number, 1000 + number);
                    host.forwarded(&Frame::tcp(client, host.net.vip, ACK))[at.clone()].to_vec()
                })
                .collect();
            assert!(seen.len() > 90, "{} for {backend:?}", seen.len());
            if v4 {
                assert!(seen.iter().all(|port| port[0] >= 0xc0), "dynamic ports");
            }
        }
    }
}

#[test]
fn long_packets_are_answered_at_a_bounded_rate() {
    for net in Net::both() {
        let host = host(net, Backend { max_packet: 1400, ..kinds()[1] });
        let long = Frame::tcp(host.net.client, host.net.vip, ACK).payload(&[1; 1401]);
        let answer = |count: u64| {
            (0..count)
                .filter(|_| {
                    let (outcome, decision) = host.run(&long);
                    assert_eq!(decision, Err(Reason::TooBig));
                    outcome.xdp == Xdp::Transmit
                })
                .count() as u64
        };
        assert_eq!(answer(BURST + 20), BURST);
        host.tables.set_now_ns(1_000_000_000_000 + 5_000_000);
        assert_eq!(answer(20), 5, "one in each millisecond");
        assert_eq!(host.tables.reason(Reason::TooBig), BURST + 40);
    }
}

#[test]
fn a_packet_that_is_too_short_to_quote_is_not_answered() {
    for net in Net::both() {
        let host = host(net, Backend { max_packet: 100, ..kinds()[1] });
        let frame = Frame::tcp(host.net.client, host.net.vip, ACK).payload(&[1; 101]);
        assert_eq!(host.assert_too_big(&frame).0, Xdp::Drop);
    }
}

#[test]
fn the_answer_quotes_the_packet_and_says_what_fits() {
    for (net, quoted) in Net::both().into_iter().zip([548, 1232]) {
        for kind in &kinds()[1..] {
            let max_packet = 1500 - overhead(kind) as u16;
            let host = host(net, Backend { max_packet, ..*kind });
            let plain = Frame::tcp(host.net.client, host.net.vip, ACK).payload(&[7; 1500]);
            for frame in [
                plain.clone(),
                plain.clone().vlan(VLAN, 5),
                plain.clone().vlan(VLAN_OUTER, 5).vlan(VLAN, 6),
                Frame::udp(host.net.client, host.net.vip, &[9; 1501]),
                Frame::syn(host.net.client, host.net.vip).payload(&[1; 1500]),
            ] {
                let expected =
                    Frame::icmp_error(host.net.vip.ip(), Error::TooBig(max_packet), &frame, quoted);
                let vlans = frame.vlans.clone();
                let expected = Frame { vlans, ..expected.label(0).link(OUR_MAC, CLIENT_MAC) };
                let (xdp, answer) = host.assert_too_big(&frame);
                assert_eq!((xdp, answer), (Xdp::Transmit, expected.build()));
            }
        }
    }
}

impl Host {
    #[track_caller]
    fn assert_too_big(&self, frame: &Frame) -> (Xdp, Vec<u8>) {
        let (outcome, decision) = self.run(frame);
        assert_eq!(decision, Err(Reason::TooBig));
        (outcome.xdp, outcome.frame)
    }
}

/// A plain packet to a steered service.
#[derive(Clone, Debug)]
struct Plain {
    v6: bool,
    udp: bool,
    flags: u8,
    ttl: u8,
    traffic_class: u8,
    payload: usize,
    trailer: usize,
    kinds: (usize, usize),
    missing: u16,
    max_packet: u16,
    egress: u32,
    slot: Slot,
}

prop_compose! {
    fn plain()(
        (v6, udp) in any::<(bool, bool)>(),
        flags in prop::sample::select(vec![ACK, ACK | 8, FIN | ACK, RST, SYN, SYN | ACK, 0]),
        ttl in prop_oneof![4 => 2..=255_u8, 1 => 0..=2_u8],
        traffic_class in any::<u8>(),
        payload in prop_oneof![4 => 0..100_usize, 1 => 1200..1500_usize],
        trailer in prop_oneof![4 => Just(0_usize), 1 => 1..20_usize],
        kinds in (0..5_usize, 0..5_usize),
        missing in prop_oneof![6 => Just(0), 1 => Just(FORWARD), 1 => Just(RESOLVED)],
        max_packet in prop_oneof![Just(0), Just(1300), Just(1400)],
        egress in prop_oneof![4 => Just(INGRESS), 1 => Just(2_u32)],
        slot in prop_oneof![
            6 => Just(Slot::of(1)),
            1 => Just(Slot { backend: 1, base: 2 }),
            1 => Just(Slot { backend: 1, base: 1 | LOOK_UP }),
            1 => Just(Slot::of(DEFAULT_BACKENDS)),
        ],
    ) -> Plain {
        Plain {
            v6, udp, flags, ttl, traffic_class, payload, trailer, kinds, missing, max_packet, egress,
            slot,
        }
    }
}

impl Plain {
    fn net(&self) -> Net {
        if self.v6 { Net::v6().steered() } else { Net::v4().steered() }
    }

    fn frame(&self) -> Frame {
        let net = self.net();
        let payload = vec![0x5a; self.payload];
        let frame = if self.udp {
            Frame::udp(net.client, net.vip, &payload)
        } else {
            Frame::tcp(net.client, net.vip, self.flags).payload(&payload)
        };
        frame.ttl(self.ttl).traffic_class(self.traffic_class).trailer(&vec![0xee; self.trailer])
    }

    fn backends(&self) -> [Backend; 2] {
        [self.kinds.0, self.kinds.1].map(|kind| {
            let kind = kinds()[kind];
            Backend {
                flags: kind.flags & !self.missing,
                ifindex: self.egress,
                max_packet: self.max_packet,
                ..kind
            }
        })
    }
}

fn run<D>(plain: &Plain, path: impl Fn(Packet, &FakeTables) -> D) -> (D, Vec<u8>, u64) {
    let tables = FakeTables::new(&setup(&plain.net(), plain.slot, plain.backends()));
    let mut frame = plain.frame().build();
    // SAFETY: the frame is not touched but through the packet while that is in use.
    let packet = unsafe {
        let range = frame.as_mut_ptr_range();
        Packet::new(range.start as usize, range.end as usize, INGRESS)
    };
    let decision = path(packet, &tables);
    (decision, frame, tables.counted())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_hot_path_and_the_closer_look_agree(plain in plain()) {
        let (hot, frame, counted) = run(&plain, known::forward);
        let closer = run(&plain, |packet, tables| examine(packet, tables, true));
        if let Some(hot) = hot {
            prop_assert_eq!(((hot, frame), counted), ((closer.0, closer.1), closer.2));
        }
        let headers = 14 + 20 + if plain.v6 { 40 } else { 20 };
        // What the hot path takes: what is no shorter than TCP's headers, no SYN, an undisturbed slot, a backend that is ready, no last hop.
        let takes = plain.frame().build().len() >= headers
            && (plain.udp || plain.flags & SYN == 0)
            && plain.slot == Slot::of(1)
            && plain.missing == 0
            && plain.ttl > 1
            && closer.0 != Err(Reason::TooBig);
        prop_assert_eq!(hot.is_some(), takes);
    }

    #[test]
    fn what_leaves_is_the_packet_inside_another(plain in plain()) {
        let backends = plain.backends();
        let tables = FakeTables::new(&setup(&plain.net(), plain.slot, backends));
        let host = Host { net: plain.net(), tables };
        let frame = plain.frame();
        let (outcome, decision) = host.run(&frame);
        if let Ok(action) = decision {
            let starts = !plain.udp && plain.flags & (SYN | ACK) == SYN;
            let id = if starts { plain.slot.backend } else { plain.slot.base & !LOOK_UP };
            let backend = backends[id as usize - 1];
            let expected = if backend.flags & DIRECT != 0 {
                frame.link(backend.source_mac, backend.next_hop).build()
            } else {
                inside(&frame, &backend)
            };
            prop_assert_eq!(outcome.frame, expected);
            prop_assert_eq!(action == Action::Transmit, plain.egress == INGRESS);
        }
    }
}
