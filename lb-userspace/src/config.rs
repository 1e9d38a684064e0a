//! The configuration: one TOML file, the same on every node.
//!
//! `raw` is what serde reads, with the place of each value; `check` turns it into [`Config`] or into
//! all of its mistakes at once; `report` draws them with carets. Nothing after `check` can fail for
//! reasons of configuration, and nothing else in the daemon knows TOML.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

pub mod check;
pub mod raw;
pub mod report;
pub mod units;

/// A configuration that has passed every check.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `[cluster]`.
    pub cluster: Cluster,
    /// `[[node]]`, at least one.
    pub nodes: Vec<Node>,
    /// `[[floating]]`.
    pub floating: Vec<Floating>,
    /// `[[service]]`, in the order of the file.
    pub services: Vec<Service>,
    /// `[dataplane]`.
    pub dataplane: Dataplane,
    /// `[paths]`.
    pub paths: Paths,
}

/// `[cluster]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// Name, in logs and alerts.
    pub name: String,
    /// File with the key that the nodes authenticate each other with.
    pub secret_file: Option<PathBuf>,
}

/// `[[node]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Name; `--node` or the host's name picks the entry.
    pub name: String,
    /// The node's own address.
    pub address: IpAddr,
    /// Interface that clients reach it by.
    pub interface: String,
    /// 1 to 254; the highest is preferred.
    pub priority: u8,
}

/// `[[floating]]`: one VRRP instance.
#[derive(Clone, Debug, PartialEq)]
pub struct Floating {
    /// Virtual router identifier, 1 to 255.
    pub vrid: u8,
    /// Addresses with prefix length.
    pub addresses: Vec<(IpAddr, u8)>,
}

/// IP protocol of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP (6).
    Tcp,
    /// UDP (17).
    Udp,
}

/// What happens to the connections of a backend that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDown {
    /// They are answered with a reset.
    Reset,
    /// They are forwarded on, in case it comes back.
    Keep,
}

/// `[[service]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Name, unique.
    pub name: String,
    /// Floating address and port.
    pub listen: SocketAddr,
    /// `protocol`.
    pub protocol: Protocol,
    /// `balance`.
    pub balance: lb_common::service::Balance,
    /// `on_down`.
    pub on_down: OnDown,
    /// How long a draining or removed backend's connections may go on.
    pub drain_timeout: Duration,
    /// How long a backend that came up takes to reach its full share; zero: at once.
    pub slow_start: Duration,
    /// Backends, at least one, in the order of the file.
    pub backends: Vec<Backend>,
    /// `[service.health]`.
    pub health: Health,
}

/// `[[service.backend]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    /// Name, unique within the service.
    pub name: String,
    /// Address and port; of the same family as the service's.
    pub address: SocketAddr,
    /// Relative share, 1 to 256.
    pub weight: u32,
    /// Serves only while no other backend can.
    pub backup: bool,
}

/// `[service.health]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Health {
    /// How it is asked.
    pub probe: Probe,
    /// Time between two probes of one backend, before jitter.
    pub interval: Duration,
    /// A probe that takes longer has failed.
    pub timeout: Duration,
    /// Successes in a row until a backend is up.
    pub rise: u32,
    /// Failures in a row until a backend is down.
    pub fall: u32,
}

/// How a backend is asked for its health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Not at all: it counts as up.
    None,
    /// A TCP connection is made and closed.
    Tcp,
    /// An HTTP/1.1 GET.
    Http(HttpProbe),
    /// The same over TLS; the certificate is not verified (a probe asks for health, not identity).
    Https(HttpProbe),
    /// A command with its arguments; exit code 0 means healthy. It is given `BALLAST_SERVICE`,
    /// `BALLAST_BACKEND`, `BALLAST_ADDRESS` and `BALLAST_PORT` in its environment.
    Command(Vec<String>),
}

/// What an HTTP probe asks and expects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpProbe {
    /// Path and query.
    pub path: String,
    /// `Host` header; the backend's address and port if absent.
    pub host: Option<String>,
    /// Ranges of status codes that mean healthy, both ends included.
    pub expect: Vec<(u16, u16)>,
}

/// `[dataplane]`: sizes and timeouts of the kernel's tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataplane {
    /// Entries in each of `FLOWS` and `FLOWS6`.
    pub max_flows: u32,
    /// Entries in each of `HALF_OPEN` and `HALF_OPEN6`.
    pub max_half_open: u32,
    /// A TCP connection with no packet for so long is forgotten. RFC 5382 REQ-5: not under 2 h 4 min.
    pub tcp_idle_timeout: Duration,
    /// A TCP connection that one side has closed is forgotten after so long without a packet.
    pub tcp_closing_timeout: Duration,
    /// A UDP flow with no packet for so long is forgotten. RFC 4787 REQ-5: not under 2 min.
    pub udp_idle_timeout: Duration,
}

/// `[paths]`: each can be set, so that several daemons run on one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Unix socket of the daemon.
    pub socket: PathBuf,
    /// Directory of what must survive a restart.
    pub state: PathBuf,
    /// Directory of the pinned maps and links, on a BPF file system.
    pub pins: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            socket: "/run/ballast/ballast.sock".into(),
            state: "/var/lib/ballast".into(),
            pins: "/sys/fs/bpf/ballast".into(),
        }
    }
}
