//! Counts of open connections never drift, whatever gets lost, doubled or out of order.

use std::net::SocketAddr;

use lb_common::{backend::FORWARD, service::Balance};
use lb_ebpf::{
    fake::{FakeTables, Frame, Net, run, setup::INGRESS},
    packet::tcp_flags::{ACK, FIN, RST, SYN},
    tables::Tables,
};

use crate::driver::Host;

/// Connections that are tried at the same time.
const CLIENTS: usize = 300;

/// Packets in one run.
const STEPS: u32 = 500_000;

/// A sequence of numbers from a seed (xorshift64, Marsaglia 2003).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// What a client's tuple last saw of the backend's side.
#[derive(Clone, Copy)]
struct Peer {
    backend: SocketAddr,
    id: u32,
    nat: SocketAddr,
}

fn frame_of(net: &Net, client: SocketAddr, peer: Option<Peer>, roll: u64) -> Option<Frame> {
    let forward = |flags| Some(Frame::tcp(client, net.vip, flags));
    let back = |flags| {
        let peer = peer?;
        Some(net.sent_by_backend(Frame::tcp(peer.backend, peer.nat, flags), peer.id))
    };
    match roll {
        0..=24 => forward(SYN),
        25..=44 => back(SYN | ACK),
        45..=54 => forward(ACK),
        55..=64 => back(ACK),
        65..=74 => forward(FIN | ACK),
        75..=84 => back(FIN | ACK),
        85..=88 => forward(RST),
        89..=92 => back(RST),
        93..=94 => back(RST | ACK),
        95 => forward(0),
        96 => forward(SYN | ACK),
        97 => forward(SYN | FIN),
        98 => back(SYN),
        _ => back(SYN | RST),
    }
}

fn interleave(net: Net, seed: u64) {
    let mut host = Host { net, tables: FakeTables::new(&net.setup(Balance::LeastConn)) };
    let mut numbers = Numbers(seed);
    let mut peers: Vec<Option<Peer>> = vec![None; CLIENTS];
    // Few ports, so that clients meet in them.
    let client = |index: usize| net.other_client(index as u16 / 10, 40_000 + index as u16 % 10);
    for step in 0..STEPS {
        let index = numbers.below(CLIENTS as u64) as usize;
        let roll = numbers.below(100);
        let lost = numbers.below(10) == 0;
        if let Some(frame) = frame_of(&net, client(index), peers[index], roll)
            && !lost
        {
            let (outcome, decision) = run(&frame.build(), INGRESS, &host.tables);
            if decision.is_ok() && frame.dst == net.vip {
                let id = host.backend_of(&outcome.frame);
                peers[index] = Some(Peer {
                    backend: net.backends[id as usize - 1],
                    id,
                    nat: net.nat(host.port(&outcome.frame)),
                });
            }
        }
        if numbers.below(2000) == 0 {
            let id = numbers.below(3) as u32 + 1;
            host.tables.set_flag(id, FORWARD, numbers.below(3) != 0);
        }
        if step % 1000 == 0 {
            host.tables.set_now_ns(u64::from(step) * 1_000_000);
            host.tables.bury();
            host.assert_counts_agree();
        }
    }
    host.assert_counts_agree();
    let open: u64 = (1..=3).map(|id| host.tables.active(id)).sum();
    assert!(open > 0, "the run has open connections in it");

    // All come to an end: the clients give up.
    for index in 0..CLIENTS {
        let _ = run(&Frame::tcp(client(index), net.vip, RST).build(), INGRESS, &host.tables);
    }
    assert_eq!([1, 2, 3].map(|id| host.tables.active(id)), [0; 3], "seed {seed}");
    host.assert_counts_agree();
}

#[test]
fn a_million_steps() {
    for net in Net::both() {
        let seed =
            std::env::var("BALLAST_TEST_SEED").map_or(42, |seed| seed.parse().expect("a number"));
        interleave(net, seed);
    }
}
