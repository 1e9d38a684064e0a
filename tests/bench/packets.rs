//! The packets that go in, and the check of those that come out.

use std::net::{IpAddr, SocketAddr};

use anyhow::{bail, ensure};

use crate::plan::PACKET_LEN;

/// A packet.
pub(crate) type Packet = [u8; PACKET_LEN];

/// A MAC address.
pub(crate) type Mac = [u8; 6];

/// TCP's control bits, or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carried {
    Tcp(u8),
    Udp,
}

/// Control bits.
pub(crate) const SYN: u8 = 2;
/// Control bits.
pub(crate) const RST: u8 = 4;
/// Control bits.
pub(crate) const ACK: u8 = 16;

/// Time to live of packets that go in.
const TTL: u8 = 64;

const ETHERNET_LEN: usize = 14;

impl Carried {
    /// IP protocol number.
    pub(crate) const fn protocol(self) -> u8 {
        match self {
            Self::Tcp(_) => 6,
            Self::Udp => 17,
        }
    }
}

/// Where things are in a packet.
#[derive(Clone, Copy, Debug)]
struct Layout {
    v6: bool,
    protocol: u8,
}

impl Layout {
    fn of(packet: &[u8]) -> Self {
        let v6 = packet[12..14] == [0x86, 0xdd];
        Self { v6, protocol: if v6 { packet[20] } else { packet[23] } }
    }

    fn l4(self) -> usize {
        ETHERNET_LEN + if self.v6 { 40 } else { 20 }
    }

    fn addresses(self) -> (usize, usize) {
        if self.v6 { (22, 16) } else { (26, 4) }
    }

    fn ttl(self) -> usize {
        if self.v6 { 21 } else { 22 }
    }

    fn l4_check(self) -> usize {
        self.l4() + if self.protocol == 6 { 16 } else { 6 }
    }
}

/// A segment or datagram from `src` to `dst` with payload to the packet's end.
pub(crate) fn segment(
    macs: (Mac, Mac),
    src: SocketAddr,
    dst: SocketAddr,
    carried: Carried,
) -> Packet {
    let mut packet = [0; PACKET_LEN];
    let layout = Layout { v6: src.is_ipv6(), protocol: carried.protocol() };
    packet[0..6].copy_from_slice(&macs.1);
    packet[6..12].copy_from_slice(&macs.0);
    let l4 = layout.l4();
    if layout.v6 {
        packet[12..14].copy_from_slice(&[0x86, 0xdd]);
        packet[14] = 0x60;
        packet[18..20].copy_from_slice(&((PACKET_LEN - l4) as u16).to_be_bytes());
        packet[20] = layout.protocol;
    } else {
        packet[12..14].copy_from_slice(&[0x08, 0x00]);
        packet[14] = 0x45;
        packet[16..18].copy_from_slice(&((PACKET_LEN - ETHERNET_LEN) as u16).to_be_bytes());
        packet[20] = 0x40;
        packet[23] = layout.protocol;
    }
    packet[layout.ttl()] = TTL;
    set_addresses(&mut packet, layout, src, dst);
    for (at, byte) in packet.iter_mut().enumerate().skip(l4 + 4) {
        *byte = at as u8;
    }
    match carried {
        Carried::Tcp(flags) => packet[l4 + 12..l4 + 14].copy_from_slice(&[5 << 4, flags]),
        Carried::Udp => {
            packet[l4 + 4..l4 + 6].copy_from_slice(&((PACKET_LEN - l4) as u16).to_be_bytes());
        }
    }
    if !layout.v6 {
        packet[24..26].fill(0);
        let check = !ip_sum(&packet);
        packet[24..26].copy_from_slice(&check.to_be_bytes());
    }
    let at = layout.l4_check();
    packet[at..at + 2].fill(0);
    let check = !l4_sum(&packet);
    packet[at..at + 2].copy_from_slice(&check.to_be_bytes());
    packet
}

/// An ARP request.
pub(crate) fn arp(macs: (Mac, Mac)) -> Packet {
    let mut packet = [0; PACKET_LEN];
    packet[0..6].copy_from_slice(&macs.1);
    packet[6..12].copy_from_slice(&macs.0);
    packet[12..22].copy_from_slice(&[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    packet
}

fn set_addresses(packet: &mut [u8], layout: Layout, src: SocketAddr, dst: SocketAddr) {
    let (at, len) = layout.addresses();
    for (at, address) in [(at, src.ip()), (at + len, dst.ip())] {
        match address {
            IpAddr::V4(address) => packet[at..at + 4].copy_from_slice(&address.octets()),
            IpAddr::V6(address) => packet[at..at + 16].copy_from_slice(&address.octets()),
        }
    }
    let l4 = layout.l4();
    packet[l4..l4 + 2].copy_from_slice(&src.port().to_be_bytes());
    packet[l4 + 2..l4 + 4].copy_from_slice(&dst.port().to_be_bytes());
}

/// Source and destination.
pub(crate) fn endpoints(packet: &[u8]) -> (SocketAddr, SocketAddr) {
    let layout = Layout::of(packet);
    let (at, len) = layout.addresses();
    let l4 = layout.l4();
    let endpoint = |at: usize, port: usize| {
        let bytes = &packet[at..at + len];
        let address = match <[u8; 16]>::try_from(bytes) {
            Ok(v6) => IpAddr::from(v6),
            Err(_) => IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]]),
        };
        SocketAddr::new(address, u16::from_be_bytes([packet[port], packet[port + 1]]))
    };
    (endpoint(at, l4), endpoint(at + len, l4 + 2))
}

