//! The client's SYN, rebuilt from what the kernel program noted of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lb_common::flow::{FlowKey4, FlowKey6, HalfOpen4, HalfOpen6, MAX_TCP_OPTIONS, Syn};

const TCP: u8 = 6;

/// A connection that waits for its backend's answer.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// The client.
    pub client: SocketAddr,
    /// The floating address and port that it connects to.
    pub listen: SocketAddr,
    /// The client's MAC address, or its router's.
    pub client_mac: [u8; 6],
    /// Our MAC address on its side.
    pub local_mac: [u8; 6],
    /// The interface on its side.
    pub ifindex: u32,
    /// Identifier of the backend.
    pub backend: u32,
    /// State bits of the entry.
    pub state: u32,
    /// Its SYN.
    pub syn: Syn,
}

impl Waiting {
    /// The SYN as the client sent it, but for what nobody kept: IPv4's identification, and IPv6's flow
    /// label.
    #[must_use]
    pub fn frame(&self) -> Vec<u8> {
        let syn = &self.syn;
        let options = &syn.options[..usize::from(syn.options_len).min(MAX_TCP_OPTIONS)];
        let tcp_len = (20 + options.len()) as u16;
        // What was noted is the time to live after our own hop.
        let ttl = syn.ttl.saturating_add(1);
        let mut frame = Vec::with_capacity(14 + 40 + usize::from(tcp_len));
        frame.extend(self.local_mac);
        frame.extend(self.client_mac);
        let mut pseudo = Vec::new();
        match (self.client.ip(), self.listen.ip()) {
            (IpAddr::V4(client), IpAddr::V4(listen)) => {
                frame.extend([0x08, 0x00]);
                let mut header = [0; 20];
                header[0] = 0x45;
                header[1] = syn.tos;
                header[2..4].copy_from_slice(&(20 + tcp_len).to_be_bytes());
                header[6] = 0x40; // do not fragment
                header[8] = ttl;
                header[9] = TCP;
                header[12..16].copy_from_slice(&client.octets());
                header[16..20].copy_from_slice(&listen.octets());
                let check = checksum(&[&header]);
                header[10..12].copy_from_slice(&check);
                frame.extend(header);
                pseudo.extend(client.octets());
                pseudo.extend(listen.octets());
            }
            (client, listen) => {
                let (client, listen) = (v6(client), v6(listen));
                frame.extend([0x86, 0xdd, 0x60 | syn.tos >> 4, syn.tos << 4, 0, 0]);
                frame.extend(tcp_len.to_be_bytes());
                frame.extend([TCP, ttl]);
                frame.extend(client.octets());
                frame.extend(listen.octets());
                pseudo.extend(client.octets());
                pseudo.extend(listen.octets());
            }
        }
        pseudo.extend([0, TCP]);
        pseudo.extend(tcp_len.to_be_bytes());
        let mut tcp = Vec::with_capacity(usize::from(tcp_len));
        tcp.extend(self.client.port().to_be_bytes());
        tcp.extend(self.listen.port().to_be_bytes());
        tcp.extend(syn.seq);
        tcp.extend([0; 4]);
        tcp.extend([((tcp_len / 4) << 4) as u8 | syn.bits >> 4, syn.flags]);
        tcp.extend(syn.window);
        tcp.extend([0; 4]);
        tcp.extend(options);
        let check = checksum(&[&pseudo, &tcp]);
        tcp[16..18].copy_from_slice(&check);
        frame.extend(tcp);
        frame
    }
}

fn v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

/// The checksum of RFC 1071 over parts of an even length each.
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let mut sum = 0_u32;
    for pair in parts.iter().flat_map(|part| part.chunks(2)) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// Key of a half-open table, of either family.
pub(super) trait Key: aya::Pod {
    /// Its value.
    type Half: aya::Pod;
    /// The connection, by the backend's half.
    fn waiting(&self, half: &Self::Half) -> Waiting;
    /// Key of the client's half.
    fn client(&self, waiting: &Waiting) -> Self;
}

