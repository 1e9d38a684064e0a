//! Flow tables of several nodes, kept alike: what this node's kernel program has begun and ended, and
//! what that of another has.

use std::net::SocketAddr;

/// A change of a flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// There is a connection.
    Begun(Begun),
    /// There no longer is.
    Ended(Ended),
}

/// A connection that is established.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    /// IP protocol number.
    pub protocol: u8,
    /// Bits of [`lb_common::flow::state`], as far as they describe the connection: who has sent FIN, and
    /// whether it is steered.
    pub state: u8,
    /// The client.
    pub client: SocketAddr,
    /// The floating address and port that it talks to.
    pub listen: SocketAddr,
    /// The backend.
    pub backend: SocketAddr,
    /// The port of the floating address that the backend sees; 0 if the connection is steered.
    pub nat_port: u16,
    /// Where the client's packets come from.
    pub client_mac: [u8; 6],
    /// Milliseconds since its last packet.
    pub idle_ms: u32,
}

/// A connection that is over, by its backend's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// IP protocol number.
    pub protocol: u8,
    /// The backend.
    pub backend: SocketAddr,
    /// The floating address and the port of it that the backend sees.
    pub nat: SocketAddr,
}