/// Checks that `output` is `input` after translation: these addresses, one hop less, and checksums
/// that are exactly as right or as wrong as they were.
pub(crate) fn check_translated(
    input: &Packet,
    output: &[u8],
    macs: (Mac, Mac),
    src: SocketAddr,
    dst: SocketAddr,
) -> anyhow::Result<()> {
    let layout = Layout::of(input);
    let mut expected = *input;
    set_addresses(&mut expected, layout, src, dst);
    expected[0..6].copy_from_slice(&macs.1);
    expected[6..12].copy_from_slice(&macs.0);
    expected[layout.ttl()] -= 1;
    let mut masked = output.to_vec();
    ensure!(masked.len() == expected.len(), "a packet of {} bytes came out", masked.len());
    let mut checks = vec![layout.l4_check()];
    if !layout.v6 {
        checks.push(24);
    }
    for at in checks {
        masked[at..at + 2].fill(0);
        expected[at..at + 2].fill(0);
    }
    if masked != expected {
        bail!("came out:  {output:02x?}\nexpected:  {expected:02x?} (checksums aside)");
    }
    ensure!(same(l4_sum(input), l4_sum(output)), "the TCP or UDP checksum is wrong: {output:02x?}");
    ensure!(
        layout.v6 || same(ip_sum(input), ip_sum(output)),
        "the checksum of the IP header is wrong: {output:02x?}"
    );
    Ok(())
}

/// An outer header: from us to a backend.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outer {
    pub(crate) macs: (Mac, Mac),
    pub(crate) src: IpAddr,
    pub(crate) gue: bool,
}

