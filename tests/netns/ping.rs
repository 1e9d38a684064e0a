//! One ICMP echo; machines for tests need not have `ping`.

use std::net::{IpAddr, UdpSocket};

use anyhow::{Context as _, Result};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use xtask::lab::Host;

use crate::load::PATIENCE;

/// An echo request with identifier and number 0 (RFC 792). With `ICMPv6` (RFC 4443) the type is
/// another, and the kernel fills the checksum in.
const REQUEST: [u8; 8] = [8, 0, 0xf7, 0xff, 0, 0, 0, 0];
const REQUEST_V6: [u8; 8] = [128, 0, 0, 0, 0, 0, 0, 0];

const REPLY: u8 = 0;
const REPLY_V6: u8 = 129;

/// Bytes of an IPv4 header without options, which a raw socket shows.
const IPV4_HEADER: usize = 20;

/// Waits until the address has answered an echo request from the host.
pub(crate) fn ping(host: &Host, address: IpAddr) -> Result<()> {
    let (family, protocol, request, header, reply) = if address.is_ipv4() {
        (AddressFamily::Inet, SockProtocol::Icmp, REQUEST, IPV4_HEADER, REPLY)
    } else {
        (AddressFamily::Inet6, SockProtocol::IcmpV6, REQUEST_V6, 0, REPLY_V6)
    };
    host.within(|| {
        let raw = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
            .context("open a raw socket")?;
        // What a datagram's socket does is all that is needed of it.
        let socket = UdpSocket::from(raw);
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send_to(&request, (address, 0)).with_context(|| format!("ping {address}"))?;
        let mut packet = [0; 128];
        loop {
            let (length, from) = socket
                .recv_from(&mut packet)
                .with_context(|| format!("wait until {address} answers a ping"))?;
            if from.ip() == address && packet[..length].get(header) == Some(&reply) {
                return Ok(());
            }
        }
    })?
}
