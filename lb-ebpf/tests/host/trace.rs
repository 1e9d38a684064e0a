//! What a trace and a sample show of a packet.

use lb_common::trace::{SAMPLE_EVERY, Stage};
use lb_ebpf::{
    fake::{Frame, Net},
    family::{Address, Ports, Tuple},
    packet::{
        Packet, load128,
        tcp_flags::{ACK, FIN, SYN},
    },
    sample::count_steered,
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
        assert_eq!(stage(&host.up(&connection, ACK)), Stage::Known);
        assert_eq!(stage(&host.down(&connection, ACK)), Stage::Known);
        assert_eq!(stage(&host.up(&connection, ACK | FIN)), Stage::Follow);
        assert_eq!(stage(&host.up(&connection, ACK).ttl(1)), Stage::Follow, "refused there");
        assert_eq!(stage(&Frame::tcp(net.client, net.nat(9), ACK)), Stage::Connect, "no service");
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
        let mapped = |socket: std::net::SocketAddr| match socket.ip() {
            std::net::IpAddr::V4(v4) => load128(&v4.to_ipv6_mapped().octets()),
            std::net::IpAddr::V6(v6) => load128(&v6.octets()),
        };
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

#[test]
fn one_steered_packet_in_so_many_is_sampled() {
    let net = Net::v4();
    let host = Host::single(net);
    let tuple = Tuple {
        src: u32::from_ne_bytes([192, 0, 2, 9]),
        dst: u32::from_ne_bytes([192, 0, 2, 100]),
        ports: Ports::new([0x9c, 0x40], [0, 80]),
    };
    for _ in 0..2 * SAMPLE_EVERY + 5 {
        count_steered(&host.tables, tuple, 6, 1, 60);
    }
    let stats = host.tables.backend_stats(1);
    assert_eq!(stats.forward_packets, 2 * SAMPLE_EVERY + 5);
    assert_eq!(stats.forward_bytes, 60 * stats.forward_packets);
    let samples = host.tables.take_samples();
    assert_eq!(samples.len(), 2);
    assert_eq!((samples[0].src, samples[0].dst), (tuple.src.mapped(), tuple.dst.mapped()));
    assert_eq!(samples[0].ports, [0x9c, 0x40, 0, 80]);
    assert_eq!((samples[0].backend, samples[0].bytes, samples[0].protocol), (1, 60, 6));
}