/// Checks that `output` is `input` inside another packet, of the same version, to any of the backends.
pub(crate) fn check_inside(input: &Packet, output: &[u8], outer: Outer) -> anyhow::Result<()> {
    let layout = Layout::of(input);
    let (header, inside) = if layout.v6 { (40, 41) } else { (20, 4) };
    let (grown, carried) = if outer.gue { (header + 8, 17) } else { (header, inside) };
    ensure!(output.len() == PACKET_LEN + grown, "a packet of {} bytes came out", output.len());
    let (front, inner) = output.split_at(ETHERNET_LEN + grown);
    ensure!(inner == &input[ETHERNET_LEN..], "the inner packet changed: {inner:02x?}");
    let of = Layout { v6: layout.v6, protocol: carried };
    ensure!(
        front[0..6] == outer.macs.1 && front[6..12] == outer.macs.0,
        "to {:02x?}",
        &front[..12]
    );
    ensure!(front[12..14] == input[12..14], "the type is {:02x?}", &front[12..14]);
    ensure!(Layout::of(front).protocol == carried && front[of.ttl()] == 64, "came: {front:02x?}");
    let (at, len) = of.addresses();
    let src = match outer.src {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    ensure!(front[at..at + len] == src, "from {:02x?}", &front[at..at + len]);
    let announced = if layout.v6 {
        u16::from_be_bytes([front[18], front[19]])
    } else {
        ensure!(same(ip_sum(front), 0xffff), "the outer checksum is wrong: {front:02x?}");
        u16::from_be_bytes([front[16], front[17]]) - 20
    };
    let expected = PACKET_LEN - ETHERNET_LEN + grown - header;
    ensure!(usize::from(announced) == expected, "{announced} bytes are announced");
    Ok(())
}

/// Checks that `output` is `input` with these MAC addresses (source, destination).
pub(crate) fn check_direct(input: &Packet, output: &[u8], macs: (Mac, Mac)) -> anyhow::Result<()> {
    let mut expected = *input;
    expected[0..6].copy_from_slice(&macs.1);
    expected[6..12].copy_from_slice(&macs.0);
    ensure!(output == expected, "came out: {output:02x?}");
    Ok(())
}

/// Checks that `output` is a TCP reset from `src` to `dst` with right checksums.
pub(crate) fn check_reset(output: &[u8], src: SocketAddr, dst: SocketAddr) -> anyhow::Result<()> {
    let layout = Layout::of(output);
    ensure!(output.len() == layout.l4() + 20, "a packet of {} bytes came out", output.len());
    ensure!(endpoints(output) == (src, dst), "the reset goes astray: {output:02x?}");
    ensure!(output[layout.l4() + 13] & RST != 0, "no reset: {output:02x?}");
    ensure!(same(l4_sum(output), 0xffff), "the TCP checksum is wrong: {output:02x?}");
    ensure!(layout.v6 || same(ip_sum(output), 0xffff), "the IP checksum is wrong: {output:02x?}");
    Ok(())
}

/// Two ones' complement sums: 0 and 0xffff are the same number.
fn same(a: u16, b: u16) -> bool {
    a % 0xffff == b % 0xffff
}

/// Sum over the IPv4 header.
fn ip_sum(packet: &[u8]) -> u16 {
    sum(&packet[14..34], 0)
}

/// Sum over what TCP's or UDP's checksum covers: all of the packet from the addresses on, protocol and
/// length.
fn l4_sum(packet: &[u8]) -> u16 {
    let layout = Layout::of(packet);
    let (at, len) = layout.addresses();
    let pseudo = u32::from(layout.protocol) + (packet.len() - layout.l4()) as u32;
    sum(&packet[layout.l4()..], pseudo + u32::from(sum(&packet[at..at + 2 * len], 0)))
}

/// Ones' complement sum of big-endian words.
fn sum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = start;
    for word in bytes.chunks(2) {
        sum += u32::from(word[0]) << 8 | word.get(1).map_or(0, |byte| u32::from(*byte));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: Mac = [2, 0, 0, 0, 0, 1];
    const BALANCER: Mac = [2, 0, 0, 0, 0, 2];
    const BACKEND: Mac = [2, 0, 0, 0, 0, 3];

    /// From a client, and from us to a backend: addresses of either family.
    fn ways() -> [[SocketAddr; 4]; 2] {
        [
            ["198.18.0.1:20000", "192.0.2.100:80", "192.0.2.100:20000", "203.0.113.1:8080"],
            [
                "[2001:2::1]:20000",
                "[2001:db8::100]:80",
                "[2001:db8::100]:20000",
                "[2001:db8:b::1]:8080",
            ],
        ]
        .map(|way| way.map(|address| address.parse().unwrap()))
    }

    #[test]
    fn a_translated_packet_passes_and_one_with_a_wrong_byte_does_not() {
        for [client, listen, nat, backend] in ways() {
            for carried in [Carried::Tcp(ACK), Carried::Udp] {
                let input = segment((CLIENT, BALANCER), client, listen, carried);
                let mut output = segment((BALANCER, BACKEND), nat, backend, carried);
                let layout = Layout::of(&output);
                output[layout.ttl()] -= 1;
                if !layout.v6 {
                    // One hop less is 256 less in the word, and so 256 more in its complement.
                    let check = u32::from(u16::from_be_bytes([output[24], output[25]])) + 256;
                    let check = (check & 0xffff) as u16 + (check >> 16) as u16;
                    output[24..26].copy_from_slice(&check.to_be_bytes());
                }
                let check = |output: &[u8]| {
                    check_translated(&input, output, (BALANCER, BACKEND), nat, backend)
                };
                check(&output).unwrap();
                for at in 0..output.len() {
                    let mut wrong = output;
                    wrong[at] ^= 1;
                    assert!(check(&wrong).is_err(), "{carried:?} to {backend}, byte {at}");
                }
                assert!(check(&output[..PACKET_LEN - 1]).is_err(), "a byte less");
            }
        }
    }

    #[test]
    fn a_packet_inside_another_passes_and_one_with_a_wrong_byte_does_not() {
        let [client, listen, nat, backend] = ways()[0];
        let input = segment((CLIENT, BALANCER), client, listen, Carried::Tcp(ACK));
        let macs = (BALANCER, BACKEND);
        // The outer header is that of a segment, with another length and protocol.
        let mut output = segment(macs, nat, backend, Carried::Tcp(ACK))[..34].to_vec();
        output.extend(&input[ETHERNET_LEN..]);
        output[16..18].copy_from_slice(&((PACKET_LEN - ETHERNET_LEN + 20) as u16).to_be_bytes());
        output[23] = 4;
        output[24..26].fill(0);
        let check = !ip_sum(&output);
        output[24..26].copy_from_slice(&check.to_be_bytes());
        let outer = Outer { macs, src: nat.ip(), gue: false };
        check_inside(&input, &output, outer).unwrap();
        for at in 0..output.len() {
            let mut wrong = output.clone();
            wrong[at] ^= 1;
            assert!(check_inside(&input, &wrong, outer).is_err(), "byte {at}");
        }
        assert!(check_inside(&input, &output, Outer { gue: true, ..outer }).is_err());
    }

    #[test]
    fn a_packet_with_other_mac_addresses_passes() {
        let [client, listen, ..] = ways()[1];
        let input = segment((CLIENT, BALANCER), client, listen, Carried::Udp);
        let output = segment((BALANCER, BACKEND), client, listen, Carried::Udp);
        check_direct(&input, &output, (BALANCER, BACKEND)).unwrap();
        assert!(check_direct(&input, &input, (BALANCER, BACKEND)).is_err());
    }

    #[test]
    fn addresses_and_ports_are_read_back() {
        for [client, listen, ..] in ways() {
            let packet = segment((CLIENT, BALANCER), client, listen, Carried::Udp);
            assert_eq!(endpoints(&packet), (client, listen));
        }
    }
}
