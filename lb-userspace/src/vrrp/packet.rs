//! VRRP adverts as bytes: version 2 (RFC 3768) and version 3 (RFC 9568, before it 5798).
//!
//! ```text
//!        0          1       2          3         4 – 5                    6 – 7      8 …
//! v2  0x21        VRID  priority  addresses  authentication, seconds  checksum   IPv4 addresses,
//!                                                                                8 bytes of password
//! v3  0x31        VRID  priority  addresses  centiseconds (12 bits)   checksum   addresses
//! ```
//!
//! Pure: bytes in, an [`Advert`] or a named [`Refusal`] out. The IP header is the socket's business;
//! what of it matters here is the [`Envelope`].

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

#[cfg(test)]
mod tests;

/// IP protocol number (RFC 9568 §5.1.1.4).
pub const PROTOCOL: u8 = 112;

/// TTL or hop limit of every advert that is sent by multicast; others came through a router (RFC 9568
/// §5.1.1.3).
pub const HOP_LIMIT: u8 = 255;

/// Where adverts go over IPv4 (RFC 9568 §5.1.1.2).
pub const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);

/// Where adverts go over IPv6 (RFC 9568 §5.1.2.2).
pub const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x12);

/// Most addresses of an advert: their count has one byte.
pub const MOST_ADDRESSES: usize = 255;

/// Bytes before the addresses.
const HEADER: usize = 8;

/// Bytes of the authentication data, which a version 2 advert always has (RFC 3768 §5.3.10).
const PASSWORD: usize = 8;

/// Type of the only packet that there is (RFC 9568 §5.2.2).
const ADVERT: u8 = 1;

/// Authentication types of version 2 (RFC 2338 §5.3.6).
const AUTH_NONE: u8 = 0;
const AUTH_PASSWORD: u8 = 1;

/// The longest interval of version 3: 12 bits of centiseconds.
const MOST_CENTISECONDS: u16 = 0x0fff;

const CENTISECOND: Duration = Duration::from_millis(10);

/// Version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Version {
    /// RFC 3768: IPv4, whole seconds, a password in clear text.
    #[serde(rename = "2")]
    V2,
    /// RFC 9568: both families, centiseconds, no password.
    #[serde(rename = "3")]
    V3,
}

impl Version {
    /// The number.
    pub const fn number(self) -> u8 {
        match self {
            Self::V2 => 2,
            Self::V3 => 3,
        }
    }
}

/// What stands under the checksum of an IPv4 advert of version 3.
///
/// RFC 5798 was read in two ways; RFC 9568 §5.2.8 settled it for the message alone, after keepalived
/// and FRR had shipped the other one.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum ChecksumForm {
    /// A pseudo-header and the message: keepalived, FRR.
    #[default]
    PseudoHeader,
    /// The message alone: RFC 9568, Cisco, Juniper. Version 2 has no other.
    Message,
    /// A pseudo-header with the group's address, although it was sent by unicast: keepalived up to
    /// 1.3.6. Accepted, never sent.
    GroupPseudoHeader,
}

impl ChecksumForm {
    /// The word for it in the configuration and in `status`.
    pub const fn word(self) -> &'static str {
        match self {
            Self::PseudoHeader => "pseudo_header",
            Self::Message => "rfc9568",
            Self::GroupPseudoHeader => "group_pseudo_header",
        }
    }
}

/// The eight bytes that authenticate version 2. It never shows what they are.
#[derive(Clone, Copy)]
pub struct Password([u8; PASSWORD]);

impl Password {
    /// Cut to eight bytes, or filled with zeros, as the peers do.
    pub fn new(text: &str) -> Self {
        let mut bytes = [0; PASSWORD];
        for (to, from) in bytes.iter_mut().zip(text.as_bytes()) {
            *to = *from;
        }
        Self(bytes)
    }
}

impl PartialEq for Password {
    /// Takes the same time wherever the difference is.
    fn eq(&self, other: &Self) -> bool {
        self.0.iter().zip(other.0).fold(0, |different, (a, b)| different | (a ^ b)) == 0
    }
}

impl Eq for Password {}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

/// What an advert says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advert {
    /// Version.
    pub version: Version,
    /// Virtual router identifier, 1 to 255.
    pub vrid: u8,
    /// 255 for the owner of the addresses, 0 for one that leaves.
    pub priority: u8,
    /// Time between two adverts: whole seconds in version 2, centiseconds in version 3.
    pub interval: Duration,
    /// The floating addresses, all of one family.
    pub addresses: Vec<IpAddr>,
    /// Version 2: the password, if there is one.
    pub password: Option<Password>,
}

/// How a packet came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Who sent it.
    pub source: IpAddr,
    /// To whom: a group, or one of ours.
    pub destination: IpAddr,
    /// TTL or hop limit on arrival.
    pub hop_limit: u8,
}

