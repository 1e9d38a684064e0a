//! What `status` says: plain data, the same for JSON and for the text on a terminal.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use jiff::Timestamp;
use lb_common::service::Balance;
use serde::{Deserialize, Serialize};

use super::verdict::Admin;
use crate::{
    alert::status::Alerts,
    config::{Encapsulation, Forwarding, Protocol},
    dataplane::{Flow, Info},
    health::Health,
    peer::Peer,
    postgres::status::Database,
    proxy,
    vrrp::router::InstanceStatus,
};

/// The state of a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Name of the node.
    pub node: String,
    /// Name of the cluster.
    pub cluster: String,
    /// Version of the daemon.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// When it started.
    pub started: Timestamp,
    /// Seconds since then.
    pub uptime_seconds: u64,
    /// When the configuration in force was loaded.
    pub config_loaded: Timestamp,
    /// Floating addresses.
    pub floating: Vec<Floating>,
    /// Anycast addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub anycast: Vec<Anycast>,
    /// The other nodes, if this one talks to them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<Peer>,
    /// How VRRP stands, for each `[[floating]]`; empty if this node is alone.
    #[serde(default)]
    pub vrrp: Vec<InstanceStatus>,
    /// The kernel's side.
    pub dataplane: Info,
    /// Connections in the flow tables, by the last sweep.
    pub flows: u64,
    /// Services, in the order of the configuration.
    pub services: Vec<Service>,
    /// Backends that are configured no longer and whose connections are not over.
    pub retiring: Vec<Retiring>,
    /// Databases.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub postgres: Vec<Database>,
    /// Alerts, if the configuration has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alerts: Option<Alerts>,
    /// Files that the daemon may have open, if a service has a proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<proxy::files::Status>,
    /// Packets not forwarded, by reason.
    pub reasons: BTreeMap<String, u64>,
    /// What a human should look at.
    pub warnings: Vec<String>,
}

/// What somebody wants to see of the state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Only this service, with its backends.
    pub service: Option<String>,
    /// The backends of all services, even if there are more than [`MANY_BACKENDS`].
    pub all: bool,
}

/// With more backends than this, an overview counts them and lists none: a million would be half a
/// gigabyte of JSON.
pub const MANY_BACKENDS: usize = 10_000;

/// A floating address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Floating {
    /// Virtual router identifier of its block.
    pub vrid: u8,
    /// Address with prefix length.
    pub address: String,
    /// Name, or else address, of the node that has it; empty while nobody is known to.
    pub holder: String,
    /// What this node is for it, by VRRP; none if it is alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Whether this node has it on its interface.
    pub held: bool,
    /// What is wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// An anycast address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anycast {
    /// The address.
    pub address: IpAddr,
    /// Whether this node offers it: it is on the loopback interface.
    pub held: bool,
    /// Why it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// Name.
    pub name: String,
    /// Floating address and port.
    pub listen: SocketAddr,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Who hands on its connections: `kernel`, `proxy`, or with `auto` now one and now the other.
    #[serde(default)]
    pub path: String,
    /// New ones go to the proxy now.
    #[serde(default)]
    pub proxied: bool,
    /// How packets get to the backends: `nat`, `direct` or `tunnel`.
    #[serde(default)]
    pub forward: String,
    /// What packets are wrapped in: `ipip` or `gue`, with `tunnel` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encapsulation: Option<String>,
    /// With `direct` and `tunnel`: what the table remembers of earlier ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<Slots>,
    /// How a backend is chosen.
    pub balance: String,
    /// No backend is fit, so all that are enabled serve.
    pub panic: bool,
    /// Backups serve because no other can.
    pub on_backups: bool,
    /// New connections that were given a backend.
    pub connections: u64,
    /// New connections refused.
    pub refused: u64,
    /// Times that a connection was tried at another backend, because its own failed.
    #[serde(default)]
    pub replayed: u64,
    /// Times that it was not, although its own failed.
    #[serde(default)]
    pub not_replayed: u64,
    /// New connections a second, over the last second or so.
    pub connections_per_second: f64,
    /// Backends that get new connections.
    #[serde(default)]
    pub serving_count: usize,
    /// Configured backends.
    #[serde(default)]
    pub backend_count: usize,
    /// What the proxy has counted, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<proxy::Status>,
    /// Backends, in the order of the configuration. Empty, whatever `backend_count` says, in an
    /// overview of very many: see [`View`].
    pub backends: Vec<Backend>,
}

