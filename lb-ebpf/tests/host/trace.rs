//! What a trace and a sample show of a packet.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    backend::{DIRECT, GUE, TUNNEL},
    service::Slot,
    trace::{SAMPLE_EVERY, Stage},
};
use lb_ebpf::{
    fake::{Error, FakeTables, Frame, Net, Setup, frame::VLAN, setup::steered_at},
    family::protocol,
    packet::{
        Packet, load128,
        tcp_flags::{ACK, FIN, SYN},
    },
    trace::Ends,
};

use crate::driver::Host;

#[test]
fn each_step_says_that_it_decided() {
    for net in Net::both() {
        let host = Host::single(net);
        let stage = |frame: &Frame| {
            let _ = host.run(frame);
            host.tables.last_stage()
        };
        assert_eq!(stage(&Frame::syn(net.backends[0], net.client)), Stage::Filter, "not ours");
        assert_eq!(stage(&Frame::syn(net.client, net.vip)), Stage::Connect);
        assert_eq!(stage(&Frame::syn(net.client, net.vip)), Stage::HalfOpen, "again");
        let connection = host.begin(net.other_client(3, 40_001));
        assert_eq!(stage(&host.answer(&connection)), Stage::HalfOpen);
        assert_eq!(stage(&host.up(&connection, ACK)), Stage::HalfOpen, "established by it");
        assert_eq!(stage(&host.up(&connection, ACK)), Stage::Known);
        assert_eq!(stage(&host.down(&connection, ACK)), Stage::Known);
        assert_eq!(stage(&host.up(&connection, ACK | FIN)), Stage::Follow);
        assert_eq!(stage(&host.up(&connection, ACK).ttl(1)), Stage::Follow, "refused there");
        assert_eq!(stage(&Frame::tcp(net.client, net.nat(9), ACK)), Stage::Connect, "no service");
        let spoofed = SocketAddr::new(net.vip.ip(), 4000);
        assert_eq!(stage(&Frame::tcp(spoofed, net.vip, SYN)), Stage::Admit);
        let about = Frame::tcp(net.client, net.vip, ACK).between(net.nat(9), net.backends[0]);
        let error = Frame::icmp_error(net.backends[0].ip(), Error::PortUnreachable, &about, 60);
        assert_eq!(stage(&error), Stage::Icmp);
    }
}

fn ends_of(mut bytes: Vec<u8>) -> Ends {
    let range = bytes.as_mut_ptr_range();
    // SAFETY: the buffer is not touched but through the packet while that is in use.
    let packet = unsafe { Packet::new(range.start as usize, range.end as usize, 1) };
    Ends::of(&packet)
}

#[test]
fn ends_are_read_as_far_as_a_packet_goes() {
    for net in Net::both() {
        let mapped = |socket| load128(&shown(socket));
        let tcp = Frame::tcp(net.client, net.vip, SYN | ACK).build();
        let ends = ends_of(tcp.clone());
        assert_eq!((ends.src, ends.dst), (mapped(net.client), mapped(net.vip)));
        assert_eq!((ends.protocol, ends.flags), (6, SYN | ACK));
        let [a, b, c, d] = ends.ports.to_ne_bytes();
        assert_eq!(u16::from_be_bytes([a, b]), net.client.port());
        assert_eq!(u16::from_be_bytes([c, d]), net.vip.port());
        let ends = ends_of(Frame::udp(net.client, net.vip, b"hello").build());
        assert_eq!((ends.protocol, ends.flags), (17, 0));
        assert_eq!(ends.ports.to_ne_bytes(), [a, b, c, d]);
        // Cut off anywhere: what is there is read, and nothing else.
        for len in 14..tcp.len() {
            let cut = ends_of(tcp[..len].to_vec());
            assert!(cut == Ends::NONE || cut.src == mapped(net.client), "{len}: {cut:?}");
            assert!(len >= tcp.len() - 20 || cut.ports == 0, "{len}: {cut:?}");
        }
    }
}

/// A client's socket as a sample shows it.
fn shown(socket: SocketAddr) -> [u8; 16] {
    match socket.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[test]
fn one_steered_packet_in_so_many_is_sampled() {
    let steps = [("hot", ACK, false), ("SYN", SYN, false), ("with a tag", ACK, true)];
    for net in Net::both() {
        for kind in [DIRECT, TUNNEL, TUNNEL | GUE] {
            for (step, flags, tagged) in steps {
                let net = net.steered();
                let setup = Setup::default()
                    .vip(net.vip.ip())
                    .backend(1, steered_at(net.backends[0], kind))
                    .steered(net.vip, protocol::TCP, &[Slot::of(1)]);
                let host = Host { net, tables: FakeTables::new(&setup) };
                let mut frame = Frame::tcp(net.client, net.vip, flags);
                if tagged {
                    frame = frame.vlan(VLAN, 7);
                }
                let len = frame.build().len();
                for _ in 0..2 * SAMPLE_EVERY + 5 {
                    host.forwarded(&frame);
                }
                let samples = host.tables.take_samples();
                assert_eq!(samples.len(), 2, "{kind} {step}");
                for sample in samples {
                    assert_eq!(sample.src, shown(net.client), "{kind} {step}");
                    assert_eq!(sample.dst, shown(net.vip), "{kind} {step}");
                    let [a, b, c, d] = sample.ports;
                    let ports = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
                    assert_eq!(ports, (net.client.port(), net.vip.port()), "{kind} {step}");
                    let rest = (sample.backend, sample.bytes as usize, sample.protocol);
                    assert_eq!(rest, (1, len, protocol::TCP), "{kind} {step}");
                }
            }
        }
    }
}
