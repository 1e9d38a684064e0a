//! The hot path and the closer look give the same result for plain packets of known flows.

use lb_common::backend::{FORWARD, IN_USE, RESOLVED};
use lb_common::reason::Reason;
use lb_ebpf::{
    Action, examine,
    fake::{FakeTables, Frame, Net, setup::INGRESS, setup::OUR_MAC, tables::FlowTables},
    family::{Family, V4, V6},
    known,
    packet::{Packet, tcp_flags::ACK},
};
use proptest::prelude::*;

use crate::driver::Host;

/// A packet of an established flow, or of a stranger.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "a packet has that many yes and no")]
struct Plain {
    v6: bool,
    udp: bool,
    checksum: bool,
    from_client: bool,
    push: bool,
    ttl: u8,
    payload: Vec<u8>,
    numbers: (u32, u32),
    /// 0: as before; 1: another host's MAC address; 2: to another MAC address of ours.
    link: u8,
    ingress: u32,
    /// 0 for the flow's own client or backend.
    stranger: u16,
    backend_flags: u16,
    egress: u32,
}

prop_compose! {
    fn plain()(
        (v6, udp, checksum, from_client, push) in any::<(bool, bool, bool, bool, bool)>(),
        ttl in prop_oneof![4 => 2..=255_u8, 1 => 0..=2_u8],
        payload in proptest::collection::vec(any::<u8>(), 0..60),
        numbers in any::<(u32, u32)>(),
        link in prop_oneof![4 => Just(0_u8), 1 => 1..=2_u8],
        ingress in prop_oneof![6 => Just(INGRESS), 1 => Just(2_u32)],
        stranger in prop_oneof![6 => Just(0_u16), 1 => 1..3_u16],
        backend_flags in prop_oneof![
            6 => Just(IN_USE | FORWARD | RESOLVED),
            1 => Just(IN_USE | FORWARD),
            1 => Just(IN_USE | RESOLVED),
        ],
        egress in prop_oneof![4 => Just(INGRESS), 1 => Just(2_u32)],
    ) -> Plain {
        Plain {
            v6, udp, checksum, from_client, push, ttl, payload, numbers, link, ingress, stranger,
            backend_flags, egress,
        }
    }
}

impl Plain {
    fn net(&self) -> Net {
        if self.v6 { Net::v6() } else { Net::v4() }
    }

    fn frame(&self) -> Frame {
        let net = self.net();
        let (mut client, mut backend) = (net.client, net.backends[0]);
        if self.stranger != 0 {
            client = net.other_client(self.stranger, client.port());
            backend = net.backends[self.stranger as usize];
        }
        let (src, dst) =
            if self.from_client { (client, net.vip) } else { (backend, net.nat(40_000)) };
        let frame = if self.udp {
            Frame::udp(src, dst, &self.payload)
        } else {
            let flags = if self.push { ACK | 8 } else { ACK };
            let (seq, ack) = self.numbers;
            Frame::tcp(src, dst, flags).numbers(seq, ack).payload(&self.payload)
        };
        let frame = if self.checksum || self.v6 { frame } else { frame.without_checksum() };
        let frame =
            if self.from_client { frame } else { net.sent_by_backend(frame, 1) }.ttl(self.ttl);
        match self.link {
            0 => frame,
            1 => frame.link([6; 6], OUR_MAC),
            _ => {
                let src_mac = frame.src_mac;
                frame.link(src_mac, [2, 0, 0, 0, 0, 0x66])
            }
        }
    }

    /// State in which the flows of TCP and UDP are established.
    fn tables(&self) -> FakeTables {
        let net = self.net();
        let mut host = Host::single(net);
        host.connect(net.client);
        host.forwarded(&Frame::udp(net.client, net.vip, b"question"));
        let reply = Frame::udp(net.backends[0], net.nat(40_000), b"reply");
        host.forwarded(&net.sent_by_backend(reply, 1));
        let mut backend = lb_ebpf::fake::setup::backend(net.backends[0]);
        (backend.flags, backend.ifindex) = (self.backend_flags, self.egress);
        host.tables.set_backend(1, backend);
        host.tables.set_now_ns(2_000_000_000_000);
        host.tables
    }
}

/// All that a packet may change.
#[derive(Debug, PartialEq)]
struct After<D> {
    decision: D,
    frame: Vec<u8>,
    v4: Vec<String>,
    v6: Vec<String>,
    stats: lb_common::stats::BackendStats,
}

fn sorted<F: Family<Key: Eq + std::hash::Hash + std::fmt::Debug, Entry: std::fmt::Debug> + Copy>(
    tables: &FlowTables<F>,
) -> Vec<String> {
    let mut flows: Vec<_> = tables.flows().iter().map(|flow| format!("{flow:?}")).collect();
    flows.sort();
    flows
}

fn run<D>(plain: &Plain, path: impl Fn(Packet, &FakeTables) -> D) -> After<D> {
    let tables = plain.tables();
    let mut frame = plain.frame().build();
    // SAFETY: the frame is not touched but through the packet while that is in use.
    let packet = unsafe {
        let range = frame.as_mut_ptr_range();
        Packet::new(range.start as usize, range.end as usize, plain.ingress)
    };
    let decision = path(packet, &tables);
    After {
        decision,
        frame,
        v4: sorted::<V4>(&tables.v4),
        v6: sorted::<V6>(&tables.v6),
        stats: tables.backend_stats(1),
    }
}

/// The hot path's decision, if it takes the packet.
fn agree(plain: &Plain) -> Result<Option<Result<Action, Reason>>, TestCaseError> {
    let After { decision, frame, v4, v6, stats } = run(plain, known::forward);
    if let Some(decision) = decision {
        prop_assert_eq!(
            After { decision, frame, v4, v6, stats },
            run(plain, |packet, tables| { examine(packet, tables, true) })
        );
    }
    Ok(decision)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn on_plain_packets(plain in plain()) {
        agree(&plain)?;
    }
}

#[test]
fn and_the_hot_path_takes_nearly_all() {
    let ordinary = Plain {
        v6: false,
        udp: false,
        checksum: true,
        from_client: true,
        push: false,
        ttl: 64,
        // A datagram that is shorter than a TCP header is looked at closer.
        payload: vec![1; 12],
        numbers: (1, 2),
        link: 0,
        ingress: INGRESS,
        stranger: 0,
        backend_flags: IN_USE | FORWARD | RESOLVED,
        egress: INGRESS,
    };
    for v6 in [false, true] {
        for udp in [false, true] {
            for from_client in [false, true] {
                let plain = Plain { v6, udp, from_client, ..ordinary.clone() };
                let taken = agree(&plain).expect("the same result");
                assert_eq!(taken, Some(Ok(Action::Transmit)), "{plain:?}");
            }
        }
    }
}
