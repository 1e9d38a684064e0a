//! Ends open connections on request: both sides of each are told by a reset that they believe at once.
//!
//! A reset is believed if its sequence number is exactly what its receiver expects next; for any other,
//! a receiver asks back first (RFC 5961, section 3). The flow tables hold what each side has asked for
//! last. If a side has been sent more since, its question back meets a connection that is marked, and
//! is answered by the kernel program with a reset that is exact.

use std::{
    collections::BTreeSet,
    fmt, io,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::kernel::Kernel;
use crate::{
    dataplane::{Connection, Cut},
    net::{inject::Sender, rst},
};

/// Connections that are ended in a second, if nobody says otherwise: a pool that reconnects does not
/// meet all others at the same moment.
pub const DEFAULT_RATE: u32 = 2000;

/// Connections that are ended without a pause.
const AT_ONCE: usize = 20;

/// Which connections are ended.
#[derive(Clone, Debug)]
pub struct Scope {
    /// Identifiers of their backends.
    pub backends: BTreeSet<u32>,
    /// Their clients; all if `None`.
    pub client: Option<Client>,
    /// How many a second, at least 1.
    pub rate: u32,
}

/// A client, or one of its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Its address.
    pub address: IpAddr,
    /// Its port; all if `None`.
    pub port: Option<u16>,
}

/// A text is no client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} is no client: give an address such as 192.0.2.9, 192.0.2.9:40000 or [2001:db8::9]:40000"
)]
pub struct NoClient(String);

impl FromStr for Client {
    type Err = NoClient;

    fn from_str(text: &str) -> Result<Self, NoClient> {
        if let Ok(address) = text.parse() {
            return Ok(Self { address, port: None });
        }
        let socket: SocketAddr = text.parse().map_err(|_| NoClient(text.to_owned()))?;
        Ok(Self { address: socket.ip(), port: Some(socket.port()) })
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            None => self.address.fmt(f),
            Some(port) => SocketAddr::new(self.address, port).fmt(f),
        }
    }
}

impl Client {
    fn is_of(self, connection: &Connection) -> bool {
        connection.client.ip() == self.address
            && self.port.is_none_or(|port| port == connection.client.port())
    }
}

/// What became of the connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resets {
    /// Connections that were open and have been ended.
    pub ended: u64,
    /// Resets sent to clients.
    pub to_clients: u64,
    /// Resets sent to backends.
    pub to_backends: u64,
    /// Connections of which no side could be told: flows of UDP, and those in which nothing has been
    /// acknowledged. Their next packet ends them.
    pub untold: u64,
}

impl Resets {
    fn take(&mut self, cut: &Cut) {
        self.ended += 1;
        self.to_clients += u64::from(cut.to_client.is_some());
        self.to_backends += u64::from(cut.to_backend.is_some());
        self.untold += u64::from(cut.to_client.is_none() && cut.to_backend.is_none());
    }
}

/// Ends all connections of the scope that are open now, at its pace, and tells their sides.
///
/// Each is marked first, so that what its sides still say is answered with a reset, and then told.
/// Cancelling it leaves the rest as they are. It is an error if the tables cannot be read or written; a
/// frame that the interface does not take is none, since the mark is there.
pub async fn end(kernel: Arc<dyn Kernel>, scope: Scope) -> anyhow::Result<Resets> {
    let reader = Arc::clone(&kernel);
    let backends = scope.backends;
    let found = tokio::task::spawn_blocking(move || reader.connections(&backends))
        .await
        .context("wait")??;
    let wanted = |it: &Connection| scope.client.is_none_or(|client| client.is_of(it));
    let found: Vec<Connection> = found.into_iter().filter(wanted).collect();
    let mut sender = None;
    let mut resets = Resets::default();
    for (number, some) in found.chunks(AT_ONCE).enumerate() {
        if number > 0 {
            tokio::time::sleep(pause(AT_ONCE, scope.rate)).await;
        }
        let kernel = Arc::clone(&kernel);
        let some = some.to_vec();
        let work = tokio::task::spawn_blocking(move || {
            let cuts = kernel.cut(&some)?;
            if sender.is_none() && cuts.iter().any(|it| it.to_client.or(it.to_backend).is_some()) {
                sender = Some(Sender::open().context("open a packet socket")?);
            }
            for cut in &cuts {
                tell(sender.as_ref(), cut);
            }
            anyhow::Ok((cuts, sender))
        });
        let (cuts, used) = work.await.context("wait")??;
        sender = used;
        for cut in &cuts {
            resets.take(cut);
        }
    }
    Ok(resets)
}

fn tell(sender: Option<&Sender>, cut: &Cut) {
    let Some(sender) = sender else { return };
    for reset in [cut.to_client, cut.to_backend].into_iter().flatten() {
        let sent: io::Result<()> = sender.send(reset.ifindex, &rst::frame(&reset));
        if let Err(error) = sent {
            tracing::debug!(%error, dst = %reset.dst, "send a reset");
        }
    }
}

/// The time that so many connections take at that rate, give or take half of it.
fn pause(connections: usize, rate: u32) -> Duration {
    let usual = Duration::from_secs(connections as u64) / rate.max(1);
    usual.mul_f64(0.5 + fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_an_address_or_one_of_its_ports() {
        let client = |text: &str| text.parse::<Client>();
        let all = client("192.0.2.9").unwrap();
        let one = client("192.0.2.9:40000").unwrap();
        let six = client("[2001:db8::9]:40000").unwrap();
        assert_eq!(client("2001:db8::9").unwrap().port, None);
        for wrong in ["", "192.0.2", "192.0.2.9:", "192.0.2.9:70000", "app-01", "[::1]"] {
            assert!(client(wrong).unwrap_err().to_string().starts_with(wrong), "{wrong}");
        }
        let of = |text: &str| Connection {
            client: text.parse().unwrap(),
            listen: "192.0.2.100:80".parse().unwrap(),
            backend: 1,
            protocol: 6,
        };
        assert!(all.is_of(&of("192.0.2.9:40000")) && all.is_of(&of("192.0.2.9:40001")));
        assert!(one.is_of(&of("192.0.2.9:40000")) && !one.is_of(&of("192.0.2.9:40001")));
        assert!(!one.is_of(&of("192.0.2.8:40000")));
        assert!(six.is_of(&of("[2001:db8::9]:40000")));
    }

    #[test]
    fn the_pace_is_kept_with_jitter() {
        for _ in 0..100 {
            let pause = pause(20, 2000);
            assert!(pause >= Duration::from_millis(5) && pause <= Duration::from_millis(15));
        }
        assert!(pause(20, 1) >= Duration::from_secs(10));
    }
}
