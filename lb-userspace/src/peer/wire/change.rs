//! Changes of flow tables: what the parts of the stream carry.
//!
//! A change takes 21 to 80 bytes, so a part holds some thirty of IPv4.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Reader, frame::MAX_PART};
use crate::dataplane::sync::{Answered, Begun, Change, Ended};

mod kind {
    pub(super) const BEGUN: u8 = 1;
    pub(super) const ENDED: u8 = 2;
    pub(super) const ALL: u8 = 3;
    pub(super) const ALL_SENT: u8 = 4;
    /// As [`BEGUN`], and what the client has to acknowledge. Of version 1 too, but not from its beginning:
    /// who does not know it leaves the rest of the part unread, so it comes in parts of its own.
    pub(super) const ANSWERED: u8 = 5;
    /// Its addresses are of IPv6.
    pub(super) const V6: u8 = 0x80;
    /// The backend's is: a tunnel may be of another family.
    pub(super) const V6_BACKEND: u8 = 0x40;
}

/// What a part carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// A change of one connection.
    Change(Change),
    /// From here on come all connections that the sender has.
    All,
    /// All of them have come.
    AllSent,
}

/// Packs items into the contents of parts.
#[must_use]
pub fn pack(items: &[Item]) -> Vec<Vec<u8>> {
    let mut parts = Vec::new();
    let mut part = Vec::with_capacity(MAX_PART);
    let mut of_answered = false;
    for item in items {
        let is_answered = matches!(item, Item::Change(Change::Answered(_)));
        if of_answered != is_answered && !part.is_empty() {
            parts.push(std::mem::take(&mut part));
        }
        of_answered = is_answered;
        let before = part.len();
        write(item, &mut part);
        if part.len() > MAX_PART {
            let rest = part.split_off(before);
            parts.push(std::mem::replace(&mut part, rest));
        }
    }
    if !part.is_empty() {
        parts.push(part);
    }
    parts
}

fn write(item: &Item, out: &mut Vec<u8>) {
    match item {
        Item::All => out.push(kind::ALL),
        Item::AllSent => out.push(kind::ALL_SENT),
        Item::Change(Change::Begun(begun)) => write_begun(kind::BEGUN, begun, out),
        Item::Change(Change::Answered(Answered { begun, ack })) => {
            write_begun(kind::ANSWERED, begun, out);
            out.extend_from_slice(&ack.to_be_bytes());
        }
        Item::Change(Change::Ended(ended)) => {
            out.push(kind::ENDED | families(ended.nat, ended.backend));
            out.push(ended.protocol);
            write_socket(ended.backend, out);
            write_socket(ended.nat, out);
        }
    }
}

fn write_begun(kind: u8, begun: &Begun, out: &mut Vec<u8>) {
    out.push(kind | families(begun.client, begun.backend));
    out.extend_from_slice(&[begun.protocol, begun.state]);
    for socket in [begun.client, begun.listen, begun.backend] {
        write_socket(socket, out);
    }
    out.extend_from_slice(&begun.nat_port.to_be_bytes());
    out.extend_from_slice(&begun.client_mac);
    out.extend_from_slice(&begun.idle_ms.to_be_bytes());
}

/// The items of a part, until the first that is not whole.
pub fn unpack(part: &[u8]) -> impl Iterator<Item = Item> {
    let mut reader = Reader::new(part);
    std::iter::from_fn(move || read(&mut reader))
}

fn read(reader: &mut Reader<'_>) -> Option<Item> {
    let first = reader.byte()?;
    let (v6, v6_backend) = (first & kind::V6 != 0, first & kind::V6_BACKEND != 0);
    match first & !(kind::V6 | kind::V6_BACKEND) {
        kind::ALL => Some(Item::All),
        kind::ALL_SENT => Some(Item::AllSent),
        kind::BEGUN => Some(Item::Change(Change::Begun(read_begun(reader, v6, v6_backend)?))),
        kind::ANSWERED => {
            let begun = read_begun(reader, v6, v6_backend)?;
            let ack = reader.u32()?;
            Some(Item::Change(Change::Answered(Answered { begun, ack })))
        }
        kind::ENDED => {
            let protocol = reader.byte()?;
            let backend = read_socket(reader, v6_backend)?;
            let nat = read_socket(reader, v6)?;
            Some(Item::Change(Change::Ended(Ended { protocol, backend, nat })))
        }
        _ => None,
    }
}

fn read_begun(reader: &mut Reader<'_>, v6: bool, v6_backend: bool) -> Option<Begun> {
    let [protocol, state] = reader.array()?;
    let client = read_socket(reader, v6)?;
    let (listen, backend) = (read_socket(reader, v6)?, read_socket(reader, v6_backend)?);
    let (nat_port, client_mac) = (reader.u16()?, reader.array()?);
    let idle_ms = reader.u32()?;
    Some(Begun { protocol, state, client, listen, backend, nat_port, client_mac, idle_ms })
}

fn families(socket: SocketAddr, backend: SocketAddr) -> u8 {
    let bit = |is_set: bool, bit: u8| if is_set { bit } else { 0 };
    bit(socket.is_ipv6(), kind::V6) | bit(backend.is_ipv6(), kind::V6_BACKEND)
}

/// Of which family it is stands before.
fn write_socket(socket: SocketAddr, out: &mut Vec<u8>) {
    match socket.ip() {
        IpAddr::V4(address) => out.extend_from_slice(&address.octets()),
        IpAddr::V6(address) => out.extend_from_slice(&address.octets()),
    }
    out.extend_from_slice(&socket.port().to_be_bytes());
}

fn read_socket(reader: &mut Reader<'_>, v6: bool) -> Option<SocketAddr> {
    let address: IpAddr = if v6 {
        Ipv6Addr::from(reader.array::<16>()?).into()
    } else {
        Ipv4Addr::from(reader.array::<4>()?).into()
    };
    Some(SocketAddr::new(address, reader.u16()?))
}
