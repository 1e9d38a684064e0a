//! The channel between nodes: who lives, whether they agree, and each other's connections.
//!
//! - `wire` is what datagrams look like, and who can make them.
//! - `window`, `stream` and `session` are the pure machine for one other node; `hub` has one for each.
//! - `word` carries what the rest of the daemon has to say, as far as it arrives.
//! - `generation` tells whether two configurations are the same.
//! - `channel` is the task with the socket and the flow tables, and `others` what the rest of the daemon
//!   has of it.
//!
//! All nodes of the configuration talk to each other over UDP, each from its own address.

use std::net::SocketAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

mod channel;
pub mod generation;
mod hub;
mod others;
pub mod session;
pub mod stream;
pub mod window;
pub mod wire;
pub mod word;

pub use channel::{Channel, FenceRequest, Setup};
pub use others::{Ends, Others};
pub use wire::frame::{About, Count, Fence};

use crate::dataplane::sync::Applied;

/// How the other nodes stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Board {
    /// In the order of the configuration.
    pub peers: Vec<Peer>,
    /// This node has all connections of every node that is there: it may take addresses from them.
    pub in_sync: bool,
    /// What became of the changes of other nodes here.
    pub applied: Applied,
}

/// How another node stands, as `status` says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Where it is talked to.
    pub address: SocketAddr,
    /// It is heard.
    pub up: bool,
    /// Since when it is heard, or is not.
    pub since: Timestamp,
    /// Microseconds until its answer, both processes included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round_trip_us: Option<u64>,
    /// Its configuration is the same as this node's; none if it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_config: Option<bool>,
    /// This node has all of its connections.
    pub in_sync: bool,
    /// It holds floating addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holds: Option<bool>,
    /// For how long it answers on connections of its proxy once another node has the addresses, milliseconds.
    #[serde(default)]
    pub lingers_ms: u32,
    /// It is about to end.
    #[serde(default)]
    pub leaves: bool,
    /// Services, and how many of them have a backend to serve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<Fit>,
    /// Backends, and how many of them serve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backends: Option<Fit>,
    /// Changes of the flow tables sent to it since the session began.
    pub sent: u64,
    /// Changes received from it.
    pub received: u64,
    /// Datagrams with changes that it has not acknowledged.
    pub backlog: u64,
    /// Datagrams with changes that were sent once more.
    pub repeated: u64,
    /// Why it is not heard, as far as that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// So many of so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fit {
    /// Those that are fit.
    pub fit: u32,
    /// All of them.
    pub all: u32,
}

impl From<Count> for Fit {
    fn from(Count { all, fit }: Count) -> Self {
        Self { fit, all }
    }
}
