//! The configuration: one TOML file, the same on every node.
//!
//! `raw` lists the keys; `read` fills it from toml's tree, with the place of each value; `check`
//! turns it into [`Config`]. Both note mistakes and go on, so that all are named at once; `report`
//! draws them with carets. Nothing after `check` can fail for reasons of configuration, and nothing
//! else in the daemon knows TOML.

use std::{
    fmt, fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use lb_common::limits;
use toml::de::DeTable;

use report::{Diagnostic, Findings};

use crate::{
    memory,
    proxy::decide,
    vrrp::packet::{ChecksumForm, Password, Version},
};

mod advice;
mod alert;
mod check;
mod postgres;
mod raw;
mod read;
pub mod report;
pub mod sizes;
mod syntax;
#[cfg(test)]
mod tests;
pub mod units;
mod upstream;
mod value;

pub use advice::{advice, tunnel_bytes};
pub use alert::{Alert, Receiver};
pub use postgres::{Access, Consensus, Durability, Postgres, Promotion, Server, ServerHost};
pub use upstream::{BackendTls, ProxyHeader, Upstream};

/// A file that can be used.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What it says.
    pub config: Config,
    /// What the operator should know, in the order of the file.
    pub warnings: Vec<Diagnostic>,
    /// Its text, passwords masked, for [`report::render`]; empty if there is nothing to draw.
    pub source: String,
}

/// A file that cannot be used.
#[derive(Clone, Debug)]
pub struct Rejected {
    /// All mistakes, and the warnings, in the order of the file.
    pub diagnostics: Vec<Diagnostic>,
    /// Its text, passwords masked, for [`report::render`].
    pub source: String,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(report::render(&self.diagnostics, &self.source, false).trim_end())
    }
}

impl std::error::Error for Rejected {}

/// Reads and checks the file at `path`, and the files of secrets that it names: they must exist,
/// and nobody but their owner may read them.
pub fn load(path: &Path) -> Result<Loaded, Rejected> {
    let name = path.display().to_string();
    let reject = |message: String, help: &str| {
        let mut findings = Findings::default();
        findings.error_of_file(message).help(help);
        Rejected { diagnostics: findings.locate(&name, ""), source: String::new() }
    };
    let bytes = fs::read(path).map_err(|error| {
        let help = match error.kind() {
            io::ErrorKind::NotFound => "create it, or name another file with `-c`",
            io::ErrorKind::PermissionDenied => "run this as root, or as the file's owner",
            io::ErrorKind::IsADirectory => "name the file itself with `-c`",
            _ => "name another file with `-c`",
        };
        reject(format!("the configuration cannot be read: {error}"), help)
    })?;
    match String::from_utf8(bytes) {
        Ok(text) => {
            let result = read_and_check(&name, &text, Secrets::Check);
            if text.len() >= memory::LARGE_FILE {
                drop(text);
                memory::give_back();
            }
            result
        }
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
            let mut findings = Findings::default();
            findings
                .error(at..at + char::REPLACEMENT_CHARACTER.len_utf8(), "this is not UTF-8 text")
                .help("save the file as UTF-8");
            let diagnostics = findings.locate(&name, &text);
            Err(Rejected { diagnostics, source: report::mask_secrets(&text) })
        }
    }
}

/// Checks `text`, which diagnostics call `name`. Reads no file, so files of secrets are not looked
/// at.
pub fn parse(name: &str, text: &str) -> Result<Loaded, Rejected> {
    read_and_check(name, text, Secrets::Ignore)
}

/// Whether files of secrets are looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Secrets {
    Check,
    Ignore,
}

fn read_and_check(name: &str, text: &str, secrets: Secrets) -> Result<Loaded, Rejected> {
    let (document, errors) = DeTable::parse_recoverable(text);
    let syntax = syntax::syntax(text, &errors);
    let mut findings = Findings::default();
    let mut config = None;
    if syntax.tree_is_whole {
        let file = raw::File::read_table(document.get_ref(), 0..0, &mut findings);
        config = Some(check::check(&file, &mut findings));
        if secrets == Secrets::Check {
            check::secret::check(&file, &mut findings);
        }
    }
    findings.put_before(syntax.findings, text);
    let usable = !findings.has_errors();
    let diagnostics = findings.locate(name, text);
    // A large file is not read once more for nothing.
    let source = if diagnostics.is_empty() { String::new() } else { report::mask_secrets(text) };
    match config {
        Some(config) if usable => Ok(Loaded { config, warnings: diagnostics, source }),
        _ => Err(Rejected { diagnostics, source }),
    }
}

/// A configuration that has passed every check.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `[cluster]`.
    pub cluster: Cluster,
    /// `[[node]]`, at least one.
    pub nodes: Vec<Node>,
    /// `[[floating]]`.
    pub floating: Vec<Floating>,
    /// `[[anycast]]`: addresses that every node serves at the same time.
    pub anycast: Vec<IpAddr>,
    /// `[[service]]`, in the order of the file, and then those of the databases.
    pub services: Vec<Service>,
    /// `[[postgres]]`, in the order of the file.
    pub databases: Vec<Postgres>,
    /// `[[alert]]`, in the order of the file.
    pub alerts: Vec<Alert>,
    /// `[dataplane]`.
    pub dataplane: Dataplane,
    /// `[paths]`.
    pub paths: Paths,
}

