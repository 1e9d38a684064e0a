//! Addresses: of hosts, with a port, with a prefix length.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::Range,
};

use toml::{Spanned, de::DeValue};

use crate::config::{
    read::{Read, string},
    report::Findings,
};

/// An IP address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::config) struct Address(pub(in crate::config) IpAddr);

impl Read for Address {
    fn read(value: &Spanned<DeValue<'_>>, key: &str, findings: &mut Findings) -> Option<Self> {
        let text = string(value, key, "an IP address", findings)?;
        let address = ip(text, value.span(), key, findings)?;
        Some(Self(address))
    }
}

/// An IP address and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::config) struct Endpoint(pub(in crate::config) SocketAddr);

const ENDPOINT_HELP: &str =
    "write address and port: \"192.0.2.21:8080\" or \"[2001:db8::21]:8080\"";

impl Read for Endpoint {
    fn read(value: &Spanned<DeValue<'_>>, key: &str, findings: &mut Findings) -> Option<Self> {
        let text = string(value, key, "an address with a port", findings)?;
        let span = value.span();
        let Ok(endpoint) = text.parse::<SocketAddr>() else {
            endpoint_mistake(text, span, key, findings);
            return None;
        };
        if endpoint.port() == 0 {
            findings
                .error(span, format!("`{key}` has port 0"))
                .help("write a port from 1 to 65535");
            return None;
        }
        if let SocketAddr::V6(v6) = endpoint
            && v6.scope_id() != 0
        {
            findings
                .error(span, format!("`{key}` names an interface after `%`"))
                .help("write an address that is the same on every node, without `%`");
            return None;
        }
        plain(endpoint.ip(), span, key, findings)?;
        Some(Self(endpoint))
    }
}

/// Says what is wrong with a text that is no address with a port.
fn endpoint_mistake(text: &str, span: Range<usize>, key: &str, findings: &mut Findings) {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse::<IpAddr>() {
        let example = SocketAddr::new(address, 80);
        findings
            .error(span, format!("`{key}` has no port"))
            .help(format!("add the port, such as \"{example}\""));
        return;
    }
    if let Some((host, port)) = text.rsplit_once(':') {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.parse::<IpAddr>().is_ok() {
            findings
                .error(span, format!("`{key}` has `{}` as its port", port.escape_debug()))
                .help("write a port from 1 to 65535");
            return;
        }
    }
    no_address(text, span, key, ENDPOINT_HELP, findings);
}

/// An address on a network: `192.0.2.100/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::config) struct Prefix {
    /// The address.
    pub(in crate::config) address: IpAddr,
    /// Length of the network's prefix, in bits; none if it is wrong, which has been reported. The
    /// address is kept, so that a service on it is not said to be without one.
    pub(in crate::config) length: Option<u8>,
}

impl Read for Prefix {
    fn read(value: &Spanned<DeValue<'_>>, key: &str, findings: &mut Findings) -> Option<Self> {
        let text = string(value, key, "an address with a prefix length", findings)?;
        let span = value.span();
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address = ip(address, span.clone(), key, findings)?;
        let (most, usual) = if address.is_ipv4() { (32, 24) } else { (128, 64) };
        let Some(length) = length else {
            findings
                .error(span, format!("`{key}` has {address} without its prefix length"))
                .help(format!("add it, such as \"{address}/{usual}\""));
            return Some(Self { address, length: None });
        };
        let number = Some(length)
            .filter(|length| length.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|length| length.parse().ok())
            .filter(|length| (1..=most).contains(length));
        if number.is_none() {
            let length = length.escape_debug();
            findings
                .error(span, format!("`{key}` has {address} with the prefix length `{length}`"))
                .help(format!("write 1 to {most}, such as \"{address}/{usual}\""));
        }
        Some(Self { address, length: number })
    }
}

impl Prefix {
    /// The last address of an IPv4 network with broadcasts.
    pub(in crate::config) fn broadcast(&self) -> Option<Ipv4Addr> {
        let (address, mask) = self.ipv4()?;
        Some(Ipv4Addr::from_bits(address.to_bits() | !mask))
    }

    /// The first address of an IPv4 network with broadcasts.
    pub(in crate::config) fn network(&self) -> Option<Ipv4Addr> {
        let (address, mask) = self.ipv4()?;
        Some(Ipv4Addr::from_bits(address.to_bits() & mask))
    }

    /// Address and mask; RFC 3021: a /31 has neither a network address nor a broadcast.
    fn ipv4(&self) -> Option<(Ipv4Addr, u32)> {
        match (self.address, self.length?) {
            (IpAddr::V4(address), length @ 1..=30) => {
                Some((address, u32::MAX << (32 - u32::from(length))))
            }
            _ => None,
        }
    }
}

/// Why no host can have this address.
pub(in crate::config) fn unfit(address: IpAddr) -> Option<&'static str> {
    if address.is_unspecified() {
        Some("the unspecified address")
    } else if address.is_multicast() {
        Some("a multicast address")
    } else if address == IpAddr::V4(Ipv4Addr::BROADCAST) {
        Some("the broadcast address")
    } else {
        None
    }
}

pub(super) fn ip(
    text: &str,
    span: Range<usize>,
    key: &str,
    findings: &mut Findings,
) -> Option<IpAddr> {
    let Ok(address) = text.parse() else {
        no_address(
            text,
            span,
            key,
            "write an address such as 192.0.2.11 or 2001:db8::11",
            findings,
        );
        return None;
    };
    plain(address, span, key, findings)
}

/// The maps of the kernel hold IPv4 addresses as IPv4-mapped IPv6 addresses: written as one, an
/// address would be of one family here and of the other there.
fn plain(
    address: IpAddr,
    span: Range<usize>,
    key: &str,
    findings: &mut Findings,
) -> Option<IpAddr> {
    let mapped = match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped(),
        IpAddr::V4(_) => None,
    };
    if let Some(v4) = mapped {
        findings
            .error(span, format!("`{key}` has an IPv4 address in IPv6's form"))
            .help(format!("write it as {v4}"));
        return None;
    }
    Some(address)
}

fn no_address(text: &str, span: Range<usize>, key: &str, help: &str, findings: &mut Findings) {
    let host = text.rsplit_once(':').map_or(text, |(host, _)| host);
    let looks_like_name = host.contains(char::is_alphabetic)
        && !host.contains(':')
        && host.parse::<Ipv6Addr>().is_err();
    let (message, help) = if looks_like_name {
        (
            format!("`{key}` has the name `{}`, but names are not looked up", host.escape_debug()),
            help.to_owned(),
        )
    } else {
        (format!("`{key}` is no address: `{}`", text.escape_debug()), help.to_owned())
    };
    findings.error(span, message).help(help);
}
