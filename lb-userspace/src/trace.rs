//! Traces: what the data path does with single packets, and why.
//!
//! While at least one runs, the kernel has the program's second variant in force, which records the
//! packets that the traces want ([`crate::dataplane::Tracer`]). [`hub`] owns that: it begins and ends
//! traces, and hands each its records. [`show`] gives the records names; [`capture`] writes them as
//! pcapng.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub mod capture;
pub mod hub;
pub mod show;

/// What an operator wants to see. All that is given must match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Source of the packet as it comes.
    pub from: Option<Prefix>,
    /// Destination as it comes.
    pub to: Option<Prefix>,
    /// Any address, as it comes and as it leaves.
    pub host: Option<Prefix>,
    /// Name of the service.
    pub service: Option<String>,
    /// Name of the backend.
    pub backend: Option<String>,
    /// Why it is not forwarded.
    pub reason: Option<ReasonWanted>,
    /// One packet in so many; 0 and 1 for all.
    pub one_in: u32,
}

/// Addresses that begin alike: `192.0.2.0/24`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// The address.
    pub address: IpAddr,
    /// Bits that count.
    pub length: u8,
}

/// A text is no prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no address and no network: write 192.0.2.9, 192.0.2.0/24 or 2001:db8::/32")]
pub struct NoPrefix(String);

impl FromStr for Prefix {
    type Err = NoPrefix;

    fn from_str(text: &str) -> Result<Self, NoPrefix> {
        let wrong = || NoPrefix(text.to_owned());
        let (address, length) =
            text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let length = length.map_or(Ok(most), |length| length.parse().map_err(|_| wrong()))?;
        if length > most { Err(wrong()) } else { Ok(Self { address, length }) }
    }
}

impl Prefix {
    /// Address and mask as in [`lb_common::trace::TraceFilter`].
    fn words(self) -> ([u8; 16], [u8; 16]) {
        let (address, length) = match self.address {
            IpAddr::V4(v4) => (v4.to_ipv6_mapped(), self.length + 96),
            IpAddr::V6(v6) => (v6, self.length),
        };
        let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
        (address.octets(), mask.to_be_bytes())
    }
}

/// Why packets are not forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReasonWanted {
    /// For this reason.
    This(lb_common::reason::Reason),
    /// For any.
    Any,
}

/// The word for [`ReasonWanted::Any`].
const ANY: &str = "any";

/// A text is no reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no reason {name}; there are: {ANY}, {known}")]
pub struct NoReason {
    name: String,
    known: String,
}

impl FromStr for ReasonWanted {
    type Err = NoReason;

    fn from_str(name: &str) -> Result<Self, NoReason> {
        use lb_common::reason::Reason;
        if name == ANY {
            return Ok(Self::Any);
        }
        let found = Reason::ALL.iter().find(|reason| reason.label() == name);
        found.map(|reason| Self::This(*reason)).ok_or_else(|| {
            let known: Vec<_> = Reason::ALL.iter().map(|reason| reason.label()).collect();
            NoReason { name: name.to_owned(), known: known.join(", ") }
        })
    }
}

/// A line of the answer to a trace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// The trace is in force: packets that come from now on are shown. The first line.
    Began,
    /// A packet.
    Packet(Box<Packet>),
    /// Packets in all that were wanted and could not be shown, when there are more than before.
    Lost(u64),
}

/// A packet and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Packet {
    /// When it came.
    pub time: Timestamp,
    /// Number of the CPU that had it.
    pub cpu: u32,
    /// Interface that it came by.
    pub interface: String,
    /// Step of the data path that decided: the labels of [`lb_common::trace::Stage`].
    pub stage: String,
    /// `transmit`, `redirect`, `pass` or `drop`.
    pub action: String,
    /// Why it was not forwarded: the labels of [`lb_common::reason::Reason`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether it was forwarded `to` or `from` its backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forwarded: Option<Direction>,
    /// Name of the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Name of the backend; of one that is configured no longer, its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// As it came.
    pub before: Frame,
    /// As it left; none if it ended here, or went on to the node's own stack as it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Frame>,
}

/// Which way a packet was forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// To a backend.
    To,
    /// From a backend.
    From,
}

/// A packet at one end of the data path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// `tcp`, `udp`, `icmp`, `icmpv6`, or the number; none if it is not IP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Source; its port is 0 where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SocketAddr>,
    /// Destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<SocketAddr>,
    /// TCP's control bits: `SYN ACK`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub flags: String,
    /// Length of the frame, bytes.
    pub length: u32,
    /// Its first bytes in hexadecimal, if they were asked for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub bytes: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_an_address_under_a_mask() {
        let words = |text: &str| text.parse::<Prefix>().unwrap().words();
        let (address, mask) = words("192.0.2.128/25");
        assert_eq!(&address[10..], [0xff, 0xff, 192, 0, 2, 128]);
        assert_eq!(mask, [[0xff; 15].as_slice(), &[0x80]].concat()[..]);
        assert_eq!(words("192.0.2.9").1, [0xff; 16]);
        assert_eq!(words("0.0.0.0/0").1, [[0xff; 12].as_slice(), &[0; 4]].concat()[..]);
        assert_eq!(words("::/0").1, [0; 16]);
        assert_eq!(words("2001:db8::/33").1[..6], [0xff, 0xff, 0xff, 0xff, 0x80, 0]);
        for wrong in ["", "host", "192.0.2.0/33", "::/129", "192.0.2.0/-1", "192.0.2.0/", "1.2.3"] {
            assert!(wrong.parse::<Prefix>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn reasons_go_by_their_labels() {
        use lb_common::reason::Reason;
        assert_eq!("no_flow".parse(), Ok(ReasonWanted::This(Reason::NoFlow)));
        assert_eq!("any".parse(), Ok(ReasonWanted::Any));
        let error = "slow".parse::<ReasonWanted>().unwrap_err().to_string();
        assert!(error.contains("slow") && error.contains("ports_exhausted"), "{error}");
    }
}