impl Config {
    /// The entry of the node called `name`.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// Every address that services can listen on.
    pub fn service_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let floating = self.floating.iter().flat_map(|block| &block.addresses);
        floating.map(|(address, _)| *address).chain(self.anycast.iter().copied())
    }

    /// Whether several nodes share the floating addresses, so that VRRP decides who has them.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.nodes.len() > 1
    }
}

/// `[cluster]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// Name, in logs and alerts.
    pub name: String,
    /// File with the key that the nodes authenticate each other with. Without it, they do not talk.
    pub secret_file: Option<PathBuf>,
    /// UDP port that they talk to each other by.
    pub peer_port: u16,
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
    /// Version of VRRP.
    pub version: Version,
    /// Time between two adverts.
    pub interval: Duration,
    /// The password of version 2.
    pub password: Option<Password>,
    /// Whether a node of a higher priority takes the addresses from one of a lower.
    pub preempt: bool,
    /// How long it waits before that.
    pub preempt_delay: Duration,
    /// Adverts go to each node, not to the group.
    pub unicast: bool,
    /// The checksum of IPv4 adverts of version 3.
    pub checksum: ChecksumForm,
}

impl Floating {
    /// The family that its adverts go over: that of IPv4 addresses if it has any, and those of IPv6
    /// move with them. None without addresses.
    #[must_use]
    pub fn is_v4(&self) -> Option<bool> {
        let any_v4 = self.addresses.iter().any(|(address, _)| address.is_ipv4());
        (!self.addresses.is_empty()).then_some(any_v4)
    }
}

/// IP protocol of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP (6).
    Tcp,
    /// UDP (17).
    Udp,
}

/// How the packets of a service get to its backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Forwarding {
    /// With addresses and ports rewritten, in both directions.
    #[default]
    Nat,
    /// As they are, but for the MAC addresses. The backends answer the client by themselves.
    Direct,
    /// Inside another packet. The backends answer the client by themselves.
    Tunnel(Encapsulation),
}

/// What packets are wrapped in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encapsulation {
    /// IP in IP (RFC 2003, RFC 2473, RFC 4213), of the family of the backend's address.
    Ipip,
    /// Generic UDP Encapsulation, variant 1 (draft-ietf-intarea-gue): IP in UDP, port 6080.
    Gue,
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
    /// `forward` and `encapsulation`.
    pub forward: Forwarding,
    /// `balance`.
    pub balance: lb_common::service::Balance,
    /// `on_down`.
    pub on_down: OnDown,
    /// How long a draining or removed backend's connections may go on.
    pub drain_timeout: Duration,
    /// How long a backend that came up takes to reach its full share; zero: at once.
    pub slow_start: Duration,
    /// `replay_tries` and `replay_budget`.
    pub replay: Replay,
    /// Backends, at least one, in the order of the file.
    pub backends: Vec<Backend>,
    /// `[service.health]`.
    pub health: Health,
    /// `[service.passive]`; none if its connections are not watched.
    pub passive: Option<Passive>,
    /// Who may connect, and how often.
    pub guard: Guard,
    /// `[service.proxy]`, if the service's `path` is `proxy` or `auto`.
    pub proxy: Option<Arc<Proxy>>,
}

/// `[service.proxy]`: how requests are handed on and repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// `path` is `auto`: it takes new connections only while a backend is shaky.
    pub auto: bool,
    /// Most time until a connection to a backend is made.
    pub connect_timeout: Duration,
    /// Most time between two writes to a backend.
    pub send_timeout: Duration,
    /// Most time until an answer's head, once the request is sent, and between two reads of its body.
    pub read_timeout: Duration,
    /// Most time until a request's head is there, and between two reads or writes of a client.
    pub client_timeout: Duration,
    /// Most unused connections to each backend that each worker keeps.
    pub keepalive: u32,
    /// Most requests that each backend has at once; 0: any number.
    pub max_requests: u32,
    /// Most requests that wait while every backend has as many as it may.
    pub queue: u32,
    /// Most time that one waits so.
    pub queue_timeout: Duration,
    /// Requests go where they are answered soonest, whatever `balance` says.
    pub least_time: bool,
    /// `next_upstream`, `next_upstream_tries`, `next_upstream_timeout`.
    pub next_upstream: decide::Rules,
    /// Share of the requests under way that may be repeated ones, in thousandths, 1 to 1000.
    pub retry_per_mille: u32,
    /// Bytes of a request's body that are kept for another attempt. A request whose body is longer is
    /// not repeated once more than this has been sent.
    pub body_buffer: u64,
    /// File of the access log.
    pub access_log: Option<PathBuf>,
    /// What the proxy shows to clients. If there are any, clients speak TLS.
    pub certificates: Vec<Certificate>,
    /// Networks whose connections begin with a header of the PROXY protocol.
    pub accept_proxy: Vec<(IpAddr, u8)>,
    /// How backends are spoken to.
    pub upstream: Upstream,
}