/// The slots of a steered service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slots {
    /// All of them.
    pub total: u32,
    /// Those whose connections may be elsewhere than the table says, so that their packets are looked
    /// up.
    pub disturbed: u32,
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Backend {
    /// Name.
    pub name: String,
    /// Address and port.
    pub address: SocketAddr,
    /// What the probes say.
    pub health: Health,
    /// It gets new connections.
    pub serving: bool,
    /// It is being drained, or has been.
    pub draining: bool,
    /// It serves only while no other can.
    pub backup: bool,
    /// What the operator wants.
    pub admin: Admin,
    /// What the last probe said.
    pub reason: String,
    /// Why it serves or not, the most important first.
    pub verdict: Vec<String>,
    /// What the connections of clients say; none if they are not watched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passive: Option<Passive>,
    /// When its health last changed.
    pub since: Timestamp,
    /// Its weight: the operator's, or else the configured one.
    pub weight: u32,
    /// What it has of its weight, in percent: less than 100 during a slow start.
    pub weight_percent: u32,
    /// MAC address of its next hop, once known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_hop: Option<String>,
    /// New connections given to it.
    pub connections: u64,
    /// Connections that it answered.
    pub answered: u64,
    /// Open connections.
    pub active: u64,
    /// Packets forwarded to it.
    pub forward_packets: u64,
    /// Bytes forwarded to it.
    pub forward_bytes: u64,
    /// Packets from it.
    pub return_packets: u64,
    /// Bytes from it.
    pub return_bytes: u64,
    /// New connections a second, over the last second or so.
    pub connections_per_second: f64,
    /// Bytes a second to it.
    pub forward_bytes_per_second: f64,
    /// Bytes a second from it.
    pub return_bytes_per_second: f64,
    /// What the proxy has counted of it, if its service has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<proxy::BackendStatus>,
}

/// What the connections of clients say of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passive {
    /// How it stands.
    pub state: PassiveState,
    /// What speaks against it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Seconds that its ejection lasts at least.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ejected_for: Option<u64>,
    /// Half of its handshakes take less, microseconds; none if there were too few lately.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handshake_p50_us: Option<u64>,
    /// 99 % of its handshakes take less, microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handshake_p99_us: Option<u64>,
    /// Milliseconds that it may take to answer a SYN; none while that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience_ms: Option<u16>,
}

/// How a backend stands, by the connections of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PassiveState {
    /// It had no connections lately.
    Quiet,
    /// Its connections say nothing against it.
    Fit,
    /// Its handshakes have become slow.
    Slow,
    /// It fails, and is not ejected.
    Failing,
    /// It gets no new connections for a while.
    Ejected,
}

/// A backend that is configured no longer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retiring {
    /// Its identifier in the kernel's tables.
    pub id: u32,
    /// Address and port.
    pub address: SocketAddr,
    /// Seconds that its connections may still go on; none if they have been cut.
    pub seconds_left: Option<u64>,
}

/// A connection, with the names of what it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedFlow {
    /// Name of the service; none if it is configured no longer.
    pub service: Option<String>,
    /// Name of the backend; none if it is configured no longer.
    pub backend_name: Option<String>,
    /// It belongs to a steered service and is known by samples: its counts are estimates, and replies
    /// do not pass here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sampled: bool,
    /// Packets a second from the client, estimated; only of what is sampled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets_per_second: Option<u64>,
    /// The connection.
    #[serde(flatten)]
    pub flow: Flow,
}

/// The word for a method in the configuration.
pub fn balance_word(balance: Balance) -> &'static str {
    match balance {
        Balance::Maglev => "maglev",
        Balance::RoundRobin => "round_robin",
        Balance::Random => "random",
        Balance::LeastConn => "least_conn",
    }
}

/// The words for a way in the configuration: `forward`, and `encapsulation` if it has one.
pub fn forward_words(forward: Forwarding) -> (&'static str, Option<&'static str>) {
    match forward {
        Forwarding::Nat => ("nat", None),
        Forwarding::Direct => ("direct", None),
        Forwarding::Tunnel(Encapsulation::Ipip) => ("tunnel", Some("ipip")),
        Forwarding::Tunnel(Encapsulation::Gue) => ("tunnel", Some("gue")),
    }
}

/// The word for a protocol in the configuration.
pub fn protocol_word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}