macro_rules! key {
    ($key:ident, $half:ty, $address:ty, $v:ident) => {
        impl Key for $key {
            type Half = $half;

            fn waiting(&self, half: &$half) -> Waiting {
                let flow = &half.flow;
                let socket = |address, port| {
                    SocketAddr::new(
                        IpAddr::from(<$address>::from(address)),
                        u16::from_be_bytes(port),
                    )
                };
                Waiting {
                    client: socket(flow.new_dst, flow.new_dst_port),
                    listen: socket(flow.new_src, flow.new_src_port),
                    client_mac: flow.client_mac(),
                    local_mac: flow.local_mac(),
                    ifindex: flow.client_ifindex,
                    backend: flow.backend,
                    state: flow.state,
                    syn: half.syn,
                }
            }

            fn client(&self, waiting: &Waiting) -> Self {
                let octets = |address| match address {
                    IpAddr::$v(address) => address.octets(),
                    // Both come from a key of this family.
                    _ => Default::default(),
                };
                Self {
                    src: octets(waiting.client.ip()),
                    dst: octets(waiting.listen.ip()),
                    src_port: waiting.client.port().to_be_bytes(),
                    dst_port: waiting.listen.port().to_be_bytes(),
                    protocol: self.protocol,
                    reserved: [0; 3],
                }
            }
        }
    };
}

key!(FlowKey4, HalfOpen4, Ipv4Addr, V4);
key!(FlowKey6, HalfOpen6, Ipv6Addr, V6);

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(client: &str, listen: &str, options: &[u8]) -> Waiting {
        let mut syn = Syn {
            seq: [1, 2, 3, 4],
            window: [0xfa, 0xf0],
            flags: 0xc2,
            options_len: options.len() as u8,
            ttl: 63,
            tos: 0xb8,
            ..Syn::ZERO
        };
        syn.options[..options.len()].copy_from_slice(options);
        Waiting {
            client: client.parse().unwrap(),
            listen: listen.parse().unwrap(),
            client_mac: [2, 0, 0, 0, 0, 9],
            local_mac: [2, 0, 0, 0, 0, 1],
            ifindex: 2,
            backend: 1,
            state: 0,
            syn,
        }
    }

    #[test]
    fn a_frame_is_whole() {
        for (client, listen, ip) in [
            ("192.0.2.9:40000", "192.0.2.100:80", 20),
            ("[2001:db8::9]:40000", "[2001:db8::100]:80", 40),
        ] {
            for options in [&[][..], &[2, 4, 5, 0xb4], &[1; 40]] {
                let frame = waiting(client, listen, options).frame();
                let l4 = 14 + ip;
                assert_eq!(frame.len(), l4 + 20 + options.len());
                assert_eq!(frame[..12], [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9]);
                let tcp = &frame[l4..];
                assert_eq!(tcp[..4], [0x9c, 0x40, 0, 80]);
                assert_eq!(tcp[4..8], [1, 2, 3, 4]);
                assert_eq!(usize::from(tcp[12] >> 4) * 4, tcp.len());
                assert_eq!(tcp[13], 0xc2);
                assert_eq!(&tcp[20..], options);
                // A right checksum makes the sum over all zero.
                let (addresses, ttl) = if ip == 20 {
                    (&frame[26..34], frame[22])
                } else {
                    (&frame[22..54], frame[21])
                };
                assert_eq!(ttl, 64);
                let length = (tcp.len() as u16).to_be_bytes();
                assert_eq!(checksum(&[addresses, &[0, TCP], &length, tcp]), [0, 0]);
                if ip == 20 {
                    assert_eq!(checksum(&[&frame[14..34]]), [0, 0]);
                }
            }
        }
    }

    #[test]
    fn the_clients_half_has_its_own_tuple() {
        let key = FlowKey4 {
            src: [192, 0, 2, 21],
            dst: [192, 0, 2, 100],
            src_port: 8080_u16.to_be_bytes(),
            dst_port: 40_000_u16.to_be_bytes(),
            protocol: TCP,
            reserved: [0; 3],
        };
        let client = key.client(&waiting("192.0.2.9:40000", "192.0.2.100:80", &[]));
        assert_eq!((client.src, client.dst), ([192, 0, 2, 9], [192, 0, 2, 100]));
        assert_eq!((client.src_port, client.dst_port), ([0x9c, 0x40], [0, 80]));
    }
}