/// `[[service.proxy.certificate]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// File with the certificate and those that it was signed by, PEM.
    pub chain: PathBuf,
    /// File with its private key, PEM.
    pub key: PathBuf,
}

/// Who may connect to a service, and how often.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    /// Networks of the service's own family, and whether they may connect. The longest prefix decides,
    /// and each stands once.
    pub sources: Vec<((IpAddr, u8), bool)>,
    /// Whether all others may.
    pub others: bool,
    /// New connections that one source may begin in a second, and at once.
    pub rate: Option<(u32, u32)>,
}

impl Guard {
    /// What the kernel program is to say of a service whose clients are told by others: those come
    /// through, however often, and what holds for the clients is the proxy's matter.
    #[must_use]
    pub fn for_fronts(&self, fronts: &[(IpAddr, u8)]) -> Self {
        if fronts.is_empty() {
            return self.clone();
        }
        let mut sources = self.sources.clone();
        if !sources.is_empty() {
            sources.retain(|(network, _)| !fronts.contains(network));
            sources.extend(fronts.iter().map(|network| (*network, true)));
        }
        Self { sources, others: self.others, rate: None }
    }

    /// Whether every source may connect.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.sources.is_empty()
    }
}

/// When a connection whose backend fails is tried at another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replay {
    /// At so many others, 0 to 4. 0: the client is told of the failure. UDP: 0.
    pub tries: u32,
    /// Share of new connections for which this may happen, in thousandths, 1 to 1000.
    pub per_mille: u32,
}

/// `[[service.backend]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    /// Name, unique within the service.
    pub name: String,
    /// Address and port; of the same family as the service's if that is translated, and with the same
    /// port if it is not.
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

/// `[service.passive]`: what the connections of clients show of the backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passive {
    /// Most of the backends that are ejected at a time, 1 to 100 percent; one may always be.
    pub eject_percent: u32,
    /// How long the first ejection of a backend lasts that no probe lets back earlier.
    pub eject_time: Duration,
}

/// How a backend is asked for its health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Not at all: it counts as up.
    None,
    /// A TCP connection is made and closed.
    Tcp,
    /// A GET.
    Http(HttpProbe),
    /// The same over TLS. The certificate is verified if the proxy verifies it, and else is not (a probe
    /// asks for health, not identity).
    Https(HttpProbe),
    /// Not at all: the backend is a server of a database, and what is known of that says.
    Database {
        /// Packets go to it only until the end of a lease, as another node may put another server in its place.
        leased: bool,
    },
    /// A connection to Postgres is begun: it lets clients in.
    Postgres,
    /// A command with its arguments; exit code 0 means healthy. It is given `BALLAST_SERVICE`,
    /// `BALLAST_BACKEND`, `BALLAST_ADDRESS` and `BALLAST_PORT` in its environment.
    Command(Vec<String>),
}

impl Probe {
    /// Whether backends are asked at all.
    #[must_use]
    pub fn is_active(&self) -> bool {
        !matches!(self, Self::None | Self::Database { .. })
    }
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
    /// How the proxy speaks to the backends of the service: they are asked in the same way.
    pub upstream: Upstream,
}

/// `[dataplane]`: sizes and timeouts of the kernel's tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataplane {
    /// Entries in each of `FLOWS` and `FLOWS6`.
    pub max_flows: u32,
    /// Entries in each of `HALF_OPEN` and `HALF_OPEN6`.
    pub max_half_open: u32,
    /// Room for services; by default, what the file needs and a quarter more.
    pub max_services: Option<u32>,
    /// Room for the backends of all services; by default as above.
    pub max_backends: Option<u32>,
    /// Slots in `MAGLEV`. Tables may use half of it, and replace each other in the other half. By
    /// default as above.
    pub max_slots: Option<u32>,
    /// A TCP connection with no packet for so long is forgotten. RFC 5382 REQ-5: not under 2 h 4 min.
    pub tcp_idle_timeout: Duration,
    /// A TCP connection that one side has closed is forgotten after so long without a packet.
    pub tcp_closing_timeout: Duration,
    /// A UDP flow with no packet for so long is forgotten. RFC 4787 REQ-5: not under 2 min.
    pub udp_idle_timeout: Duration,
}

impl Default for Dataplane {
    fn default() -> Self {
        Self {
            max_flows: limits::DEFAULT_FLOWS,
            max_half_open: limits::DEFAULT_HALF_OPEN,
            max_services: None,
            max_backends: None,
            max_slots: None,
            tcp_idle_timeout: Duration::from_mins(124),
            tcp_closing_timeout: Duration::from_mins(4),
            udp_idle_timeout: Duration::from_mins(2),
        }
    }
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
