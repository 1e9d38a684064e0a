//! Who a connection is from, where another proxy stands before this one: the PROXY protocol, in both
//! versions (`proxy-protocol.txt` of `HAProxy`).
//!
//! Networks that are trusted to say so must say so: their connections begin with a header, and whatever
//! else they begin with is refused. All others are believed nothing.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::{net::TcpStream, time::timeout};

use super::service::{Service, View};
use crate::clock;

pub(super) mod admit;
mod header;

use header::{Malformed, Missing};

/// How long the header may take. The protocol asks for 3 seconds at least, in which a lost packet is
/// sent again.
const PATIENCE: Duration = Duration::from_secs(5);

/// Both ends of a client's connection, as the client has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ends {
    /// The client.
    pub(super) client: SocketAddr,
    /// What it has connected to.
    pub(super) target: SocketAddr,
}

/// Why a connection is not served.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("its header cannot be understood")]
    Malformed,
    #[error("its header did not come in time")]
    Late,
    #[error("read its header: {0}")]
    Broken(#[from] io::Error),
}

/// Finds out whose a connection is; nothing if it is refused, which is counted.
pub(super) async fn identify(
    service: &Service,
    view: &View,
    tcp: &TcpStream,
    peer: SocketAddr,
) -> Option<Ends> {
    let trusted = &view.proxy.accept_proxy;
    let own = Ends { client: peer, target: service.listen };
    if trusted.is_empty() {
        return Some(own);
    }
    let mut ends = own;
    if trusted.iter().any(|network| contains(*network, peer.ip())) {
        let patience = PATIENCE.min(view.proxy.client_timeout);
        let read = timeout(patience, read(tcp)).await.unwrap_or(Err(Refused::Late));
        match read {
            Ok(stated) => ends = stated.unwrap_or(own),
            Err(why) => {
                tracing::debug!(service = service.name, %peer, %why, "refuse a connection");
                service.stats.proxy_headers.add();
                return None;
            }
        }
    }
    if service.admission.admits(&view.guard, ends.client.ip(), clock::timer()) {
        Some(ends)
    } else {
        service.stats.denied.add();
        None
    }
}

/// Reads a header, and no byte of what follows. Gives what it states, if anything.
async fn read(tcp: &TcpStream) -> Result<Option<Ends>, Refused> {
    let mut head = Vec::with_capacity(128);
    let mut bytes = [0; 512];
    loop {
        let (most, is_line) =
            match header::missing(&head).map_err(|Malformed| Refused::Malformed)? {
                Missing::Nothing => break,
                Missing::Bytes(most) => (most, false),
                Missing::Line(most) => (most, true),
            };
        let mut room = most.min(bytes.len());
        if is_line {
            // What comes behind the line is the client's.
            let there = tcp.peek(&mut bytes[..room]).await?;
            if there == 0 {
                return Err(Refused::Malformed);
            }
            let end = bytes[..there].iter().position(|byte| *byte == b'\n');
            room = end.map_or(there, |end| end + 1);
        }
        tcp.readable().await?;
        match tcp.try_read(&mut bytes[..room]) {
            Ok(0) => return Err(Refused::Malformed),
            Ok(read) => head.extend_from_slice(&bytes[..read]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
    header::stated(&head).map_err(|Malformed| Refused::Malformed)
}

/// Whether an address is in a network.
fn contains((network, length): (IpAddr, u8), address: IpAddr) -> bool {
    let shift = |bits: u8| u32::from(bits - length);
    match (network, address.to_canonical()) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            (network.to_bits() ^ address.to_bits()).checked_shr(shift(32)).unwrap_or(0) == 0
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            (network.to_bits() ^ address.to_bits()).checked_shr(shift(128)).unwrap_or(0) == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_hold_their_addresses() {
        for (network, length, address, inside) in [
            ("192.0.2.0", 24, "192.0.2.255", true),
            ("192.0.2.0", 24, "192.0.3.0", false),
            ("192.0.2.7", 32, "192.0.2.7", true),
            ("192.0.2.7", 32, "192.0.2.6", false),
            ("0.0.0.0", 0, "203.0.113.9", true),
            ("0.0.0.0", 0, "2001:db8::1", false),
            ("0.0.0.0", 0, "::ffff:203.0.113.9", true),
            ("2001:db8::", 32, "2001:db8:ffff::1", true),
            ("2001:db8::", 32, "2001:db9::1", false),
            ("::", 0, "2001:db8::1", true),
        ] {
            let network = (network.parse().unwrap(), length);
            assert_eq!(
                contains(network, address.parse().unwrap()),
                inside,
                "{network:?} {address}"
            );
        }
    }
}