/// Why an advert is not listened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
pub enum Refusal {
    /// Not even the fixed part is there.
    #[error("it is too short")]
    Short,
    /// RFC 9568 §7.1: it came from another network.
    #[error("its TTL or hop limit is not 255: it came through a router")]
    HopLimit,
    /// Neither 2 nor 3, or 2 over IPv6.
    #[error("its version is unknown")]
    Version,
    /// A known version, but not the configured one.
    #[error("it is of the other version: set `version` alike on all nodes")]
    OtherVersion,
    /// Not an advert.
    #[error("its type is unknown")]
    Type,
    /// Count of addresses and length contradict each other.
    #[error("its length does not fit the number of its addresses")]
    Length,
    /// None of the known forms.
    #[error("its checksum is wrong")]
    Checksum,
    /// A version 2 authentication that is not the configured one.
    #[error("its kind of authentication is another: set `password` alike on all nodes")]
    Authentication,
    /// The password is wrong.
    #[error("its password is wrong: set `password` alike on all nodes")]
    Password,
    /// Version 2 cannot learn the interval of others.
    #[error("its interval is another: set `interval` alike on all nodes")]
    Interval,
    /// Sent by multicast where unicast is configured.
    #[error("it came by multicast: set `unicast` alike on all nodes")]
    Multicast,
    /// Sent by unicast where multicast is configured.
    #[error("it came by unicast: set `unicast` alike on all nodes")]
    Unicast,
    /// By unicast, from a host that is no `[[node]]`.
    #[error("it came by unicast from a host that is no [[node]]")]
    Stranger,
    /// Our own address as its source.
    #[error("its source is this node's own address: two hosts have it, or the network has a loop")]
    OwnAddress,
}

impl Refusal {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Short,
        Self::HopLimit,
        Self::Version,
        Self::OtherVersion,
        Self::Type,
        Self::Length,
        Self::Checksum,
        Self::Authentication,
        Self::Password,
        Self::Interval,
        Self::Multicast,
        Self::Unicast,
        Self::Stranger,
        Self::OwnAddress,
    ];

    /// Its name in counters.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::HopLimit => "hop_limit",
            Self::Version => "version",
            Self::OtherVersion => "other_version",
            Self::Type => "type",
            Self::Length => "length",
            Self::Checksum => "checksum",
            Self::Authentication => "authentication",
            Self::Password => "password",
            Self::Interval => "interval",
            Self::Multicast => "multicast",
            Self::Unicast => "unicast",
            Self::Stranger => "stranger",
            Self::OwnAddress => "own_address",
        }
    }
}

/// What the adverts of an instance must be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Version.
    pub version: Version,
    /// Password of version 2.
    pub password: Option<Password>,
    /// Our own interval; version 3 may have another.
    pub interval: Duration,
    /// Sent to each node, not to the group.
    pub unicast: bool,
    /// By unicast only these are heard.
    pub peers: Vec<IpAddr>,
    /// Our own address.
    pub own: IpAddr,
}

/// The virtual router that a packet is about, whatever else it says.
pub fn vrid(message: &[u8]) -> Option<u8> {
    message.get(1).copied()
}

impl Advert {
    /// The message as it goes on the wire. Only the first [`MOST_ADDRESSES`] addresses are in it.
    pub fn encode(&self, source: IpAddr, destination: IpAddr, form: ChecksumForm) -> Vec<u8> {
        let addresses = &self.addresses[..self.addresses.len().min(MOST_ADDRESSES)];
        let mut message = vec![
            self.version.number() << 4 | ADVERT,
            self.vrid,
            self.priority,
            addresses.len() as u8,
        ];
        match self.version {
            Version::V2 => {
                let kind = if self.password.is_some() { AUTH_PASSWORD } else { AUTH_NONE };
                message.extend([kind, self.interval.as_secs().min(255) as u8]);
            }
            Version::V3 => {
                let centiseconds = self.interval.as_millis() / CENTISECOND.as_millis();
                let centiseconds = centiseconds.min(MOST_CENTISECONDS.into()) as u16;
                message.extend(centiseconds.to_be_bytes());
            }
        }
        message.extend([0, 0]);
        for address in addresses {
            match address {
                IpAddr::V4(address) => message.extend(address.octets()),
                IpAddr::V6(address) => message.extend(address.octets()),
            }
        }
        if self.version == Version::V2 {
            message.extend(self.password.map_or([0; PASSWORD], |password| password.0));
        }
        let form = if self.version == Version::V2 { ChecksumForm::Message } else { form };
        let sum = !sum(&message, pseudo(source, destination, message.len(), form));
        message[6..8].copy_from_slice(&sum.to_be_bytes());
        message
    }

