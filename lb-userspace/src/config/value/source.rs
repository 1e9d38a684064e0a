//! Networks that clients connect from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use toml::{Spanned, de::DeValue};

use super::address::ip;
use crate::config::{
    read::{Read, string},
    report::Findings,
};

/// A network, or one address: `198.51.100.0/24`, `2001:db8::9`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::config) struct Source {
    /// Its first address.
    pub(in crate::config) address: IpAddr,
    /// Length of its prefix in bits.
    pub(in crate::config) length: u8,
}

impl Read for Source {
    fn read(value: &Spanned<DeValue<'_>>, key: &str, findings: &mut Findings) -> Option<Self> {
        let text = string(value, key, "a network", findings)?;
        let span = value.span();
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address = ip(address, span.clone(), key, findings)?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let number = match length {
            None => Some(most),
            Some(length) => Some(length)
                .filter(|length| length.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|length| length.parse().ok())
                .filter(|length| *length <= most),
        };
        let Some(length) = number else {
            let length = length.unwrap_or_default().escape_debug();
            findings
                .error(span, format!("`{key}` has {address} with the prefix length `{length}`"))
                .help(format!("write 0 to {most}, such as \"{address}/{most}\""));
            return None;
        };
        let first = first(address, length);
        if first != address {
            findings
                .error(span, format!("`{key}` has {address}/{length}, which is no network"))
                .help(format!("write \"{first}/{length}\", or \"{address}\" for one address"));
            return None;
        }
        Some(Self { address, length })
    }
}

/// The first address of the network that `address` is in.
fn first(address: IpAddr, length: u8) -> IpAddr {
    let length = u32::from(length);
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
            Ipv4Addr::from_bits(v4.to_bits() & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
            Ipv6Addr::from_bits(v6.to_bits() & mask).into()
        }
    }
}