    /// Reads a message. With the advert comes the form of its checksum.
    ///
    /// What is refused here is so whatever the configuration says; [`Advert::check`] does the rest.
    pub fn parse(message: &[u8], envelope: &Envelope) -> Result<(Self, ChecksumForm), Refusal> {
        let Some((header, rest)) = message.split_first_chunk::<HEADER>() else {
            return Err(Refusal::Short);
        };
        if envelope.destination.is_multicast() && envelope.hop_limit != HOP_LIMIT {
            return Err(Refusal::HopLimit);
        }
        let is_v4 = envelope.source.is_ipv4();
        let version = match header[0] >> 4 {
            2 if is_v4 => Version::V2,
            3 => Version::V3,
            _ => return Err(Refusal::Version),
        };
        if header[0] & 0x0f != ADVERT {
            return Err(Refusal::Type);
        }
        let count = usize::from(header[3]);
        let width = if is_v4 { 4 } else { 16 };
        let trailer = if version == Version::V2 { PASSWORD } else { 0 };
        if count == 0 || rest.len() != count * width + trailer {
            return Err(Refusal::Length);
        }
        let form = checksum_form(message, envelope, version).ok_or(Refusal::Checksum)?;
        let (addresses, password) = rest.split_at(count * width);
        let (interval, password) = match version {
            Version::V2 => {
                let password = match (header[4], password.first_chunk()) {
                    (AUTH_PASSWORD, Some(bytes)) => Some(Password(*bytes)),
                    (AUTH_NONE, _) => None,
                    _ => return Err(Refusal::Authentication),
                };
                (Duration::from_secs(header[5].into()), password)
            }
            Version::V3 => {
                let centiseconds = u16::from_be_bytes([header[4], header[5]]) & MOST_CENTISECONDS;
                (CENTISECOND * u32::from(centiseconds), None)
            }
        };
        if interval.is_zero() {
            return Err(Refusal::Interval);
        }
        let addresses = addresses.chunks_exact(width).map(address).collect();
        let (vrid, priority) = (header[1], header[2]);
        Ok((Self { version, vrid, priority, interval, addresses, password }, form))
    }

    /// Whether an instance listens to it.
    pub fn check(&self, envelope: &Envelope, expected: &Expected) -> Result<(), Refusal> {
        if self.version != expected.version {
            return Err(Refusal::OtherVersion);
        }
        if self.version == Version::V2 {
            match (self.password, expected.password) {
                (None, None) => {}
                (Some(said), Some(wanted)) if said == wanted => {}
                (Some(_), Some(_)) => return Err(Refusal::Password),
                _ => return Err(Refusal::Authentication),
            }
            if self.interval != expected.interval {
                return Err(Refusal::Interval);
            }
        }
        match (envelope.destination.is_multicast(), expected.unicast) {
            (true, true) => return Err(Refusal::Multicast),
            (false, false) => return Err(Refusal::Unicast),
            _ => {}
        }
        if envelope.source == expected.own {
            return Err(Refusal::OwnAddress);
        }
        if expected.unicast && !expected.peers.contains(&envelope.source) {
            return Err(Refusal::Stranger);
        }
        Ok(())
    }
}

fn address(bytes: &[u8]) -> IpAddr {
    // The caller cuts in fours or sixteens.
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return octets.into();
    }
    let mut octets = [0; 16];
    octets.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    octets.into()
}

/// The form that makes the checksum right.
fn checksum_form(message: &[u8], envelope: &Envelope, version: Version) -> Option<ChecksumForm> {
    let forms: &[ChecksumForm] = match (version, envelope.source) {
        (Version::V2, _) => &[ChecksumForm::Message],
        // RFC 9568 §5.2.8: over IPv6 always with the pseudo-header.
        (Version::V3, IpAddr::V6(_)) => &[ChecksumForm::PseudoHeader],
        (Version::V3, IpAddr::V4(_)) => {
            &[ChecksumForm::PseudoHeader, ChecksumForm::Message, ChecksumForm::GroupPseudoHeader]
        }
    };
    let Envelope { source, destination, .. } = *envelope;
    let fits = |form: &&ChecksumForm| {
        sum(message, pseudo(source, destination, message.len(), **form)) == 0xffff
    };
    forms.iter().find(fits).copied()
}

/// The sum of a pseudo-header (RFC 8200 §8.1; RFC 9293 §3.1 for IPv4).
fn pseudo(source: IpAddr, destination: IpAddr, length: usize, form: ChecksumForm) -> u32 {
    let destination = match (form, source) {
        (ChecksumForm::Message, IpAddr::V4(_)) => return 0,
        (ChecksumForm::GroupPseudoHeader, IpAddr::V4(_)) => GROUP_V4.into(),
        _ => destination,
    };
    let words = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().chunks_exact(2).map(word).sum::<u32>(),
        IpAddr::V6(address) => address.octets().chunks_exact(2).map(word).sum(),
    };
    words(source) + words(destination) + u32::from(PROTOCOL) + length as u32
}

/// RFC 1071. Every message has an even length.
fn sum(message: &[u8], start: u32) -> u16 {
    let mut sum = message.chunks_exact(2).map(word).fold(start, u32::wrapping_add);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn word(pair: &[u8]) -> u32 {
    u32::from(pair[0]) << 8 | u32::from(pair[1])
}
